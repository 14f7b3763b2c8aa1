"""QC-FQL: a behaviour flow, and a one-step actor distilled from it that follows Q (FQL, arXiv 2502.02538, over action
chunks as in Q-chunking, arXiv 2507.07969). With `policy.horizon=1` it is FQL itself.

Notation: s state, a_{1:h} action chunk, v_θ the behaviour flow's velocity, μ_ω the one-step actor, z ~ N(0, I).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flowft import recipe
from flowft.algos import actor_critic
from flowft.algos.actor_critic import ActorCritic, Pessimism, as_one
from flowft.algos.base import Metrics
from flowft.algos.flow_bc import flow_matching_loss, noise_and_time
from flowft.algos.optim import step
from flowft.data.spec import Batch
from flowft.policies.one_step import OneStepPolicy


@dataclass(frozen=True)
class Config(actor_critic.Config):
    """The knobs of every actor-critic (the actor's rate is flow's and actor's), and these."""

    alpha: float = 100.0  # distillation: the first knob to tune; smaller is freer. Mean over the chunk's values
    normalize_q: bool = False  # divide the actor's Q term by the batch's mean of |Q|, so that α does not depend on the rewards' scale
    pessimism: Pessimism = "mean"  # how the ensemble becomes one value in the target

    def __post_init__(self) -> None:
        super().__post_init__()
        recipe.require(self, "alpha", least=0)


class QCFQL(ActorCritic):
    """Pretraining and fine-tuning are the same update, offline and on the mixed replay (the published form)."""

    config_type = Config
    policy_kind = "one_step"
    defaults = {
        "policy": {"network": "mlp", "steps": 10},
        "finetune": {"offline_share": "uniform", "keep_optimizers": True},
    }
    policy: OneStepPolicy
    config: Config

    def critic_loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Σ over members of (Q(s, a_{1:h}) − y)², y = Σ_{j<n} γ^j r_j + γ^n (1 − terminated)·Q̄(s', μ_ω(s', z))."""
        with torch.no_grad():
            z, _ = self.policy.draw(len(batch.next_observation), self.stream)
            following = self.policy.action(self.policy.latent(batch.next_observation, z))
            value = as_one(self.target_critic(self.policy.normalizer(batch.next_observation), following), self.config.pessimism)
        return self.temporal_difference(batch, self.q(batch), value)

    def actor_loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Flow matching of v_θ + α‖μ_ω(s, z) − flow_θ(s, z)‖² − Q(s, μ_ω(s, z)).

        flow_θ is the end of K Euler steps from the same z, squashed; no gradient reaches θ through it.
        """
        matching = flow_matching_loss(self.policy.flow, batch, *noise_and_time(self.policy, len(batch.observation), self.stream))
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

    def update_actor(self, batch: Batch, allowed: torch.Tensor | None = None) -> Metrics:
        """One step of flow and actor."""
        loss, metrics = self.actor_loss(batch)
        return {**metrics, "actor_grad_norm": step(self.actor_optimizer, loss, allowed=allowed)}
