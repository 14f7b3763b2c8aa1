"""Observation normalisation that lives in the policy and travels with its checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

SMALLEST_STD = 1e-2  # a value that never moved in the data must not blow up when it first moves online


class Normalizer(nn.Module):
    """(s − mean)/std per observation value, clipped to ±`clip` (None: not). Buffers, not parameters: nothing trains them."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, dim: int, clip: float | None) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, mean: Any, std: Any) -> None:
        """Take the data's mean and standard deviation, each (D,)."""
        self.mean.copy_(torch.as_tensor(mean, dtype=torch.float32))
        self.std.copy_(torch.as_tensor(std, dtype=torch.float32).clamp_min(SMALLEST_STD))

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        state = (observation - self.mean) / self.std
        return state if self.clip is None else state.clamp(-self.clip, self.clip)
