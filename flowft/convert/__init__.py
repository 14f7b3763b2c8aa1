"""Checkpoints of other programs become flowft's: one file per foreign format, chosen by name.

A converter is a module (one file, one line in registry.py) with

    convert(path: Path, sizes: Sizes) -> dict     the content of a flowft policy checkpoint; DataError if the file does not fit

Such a policy knows the sizes of what it sees and does, not the names or units; fine-tuning takes those from the dataset.
"""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    """What the user says about the file; None: found in it."""

    observation: int | None = None
    action: int | None = None
    horizon: int | None = None
