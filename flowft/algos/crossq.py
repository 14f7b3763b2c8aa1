"""Soft actor-critic from scratch in the manner of CrossQ (arXiv 1902.05605): batch renormalisation and no target network.

The policy may be a flow (SAC Flow from scratch, arXiv 2509.25756) or a Gaussian (SAC beside it): all that is asked of it is
`draw` and a differentiable `sample` with its log-density. Notation as in sac_flow.py.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from flowft import recipe
from flowft.algos import actor_critic
from flowft.algos.base import Draws, Metrics, ThroughRollout
from flowft.algos.optim import adam
from flowft.algos.soft_actor_critic import SoftActorCritic
from flowft.data.spec import Batch
from flowft.policies import critic as critics
from flowft.policies import flow
from flowft.policies.base import Policy
from flowft.policies.gaussian import GaussianPolicy
from flowft.policies.policy import FlowPolicy, Sample
from flowft.policies.renorm_critic import RenormCritic


@dataclass(frozen=True)
class Config(actor_critic.WithoutTarget):
    """The knobs of an actor-critic without target network, in the recipe's `train` section, and these."""

    critic_learning_rate: float = 1e-3  # Adam's
    adam_beta1: float = 0.5  # of both; without a target network the targets move, and long momentum points to where they were
    renorm_momentum: float = 0.99  # share of themselves that the running statistics keep per batch
    renorm_warmup: int = 100_000  # updates with plain batch statistics before the running ones correct them
    alpha: float = 0.01  # initial temperature; recipes/scratch/halfcheetah.md has what ten times as much costs
    alpha_learning_rate: float = 3e-4  # Adam's; 0: α stays as it is
    target_sigma: float | None = None  # target entropy, stated as the noise σ that has it; None: the published one of the policy's kind
    target_entropy: float | None = None  # the same as a number (nats, the squash counted); wins over target_sigma
    bonus: Literal["excess", "whole"] = "excess"  # what Q counts of the entropy: what exceeds the target, or all of it, as published

    def __post_init__(self) -> None:
        super().__post_init__()
        recipe.require(self, "alpha", "target_sigma", above=0)
        recipe.require(self, "alpha_learning_rate", "renorm_warmup", least=0)
        for name in ("adam_beta1", "renorm_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")


class CrossQ(SoftActorCritic):
    """Actor, critic, temperature; every policy kind is a subclass that names it."""

    config_type = Config
    from_scratch = True  # learns from live steps alone: `flowft train`
    published_sigma: float  # the noise whose entropy is the published target
    config: Config

    def __init__(self, policy: Policy, critic: critics.Config, config: Config, seed: int) -> None:
        super().__init__(policy, critic, config, seed, config.alpha, config.alpha_learning_rate)
        at_noise = self.entropy_at(self.published_sigma if config.target_sigma is None else config.target_sigma)
        self.target_entropy = at_noise if config.target_entropy is None else config.target_entropy

    def make_critic(self, critic: critics.Config) -> nn.Module:
        norm = self.config.renorm_momentum, self.config.renorm_warmup
        made = RenormCritic(self.policy.spec.observation_dim, self.policy.latent_dim, critic, *norm)
        return made.to(self.policy.normalizer.mean.device)

    def make_optimizer(self, parameters: Iterable[torch.Tensor], learning_rate: float) -> torch.optim.Adam:
        return adam(parameters, learning_rate, self.config.adam_beta1)

    @abstractmethod
    def entropy_at(self, sigma: float) -> float:
        """The entropy (nats) of this kind of policy with noise σ, where the squash is flat."""

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
        return self.temporal_difference(batch, q, value)

    def actor_loss(self, batch: Batch, draws: Draws | None = None) -> tuple[torch.Tensor, Sample, Metrics]:
        """α log p − min Q(s, a^θ), by the running statistics: an actor's batch does not move the critic."""
        own = self._sample(batch.observation, draws)
        q = self.critic(self.policy.normalizer(batch.observation), own.action, learn=False).amin(dim=0)
        loss = (self.alpha * own.log_prob - q).mean()
        return loss, own, {"actor_loss": loss.detach(), "actor_q": q.detach().mean(), "entropy": -own.log_prob.detach().mean()}


class SACFlowScratch(CrossQ, ThroughRollout):
    """SAC Flow from scratch. At K = 4 the path of any chunk has the published target, 0 nats, where σ is 0.339."""

    policy_kind = "flow"
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
