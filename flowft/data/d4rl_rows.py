"""The rows of a D4RL file in memory, read once and block by block, so that 1M of them cost a second and little more than their size.

States lie as the episodes need them: where the file has next_observations, each episode's rows are followed by the state
after its last action, so that an episode is a view and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import h5py
import numpy as np
import numpy.typing as npt

from flowft.data.check import Inspector
from flowft.data.columns import usual_steps
from flowft.data.progress import meter
from flowft.data.sweep import Numbers

BLOCK = 4 << 20  # bytes read at once
CLOSELY = 10_000  # rows
MOSTLY = 0.5  # share of rows up to which next_observations is taken at its word


@dataclass
class Rows:
    """`last` (N,): ends of episodes. `states` (N, D), or with a row more for each end; `row` t of the file lies at `at(t)`."""

    columns: dict[str, Numbers]  # actions, rewards, … as they lie in the file
    last: npt.NDArray[np.bool_]
    states: Numbers
    following: bool  # is the state after each episode's last action there?

    def bounds(self, spans: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[start, stop) in `states` (E, 2) of episodes given as (number in the file, first row, row after the last) (E, 3)."""
        before = spans[:, :1] if self.following else 0
        return np.asarray(spans[:, 1:] + before + np.array([0, int(self.following)]))


def read(inspector: Inspector, file: h5py.File, last: npt.NDArray[np.bool_], columns: dict[str, Numbers]) -> Rows:
    """Observations, and of next_observations what is needed; ends that only these show are added to `last`."""
    following = file.get("next_observations")
    rows, stored = len(last), file["observations"]
    if not isinstance(following, h5py.Dataset) or following.shape != stored.shape:
        return Rows(columns, last, whole(inspector, stored, "observations"), False)
    last = last.copy()
    last[-1:] = True  # the rest of the file is an episode, too
    at = _places(last)
    states = np.empty((rows + int(last.sum()), *stored.shape[1:]), stored.dtype)
    for start, block in blocks(inspector, stored, "observations"):
        states[at[start : start + len(block)]] = block
    tails, apart = _compare(inspector, following, states, at, last)
    if apart is None and "timeouts" not in columns and inspector.options.episode_steps is None:
        what = "missing, and next_observations is not the next row in most rows: how many steps has an episode?"
        inspector.report("timeouts", what, usual_steps(rows))
    elif apart is None:
        inspector.notes.append("next_observations is not the next row in most rows: ends of episodes are those that are marked")
    elif apart:
        unmarked = np.array(apart)
        if "timeouts" in columns:
            where = f"row {apart[0]} first: next_observations is not the row that follows"
            inspector.notes.append(f"{len(apart)} ends of episodes are not marked, {where}")
        last[unmarked] = True
        moved = _places(last)
        wider = np.empty((rows + int(last.sum()), *stored.shape[1:]), stored.dtype)
        wider[moved] = states[at]
        states, at = wider, moved
    for row in np.flatnonzero(last):
        states[at[row] + 1] = tails[int(row)]
    return Rows(columns, last, states, True)


def whole(inspector: Inspector, stored: h5py.Dataset, name: str) -> Numbers:
    """A column, read block by block into its place."""
    values = np.empty(stored.shape, stored.dtype)
    for _ in blocks(inspector, stored, name, values):
        pass
    return values


def blocks(inspector: Inspector, stored: h5py.Dataset, name: str, into: Numbers | None = None) -> Iterator[tuple[int, Numbers]]:
    """(first row, rows) of a column in order; what is read becomes part of the data's identity."""
    identity = inspector.identity.stream(name, stored.dtype, stored.shape)
    chunk = stored.chunks[0] if stored.chunks else 1
    size = max(1, BLOCK // max(1, stored.dtype.itemsize * int(np.prod(stored.shape[1:]))))
    size = -(-size // chunk) * chunk  # compressed chunks are unpacked whole: no chunk twice
    with meter(len(stored), f"reading {name}", "row") as bar:
        for start in range(0, len(stored), size):
            rows = slice(start, min(start + size, len(stored)))
            if into is None:
                block = np.ascontiguousarray(stored[rows])
            else:
                stored.read_direct(into, rows, rows)
                block = into[rows]
            identity.update(block)
            yield start, block
            bar.update(len(block))


def _places(last: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Where each row lies when every episode is followed by one more."""
    return np.asarray(np.arange(len(last)) + np.concatenate([[0], np.cumsum(last[:-1])]), dtype=np.int64)


def _compare(
    inspector: Inspector, following: h5py.Dataset, states: Numbers, at: npt.NDArray[np.int64], last: npt.NDArray[np.bool_]
) -> tuple[Mapping[int, Numbers], list[int] | None]:
    """next_observations at the ends, marked or not, and the rows of the unmarked ones: where it is not the row that follows.

    None for these once it has proved to be something else in most rows; then only the marked ends are looked at.
    """
    tails: dict[int, Numbers] = {}
    apart: list[int] | None = []
    seen = 0
    for start, block in blocks(inspector, following, "next_observations"):
        rows = np.arange(start, start + len(block))
        keep = rows[last[rows]]
        if apart is not None:
            inner = rows[~last[rows]]
            found = inner[_differ(block[inner - start], states[at[inner] + 1])]
            seen += len(inner)
            apart = [*apart, *found.tolist()] if len(apart) + len(found) <= MOSTLY * seen else None
            keep = np.union1d(keep, found) if apart is not None else keep
        tails.update((int(row), block[row - start].copy()) for row in keep)
    return tails, apart


def _differ(a: Numbers, b: Numbers) -> npt.NDArray[np.bool_]:
    """Which rows (N,) are not the same but for rounding. Of very many only the first are looked at so closely."""
    values = tuple(range(1, a.ndim))
    out = np.asarray((a != b).any(axis=values))
    rows = np.flatnonzero(out)
    if len(rows) > CLOSELY and _differ(a[rows[:CLOSELY]], b[rows[:CLOSELY]]).mean() > MOSTLY:
        return out
    out[rows] = ~np.isclose(a[rows], b[rows], equal_nan=True).all(axis=values)
    return out
