"""The fix that fits all that was found in a file, which is known at the end only: leaving all demonstrations out mends nothing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flowft.data import fixes
from flowft.data.bounds import ActionRange
from flowft.data.problems import Problem

OUTSIDE = fixes.setting(clip_actions=True)  # of actions outside the bounds, until it is known how many there are


def fitted(
    found: Sequence[Problem], file: str, episodes: Sequence[str], bounds: ActionRange, parts: Sequence[str], uses_rewards: bool
) -> list[Problem]:
    """The problems with their fixes. `episodes`: those that are to be read; `parts`: observation parts that can be done without."""
    causes = [problem.cause for problem in found]
    alike: dict[Any, set[str | None]] = defaultdict(set)
    for problem, cause in zip(found, causes, strict=True):
        alike[cause].add(problem.episode)
    every = {name.rsplit("/", 1)[-1] for name in episodes}

    def fitting(problem: Problem, cause: Any) -> Problem:
        if problem.fix == OUTSIDE:
            return replace(problem, what=f"{problem.what}; {bounds.effect}", fix=bounds.fix)
        if not every or not every <= alike[cause]:
            return problem
        settings = fixes.settings(problem.fix)
        if "skip" in settings:
            return replace(problem, fix=_instead(problem, file, parts, uses_rewards))
        return replace(problem, fix=None) if "min_steps" in settings else problem

    return [fitting(problem, cause) for problem, cause in zip(found, causes, strict=True)]


def _instead(problem: Problem, file: str, parts: Sequence[str], uses_rewards: bool) -> str | None:
    """For what all episodes have: without that part or these rewards, if there is another way."""
    key = problem.where.removeprefix(f"{file}:").rpartition(f"{problem.episode}/")[2]
    key = re.sub(r"^(next_)?obs(ervations)?/", "", key)
    if key in parts and len(parts) > 1:
        return fixes.setting(observation=[part for part in parts if part != key])
    return fixes.setting(success="last") if key == "rewards" and uses_rewards else None
