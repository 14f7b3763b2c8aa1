"""What a comparison of data and environment says: one sentence, the likely cause, a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]
LAST_RESORT = "--set data.match=warn   (the last resort: it trains on them as they are)"


@dataclass(frozen=True)
class Finding:
    """`what` names the part or the axis and the likely cause; an `error` keeps training from starting, a `note` does not."""

    what: str
    fix: str | None
    severity: Literal["error", "note"] = "error"


@dataclass(frozen=True)
class Unit:
    """Values of the flat observation that belong together: a position, a quaternion, or one value of a long part."""

    name: str
    start: int  # in the flat observation
    size: int
    part: str  # the data's part that holds it
    offset: int  # within that part

    def of(self, flat: Numbers) -> Numbers:
        """The unit's values (…, size) of flat observations (…, D)."""
        return flat[..., self.start : self.start + self.size]

    def indices(self) -> str:
        """Its place in its part, as `data.change` writes it."""
        return f"[{self.offset}:{self.offset + self.size}]" if self.size > 1 else f"[{self.offset}]"


LONGEST = 7  # values that one name may stand for; of longer parts each value is a unit


def units(parts: tuple[tuple[str, int], ...], names: tuple[tuple[str, int], ...]) -> list[Unit]:
    """Units of an observation with these data `parts` and the simulator's `names` of the same values, both in order."""
    starts = np.cumsum([0, *(size for _, size in parts)])
    found: list[Unit] = []
    at = 0
    for name, size in names:
        index = int(np.searchsorted(starts, at, side="right")) - 1
        part, offset = parts[index][0], at - int(starts[index])
        if size <= LONGEST:
            found.append(Unit(name, at, size, part, offset))
        else:
            found += [Unit(f"{name}[{i}]", at + i, 1, part, offset + i) for i in range(size)]
        at += size
    return found
