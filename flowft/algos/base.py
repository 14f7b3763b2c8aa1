"""What an algorithm is, for whoever trains, compares or reports: one typed contract, its defaults in one place.

An algorithm is a class (one file, one line in registry.py) that derives from `Algorithm`, or from `ActorCritic` where it has
an actor, a critic and a moving average of it, and whose settings derive from `Config`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from flowft import registry
from flowft.data.spec import Batch
from flowft.errors import UsageError
from flowft.policies import critic as critics
from flowft.policies.base import Policy
from flowft.policies.policy import FlowPolicy, Sample

Metrics = dict[str, torch.Tensor]  # detached scalars, still on the device: reading one synchronises, so the loop decides when
Draws = tuple[torch.Tensor, torch.Tensor]  # x_0 and ε of a rollout
Part = Literal["actor", "critic", "alpha"]
SLOW = 1e-4  # a learning rate at which nothing here is known to diverge


@dataclass(frozen=True)
class Config:
    """An algorithm's knobs: a part of the recipe's `pretrain` and `finetune` sections, or of `train`."""

    def slower(self, part: Part) -> dict[str, float]:
        """The settings that hold a diverging part back, with values below those of this run."""
        rates = {f.name: getattr(self, f.name) for f in fields(self) if f.name in (f"{part}_learning_rate", "learning_rate")}
        return {name: min(SLOW, rate / 10) for name, rate in rates.items()}


class Algorithm(ABC):
    """Knows no environment, no logger and no disk. No update waits for the device.

    Where a loss or gradient is not finite, what it would have changed stays as it was; the metrics that end in `_loss` and
    `_grad_norm` tell.
    """

    config_type: ClassVar[type[Config]]
    policy_kind: ClassVar[str]  # the kind of policy that it trains, a name in the registry
    defaults: ClassVar[Mapping[str, Any]] = {}  # what it sets in the recipe's other sections (RLPD's ten critics); any recipe wins
    from_scratch: ClassVar[bool] = False  # it belongs to `flowft train`, and has neither `clone` nor a stage before it
    every_update_acts: ClassVar[bool] = False  # an update that leaves the actor alone changes what acts all the same

    policy: Policy  # what it trains
    config: Config
    critic: nn.Module | None = None  # what judges actions; None: nothing does

    @abstractmethod
    def __init__(self, policy: Policy, critic: critics.Config, config: Any, seed: int) -> None:
        """On the policy's device. UsageError for settings that do not go together."""

    @property
    def acting(self) -> Policy:
        """The policy that collects, is evaluated and is published."""
        return self.policy

    @abstractmethod
    def update(self, batch: Batch, actor: bool = True) -> Metrics:
        """One step of all that this algorithm learns online; without `actor`, of what need not wait for it."""

    def clone(self, batch: Batch) -> Metrics:
        """One step of pretraining, on a batch of demonstrations. Without another meaning: an update."""
        return self.update(batch)

    def regularise(self, batch: Batch) -> Metrics:
        """One step of pretraining after cloning, still offline. Without another meaning: an update."""
        return self.update(batch)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Networks, optimisers, temperature, random state: all that the next update depends on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""

    @abstractmethod
    def load_pretrained(self, state: dict[str, Any], critic: bool, optimizers: bool) -> None:
        """Take over what the stage before made beside the policy, which is loaded already: its critic, and Adam's state, when asked."""


class ThroughRollout(Algorithm):
    """An algorithm whose actor learns through the flow steps: `diagnostics.gradients` can look at them."""

    policy: FlowPolicy

    @abstractmethod
    def actor_loss(self, batch: Batch, draws: Draws | None = None) -> tuple[torch.Tensor, Sample, Metrics]:
        """The mean loss of a batch and the rollout that it went through. `draws`: x_0 and ε; None: fresh ones."""


def named(name: str) -> type[Algorithm]:
    """The algorithm registered as `name`. UsageError for a name that is none, and for a plug-in that is no `Algorithm`."""
    found = registry.get("algos", name)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UsageError(
            f"the plug-in algo {name!r} is {found!r}, which does not derive from flowft.algos.base.Algorithm",
            "pip install --upgrade the package that registers it, or --set algo=sac_flow",
        )
    return found
