"""The first kind of evidence: first observations of the demonstrations against resets of the environment.

Demonstrations may start elsewhere than resets do (play data, cut trajectories), so a part that lies outside of the resets'
range says nothing by itself. It does where it fits after a change of sign, order or scale, and does not as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowft.data.spec import Dataset
from flowft.envs.base import FlowEnv
from flowft.train.match.conventions import Convention, explain, is_quaternion
from flowft.train.match.finding import Numbers, Unit

RESETS = 24
EPISODES = 100  # whose first observation is looked at
NEAR = 0.1  # share of values outside of the resets' range at which a part still fits it
FAR = 0.2  # and from which it does not


@dataclass(frozen=True)
class Start:
    """A unit whose first values are another convention's, or (None) those of another task."""

    unit: Unit
    convention: Convention | None


def reset_observations(env: FlowEnv, count: int = RESETS) -> Numbers:
    """First observations (count, D) of seeds 0, 1, …"""
    return np.asarray([env.reset(seed=seed)[0] for seed in range(count)], dtype=np.float64)


def first_observations(dataset: Dataset) -> Numbers:
    """First observations (n, D) of the demonstrations."""
    spec = dataset.spec
    rows = [spec.flatten({part: values[0] for part, values in e.observations.items()}) for e in list(dataset.episodes)[:EPISODES]]
    return np.asarray(rows, dtype=np.float64)


def misfits(firsts: Numbers, resets: Numbers, units: Sequence[Unit]) -> dict[str, float]:
    """Of each unit the share of first values that lie outside of the resets' range."""
    return {unit.name: outside(unit.of(firsts), unit.of(resets)) for unit in units}


def compare(firsts: Numbers, resets: Numbers, units: Sequence[Unit]) -> list[Start]:
    """Units in another convention; units of another task where the rest of the start is a reset's."""
    found: list[Start] = []
    shares = misfits(firsts, resets, units)
    for unit in units:
        mine, theirs = unit.of(firsts), unit.of(resets)
        if shares[unit.name] < FAR or not _telling(unit, theirs):
            continue
        convention = explain(unit, mine, lambda other, theirs=theirs: misfit(other, theirs), NEAR)  # type: ignore[misc]
        convention = convention or _elsewhere(unit, mine, resets, units)
        if convention is not None:
            found.append(Start(unit, convention))
    explained = {start.unit.name for start in found}
    lost = [unit for unit in objects(units) if shares[unit.name] > FAR and unit.name not in explained]
    robot = [start for start in found if start.unit.part != "object"]
    if lost and robot and not any(start.convention and start.convention.sure for start in robot):
        return [Start(unit, None) for unit in lost]  # the robot stands elsewhere, too: an order that happens to fit says nothing
    return found + [Start(unit, None) for unit in lost if _starts_as_resets(firsts, resets, units)]


def objects(units: Sequence[Unit]) -> list[Unit]:
    """Positions of objects (their directions are random, and fit by chance)."""
    return [unit for unit in units if unit.size > 1 and unit.part == "object" and not unit.name.endswith("quat")]


def outside(mine: Numbers, theirs: Numbers) -> float:
    """Share of values (n, size) outside of the range of `theirs` (m, size), widened by half; of quaternions either sign."""
    if mine.shape[-1] == 4 and np.allclose(np.linalg.norm(theirs, axis=-1), 1, atol=0.02):
        mean = theirs[0]
        mine, theirs = mine * _sign(mine @ mean), theirs * _sign(theirs @ mean)
    low, high = theirs.min(0), theirs.max(0)
    margin = 0.5 * (high - low) + 0.02 * np.abs(theirs).max() + 1e-6
    return float(((mine < low - margin) | (mine > high + margin)).mean())


def misfit(mine: Numbers, theirs: Numbers) -> float:
    """`outside`, but 1 where the values are of another size: what is scaled down to nothing lies within every range around 0."""
    sizes = [float(np.median(np.linalg.norm(values, axis=-1))) for values in (mine, theirs)]
    return outside(mine, theirs) if 0.5 * sizes[1] <= sizes[0] <= 2 * sizes[1] + 1e-9 else 1.0


def _telling(unit: Unit, theirs: Numbers) -> bool:
    """Can another convention be told from the range? A single value must lie well away from 0 and hardly vary."""
    if unit.size > 1:
        return True
    return bool(np.abs(theirs.mean()) > 5 * (theirs.max() - theirs.min()) and np.abs(theirs.mean()) > 1e-2)


def _elsewhere(unit: Unit, mine: Numbers, resets: Numbers, units: Sequence[Unit]) -> Convention | None:
    """Does the unit hold what the environment has at another place of the same part?"""
    for other in units:
        same_part = other.part == unit.part and other.size == unit.size > 1 and other.name != unit.name
        if same_part and is_quaternion(unit, unit.of(resets)) == is_quaternion(other, other.of(resets)):
            if outside(mine, other.of(resets)) <= NEAR:
                return Convention(f"holds what the environment has at {other.name}: the values of {unit.part} are in another order", None)
    return None


def _starts_as_resets(firsts: Numbers, resets: Numbers, units: Sequence[Unit]) -> bool:
    """Does the robot start where resets put it? Then the objects should lie where resets put them, unless the task is another."""
    shares = misfits(firsts, resets, units)
    robot = [unit for unit in units if unit.size > 1 and unit.part.endswith("eef_pos")]
    return bool(robot) and all(shares[unit.name] <= NEAR for unit in robot)


def _sign(values: Numbers) -> Numbers:
    return np.where(values < 0, -1.0, 1.0)[..., None]
