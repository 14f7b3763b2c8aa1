"""Soft actor-critic from scratch in the manner of CrossQ (arXiv 1902.05605): batch renormalisation and no target network.

The policy may be a flow (SAC Flow from scratch, arXiv 2509.25756) or a Gaussian (SAC beside it): all that is asked of it is
`draw` and a differentiable `sample` with its log-density. Notation as in sac_flow.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from flowft import device, recipe
from flowft.algos.base import Metrics
from flowft.algos.optim import adam, step
from flowft.algos.parts import restore, state_of, td_loss, td_target
from flowft.data.spec import Batch
from flowft.policies import critic as critics
from flowft.policies import flow
from flowft.policies.base import Policy
from flowft.policies.gaussian import GaussianPolicy
from flowft.policies.policy import FlowPolicy, Sample
from flowft.policies.renorm_critic import RenormCritic


@dataclass(frozen=True)
class Config:
    """The algorithm's knobs, in the recipe's `train` section."""

    gamma: float = 0.99  # discount per environment step
    actor_learning_rate: float = 3e-4  # Adam's
    critic_learning_rate: float = 1e-3  # Adam's
    adam_beta1: float = 0.5  # of both; without a target network the targets move, and long momentum points to where they were
    renorm_momentum: float = 0.99  # share of themselves that the running statistics keep per batch
    renorm_warmup: int = 100_000  # updates with plain batch statistics before the running ones correct them
    alpha: float = 0.01  # initial temperature; recipes/README.md has what ten times as much costs
    alpha_learning_rate: float = 3e-4  # Adam's; 0: α stays as it is
    target_sigma: float | None = None  # target entropy, stated as the noise σ that has it; None: the published one of the policy's kind
    target_entropy: float | None = None  # the same as a number (nats, the squash counted); wins over target_sigma
    bonus: Literal["excess", "whole"] = "excess"  # what Q counts of the entropy: what exceeds the target, or all of it, as published

    def __post_init__(self) -> None:
        recipe.require(self, "gamma", above=0, most=1)
        recipe.require(self, "alpha", "target_sigma", above=0)
        recipe.require(self, "actor_learning_rate", "critic_learning_rate", "alpha_learning_rate", "renorm_warmup", least=0)
        for name in ("adam_beta1", "renorm_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")


class SoftPolicy(Protocol):
    """What the losses ask of a policy."""

    def draw(self, batch: int, stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]: ...

    def sample(self, observation: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor) -> Sample: ...


class CrossQ:
    """Actor, critic, temperature; every policy kind is a subclass that names it."""

    config_type = Config
    from_scratch = True  # learns from live steps alone: `flowft train`
    policy_kind: str
    published_sigma: float  # the noise whose entropy is the published target

    def __init__(self, policy: Policy, critic: critics.Config, config: Config, seed: int) -> None:
        self.policy, self.config = policy, config
        where = policy.normalizer.mean.device
        norm = config.renorm_momentum, config.renorm_warmup
        self.critic = RenormCritic(policy.spec.observation_dim, policy.latent_dim, critic, *norm).to(where)
        self.log_alpha = torch.tensor(config.alpha, device=where).log().requires_grad_()
        self.actor_optimizer = adam(policy.parameters(), config.actor_learning_rate, config.adam_beta1)
        self.critic_optimizer = adam(self.critic.parameters(), config.critic_learning_rate, config.adam_beta1)
        self.alpha_optimizer = adam([self.log_alpha], config.alpha_learning_rate)
        at_noise = self.entropy_at(self.published_sigma if config.target_sigma is None else config.target_sigma)
        self.target_entropy = at_noise if config.target_entropy is None else config.target_entropy
        self.stream = device.generator(where, seed)

    def entropy_at(self, sigma: float) -> float:
        """The entropy (nats) of this kind of policy with noise σ, where the squash is flat."""
        raise NotImplementedError

    @property
    def acting(self) -> Policy:
        """The policy that collects, is evaluated and is published."""
        return self.policy

    # Losses ---------------------------------------------------------------------------------------------------------

    def critic_loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Σ over members of (Q(s, a_{1:h}) − y)², y = Σ_{j<n} γ^j r_j + γ^n (1 − terminated)[min Q(s', a') − α(log p(a'|s') + H)].

        One pass over (s, a) and (s', a') together: both come from one normalisation, which is what makes the target network
        unnecessary. The target is a constant; the batch statistics, of which s' and a' are a part, are not. H is the target
        entropy or 0 (`bonus`): the K densities of a path have no natural zero, and a constant per step would decide whether
        living on pays.
        """
        with torch.no_grad():
            after = self._sample(batch.next_observation)
        states = self.policy.normalizer(torch.cat([batch.observation, batch.next_observation]))
        q, q_after = self.critic(states, torch.cat([batch.action, after.action]), learn=True).chunk(2, dim=-1)
        with torch.no_grad():
            entropy_zero = self.target_entropy if self.config.bonus == "excess" else 0.0
            value = q_after.amin(dim=0) - self.alpha * (after.log_prob + entropy_zero)
            target = td_target(batch, value, self.config.gamma)
        loss = td_loss(q, target, batch)
        return loss, {"critic_loss": loss.detach(), "q": q.detach().mean(), "q_target": target.mean()}

    def actor_loss(self, batch: Batch, draws: tuple[torch.Tensor, torch.Tensor] | None = None) -> tuple[torch.Tensor, Sample, Metrics]:
        """α log p − min Q(s, a^θ), by the running statistics: an actor's batch does not move the critic.

        `draws`: x_0 and ε; None: fresh ones.
        """
        own = self._sample(batch.observation, draws)
        q = self.critic(self.policy.normalizer(batch.observation), own.action, learn=False).amin(dim=0)
        loss = (self.alpha * own.log_prob - q).mean()
        return loss, own, {"actor_loss": loss.detach(), "actor_q": q.detach().mean(), "entropy": -own.log_prob.detach().mean()}

    def temperature_loss(self, log_prob: torch.Tensor) -> torch.Tensor:
        """α·(−log p − H_target), the squash counted: α falls while the entropy is above its target."""
        entropy = -log_prob.detach().mean()  # the policy's entropy is given; only α moves
        return self.log_alpha.exp() * (entropy - self.target_entropy)

    # Updates --------------------------------------------------------------------------------------------------------

    def update(self, batch: Batch, actor: bool = True) -> Metrics:
        """One critic step and, where `actor`, one step of the actor and the temperature. No host synchronisation."""
        loss, metrics = self.critic_loss(batch)
        norm = step(self.critic_optimizer, loss)
        metrics = {**metrics, "critic_grad_norm": norm}
        return metrics | self.update_actor(batch, norm.isfinite()) if actor else metrics

    def update_actor(self, batch: Batch, allowed: torch.Tensor | None = None) -> Metrics:
        """`allowed`: a bool on the device; where it is false nothing changes."""
        loss, own, metrics = self.actor_loss(batch)
        norm = step(self.actor_optimizer, loss, allowed=allowed)
        taken = norm.isfinite() if allowed is None else norm.isfinite() & allowed
        metrics["alpha_grad_norm"] = step(self.alpha_optimizer, self.temperature_loss(own.log_prob), allowed=taken)
        return {**metrics, "actor_grad_norm": norm, "alpha": self.alpha}

    @property
    def alpha(self) -> torch.Tensor:
        return self.log_alpha.detach().exp()

    def _sample(self, observation: torch.Tensor, draws: tuple[torch.Tensor, torch.Tensor] | None = None) -> Sample:
        policy: SoftPolicy = self.policy  # type: ignore[assignment]  # `policy_kind` is one that samples
        return policy.sample(observation, *(policy.draw(len(observation), self.stream) if draws is None else draws))

    # State ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, _PARTS) | {"log_alpha": self.log_alpha.detach().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore(self, _PARTS, state)
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])


class SACFlowScratch(CrossQ):
    """SAC Flow from scratch. At K = 4 the path of any chunk has the published target, 0 nats, where σ is 0.339."""

    policy_kind = "flow"
    through_rollout = True  # the actor's gradient passes through the flow steps: `diagnostics.gradients` can look at it
    published_sigma = 0.339
    policy: FlowPolicy

    def entropy_at(self, sigma: float) -> float:
        return flow.entropy_at_noise(sigma, self.policy.latent_dim, self.policy.config.steps)


class SACScratch(CrossQ):
    """SAC with a tanh-squashed Gaussian: the same algorithm, another policy. Its published target is −1 nat per action value."""

    policy_kind = "gaussian"
    published_sigma = 0.089
    policy: GaussianPolicy

    def entropy_at(self, sigma: float) -> float:
        return self.policy.latent_dim * (flow.HALF_LOG_2PI + 0.5 + math.log(sigma))


_PARTS = ("policy", "critic", "actor_optimizer", "critic_optimizer", "alpha_optimizer")
