"""A reading of the actions in words: sign, size and order of each axis; and whether they are positions instead of increments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flowft.data.spec import Dataset
from flowft.train.match.finding import Numbers, Unit
from flowft.train.match.transitions import Reading

MINUS = -0.3  # an axis whose own factor is below this has the other sign
WEAK, STRONG = 0.5, 0.5  # of a permuted axis: its own factor, and that of the axis it moves instead
SMALLER, LARGER = 0.7, 1.45  # factors between, of most axes alike, are a controller's own variation
MUCH_SMALLER, MUCH_LARGER = 0.5, 2.0  # and those of a single axis
LEAST_VARIED = 0.02  # of a target's own spread: what follows an observation so closely is its position


@dataclass(frozen=True)
class Cause:
    """One fault of the actions: a sentence and the change of the data that mends it (None: none does)."""

    says: str
    change: str | None = None
    factor: float | None = None  # of all arm axes alike


def causes(reading: Reading, names: tuple[str, ...], binary: frozenset[int] = frozenset()) -> list[Cause]:
    """Faults that the matrix shows. `binary`: axes of which only the sign acts (a gripper)."""
    matrix = reading.matrix
    if reading.delay:
        when = "late" if reading.delay < 0 else "early"
        rows = f"{abs(reading.delay)} row{'s' * (abs(reading.delay) != 1)}"
        return [Cause(f"the actions stand {rows} too {when} beside the observations: row t holds the action of another step")]
    if crossed := _crossed(matrix, names):
        return [crossed]
    found = [other_sign(axis, names) for axis in range(len(matrix)) if matrix[axis, axis] < MINUS]
    if found:  # with a sign wrong the sizes are not to be trusted; what is left is told once it is mended
        return found
    sizes = {a: abs(float(matrix[a, a])) for a in range(len(matrix)) if a not in binary and np.isfinite(matrix[a, a])}
    off = {axis: size for axis, size in sizes.items() if not SMALLER < size < LARGER}
    if off and len(off) > len(sizes) / 2:
        factor = float(np.median(list(sizes.values())))
        kept = [1.0 if i in binary else factor for i in range(len(matrix))]
        change = f"actions*{factor:.3g}" if not binary else f"actions[0:{min(binary)}]*{factor:.3g}"
        found.append(Cause(_scale(factor), change, factor if len(set(kept)) <= 2 else None))
    else:
        off = {axis: size for axis, size in off.items() if not MUCH_SMALLER < size < MUCH_LARGER}
        found += [Cause(f"{names[a]}: {_scale(size)}", f"actions[{a}]*{size:.3g}") for a, size in off.items()]
    return found


def targets(dataset: Dataset, units: list[Unit]) -> tuple[Unit, Numbers] | None:
    """The unit of three values that the first three action values follow (actions are absolute), and the constant between."""
    if len(dataset.spec.action_low) < 3:
        return None
    episodes = list(dataset.episodes)[:20]
    actions = np.concatenate([e.actions[: _known(e.observations)] for e in episodes]).astype(np.float64)[:, :3]
    after = np.concatenate([dataset.spec.flatten(e.observations)[1 : _known(e.observations) + 1] for e in episodes]).astype(np.float64)
    for unit in units:
        if unit.size != 3:
            continue
        apart = actions - unit.of(after)
        near = np.sqrt(np.median(apart**2, axis=0)) if np.abs(np.median(apart, axis=0)).max() < 0.05 else apart.std(axis=0)
        spread = actions.std(axis=0)
        linked = [np.corrcoef(actions[:, i], unit.of(after)[:, i])[0, 1] if spread[i] > 1e-6 else 0.0 for i in range(3)]
        if min(linked) > 0.8 and (near < 0.7 * spread).all():
            return unit, np.median(apart, axis=0)
    return None


def _known(observations: object) -> int:
    values = next(iter(observations.values()))  # type: ignore[attr-defined]
    return len(values) - 1


def _crossed(matrix: Numbers, names: tuple[str, ...]) -> Cause | None:
    """Two axes in each other's place: the recorded value moves the other one."""
    for a in range(len(matrix)):
        for b in range(a + 1, len(matrix)):
            own, other = np.abs([matrix[a, a], matrix[b, b]]), np.abs([matrix[a, b], matrix[b, a]])
            if (own < WEAK).all() and (other > STRONG).all() and other.sum() > 2 * own.sum():
                order = list(range(len(matrix)))
                order[a], order[b] = b, a
                change = f"actions[{','.join(map(str, order))}]"
                return Cause(f"{names[a]} and {names[b]} are in each other's place", change)
    return None


def other_sign(axis: int, names: tuple[str, ...]) -> Cause:
    """The axis must be negated."""
    return Cause(f"{names[axis]} has the other sign: the data move the other way", f"actions[{axis}]*-1")


def _scale(factor: float) -> str:
    word = "less" if factor < 1 else "more"
    return f"a recorded action moves {factor:.2g} times as far in the data as here ({word}: another scale, controller or control rate)"
