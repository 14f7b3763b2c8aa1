"""What a success is (`data.success`), for files that have no rewards, or others than are wanted.

last         the last step of each demonstration: reward 1 there, 0 before, and the end is terminal
reward>=X    each step whose reward in the file is at least X: reward 1 there, 0 elsewhere
KEY          an array of the demonstration (dones: reward 1 where it is above 0), or one value for all of it (an attribute
             success: its last step)
none         rewards as they are, and no end is terminal

The steps after a first success stay, as in robomimic's files; the end is terminal where the last step is a success.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flowft.data.spec import Episode
from flowft.data.sweep import Numbers
from flowft.errors import did_you_mean

THRESHOLD = re.compile(r"reward\s*>=\s*(\S+)")
DECLARE = "where each demonstration ends in success, --set data.success=last says so"


class NoSuccess(Exception):
    """The rule cannot be applied to this demonstration; the reason in words."""


@dataclass(frozen=True)
class Rule:
    """One way to tell success."""

    kind: str  # last, none, reward or key
    key: str = ""
    least: float = 0.0

    @classmethod
    def parse(cls, words: str) -> Rule:
        """ValueError for a threshold that is no number."""
        if words in ("last", "none"):
            return cls(words)
        if re.match(r"reward\s*[<>=]", words):
            if not (found := THRESHOLD.fullmatch(words)):
                raise ValueError(f"success is {words!r}; a threshold is written reward>=0.5")
            return cls("reward", least=float(found[1]))
        return cls("key", key=words)

    def apply(self, episode: Episode, marks: Mapping[str, Any], known: Sequence[str]) -> Episode:
        """The episode with this rule's rewards and end. `marks`: its further arrays; `known`: their names, for the error."""
        if self.kind == "none":
            return replace(episode, terminated=False, success=None)
        reached = self._reached(episode, marks, known)
        ends = bool(reached[-1:].any())
        return replace(episode, rewards=reached.astype(np.float32), terminated=ends, success=bool(reached.any()))

    def _reached(self, episode: Episode, marks: Mapping[str, Any], known: Sequence[str]) -> Numbers:
        steps = len(episode)
        if self.kind == "reward":
            return np.asarray(episode.rewards >= self.least)
        if self.kind == "last":
            return np.asarray(np.arange(steps) == steps - 1)
        if self.key not in marks:
            raise NoSuccess(f"data.success is {self.key!r}, which is not there{did_you_mean(self.key, known)}")
        values = np.asarray(marks[self.key])
        if values.dtype.kind not in "fiub":
            raise NoSuccess(f"data.success is {self.key!r}, which holds {values.dtype}, not numbers")
        if values.size == 1 and steps != 1:
            return np.asarray((np.arange(steps) == steps - 1) & bool(values.ravel()[0] > 0))
        if values.shape not in ((steps,), (steps, 1)):
            raise NoSuccess(f"data.success is {self.key!r}, which has shape {values.shape}, not a value for each of {steps} steps")
        return np.asarray(values.reshape(steps) > 0)


def from_rewards(rewards: Numbers) -> tuple[bool, bool | None]:
    """(ends in success, success) of rewards that are 1 at success and else 0; a shaped reward tells neither."""
    sparse = rewards.ndim == 1 and rewards.dtype.kind in "fiub" and bool(((rewards == 0) | (rewards == 1)).all())
    return (bool((rewards[-1:] == 1).any()), bool((rewards == 1).any())) if sparse else (False, None)


def minus_one_until(episodes: Sequence[Episode]) -> bool:
    """Are all rewards −1 or 0, with both of them: −1 until success, 0 at it?"""
    lows = 0
    for episode in episodes:
        if not ((episode.rewards == 0) | (episode.rewards == -1)).all():
            return False
        lows += int((episode.rewards == -1).any())
    return lows > 0 and any((episode.rewards == 0).any() for episode in episodes)


def shifted(episode: Episode) -> Episode:
    """Rewards −1/0 as 0/1, so that the reward of recorded steps is the one that online steps get."""
    rewards = (episode.rewards + 1).astype(np.float32)
    ends, success = from_rewards(rewards)
    return replace(episode, rewards=rewards, terminated=ends, success=success)


def never(episodes: Sequence[Episode]) -> float | None:
    """The one reward (0 or −1) that all steps have, so that no demonstration seems to succeed; None where they differ."""
    values = {float(v) for episode in episodes[:1] for v in episode.rewards[:1]}
    if not values <= {0.0, -1.0} or not values:
        return None
    value = values.pop()
    return value if all((episode.rewards == value).all() for episode in episodes) else None
