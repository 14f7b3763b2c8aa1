"""Episodes that are the same number for number: a demonstration stored twice counts twice in training and leaks into validation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from flowft.data.spec import Episode


def first_of(episodes: Sequence[Episode]) -> dict[int, int]:
    """Index of each repeated episode -> index of the first one that it is the same as.

    Most episodes differ in a few of their numbers already; only those that do not are compared in full.
    """
    glances: dict[int, int] = {}  # of the first that looks so
    alike: dict[int, list[int]] = {}
    for i, episode in enumerate(episodes):
        if (first := glances.setdefault(_glance(episode), i)) != i:
            alike.setdefault(first, [first]).append(i)
    found: dict[int, int] = {}
    for group in alike.values():
        seen: dict[bytes, int] = {}
        for i in group:
            if (first := seen.setdefault(fingerprint(episodes[i]), i)) != i:
                found[i] = first
    return dict(sorted(found.items()))


def _glance(episode: Episode) -> int:
    """Of its length and the action in its middle, as float32."""
    actions = episode.actions
    return hash((len(actions), actions[len(actions) // 2].astype(np.float32).tobytes()))


def fingerprint(episode: Episode) -> bytes:
    """Equal for episodes with the same actions and observations, number for number."""
    digest = hashlib.blake2b(np.ascontiguousarray(episode.actions, dtype=np.float32).tobytes(), digest_size=16)
    for part in sorted(episode.observations):
        digest.update(np.ascontiguousarray(episode.observations[part], dtype=np.float32).tobytes())
    return digest.digest()
