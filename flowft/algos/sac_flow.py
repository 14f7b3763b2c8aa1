"""SAC Flow (arXiv 2509.25756): soft actor-critic through a flow policy's noise-augmented rollout.

Read top to bottom: the settings, the critic's loss, the actor's, the temperature's, then how an update applies them.
Notation: s state, a_{1:h} action chunk, p_c path density of the rollout, Q an ensemble, Q̄ its moving average.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from flowft import device, recipe
from flowft.algos.base import Metrics
from flowft.algos.flow_bc import flow_matching_loss, masked_mean
from flowft.algos.optim import adam, average, step
from flowft.algos.parts import Pessimism, as_one, restore, state_of, take_critic, take_moments, td_loss, td_target
from flowft.algos.trust_region import TrustRegion
from flowft.data.spec import Batch
from flowft.policies import critic as critics
from flowft.policies import flow
from flowft.policies.policy import FlowPolicy, Sample


@dataclass(frozen=True)
class Config:
    """The algorithm's knobs, in the recipe's `pretrain` and `finetune` sections."""

    beta: float = 300.0  # β, behaviour regularisation: the first knob to tune; smaller is freer
    beta_units: Literal["mean", "sum"] = "mean"  # mean over the chunk's values (a β then means the same at any h) or the paper's sum
    beta_on: Literal["all", "demonstrations"] = "all"  # which chunks pull: all replayed ones, as published, or only demonstrations
    radius: float | None = 0.05  # how far (RMS per action value) the actor may be from its anchor; None: no trust region
    anchor_rate: float = 0.002  # the anchor follows the actor by this share per actor update
    act_with: Literal["actor", "average"] = "average"  # who acts and is evaluated: the actor, or its moving average, the anchor
    least_strength: float = 0.0  # λ never falls below this; 0 lets it vanish while the actor moves little (see recipes/README.md)
    gamma: float = 0.99  # discount per environment step
    tau: float = 0.005  # Q̄ <- (1 − τ)·Q̄ + τ·Q per update
    pessimism: Pessimism = "min"  # how the ensemble becomes one value
    actor_learning_rate: float = 3e-4  # Adam's
    critic_learning_rate: float = 3e-4  # Adam's
    max_grad_norm: float | None = None  # longer gradients of actor and critic are scaled down to this norm; None: never
    alpha: float = 0.0  # initial temperature; 0: no entropy term (a fixed σ gives it almost nothing to act on)
    alpha_learning_rate: float = 3e-4  # 0: α stays as it is
    target_sigma: float = 0.1  # target entropy, stated as the step noise σ that has it
    target_entropy: float | None = None  # the same as a number (nats, before the squash term); wins over target_sigma

    def __post_init__(self) -> None:
        recipe.require(self, "beta", "alpha", "least_strength", least=0)
        recipe.require(self, "actor_learning_rate", "critic_learning_rate", "alpha_learning_rate", least=0)
        recipe.require(self, "tau", "anchor_rate", least=0, most=1)
        recipe.require(self, "gamma", above=0, most=1)
        recipe.require(self, "target_sigma", above=0)
        if self.radius is not None and self.radius <= 0:
            raise ValueError(f"radius is {self.radius}; it must be positive, or null for no trust region")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm}; it must be positive, or null for no clipping")


class SACFlow:
    """Actor, critic, temperature; `clone` for pretraining, `update` for reinforcement learning."""

    config_type = Config
    policy_kind = "flow"
    through_rollout = True  # the actor's gradient passes through the flow steps: `diagnostics.gradients` can look at it
    # The smaller of two is no brake where Q is optimistic: with 2 members PickPlaceCan falls, with 6 it rises (recipes/README.md).
    defaults: ClassVar[dict[str, Any]] = {"critic": {"ensemble": 6}}

    def __init__(self, policy: FlowPolicy, critic: critics.Config, config: Config, seed: int) -> None:
        self.policy, self.config = policy, config
        where = policy.normalizer.mean.device
        self.critic = critics.Critic(policy.spec.observation_dim, policy.latent_dim, critic).to(where)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = torch.tensor(max(config.alpha, 1e-8), device=where).log().requires_grad_()
        self.trust_region: TrustRegion | None = None
        if config.radius is not None or config.act_with == "average":
            self.trust_region = TrustRegion(policy, config.radius, config.anchor_rate, config.least_strength)
        self.actor_optimizer = adam(policy.parameters(), config.actor_learning_rate)
        self.critic_optimizer = adam(self.critic.parameters(), config.critic_learning_rate)
        self.alpha_optimizer = adam([self.log_alpha], config.alpha_learning_rate)
        at_noise = flow.entropy_at_noise(config.target_sigma, policy.latent_dim, policy.config.steps)
        self.target_entropy = at_noise if config.target_entropy is None else config.target_entropy
        self.stream = device.generator(where, seed)

    @property
    def acting(self) -> FlowPolicy:
        """The policy that collects, is evaluated and is published. A single bad update does not show in the average."""
        if self.config.act_with == "average" and self.trust_region is not None:
            return self.trust_region.anchor
        return self.policy

    # Losses ---------------------------------------------------------------------------------------------------------

    def critic_loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Σ over members of (Q(s, a_{1:h}) − y)², y = Σ_{j<n} γ^j r_j + γ^n (1 − terminated)[Q̄(s', a') − α log p_c(a'|s')].

        a' comes from the same noisy rollout as the actor's loss and the behaviour. n = h (or `n_step`) but for a chunk that
        ends in a terminal state; a chunk cut short by truncation does not count.
        """
        with torch.no_grad():
            after = self._rollout(batch.next_observation)
            value = self._pessimistic(self.target_critic(self._state(batch.next_observation), after.action)) - self.alpha * after.log_prob
            target = td_target(batch, value, self.config.gamma)
        q = self.critic(self._state(batch.observation), batch.action)  # (ensemble, batch)
        loss = td_loss(q, target, batch)
        return loss, {"critic_loss": loss.detach(), "q": q.detach().mean(), "q_target": target.mean()}

    def actor_loss(self, batch: Batch, draws: tuple[torch.Tensor, torch.Tensor] | None = None) -> tuple[torch.Tensor, Sample, Metrics]:
        """α log p_c − Q(s, a^θ) + β‖a^θ − a_D‖² (+ λ‖a^θ − a^anchor‖², the trust region), over valid chunk steps.

        `draws`: x_0 and ε of the rollout; without them fresh ones.
        """
        x0, noise = draws or self.policy.draw(len(batch.observation), self.stream)
        own = self.policy.sample(batch.observation, x0, noise)
        q = self._pessimistic(self.critic(self._state(batch.observation), own.action))
        behaviour = self._behaviour_distance(own, batch)
        loss = (self.alpha * own.log_prob - q).mean() + self.config.beta * behaviour
        metrics = {"actor_q": q.detach().mean(), "behaviour_distance": behaviour.detach(), "entropy": -own.path_log_prob.detach().mean()}
        if self.trust_region is not None and self.config.radius is not None:
            penalty, distance = self.trust_region.penalty(batch, own, x0, noise)
            loss = loss + penalty
            metrics |= {"anchor_distance": distance, "trust_lambda": self.trust_region.strength}
        return loss, own, {"actor_loss": loss.detach(), **metrics}

    def temperature_loss(self, path_log_prob: torch.Tensor) -> torch.Tensor:
        """α·(−log p_c − H_target): α falls while the entropy is above its target. Both before the squash term."""
        entropy = -path_log_prob.detach().mean()  # the policy's entropy is given; only α moves
        return self.log_alpha.exp() * (entropy - self.target_entropy)

    # Updates --------------------------------------------------------------------------------------------------------

    def clone(self, batch: Batch) -> Metrics:
        """Pretraining: one flow-matching step of the actor and one step of the critic, both on the dataset."""
        x0, _ = self.policy.draw(len(batch.observation), self.stream)
        t = torch.rand(len(x0), 1, generator=self.stream, device=x0.device)
        loss = flow_matching_loss(self.policy, batch, x0, t)
        norm = step(self.actor_optimizer, loss, self.config.max_grad_norm)
        if self.trust_region is not None:
            self.trust_region.centre()
        return {"flow_matching_loss": loss.detach(), "actor_grad_norm": norm, **self.update_critic(batch)}

    def update(self, batch: Batch, actor: bool = True) -> Metrics:
        """One critic step and, where `actor`, one step of the actor and the temperature. No host synchronisation.

        Where the critic's loss or gradient is not finite nothing of this update happens, where the actor's is not, nothing
        of the actor's part; the metrics ending in `_loss` and `_grad_norm` tell.
        """
        metrics = self.update_critic(batch)
        return metrics | self.update_actor(batch, metrics["critic_grad_norm"].isfinite()) if actor else metrics

    def update_critic(self, batch: Batch) -> Metrics:
        loss, metrics = self.critic_loss(batch)
        norm = step(self.critic_optimizer, loss, self.config.max_grad_norm)
        with torch.no_grad():
            average(self.target_critic, self.critic, self.config.tau * norm.isfinite())
        return {**metrics, "critic_grad_norm": norm}

    def update_actor(self, batch: Batch, allowed: torch.Tensor | None = None) -> Metrics:
        """`allowed`: a bool on the device; where it is false nothing changes."""
        loss, own, metrics = self.actor_loss(batch)
        norm = step(self.actor_optimizer, loss, self.config.max_grad_norm, allowed)
        taken = norm.isfinite() if allowed is None else norm.isfinite() & allowed
        if self.trust_region is not None:
            self.trust_region.update(metrics.get("anchor_distance"), taken)
        if self.config.alpha > 0 and self.config.alpha_learning_rate > 0:
            metrics["alpha_grad_norm"] = step(self.alpha_optimizer, self.temperature_loss(own.path_log_prob), allowed=taken)
        return {**metrics, "actor_grad_norm": norm, "alpha": self.alpha}

    @property
    def alpha(self) -> torch.Tensor:
        """The temperature; exactly 0 when the entropy term is off."""
        return self.log_alpha.detach().exp() if self.config.alpha > 0 else self.log_alpha.new_zeros(())

    # Pieces ---------------------------------------------------------------------------------------------------------

    def _rollout(self, observation: torch.Tensor) -> Sample:
        return self.policy.sample(observation, *self.policy.draw(len(observation), self.stream))

    def _state(self, observation: torch.Tensor) -> torch.Tensor:
        state: torch.Tensor = self.policy.normalizer(observation)
        return state

    def _pessimistic(self, q: torch.Tensor) -> torch.Tensor:
        return as_one(q, self.config.pessimism)

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
        state = state_of(self, _PARTS) | {"log_alpha": self.log_alpha.detach().clone()}
        return state | ({"trust_region": self.trust_region.state_dict()} if self.trust_region else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore(self, _PARTS, state)
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        if self.trust_region is not None and "trust_region" in state:
            self.trust_region.load_state_dict(state["trust_region"])

    def load_pretrained(self, state: dict[str, Any], critic: bool, optimizers: bool) -> None:
        """Take over what pretraining made (the policy is loaded already): its critic, and Adam's state, when asked."""
        if critic:
            take_critic(self, state)
        if optimizers:
            take_moments(self.actor_optimizer, state["actor_optimizer"])
            if critic:
                take_moments(self.critic_optimizer, state["critic_optimizer"])


_PARTS = ("policy", "critic", "target_critic", "actor_optimizer", "critic_optimizer", "alpha_optimizer")
