"""Is the rollout stable under back-propagation? It is a residual recurrent network of K steps (arXiv 2509.25756, section 4),
and the gradient that reaches x_i from the actor's loss L is a product of step Jacobians ∂x_{j+1}/∂x_j, j ≥ i.

Measuring changes nothing in training: the draws are the same every time, from a stream of their own, and no parameter's
`.grad` is touched.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowft import device, recipe
from flowft.algos.base import ThroughRollout
from flowft.data.spec import Batch

SEED = 0  # of x_0 and ε: common random numbers, so that the rows of a run differ by what was learned


@dataclass(frozen=True)
class Config:
    """The recipe's `diagnostics` section. Nothing in it changes what is learned."""

    gradients: bool = False  # log how gradients pass through the rollout (flowft plot --kind gradients)
    every: int = 500  # environment steps between such rows
    elements: int = 8  # of the batch, whose step Jacobians are taken
    nonfinite_limit: int = 5  # updates in a row with a non-finite loss or gradient that end the run

    def __post_init__(self) -> None:
        recipe.require(self, "every", "elements", "nonfinite_limit", least=1)


def gradients(algo: ThroughRollout, batch: Batch, elements: int) -> dict[str, float]:
    """A row of numbers, for K flow steps:

    grad_x0 … grad_xK            ‖∂L/∂x_i‖ of one element's loss, mean over the batch
    actor_grad_norm              ‖∂L/∂θ‖ over all of the actor's parameters, before clipping
    jacobian_0 … jacobian_{K−1}  largest singular value of ∂x_{i+1}/∂x_i, mean over `elements` of the batch
    jacobian_rollout             the same of ∂x_K/∂x_0
    """
    x0, noise = algo.policy.draw(len(batch.observation), device.generator(batch.observation.device, SEED))
    loss, own, _ = algo.actor_loss(batch, (x0.requires_grad_(), noise))
    parameters = list(algo.policy.parameters())
    found = torch.autograd.grad(loss, [*own.path, *parameters], allow_unused=True)
    through, direct = found[: len(own.path)], [g for g in found[len(own.path) :] if g is not None]
    row = {f"grad_x{i}": float(len(batch.observation) * g.norm(dim=-1).mean()) for i, g in enumerate(through)}
    row["actor_grad_norm"] = float(torch.nn.utils.get_total_norm(direct))

    some = torch.linspace(0, len(batch.observation) - 1, min(elements, len(batch.observation)), device=x0.device).long()
    path = algo.policy.sample(batch.observation[some], x0[some].detach().requires_grad_(), noise[:, some]).path
    for i in range(len(path) - 1):
        row[f"jacobian_{i}"] = spectral_norm(jacobian(path[i], path[i + 1]))
    return row | {"jacobian_rollout": spectral_norm(jacobian(path[0], path[-1]))}


def jacobian(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """∂y/∂x of each element, (B, D, D), for y (B, D) that was computed from x (B, D) element by element."""
    rows = torch.eye(y.shape[-1], device=y.device)[:, None, :].expand(-1, len(y), -1)  # (D, B, D), one output at a time
    (columns,) = torch.autograd.grad(y, x, rows, is_grads_batched=True, retain_graph=True)
    return columns.transpose(0, 1)


def spectral_norm(matrices: torch.Tensor) -> float:
    """The largest singular value, mean over (B, D, D); NaN where an entry is not finite."""
    if not torch.isfinite(matrices).all():
        return float("nan")
    return float(torch.linalg.matrix_norm(matrices, 2).mean())
