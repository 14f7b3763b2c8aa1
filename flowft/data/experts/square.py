"""NutAssemblySquare: take the nut by its handle, turn it square to the peg, lower it over the peg, let go."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowft.data.experts.hand import CLOSED, OPEN, Hand, Motion, Vector, heading_of, rotation_matrix

HANDLE = np.array([0.054, 0.0, 0.0])  # from the nut's middle, in the nut's frame
PEG_TOP = 0.10  # metres above the peg's middle
CLEARANCE = 0.035  # between the peg's top and the nut that is carried over it


def plan(hand: Hand, simulator: Any) -> Motion:
    """Actions until the nut is on the peg (the episode then ends). A nut that was dropped is taken up again."""
    peg: Vector = simulator.sim.data.body_xpos[simulator.peg1_body_id].copy()
    while True:
        yield from _grasp(hand)
        if np.linalg.norm(_handle(hand) - hand.position) < 0.035:
            yield from _place(hand, peg)
        yield from hand.grip(OPEN)
        yield from hand.raise_by(0.08, hand.heading)


def _grasp(hand: Hand) -> Motion:
    across = hand.nearest(_heading(hand) + np.pi / 2, np.pi)

    def above() -> Vector:
        return _handle(hand) + [0.0, 0.0, 0.09]

    hand.gripper = OPEN
    yield from hand.stray(above, across)
    yield from hand.move(above, across, tolerance=0.01, aim=2.0)
    yield from hand.move(lambda: _handle(hand), hand.nearest(_heading(hand) + np.pi / 2, np.pi), tolerance=0.006)
    yield from hand.grip(CLOSED)
    yield from hand.raise_by(0.17, across, limit=40)


def _place(hand: Hand, peg: Vector) -> Motion:
    """The nut's own pose is watched on the way, since it slips in the fingers."""

    def nut_to(height: float) -> Vector:
        goal: Vector = hand.position + np.array([peg[0], peg[1], height]) - hand.part("SquareNut_pos")
        return goal

    top = peg[2] + PEG_TOP
    yield from hand.stray(lambda: nut_to(top + CLEARANCE), hand.heading)
    yield from hand.move(lambda: nut_to(top + CLEARANCE), _square(hand), tolerance=0.02, aim=3.0)
    yield from hand.move(lambda: nut_to(top + CLEARANCE), _square(hand), tolerance=0.005, settle=True)
    yield from hand.move(lambda: nut_to(top - 0.05), _square(hand), tolerance=0.015, limit=30, aim=0.5)


def _square(hand: Hand) -> float:
    """The hand's heading with which the nut's sides are parallel to the peg's (and the world's), its handle not away from the
    robot: beyond the peg the arm is stretched out and sinks."""
    nut = _heading(hand)
    wanted = (np.pi / 2) * round(nut / (np.pi / 2))
    if np.cos(wanted) > 0.5:
        wanted += np.copysign(np.pi / 2, np.pi / 2 - hand.heading)  # towards the middle of the wrist's range
    return hand.heading + wanted - nut


def _heading(hand: Hand) -> float:
    return heading_of(hand.part("SquareNut_quat"))


def _handle(hand: Hand) -> Vector:
    place: Vector = hand.part("SquareNut_pos") + rotation_matrix(hand.part("SquareNut_quat")) @ HANDLE
    return place
