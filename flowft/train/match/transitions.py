"""The second kind of evidence: set the stored simulator states, compare the observations there and after the recorded action.

Everything is exact here: a simulator of the right version gives the file's own numbers. Where the observation after a step
differs, the simulator is stepped from the same states with each action value in turn; what each does tells which action
the data's next observation would have needed, and so how the data's actions are to be read (`Reading`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowft.data.simulator_states import Stored
from flowft.data.spec import Dataset
from flowft.envs.stored_states import States
from flowft.train.match.conventions import Convention, explain, is_quaternion
from flowft.train.match.finding import Numbers, Unit

EPISODES, ROWS = 5, 20  # looked at: episodes, and rows of each for the observations
STARTS, STEPS = 6, 3  # of each episode: starts, and steps from each
PROBES = 40  # states from which every action value is tried when the steps differ
DELAYS = (-3, -2, -1, 0, 1, 2, 3)  # rows by which actions and observations may be shifted
DIFFERENT = 0.05  # of a part's spread: exact numbers are compared, so this is far more than rounding


@dataclass(frozen=True)
class Pair:
    """A unit at stored states that differs, with the convention that explains it (None: none does)."""

    unit: Unit
    convention: Convention | None
    error: float  # of the part's own spread


@dataclass(frozen=True)
class Step:
    """How far the simulator's next observations are from the recorded ones, as a share of the step's own size."""

    unit: Unit
    typical: float  # half of the steps in which it moves are nearer


@dataclass(frozen=True)
class Reading:
    """effective action = matrix @ recorded action, for the axes that the data move (others: NaN)."""

    matrix: Numbers  # (A, A)
    delay: int = 0  # the action that acts in row t stands in row t − delay


def usable(states: States, stored: Sequence[Stored]) -> bool:
    """Have the file's states the simulator's size?"""
    return bool(stored) and all(one.states.shape[1] == states.size for one in stored)


def recorded_period(stored: Sequence[Stored]) -> float | None:
    """Seconds between two rows, where the states begin with the time."""
    steps = np.concatenate([np.diff(one.states[:, 0]) for one in stored])
    middle = float(np.median(steps)) if steps.size else 0.0
    return middle if middle > 0 and np.mean(np.abs(steps - middle) < 0.1 * middle) > 0.8 else None


def observations(dataset: Dataset, states: States, stored: Sequence[Stored], units: Sequence[Unit]) -> list[Pair]:
    """Units whose recorded values are not the simulator's at the same states."""
    mine, theirs = [], []
    for one in stored:
        rows = np.unique(np.linspace(1, len(one.episode) - 1, ROWS).astype(int))
        before = np.stack([rows - 1, rows], axis=1).ravel()  # robosuite computes relative poses from the reading before
        theirs.append(states.observe(one.states[before])[1::2])
        mine.append(dataset.spec.flatten(one.episode.observations)[rows])
    recorded, simulated = np.concatenate(mine).astype(np.float64), np.concatenate(theirs).astype(np.float64)
    found = []
    reordered = _reordered(recorded, simulated, units)
    for unit in units:
        if any(pair.unit.part == unit.part for pair in reordered):
            continue
        error = _error(unit, unit.of(recorded), unit.of(simulated))
        if error > DIFFERENT:
            fit = lambda other, unit=unit: _error(unit, other, unit.of(simulated))  # noqa: E731
            convention = explain(unit, unit.of(recorded), fit, 0.5 * DIFFERENT)
            convention = convention or _swapped(unit, recorded, simulated, units) or _affine(unit, recorded, simulated)
            found.append(Pair(unit, convention, error))
    return [*reordered, *found]


def _reordered(recorded: Numbers, simulated: Numbers, units: Sequence[Unit]) -> list[Pair]:
    """Parts of several units that hold the simulator's values in another order, each value's place being plain."""
    found = []
    for part in dict.fromkeys(unit.part for unit in units):
        mine = [unit for unit in units if unit.part == part]
        start, size = mine[0].start, sum(unit.size for unit in mine)
        whole = Unit(part, start, size, part, 0)
        x, y = whole.of(recorded), whole.of(simulated)
        if len(mine) < 2 or sum(_error(unit, unit.of(recorded), unit.of(simulated)) > DIFFERENT for unit in mine) < 2:
            continue
        apart = np.abs(x[:, :, None] - y[:, None, :]).max(axis=0) / np.maximum(y.std(0), 1e-3)  # (recorded, simulated)
        order = [int(np.argmin(apart[:, column])) for column in range(size)]
        if sorted(order) == list(range(size)) and apart[order, range(size)].max() < DIFFERENT:
            change = f"{part}[{','.join(map(str, order))}]"
            found.append(Pair(whole, Convention("has its values in another order than the environment", change), 1.0))
    return found


def steps(dataset: Dataset, states: States, stored: Sequence[Stored], units: Sequence[Unit]) -> list[Step]:
    """Each unit's error after one to three recorded actions."""
    errors, sizes = [], []
    for one in stored:
        recorded = dataset.spec.flatten(one.episode.observations).astype(np.float64)
        last = min(len(one.episode), len(recorded) - 1)
        for at in np.unique(np.linspace(0, max(last - STEPS, 0), STARTS).astype(int)):
            states.start(one.states, one.episode.actions, int(at))
            for row in range(at, min(at + STEPS, last)):
                seen, _ = states.step(one.episode.actions[row])
                errors.append(seen - recorded[row + 1])
                sizes.append(recorded[row + 1] - recorded[row])
    error, size = np.asarray(errors), np.asarray(sizes)
    return [_step(unit, unit.of(error), unit.of(size)) for unit in units]


def reading(
    dataset: Dataset, states: States, stored: Sequence[Stored], units: Sequence[Unit], grippers: Sequence[int] = ()
) -> Reading:
    """From what each action value does at the stored states: the action that the recorded step would have needed.

    `grippers`: axes of which only the sign acts, left out of the question of which row an action stands in.
    """
    actions, needed, neighbours = [], [], []
    columns = np.concatenate([np.arange(u.start, u.start + u.size) for u in units])
    low, high = np.asarray(dataset.spec.action_low), np.asarray(dataset.spec.action_high)
    idle = np.clip(np.zeros(len(low)), low, high)
    each = max(1, PROBES // len(stored))
    usual = np.sqrt(np.mean(np.concatenate([one.episode.actions for one in stored]) ** 2, axis=0))
    reach = np.clip(usual, 0.02 * (high - idle), high - idle)  # far beyond the data's own actions torques saturate
    scale: Numbers | None = None
    for one in stored:
        recorded = dataset.spec.flatten(one.episode.observations).astype(np.float64)
        last = min(len(one.episode), len(recorded) - 1)
        for at in np.unique(np.linspace(0, last - 1, each).astype(int)):
            still = _after(states, one, int(at), idle)[columns]
            effect = []
            for axis in range(len(low)):
                probe = idle.copy()
                probe[axis] = idle[axis] + reach[axis]
                effect.append((_after(states, one, int(at), probe)[columns] - still) / (probe[axis] - idle[axis]))
            jacobian = np.stack(effect, axis=1)  # (values, A)
            scale = np.abs(jacobian).max(axis=1) + 1e-6 if scale is None else scale
            change = (recorded[at + 1][columns] - still) / scale
            solved = np.linalg.lstsq(jacobian / scale[:, None], change, rcond=1e-3)[0]
            actions.append(one.episode.actions[at] - idle)
            needed.append(solved)
            neighbours.append(one.episode.actions[np.clip(at - np.asarray(DELAYS), 0, len(one.episode) - 1)])
    wanted = np.asarray(needed)
    rest = [axis for axis in range(len(low)) if axis not in grippers]
    delay = _delay(np.asarray(neighbours, dtype=np.float64)[..., rest] / reach[rest], wanted[:, rest] / reach[rest])
    return Reading(fitted(np.asarray(actions, dtype=np.float64), wanted, high - idle), delay)


def _delay(neighbours: Numbers, needed: Numbers) -> int:
    """The row whose action is the one needed (neighbours (n, delays, A)); 0 unless another is plainly the better."""
    apart = [float(np.median(np.linalg.norm(neighbours[:, i] - needed, axis=1))) for i in range(len(DELAYS))]
    best = int(np.argmin(apart))
    return DELAYS[best] if apart[best] < 0.4 * apart[DELAYS.index(0)] else 0


def fitted(actions: Numbers, needed: Numbers, reach: Numbers) -> Numbers:
    """needed ≈ matrix @ action, by least squares on the steps that it explains best; NaN for axes that hardly move."""
    moved = np.sqrt((actions**2).mean(0)) > 0.02 * reach
    matrix = np.full((actions.shape[1], actions.shape[1]), np.nan)
    weights = np.ones(len(actions))
    part = np.zeros((int(moved.sum()), actions.shape[1]))
    for _ in range(15):  # steps in contact obey another law: they lose their weight
        root = np.sqrt(weights)[:, None]
        part = np.linalg.lstsq(actions[:, moved] * root, needed * root, rcond=1e-6)[0]
        residual = np.linalg.norm((needed - actions[:, moved] @ part) / reach, axis=1)
        weights = 1 / (1 + (residual / (np.median(residual) + 1e-3)) ** 2)
    matrix[:, moved] = part.T
    return matrix


def _after(states: States, one: Stored, at: int, action: Numbers) -> Numbers:
    states.start(one.states, one.episode.actions, at)
    return np.asarray(states.step(action)[0], dtype=np.float64)


def _step(unit: Unit, error: Numbers, size: Numbers) -> Step:
    missed, moved = np.linalg.norm(error, axis=1), np.linalg.norm(size, axis=1)
    moves = moved > 1e-4 + 0.3 * float(np.sqrt((moved**2).mean()))
    return Step(unit, float(np.median(missed[moves] / moved[moves])) if moves.any() else 0.0)


def _error(unit: Unit, mine: Numbers, theirs: Numbers) -> float:
    """Root mean square difference as a share of the simulator's spread; q and −q are the same."""
    if is_quaternion(unit, theirs) and is_quaternion(unit, mine):
        mine = mine * np.where((mine * theirs).sum(-1) < 0, -1.0, 1.0)[:, None]
    spread = max(float(theirs.std(0).max()), 0.02 * float(np.abs(theirs).max()), 1e-3)
    return float(np.sqrt(((mine - theirs) ** 2).mean()) / spread)


def _swapped(unit: Unit, recorded: Numbers, simulated: Numbers, units: Sequence[Unit]) -> Convention | None:
    """Another unit's values at this place: the part was put together in another order."""
    for other in units:
        if other.name != unit.name and other.size == unit.size and _error(other, unit.of(recorded), other.of(simulated)) < 0.5 * DIFFERENT:
            return Convention(f"holds what the environment has at {other.name}: the values of {unit.part} are in another order", None)
    values = unit.of(recorded)
    for start in range(simulated.shape[1] - unit.size + 1):
        there = simulated[:, start : start + unit.size]
        if unit.size > 1 and start != unit.start and _error(unit, values, there) < 0.5 * DIFFERENT:
            name = next((u.name for u in units if u.start <= start < u.start + u.size), unit.part)
            return Convention(f"holds values of {name}: the values of {unit.part} are in another order", None)
    return None


def _affine(unit: Unit, recorded: Numbers, simulated: Numbers) -> Convention | None:
    """Every value scaled and shifted by its own numbers: normalised observations, or another origin."""
    mine, theirs = unit.of(recorded), unit.of(simulated)
    slopes, shifts = [], []
    for x, y in zip(mine.T, theirs.T, strict=True):
        if x.std() < 1e-8 or y.std() < 1e-8:
            continue
        slope, shift = np.polyfit(x, y, 1)
        if np.sqrt(np.mean((slope * x + shift - y) ** 2)) > 0.05 * y.std() or slope <= 0:
            return None
        slopes.append(float(slope))
        shifts.append(float(shift))
    if not slopes:
        return None
    if np.allclose(slopes, 1, atol=0.05):
        moved = ", ".join(f"{shift:+.3g}" for shift in shifts)
        return Convention(f"has another origin (the environment's is {moved} away): another frame", None)
    return Convention("is normalised: each value is scaled and shifted (flowft normalises by itself)", None)
