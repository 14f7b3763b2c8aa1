"""RLPD (arXiv 2302.02948): soft actor-critic of a Gaussian on half demonstrations, half live steps, with a large ensemble.

Its other parts are settings of the loop and the networks: the half is `finetune.offline_share`, the high update ratio
`finetune.updates_per_step`, the layer norm is every critic's, the ensemble `critic.ensemble`. Published, it starts from
nothing and on single actions: `pretrain.clone_actor=false finetune.random_steps=5000 policy.horizon=1` does that. The defaults
clone the actor, and the chunk is as long as for everything else.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from flowft import device, recipe
from flowft.algos.base import Metrics
from flowft.algos.flow_bc import masked_mean
from flowft.algos.optim import adam, average, step
from flowft.algos.parts import restore, state_of, take_critic, take_moments, td_loss, td_target
from flowft.data.spec import Batch
from flowft.errors import UsageError
from flowft.policies import critic as critics
from flowft.policies.gaussian import GaussianPolicy
from flowft.policies.policy import Sample


@dataclass(frozen=True)
class Config:
    """The algorithm's knobs, in the recipe's `pretrain` and `finetune` sections."""

    clone_actor: bool = True  # pretraining: maximum likelihood for the actor, TD for the critic; False: nothing learns
    subset: int = 2  # members, drawn anew for each target, whose minimum it takes
    gamma: float = 0.99  # discount per environment step
    tau: float = 0.005  # Q̄ <- (1 − τ)·Q̄ + τ·Q per update
    actor_learning_rate: float = 3e-4  # Adam's
    critic_learning_rate: float = 3e-4  # Adam's
    alpha: float = 1.0  # initial temperature
    alpha_learning_rate: float = 3e-4  # 0: α stays as it is
    target_entropy: float | None = None  # nats per chunk, after the tanh; None: −D/2, D the chunk's values
    entropy_in_target: bool = False  # whether the critic's target counts the next chunk's entropy; published: not for sparse rewards

    def __post_init__(self) -> None:
        recipe.require(self, "subset", least=1)
        recipe.require(self, "alpha", above=0)
        recipe.require(self, "gamma", above=0, most=1)
        recipe.require(self, "tau", least=0, most=1)
        recipe.require(self, "actor_learning_rate", "critic_learning_rate", "alpha_learning_rate", least=0)


class RLPD:
    """Actor, ensemble, temperature."""

    config_type = Config
    policy_kind = "gaussian"
    defaults: ClassVar[dict[str, Any]] = {"critic": {"ensemble": 10}}

    def __init__(self, policy: GaussianPolicy, critic: critics.Config, config: Config, seed: int) -> None:
        if config.subset > critic.ensemble:
            raise UsageError(f"subset is {config.subset}, of an ensemble of {critic.ensemble}", f"--set critic.ensemble={config.subset}")
        self.policy, self.config = policy, config
        where = policy.normalizer.mean.device
        self.critic = critics.Critic(policy.spec.observation_dim, policy.latent_dim, critic).to(where)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = torch.tensor(config.alpha, device=where).log().requires_grad_()
        self.actor_optimizer = adam(policy.parameters(), config.actor_learning_rate)
        self.critic_optimizer = adam(self.critic.parameters(), config.critic_learning_rate)
        self.alpha_optimizer = adam([self.log_alpha], config.alpha_learning_rate)
        self.target_entropy = -policy.latent_dim / 2 if config.target_entropy is None else config.target_entropy
        self.stream = device.generator(where, seed)

    @property
    def acting(self) -> GaussianPolicy:
        """The policy that collects, is evaluated and is published."""
        return self.policy

    @property
    def alpha(self) -> torch.Tensor:
        """The temperature."""
        return self.log_alpha.detach().exp()

    # Losses ---------------------------------------------------------------------------------------------------------

    def critic_loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Σ over members of (Q(s, a_{1:h}) − y)², y = Σ_{j<n} γ^j r_j + γ^n (1 − terminated)[min_{i∈M} Q̄_i(s', a') − α log π(a'|s')].

        M is a random subset of the ensemble (REDQ, arXiv 2101.05982).
        """
        with torch.no_grad():
            after = self._sample(batch.next_observation)
            members = torch.randperm(self.critic.ensemble, generator=self.stream, device=self.stream.device)[: self.config.subset]
            value = self.target_critic(self.policy.normalizer(batch.next_observation), after.action, members).amin(dim=0)
            if self.config.entropy_in_target:
                value = value - self.alpha * after.log_prob
            target = td_target(batch, value, self.config.gamma)
        q = self.critic(self.policy.normalizer(batch.observation), batch.action)  # (ensemble, batch)
        loss = td_loss(q, target, batch)
        return loss, {"critic_loss": loss.detach(), "q": q.detach().mean(), "q_target": target.mean()}

    def actor_loss(self, batch: Batch) -> tuple[torch.Tensor, Sample, Metrics]:
        """α log π(a|s) − Q(s, a), Q the mean of all members."""
        own = self._sample(batch.observation)
        q = self.critic(self.policy.normalizer(batch.observation), own.action).mean(dim=0)
        loss = (self.alpha * own.log_prob - q).mean()
        return loss, own, {"actor_loss": loss.detach(), "actor_q": q.detach().mean(), "entropy": -own.log_prob.detach().mean()}

    def temperature_loss(self, log_prob: torch.Tensor) -> torch.Tensor:
        """α·(−log π − H_target): α falls while the entropy is above its target."""
        entropy = -log_prob.detach().mean()  # the policy's entropy is given; only α moves
        return self.log_alpha.exp() * (entropy - self.target_entropy)

    def cloning_loss(self, batch: Batch) -> torch.Tensor:
        """−log π(a_D|s) per action value; padded steps do not count."""
        return masked_mean(-self.policy.log_prob(batch.observation, batch.action), batch.valid)

    # Updates --------------------------------------------------------------------------------------------------------

    def clone(self, batch: Batch) -> Metrics:
        """Pretraining: one maximum-likelihood step of the actor and one step of the critic; nothing without `clone_actor`."""
        if not self.config.clone_actor:
            return {}
        loss = self.cloning_loss(batch)
        norm = step(self.actor_optimizer, loss)
        return {"cloning_loss": loss.detach(), "actor_grad_norm": norm, **self.update_critic(batch)}

    regularise = clone  # offline nothing but cloning holds a SAC actor: the offline updates after cloning are more of it

    def update(self, batch: Batch, actor: bool = True) -> Metrics:
        """One critic step and, where `actor`, one step of the actor and the temperature. No host synchronisation."""
        metrics = self.update_critic(batch)
        return metrics | self.update_actor(batch, metrics["critic_grad_norm"].isfinite()) if actor else metrics

    def update_critic(self, batch: Batch) -> Metrics:
        loss, metrics = self.critic_loss(batch)
        norm = step(self.critic_optimizer, loss)
        with torch.no_grad():
            average(self.target_critic, self.critic, self.config.tau * norm.isfinite())
        return {**metrics, "critic_grad_norm": norm}

    def update_actor(self, batch: Batch, allowed: torch.Tensor) -> Metrics:
        """`allowed`: a bool on the device; where it is false nothing changes."""
        loss, own, metrics = self.actor_loss(batch)
        norm = step(self.actor_optimizer, loss, allowed=allowed)
        if self.config.alpha_learning_rate > 0:
            taken = norm.isfinite() & allowed
            metrics["alpha_grad_norm"] = step(self.alpha_optimizer, self.temperature_loss(own.log_prob), allowed=taken)
        return {**metrics, "actor_grad_norm": norm, "alpha": self.alpha}

    def _sample(self, observation: torch.Tensor) -> Sample:
        return self.policy.sample(observation, *self.policy.draw(len(observation), self.stream))

    # State ----------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return state_of(self, _PARTS) | {"log_alpha": self.log_alpha.detach().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore(self, _PARTS, state)
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])

    def load_pretrained(self, state: dict[str, Any], critic: bool, optimizers: bool) -> None:
        """Take over what pretraining made (the policy is loaded already): its critic, and Adam's state, when asked."""
        if critic:
            take_critic(self, state)
        if optimizers:
            take_moments(self.actor_optimizer, state["actor_optimizer"])
            if critic:
                take_moments(self.critic_optimizer, state["critic_optimizer"])


_PARTS = ("policy", "critic", "target_critic", "actor_optimizer", "critic_optimizer", "alpha_optimizer")
