"""Uniformly random chunks: how training from scratch explores before it knows anything."""

from __future__ import annotations

import torch

from flowft.data.spec import Array
from flowft.policies.base import Policy


class Uniform(Policy):
    """Every action value uniform in [−1, 1], whatever it sees."""

    kind = "uniform"

    def draw(self, batch: int, stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The chunks themselves, as x_0 (B, D), and an empty ε."""
        chunks = 2 * torch.rand(batch, self.latent_dim, generator=stream, device=stream.device) - 1
        return chunks, chunks.new_zeros(0)

    def unit_chunk(self, observation: Array, x0: torch.Tensor, noise: torch.Tensor | None = None) -> Array:
        """The drawn chunks (B, h, A)."""
        return self.chunk(x0).cpu().numpy()
