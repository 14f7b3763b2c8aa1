"""Lift: by a via point to above the cube, aligned with its sides, down, close, up; again if the cube stayed behind."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowft.data.experts.hand import CLOSED, OPEN, Hand, Motion, heading_of


def plan(hand: Hand, simulator: Any) -> Motion:
    """Actions until the cube is up (the episode then ends); `simulator` is not needed, the observation says it all."""
    while True:
        height = hand.part("cube_pos")[2]
        side = hand.nearest(heading_of(hand.part("cube_quat")), np.pi / 2)
        hand.gripper = OPEN
        above = lambda: hand.part("cube_pos") + [0.0, 0.0, 0.08]  # noqa: E731
        yield from hand.stray(above, side)
        yield from hand.move(above, side, tolerance=0.012, aim=2.0)
        yield from hand.move(lambda: hand.part("cube_pos"), side)
        yield from hand.grip(CLOSED)
        yield from hand.raise_by(0.12, side)
        if hand.part("cube_pos")[2] < height + 0.02:
            yield from hand.grip(OPEN, limit=4)
