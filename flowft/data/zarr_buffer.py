"""zarr replay buffers of diffusion_policy and its descendants: data/<key> with all steps one after the other, meta/episode_ends.

A folder or a zip, zarr format 2 or 3 (extra `[zarr]`). By path, or `zarr/<name>` for <datasets folder>/zarr/<name>.zarr[.zip].
Nothing says rewards, bounds or the environment. Pictures are named in a note and left alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from flowft.data import inferred_bounds, source, success, zarr_store
from flowft.data.check import Inspector, Numbers
from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset, Episode
from flowft.data.zarr_store import Store
from flowft.errors import DataError, did_you_mean

NAME = "zarr"
FORMAT = "zarr replay buffer"
READS = "replay buffers of diffusion_policy, zarr formats 2 and 3, folder or zip: arrays of low dimension; no images"
ENDS = "meta/episode_ends"
ACTIONS = ("action", "actions")
WHOLE_STATES = ("state", "obs")  # where one of these is there, it is what is read
REWARDS = ("reward", "rewards")
NO_OBSERVATION = ("timestamp", "stage", "done", "dones", "terminal", "terminals", "terminated", "success", "episode_index", "task_index")
LARGEST = 1024  # values of one step that are still no picture
SUFFIXES = (".zarr", ".zarr.zip", "")


def known() -> list[str]:
    """Those that lie in the datasets folder."""
    home = source.folder() / NAME
    found = {path.name.removesuffix(".zip").removesuffix(".zarr") for path in home.glob("*") if zarr_store.looks_like(path)}
    return [f"{NAME}/{name}" for name in sorted(found)]


def locate(dataset_id: str) -> Path:
    home, name = source.folder() / NAME, dataset_id.partition("/")[2]
    for suffix in SUFFIXES:
        if name and (home / f"{name}{suffix}").exists():
            return home / f"{name}{suffix}"
    raise DataError(f"{dataset_id} is not here: no {home / name}.zarr and no {home / name}.zarr.zip", "flowft data list")


def matches(path: Path) -> bool:
    """A folder or zip with zarr's metadata files."""
    return zarr_store.looks_like(path)


def read(path: Path, dataset_id: str, problems: Problems, options: Options) -> Dataset:
    """All episodes. Observation parts: those of Options.observation, else `state` or `obs`, else all vectors."""
    if options.demos not in (None, "all"):
        raise DataError(f"{path}: zarr buffers have no masks, but data.demos is {options.demos!r}", "--set data.demos=all")
    store = Store(path)
    there = store.names("data")
    action = next((key for key in ACTIONS if key in there), None)
    if action is None:
        raise DataError(f"{path}:data/action: missing (there are: {', '.join(there) or 'none'})")
    parts, rewards_key = _parts(store, there, action, options), next((key for key in REWARDS if key in there), None)
    asked = success.Rule.parse(options.success).key if options.success is not None else None
    marks = [key for key in there if key not in (action, *parts) and len(store.shape(f"data/{key}")) <= 2]
    wanted = [action, *parts, *([rewards_key] if rewards_key else []), *([asked] if asked in marks else [])]
    read = {key: store.read(f"data/{key}") for key in dict.fromkeys(wanted)}
    columns = {key: values for key, (values, _) in read.items()}
    stops = _stops(store, len(columns[action]))
    low, high, said = inferred_bounds.find(_flat(columns[action]))
    inspector = Inspector(str(path), problems, options, low, high)
    inspector.marks = marks
    uneven = [key for key in columns if len(columns[key]) != len(columns[action])]
    for key in uneven:
        inspector.report(f"data/{key}", f"{len(columns[key])} rows, but data/{action} has {len(columns[action])}")
    if not uneven:
        _chunks(inspector, {key: missing for key, (_, missing) in read.items()}, action)
        _episodes(inspector, columns, stops, action, rewards_key, parts)
    inspector.notes += [
        *_notes(store, there, [action, *parts], stops, rewards_key, options),
        *([said] if options.action_bounds is None else []),
    ]
    return inspector.dataset(dataset_id, NAME, FORMAT, _identity({**columns, ENDS: stops}), None, parts)


def _parts(store: Store, there: list[str], action: str, options: Options) -> list[str]:
    """The observation parts to read, names below data/."""
    shapes = {key: store.shape(f"data/{key}") for key in there}
    vectors = [key for key in there if len(shapes[key]) in (1, 2) and not _is_picture(shapes[key]) and store.holds_numbers(f"data/{key}")]
    usual = [key for key in WHOLE_STATES if key in vectors][:1]
    usual = usual or [key for key in vectors if key not in (*ACTIONS, *REWARDS, *NO_OBSERVATION) and not key.startswith("action")]
    choice = f"--set 'data.observation=[{', '.join(usual)}]'" if usual else None
    for part in options.observation:
        if part not in there:
            raise DataError(f"{store.path}:data/{part}: missing{did_you_mean(part, [key for key in there if key != action])}", choice)
        if _is_picture(shapes[part]):
            raise DataError(f"{store.path}:data/{part}: shape {shapes[part]}: pictures are not read, only low-dimensional parts", choice)
    if not (options.observation or usual):
        raise DataError(f"{store.path}:data: no array is an observation of low dimension (there are: {', '.join(there)})")
    return list(options.observation) or usual


def _is_picture(shape: tuple[int, ...]) -> bool:
    return len(shape) > 3 or int(np.prod(shape[1:])) > LARGEST


def _stops(store: Store, rows: int) -> Numbers:
    """The row after the last one of each episode."""
    ends, _ = store.read(ENDS) if ENDS.rpartition("/")[2] in store.names("meta") else (None, 0)
    if ends is None:
        raise DataError(f"{store.path}:{ENDS}: missing: it cannot be known where episodes end")
    if ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise DataError(f"{store.path}:{ENDS}: holds {ends.dtype} of shape {ends.shape}, not one row number for each episode")
    ends = ends.astype(np.int64)
    if (np.diff(ends, prepend=0) < 0).any():
        raise DataError(f"{store.path}:{ENDS}: goes back at episode {int(np.argmax(np.diff(ends, prepend=0) < 0))}: the ends must grow")
    if len(ends) and ends[-1] > rows:
        raise DataError(f"{store.path}:{ENDS}: the last episode ends at row {ends[-1]}, but data/action has {rows} rows")
    return ends


def _chunks(inspector: Inspector, missing: dict[str, int], action: str) -> None:
    """zarr reads a chunk that is not there as zeros. Writers leave chunks of zeros out, but demonstrated actions are not all zero."""
    for key, count in missing.items():
        what = f"{count} of its chunks are not stored and would be read as zeros"
        if count and key == action:
            inspector.report(f"data/{key}", f"{what}: files were lost")
        elif count:
            inspector.notes.append(f"data/{key}: {what}")


def _episodes(
    inspector: Inspector, columns: dict[str, Numbers], stops: Numbers, action: str, rewards_key: str | None, parts: list[str]
) -> None:
    spans = {f"episode_{i}": (int(start), int(stop)) for i, (start, stop) in enumerate(zip([0, *stops[:-1]], stops, strict=True))}
    keys = {"actions": action, "rewards": rewards_key or "reward"}
    for name in inspector.wanted(list(spans)):
        start, stop = spans[name]
        rewards = np.zeros(stop - start, dtype=np.float32)
        solved: bool | None = None
        if rewards_key is not None:
            rewards = _flat(columns[rewards_key])[start:stop, 0]
            sparse = bool(np.isin(columns[rewards_key], (0, 1)).all())
            solved = bool((rewards == 1).any()) if sparse else None
        observations = {part: _flat(columns[part])[start:stop] for part in parts}
        ends_in_success = bool(solved and rewards[-1] == 1)
        episode = Episode(name, observations, _flat(columns[action])[start:stop], rewards, ends_in_success, solved)
        marks = {key: values[start:stop] for key, values in columns.items() if key in inspector.marks}
        inspector.accept(episode, lambda key: f"data/{keys.get(key, key)}", row=start, marks=marks)


def _flat(values: Numbers) -> Numbers:
    """(N, …) as (N, size): key points (N, 9, 2) become 18 values."""
    return values.reshape(len(values), -1)


def _notes(store: Store, there: list[str], read: list[str], stops: Numbers, rewards_key: str | None, options: Options) -> list[str]:
    shapes = {key: store.shape(f"data/{key}") for key in there if key not in read}
    notes = []
    if pictures := [key for key in shapes if _is_picture(shapes[key])]:
        notes.append(f"pictures are left alone: {', '.join(pictures)}")
    if others := [key for key in shapes if key not in pictures and key != rewards_key]:
        notes.append(f"not read: {', '.join(others)} (data.observation chooses)")
    rows = store.shape(f"data/{read[0]}")[0]
    if len(stops) and stops[-1] < rows:
        notes.append(f"{rows - int(stops[-1])} rows after the last episode's end are no episode and are left out")
    if rewards_key is None and options.success is None:
        notes.append("there are no rewards, so they are 0; where each demonstration ends in success, --set data.success=last says so")
    return [*notes, "the buffer names no environment: for online steps name one with --env"]


def _identity(columns: dict[str, Numbers]) -> str:
    """sha256 of the arrays that are read."""
    digest = hashlib.sha256()
    for key in sorted(columns):
        digest.update(f"{key} {columns[key].dtype.str} {columns[key].shape}".encode())
        digest.update(np.ascontiguousarray(columns[key]).tobytes())
    return digest.hexdigest()
