"""The recipe's `actor` section: the network of an actor that is no flow (a Gaussian's, a one-step actor's)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from flowft.policies.layers import Activation, mlp


@dataclass(frozen=True)
class Config:
    hidden: tuple[int, ...] = (512, 512, 512, 512)  # widths; 3 × 256 is enough for single-arm tasks on a CPU
    activation: Activation = "gelu"  # silu is three times as fast on a CPU


def network(n_in: int, n_out: int, config: Config) -> nn.Sequential:
    """The plain network of those widths."""
    return mlp([n_in, *config.hidden, n_out], config.activation)
