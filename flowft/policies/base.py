"""What every policy is: it sees flat observations, draws its randomness from a stream, and puts out chunks of h actions."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from flowft.data.spec import Array, Spec
from flowft.errors import NonFiniteAction
from flowft.policies.normalizer import Normalizer


class Policy(nn.Module):
    """Spec, horizon, normaliser, and acting. A kind of policy adds `draw`, `unit_chunk`, and `from_settings` to be built with."""

    kind: ClassVar[str]  # its name in the registry and in checkpoints
    takes: ClassVar[tuple[str, ...]] = ()  # other kinds whose weights are also its own: training can go on from them

    def __init__(self, spec: Spec, horizon: int, observation_clip: float | None) -> None:
        super().__init__()
        self.spec, self.horizon = spec, horizon
        self.latent_dim = horizon * spec.action_dim  # D, the size of a chunk
        self.start_dim = self.latent_dim  # values of x_0 per observation
        self.normalizer = Normalizer(spec.observation_dim, observation_clip)

    @classmethod
    def from_settings(cls, spec: Spec, networks: Any) -> Policy:
        """An untrained policy as the recipe's sections say (`policies.policy.Networks`)."""
        raise NotImplementedError

    def draw(self, batch: int, stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Fresh x_0 (B, start_dim), what the policy starts from, and noise ε, what exploration adds to it."""
        raise NotImplementedError

    def unit_chunk(self, observation: Array, x0: torch.Tensor, noise: torch.Tensor | None = None) -> Array:
        """Chunks (B, h, A) in [−1, 1] for observations (B, O); without `noise` the policy as it is evaluated."""
        raise NotImplementedError

    def decide(self, observation: Array, x0: torch.Tensor, noise: torch.Tensor | None = None) -> Array:
        """`unit_chunk` for whoever acts on it: no NaN reaches a simulator, a replay or a robot.

        NonFiniteAction where the observation is finite and the chunk is not.
        """
        chunks = self.unit_chunk(observation, x0, noise)
        bad = ~np.isfinite(chunks) & np.all(np.isfinite(observation), axis=-1, keepdims=True)[:, :, None]
        if bad.any():
            raise NonFiniteAction(
                f"the policy answers a finite observation with {bad.sum()} action values of {bad.size} that are not finite",
                "take an earlier checkpoint: the weights of this one have diverged",
            )
        return chunks

    def chunk(self, flat: torch.Tensor) -> torch.Tensor:
        """(B, D) -> (B, h, A)."""
        return flat.reshape(*flat.shape[:-1], self.horizon, self.spec.action_dim)

    def act(self, observation: npt.ArrayLike | dict[str, Any], x0: npt.ArrayLike | None = None) -> Array:
        """A chunk of actions in the environment's units, noise-free.

        observation: (O,) or (B, O), or a dict of its named parts. x0: (start_dim,) or (B, start_dim), standard normal;
        without it a fresh one is drawn from torch's global stream. Returns (h, A) or (B, h, A), float32.
        """
        flat = self.spec.flatten(observation) if isinstance(observation, dict) else np.asarray(observation, dtype=np.float32)
        if flat.shape[-1] != self.spec.observation_dim or flat.ndim not in (1, 2):
            wanted = ", ".join(f"{name} {size}" for name, size in self.spec.parts)
            raise ValueError(f"observation has shape {flat.shape}; this policy sees {self.spec.observation_dim} values ({wanted})")
        batch = np.atleast_2d(flat)
        start = torch.randn(len(batch), self.start_dim) if x0 is None else torch.as_tensor(np.atleast_2d(np.asarray(x0, dtype=np.float32)))
        actions = self.spec.from_unit(self.decide(batch, start))
        return actions[0] if flat.ndim == 1 else actions

    def on_device(self, observation: Array) -> torch.Tensor:
        """Observations as a tensor where the policy lives."""
        return torch.as_tensor(observation, dtype=torch.float32, device=self.normalizer.mean.device)
