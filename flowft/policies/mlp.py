"""The plain velocity network: v = MLP(s, x, t). Unrolled K times it is a vanilla RNN (the paper's "naive" flow)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from flowft.policies.layers import Activation, mlp


@dataclass(frozen=True)
class Config:
    hidden: tuple[int, ...] = (512, 512, 512, 512)  # widths; 3 × 256 is enough for single-arm tasks on a CPU
    activation: Activation = "gelu"  # silu is three times as fast on a CPU


class MLPVelocity(nn.Module):
    """v = MLP(s, x, t)."""

    config_type = Config

    def __init__(self, observation_dim: int, latent_dim: int, config: Config, horizon: int = 1) -> None:
        """`horizon` is taken as every network takes it, and not used: the chunk is one vector here."""
        super().__init__()
        self.body = mlp([observation_dim + latent_dim + 1, *config.hidden, latent_dim], config.activation)

    def context(self, observation: torch.Tensor) -> torch.Tensor:
        """What of the state is computed once per rollout: here, nothing."""
        return observation

    def forward(self, context: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """v (B, D) from the context, x (B, D) and t (B, 1)."""
        velocity: torch.Tensor = self.body(torch.cat([context, x, t], dim=-1))
        return velocity
