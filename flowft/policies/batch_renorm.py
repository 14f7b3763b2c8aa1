"""Batch renormalisation (Ioffe, arXiv 1702.03275): batch normalisation whose output agrees with that of its running statistics.

x̂ = (x − μ_B)/σ_B·r + d with r = σ_B/σ and d = (μ_B − μ)/σ, both clipped and both constants: the gradient passes through
μ_B and σ_B alone. With r and d unclipped, x̂ is (x − μ)/σ; with r = 1, d = 0 it is batch normalisation, which is what the
first `warmup` batches get, while the running μ and σ mean little (as in CrossQ, arXiv 1902.05605).
"""

from __future__ import annotations

import torch
from torch import nn

EPSILON = 1e-3  # added to the variance
LARGEST_R, LARGEST_D = 3.0, 5.0  # r lies in [1/3, 3], d in [−5, 5]


class BatchRenorm(nn.Module):
    """Normalises (…, B, F) over B, each leading index with its own statistics, then scales and shifts."""

    mean: torch.Tensor
    var: torch.Tensor
    batches: torch.Tensor

    def __init__(self, *shape: int, momentum: float = 0.99, warmup: int = 100_000) -> None:
        """`shape`: (…, F). Running statistics keep `momentum` of themselves per batch."""
        super().__init__()
        shape = (*shape[:-1], 1, shape[-1])
        self.momentum, self.warmup = momentum, warmup
        self.scale, self.shift = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))  # seen so far; on the device, so nothing waits for it

    def forward(self, x: torch.Tensor, learn: bool) -> torch.Tensor:
        """`learn`: normalise by the batch and let the running statistics follow it; else by the running statistics alone.

        An argument and not train() or eval(): the actor's loss looks at a critic that is being trained, without moving it.
        """
        if not learn:
            return torch.addcmul(self.shift, x - self.mean, self.scale * (self.var + EPSILON).rsqrt())
        mean = x.mean(dim=-2, keepdim=True)
        centred = x - mean
        var = centred.square().mean(dim=-2, keepdim=True)
        std = (var + EPSILON).sqrt()
        r, d = self._corrections(mean.detach(), std.detach())  # constants, or the gradient would not be that of the batch
        self._follow(mean.detach(), var.detach())
        return torch.addcmul(self.shift + self.scale * d, centred, self.scale * r / std)

    def _corrections(self, mean: torch.Tensor, std: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """r and d towards the running statistics from before this batch; 1 and 0 during the warm-up."""
        running = (self.var + EPSILON).sqrt()
        r = (std / running).clamp(1 / LARGEST_R, LARGEST_R)
        d = ((mean - self.mean) / running).clamp(-LARGEST_D, LARGEST_D)
        warm = self.batches >= self.warmup
        return torch.where(warm, r, 1.0), torch.where(warm, d, 0.0)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        sound = mean.isfinite().all() & var.isfinite().all()  # a batch that is not must not stay in the statistics
        rate = (1 - self.momentum) * sound
        self.mean.lerp_(torch.where(sound, mean, self.mean), rate)
        self.var.lerp_(torch.where(sound, var, self.var), rate)
        self.batches += sound
