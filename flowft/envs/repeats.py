"""Does an environment repeat itself? A run continues exactly, and an evaluation is the same for any number of workers, only if so.

The same seed and the same actions are given to it again: at once, after other episodes, to another copy, and to copies in
worker processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flowft.data.spec import Array, EnvSpec
from flowft.envs import base
from flowft.envs.base import FlowEnv
from flowft.envs.vector import Vector

STEPS = 100  # of the episode that is repeated
SEED = 5
FIX = "draw from self.np_random after super().reset(seed=seed), and put everything that an episode changes back in reset"


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    what: str
    ok: bool = True
    fix: str | None = None
    note: bool = False  # no problem, but worth knowing


def check(env: FlowEnv, spec: EnvSpec) -> Iterator[Finding]:
    """Findings on repeats, on seeds that matter, and on actions that matter."""
    first = roll(env, SEED)
    others = [roll(env, seed) for seed in (SEED + 1, SEED + 2)]
    tries = {"after other episodes": roll(env, SEED)}
    again = base.make(spec)
    try:
        roll(again, SEED + 3)
        tries["in another copy"] = roll(again, SEED)
    finally:
        again.close()
    off = next((f"{where} it {words}" for where, rows in tries.items() if (words := difference(first, rows))), "")
    off = off or _in_workers(spec, first)
    if off:
        yield Finding("seeds repeat", f"the same seed and actions do not give the same episode: {off}", False, FIX)
    else:
        yield Finding("seeds repeat", "the same seed and actions give the same episode: again, in another copy, in worker processes")
    if all(np.array_equal(first[0], rows[0]) for rows in others):
        yield Finding("seeds differ", "every episode starts from the same observation; success on other starts is not measured", note=True)
    if not difference(roll(env, SEED, -1.0), roll(env, SEED, 1.0)):
        yield Finding(
            "actions", "the lowest and the highest actions lead to the same observations", False, "look at what step does with them"
        )


def roll(env: FlowEnv, seed: int, constant: float | None = None) -> Array:
    """Observations and rewards (T+1, D+1) of one episode's beginning, with actions that follow from its seed (or constant ones)."""
    actions = (
        _actions(env.flow_spec.action_dim, seed) if constant is None else np.full((10, env.flow_spec.action_dim), constant, np.float32)
    )
    rows = [np.append(env.reset(seed=seed)[0], np.float32(0))]
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        rows.append(np.append(observation, np.float32(reward)))
        if terminated or truncated:
            break
    return np.stack(rows)


def difference(first: Array, second: Array) -> str:
    """Where two episodes part, in words; empty when they are the same. NaN is the same as NaN."""
    for step, (a, b) in enumerate(zip(first, second, strict=False)):
        if not np.array_equal(a, b, equal_nan=True):
            return f"is {np.nanmax(np.abs(a - b)):.2g} off at step {step}"
    return "" if len(first) == len(second) else f"ends after {len(second) - 1} steps, not {len(first) - 1}"


def _in_workers(spec: EnvSpec, first: Array) -> str:
    """The same episode in two worker processes."""
    with Vector(spec, 2) as vector:
        observations = vector.reset_all([SEED, SEED])
        rows = [[np.append(observation, np.float32(0))] for observation in observations]
        for action in _actions(vector.spec.action_dim, SEED)[: len(first) - 1]:
            steps = vector.step(np.stack([action, action]))
            for lane in range(2):
                rows[lane].append(np.append(steps.observations[lane], steps.rewards[lane]))
    found = (difference(first, np.stack(lane)) for lane in rows)
    return next((f"in a worker process it {words}" for words in found if words), "")


def _actions(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).uniform(-1, 1, (STEPS, count)).astype(np.float32)
