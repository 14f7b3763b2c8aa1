"""What the actor-critics share: an actor, a critic with its moving average, their optimisers and random stream, the chunked
temporal-difference step of the critic, what is taken over from pretraining, and the state.

An algorithm adds its settings, `critic_loss` (what its critic bootstraps from) and `update_actor` (how its actor follows).
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from flowft import device, recipe
from flowft.algos import base
from flowft.algos.base import Algorithm, Metrics
from flowft.algos.optim import adam, average, step, take_moments
from flowft.data.spec import Batch
from flowft.errors import CheckpointError
from flowft.policies import critic as critics
from flowft.policies.base import Policy

Pessimism = Literal["min", "mean"]


@dataclass(frozen=True)
class WithoutTarget(base.Config):
    """The knobs that all of them have; with these alone Q is its own target."""

    gamma: float = 0.99  # discount per environment step
    actor_learning_rate: float = 3e-4  # Adam's
    critic_learning_rate: float = 3e-4  # Adam's

    def __post_init__(self) -> None:
        recipe.require(self, "gamma", above=0, most=1)
        recipe.require(self, "actor_learning_rate", "critic_learning_rate", least=0)


@dataclass(frozen=True)
class Config(WithoutTarget):
    """The knobs of those whose critic has a moving average."""

    tau: float = 0.005  # Q̄ <- (1 − τ)·Q̄ + τ·Q per update

    def __post_init__(self) -> None:
        super().__post_init__()
        recipe.require(self, "tau", least=0, most=1)


class ActorCritic(Algorithm):
    """An update is a critic step and, where the actor's turn has come, an actor step."""

    config: WithoutTarget
    critic: nn.Module
    target_critic: nn.Module  # Q̄; the critic itself where it has no average
    max_grad_norm: float | None = None  # longer gradients of actor and critic are scaled down to this norm; None: never

    def __init__(self, policy: Policy, critic: critics.Config, config: WithoutTarget, seed: int) -> None:
        self.policy, self.config = policy, config
        self.critic = self.make_critic(critic)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False) if isinstance(config, Config) else self.critic
        self.actor_optimizer = self.make_optimizer(self.actor_parameters(), config.actor_learning_rate)
        self.critic_optimizer = self.make_optimizer(self.critic.parameters(), config.critic_learning_rate)
        self.stream = device.generator(policy.normalizer.mean.device, seed)

    def make_critic(self, critic: critics.Config) -> nn.Module:
        """An untrained one, on the policy's device."""
        return critics.Critic(self.policy.spec.observation_dim, self.policy.latent_dim, critic).to(self.policy.normalizer.mean.device)

    def make_optimizer(self, parameters: Iterable[torch.Tensor], learning_rate: float) -> torch.optim.Adam:
        """Of actor and critic."""
        return adam(parameters, learning_rate)

    def actor_parameters(self) -> Iterable[nn.Parameter]:
        """What the actor's optimiser moves."""
        return self.policy.parameters()

    # The critic -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def critic_loss(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Σ over members of (Q(s, a_{1:h}) − y)², y = Σ_{j<n} γ^j r_j + γ^n (1 − terminated)·V(s'), V as the algorithm has it."""

    def q(self, batch: Batch) -> torch.Tensor:
        """Q (E, B) of the batch's own chunks."""
        values: torch.Tensor = self.critic(self.policy.normalizer(batch.observation), batch.action)
        return values

    def temporal_difference(self, batch: Batch, q: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """The critic's loss for Q (E, B) and V(s') (B,), through which no gradient passes.

        n = h (or `n_step`) but for a chunk that ends in a terminal state; a chunk cut short by truncation does not count.
        """
        target = td_target(batch, value, self.config.gamma)
        loss = td_loss(q, target, batch)
        return loss, {"critic_loss": loss.detach(), "q": q.detach().mean(), "q_target": target.mean()}

    def update_critic(self, batch: Batch) -> Metrics:
        """One step of Q, and Q̄ follows it."""
        loss, metrics = self.critic_loss(batch)
        norm = step(self.critic_optimizer, loss, self.max_grad_norm)
        if isinstance(self.config, Config):
            with torch.no_grad():
                average(self.target_critic, self.critic, self.config.tau * norm.isfinite())
        return {**metrics, "critic_grad_norm": norm}

    # The actor ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def update_actor(self, batch: Batch, allowed: torch.Tensor | None = None) -> Metrics:
        """One step of the actor and what belongs to it. `allowed`: a bool on the device; where it is false nothing changes."""

    def update(self, batch: Batch, actor: bool = True) -> Metrics:
        """One critic step and, where `actor`, one actor step; that one only where the critic's was made."""
        metrics = self.update_critic(batch)
        return metrics | self.update_actor(batch, metrics["critic_grad_norm"].isfinite()) if actor else metrics

    # State ----------------------------------------------------------------------------------------------------------

    def parts(self) -> dict[str, Any]:
        """The networks and optimisers, by their names in a state."""
        target = {"target_critic": self.target_critic} if isinstance(self.config, Config) else {}
        optimizers = {"actor_optimizer": self.actor_optimizer, "critic_optimizer": self.critic_optimizer}
        return {"policy": self.policy, "critic": self.critic, **target, **optimizers}

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items()} | {"rng": device.rng_state(self.stream)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        device.set_rng_state(self.stream, state["rng"])

    def load_pretrained(self, state: dict[str, Any], critic: bool, optimizers: bool) -> None:
        if critic:
            self._take_critic(state)
        if optimizers:
            take_moments(self.actor_optimizer, state["actor_optimizer"])
            if critic:
                take_moments(self.critic_optimizer, state["critic_optimizer"])

    def _take_critic(self, state: dict[str, Any]) -> None:
        """The pretrained critic and its average."""
        if "critic" not in state:
            raise CheckpointError("the checkpoint holds no critic: it was pretrained without one", "--set finetune.fresh_critic=true")
        try:
            self.critic.load_state_dict(state["critic"])
            self.target_critic.load_state_dict(state["target_critic"])
        except RuntimeError as error:
            what = "the checkpoint's critic has other shapes than the critic settings say (those of its pretraining fit)"
            raise CheckpointError(what, "--set finetune.fresh_critic=true") from error


def td_target(batch: Batch, value: torch.Tensor, gamma: float) -> torch.Tensor:
    """y = Σ_{j<n} γ^j r_j + γ^n (1 − terminated)·V(s'), (B,). n = h but for a chunk that ends in a terminal state."""
    discounts = gamma ** torch.arange(batch.reward.shape[1], device=value.device)
    rewards = (discounts * batch.reward).sum(dim=1)
    return rewards + gamma**batch.length * (1 - batch.terminated) * value


def td_loss(q: torch.Tensor, target: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Σ over members of (Q − y)², mean over the chunks that have a target: one cut short by truncation has none."""
    error = (q - target).square() * batch.complete
    return error.sum() / batch.complete.sum().clamp_min(1)


def as_one(q: torch.Tensor, how: Pessimism) -> torch.Tensor:
    """The ensemble's Q (E, B) as one value (B,)."""
    return q.amin(dim=0) if how == "min" else q.mean(dim=0)
