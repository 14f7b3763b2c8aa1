"""Generators that belong to the whole process (numpy's, python's, torch's): seeded for a simulator, and put back as they were.

Many simulators draw from them. An episode follows from its seed alone only if they are seeded at each reset; the learner's
own draws stay what they are only if the simulator's leave no trace.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

State = dict[str, Any]


def take() -> State:
    """Where they are now. Torch's counts where somebody has imported it; it is not imported for this."""
    state: State = {"numpy": np.random.get_state(), "python": random.getstate()}
    if (torch := sys.modules.get("torch")) is not None:
        state["torch"] = torch.get_rng_state()
    return state


def put(state: State) -> None:
    """Back to where they were."""
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if "torch" in state:
        sys.modules["torch"].set_rng_state(state["torch"])


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seeded inside the block, and as before after it. With None: left alone."""
    if seed is None:
        yield
        return
    before = take()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        put(before)


class Stream:
    """A simulator's own course of these generators: kept after its reset, continued in each of its steps."""

    def __init__(self) -> None:
        self._state: State | None = None

    def keep(self) -> None:
        """Go on from where they are now."""
        self._state = take()

    @contextlib.contextmanager
    def continued(self) -> Iterator[None]:
        """This stream inside the block; the others' after it."""
        if self._state is None:  # never reset: nothing to continue
            yield
            return
        before = take()
        put(self._state)
        try:
            yield
        finally:
            self._state = take()
            put(before)
