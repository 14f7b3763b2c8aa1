"""One attempt of a scripted expert, from a seed of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from flowft import registry
from flowft.data.experts.hand import Hand
from flowft.data.experts.tasks import Task
from flowft.data.spec import EnvSpec

# Demonstrations start in the last 2^24 seeds below 2^31: training draws below 2^30 and evaluation from just above it.
FIRST_SEED, SEEDS = 2**31 - 2**24, 2**24


@dataclass(frozen=True)
class Demonstration:
    """A successful episode of T steps; observations and states also have the last one, (T+1, …)."""

    observations: Mapping[str, npt.NDArray[np.float64]]
    states: npt.NDArray[np.float64]
    actions: npt.NDArray[np.float64]  # float32 values, so that replaying them gives the same episode to the bit
    rewards: npt.NDArray[np.float64]
    successes: npt.NDArray[np.bool_]


def attempt(task: Task, seed: int, index: int, imperfection: float) -> Demonstration | None:
    """Attempt number `index` of the data set with this seed; None when it does not succeed within the task's time."""
    simulator, limit = _simulator(task.env_id)
    episode_seed = FIRST_SEED + (seed * 16381 + index) % SEEDS
    simulator.reset(seed=episode_seed)
    hand = Hand(simulator, np.random.default_rng([seed, index]), imperfection)
    observed, states = [simulator.all_parts()], [simulator.state()]
    actions, rewards, successes = [], [], []
    for action in task.plan(hand, simulator.raw):
        action = action.astype(np.float32).astype(np.float64)
        _, reward, _, _, info = simulator.step(action)
        observed.append(simulator.all_parts())
        states.append(simulator.state())
        actions.append(action)
        rewards.append(reward)
        successes.append(info["success"])
        if info["success"] or len(actions) >= limit:
            break
    if not successes or not successes[-1]:
        return None
    columns = {name: np.stack([row[name] for row in observed]) for name in observed[0]}
    return Demonstration(columns, np.stack(states), np.stack(actions), np.asarray(rewards), np.asarray(successes))


@cache
def _simulator(env_id: str) -> tuple[Any, int]:
    """One for each process: building takes seconds, a reset milliseconds."""
    family = registry.get("envs", "robosuite").build(EnvSpec("robosuite", env_id))
    return family.env, family.max_steps
