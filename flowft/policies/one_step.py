"""The one-step policy of FQL (arXiv 2502.02538): a behaviour flow, and an actor that reaches its end in one step, a = μ(s, z)."""

from __future__ import annotations

import torch

from flowft.data.spec import Array, Spec
from flowft.policies import actor
from flowft.policies.base import Policy
from flowft.policies.policy import Config, FlowPolicy, Networks


class OneStepPolicy(Policy):
    """It acts with the actor, on a fresh z ~ N(0, I) for every chunk; the flow is the teacher that the actor is distilled from."""

    kind = "one_step"

    def __init__(self, spec: Spec, config: Config, network: actor.Config) -> None:
        super().__init__(spec, config.horizon, config.observation_clip)
        self.flow = FlowPolicy(spec, config)
        self.normalizer = self.flow.normalizer  # one and the same
        self.actor = actor.network(spec.observation_dim + self.latent_dim, self.latent_dim, network)

    @classmethod
    def from_settings(cls, spec: Spec, networks: Networks) -> OneStepPolicy:
        return cls(spec, networks.policy, networks.actor)

    def latent(self, observation: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """μ(s, z) before the squash: (B, D) from raw observations (B, O) and z (B, D)."""
        mu: torch.Tensor = self.actor(torch.cat([self.normalizer(observation), z], dim=-1))
        return mu

    def action(self, latent: torch.Tensor) -> torch.Tensor:
        """Unit chunks (B, h, A) of latents (B, D)."""
        return self.chunk(self.flow.squash(latent))

    def draw(self, batch: int, stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """z (B, D); there is no further noise (0, B, D)."""
        z = torch.randn(batch, self.latent_dim, generator=stream, device=stream.device)
        return z, z.new_zeros(0, batch, self.latent_dim)

    @torch.no_grad()
    def unit_chunk(self, observation: Array, x0: torch.Tensor, noise: torch.Tensor | None = None) -> Array:
        """Chunks (B, h, A) of the actor at z = x0; z is all its randomness, in exploration too."""
        s = self.on_device(observation)
        return self.action(self.latent(s, x0.to(s.device))).cpu().numpy()
