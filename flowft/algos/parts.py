"""What the actor-critics share: the chunked TD target and its loss, what they take over from pretraining, and their state."""

from __future__ import annotations

from typing import Any, Literal

import torch

from flowft import device
from flowft.data.spec import Batch
from flowft.errors import CheckpointError

Pessimism = Literal["min", "mean"]


def td_target(batch: Batch, value: torch.Tensor, gamma: float) -> torch.Tensor:
    """y = Σ_{j<n} γ^j r_j + γ^n (1 − terminated)·V(s'), (B,). n = h but for a chunk that ends in a terminal state."""
    discounts = gamma ** torch.arange(batch.reward.shape[1], device=value.device)
    rewards = (discounts * batch.reward).sum(dim=1)
    return rewards + gamma**batch.length * (1 - batch.terminated) * value


def td_loss(q: torch.Tensor, target: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Σ over members of (Q − y)², mean over the chunks that have a target: one cut short by truncation has none."""
    error = (q - target).square() * batch.complete
    return error.sum() / batch.complete.sum().clamp_min(1)


def as_one(q: torch.Tensor, how: Pessimism) -> torch.Tensor:
    """The ensemble's Q (E, B) as one value (B,)."""
    return q.amin(dim=0) if how == "min" else q.mean(dim=0)


def take_moments(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Adam's moments from another stage, at this stage's learning rate."""
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def take_critic(algo: Any, state: dict[str, Any]) -> None:
    """The pretrained critic and its average, into `algo.critic` and `algo.target_critic`."""
    if "critic" not in state:
        raise CheckpointError("the checkpoint holds no critic: it was pretrained without one", "--set finetune.fresh_critic=true")
    try:
        algo.critic.load_state_dict(state["critic"])
        algo.target_critic.load_state_dict(state["target_critic"])
    except RuntimeError as error:
        what = "the checkpoint's critic has other shapes than the recipe's critic section says"
        raise CheckpointError(what, "--set finetune.fresh_critic=true, or the critic settings that it was pretrained with") from error


def state_of(algo: Any, parts: tuple[str, ...]) -> dict[str, Any]:
    """The named modules and optimisers of an algorithm, and its random stream."""
    return {name: getattr(algo, name).state_dict() for name in parts} | {"rng": device.rng_state(algo.stream)}


def restore(algo: Any, parts: tuple[str, ...], state: dict[str, Any]) -> None:
    """Put back what `state_of` took."""
    for name in parts:
        getattr(algo, name).load_state_dict(state[name])
    device.set_rng_state(algo.stream, state["rng"])
