"""The Gaussian policy: a = tanh(u), u ~ N(μ(s), σ(s)²), diagonal over the whole chunk (the actor of SAC, arXiv 1801.01290)."""

from __future__ import annotations

import torch

from flowft.data.spec import Array, Spec
from flowft.policies import actor
from flowft.policies.base import Policy
from flowft.policies.flow import HALF_LOG_2PI
from flowft.policies.policy import LOG_STD_MAX, LOG_STD_MIN, Networks, Sample
from flowft.policies.squash import Tanh, log_slope


class GaussianPolicy(Policy):
    """One network for the mean and the log standard deviation, both of the state; noise-free it acts with tanh(μ)."""

    kind = "gaussian"

    def __init__(
        self, spec: Spec, horizon: int, config: actor.Config, atanh_limit: float = 0.98, observation_clip: float | None = 10.0
    ) -> None:
        """atanh_limit: |a| of cloning targets is clipped there."""
        super().__init__(spec, horizon, observation_clip)
        self.start_dim = 0
        self.squash = Tanh(atanh_limit)
        self.network = actor.network(spec.observation_dim, 2 * self.latent_dim, config)

    @classmethod
    def from_settings(cls, spec: Spec, networks: Networks) -> GaussianPolicy:
        policy = networks.policy
        return cls(spec, policy.horizon, networks.actor, policy.atanh_limit, policy.observation_clip)

    def moments(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """μ and log σ, each (B, D), of raw observations (B, O); log σ lies between its bounds through a tanh."""
        mean, raw = self.network(self.normalizer(observation)).chunk(2, dim=-1)
        return mean, LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (raw.tanh() + 1)

    def sample(self, observation: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor) -> Sample:
        """a = tanh(μ + σ·ε) with ε = noise (1, B, D), differentiable in the parameters; x0 is empty."""
        mean, log_std = self.moments(observation)
        latent = mean + log_std.exp() * noise[0]
        before = (-0.5 * noise[0].square() - log_std - HALF_LOG_2PI).sum(dim=-1)
        return Sample(self.chunk(latent.tanh()), before - self.squash.log_derivative(latent), before, latent, [latent])

    def log_prob(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """log π(a|s) per action value (B, h, A) of stored chunks (B, h, A), with |a| clipped at `atanh_limit`."""
        mean, log_std = self.moments(observation)
        u = self.squash.inverse(action).flatten(1)
        density = -0.5 * ((u - mean) / log_std.exp()).square() - log_std - HALF_LOG_2PI
        return self.chunk(density - log_slope(u))

    def draw(self, batch: int, stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """An empty x_0 (B, 0) and ε (1, B, D)."""
        noise = torch.randn(1, batch, self.latent_dim, generator=stream, device=stream.device)
        return noise.new_zeros(batch, 0), noise

    @torch.no_grad()
    def unit_chunk(self, observation: Array, x0: torch.Tensor, noise: torch.Tensor | None = None) -> Array:
        """Chunks (B, h, A): tanh(μ) without `noise`, else a sample."""
        s = self.on_device(observation)
        if noise is not None:
            return self.sample(s, x0, noise.to(s.device)).action.cpu().numpy()
        return self.chunk(self.moments(s)[0].tanh()).cpu().numpy()
