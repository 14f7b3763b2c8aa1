"""The flow policy with the step noise of the code that was released with SAC Flow (arXiv 2509.25756).

Weights and noise-free actions are those of `FlowPolicy`; only the noisy rollout and its log-density differ, by `Form`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from flowft import device
from flowft.policies import flow
from flowft.policies.policy import FlowPolicy

KEY = 0  # the constant one


@dataclass(frozen=True)
class Form:
    """How the noisy rollout departs from the paper's; the default: not at all."""

    constant: bool = False  # ε is the same tensor at every step and call
    unscaled: bool = False  # x + v·Δt + σ·ε: no √Δt, no drift correction
    without_log_sigma: bool = False  # log p leaves out −Σ log(σ√Δt)
    sigma: float | None = None  # instead of the recipe's `policy.sigma`


class ReleasedFlowPolicy(FlowPolicy):
    """A flow policy whose noise has a `form`. It goes on from the weights of an ordinary one."""

    kind = "flow_released"
    takes = ("flow",)
    form = Form()

    def formed(self, **changes: Any) -> ReleasedFlowPolicy:
        """The same networks, seen with another form: what either learns, the other has learned."""
        other = copy.copy(self)
        other.form = dataclasses.replace(self.form, **changes)
        return other

    def draw(self, batch: int, stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Fresh x_0 (B, D) and ε (K, B, D)."""
        x0, noise = super().draw(batch, stream)
        if self.form.constant:
            key = device.generator(stream.device, KEY)
            noise = torch.randn(batch, self.latent_dim, generator=key, device=stream.device).expand_as(noise)
        return x0, noise

    def noisy_path(
        self,
        observation: torch.Tensor,
        x0: torch.Tensor,
        noise: torch.Tensor,
        std: float | torch.Tensor | None = None,
        drift_correction: bool | None = None,
    ) -> flow.Rollout:
        """The noisy path from x_0 (B, D) before the squash, in this policy's form; arguments as `rollout` takes them."""
        if self.form.unscaled and std is None:
            state = self.normalizer(observation)
            velocity, per_step = partial(self.network, self.network.context(state)), len(noise) ** 0.5
            path = flow.rollout(velocity, lambda x, t: per_step * self._sigma(state, x, t), x0, noise, drift_correction=False)
        else:
            path = super().noisy_path(observation, x0, noise, std, drift_correction)
        if self.form.without_log_sigma:
            terms = -0.5 * torch.cat([x0.unsqueeze(0), noise]).square() - flow.HALF_LOG_2PI  # (1 + K, B, D)
            path = path._replace(log_prob=terms.sum(dim=(0, 2)))
        return path

    def _sigma(self, state: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return super()._sigma(state, x, t) if self.form.sigma is None else x.new_full((), self.form.sigma)

    # State ----------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """The form travels with the weights."""
        return dataclasses.asdict(self.form)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.form = Form(**state)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Weights of an ordinary flow policy come without a form, and leave this one's as it is."""
        return super().load_state_dict({"_extra_state": self.get_extra_state(), **state_dict}, strict, assign)
