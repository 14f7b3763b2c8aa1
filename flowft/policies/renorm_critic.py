"""The critic of training from scratch: an ensemble of Q(s, a_{1:h}) with batch renormalisation before every layer."""

from __future__ import annotations

import torch
from torch import nn

from flowft.policies.batch_renorm import BatchRenorm
from flowft.policies.critic import Config, xavier
from flowft.policies.layers import activation


class RenormCritic(nn.Module):
    """Blocks of batch renormalisation -> Dense -> activation, then a scalar; one set of weights and statistics per member."""

    def __init__(self, observation_dim: int, chunk_dim: int, config: Config, momentum: float, warmup: int) -> None:
        super().__init__()
        sizes = [observation_dim + chunk_dim, *config.hidden, 1]
        n = config.ensemble
        self.weight = nn.ParameterList(xavier(n, a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(n, 1, b)) for b in sizes[1:])
        self.norm = nn.ModuleList(BatchRenorm(n, size, momentum=momentum, warmup=warmup) for size in sizes[:-1])
        self.activation = activation(config.activation)
        self.ensemble = n

    def forward(self, state: torch.Tensor, chunk: torch.Tensor, learn: bool) -> torch.Tensor:
        """Q (E, B) of states (B, O) and unit chunks (B, h, A). `learn`: by the batch's statistics, else by the running ones."""
        x = torch.cat([state, chunk.flatten(1)], dim=-1).expand(self.ensemble, -1, -1)
        for i, (norm, weight, bias) in enumerate(zip(self.norm, self.weight, self.bias, strict=True)):
            x = torch.baddbmm(bias, norm(x if i == 0 else self.activation(x), learn), weight)
        return x.squeeze(-1)
