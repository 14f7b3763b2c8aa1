"""Episodes of a stored replay: its rows put in sequence again, in the environment's units, with the rewards that were seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flowft.data.replay import NONE, RewardTransform
from flowft.data.spec import Episode, Spec
from flowft.errors import DataError


def episodes(state: Mapping[str, Any], spec: Spec, reward: RewardTransform) -> list[Episode]:
    """From `Replay.state_dict()`: oldest first. An episode whose beginning was overwritten starts later; one still going on is cut."""
    rows = {name: state[name].cpu().numpy() for name in ("observation", "action", "reward", "terminated", "has_action", "successor")}
    if rows["observation"].shape[1:] != (spec.observation_dim,) or rows["action"].shape[1:] != (spec.action_dim,):
        found, wanted = (rows["observation"].shape[1], rows["action"].shape[1]), (spec.observation_dim, spec.action_dim)
        raise DataError(f"the replay has {found} observation and action values, the checkpoint {wanted}: they are not of one run")
    if reward.scale == 0:
        raise DataError("reward.scale is 0: the rewards that were seen cannot be told from the replay")
    chains = list(_chains(rows["has_action"], rows["successor"], int(state["written"]), int(state["capacity"])))
    seen = (rows["reward"].astype(np.float64) - reward.shift) / reward.scale
    sparse = bool(np.isin(np.round(seen[rows["has_action"]], 6), (0, 1)).all())
    seen = (np.round(seen, 6) if sparse else seen).astype(np.float32)
    return [_episode(f"episode_{i}", steps, last, rows, seen, sparse, spec) for i, (steps, last) in enumerate(chains)]


def _chains(has_action: Any, successor: Any, written: int, capacity: int) -> Iterator[tuple[list[int], int | None]]:
    """(rows with an action in sequence, the row of the state after them or None) of each episode, oldest first."""
    size = min(written, capacity)
    oldest = written % capacity if written > capacity else 0
    order = [(oldest + i) % size for i in range(size)]
    followed = {int(successor[row]) for row in order if has_action[row] and successor[row] != NONE}
    for first in order:
        if first in followed or not has_action[first]:
            continue
        steps, row = list[int](), first
        while row != NONE and has_action[row]:
            steps.append(row)
            row = int(successor[row])
        yield steps, None if row == NONE else row


def _episode(name: str, steps: list[int], last: int | None, rows: Mapping[str, Any], seen: Any, sparse: bool, spec: Spec) -> Episode:
    states = rows["observation"][steps if last is None else [*steps, last]]
    stops = np.cumsum([size for _, size in spec.parts])
    observations = {part: states[:, stop - size : stop] for (part, size), stop in zip(spec.parts, stops, strict=True)}
    success = bool((seen[steps] == 1).any()) if sparse else None
    return Episode(name, observations, spec.from_unit(rows["action"][steps]), seen[steps], bool(rows["terminated"][steps[-1]]), success)
