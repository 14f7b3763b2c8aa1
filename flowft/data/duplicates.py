"""Episodes that are the same number for number: a demonstration stored twice counts twice in training and leaks into validation."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from flowft.data.spec import Episode


def first_of(episodes: Sequence[Episode]) -> dict[int, int]:
    """Index of each repeated episode -> index of the first one that it is the same as.

    Most episodes differ in a few of their numbers already; only those that do not are compared in full.
    """
    alike: dict[bytes, list[int]] = defaultdict(list)
    for i, episode in enumerate(episodes):
        alike[_glance(episode)].append(i)
    found: dict[int, int] = {}
    for group in alike.values():
        seen: dict[bytes, int] = {}
        for i in group if len(group) > 1 else ():
            first = seen.setdefault(fingerprint(episodes[i]), i)
            if first != i:
                found[i] = first
    return found


def _glance(episode: Episode) -> bytes:
    """Its length and the action in its middle, as float32."""
    actions = episode.actions
    middle: bytes = actions[len(actions) // 2].astype(np.float32).tobytes()
    return len(actions).to_bytes(8) + middle


def fingerprint(episode: Episode) -> bytes:
    """Equal for episodes with the same actions and observations, number for number."""
    digest = hashlib.blake2b(np.ascontiguousarray(episode.actions, dtype=np.float32).tobytes(), digest_size=16)
    for part in sorted(episode.observations):
        digest.update(np.ascontiguousarray(episode.observations[part], dtype=np.float32).tobytes())
    return digest.digest()
