"""SAC Flow (arXiv 2509.25756): soft actor-critic through a flow policy's noise-augmented rollout.

Read top to bottom: the settings, the critic's loss, the actor's, the temperature's, then cloning.
Notation: s state, a_{1:h} action chunk, p_c path density of the rollout, Q an ensemble, Q̄ its moving average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from flowft import recipe
from flowft.algos import actor_critic
from flowft.algos.actor_critic import Pessimism, as_one
from flowft.algos.base import Draws, Metrics, Part, ThroughRollout
from flowft.algos.flow_bc import flow_matching_loss, masked_mean, noise_and_time
from flowft.algos.optim import step
from flowft.algos.soft_actor_critic import SoftActorCritic
from flowft.algos.trust_region import TrustRegion
from flowft.data.spec import Batch
from flowft.policies import critic as critics
from flowft.policies import flow
from flowft.policies.policy import FlowPolicy, Sample


@dataclass(frozen=True)
class Config(actor_critic.Config):
    """The knobs of every actor-critic, and these."""

    beta: float = 300.0  # β, behaviour regularisation: the first knob to tune; smaller is freer
    beta_units: Literal["mean", "sum"] = "mean"  # mean over the chunk's values (a β then means the same at any h) or the paper's sum
    beta_on: Literal["all", "demonstrations"] = "all"  # which chunks pull: all replayed ones, as published, or only demonstrations
    radius: float | None = 0.05  # how far (RMS per action value) the actor may be from its anchor; None: no trust region
    anchor_rate: float = 0.002  # the anchor follows the actor by this share per actor update
    act_with: Literal["actor", "average"] = "average"  # who acts and is evaluated: the actor, or its moving average, the anchor
    least_strength: float = 0.0  # λ never falls below this; 0 lets it vanish while the actor moves little (see recipes/scripted/can.md)
    pessimism: Pessimism = "min"  # how the ensemble becomes one value
    max_grad_norm: float | None = None  # longer gradients of actor and critic are scaled down to this norm; None: never
    alpha: float = 0.0  # initial temperature; 0: no entropy term (a fixed σ gives it almost nothing to act on)
    alpha_learning_rate: float = 3e-4  # 0: α stays as it is
    target_sigma: float = 0.1  # target entropy, stated as the step noise σ that has it
    target_entropy: float | None = None  # the same as a number (nats, before the squash term); wins over target_sigma

    def __post_init__(self) -> None:
        super().__post_init__()
        recipe.require(self, "beta", "alpha", "least_strength", "alpha_learning_rate", least=0)
        recipe.require(self, "anchor_rate", least=0, most=1)
        recipe.require(self, "target_sigma", above=0)
        for name, off in (("radius", "trust region"), ("max_grad_norm", "clipping")):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be positive, or null for no {off}")

    def slower(self, part: Part) -> dict[str, float]:
        norm = {"max_grad_norm": (self.max_grad_norm or 100) / 10} if part != "alpha" else {}
        return super().slower(part) | norm


class SACFlow(SoftActorCritic, ThroughRollout):
    """Actor, critic, temperature; `clone` for pretraining, `update` for reinforcement learning."""

    config_type = Config
    policy_kind = "flow"
    # The smaller of two is no brake where Q is optimistic: with 2 members PickPlaceCan falls, with 6 it rises (recipes/scripted/can.md).
    defaults = {"critic": {"ensemble": 6}}
    policy: FlowPolicy
    config: Config

    def __init__(self, policy: FlowPolicy, critic: critics.Config, config: Config, seed: int) -> None:
        super().__init__(policy, critic, config, seed, config.alpha, config.alpha_learning_rate)
        self.max_grad_norm, self.learns_alpha = config.max_grad_norm, config.alpha > 0 and config.alpha_learning_rate > 0
        self.trust_region: TrustRegion | None = None
        if config.radius is not None or config.act_with == "average":
            self.trust_region = TrustRegion(policy, config.radius, config.anchor_rate, config.least_strength)
        at_noise = flow.entropy_at_noise(config.target_sigma, policy.latent_dim, policy.config.steps)
        self.target_entropy = at_noise if config.target_entropy is None else config.target_entropy

    @property
    def acting(self) -> FlowPolicy:
        """A single bad update does not show in the average."""
        if self.config.act_with == "average" and self.trust_region is not None:
            return self.trust_region.anchor
        return self.policy

    @property
    def alpha(self) -> torch.Tensor:
        """The temperature; exactly 0 when the entropy term is off."""
        return super().alpha if self.config.alpha > 0 else self.log_alpha.new_zeros(())

    # Losses ---------------------------------------------------------------------------------------------------------

    def critic_loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Σ over members of (Q(s, a_{1:h}) − y)², y = Σ_{j<n} γ^j r_j + γ^n (1 − terminated)[Q̄(s', a') − α log p_c(a'|s')].

        a' comes from the same noisy rollout as the actor's loss and the behaviour.
        """
        with torch.no_grad():
            after = self._sample(batch.next_observation)
            q_after = self.target_critic(self.policy.normalizer(batch.next_observation), after.action)
            value = as_one(q_after, self.config.pessimism) - self.alpha * after.log_prob
        return self.temporal_difference(batch, self.q(batch), value)

    def actor_loss(self, batch: Batch, draws: Draws | None = None) -> tuple[torch.Tensor, Sample, Metrics]:
        """α log p_c − Q(s, a^θ) + β‖a^θ − a_D‖² (+ λ‖a^θ − a^anchor‖², the trust region), over valid chunk steps."""
        x0, noise = draws or self.policy.draw(len(batch.observation), self.stream)
        own = self.policy.sample(batch.observation, x0, noise)
        q = as_one(self.critic(self.policy.normalizer(batch.observation), own.action), self.config.pessimism)
        behaviour = self._behaviour_distance(own, batch)
        loss = (self.alpha * own.log_prob - q).mean() + self.config.beta * behaviour
        metrics = {"actor_q": q.detach().mean(), "behaviour_distance": behaviour.detach(), "entropy": -own.path_log_prob.detach().mean()}
        if self.trust_region is not None and self.config.radius is not None:
            penalty, distance = self.trust_region.penalty(batch, own, x0, noise)
            loss = loss + penalty
            metrics |= {"anchor_distance": distance, "trust_lambda": self.trust_region.strength}
        return loss, own, {"actor_loss": loss.detach(), **metrics}

    def log_density(self, own: Sample) -> torch.Tensor:
        """log p_c before the squash term, as the target entropy is."""
        return own.path_log_prob

    def clone(self, batch: Batch) -> Metrics:
        """One flow-matching step of the actor and one step of the critic, both on the dataset."""
        loss = flow_matching_loss(self.policy, batch, *noise_and_time(self.policy, len(batch.observation), self.stream))
        norm = step(self.actor_optimizer, loss, self.max_grad_norm)
        if self.trust_region is not None:
            self.trust_region.centre(norm.isfinite())
        return {"flow_matching_loss": loss.detach(), "actor_grad_norm": norm, **self.update_critic(batch)}

    # Pieces ---------------------------------------------------------------------------------------------------------

    def follow(self, metrics: Metrics, taken: torch.Tensor) -> None:
        """The anchor follows the actor, and λ the distance between them."""
        if self.trust_region is not None:
            self.trust_region.update(metrics.get("anchor_distance"), taken)

    def _behaviour_distance(self, own: Sample, batch: Batch) -> torch.Tensor:
        """‖a^θ − a_D‖² over valid steps. Under the clip squash a^θ is taken before the clip, where it has a gradient."""
        mine = self.policy.chunk(own.latent) if self.policy.config.squash == "clip" else own.action
        squared = (mine - batch.action).square()
        if self.config.beta_on == "demonstrations":  # the rest of the batch counts as zeros: each chunk's pull stays what it was
            squared = squared * batch.offline[:, None, None]
        if self.config.beta_units == "mean":
            return masked_mean(squared, batch.valid)
        return (squared * batch.valid.unsqueeze(-1)).sum(dim=(1, 2)).mean()

    # State ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({"trust_region": self.trust_region.state_dict()} if self.trust_region else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.trust_region is not None and "trust_region" in state:
            self.trust_region.load_state_dict(state["trust_region"])
