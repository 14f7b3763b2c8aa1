"""`data.change`: numbers of a dataset in another sign, scale or order, so that they mean what the environment means.

    object[7:10]*-1              values 7, 8 and 9 of the part `object` times −1
    actions*2                    all action values times 2
    robot0_eef_quat[1,2,3,0]     the part's values taken in this order (those from the smallest index named on)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flowft.data.spec import Dataset, Episode
from flowft.errors import UsageError, did_you_mean

FORM = re.compile(r"(?P<part>[\w./-]+)(?:\[(?P<where>[\d:,\s]+)\])?(?:\*(?P<factor>[-+.\deE]+))?")
EXAMPLE = "--set 'data.change=[\"object[7:10]*-1\"]'"


def changed(dataset: Dataset, changes: Sequence[str]) -> Dataset:
    """The dataset with each change made in turn. UsageError for a change that is none, or of what is not there."""
    for change in changes:
        dataset = replace(dataset, episodes=tuple(_episode(episode, change) for episode in dataset.episodes))
    return replace(dataset, notes=(*dataset.notes, f"changed: {', '.join(changes)}")) if changes else dataset


def _episode(episode: Episode, change: str) -> Episode:
    found = FORM.fullmatch(change.strip())
    if not found or (found["where"] is None and found["factor"] is None):
        raise UsageError(f"data.change has {change!r}, which is no change of the data", EXAMPLE)
    there = {"actions": episode.actions, **episode.observations}
    if found["part"] not in there:
        raise UsageError(f"data.change names {found['part']!r}, which the data lack{did_you_mean(found['part'], there)}", EXAMPLE)
    values = _values(there[found["part"]], found["where"], found["factor"], change)
    if found["part"] == "actions":
        return replace(episode, actions=values)
    return replace(episode, observations={**episode.observations, found["part"]: values})


def _values(values: npt.NDArray[Any], where: str | None, factor: str | None, change: str) -> npt.NDArray[Any]:
    indices = _indices(where, values.shape[1], change)
    out = np.array(values)
    if factor is None:
        first = min(indices)
        if sorted(indices) != list(range(first, first + len(indices))):
            raise UsageError(f"data.change has {change!r}, whose indices are no new order of neighbours", EXAMPLE)
        out[:, first : first + len(indices)] = values[:, indices]
        return out
    try:
        out[:, indices] = out[:, indices] * float(factor)
    except ValueError:
        raise UsageError(f"data.change has {change!r}, whose factor is no number", EXAMPLE) from None
    return out


def _indices(where: str | None, size: int, change: str) -> list[int]:
    if where is None:
        return list(range(size))
    try:
        if ":" in where:
            start, stop = where.split(":")
            indices = list(range(int(start or 0), int(stop or size)))
        else:
            indices = [int(word) for word in where.split(",")]
    except ValueError:
        raise UsageError(f"data.change has {change!r}, whose indices cannot be read", EXAMPLE) from None
    if not indices or max(indices) >= size:
        raise UsageError(f"data.change has {change!r}, but there are {size} values", EXAMPLE)
    return indices
