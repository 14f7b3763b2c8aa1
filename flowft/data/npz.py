"""The processed npz layout of DPPO and ReinFlow: states, actions (scaled to [-1, 1]), rewards, traj_lengths; episodes concatenated.

`normalization.npz` beside it (obs_min, obs_max, action_min, action_max) turns them back into environment units; its action
range is then the declared one, unless `data.action_bounds` says that of the environment. By path (the file or its folder), or
`npz/<folder below datasets/npz>`.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np

from flowft.data import fixes, source
from flowft.data.check import Inspector
from flowft.data.columns import Numbers, Spans, after_steps, choose, clean, complete, flags, flat, segments, usual_steps
from flowft.data.files import Npz, is_npz, open_npz
from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset, Episode
from flowft.errors import DataError

NAME = "npz"
FORMAT = "DPPO npz"
READS = "train.npz of DPPO and ReinFlow, with normalization.npz; no images"
SCALES = ("obs_min", "obs_max", "action_min", "action_max")
USED = {"states", "actions", "rewards", "terminals", "traj_lengths", "images"}
EPSILON = 1e-6  # the writers scale by (max - min + 1e-6)


def known() -> list[str]:
    home = source.folder() / NAME
    return sorted(f"npz/{file.parent.relative_to(home)}" for file in home.rglob("train.npz")) if home.is_dir() else []


def locate(dataset_id: str) -> Path:
    path = source.folder() / NAME / dataset_id.partition("/")[2] / "train.npz"
    if not path.is_file():
        raise DataError(f"{dataset_id} is not here: train.npz (with normalization.npz) would have to lie at {path}, or give its path")
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
        raise DataError(f"{path}: npz files have no masks, but data.demos is {options.demos!r}", fixes.setting(demos="all"))
    with open_npz(path) as arrays:
        scale = _normalization(path)
        inspector = Inspector(str(path), problems, options, *_bounds(scale))
        inspector.sparse = True
        inspector.marks = [key for key in arrays if key not in USED]
        choose(inspector, ["observation"])
        columns = {key: inspector.identity.add(key, arrays[key]) for key in _needed(inspector, arrays)}
        for key, values in scale.items():
            inspector.identity.add(f"normalization/{key}", values)
        required = ["states", "actions", *(["rewards"] if inspector.rule is not None and inspector.rule.kind == "reward" else [])]
        sound = complete(inspector, columns, required, list(arrays))
        if sound and "terminals" in columns:
            columns["terminals"] = flags(inspector, "terminals", columns["terminals"])
        lengths = _lengths(inspector, arrays, columns) if sound else None
    if lengths is not None:
        if scale:
            columns["states"] = _unscaled(columns["states"], scale["obs_min"], scale["obs_max"], inspector, "states")
            columns["actions"] = _unscaled(columns["actions"], scale["action_min"], scale["action_max"], inspector, "actions")
        _episodes(inspector, columns, lengths)
    inspector.notes.append("unscaled with normalization.npz" if scale else "no normalization.npz beside it: values stay scaled to [-1, 1]")
    if scale and not inspector.range.chosen:
        own = "action bounds are those of normalization.npz, the data's minimum and maximum"
        inspector.notes.append(f"{own}; where the environment's are others, say so: --set 'data.action_bounds=[-1, 1]'")
    inspector.notes.append("the file names no environment: for online steps name one with --env")
    return inspector.dataset(dataset_id, NAME, FORMAT, inspector.identity.hexdigest(), None)


def _needed(inspector: Inspector, arrays: Npz) -> list[str]:
    """The columns to read: rewards only where they are used, and what data.success names."""
    key = inspector.success_key
    if "rewards" not in arrays:
        inspector.without_rewards("no rewards in the file")
    wanted = ["states", "actions", *(["rewards"] if inspector.uses_rewards else []), "terminals", *([key] if key else [])]
    return [name for name in wanted if name in arrays]


def _episodes(inspector: Inspector, columns: dict[str, Numbers], lengths: Numbers) -> None:
    stops = np.cumsum(lengths.astype(np.int64))
    spans = {f"episode_{i}": (int(stop - length), int(stop)) for i, (stop, length) in enumerate(zip(stops, lengths, strict=True))}
    actions, states = columns["actions"], columns["states"]
    rewards = flat(columns["rewards"]) if "rewards" in columns else np.zeros(len(actions), np.float32)
    ends = flat(columns["terminals"]).astype(bool) if "terminals" in columns else np.zeros(len(rewards), dtype=bool)
    sparse = "rewards" in columns and bool(np.isin(rewards, (0, 1)).all())
    chosen = inspector.wanted(list(spans))
    where = np.array([spans[name] for name in chosen], dtype=np.int64).reshape(-1, 2)
    sound = clean(inspector, Spans(chosen, where, where), actions, states, rewards)
    key = inspector.success_key
    for name, (start, stop), good in zip(chosen, where.tolist(), sound.tolist(), strict=True):
        own = rewards[start:stop]
        solved = sparse and stop > start and own[-1] == 1  # robomimic's files have no terminals: a success at the end is one
        episode = Episode(
            name, {"observation": states[start:stop]}, actions[start:stop], own,
            terminated=bool(solved or ends[start:stop][-1:].any()), success=bool((own == 1).any()) if sparse else None,
        )  # fmt: skip
        marks = {key: columns[key][start:stop]} if key is not None and key in columns else {}
        inspector.accept(episode, lambda key: key if key in ("actions", "rewards") else "states", row=start, marks=marks, clean=good)


def _lengths(inspector: Inspector, arrays: Npz, columns: dict[str, Numbers]) -> Numbers | None:
    """Steps of each episode (E,): traj_lengths, or as `data.episode_steps` and terminals say."""
    rows = len(columns["actions"])
    if (steps := inspector.options.episode_steps) is not None:
        inspector.notes.append(f"episodes end after {steps} steps at the latest, as data.episode_steps says")
        ends = flat(columns["terminals"]).astype(bool) if "terminals" in columns else np.zeros(rows, dtype=bool)
        return np.array([stop - start for start, stop in segments(after_steps(ends, steps))])
    lengths = inspector.identity.add("traj_lengths", arrays["traj_lengths"]) if "traj_lengths" in arrays else None
    wrong = None
    if lengths is None:
        wrong = f"missing (there are: {', '.join(arrays)}): episode ends cannot be known"
    elif lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any():
        wrong = f"holds {lengths.dtype} of shape {lengths.shape}, not one number of steps per episode"
    elif int(lengths.sum()) != rows:
        wrong = f"sums to {int(lengths.sum())}, but states has {rows} rows"
    if wrong:
        inspector.report("traj_lengths", f"{wrong}; how many steps has an episode?", usual_steps(rows))
        return None
    return lengths


def _normalization(path: Path) -> dict[str, Numbers]:
    beside = path.with_name("normalization.npz")
    if not beside.is_file():
        return {}
    # Without it values stay scaled to [-1, 1], which is what the file of another export has to be taken for.
    without = f"mv {shlex.quote(str(beside))} {shlex.quote(str(beside) + '.other')}"
    with open_npz(beside) as arrays:
        missing = [key for key in SCALES if key not in arrays]
        if missing:
            raise DataError(f"{beside}:{missing[0]}: missing (there are: {', '.join(arrays)}); is it of another export?", without)
        scale = {key: arrays[key] for key in SCALES}
    bad = [key for key in SCALES if scale[key].ndim != 1 or scale[key].dtype.kind not in "fiu" or not np.isfinite(scale[key]).all()]
    if bad:
        raise DataError(f"{beside}:{bad[0]}: not a vector of finite numbers", without)
    return scale


def _bounds(scale: dict[str, Numbers]) -> tuple[Numbers, Numbers]:
    """The declared action range. A value that never moves has no range of its own: it gets one unit around it."""
    if not scale:
        return np.asarray(-1.0), np.asarray(1.0)
    low, high = scale["action_min"].astype(np.float64), scale["action_max"].astype(np.float64)
    still = high - low < EPSILON
    return np.where(still, low - 0.5, low), np.where(still, high + 0.5, high)


def _unscaled(values: Numbers, low: Numbers, high: Numbers, inspector: Inspector, key: str) -> Numbers:
    if values.ndim != 2 or values.shape[1:] != low.shape:
        beside = shlex.quote(str(Path(inspector.file).with_name("normalization.npz")))
        what = f"{inspector.file}:{key}: shape {values.shape}, but normalization.npz scales {len(low)} values; is it of another export?"
        raise DataError(what, f"mv {beside} {beside}.other")
    return np.asarray((values + 1) / 2 * (high - low + EPSILON) + low)
