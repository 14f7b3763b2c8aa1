"""D4RL HDF5: flat observations, actions, rewards, terminals, timeouts; sometimes next_observations and infos/*.

Ids: `d4rl/<name>` (door-human-v1), looked for as <datasets folder>/d4rl/<name>.hdf5 and ~/.d4rl/datasets/<name>.hdf5. An episode
ends where terminals or timeouts is set. Without next_observations the state after an episode's last action was never
stored: that action stays, the episode has T observation rows, and nothing is bootstrapped from there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from flowft.data import d4rl_rows, fixes, source
from flowft.data.check import Inspector
from flowft.data.columns import Numbers, Spans, after_steps, choose, clean, complete, flags, flat, segments, usual_steps
from flowft.data.d4rl_scores import RETURNS
from flowft.data.files import being_written, is_hdf5, names, open_hdf5
from flowft.data.hdf5_faults import link_gone
from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset, EnvSpec, Episode
from flowft.errors import DataError

NAME = "d4rl"
FORMAT = "D4RL HDF5"
READS = "D4RL v0 to v2: observations, actions, rewards, terminals, timeouts; not infos"
ADROIT = {"door": "AdroitHandDoor-v1", "pen": "AdroitHandPen-v1", "hammer": "AdroitHandHammer-v1", "relocate": "AdroitHandRelocate-v1"}
# The oldest versions that current MuJoCo runs; their observations have D4RL's sizes (Ant only with its contact forces).
MUJOCO = {"hopper": ("Hopper-v5", 11), "halfcheetah": ("HalfCheetah-v5", 17), "walker2d": ("Walker2d-v5", 17), "ant": ("Ant-v4", 111)}
USUAL = {"actions", "observations", "next_observations", "rewards", "terminals", "timeouts"}
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
        raise DataError(f"{path}: D4RL files have no masks, but data.demos is {options.demos!r}", fixes.setting(demos="all"))
    with open_hdf5(path) as file:
        inspector.notes += being_written(file)
        needed = _needed(inspector, file)
        stored = {key: file[key] for key in needed if isinstance(file.get(key), h5py.Dataset)}
        required = ["actions", "observations", *(["terminals"] if inspector.rule is None else [])]
        required += ["rewards"] if inspector.rule is not None and inspector.rule.kind == "reward" else []
        lost = {key: gone for key in (*needed, "next_observations") if (gone := link_gone(file, key))}
        for key, gone in lost.items():
            inspector.report(key, gone, fixes.setting(success="last") if key == "rewards" else None)
        arrays = [key for key in names(file) if isinstance(file.get(key), h5py.Dataset)]
        sound = not lost and complete(inspector, stored, required, arrays)
        following = file.get("next_observations")
        if sound and isinstance(following, h5py.Dataset) and len(following) != len(stored["actions"]):
            inspector.report("next_observations", f"{len(following)} rows, but actions has {len(stored['actions'])}")
            sound = False
        if sound and (last := _marked(inspector, stored, following)) is not None:
            columns = {key: d4rl_rows.whole(inspector, stored[key], key) for key in stored if key != "observations"}
            rows = d4rl_rows.read(inspector, file, last, columns)
            task = _task(dataset_id, path)
            parts = _parts(task, rows.states)
            parts = {part: parts[part] for part in choose(inspector, list(parts))}
            _episodes(inspector, rows, parts, ended=bool(last[-1]), sparse=task == "antmaze")
        size = stored["observations"].shape[-1] if "observations" in stored and stored["observations"].ndim else 0
    env = _environment(inspector, dataset_id, path, size)
    return inspector.dataset(dataset_id, NAME, FORMAT, inspector.identity.hexdigest(), env)


def _needed(inspector: Inspector, file: h5py.File) -> list[str]:
    """The columns to read: those that data.success makes unnecessary are left alone, the one that it names is added."""
    inspector.marks = [key for key in names(file) if key not in USUAL and isinstance(file.get(key), h5py.Dataset)]
    if "rewards" not in file and inspector.rule is None:
        inspector.without_rewards("no rewards in the file")
    key = inspector.success_key
    timeouts = ["timeouts"] if inspector.options.episode_steps is None else []
    return ["actions", "observations", *(["rewards"] if inspector.uses_rewards else []), "terminals", *timeouts, *([key] if key else [])]


def _marked(inspector: Inspector, stored: Mapping[str, h5py.Dataset], following: Any) -> npt.NDArray[np.bool_] | None:
    """True on the last row of each episode, as terminals, timeouts and data.episode_steps tell it."""
    last = np.zeros(len(stored["actions"]), dtype=bool)
    for key in ("terminals", "timeouts"):
        if key in stored:
            last |= flags(inspector, key, stored[key][()])
    if (steps := inspector.options.episode_steps) is not None:
        inspector.notes.append(f"episodes end after {steps} steps at the latest, as data.episode_steps says")
        return after_steps(last, steps)
    if "timeouts" in stored:
        return last
    if not isinstance(following, h5py.Dataset):
        what = "missing, and without next_observations the ends of episodes cannot be found: how many steps has one?"
        inspector.report("timeouts", what, usual_steps(len(last)))
        return None
    inspector.notes.append("no timeouts in the file: episodes end where next_observations is not the next row")
    return last


def _parts(task: str, observations: Numbers) -> dict[str, slice]:
    """AntMaze's 29 values are the position and the body, which the environment keeps apart; all others are one vector."""
    if task == "antmaze" and observations.ndim == 2 and observations.shape[1] == 29:
        return {"achieved_goal": slice(0, 2), "observation": slice(2, 29)}
    return {"observation": slice(None)}


def _episodes(inspector: Inspector, rows: d4rl_rows.Rows, parts: dict[str, slice], ended: bool, sparse: bool) -> None:
    spans = np.array([(i, *span) for i, span in enumerate(segments(rows.last))], dtype=np.int64)
    _, start, stop = spans[-1].tolist()
    if not ended:
        inspector.notes.append(f"the file ends in the middle of an episode ({stop - start} steps)")
        if stop - start < 2:  # the writer stopped there: nothing is wrong with the data
            spans = spans[:-1]
    every = [f"episode_{i}" for i in range(len(spans))]
    columns, chosen = rows.columns, inspector.wanted(every)
    where = spans[: len(chosen)] if chosen == every[: len(chosen)] else spans[[int(name.removeprefix("episode_")) for name in chosen]]
    states = rows.bounds(where)
    actions = columns["actions"]
    rewards = flat(columns["rewards"]) if "rewards" in columns else np.zeros(len(actions), np.float32)
    terminals = flat(columns["terminals"]).astype(bool) if "terminals" in columns else np.zeros(len(actions), bool)
    sound = clean(inspector, Spans(chosen, where[:, 1:], states), actions, rows.states, rewards)
    key = inspector.success_key
    places = zip(*(column.tolist() for column in (*where[:, 1:].T, *states.T)), strict=True)
    for name, (start, stop, low, high), good in zip(chosen, places, sound.tolist(), strict=True):
        seen = rows.states[low:high]
        observations = {part: seen[:, which] for part, which in parts.items()} if seen.ndim == 2 else {"observation": seen}
        own = rewards[start:stop]
        success = bool((own > 0).any()) if sparse else None  # dense returns do not say
        episode = Episode(name, observations, actions[start:stop], own, bool(terminals[stop - 1]), success)
        marks = {key: columns[key][start:stop]} if key in columns else {}
        inspector.accept(episode, _place, row=start, marks=marks, clean=good)


def _place(key: str) -> str:
    return key if key in ("actions", "rewards") else "observations"


def _task(dataset_id: str, path: Path) -> str:
    """hopper, door, antmaze, …: the first word of the id or of the file's name."""
    name = dataset_id.partition("/")[2] if dataset_id.startswith("d4rl/") else path.stem
    return re.split(r"[-_.]", name)[0]


def _environment(inspector: Inspector, dataset_id: str, path: Path, size: int) -> EnvSpec | None:
    """The environment of today whose observations have the sizes of the file's; None with a note where there is none."""
    task = _task(dataset_id, path)
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
