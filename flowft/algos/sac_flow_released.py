"""SAC Flow as its released code has it (arXiv 2509.25756): what that code does otherwise than the paper, each under a name.

Nothing here is worth using; it is there to measure what each difference costs. Three more need no name of their own:
drawing demonstrations and live data uniformly is `finetune.offline_share=uniform`, evaluating with noise is
`eval.stochastic=true`, and the released Flow-G and naive agents, which do not start, have no behaviour to repeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from flowft import recipe
from flowft.algos import sac_flow
from flowft.algos.base import Draws
from flowft.algos.sac_flow import SACFlow
from flowft.data.spec import Batch
from flowft.errors import UsageError
from flowft.policies import critic as critics
from flowft.policies.flow_released import Form, ReleasedFlowPolicy
from flowft.policies.policy import FlowPolicy, Sample
from flowft.policies.squash import Tanh

Defect = Literal[
    "temperature_sign",  # offline-to-online: the temperature's loss has the wrong sign
    "raw_cloning",  # cloning fits raw actions though sampling ends in tanh: a cloned 1.0 comes out as 0.76
    "constant_noise",  # Flow-G: the step noise comes from a constant key, the same tensor at every step and call
    "unscaled_noise",  # no drift correction, and noise of σ per step instead of σ√Δt: another K, another noise
    "two_sigmas",  # critic target and behaviour have another σ than the actor's loss
    "unmasked_beta",  # the β term counts the padding at the ends of episodes
    "missing_log_sigma",  # Flow-T from scratch: the log-density leaves out −log σ
]
ENTROPY = ("temperature_sign", "missing_log_sigma")  # reach nothing but through α


@dataclass(frozen=True)
class Config(sac_flow.Config):
    """SAC Flow's knobs, and which defects are on."""

    defects: tuple[Defect, ...] = ()  # none: SAC Flow
    actor_sigma: float = 0.05  # two_sigmas: σ of the actor's loss …
    behaviour_sigma: float = 0.02  # … and of acting and the critic's target

    def __post_init__(self) -> None:
        super().__post_init__()
        idle = [name for name in self.defects if name in ENTROPY]
        if idle and not self.alpha > 0:
            raise ValueError(f"{idle[0]} changes nothing while alpha is {self.alpha}; set alpha above 0")
        recipe.require(self, "actor_sigma", "behaviour_sigma", above=0)


class RawTanh(Tanh):
    """A tanh whose cloning targets are the actions themselves, as if there were none."""

    def inverse(self, action: torch.Tensor) -> torch.Tensor:
        return action


class ReleasedSACFlow(SACFlow):
    """SAC Flow with the defects that its config names."""

    config_type = Config
    policy_kind = "flow_released"
    policy: ReleasedFlowPolicy
    config: Config

    def __init__(self, policy: ReleasedFlowPolicy, critic: critics.Config, config: Config, seed: int) -> None:
        on = config.defects
        if "raw_cloning" in on and policy.config.squash != "tanh":
            what = f"raw_cloning is about a tanh, and changes nothing under policy.squash={policy.config.squash}"
            raise UsageError(what, "flowft pretrain --set policy.squash=tanh")
        if "two_sigmas" in on and policy.config.noise != "fixed":
            what = f"two_sigmas is about a fixed σ; policy.noise is {policy.config.noise}"
            raise UsageError(what, "flowft pretrain --set policy.noise=fixed")
        policy.form = Form(
            constant="constant_noise" in on,
            unscaled="unscaled_noise" in on,
            without_log_sigma="missing_log_sigma" in on,
            sigma=config.actor_sigma if "two_sigmas" in on else None,
        )
        if "raw_cloning" in on:
            policy.squash = RawTanh(policy.config.atanh_limit, policy.config.squash_epsilon)
        super().__init__(policy, critic, config, seed)

    @property
    def acting(self) -> FlowPolicy:
        return self._behaviour(super().acting)

    def temperature_loss(self, log_prob: torch.Tensor) -> torch.Tensor:
        loss = super().temperature_loss(log_prob)
        return -loss if "temperature_sign" in self.config.defects else loss

    def _sample(self, observation: torch.Tensor, draws: Draws | None = None) -> Sample:
        """As it acts: what the critic's target sees."""
        policy = self._behaviour(self.policy)
        return policy.sample(observation, *(draws or policy.draw(len(observation), self.stream)))

    def _behaviour(self, policy: FlowPolicy) -> FlowPolicy:
        """The policy (or its average) as it acts."""
        if "two_sigmas" not in self.config.defects:
            return policy
        assert isinstance(policy, ReleasedFlowPolicy)
        return policy.formed(sigma=self.config.behaviour_sigma)

    def _behaviour_distance(self, own: Sample, batch: Batch) -> torch.Tensor:
        if "unmasked_beta" in self.config.defects:
            batch = batch._replace(valid=torch.ones_like(batch.valid))
        return super()._behaviour_distance(own, batch)
