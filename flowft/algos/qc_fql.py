"""QC-FQL: a behaviour flow, and a one-step actor distilled from it that follows Q (FQL, arXiv 2502.02538, over action
chunks as in Q-chunking, arXiv 2507.07969). With `policy.horizon=1` it is FQL itself.

Notation: s state, a_{1:h} action chunk, v_θ the behaviour flow's velocity, μ_ω the one-step actor, z ~ N(0, I).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from flowft import device, recipe
from flowft.algos.base import Metrics
from flowft.algos.flow_bc import flow_matching_loss
from flowft.algos.optim import adam, average, step
from flowft.algos.parts import (
    Pessimism,
    as_one,
    restore,
    state_of,
    take_critic,
    take_moments,
    td_loss,
    td_target,
)
from flowft.data.spec import Batch
from flowft.policies import critic as critics
from flowft.policies.one_step import OneStepPolicy


@dataclass(frozen=True)
class Config:
    """The algorithm's knobs, in the recipe's `pretrain` and `finetune` sections."""

    alpha: float = 100.0  # distillation: the first knob to tune; smaller is freer. Mean over the chunk's values
    normalize_q: bool = False  # divide the actor's Q term by the batch's mean of |Q|, so that α does not depend on the rewards' scale
    gamma: float = 0.99  # discount per environment step
    tau: float = 0.005  # Q̄ <- (1 − τ)·Q̄ + τ·Q per update
    pessimism: Pessimism = "mean"  # how the ensemble becomes one value in the target
    actor_learning_rate: float = 3e-4  # Adam's, of flow and actor
    critic_learning_rate: float = 3e-4  # Adam's

    def __post_init__(self) -> None:
        recipe.require(self, "gamma", above=0, most=1)
        recipe.require(self, "tau", least=0, most=1)
        recipe.require(self, "alpha", "actor_learning_rate", "critic_learning_rate", least=0)


class QCFQL:
    """Pretraining and fine-tuning are the same update, offline and on the mixed replay."""

    config_type = Config
    policy_kind = "one_step"
    defaults: ClassVar[dict[str, Any]] = {
        "policy": {"network": "mlp", "steps": 10},
        "finetune": {"offline_share": "uniform", "keep_optimizers": True},
    }

    def __init__(self, policy: OneStepPolicy, critic: critics.Config, config: Config, seed: int) -> None:
        self.policy, self.config = policy, config
        where = policy.normalizer.mean.device
        self.critic = critics.Critic(policy.spec.observation_dim, policy.latent_dim, critic).to(where)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_optimizer = adam(policy.parameters(), config.actor_learning_rate)
        self.critic_optimizer = adam(self.critic.parameters(), config.critic_learning_rate)
        self.stream = device.generator(where, seed)

    @property
    def acting(self) -> OneStepPolicy:
        """The policy that collects, is evaluated and is published."""
        return self.policy

    # Losses ---------------------------------------------------------------------------------------------------------

    def critic_loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Σ over members of (Q(s, a_{1:h}) − y)², y = Σ_{j<n} γ^j r_j + γ^n (1 − terminated)·Q̄(s', μ_ω(s', z))."""
        with torch.no_grad():
            z, _ = self.policy.draw(len(batch.next_observation), self.stream)
            following = self.policy.action(self.policy.latent(batch.next_observation, z))
            value = as_one(self.target_critic(self.policy.normalizer(batch.next_observation), following), self.config.pessimism)
            target = td_target(batch, value, self.config.gamma)
        q = self.critic(self.policy.normalizer(batch.observation), batch.action)  # (ensemble, batch)
        loss = td_loss(q, target, batch)
        return loss, {"critic_loss": loss.detach(), "q": q.detach().mean(), "q_target": target.mean()}

    def actor_loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Flow matching of v_θ + α‖μ_ω(s, z) − flow_θ(s, z)‖² − Q(s, μ_ω(s, z)).

        flow_θ is the end of K Euler steps from the same z, squashed; no gradient reaches θ through it.
        """
        x0, _ = self.policy.draw(len(batch.observation), self.stream)
        t = torch.rand(len(x0), 1, generator=self.stream, device=x0.device)
        matching = flow_matching_loss(self.policy.flow, batch, x0, t)
        z, _ = self.policy.draw(len(batch.observation), self.stream)
        latent = self.policy.latent(batch.observation, z)
        distance = self.distillation_distance(batch.observation, z, latent)
        q = self.critic(self.policy.normalizer(batch.observation), self.policy.action(latent)).mean(dim=0)  # of the members
        scale = 1 / q.detach().abs().mean().clamp_min(1e-6) if self.config.normalize_q else 1.0
        loss = matching + self.config.alpha * distance - scale * q.mean()
        metrics = {"flow_matching_loss": matching.detach(), "distillation_distance": distance.detach(), "actor_q": q.detach().mean()}
        return loss, {"actor_loss": loss.detach(), **metrics}

    def distillation_distance(self, observation: torch.Tensor, z: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """Mean of (μ_ω − flow_θ)² over the chunk's values. Under the clip squash μ_ω counts before the clip, where it has a gradient."""
        flow = self.policy.flow
        with torch.no_grad():
            taught = flow.squash(flow.integrate(observation, z))
        mine = latent if flow.config.squash == "clip" else flow.squash(latent)
        return (mine - taught).square().mean()

    # Updates --------------------------------------------------------------------------------------------------------

    def clone(self, batch: Batch) -> Metrics:
        """Pretraining is the whole of it, on the dataset (the published form)."""
        return self.update(batch)

    def update(self, batch: Batch, actor: bool = True) -> Metrics:
        """One critic step and, where `actor`, one step of flow and actor. No host synchronisation."""
        loss, metrics = self.critic_loss(batch)
        norm = step(self.critic_optimizer, loss)
        with torch.no_grad():
            average(self.target_critic, self.critic, self.config.tau * norm.isfinite())
        metrics |= {"critic_grad_norm": norm}
        if actor:
            loss, of_the_actor = self.actor_loss(batch)
            norm = step(self.actor_optimizer, loss, allowed=norm.isfinite())
            metrics |= {**of_the_actor, "actor_grad_norm": norm}
        return metrics

    # State ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, _PARTS)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore(self, _PARTS, state)

    def load_pretrained(self, state: dict[str, Any], critic: bool, optimizers: bool) -> None:
        """Take over what pretraining made (flow and actor are loaded already): its critic, and Adam's state, when asked."""
        if critic:
            take_critic(self, state)
        if optimizers:
            take_moments(self.actor_optimizer, state["actor_optimizer"])
            if critic:
                take_moments(self.critic_optimizer, state["critic_optimizer"])


_PARTS = ("policy", "critic", "target_critic", "actor_optimizer", "critic_optimizer")
