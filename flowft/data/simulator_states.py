"""Simulator states as files store them beside the observations, read for the few episodes that are looked at.

robomimic and robosuite files hold `data/demo_<i>/states` (time, joint positions, joint velocities); D4RL's
hold `infos/qpos` and `infos/qvel` for every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from flowft.data.columns import flat, segments
from flowft.data.files import is_hdf5, open_hdf5
from flowft.data.spec import Dataset, Episode


@dataclass(frozen=True)
class Stored:
    """The states of one episode, row t before action t."""

    episode: Episode
    states: npt.NDArray[np.float64]  # (T, S)


def stored(dataset: Dataset, episodes: Sequence[Episode]) -> Iterator[Stored]:
    """Those of `episodes` whose states the file holds, as many rows as actions, all finite; nothing for other layouts."""
    path = Path(dataset.path)
    reader = READERS.get(dataset.source)
    if reader is None or not is_hdf5(path):  # also where the path is a folder
        return
    with open_hdf5(path) as file:
        for one in reader(file, episodes):
            if len(one.states) >= len(one.episode) and np.isfinite(one.states).all():
                yield one


def _demos(file: h5py.File, episodes: Sequence[Episode]) -> Iterator[Stored]:
    for episode in episodes:
        name = episode.name if episode.name.startswith("data/") else f"data/{episode.name}"
        demo = file.get(name)
        states = demo.get("states") if isinstance(demo, h5py.Group) else None
        if not (isinstance(states, h5py.Dataset) and states.ndim == 2 and states.dtype.kind == "f"):
            continue
        if "actions" in demo and len(states) in (len(demo["actions"]), len(demo["actions"]) + 1):  # others belong to no step
            yield Stored(episode, states[()].astype(np.float64))


def _rows(file: h5py.File, episodes: Sequence[Episode]) -> Iterator[Stored]:
    ends: Any = [file[key][()] for key in ("terminals", "timeouts") if isinstance(file.get(key), h5py.Dataset)]
    columns = [file.get(f"infos/{key}") for key in ("qpos", "qvel")]
    if not ends or not all(isinstance(column, h5py.Dataset) and column.ndim == 2 for column in columns):
        return
    last = np.any([flat(end).astype(bool) for end in ends], axis=0)
    spans = {f"episode_{i}": span for i, span in enumerate(segments(last))}
    for episode in episodes:
        if episode.name in spans:
            start, stop = spans[episode.name]
            yield Stored(episode, np.concatenate([column[start:stop] for column in columns], axis=1).astype(np.float64))


READERS: dict[str, Callable[[h5py.File, Sequence[Episode]], Iterator[Stored]]] = {
    "robomimic": _demos, "scripted": _demos, "robosuite": _demos, "d4rl": _rows,
}  # fmt: skip
