"""How far the actor may go before the critic has seen what happens there.

Right after cloning, Q knows only what the demonstrations did: off them its slope in a is arbitrary, and an actor free
to follow it breaks within a few dozen updates. So the actor stays within `radius` (root mean square per action value,
same x_0 and ε) of an anchor, a moving average of itself: it may go anywhere in time, but no faster than the replay
fills with the actions that it moves to. The strength λ is a Lagrange multiplier, so no scale of Q or β enters.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from flowft.algos.flow_bc import masked_mean
from flowft.algos.optim import average
from flowft.data.spec import Batch
from flowft.policies.policy import FlowPolicy, Sample

START, LARGEST = 1e3, 1e6  # of λ
STEP = 0.05  # of log λ per actor update, times how far the distance is off


class TrustRegion:
    """λ·‖x_K^θ − x_K^anchor‖², λ such that the mean squared distance stays at or below radius². Radius None: the anchor alone."""

    def __init__(self, policy: FlowPolicy, radius: float | None, anchor_rate: float, least: float = 0.0) -> None:
        self.policy, self.radius, self.anchor_rate = policy, radius, anchor_rate
        # A multiplier that has decayed to nothing while the actor stood still is no brake when it moves again.
        self.bounds = math.log(least) if least > 0 else -math.inf, math.log(max(least, LARGEST))
        self.anchor = copy.deepcopy(policy).requires_grad_(False)
        self.log_strength = torch.tensor(START, device=policy.normalizer.mean.device).log()

    @property
    def strength(self) -> torch.Tensor:
        return self.log_strength.exp()

    def penalty(self, batch: Batch, own: Sample, x0: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The term of the actor's loss, and the root mean square distance (detached)."""
        with torch.no_grad():
            there = self.anchor.sample(batch.observation, x0, noise).latent
        squared = masked_mean(self.policy.chunk((own.latent - there).square()), batch.valid)
        return self.strength * squared, squared.detach().sqrt()

    def update(self, distance: torch.Tensor | None, taken: torch.Tensor) -> None:
        """Dual step on λ, then let the anchor follow. `taken`: whether the actor made its step; if not, neither moves."""
        with torch.no_grad():
            if self.radius is not None and distance is not None:
                off = ((distance / self.radius).square() - 1).clamp(-1, 1)
                self.log_strength = torch.where(taken, (self.log_strength + STEP * off).clamp(*self.bounds), self.log_strength)
            average(self.anchor, self.policy, self.anchor_rate * taken)

    def centre(self, taken: torch.Tensor) -> None:
        """Put the anchor where the actor is, as while it clones: no region has been left before it is entered. `taken` as above."""
        with torch.no_grad():
            average(self.anchor, self.policy, 1.0 * taken)

    def state_dict(self) -> dict[str, Any]:
        return {"anchor": self.anchor.state_dict(), "log_strength": self.log_strength.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.anchor.load_state_dict(state["anchor"])
        self.log_strength = state["log_strength"].to(self.log_strength.device)
