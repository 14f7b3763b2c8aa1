"""Cloning by flow matching, in the space before the squash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flowft import device, recipe
from flowft.algos import base
from flowft.algos.base import Algorithm, Metrics
from flowft.algos.optim import adam, step, take_moments
from flowft.data.spec import Batch
from flowft.policies import flow
from flowft.policies.base import Policy
from flowft.policies.policy import FlowPolicy


def flow_matching_loss(policy: FlowPolicy, batch: Batch, x0: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E‖(x_1 − x_0) − v_θ(t, (1−t)x_0 + t·x_1, s)‖², x_1 = squash⁻¹(chunk); padded steps do not count.

    x0 (B, D) standard normal, t (B, 1) uniform. Mean over the real values.
    """
    x1 = policy.squash.inverse(batch.action).flatten(1)
    v = policy.velocity(batch.observation, flow.interpolate(x0, x1, t), t)
    error = policy.chunk((flow.target_velocity(x0, x1) - v).square())
    return masked_mean(error, batch.valid)


def noise_and_time(policy: Policy, batch: int, stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Fresh x_0 (B, D) and t (B, 1) for the loss."""
    x0, _ = policy.draw(batch, stream)
    return x0, torch.rand(batch, 1, generator=stream, device=x0.device)


def masked_mean(error: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of (B, h, A) over the real steps of (B, h)."""
    return (error * valid.unsqueeze(-1)).sum() / (valid.sum() * error.shape[-1]).clamp_min(1)


@dataclass(frozen=True)
class Config(base.Config):
    learning_rate: float = 3e-4  # Adam's

    def __post_init__(self) -> None:
        recipe.require(self, "learning_rate", least=0)


class FlowBC(Algorithm):
    """Plain cloning: no critic, nothing but flow matching."""

    config_type = Config
    policy_kind = "flow"
    every_update_acts = True  # there is no critic whose updates would leave the policy as it was
    policy: FlowPolicy

    def __init__(self, policy: FlowPolicy, critic: object, config: Config, seed: int) -> None:
        """`critic` settings are taken as every algorithm takes them, and not used."""
        self.policy, self.config = policy, config
        self.stream = device.generator(policy.normalizer.mean.device, seed)
        self.optimizer = adam(policy.parameters(), config.learning_rate)

    def update(self, batch: Batch, actor: bool = True) -> Metrics:
        """One flow-matching step, whoever asks: with `--set algo=flow_bc` fine-tuning is cloning of the mixed replay."""
        loss = flow_matching_loss(self.policy, batch, *noise_and_time(self.policy, len(batch.observation), self.stream))
        norm = step(self.optimizer, loss)
        return {"flow_matching_loss": loss.detach(), "actor_grad_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict(), "rng": device.rng_state(self.stream)}

    def load_pretrained(self, state: dict[str, Any], critic: bool, optimizers: bool) -> None:
        """The policy is loaded already; there is no critic to take over."""
        if optimizers:
            take_moments(self.optimizer, state["optimizer"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        device.set_rng_state(self.stream, state["rng"])
