"""The flow itself: path, velocity target, noise-augmented rollout and its likelihood (arXiv 2509.25756, section 4).

Time runs from noise to data: x_0 ~ N(0, I) at t = 0, the (pre-squash) action chunk x_1 at t = 1. K steps, Δt = 1/K,
t_i = i/K. x is the flattened chunk (batch, D) with D = horizon · action size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x (B, D), t (B, 1)) -> v (B, D)
HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class Rollout(NamedTuple):
    """A sampled path."""

    path: list[torch.Tensor]  # x_0 … x_K, each (B, D)
    log_prob: torch.Tensor  # (B,) log-density of the whole path, before the squash term

    @property
    def end(self) -> torch.Tensor:
        return self.path[-1]


def interpolate(x0: torch.Tensor, x1: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The straight-line path: x_t = (1 − t)·x_0 + t·x_1."""
    return (1 - t) * x0 + t * x1


def target_velocity(x0: torch.Tensor, x1: torch.Tensor) -> torch.Tensor:
    """The velocity of the straight-line path: x_1 − x_0."""
    return x1 - x0


def corrected_drift(v: torch.Tensor, x: torch.Tensor, t: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """b = v + (σ²/2)·(t·v − x)/(1 − t): with noise of scale σ the path keeps the marginals of the noise-free flow.

    (t·v − x)/(1 − t) is the score of the straight-line path's marginal; at t = 0 it is −x.
    """
    return v + 0.5 * sigma.square() * (t * v - x) / (1 - t)


def integrate(velocity: Velocity, x0: torch.Tensor, steps: int) -> torch.Tensor:
    """The noise-free flow: x_{i+1} = x_i + Δt·v(t_i, x_i). Returns x_K (B, D)."""
    x = x0
    for i in range(steps):
        x = x + velocity(x, x0.new_full((len(x0), 1), i / steps)) / steps
    return x


def rollout(
    velocity: Velocity,
    sigma: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x0: torch.Tensor,
    noise: torch.Tensor,
    drift_correction: bool = True,
) -> Rollout:
    """x_{i+1} = x_i + b·Δt + σ√Δt·ε_i, with log p = log N(x_0; 0, I) + Σ_i log N(x_{i+1}; x_i + b·Δt, σ²Δt·I).

    `noise` is ε, (K, B, D); `sigma(x, t)` gives σ, broadcastable to (B, D). As x_{i+1} − mean = σ√Δt·ε_i, each Gaussian
    term is −½ε² − log(σ√Δt) − ½log 2π: with a fixed σ the entropy reaches the parameters only through the squash.
    """
    steps = len(noise)
    dt = 1.0 / steps
    x, path = x0, [x0]
    log_prob = (-0.5 * x0.square() - HALF_LOG_2PI).sum(dim=-1)
    for i, epsilon in enumerate(noise):
        t = x0.new_full((len(x0), 1), i * dt)
        v, s = velocity(x, t), sigma(x, t)
        b = corrected_drift(v, x, t, s) if drift_correction else v
        std = (s * math.sqrt(dt)).expand_as(x)
        x = x + b * dt + std * epsilon
        log_prob = log_prob + (-0.5 * epsilon.square() - std.log() - HALF_LOG_2PI).sum(dim=-1)
        path.append(x)
    return Rollout(path, log_prob)


def entropy_at_noise(sigma: float, dim: int, steps: int) -> float:
    """The path entropy (nats, before the squash term) of a rollout whose step noise is σ: the unit of a target entropy.

    H = D·½log(2πe) + K·D·(½log(2πe) + log(σ√Δt)).
    """
    half_log_2pie = 0.5 * math.log(2 * math.pi * math.e)
    return dim * half_log_2pie + steps * dim * (half_log_2pie + math.log(sigma * math.sqrt(1 / steps)))
