"""Flow-G, the gated velocity: v = g ⊙ (v̂ − x) with g = σ(gate(s, x, t)). One step is a GRU's update of x towards v̂."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from flowft.policies.layers import Activation, mlp


@dataclass(frozen=True)
class Config:
    hidden: tuple[int, ...] = (512, 512, 512, 512)  # candidate widths; 3 × 256 is enough for single-arm tasks on a CPU
    activation: Activation = "gelu"  # of the candidate; silu is three times as fast on a CPU
    gate_hidden: int = 256  # width of the gate's one hidden layer (swish)
    gate_bias: float = 5.0  # the gate starts open: σ(5) = 0.993
    candidate_bound: float | None = None  # v̂ = bound·tanh(·): the paper's text has 50, its code none


class FlowG(nn.Module):
    """v = g ⊙ (v̂ − x)."""

    config_type = Config

    def __init__(self, observation_dim: int, latent_dim: int, config: Config, horizon: int = 1) -> None:
        """`horizon` is taken as every network takes it, and not used: the chunk is one vector here."""
        super().__init__()
        n_in = observation_dim + latent_dim + 1
        self.bound = config.candidate_bound
        self.candidate = mlp([n_in, *config.hidden, latent_dim], config.activation)
        self.gate = mlp([n_in, config.gate_hidden, latent_dim], "silu")
        last = self.gate[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, config.gate_bias)

    def context(self, observation: torch.Tensor) -> torch.Tensor:
        """What of the state is computed once per rollout: here, nothing."""
        return observation

    def forward(self, context: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """v (B, D) from the context, x (B, D) and t (B, 1)."""
        inputs = torch.cat([context, x, t], dim=-1)
        candidate: torch.Tensor = self.candidate(inputs)
        if self.bound is not None:
            candidate = self.bound * torch.tanh(candidate)
        return torch.sigmoid(self.gate(inputs)) * (candidate - x)
