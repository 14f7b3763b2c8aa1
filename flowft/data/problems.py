"""Defects of a dataset as they are found, and as they are told: one sentence and one fix a cause, not one a demonstration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from flowft.data import fixes
from flowft.errors import DataError

NAMED = 8  # demonstrations named in a sentence; the fix names all


@dataclass(frozen=True)
class Problem:
    """`fix`: a whole command, or only what has to be set (`--set …`), which `fixes.completed` makes a command of."""

    where: str  # file:key
    what: str
    fix: str | None = None
    episode: str | None = None  # the short name of the demonstration that has it

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what

    @property
    def cause(self) -> tuple[str, str, tuple[str, ...]]:
        """Equal for problems that differ only in the demonstration and in numbers."""
        where = self.where if self.episode is None else re.sub(rf"(?<![^/:]){re.escape(self.episode)}(?![^/])", "*", self.where)
        said = self.what if self.episode is None else self.what.replace(self.episode, "*")
        return where, re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", said), tuple(fixes.settings(self.fix)) or (self.fix or "",)


@dataclass
class Problems:
    """What was found wrong. Strict (training): raised at the end, as one error. Collecting (`flowft data check`): kept."""

    collect: bool = False
    found: list[Problem] = field(default_factory=list)

    def add(self, where: str, what: str, fix: str | None = None, episode: str | None = None) -> None:
        """`episode`: by default the one that the fix would leave out."""
        skipped = fixes.settings(fix).get("skip")
        if episode is None and isinstance(skipped, list) and len(skipped) == 1:
            episode = str(skipped[0])
        self.found.append(Problem(where, what, fix, episode))

    def causes(self) -> list[Problem]:
        return causes(self.found)

    def error(self) -> DataError:
        """The first cause, and how many others there are."""
        first, *others = self.causes()
        more = f"; {len(others)} more kind{'s' * (len(others) > 1)} of problem" if others else ""
        return DataError(f"{first}{more}", first.fix)


def causes(found: Iterable[Problem]) -> list[Problem]:
    """One problem a cause: the first, with the names of the others and a fix for all of them."""
    groups: dict[tuple[str, str, tuple[str, ...]], list[Problem]] = {}
    for problem in found:
        groups.setdefault(problem.cause, []).append(problem)
    return [_joined(group) for group in groups.values()]


def _joined(group: Sequence[Problem]) -> Problem:
    first, *others = dict.fromkeys(group)
    if not others:
        return first
    names = list(dict.fromkeys(problem.episode or problem.where for problem in others))
    shown = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
    return replace(first, what=f"{first.what}; likewise {len(names)} more: {shown}", fix=fixes.merged([problem.fix for problem in group]))
