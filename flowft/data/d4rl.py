"""D4RL HDF5: flat observations, actions, rewards, terminals, timeouts; sometimes next_observations and infos/*.

Ids: `d4rl/<name>` (door-human-v1), looked for as <datasets folder>/d4rl/<name>.hdf5 and ~/.d4rl/datasets/<name>.hdf5. An episode
ends where terminals or timeouts is set. Without next_observations the state after an episode's last action was never
stored: that action stays, the episode has T observation rows, and nothing is bootstrapped from there.
"""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from flowft.data import source
from flowft.data.check import Inspector
from flowft.data.columns import Numbers, complete, flat, segments
from flowft.data.d4rl_scores import RETURNS
from flowft.data.files import is_hdf5, names, open_hdf5
from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset, EnvSpec, Episode
from flowft.errors import DataError

NAME = "d4rl"
FORMAT = "D4RL HDF5"
READS = "D4RL v0 to v2: observations, actions, rewards, terminals, timeouts; not infos"
ADROIT = {"door": "AdroitHandDoor-v1", "pen": "AdroitHandPen-v1", "hammer": "AdroitHandHammer-v1", "relocate": "AdroitHandRelocate-v1"}
# The oldest versions that current MuJoCo runs; their observations have D4RL's sizes (Ant only with its contact forces).
MUJOCO = {"hopper": ("Hopper-v5", 11), "halfcheetah": ("HalfCheetah-v5", 17), "walker2d": ("Walker2d-v5", 17), "ant": ("Ant-v4", 111)}
ADROIT_STEPS = 200  # as the environments are registered; human demonstrations may be longer


def known() -> list[str]:
    """The names of D4RL's own releases whose environment is known here."""
    hands = [f"{task}-{kind}-v1" for task in ADROIT for kind in ("human", "cloned", "expert")]
    kinds = ("random", "medium", "medium-replay", "medium-expert", "expert")
    mazes = [f"antmaze-{maze}-v2" for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")]
    return [f"d4rl/{name}" for name in [*hands, *(f"{task}-{kind}-v2" for task in MUJOCO for kind in kinds), *mazes]]


def locate(dataset_id: str) -> Path:
    """The file of `d4rl/<name>`, in D4RL's own spelling or with _ for - (its file names do that)."""
    name = dataset_id.partition("/")[2]
    if not name or "/" in name or name.split("-")[0].split("_")[0] not in RETURNS:
        raise source.bad_id(dataset_id, known())
    homes = [source.folder() / NAME, Path.home() / ".d4rl" / "datasets"]
    spellings = {name, re.sub(r"^(hopper|halfcheetah|walker2d|ant)-(.+)(-v\d)$", lambda m: f"{m[1]}_{m[2].replace('-', '_')}{m[3]}", name)}
    for home in homes:
        for spelling in sorted(spellings):
            if (path := home / f"{spelling}.hdf5").is_file():
                return path
    raise DataError(f"{dataset_id} is not here: no {homes[0] / name}.hdf5", f"flowft data download {dataset_id}")


def matches(path: Path) -> bool:
    """HDF5 with flat arrays `observations` or `actions` at its root."""
    if not is_hdf5(path):
        return False
    with open_hdf5(path) as file:
        return any(isinstance(file.get(key), h5py.Dataset) for key in ("observations", "actions", "rewards"))


def read(path: Path, dataset_id: str, problems: Problems, options: Options) -> Dataset:
    """All episodes. Rows after the last end mark are kept as a truncated episode."""
    inspector = Inspector(str(path), problems, options)
    if options.demos not in (None, "all"):
        raise DataError(f"{path}: D4RL files have no masks, but data.demos is {options.demos!r}", "--set data.demos=all")
    with open_hdf5(path) as file:
        wanted = ("actions", "observations", "rewards", "terminals", "timeouts", "next_observations")
        columns: dict[str, Numbers] = {key: file[key][()] for key in wanted if isinstance(file.get(key), h5py.Dataset)}
        has = names(file)
    sound = complete(inspector, columns, ("actions", "observations", "rewards", "terminals"), has)
    if sound and (last := _ends(inspector, columns)) is not None:
        task = _task(dataset_id, path)
        _episodes(inspector, columns, last, _parts(task, columns["observations"]), sparse=task == "antmaze")
    env = _environment(inspector, dataset_id, path, columns)
    return inspector.dataset(dataset_id, NAME, FORMAT, source.sha256(path), env)


def _ends(inspector: Inspector, columns: dict[str, Numbers]) -> npt.NDArray[np.bool_] | None:
    """True on the last row of each episode. Early files lack timeouts: then an end is where the next row is not the successor."""
    last = flat(columns["terminals"]).astype(bool)
    if "timeouts" in columns:
        return np.asarray(last | flat(columns["timeouts"]).astype(bool))
    if "next_observations" not in columns:
        inspector.report("timeouts", "missing, and without next_observations the ends of episodes cannot be found")
        return None
    inspector.notes.append("no timeouts in the file: episodes end where next_observations is not the next row")
    last[:-1] |= ~np.isclose(columns["next_observations"][:-1], columns["observations"][1:]).all(axis=1)
    return last


def _parts(task: str, observations: Numbers) -> dict[str, slice]:
    """AntMaze's 29 values are the position and the body, which the environment keeps apart; all others are one vector."""
    if task == "antmaze" and observations.ndim == 2 and observations.shape[1] == 29:
        return {"achieved_goal": slice(0, 2), "observation": slice(2, 29)}
    return {"observation": slice(None)}


def _episodes(
    inspector: Inspector, columns: dict[str, Numbers], last: npt.NDArray[np.bool_], parts: dict[str, slice], sparse: bool
) -> None:
    spans = {f"episode_{i}": span for i, span in enumerate(segments(last))}
    *_, (name, (start, stop)) = spans.items()
    if not last[-1]:
        inspector.notes.append(f"the file ends in the middle of an episode ({stop - start} steps)")
        if stop - start < 2:  # the writer stopped there: nothing is wrong with the data
            del spans[name]
    terminals, rewards = flat(columns["terminals"]).astype(bool), flat(columns["rewards"])
    for name in inspector.wanted(list(spans)):
        start, stop = spans[name]
        states = columns["observations"][start:stop]
        if "next_observations" in columns:
            states = np.concatenate([states, columns["next_observations"][stop - 1 : stop]])
        observations = {part: states[:, where] for part, where in parts.items()} if states.ndim == 2 else {"observation": states}
        success = bool((rewards[start:stop] > 0).any()) if sparse else None  # dense returns do not say
        episode = Episode(name, observations, columns["actions"][start:stop], rewards[start:stop], bool(terminals[stop - 1]), success)
        inspector.accept(episode, lambda key: key if key in ("actions", "rewards") else "observations", row=start)


def _task(dataset_id: str, path: Path) -> str:
    """hopper, door, antmaze, …: the first word of the id or of the file's name."""
    name = dataset_id.partition("/")[2] if dataset_id.startswith("d4rl/") else path.stem
    return re.split(r"[-_.]", name)[0]


def _environment(inspector: Inspector, dataset_id: str, path: Path, columns: dict[str, Numbers]) -> EnvSpec | None:
    """The environment of today whose observations have the sizes of the file's; None with a note where there is none."""
    task = _task(dataset_id, path)
    size = columns["observations"].shape[-1] if columns.get("observations") is not None and columns["observations"].ndim else 0
    if task in ADROIT:
        longest = max((len(episode) for episode in inspector.episodes), default=0)
        return EnvSpec("robotics", ADROIT[task], max_steps=max(ADROIT_STEPS, longest))
    if task in MUJOCO and size == MUJOCO[task][1]:
        inspector.notes.append(f"recorded with an older MuJoCo and environment version than {MUJOCO[task][0]}")
        return EnvSpec("gymnasium", MUJOCO[task][0], {"use_contact_forces": True} if task == "ant" else {})
    why = {
        "antmaze": "positions in D4RL's mazes have another origin and direction than those of gymnasium-robotics",
        "kitchen": "D4RL's kitchen observations are not those of FrankaKitchen-v1: use minari/D4RL/kitchen/…",
    }.get(task, f"no environment is known for {path.name} with {size} observation values")
    inspector.notes.append(f"{why}; for online steps name an environment with --env")
    return None
