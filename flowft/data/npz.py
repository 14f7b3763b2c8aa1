"""The processed npz layout of DPPO and ReinFlow: states, actions (scaled to [-1, 1]), rewards, traj_lengths; episodes concatenated.

`normalization.npz` beside it (obs_min, obs_max, action_min, action_max) turns them back into environment units; its action
range is then the declared one. By path (the file or its folder), or `npz/<folder below datasets/npz>`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flowft.data import source
from flowft.data.check import Inspector
from flowft.data.columns import Numbers, complete, flat
from flowft.data.files import is_npz, open_npz
from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset, Episode
from flowft.errors import DataError

NAME = "npz"
FORMAT = "DPPO npz"
READS = "train.npz of DPPO and ReinFlow, with normalization.npz; no images"
SCALES = ("obs_min", "obs_max", "action_min", "action_max")
SAME_EXPORT = "copy train.npz and normalization.npz of one export into the folder"
EPSILON = 1e-6  # the writers scale by (max - min + 1e-6)


def known() -> list[str]:
    home = source.folder() / NAME
    return sorted(f"npz/{file.parent.relative_to(home)}" for file in home.rglob("train.npz")) if home.is_dir() else []


def locate(dataset_id: str) -> Path:
    path = source.folder() / NAME / dataset_id.partition("/")[2] / "train.npz"
    if not path.is_file():
        raise DataError(f"{dataset_id} is not here: no {path}", f"put train.npz (and normalization.npz) into {path.parent}, or give a path")
    return path


def matches(path: Path) -> bool:
    """An npz file with traj_lengths, or a folder with such a train.npz."""
    file = path / "train.npz" if path.is_dir() else path
    if not is_npz(file):
        return False
    with open_npz(file) as arrays:
        return "traj_lengths" in arrays or ("states" in arrays and "actions" in arrays)


def read(path: Path, dataset_id: str, problems: Problems, options: Options) -> Dataset:
    """All episodes, in environment units when the normalisation is known. The last state's successor is not stored."""
    path = path / "train.npz" if path.is_dir() else path
    if options.demos not in (None, "all"):
        raise DataError(f"{path}: npz files have no masks, but data.demos is {options.demos!r}", "--set data.demos=all")
    with open_npz(path) as arrays:
        pass
    scale = _normalization(path)
    low, high = _bounds(scale)
    inspector = Inspector(str(path), problems, options, low, high)
    columns: dict[str, Numbers] = {key: arrays[key] for key in ("states", "actions", "rewards", "terminals") if key in arrays}
    sound = complete(inspector, columns, ("states", "actions", "rewards"), list(arrays))
    if sound and _lengths_fit(inspector, arrays, len(columns["states"])):
        if scale:
            columns["states"] = _unscaled(columns["states"], scale["obs_min"], scale["obs_max"], inspector, "states")
            columns["actions"] = _unscaled(columns["actions"], scale["action_min"], scale["action_max"], inspector, "actions")
        _episodes(inspector, columns, arrays["traj_lengths"])
    inspector.notes.append("unscaled with normalization.npz" if scale else "no normalization.npz beside it: values stay scaled to [-1, 1]")
    inspector.notes.append("the file names no environment: for online steps name one with --env")
    return inspector.dataset(dataset_id, NAME, FORMAT, source.sha256(path), None)


def _episodes(inspector: Inspector, columns: dict[str, Numbers], lengths: Numbers) -> None:
    stops = np.cumsum(lengths.astype(np.int64))
    spans = {f"episode_{i}": (int(stop - length), int(stop)) for i, (stop, length) in enumerate(zip(stops, lengths, strict=True))}
    rewards = flat(columns["rewards"])
    ends = flat(columns["terminals"]).astype(bool) if "terminals" in columns else np.zeros(len(rewards), dtype=bool)
    sparse = bool(np.isin(rewards, (0, 1)).all())
    for name in inspector.wanted(list(spans)):
        start, stop = spans[name]
        own = rewards[start:stop]
        solved = sparse and stop > start and own[-1] == 1  # robomimic's files have no terminals: a success at the end is one
        episode = Episode(
            name, {"observation": columns["states"][start:stop]}, columns["actions"][start:stop], own,
            terminated=bool(solved or ends[start:stop][-1:].any()), success=bool((own == 1).any()) if sparse else None,
        )  # fmt: skip
        inspector.accept(episode, lambda key: key if key in ("actions", "rewards") else "states", row=start)


def _lengths_fit(inspector: Inspector, arrays: dict[str, Numbers], rows: int) -> bool:
    if "traj_lengths" not in arrays:
        inspector.report("traj_lengths", f"missing (there are: {', '.join(arrays)}): episode ends cannot be known")
        return False
    lengths = arrays["traj_lengths"]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any():
        inspector.report("traj_lengths", f"holds {lengths.dtype} of shape {lengths.shape}, not one number of steps per episode")
        return False
    if int(lengths.sum()) != rows:
        inspector.report("traj_lengths", f"sums to {int(lengths.sum())}, but states has {rows} rows")
        return False
    return True


def _normalization(path: Path) -> dict[str, Numbers]:
    beside = path.with_name("normalization.npz")
    if not beside.is_file():
        return {}
    with open_npz(beside) as scale:
        missing = [key for key in SCALES if key not in scale]
        if missing:
            raise DataError(f"{beside}:{missing[0]}: missing (there are: {', '.join(scale)})", SAME_EXPORT)
        bad = [key for key in SCALES if scale[key].ndim != 1 or scale[key].dtype.kind not in "fiu" or not np.isfinite(scale[key]).all()]
        if bad:
            raise DataError(f"{beside}:{bad[0]}: not a vector of finite numbers", SAME_EXPORT)
    return dict(scale)


def _bounds(scale: dict[str, Numbers]) -> tuple[Numbers, Numbers]:
    """The declared action range. A value that never moves has no range of its own: it gets one unit around it."""
    if not scale:
        return np.asarray(-1.0), np.asarray(1.0)
    low, high = scale["action_min"].astype(np.float64), scale["action_max"].astype(np.float64)
    still = high - low < EPSILON
    return np.where(still, low - 0.5, low), np.where(still, high + 0.5, high)


def _unscaled(values: Numbers, low: Numbers, high: Numbers, inspector: Inspector, key: str) -> Numbers:
    if values.ndim != 2 or values.shape[1:] != low.shape:
        raise DataError(f"{inspector.file}:{key}: shape {values.shape}, but normalization.npz scales {len(low)} values", SAME_EXPORT)
    return np.asarray((values + 1) / 2 * (high - low + EPSILON) + low)
