"""The critic: an ensemble of Q(s, a_{1:h}) with layer norm, all members in one batched product."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from flowft import recipe
from flowft.policies.layers import Activation, activation


@dataclass(frozen=True)
class Config:
    """The recipe's `critic` section."""

    hidden: tuple[int, ...] = (512, 512, 512, 512)  # widths; 3 × 256 is enough for single-arm tasks on a CPU
    ensemble: int = 2  # members
    activation: Activation = "gelu"  # silu is three times as fast on a CPU

    def __post_init__(self) -> None:
        recipe.require(self, "ensemble", least=1)


class Critic(nn.Module):
    """Blocks of Dense -> activation -> layer norm, then a scalar; one set of weights per member."""

    def __init__(self, observation_dim: int, chunk_dim: int, config: Config) -> None:
        super().__init__()
        sizes = [observation_dim + chunk_dim, *config.hidden, 1]
        n = config.ensemble
        self.weight = nn.ParameterList(xavier(n, a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(n, 1, b)) for b in sizes[1:])
        self.scale = nn.ParameterList(nn.Parameter(torch.ones(n, 1, b)) for b in config.hidden)
        self.shift = nn.ParameterList(nn.Parameter(torch.zeros(n, 1, b)) for b in config.hidden)
        self.activation = activation(config.activation)
        self.ensemble = n

    def forward(self, state: torch.Tensor, chunk: torch.Tensor, members: torch.Tensor | None = None) -> torch.Tensor:
        """Q (E, B) of normalised states (B, O) and unit chunks (B, h, A); with `members`, their indices, of those alone."""
        parts = (self.weight, self.bias, self.scale, self.shift)
        weights, biases, scales, shifts = parts if members is None else ([p[members] for p in part] for part in parts)
        x = torch.cat([state, chunk.flatten(1)], dim=-1).expand(len(weights[0]), -1, -1)
        for weight, bias, scale, shift in zip(weights[:-1], biases[:-1], scales, shifts, strict=True):
            x = self.activation(torch.baddbmm(bias, x, weight))
            x = nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * scale + shift
        return torch.baddbmm(biases[-1], x, weights[-1]).squeeze(-1)


def xavier(members: int, n_in: int, n_out: int) -> nn.Parameter:
    """Weights (E, n_in, n_out), uniform within Glorot's bound."""
    bound = (6 / (n_in + n_out)) ** 0.5
    return nn.Parameter(torch.empty(members, n_in, n_out).uniform_(-bound, bound))
