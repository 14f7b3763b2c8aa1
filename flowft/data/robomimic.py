"""robomimic HDF5: `data/demo_<i>/{obs/*, next_obs/*, actions, rewards, dones, states}`, attributes total and env_args, masks.

Ids: `robomimic/<task>/<ph|mh|mg>`, looked for as `low_dim*.hdf5` below <datasets folder>/robomimic/<task>/<variant>/ and
~/.robomimic/<task>/<variant>/. Without a variant: mh when it is there, else ph, else mg (for the error: mh).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from flowft.data import elsewhere, source
from flowft.data.check import Inspector, skip
from flowft.data.files import is_hdf5, names, numeric_order, open_hdf5, text
from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset, EnvSpec, Episode
from flowft.errors import DataError, did_you_mean

NAME = "robomimic"
FORMAT = "robomimic HDF5"
READS = "robomimic v0.1 and v1.5, mimicgen, LIBERO, Isaac Lab's recorder: obs of low dimension, actions, rewards, masks; no images"
TASKS = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare", "transport": "TwoArmTransport", "tool_hang": "ToolHang"}
VARIANTS = ("mh", "ph", "mg")  # in the order in which they are looked for
HUMANS_ONLY = {"square": ("mh", "ph"), "transport": ("mh", "ph"), "tool_hang": ("ph",)}  # the others have all three
MAX_STEPS = {"Lift": 300, "PickPlaceCan": 300, "NutAssemblySquare": 400, "TwoArmTransport": 800, "ToolHang": 700}  # usual in the literature
ROBOT_PARTS = ("eef_pos", "eef_quat", "gripper_qpos")


def known() -> list[str]:
    return [f"robomimic/{task}/{variant}" for task in TASKS for variant in sorted(HUMANS_ONLY.get(task, VARIANTS))]


def locate(dataset_id: str) -> Path:
    """The file of `robomimic/<task>[/<variant>]`."""
    task, variants = parse(dataset_id)
    for variant in variants:
        for home in homes(task, variant):
            if found := sorted(home.glob("low_dim*.hdf5")):
                return found[-1]  # the newest version's name sorts last
    place = homes(task, variants[0])[0] / "low_dim_v15.hdf5"
    raise DataError(f"{dataset_id} is not here: no {place}", f"flowft data download robomimic/{task}/{variants[0]}")


def homes(task: str, variant: str) -> list[Path]:
    """Folders in which a file of this task and variant may lie, the first being where downloads go."""
    return [source.folder() / NAME / task / variant, Path.home() / ".robomimic" / task / variant]


def parse(dataset_id: str) -> tuple[str, list[str]]:
    """`robomimic/can/mh` as ("can", ["mh"]); without a variant, all that the task has."""
    words = dataset_id.split("/")
    task = words[1] if len(words) > 1 else ""
    there = [v for v in VARIANTS if v in HUMANS_ONLY.get(task, VARIANTS)]
    if task not in TASKS or len(words) > 3 or (len(words) == 3 and words[2] not in there):
        raise source.bad_id(dataset_id, known())
    return task, words[2:] or there


def matches(path: Path) -> bool:
    """HDF5 with a group `data` whose demos have observations (robosuite's own files have states and actions only)."""
    if not is_hdf5(path):
        return False
    with open_hdf5(path) as file:
        data = file.get("data")
        if not isinstance(data, h5py.Group):
            return False
        demos = [demo for name in data if isinstance(demo := data[name], h5py.Group)]
        states_only = bool(demos) and all("obs" not in demo and "states" in demo and "rewards" not in demo for demo in demos)
        return not states_only and ("observations" not in file)


def read(path: Path, dataset_id: str, problems: Problems, options: Options) -> Dataset:
    """All demos (or a mask's), checked. Observations have T+1 rows where `next_obs` is stored, else T."""
    inspector = Inspector(str(path), problems, options)
    with open_hdf5(path) as file:
        data = file.get("data")
        if not isinstance(data, h5py.Group):
            there = ", ".join(names(file)) or "nothing"
            raise DataError(f"{path}:data: missing; a robomimic file keeps its demos there (this one has: {there})", "flowft data list")
        demos = numeric_order(names(data))
        if not demos:
            inspector.report("data", "there is no demo in the file")
        chosen = inspector.wanted(_chosen(inspector, file, demos))
        env = environment(inspector, data, dataset_id)
        parts = list(options.observation) or usual_parts(data, chosen)
        for name in chosen:
            _demo(inspector, data[name], name, parts)
    env = env and EnvSpec(**{**env.__dict__, "observation": tuple(parts)})
    return inspector.dataset(dataset_id, NAME, FORMAT, source.sha256(path), env, parts)


def usual_parts(data: h5py.Group, demos: list[str]) -> list[str]:
    """End effector position and orientation, gripper of each robot in turn, then the objects."""
    there = {key for name in demos[:1] if isinstance(obs := _get(data, f"{name}/obs"), h5py.Group) for key in obs}
    robots = [robot for robot in ("robot0", "robot1") if f"{robot}_eef_pos" in there] or ["robot0"]
    return [f"{robot}_{part}" for robot in robots for part in ROBOT_PARTS] + ["object"]


def environment(inspector: Inspector, data: h5py.Group, dataset_id: str) -> EnvSpec | None:
    """From `env_args`; without it by the task that the id names, else None with a note."""
    if "env_args" not in data.attrs:
        words = dataset_id.split("/")
        task = TASKS.get(words[1]) if words[0] == NAME and len(words) > 1 else None
        instead = f"{task} of robosuite 1.4 is inferred from the id" if task else "name the environment with --env"
        inspector.notes.append(f"no env_args in the file: {instead}")
        # Files of 1.5 always have env_args; 1.4 gave some object values with another sign or order.
        return EnvSpec("robosuite", task, max_steps=MAX_STEPS[task], versions={"robosuite": "1.4.1"}) if task else None
    try:
        arguments = json.loads(text(data.attrs["env_args"]))
        name, version, kwargs = str(arguments["env_name"]), arguments.get("env_version"), dict(arguments.get("env_kwargs") or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        inspector.report("data", f"the attribute env_args is not JSON with env_name and env_kwargs ({error})")
        return None
    if arguments.get("type", 1) != 1:
        inspector.notes.append(f"env_args has type {arguments['type']}, which is no robosuite environment: name one with --env")
        return None
    if (word := elsewhere.not_built(name, arguments)) is not None:
        inspector.notes.append(word)
        return None
    versions = {"robosuite": str(version)} if version else {}
    if version:
        inspector.notes.append(f"made with robosuite {version}")
    return EnvSpec("robosuite", name, kwargs, MAX_STEPS.get(name), versions=versions)


def _chosen(inspector: Inspector, file: h5py.File, demos: list[str]) -> list[str]:
    """The demos of the mask asked for, or all. A mask that names absent demos means that demos were lost from the file."""
    wanted = inspector.options.demos
    masks = found if isinstance(found := file.get("mask"), h5py.Group) else {}
    named = {key: [text(name) for name in np.ravel(masks[key][()])] for key in masks if isinstance(masks[key], h5py.Dataset)}
    if wanted not in (None, "all") and wanted not in named:
        raise DataError(f"{inspector.file}:mask/{wanted}: no such mask{did_you_mean(str(wanted), ['all', *named])}", "--set data.demos=all")
    if wanted == "all":
        return demos
    for key in named if wanted is None else [str(wanted)]:
        if absent := [name for name in named[key] if name not in demos]:
            first = numeric_order(absent)[0]
            inspector.report(f"mask/{key}", f"names {len(absent)} demos that are not in the file, {first} first", "--set data.demos=all")
    return demos if wanted is None else [name for name in demos if name in set(named[str(wanted)])]


def _demo(inspector: Inspector, demo: Any, name: str, parts: list[str]) -> None:
    """Check one demo's keys and lengths and hand it to the inspector."""
    at = f"data/{name}"
    if not isinstance(demo, h5py.Group):
        inspector.report(at, "not a group of arrays", skip(name))
        return
    nexts = [part for part in parts if f"next_obs/{part}" in demo]
    if not (_complete(inspector, demo, at, parts, nexts) and _low_dimensional(inspector, demo, at, parts)):
        return
    keys = ["actions", "rewards", *(key for key in ("dones", "states") if key in demo)]
    keys += [f"obs/{part}" for part in parts] + [f"next_obs/{part}" for part in nexts]
    if not _arrays(inspector, demo, at, keys):
        return
    if not inspector.same_length({f"{at}/{key}": len(demo[key]) for key in keys}, name):
        return
    rows = len(demo["actions"])
    if (said := text(demo.attrs.get("num_samples", rows))) not in (str(rows), f"{rows}.0"):
        inspector.report(at, f"num_samples is {said}, but actions has {rows} rows", skip(name))
        return
    episode = _episode(at, demo, parts, bool(nexts))
    inspector.accept(episode, lambda key: f"{at}/{key}" if key in ("actions", "rewards") else f"{at}/obs/{key}")


def _complete(inspector: Inspector, demo: h5py.Group, at: str, parts: list[str], nexts: list[str]) -> bool:
    """Are all keys there? next_obs may be absent, but not by halves."""
    missing = [key for key in ("actions", "rewards", "obs") if key not in demo or (key == "obs" and not isinstance(demo[key], h5py.Group))]
    for key in missing:
        inspector.report(f"{at}/{key}", "missing", skip(at))
    parts_missing = [part for part in parts if "obs" not in missing and part not in demo["obs"]]
    for part in parts_missing:
        choice = f"missing (there are: {', '.join(names(demo['obs'])) or 'none'})"
        inspector.report(f"{at}/obs/{part}", choice, "--set 'data.observation=[…]' with parts that are there")
    halves = [part for part in parts if nexts and part not in nexts]
    for part in halves:
        inspector.report(f"{at}/next_obs/{part}", "missing, though other parts of next_obs are there", skip(at))
    return not (missing or parts_missing or halves)


def _arrays(inspector: Inspector, demo: h5py.Group, at: str, keys: list[str]) -> bool:
    """Is each key an array with rows, and next_obs of the same width as obs?"""
    wrong = {key: "not an array with a row for each step" for key in keys if not isinstance(demo[key], h5py.Dataset) or not demo[key].ndim}
    for key in keys:
        now = key.removeprefix("next_")
        if key.startswith("next_obs/") and key not in wrong and now not in wrong and demo[key].shape[1:] != demo[now].shape[1:]:
            wrong[key] = f"has shape {demo[key].shape}, but {at}/{now} has {demo[now].shape}"
    for key, what in wrong.items():
        inspector.report(f"{at}/{key}", what, skip(at))
    return not wrong


def _low_dimensional(inspector: Inspector, demo: h5py.Group, at: str, parts: list[str]) -> bool:
    images = [part for part in parts if getattr(demo[f"obs/{part}"], "ndim", 0) > 2]
    for part in images:
        what = f"shape {demo[f'obs/{part}'].shape}: images are not read yet, only low-dimensional parts"
        inspector.report(f"{at}/obs/{part}", what, "--set 'data.observation=[…]' without it")
    return not images


def _episode(at: str, demo: h5py.Group, parts: list[str], has_next: bool) -> Episode:
    """`dones` is 1 on every success state, so it marks no end: a demo is terminal when its last state is a success."""
    observations: Mapping[str, npt.NDArray[Any]] = {part: demo[f"obs/{part}"][()] for part in parts}
    if has_next and len(demo["actions"]):
        observations = {part: np.concatenate([rows, demo[f"next_obs/{part}"][-1:]]) for part, rows in observations.items()}
    rewards = demo["rewards"][()]
    rewards = rewards[:, 0] if rewards.ndim == 2 and rewards.shape[1] == 1 else rewards
    # A shaped reward does not tell success.
    sparse = rewards.ndim == 1 and rewards.dtype.kind in "fiub" and bool(np.isin(rewards, (0, 1)).all())
    success = bool((rewards == 1).any()) if sparse else None
    ends_in_success = sparse and len(rewards) > 0 and bool(rewards[-1] == 1)
    return Episode(at, observations, demo["actions"][()], rewards, terminated=ends_in_success, success=success)


def _get(group: h5py.Group, key: str) -> Any:
    return group[key] if key in group else None
