"""Minari datasets, read through the minari package (0.5): T+1 observations, T actions, terminations, truncations.

Ids: `minari/<namespace>/<name>-v<k>`, at Minari's own place ($MINARI_DATASETS_PATH, else ~/.minari/datasets) or in
<datasets folder>/minari. By path: the dataset's folder, its `data` folder or its main_data.hdf5.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flowft import registry
from flowft.data import fixes, source
from flowft.data.check import Inspector, Numbers, refuse, skip
from flowft.data.export import OURS, Facts
from flowft.data.files import is_hdf5, names, open_hdf5
from flowft.data.progress import watched
from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset, EnvSpec, Episode
from flowft.errors import DamagedFile, DataError, MissingExtra

NAME = "minari"
FORMAT, ARROW = "Minari HDF5", "Minari arrow"
READS = "Minari 0.5 (HDF5, arrow, parquet): vectors of Box, Dict and Tuple spaces, infos that tell success; no images, no text"
MAIN = "main_data.hdf5"
SUCCESS = ("success", "is_success", "goal_achieved")  # the names that simulators give it in their infos


def known() -> list[str]:
    """The datasets that are here; Minari's server has more (`minari list remote`)."""
    found = {
        str(folder.parent.relative_to(home))
        for home in homes() if home.is_dir() for folder in home.rglob("data") if (folder / MAIN).is_file() or is_arrow(folder)
    }  # fmt: skip
    return sorted(f"minari/{name}" for name in found)


def homes() -> list[Path]:
    minaris_own = os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets"
    return [Path(minaris_own), source.folder() / NAME]


def locate(dataset_id: str) -> Path:
    name = dataset_id.partition("/")[2]
    for home in homes():
        if name and (home / name / "data").is_dir():
            return home / name / "data"
    raise DataError(f"{dataset_id} is not here: no {homes()[0] / name / 'data'}", f"flowft data download {dataset_id}")


def matches(path: Path) -> bool:
    """Minari's folder, or HDF5 with groups episode_<i>."""
    if path.is_dir():
        return any((folder / MAIN).is_file() or is_arrow(folder) for folder in (path, path / "data"))
    if not is_hdf5(path):
        return False
    with open_hdf5(path) as file:
        return any(name.startswith("episode_") for name in names(file))


def is_arrow(folder: Path) -> bool:
    """Does metadata.json say that the episodes lie in one of Minari's other formats, a folder of arrow or parquet files for each?"""
    try:
        return bool(json.loads((folder / "metadata.json").read_text()).get("data_format") in ("arrow", "parquet"))
    except (OSError, ValueError, AttributeError):
        return False


def read(path: Path, dataset_id: str, problems: Problems, options: Options) -> Dataset:
    """All episodes. Observation parts: those of Options.observation, else all vectors of the observation space."""
    folder = path.parent if path.is_file() else path / "data" if (path / "data").is_dir() else path
    arrow = is_arrow(folder)
    main = folder if arrow else folder / MAIN
    if options.demos not in (None, "all"):
        raise DataError(f"{folder}: Minari datasets have no masks, but data.demos is {options.demos!r}", fixes.setting(demos="all"))
    refuse(str(main), options, "episode_steps", "Minari keeps episodes apart")
    stored = _open(folder, main, dataset_id)
    low, high = _bounds(stored.action_space, str(main))
    inspector = Inspector(str(main), problems, options, low, high)
    _note_bounds(inspector, stored.action_space)
    sizes = _vectors(stored.observation_space, main, options.observation or _usual(stored))
    chosen = inspector.wanted([f"episode_{i}" for i in stored.episode_indices])
    if arrow:
        present = chosen  # Minari itself tells what an episode lacks
    else:
        with open_hdf5(main) as file:
            present = [name for name in watched(chosen, f"looking at {main.name}", "episode") if _complete(inspector, file, name)]
    for episode in _episodes(inspector, stored, present):
        _keep(inspector, episode, sizes)
    if (said := stored.total_episodes) != len(stored.episode_indices):
        inspector.notes.append(f"metadata.json says {said} episodes, the file has {len(stored.episode_indices)}")
    env = _environment(inspector, stored, sizes, options)
    return inspector.dataset(dataset_id, NAME, ARROW if arrow else FORMAT, inspector.identity.hexdigest(), env, sizes)


def hashed(path: Path) -> Path:
    """What identified a dataset before its contents did: all files of its folder."""
    return path.parent


def _open(folder: Path, main: Path, dataset_id: str) -> Any:
    """The package's dataset object; DataError for what it says about a damaged one."""
    if main != folder:
        _require_metadata(folder, main)
    try:
        import minari
    except ImportError as error:
        raise MissingExtra("minari", "dev", f"reading {folder}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return minari.MinariDataset(str(folder))
    except ImportError as error:
        raise MissingExtra("pyarrow", "lerobot", f"reading {folder}") from error
    except Exception as error:  # JSON, assertions, versions: whatever the package says, in one line
        raise DamagedFile(f"{folder / 'metadata.json'}: Minari cannot read it: {_line(error)}") from error


def _require_metadata(folder: Path, main: Path) -> None:
    with open_hdf5(main) as file:
        if not (folder / "metadata.json").is_file():
            age = " (written by Minari 0.4 or older)" if "minari_version" in file.attrs else ""
            raise DamagedFile(f"{main} has no metadata.json beside it{age}")


def _bounds(space: Any, file: str) -> tuple[Numbers, Numbers]:
    import gymnasium

    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise DataError(f"{file}: the action space is {space}; flowft needs a box of continuous values")
    finite = np.isfinite(space.low) & np.isfinite(space.high)
    return np.where(finite, space.low, -1.0), np.where(finite, space.high, 1.0)


def _note_bounds(inspector: Inspector, space: Any) -> None:
    """A space without bounds says nothing about the range of actions: what is taken for it must be seen."""
    unbounded = np.flatnonzero(~(np.isfinite(space.low) & np.isfinite(space.high)))
    if len(unbounded) and not inspector.range.chosen:
        which = "the action space" if len(unbounded) == len(space.low) else f"the action space, in value {', '.join(map(str, unbounded))},"
        named = "--set data.action_bounds=data for the data's own, or a pair like [-3, 3]"
        inspector.notes.append(f"{which} has no bounds: ±1 is taken for them ({named})")
        inspector.range.name = "the bounds ±1 that are taken for an action space without any"


def _vectors(space: Any, main: Path, wanted: tuple[str, ...]) -> list[str]:
    """Names of the observation parts to read: `observation`, or the keys of a Dict space (nested: a/b) and Tuple space (0, 1)."""
    shapes = dict(_leaves(space, ""))
    vectors = [part for part, shape in shapes.items() if shape is not None and len(shape) == 1]
    fitting = [part for part in wanted if part in vectors] or vectors
    choice = fixes.setting(observation=fitting) if fitting else None
    for part in wanted:
        if part not in shapes:
            raise DataError(f"{main}: no observation part {part!r} (there are: {', '.join(shapes)})", choice)
        if len(shapes[part] or ()) != 1:
            raise DataError(f"{main}: {part} has shape {shapes[part]}; only vectors are read yet", choice)
    found = list(wanted) or vectors
    if not found:
        raise DataError(f"{main}: no observation part is a vector (there are: {', '.join(f'{k} {v}' for k, v in shapes.items())})")
    return found


def _usual(stored: Any) -> tuple[str, ...]:
    """The parts that the environment's family gives by default, for goal environments; () for all vectors."""
    if OURS in stored.storage.metadata:
        return tuple(name for name, _ in Facts.read(stored.storage.metadata[OURS], str(stored.storage.data_path)).spec.parts)
    ours = stored.env_spec is not None and str(stored.env_spec.entry_point).startswith("gymnasium_robotics")
    if not ours or not hasattr(stored.observation_space, "spaces"):
        return ()  # somebody else's goal is a part like any other: without it the task could not be learned
    goals: Mapping[str, tuple[str, ...]] = registry.get("envs", "robotics").GOALS
    usual = next((parts for start, parts in goals.items() if stored.env_spec.id.startswith(start)), ("observation",))
    return usual if all(part in dict(_leaves(stored.observation_space, "")) for part in usual) else ()


def _leaves(space: Any, prefix: str) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Part name and shape (None: not numbers) of each leaf of a space."""
    import gymnasium

    if isinstance(space, gymnasium.spaces.Dict):
        for key, inner in space.spaces.items():
            yield from _leaves(inner, f"{prefix}{key}/")
    elif isinstance(space, gymnasium.spaces.Tuple):
        for i, inner in enumerate(space.spaces):
            yield from _leaves(inner, f"{prefix}{i}/")
    else:
        yield prefix.rstrip("/") or "observation", space.shape if isinstance(space, gymnasium.spaces.Box) else None


def _complete(inspector: Inspector, file: h5py.File, name: str) -> bool:
    """Does the episode have its five arrays? (The package fails on the first that is missing, without saying where.)"""
    keys = ("observations", "actions", "rewards", "terminations", "truncations")
    missing = [key for key in keys if name not in file or key not in file[name]]
    for key in missing:
        inspector.report(f"{name}/{key}", "missing", skip(name))
    return not missing


def _episodes(inspector: Inspector, stored: Any, chosen: list[str]) -> Iterator[Any]:
    for name in chosen:
        try:
            yield from stored.iterate_episodes([int(name.rpartition("_")[2])])
        except (OSError, RuntimeError, KeyError, ValueError, AssertionError, TypeError, IndexError) as error:
            inspector.report(name, f"Minari cannot read it: {_line(error)}", skip(name))


def _keep(inspector: Inspector, stored: Any, parts: list[str]) -> None:
    name = f"episode_{stored.id}"
    observations = {part: np.asarray(_at(stored.observations, part)) for part in parts}
    ends = np.asarray(stored.terminations)
    if len(ends) != len(stored.rewards) or len(stored.truncations) != len(stored.rewards):
        inspector.report(f"{name}/terminations", f"{len(ends)} rows, but {name}/rewards has {len(stored.rewards)}", skip(name))
        return
    infos, steps = stored.infos or {}, len(stored.rewards)
    for key, values in {**observations, "actions": stored.actions, "rewards": stored.rewards, "terminations": ends}.items():
        inspector.identity.add(f"{name}/{key}", np.asarray(values))
    marks = {key: np.asarray(infos[key])[-steps:] for key in infos if np.ndim(infos[key]) == 1}  # infos have a row for the reset, too
    inspector.marks = inspector.marks or [key for key, values in marks.items() if values.dtype.kind in "fiub"]
    success = next((bool(np.any(infos[key])) for key in SUCCESS if key in infos), None)
    episode = Episode(name, observations, np.asarray(stored.actions), np.asarray(stored.rewards), bool(ends[-1:].any()), success)
    keys = {"actions": "actions", "rewards": "rewards", **{part: f"observations/{part}" for part in parts}}
    if not isinstance(stored.observations, (Mapping, tuple)):
        keys["observation"] = "observations"
    inspector.accept(episode, lambda key: f"{name}/{keys[key]}", marks=marks)


def _at(observations: Any, part: str) -> Any:
    if not isinstance(observations, (Mapping, tuple)):
        return observations
    for key in part.split("/"):
        observations = observations[int(key)] if isinstance(observations, tuple) else observations[key]
    return observations


def _environment(inspector: Inspector, stored: Any, parts: list[str], options: Options) -> EnvSpec | None:
    spec = stored.env_spec
    if OURS in stored.storage.metadata:
        ours = Facts.read(stored.storage.metadata[OURS], inspector.file).env
        if ours is not None:
            return replace(ours, observation=options.observation or ours.observation)
    if spec is None:
        inspector.notes.append("the dataset names no environment: for online steps name one with --env")
        return None
    point = str(spec.entry_point)
    family = "robotics" if point.startswith("gymnasium_robotics") else "gymnasium" if point.startswith("gymnasium.envs.mujoco") else None
    if family is None:  # the file's entry point is not called: whether to import that module is the user's to say
        module = point.partition(":")[0].partition(".")[0]
        inspector.notes.append(f"the dataset's environment {spec.id} is made by {point}: for online steps --env {module}:{spec.id}")
        return None
    ordered = tuple(parts) if options.observation or parts != ["observation"] else ()
    versions = {"minari": str(stored.spec.minari_version)}
    return EnvSpec(family, spec.id, dict(spec.kwargs or {}), spec.max_episode_steps, ordered, versions)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
