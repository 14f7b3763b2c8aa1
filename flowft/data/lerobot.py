"""LeRobot datasets, v2.0, v2.1 and v3.0, read with pyarrow (extra `[lerobot]`), without the lerobot package.

Ids: `lerobot/<user>/<name>` (`lerobot/<name>` is lerobot's own), in LeRobot's cache or <datasets folder>/lerobot. By path: the
dataset's folder. Row t holds observation t and action t; next.reward, next.done and next.success are what action t led to. The
state after the last action is not stored. Pictures are named in a note and left alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flowft.data import inferred_bounds, lerobot_folder, lerobot_rows, source, success
from flowft.data.check import Inspector, Numbers, skip
from flowft.data.export import OURS, Facts
from flowft.data.lerobot_folder import Folder, root_of
from flowft.data.lerobot_rows import Rows
from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset, Episode
from flowft.errors import DataError, UsageError, did_you_mean

NAME = "lerobot"
FORMAT = "LeRobot"
READS = "LeRobot v2.0, v2.1 and v3.0: vectors of observation.…, action, next.reward, next.success, tasks; not v1.x, no images or videos"
ACTIONS = ("action", "actions")  # the format's own name, and a converter's
STATES = ("observation", "state")  # of converters that do not write observation.…
REWARD, SUCCESS, DONE, TRUNCATED, TASK = "next.reward", "next.success", "next.done", "next.truncated", "task_index"
NAMED = 10  # so many tasks are named in a note
INTERVENTION = ("intervention", "is_intervention")  # the last word of a feature's name


def known() -> list[str]:
    """The datasets that are here."""
    found = {str(info.parent.parent.relative_to(home)) for home in homes() for info in home.glob("*/*/meta/info.json")}
    return sorted(f"{NAME}/{name}" for name in found)


def homes() -> list[Path]:
    """LeRobot's own cache, then the datasets folder."""
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return [Path(os.environ.get("HF_LEROBOT_HOME") or hub / NAME).expanduser(), source.folder() / NAME]


def repository(dataset_id: str) -> str:
    """`user/name` of `lerobot/user/name`; what has one word only is of the user lerobot."""
    words = dataset_id.split("/")
    if len(words) not in (2, 3) or not all(words) or any(word.startswith(".") for word in words):
        raise UsageError(f"{dataset_id!r} is not lerobot/USER/NAME", "flowft data download lerobot/lerobot/pusht")
    return "/".join(words[1:]) if len(words) == 3 else dataset_id


def locate(dataset_id: str) -> Path:
    name = repository(dataset_id)
    for home in homes():
        if (found := root_of(home / name)) is not None:
            return found
    # Newer versions of LeRobot keep what they download as Hugging Face's hub does: by revision.
    snapshots = homes()[0] / "hub" / f"datasets--{name.replace('/', '--')}" / "snapshots"
    newest = sorted((path for path in snapshots.glob("*") if root_of(path) is not None), key=lambda path: path.stat().st_mtime)
    if newest:
        return newest[-1]
    raise DataError(f"{dataset_id} is not here: no {homes()[0] / name / 'meta/info.json'}", f"flowft data download {dataset_id}")


def matches(path: Path) -> bool:
    """A folder with meta/info.json (or v1's meta_data/info.json)."""
    return root_of(path) is not None


def read(path: Path, dataset_id: str, problems: Problems, options: Options) -> Dataset:
    """All episodes (of one task, if data.task says so), by the rows' own episode_index and frame_index."""
    root = root_of(path) or path
    folder = lerobot_folder.open_folder(root)
    if OURS not in folder.info:
        return _read(folder, dataset_id, problems, options)
    ours = Facts.read(folder.info[OURS], str(root / lerobot_folder.INFO))
    inside = [name for name, _ in ours.spec.parts if name not in folder.features]
    own = bool(inside) and set(options.observation) <= set(inside)
    asked = replace(options, observation=() if own else options.observation, action_bounds=options.action_bounds or ours.bounds)
    return _with_facts(_read(folder, dataset_id, problems, asked), ours, options.observation if own else None)


def _read(folder: Folder, dataset_id: str, problems: Problems, options: Options) -> Dataset:
    root = folder.path
    if options.demos not in (None, "all"):
        raise DataError(f"{root}: LeRobot datasets have no masks, but data.demos is {options.demos!r}", "--set data.demos=all")
    action, parts = _action(folder), _parts(folder, options)
    further = [name for name in (REWARD, SUCCESS, DONE, TRUNCATED, TASK, *_interventions(folder)) if name in folder.features]
    key = success.Rule.parse(options.success).key if options.success is not None else None
    marks = [name for name in folder.features if _is_vector(folder.features[name]) and name not in (action, *parts)]
    chosen = [key] if key in marks else []
    rows = lerobot_rows.read(folder, list(dict.fromkeys([action, *parts, *further, *chosen])))
    lerobot_rows.compare(folder, rows)
    low, high, said = inferred_bounds.find(_wide(rows.columns[action]))
    inspector = Inspector(str(root), problems, replace(options, task=None), low, high)
    inspector.marks = marks
    for fault in rows.faults:
        inspector.report(fault.where, fault.what, None if fault.episode is None else skip(f"episode_{fault.episode}"))
    spans = {f"episode_{episode}": span for episode, span in rows.spans().items()}
    if options.task is not None:
        spans = _of_task(folder, rows, spans, options.task)
    for name in inspector.wanted(list(spans)):
        _keep(inspector, rows, name, spans[name], action, parts, chosen)
    inspector.notes += [*folder.notes, *_notes(folder, rows, options, parts), *([said] if options.action_bounds is None else [])]
    layout = f"{FORMAT} {folder.version}"
    return replace(inspector.dataset(dataset_id, NAME, layout, _identity(folder, rows), None, parts), rate=folder.rate)


def _with_facts(dataset: Dataset, ours: Facts, wanted: Sequence[str] | None) -> Dataset:
    """A folder that flowft wrote, with its own parts again (`wanted` of them; None: features as they are), environment and rate."""
    notes = tuple(note for note in dataset.notes if "--env" not in note) if ours.env else dataset.notes
    env = ours.env and replace(ours.env, observation=tuple(wanted or ours.env.observation))
    dataset = replace(dataset, env=env, rate=ours.rate or dataset.rate, notes=notes)
    if wanted is None or dataset.spec.observation_dim != ours.spec.observation_dim:
        return dataset
    stops = np.cumsum([size for _, size in ours.spec.parts])
    where = {name: slice(int(stop) - size, int(stop)) for (name, size), stop in zip(ours.spec.parts, stops, strict=True)}
    chosen = {name: where[name] for name in (wanted or where)}
    (state, _), sizes = dataset.spec.parts[0], dict(ours.spec.parts)
    episodes = [
        replace(episode, observations={name: episode.observations[state][:, columns] for name, columns in chosen.items()})
        for episode in dataset.episodes
    ]
    return replace(dataset, spec=replace(dataset.spec, parts=tuple((name, sizes[name]) for name in chosen)), episodes=tuple(episodes))


def _action(folder: Folder) -> str:
    found = next((name for name in ACTIONS if name in folder.features), None)
    if found is None:
        there = ", ".join(folder.features) or "none"
        raise DataError(f"{folder.path / lerobot_folder.INFO}: there is no feature action (there are: {there})")
    return found


def _parts(folder: Folder, options: Options) -> list[str]:
    """The observation parts to read: those asked for, else all vectors among observation.*."""
    vectors = [name for name in folder.features if _is_vector(folder.features[name])]
    usual = [name for name in vectors if name.startswith("observation.")] or [name for name in STATES if name in vectors]
    choice = f"--set 'data.observation=[{', '.join(usual)}]'" if usual else None
    file = folder.path / lerobot_folder.INFO
    for part in options.observation:
        if part not in folder.features:
            raise DataError(f"{file}: there is no feature {part!r}{did_you_mean(part, vectors)}", choice)
        if part not in vectors:
            feature = folder.features[part]
            what = f"{part} is {feature.get('dtype')} of shape {feature.get('shape')}; only vectors of numbers are read"
            raise DataError(f"{file}: {what}", choice)
    if not (options.observation or usual):
        there = ", ".join(f"{name} ({feature.get('dtype')})" for name, feature in folder.features.items())
        raise DataError(f"{file}: no feature observation.… is a vector of numbers (there are: {there})")
    return list(options.observation) or usual


def _is_vector(feature: Mapping[str, Any]) -> bool:
    dtype, shape = str(feature.get("dtype")), feature.get("shape")
    low_dimensional = shape is None or (isinstance(shape, Sequence) and len(shape) <= 1)
    return low_dimensional and dtype.startswith(("float", "int", "uint", "bool"))


def _interventions(folder: Folder) -> list[str]:
    names = [name for name in folder.features if name.rpartition(".")[2] in INTERVENTION]
    return [name for name in names if _is_vector(folder.features[name])]


def _of_task(folder: Folder, rows: Rows, spans: dict[str, tuple[int, int]], wanted: str | int) -> dict[str, tuple[int, int]]:
    """The episodes of which every row is of the task."""
    index = lerobot_folder.choose_task(folder, wanted)
    if TASK not in rows.columns:
        raise DataError(f"{folder.path}: data.task is {wanted!r}, but the rows have no task_index", "--set data.task=null")
    whole = {name: (start, stop) for name, (start, stop) in spans.items() if (rows.columns[TASK][start:stop] == index).all()}
    partly = sum(bool((rows.columns[TASK][start:stop] == index).any()) for start, stop in spans.values()) - len(whole)
    if partly:
        folder.notes.append(f"{partly} episodes are of the task {wanted!r} in part only and are left out")
    if not whole:
        raise DataError(f"{folder.path}: no episode is of the task {wanted!r}", "--set data.task=null")
    return whole


def _keep(
    inspector: Inspector, rows: Rows, name: str, span: tuple[int, int], action: str, parts: Sequence[str], marks: Sequence[str]
) -> None:
    """Hand one episode to the inspector.

    It is terminal where its last step is a success: next.done alone may be a time limit, unless next.truncated tells them apart.
    """
    start, stop = span
    reached = _flag(rows, SUCCESS, start, stop)
    if REWARD in rows.columns:
        rewards = rows.columns[REWARD][start:stop].reshape(stop - start, -1)[:, 0]
    else:
        rewards = np.zeros(stop - start, dtype=np.float32) if reached is None else reached.astype(np.float32)
    if reached is None and REWARD in rows.columns and np.isin(rewards, (0, 1)).all():
        reached = rewards == 1
    terminated, solved = (False, None) if reached is None else (bool(reached[-1:].any()), bool(reached.any()))
    done, cut = _flag(rows, DONE, start, stop), _flag(rows, TRUNCATED, start, stop)
    if done is not None and cut is not None:
        terminated = bool(done[-1] and not cut[-1])
    observations = {part: _wide(rows.columns[part][start:stop]) for part in parts}
    episode = Episode(name, observations, _wide(rows.columns[action][start:stop]), rewards, terminated, solved)
    file = rows.files[rows.file[start]]
    columns = {"actions": action, "rewards": REWARD}
    further = {mark: rows.columns[mark][start:stop] for mark in marks}
    inspector.accept(episode, lambda key: f"{file}:{columns.get(key, key)} (episode {name.rpartition('_')[2]})", marks=further)


def _flag(rows: Rows, name: str, start: int, stop: int) -> Numbers | None:
    if name not in rows.columns:
        return None
    return np.asarray(rows.columns[name][start:stop].reshape(stop - start, -1)[:, 0] > 0)


def _wide(values: Numbers) -> Numbers:
    return values[:, None] if values.ndim == 1 else values


def _notes(folder: Folder, rows: Rows, options: Options, parts: Sequence[str]) -> list[str]:
    notes = []
    if folder.rate is not None:
        robot = folder.info.get("robot_type")
        notes.append(f"recorded at {folder.rate:g} steps a second" + (f" by {robot}" if robot and robot != "unknown" else ""))
    if pictures := [name for name, feature in folder.features.items() if feature.get("dtype") in ("image", "video")]:
        notes.append(f"pictures are left alone: {', '.join(pictures)}")
    if others := [name for name in folder.features if name.startswith("observation.") and name not in (*parts, *pictures)]:
        notes.append(f"not read: {', '.join(others)} (data.observation chooses)")
    if len(folder.tasks) > 1 and options.task is None:
        named = ", ".join(f"{index} {text!r}" for index, text in sorted(folder.tasks.items())[:NAMED])
        notes.append(f"{len(folder.tasks)} tasks (data.task chooses one): {named}" + ", …" * (len(folder.tasks) > NAMED))
    for name in _interventions(folder):
        steps = int((rows.columns[name] > 0).sum())
        notes.append(f"{name}: {steps} of {len(rows.episode)} steps are a person's intervention; they are read like the others")
    if REWARD not in folder.features and options.success is None:
        unknown = "rewards are 0; where each demonstration ends in success, --set data.success=last says so"
        told = "rewards are next.success" if SUCCESS in folder.features else unknown
        notes.append(f"there is no next.reward: {told}")
    return [*notes, "LeRobot datasets name no environment: for online steps name one with --env"]


def _identity(folder: Folder, rows: Rows) -> str:
    """sha256 of the columns that are read, of the features and of the tasks; pictures do not count."""
    facts = {"features": folder.features, "fps": folder.info.get("fps"), "tasks": sorted(folder.tasks.items())}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name in sorted(rows.columns):
        values = rows.columns[name]
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
