"""The best-of-N policy of Q-chunking (arXiv 2507.07969): N chunks from the behaviour flow, and the one with the highest Q."""

from __future__ import annotations

import torch

from flowft.data.spec import Array, Spec
from flowft.policies import critic
from flowft.policies.base import Policy
from flowft.policies.policy import Config, FlowPolicy, Networks


class BestOfNPolicy(Policy):
    """A behaviour flow and the critic that chooses among its samples: the critic is part of what acts."""

    kind = "best_of_n"

    def __init__(self, spec: Spec, config: Config, judge: critic.Config) -> None:
        super().__init__(spec, config.horizon, config.observation_clip)
        self.candidates = config.candidates
        self.start_dim = self.candidates * self.latent_dim
        self.flow = FlowPolicy(spec, config)
        self.normalizer = self.flow.normalizer  # one and the same
        self.critic = critic.Critic(spec.observation_dim, self.latent_dim, judge)

    @classmethod
    def from_settings(cls, spec: Spec, networks: Networks) -> BestOfNPolicy:
        return cls(spec, networks.policy, networks.critic)

    def best(self, observation: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """argmax over N of Q(s, a_i), a_i the flow's end from x_0,i: (B, h, A) from (B, O) and (B, N·D). Q: the ensemble's mean."""
        batch, n = len(observation), self.candidates
        repeated = observation.repeat_interleave(n, dim=0)
        chunks = self.chunk(self.flow.squash(self.flow.integrate(repeated, x0.reshape(batch * n, self.latent_dim))))
        q = self.critic(self.normalizer(repeated), chunks).mean(dim=0).reshape(batch, n)
        rows = torch.arange(batch, device=q.device)
        return chunks.reshape(batch, n, self.horizon, self.spec.action_dim)[rows, q.argmax(dim=1)]

    def draw(self, batch: int, stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """N starts of the flow (B, N·D); there is no further noise (0, B, D)."""
        x0 = torch.randn(batch, self.start_dim, generator=stream, device=stream.device)
        return x0, x0.new_zeros(0, batch, self.latent_dim)

    @torch.no_grad()
    def unit_chunk(self, observation: Array, x0: torch.Tensor, noise: torch.Tensor | None = None) -> Array:
        """The best chunks (B, h, A); the N samples are all its randomness, in exploration too."""
        s = self.on_device(observation)
        return self.best(s, x0.to(s.device)).cpu().numpy()
