"""From the flow's endpoint x to the unit action a = squash(x), and back for cloning targets.

Cloning fits squash⁻¹(a), so that the cloned policy and the fine-tuned policy are the same function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional as F


class Squash(Protocol):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """a in [−1, 1], same shape as x."""

    def inverse(self, action: torch.Tensor) -> torch.Tensor:
        """The cloning target x with squash(x) = a (as near as the squash can come)."""

    def log_derivative(self, x: torch.Tensor) -> torch.Tensor:
        """Σ log|squash'(x)| over the last dimension."""


@dataclass(frozen=True)
class Clip:
    """a = clip(x, −1, 1). The likelihood is that of x; outside the box Q has no gradient, the regulariser (on x) has."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(-1.0, 1.0)

    def inverse(self, action: torch.Tensor) -> torch.Tensor:
        return action

    def log_derivative(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(x.shape[:-1])


@dataclass(frozen=True)
class Tanh:
    """a = tanh(x). Targets are atanh(a) with |a| clipped at `limit`: heavy-tailed targets cost success."""

    limit: float = 0.98

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.tanh()

    def inverse(self, action: torch.Tensor) -> torch.Tensor:
        return action.clamp(-self.limit, self.limit).atanh()

    def log_derivative(self, x: torch.Tensor) -> torch.Tensor:
        return log_slope(x).sum(dim=-1)


def log_slope(x: torch.Tensor) -> torch.Tensor:
    """log tanh'(x) = log(1 − tanh²x) without cancellation, same shape as x."""
    return 2 * (math.log(2) - x - F.softplus(-2 * x))


def make(name: str, limit: float) -> Squash:
    """`clip` or `tanh`."""
    return Clip() if name == "clip" else Tanh(limit)
