"""The fourth kind of evidence: recorded actions replayed open loop from the demonstrations' first states."""

from __future__ import annotations

from collections.abc import Sequence

from flowft.data.simulator_states import Stored
from flowft.envs.stored_states import States

EPISODES, MOST_STEPS = 3, 300  # and steps in all


def replayed(states: States, stored: Sequence[Stored]) -> tuple[int, int]:
    """(how many successes came back, of how many successful demonstrations replayed)."""
    came_back = tried = steps = 0
    for one in [one for one in stored if one.episode.success][:EPISODES]:
        if tried and steps + len(one.episode) > MOST_STEPS:
            break
        steps += len(one.episode)
        tried += 1
        states.start(one.states, one.episode.actions, 0)
        came_back += any(states.step(action)[1] for action in one.episode.actions[:MOST_STEPS])
    return came_back, tried
