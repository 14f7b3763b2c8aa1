"""One quick look over many numbers: a minimum and a maximum tell that all is well, and only where it is not are rows looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]
LARGEST = float(np.finfo(np.float32).max)
BLOCK = 1 << 16  # rows looked at together: few enough that what is made on the way costs no memory


def not_finite(values: Numbers) -> npt.NDArray[np.bool_] | None:
    """Rows (N,) that hold a value which is not finite in float32; None where there is none."""
    if not values.size or values.dtype.kind not in "f" or within(values, -LARGEST, LARGEST):
        return None
    bad = np.zeros(len(values), dtype=bool)
    for start in range(0, len(values), BLOCK):
        with np.errstate(over="ignore"):  # what float32 cannot hold is inf to everything that follows
            block = values[start : start + BLOCK].astype(np.float32)
        bad[start : start + BLOCK] = ~np.isfinite(block).reshape(len(block), -1).all(axis=1)
    return bad if bad.any() else None


def within(values: Numbers, low: npt.ArrayLike, high: npt.ArrayLike) -> bool:
    """Do all values lie in [low, high]? Bounds are scalars or one for each value of a row; NaN lies nowhere."""
    with np.errstate(invalid="ignore", over="ignore"):
        axis = 0 if np.ndim(low) or np.ndim(high) else None
        least, most = values.min(axis=axis), values.max(axis=axis)
        return bool(np.all(least >= low) and np.all(most <= high))


def episodes_with(bad: npt.NDArray[np.bool_] | None, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of the episodes [start, stop) hold a bad row."""
    if bad is None:
        return np.zeros(len(starts), dtype=bool)
    before = np.concatenate([[0], np.cumsum(bad)])
    return np.asarray(before[stops] > before[starts])
