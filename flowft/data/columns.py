"""Layouts that store all steps one after the other in flat arrays: are the columns there and equally long, and where do episodes lie?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flowft.data import fixes, sweep
from flowft.data.check import Inspector
from flowft.data.sweep import Numbers
from flowft.errors import DataError

__all__ = ["Numbers", "Spans", "after_steps", "choose", "clean", "complete", "flags", "flat", "segments", "usual_steps"]

FLAGS = ("terminals", "timeouts")
STEPS = (1000, 500, 400, 300, 250, 200, 150, 100)  # usual limits of episodes, to offer one that fits the file


def complete(inspector: Inspector, columns: Mapping[str, Any], required: Sequence[str], has: Sequence[str]) -> bool:
    """Are the required columns there, numeric, and as long as the first? Reports each that is not. `has`: all keys of the file."""
    missing = [key for key in required if key not in columns]
    for key in missing:
        inspector.report(key, f"missing (there are: {', '.join(has) or 'none'})", _without(key))
    if missing:
        return False
    wrong = {key: _wrong(key, values) for key, values in columns.items()}
    for key, what in wrong.items():
        if what:
            inspector.report(key, f"holds {columns[key].dtype} of shape {columns[key].shape}, not {what}", _without(key, columns))
    if any(wrong.values()):
        return False
    first = required[0]
    rows = len(columns[first])
    other = [key for key, values in columns.items() if len(values) != rows]
    if other:
        more = f" ({', '.join(other[1:])} differ, too)" if other[1:] else ""
        fix = _without(other[0], columns) if len(other) == 1 else None
        inspector.report(other[0], f"{len(columns[other[0]])} rows, but {first} has {rows}{more}", fix)
    if rows == 0:
        inspector.report(first, "there is no row in the file")
    return not other and rows > 0


def _wrong(key: str, values: Any) -> str | None:
    """What a column should be and is not."""
    if not values.ndim or values.dtype.kind not in "fiub":
        return "a column of numbers"
    flag = key in FLAGS and (values.ndim > 2 or (values.ndim == 2 and values.shape[1] != 1))
    return "one flag for each row" if flag else None


def _without(key: str, columns: Mapping[str, Any] | None = None) -> str | None:
    """The settings with which a column is not needed."""
    if key == "rewards":
        return fixes.setting(success="last")
    if key == "timeouts" and columns is not None:
        return usual_steps(len(columns["actions"]) if columns["actions"].ndim else 0)
    return fixes.setting(success="none") if key == "terminals" and columns is None else None


def flags(inspector: Inspector, key: str, values: Numbers) -> npt.NDArray[np.bool_]:
    """A column of marks (N,); reports one that holds what is no number."""
    if (bad := sweep.not_finite(values)) is not None:
        inspector.report(key, f"{int(bad.sum())} rows are not finite, row {int(np.argmax(bad))} first: no mark of an end")
        return np.zeros(len(values), dtype=bool)
    return np.asarray(flat(values).astype(bool))


def flat(values: Numbers) -> Numbers:
    """(N, 1) as (N,): some files keep rewards and flags as columns of a matrix."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def segments(last: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[start, stop) of each episode; `last` (N,) is True on an episode's last row. Rows after the last mark are an episode too."""
    stops = (np.flatnonzero(last) + 1).tolist()
    if len(last) and (not stops or stops[-1] != len(last)):
        stops.append(len(last))
    return list(zip([0, *stops[:-1]], stops, strict=True))


def after_steps(last: npt.NDArray[np.bool_], steps: int) -> npt.NDArray[np.bool_]:
    """`last` with an end after every `steps` rows of an episode, too: `data.episode_steps`."""
    out = last.copy()
    for start, stop in segments(last):
        out[start + steps - 1 : stop : steps] = True
    return out


def usual_steps(rows: int) -> str:
    """The setting that says how long episodes are, with a length that divides the file."""
    return fixes.setting(episode_steps=next((steps for steps in STEPS if rows % steps == 0), STEPS[0]))


def choose(inspector: Inspector, parts: Sequence[str]) -> list[str]:
    """The observation parts asked for (`data.observation`), or all."""
    wanted = inspector.options.observation
    if unknown := [part for part in wanted if part not in parts]:
        what = f"{inspector.file}: no observation part {unknown[0]!r} (there are: {', '.join(parts)})"
        raise DataError(what, fixes.setting(observation=list(parts)))
    return list(wanted or parts)


@dataclass(frozen=True)
class Spans:
    """Where the wanted episodes lie: [start, stop) in the rows of actions, and the same for the states."""

    names: list[str]
    actions: npt.NDArray[np.int64]  # (E, 2)
    states: npt.NDArray[np.int64]  # (E, 2)


def clean(inspector: Inspector, spans: Spans, actions: Numbers, states: Numbers, rewards: Numbers) -> npt.NDArray[np.bool_]:
    """Which episodes (E,) have sound values, seen in one sweep over all of them, so that only the others are looked at alone.

    Actions (N, A) that overshoot the bounds by rounding are set to the bound, in place.
    """
    if actions.ndim != 2 or states.ndim != 2 or rewards.ndim != 1 or not actions.shape[1] or not states.shape[1]:
        return np.zeros(len(spans.names), dtype=bool)
    bad = np.zeros(len(spans.names), dtype=bool)
    for values, where in ((actions, spans.actions), (rewards, spans.actions), (states, spans.states)):
        bad |= sweep.episodes_with(sweep.not_finite(values), where[:, 0], where[:, 1])
    if inspector.range.fits(actions.shape[1]):
        bad |= sweep.episodes_with(_outside(inspector, actions), spans.actions[:, 0], spans.actions[:, 1])
    lengths = spans.actions[:, 1] - spans.actions[:, 0]
    inspector.range.values += int(lengths[~bad].sum()) * actions.shape[1]
    return np.asarray(~bad)


def _outside(inspector: Inspector, actions: Numbers) -> npt.NDArray[np.bool_] | None:
    """Rows (N,) with values outside the bounds by more than rounding; None: nowhere."""
    low, high = inspector.range.low, inspector.range.high
    if inspector.range.from_data or sweep.within(actions, low, high):
        return None
    bad = np.zeros(len(actions), dtype=bool)
    for start in range(0, len(actions), sweep.BLOCK):
        block = actions[start : start + sweep.BLOCK]
        limited, outside = inspector.range.rounded(block)
        block[...] = limited
        bad[start : start + sweep.BLOCK] = outside.any(axis=1)
    return bad
