"""QC, Q-chunking with best-of-N (arXiv 2507.07969): a behaviour flow, and Q that chooses among N of its chunks.

There is no other actor: policy improvement is a* = argmax_i Q(s, a_i), a_i ~ flow_θ(s), in acting and in the target alike.
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
from flowft.policies.best_of_n import BestOfNPolicy


@dataclass(frozen=True)
class Config:
    """The algorithm's knobs, in the recipe's `pretrain` and `finetune` sections. N is `policy.candidates`."""

    gamma: float = 0.99  # discount per environment step
    tau: float = 0.005  # Q̄ <- (1 − τ)·Q̄ + τ·Q per update
    pessimism: Pessimism = "mean"  # how the ensemble becomes one value in the target; the choice among N is by its mean
    actor_learning_rate: float = 3e-4  # Adam's, of the flow
    critic_learning_rate: float = 3e-4  # Adam's

    def __post_init__(self) -> None:
        recipe.require(self, "gamma", above=0, most=1)
        recipe.require(self, "tau", least=0, most=1)
        recipe.require(self, "actor_learning_rate", "critic_learning_rate", least=0)


class QC:
    """Pretraining and fine-tuning are the same update, offline and on the mixed replay."""

    config_type = Config
    policy_kind = "best_of_n"
    every_update_acts = True  # an update of the critic alone changes the policy
    defaults: ClassVar[dict[str, Any]] = {
        "policy": {"network": "mlp", "steps": 10},
        "finetune": {"offline_share": "uniform", "keep_optimizers": True},
    }

    def __init__(self, policy: BestOfNPolicy, critic: critics.Config, config: Config, seed: int) -> None:
        """The critic is the policy's own: it acts."""
        self.policy, self.config, self.critic_config = policy, config, critic
        where = policy.normalizer.mean.device
        self.critic = policy.critic
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.actor_optimizer = adam(policy.flow.parameters(), config.actor_learning_rate)
        self.critic_optimizer = adam(self.critic.parameters(), config.critic_learning_rate)
        self.stream = device.generator(where, seed)

    @property
    def acting(self) -> BestOfNPolicy:
        """The policy that collects, is evaluated and is published."""
        return self.policy

    # Losses ---------------------------------------------------------------------------------------------------------

    def critic_loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Σ over members of (Q(s, a_{1:h}) − y)², y = Σ_{j<n} γ^j r_j + γ^n (1 − terminated)·Q̄(s', argmax_i Q(s', a_i'))."""
        with torch.no_grad():
            x0, _ = self.policy.draw(len(batch.next_observation), self.stream)
            following = self.policy.best(batch.next_observation, x0)
            value = as_one(self.target_critic(self.policy.normalizer(batch.next_observation), following), self.config.pessimism)
            target = td_target(batch, value, self.config.gamma)
        q = self.critic(self.policy.normalizer(batch.observation), batch.action)  # (ensemble, batch)
        loss = td_loss(q, target, batch)
        return loss, {"critic_loss": loss.detach(), "q": q.detach().mean(), "q_target": target.mean()}

    # Updates --------------------------------------------------------------------------------------------------------

    def clone(self, batch: Batch) -> Metrics:
        """Pretraining is the whole of it, on the dataset (the published form)."""
        return self.update(batch)

    def update(self, batch: Batch, actor: bool = True) -> Metrics:
        """One critic step and, where `actor`, one flow-matching step. No host synchronisation."""
        loss, metrics = self.critic_loss(batch)
        norm = step(self.critic_optimizer, loss)
        with torch.no_grad():
            average(self.target_critic, self.critic, self.config.tau * norm.isfinite())
        metrics |= {"critic_grad_norm": norm}
        if actor:
            x0 = torch.randn(len(batch.observation), self.policy.latent_dim, generator=self.stream, device=self.stream.device)
            t = torch.rand(len(x0), 1, generator=self.stream, device=x0.device)
            loss = flow_matching_loss(self.policy.flow, batch, x0, t)
            norm = step(self.actor_optimizer, loss, allowed=norm.isfinite())
            metrics |= {"flow_matching_loss": loss.detach(), "actor_grad_norm": norm}
        return metrics

    # State ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, _PARTS)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore(self, _PARTS, state)

    def load_pretrained(self, state: dict[str, Any], critic: bool, optimizers: bool) -> None:
        """Take over what pretraining made. The policy came with its critic; without `critic` that one starts anew."""
        if critic:
            take_critic(self, state)
        else:
            fresh = critics.Critic(self.policy.spec.observation_dim, self.policy.latent_dim, self.critic_config)
            self.critic.load_state_dict(fresh.state_dict())
            self.target_critic.load_state_dict(fresh.state_dict())
        if optimizers:
            take_moments(self.actor_optimizer, state["actor_optimizer"])
            if critic:
                take_moments(self.critic_optimizer, state["critic_optimizer"])


_PARTS = ("policy", "critic", "target_critic", "actor_optimizer", "critic_optimizer")
