"""What an algorithm is: `update(batch) -> metrics`, and a state that can be saved at any step."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from flowft.data.spec import Batch
from flowft.policies.base import Policy

Metrics = dict[str, torch.Tensor]  # detached scalars, still on the device: reading one synchronises, so the loop decides when


class Algorithm(Protocol):
    """Knows no environment, no logger and no disk. Its class may also hold

    - `defaults`: what it is published with in the recipe's other sections (RLPD's ensemble of 10), which any recipe overrides,
    - `from_scratch`: it belongs to `flowft train`,
    - `through_rollout`: its actor learns through the flow steps, so their gradients can be measured,
    - `every_update_acts`: an update that leaves the actor alone changes what acts all the same.
    """

    policy_kind: str  # the kind of policy that it trains, a name in the registry
    policy: Policy

    @property
    def acting(self) -> Policy:
        """The policy that collects, is evaluated and is published."""

    def update(self, batch: Batch) -> Metrics:
        """One step of all that this algorithm learns."""

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, temperature, random state: all that the next update depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
