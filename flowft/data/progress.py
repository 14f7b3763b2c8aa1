"""A bar for what takes longer than a moment; nothing is said about the rest."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
MOMENT = 2  # seconds


def watched(items: Sequence[T], what: str, unit: str) -> tqdm[T]:
    """The items, with a bar on stderr once they take longer than a moment."""
    interval = 0.5 if sys.stderr.isatty() else 30
    return tqdm(items, desc=what, unit=unit, delay=MOMENT, mininterval=interval, leave=False, file=sys.stderr)


def meter(total: int, what: str, unit: str) -> tqdm[Any]:
    """The same, for what is counted in steps of different sizes (`update`)."""
    interval = 0.5 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=what, unit=unit, delay=MOMENT, mininterval=interval, leave=False, file=sys.stderr, unit_scale=True)
