"""A recipe as a whole: which section configures what."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from flowft import recipe
from flowft.data import source
from flowft.data.replay import RewardTransform
from flowft.data.spec import Dataset
from flowft.policies import actor, critic, policy
from flowft.policies.policy import Networks
from flowft.train import evaluate


@dataclass(frozen=True)
class Reward:
    """The recipe's `reward` section: r -> scale·r + shift, offline and online alike."""

    scale: float = 1.0
    shift: float | None = None  # None: −1 where the data's rewards are 0/1 (then: −1 until success), else 0

    def resolved(self, dataset: Dataset) -> RewardTransform:
        if self.shift is not None:
            return RewardTransform(self.scale, self.shift)
        binary = all(((episode.rewards == 0) | (episode.rewards == 1)).all() for episode in dataset.episodes)
        return RewardTransform(self.scale, -self.scale if binary else 0.0)


@dataclass(frozen=True)
class Settings:
    """Everything that a recipe may say. `pretrain`, `finetune` and `train` are split between their loop and the algorithm."""

    dataset: str | None = None  # id or path
    env: str | None = None  # None: the environment that the dataset was made in
    env_kwargs: dict[str, Any] = field(default_factory=dict)  # for its builder, e.g. {success_ends: false} where rewards are dense
    max_steps: int | None = None  # episode limit in environment steps; None: the environment's own
    algo: str = "sac_flow"
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    threads: int | None = None  # torch's CPU threads; None: as torch chooses
    wandb: str | None = None  # Weights & Biases project; None: not used
    data: source.Options = field(default_factory=source.Options)
    reward: Reward = field(default_factory=Reward)
    policy: policy.Config = field(default_factory=policy.Config)
    critic: critic.Config = field(default_factory=critic.Config)
    actor: actor.Config = field(default_factory=actor.Config)  # of an actor that is no flow
    pretrain: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    eval: evaluate.Config = field(default_factory=evaluate.Config)

    @classmethod
    def read(cls, tree: Mapping[str, Any]) -> Settings:
        """From a recipe's tree; unknown keys and wrong values are errors that say what was meant."""
        return recipe.build(cls, tree, "")

    @property
    def networks(self) -> Networks:
        """The sections that a policy is built from."""
        return Networks(self.policy, self.critic, self.actor)

    def with_dataset(self, found: Dataset) -> Settings:
        """The same settings with what the dataset decides written out, so that a checkpoint repeats it exactly."""
        transform = self.reward.resolved(found)
        return replace(self, reward=Reward(transform.scale, transform.shift))

    def apply_threads(self) -> None:
        """Set torch's threads as asked (OMP_NUM_THREADS, when set, is torch's default already)."""
        if self.threads is not None:
            torch.set_num_threads(min(self.threads, os.cpu_count() or 1))


def reward_transform(settings: Settings) -> RewardTransform:
    """Of settings whose shift has been resolved."""
    return RewardTransform(settings.reward.scale, settings.reward.shift or 0.0)
