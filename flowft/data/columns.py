"""Layouts that store all steps one after the other in flat arrays: are the columns there and equally long, and where do episodes lie?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flowft.data.check import Inspector

Numbers = npt.NDArray[Any]


def complete(inspector: Inspector, columns: Mapping[str, Numbers], required: Sequence[str], has: Sequence[str]) -> bool:
    """Are the required columns there, numeric, and as long as the first? Reports each that is not. `has`: all keys of the file."""
    missing = [key for key in required if key not in columns]
    for key in missing:
        inspector.report(key, f"missing (there are: {', '.join(has) or 'none'})", f"flowft data info {inspector.file}")
    if missing:
        return False
    scalars = [key for key, values in columns.items() if not values.ndim or values.dtype.kind not in "fiub"]
    for key in scalars:
        inspector.report(key, f"holds {columns[key].dtype} of shape {columns[key].shape}, not a column of numbers")
    if scalars:
        return False
    first = required[0]
    rows = len(columns[first])
    wrong = [key for key, values in columns.items() if len(values) != rows]
    for key in wrong:
        inspector.report(key, f"{len(columns[key])} rows, but {first} has {rows}")
    if rows == 0:
        inspector.report(first, "there is no row in the file")
    return not wrong and rows > 0


def flat(values: Numbers) -> Numbers:
    """(N, 1) as (N,): some files keep rewards and flags as columns of a matrix."""
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def segments(last: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[start, stop) of each episode; `last` (N,) is True on an episode's last row. Rows after the last mark are an episode too."""
    stops = (np.flatnonzero(last) + 1).tolist()
    if len(last) and (not stops or stops[-1] != len(last)):
        stops.append(len(last))
    return list(zip([0, *stops[:-1]], stops, strict=True))
