"""Adam steps that a non-finite loss or gradient cannot spoil, and moving averages that can wait for such a step.

A step is refused as a whole and on the device: the host need not know, and learns it from the metrics when it looks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def adam(parameters: Iterable[torch.Tensor], learning_rate: float, beta1: float = 0.9) -> torch.optim.Adam:
    """Fused Adam: the kind that can be told on the device to leave everything as it is."""
    return torch.optim.Adam(parameters, learning_rate, betas=(beta1, 0.999), fused=True)


def step(
    optimizer: torch.optim.Adam, loss: torch.Tensor, max_grad_norm: float | None = None, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """One step down `loss`; where it or its gradient is not finite, or `allowed` is false, parameters and moments stay as they are.

    Returns the gradient's norm before clipping to `max_grad_norm`. It is finite exactly where loss and gradient are.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = norm + 0 * loss.detach()  # 0 times what is not finite is not finite
    if max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    refused = ~torch.isfinite(norm) if allowed is None else ~(torch.isfinite(norm) & allowed)
    optimizer.found_inf = refused.float()  # type: ignore[attr-defined]  # read by the fused kernel, as torch.amp's scaler has it
    optimizer.step()
    return norm


def average(target: torch.nn.Module, source: torch.nn.Module, rate: torch.Tensor) -> None:
    """target <- (1 − rate)·target + rate·source, parameter by parameter; `rate` is a scalar on their device, 0 leaves all as it is."""
    mine: list[torch.Tensor] = list(target.parameters())
    torch._foreach_lerp_(mine, list(source.parameters()), [rate] * len(mine))


def take_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Adam's moments from another stage, at this stage's learning rate."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
