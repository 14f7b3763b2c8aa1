"""Action bounds of layouts that declare none: from the actions themselves."""

from __future__ import annotations

import numpy as np

from flowft.data.check import Numbers

MARGIN = 0.05  # of the range, on each side: the policy may command a little more than was demonstrated
STILL = 1e-6  # a value that never moves has no range of its own: it gets one unit around it
REACHED = 1e-5  # so near at ±1 is at it
HALF = 0.5


def find(actions: Numbers) -> tuple[Numbers, Numbers, str]:
    """(low (A,), high (A,), a note) for actions (N, A); rows that are not finite do not count.

    ±1 where the actions look normalised: none is outside, some are at −1 and some at 1, where normalised actions are clipped to,
    and at least half of the values get beyond ±0.5. Joint positions in radians and small displacements, which lie within ±1 by
    chance, do not look so: ±1 would leave them a small part of the range.
    """
    sound = actions[np.isfinite(actions).all(axis=1)].astype(np.float64)
    if not len(sound):
        return np.full(actions.shape[1], -1.0), np.full(actions.shape[1], 1.0), "no action is finite: bounds are unknown"
    low, high = sound.min(axis=0), sound.max(axis=0)
    how = "--set 'data.action_bounds=[LOW, HIGH]' (or a pair for each value) sets others"
    if normalised(low, high):
        note = f"the data declare no action bounds; all actions lie within [-1, 1] and reach both, so these are taken: {how}"
        return np.full_like(low, -1.0), np.full_like(high, 1.0), note
    still = high - low < STILL
    edge = np.where(still, 0.5, MARGIN * (high - low))
    note = f"the data declare no action bounds: taken from the recorded actions, widened by {100 * MARGIN:g} % on each side; {how}"
    return low - edge, high + edge, note


def normalised(low: Numbers, high: Numbers) -> bool:
    """Do a data set's minimum and maximum (A,) look like those of actions that are scaled to ±1?"""
    inside = bool((low >= -1 - REACHED).all() and (high <= 1 + REACHED).all())
    at_both = bool((low <= -1 + REACHED).any() and (high >= 1 - REACHED).any())
    wide = np.maximum(-low, high) >= HALF
    return inside and at_both and 2 * int(wide.sum()) >= len(low)
