"""QC, Q-chunking with best-of-N (arXiv 2507.07969): a behaviour flow, and Q that chooses among N of its chunks.

There is no other actor: policy improvement is a* = argmax_i Q(s, a_i), a_i ~ flow_θ(s), in acting and in the target alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flowft.algos import actor_critic
from flowft.algos.actor_critic import ActorCritic, Pessimism, as_one
from flowft.algos.base import Metrics
from flowft.algos.flow_bc import flow_matching_loss
from flowft.algos.optim import step
from flowft.data.spec import Batch
from flowft.policies import critic as critics
from flowft.policies.best_of_n import BestOfNPolicy


@dataclass(frozen=True)
class Config(actor_critic.Config):
    """The knobs of every actor-critic (the actor's rate is the flow's), and these. N is `policy.candidates`."""

    pessimism: Pessimism = "mean"  # how the ensemble becomes one value in the target; the choice among N is by its mean


class QC(ActorCritic):
    """Pretraining and fine-tuning are the same update, offline and on the mixed replay (the published form)."""

    config_type = Config
    policy_kind = "best_of_n"
    every_update_acts = True  # an update of the critic alone changes the policy
    defaults = {
        "policy": {"network": "mlp", "steps": 10},
        "finetune": {"offline_share": "uniform", "keep_optimizers": True},
    }
    policy: BestOfNPolicy
    config: Config

    def __init__(self, policy: BestOfNPolicy, critic: critics.Config, config: Config, seed: int) -> None:
        self.critic_config = critic
        super().__init__(policy, critic, config, seed)

    def make_critic(self, critic: critics.Config) -> nn.Module:
        """The policy's own: it acts."""
        return self.policy.critic

    def actor_parameters(self) -> Iterable[nn.Parameter]:
        return self.policy.flow.parameters()

    def critic_loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Σ over members of (Q(s, a_{1:h}) − y)², y = Σ_{j<n} γ^j r_j + γ^n (1 − terminated)·Q̄(s', argmax_i Q(s', a_i'))."""
        with torch.no_grad():
            x0, _ = self.policy.draw(len(batch.next_observation), self.stream)
            following = self.policy.best(batch.next_observation, x0)
            value = as_one(self.target_critic(self.policy.normalizer(batch.next_observation), following), self.config.pessimism)
        return self.temporal_difference(batch, self.q(batch), value)

    def update_actor(self, batch: Batch, allowed: torch.Tensor | None = None) -> Metrics:
        """One flow-matching step."""
        x0 = torch.randn(len(batch.observation), self.policy.latent_dim, generator=self.stream, device=self.stream.device)
        t = torch.rand(len(x0), 1, generator=self.stream, device=x0.device)
        loss = flow_matching_loss(self.policy.flow, batch, x0, t)
        return {"flow_matching_loss": loss.detach(), "actor_grad_norm": step(self.actor_optimizer, loss, allowed=allowed)}

    def load_pretrained(self, state: dict[str, Any], critic: bool, optimizers: bool) -> None:
        """The policy came with its critic; without `critic` that one starts anew."""
        super().load_pretrained(state, critic, optimizers)
        if not critic:
            fresh = critics.Critic(self.policy.spec.observation_dim, self.policy.latent_dim, self.critic_config)
            self.critic.load_state_dict(fresh.state_dict())
            self.target_critic.load_state_dict(fresh.state_dict())
