"""PickPlaceCan: grasp the can, carry it over the wall to its bin, set it down, let go, and get out of the way."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowft.data.experts.hand import CLOSED, OPEN, Hand, Motion, Vector

CARRY_HEIGHT = 0.16  # metres above where the can stood: the bins' walls are 10 cm high
FINGERS_ABOVE = np.array([0.0, 0.0, 0.01])  # the fingers close a little above the can's middle
NEARER = np.array([-0.04, -0.07, 0.0])  # from the bin's middle, which the arm reaches only when stretched out


def plan(hand: Hand, simulator: Any) -> Motion:
    """Actions until the can stands in its bin and the hand is away (the episode then ends). Another try when it was lost."""
    place: Vector = simulator.target_bin_placements[simulator.object_id] + NEARER
    heading = hand.nearest(np.pi / 2, np.pi)  # as the hand points at the start: a can is round
    while True:
        if np.linalg.norm(hand.part("Can_pos")[:2] - place[:2]) > 0.1:
            yield from _grasp(hand, heading)
            if not _held(hand):
                yield from hand.grip(OPEN, limit=4)
                continue
            yield from _carry(hand, heading, place)
        yield from hand.grip(OPEN)
        yield from hand.raise_by(0.12, heading)


def _grasp(hand: Hand, heading: float) -> Motion:
    def above() -> Vector:
        return hand.part("Can_pos") + [0.0, 0.0, 0.10]

    hand.gripper = OPEN
    yield from hand.stray(above, heading)
    yield from hand.move(above, heading, tolerance=0.015, aim=2.0)
    yield from hand.move(lambda: hand.part("Can_pos") + FINGERS_ABOVE, heading, tolerance=0.01)
    yield from hand.grip(CLOSED)
    yield from hand.raise_by(CARRY_HEIGHT, heading, limit=40)


def _carry(hand: Hand, heading: float, place: Vector) -> Motion:
    height = hand.position[2]

    def over() -> Vector:
        return np.array([place[0], place[1], height])

    yield from hand.stray(over, heading)
    yield from hand.move(over, heading, tolerance=0.03, aim=3.0)
    yield from hand.move(lambda: np.array([place[0], place[1], place[2] + 0.09]), heading, tolerance=0.02, limit=40)


def _held(hand: Hand) -> bool:
    return float(np.linalg.norm(hand.part("Can_pos") - hand.position)) < 0.06
