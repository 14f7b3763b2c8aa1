"""What the soft actor-critics share: a temperature α that keeps the policy's entropy at a target, and the actor step around it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol, cast

import torch

from flowft.algos.actor_critic import ActorCritic, WithoutTarget
from flowft.algos.base import Draws, Metrics
from flowft.algos.optim import adam, step
from flowft.data.spec import Batch
from flowft.policies import critic as critics
from flowft.policies.base import Policy
from flowft.policies.policy import Sample


class SoftPolicy(Protocol):
    """What the losses ask of a policy."""

    def draw(self, batch: int, stream: torch.Generator) -> Draws: ...

    def sample(self, observation: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor) -> Sample: ...


class SoftActorCritic(ActorCritic):
    """Actor, critic, temperature. An algorithm adds both losses and the target entropy."""

    target_entropy: float  # nats, of what `log_density` gives
    learns_alpha = True

    def __init__(
        self, policy: Policy, critic: critics.Config, config: WithoutTarget, seed: int, alpha: float, alpha_learning_rate: float
    ) -> None:
        """`alpha`: the initial temperature; an algorithm sets `target_entropy` after this."""
        super().__init__(policy, critic, config, seed)
        self.log_alpha = torch.tensor(max(alpha, 1e-8), device=self.stream.device).log().requires_grad_()
        self.alpha_optimizer = adam([self.log_alpha], alpha_learning_rate)

    @property
    def alpha(self) -> torch.Tensor:
        """The temperature."""
        return self.log_alpha.detach().exp()

    @abstractmethod
    def actor_loss(self, batch: Batch) -> tuple[torch.Tensor, Sample, Metrics]:
        """The mean loss of a batch and the sample that it was taken at."""

    def log_density(self, own: Sample) -> torch.Tensor:
        """The log-density (B,) whose mean is to be minus the target entropy."""
        return own.log_prob

    def temperature_loss(self, log_prob: torch.Tensor) -> torch.Tensor:
        """α·(−log p − H_target): α falls while the entropy is above its target."""
        entropy = -log_prob.detach().mean()  # the policy's entropy is given; only α moves
        return self.log_alpha.exp() * (entropy - self.target_entropy)

    def update_actor(self, batch: Batch, allowed: torch.Tensor | None = None) -> Metrics:
        """One step of the actor and, where its step was made, of the temperature."""
        loss, own, metrics = self.actor_loss(batch)
        norm = step(self.actor_optimizer, loss, self.max_grad_norm, allowed)
        taken = norm.isfinite() if allowed is None else norm.isfinite() & allowed
        self.follow(metrics, taken)
        if self.learns_alpha:
            metrics["alpha_grad_norm"] = step(self.alpha_optimizer, self.temperature_loss(self.log_density(own)), allowed=taken)
        return {**metrics, "actor_grad_norm": norm, "alpha": self.alpha}

    def _sample(self, observation: torch.Tensor, draws: Draws | None = None) -> Sample:
        """A chunk and its log-density for each observation, differentiable. `draws`: x_0 and ε; None: fresh ones."""
        policy = cast(SoftPolicy, self.policy)  # `policy_kind` is one that samples
        return policy.sample(observation, *(draws or policy.draw(len(observation), self.stream)))

    def follow(self, metrics: Metrics, taken: torch.Tensor) -> None:
        """What moves after the actor has (SAC Flow's anchor). `taken`: whether it did, on the device."""

    def parts(self) -> dict[str, Any]:
        return super().parts() | {"alpha_optimizer": self.alpha_optimizer}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"log_alpha": self.log_alpha.detach().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
