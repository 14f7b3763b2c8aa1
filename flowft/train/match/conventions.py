"""Which other convention would make a part of the data fit the environment: sign, order, scale, another part's place."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from flowft.train.match.finding import Numbers, Unit

SCALES = {
    0.001: "is in millimetres, not metres", 1000.0: "is a thousandth of what it should be", 0.01: "is in centimetres, not metres",
    0.1: "is ten times too large", 10.0: "is ten times too small", 100.0: "is a hundredth of what it should be",
    0.5: "is twice as large", 2.0: "is half as large",
    float(np.pi / 180): "is in degrees, not radians", float(180 / np.pi): "is in radians, not degrees",
}  # fmt: skip
Fit = Callable[[Numbers], float]  # data in another convention (n, size) -> how far from the environment, 0: it fits


@dataclass(frozen=True)
class Convention:
    """A change that turns the data's convention into the environment's."""

    says: str  # "has the other sign"
    change: str | None  # as `data.change` takes it; None: no setting does it
    negates: bool = False  # the whole unit
    sure: bool = True  # False: it may fit ranges by chance


def is_quaternion(unit: Unit, values: Numbers) -> bool:
    """Four values of norm 1."""
    return unit.size == 4 and bool(np.allclose(np.linalg.norm(values, axis=-1), 1, atol=0.02))


def alternatives(unit: Unit, values: Numbers) -> Iterator[tuple[Convention, Numbers]]:
    """Other readings of the data's `values` (n, size), the most usual first."""
    where = f"{unit.part}{unit.indices()}"
    if is_quaternion(unit, values):
        for shift, mine, theirs, components in ((-1, "wxyz", "xyzw", (1, 2, 3, 0)), (1, "xyzw", "wxyz", (3, 0, 1, 2))):
            says = f"is a quaternion in the order {mine} where the environment has {theirs}"
            yield Convention(says, _order(unit, components)), np.roll(values, shift, -1)
        for axis in range(4):  # -q is the same rotation: a single sign is not
            yield _one_sign(unit, axis), _flip(values, [axis])
        inverse = f"{unit.part}[{unit.offset}:{unit.offset + 3}]*-1"
        yield Convention("is the inverse rotation", inverse), _flip(values, [0, 1, 2])
        return
    yield Convention("has the other sign", f"{where}*-1", negates=True), -values
    if unit.size == 1:
        return
    for axis in range(unit.size):
        yield _one_sign(unit, axis), _flip(values, [axis])
    if unit.size == 3:
        for two in itertools.combinations(range(3), 2):
            yield Convention(f"has other signs in {two[0]} and {two[1]}", None), _flip(values, list(two))
    if unit.size <= 4:
        for order in list(itertools.permutations(range(unit.size)))[1:]:
            says = f"has its values in another order ({', '.join(map(str, order))} is the environment's)"
            yield Convention(says, _order(unit, order), sure=False), values[..., list(order)]
    for factor, says in SCALES.items():
        yield Convention(says, f"{where}*{factor:g}"), values * factor


def explain(unit: Unit, values: Numbers, fit: Fit, good: float) -> Convention | None:
    """The first reading of `values` whose misfit is at most `good`; None when there is none."""
    return next((convention for convention, other in alternatives(unit, values) if fit(other) <= good), None)


def _one_sign(unit: Unit, axis: int) -> Convention:
    name = "xyz"[axis] if unit.size == 3 else "xyzw"[axis] if unit.size == 4 else str(axis)
    return Convention(f"has the other sign in {name}", f"{unit.part}[{unit.offset + axis}]*-1")


def _order(unit: Unit, order: tuple[int, ...]) -> str:
    """For `data.change`: the part's values from `offset` on, taken in this order."""
    return f"{unit.part}[{','.join(str(unit.offset + i) for i in order)}]"


def _flip(values: Numbers, axes: list[int]) -> Numbers:
    out = np.array(values)
    out[..., axes] *= -1
    return out
