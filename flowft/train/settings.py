"""A recipe as a whole: which section configures what."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch

from flowft import recipe, registry
from flowft.algos import base as algos
from flowft.algos import diagnostics
from flowft.data import mixture, source
from flowft.data.replay import RewardTransform
from flowft.data.spec import Dataset
from flowft.envs import rules
from flowft.errors import UsageError
from flowft.policies import actor, critic, policy
from flowft.policies.policy import Networks
from flowft.train import evaluate, loops


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
    environment: rules.Config | None = None  # success, its end, reset options, action bounds; None: as the environment has them
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
    diagnostics: diagnostics.Config = field(default_factory=diagnostics.Config)

    @classmethod
    def read(cls, tree: Mapping[str, Any]) -> Settings:
        """From a recipe's tree; unknown keys and wrong values are errors that say what was meant.

        Its `algos` section holds, per algorithm, what it sets otherwise than the rest of the recipe.
        """
        entries = tree.get("algos") or {}
        if not isinstance(entries, Mapping) or not all(isinstance(entry, Mapping) for entry in entries.values()):
            raise UsageError(f"algos is {entries!r}, not a section with an entry per algorithm", "algos: {rlpd: {finetune: {…}}}")
        name = str(tree.get("algo", cls.algo))
        for other in entries:
            algos.named(other)
        return recipe.build(cls, recipe.merge(defaults_of(name), recipe.for_algorithm(tree, name)), "")

    def __post_init__(self) -> None:
        recipe.require(self, "seed", least=0)

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


L = TypeVar("L", loops.Pretrain, loops.Finetune, loops.Scratch)
Stage = Literal["pretrain", "finetune", "train"]


class Sections(NamedTuple, Generic[L]):
    """A stage's section of the recipe, each owner's part."""

    loop: L
    algo: algos.Config
    mixture: mixture.Config | None = None


def pretrain_section(settings: Settings) -> Sections[loops.Pretrain]:
    """What of the recipe is about pretraining."""
    return Sections(**split(settings, "pretrain", {"loop": loops.Pretrain}))


def finetune_section(settings: Settings) -> Sections[loops.Finetune]:
    """What of the recipe is about fine-tuning."""
    return Sections(**split(settings, "finetune", {"loop": loops.Finetune, "mixture": mixture.Config}))


def train_section(settings: Settings) -> Sections[loops.Scratch]:
    """What of the recipe is about training from scratch."""
    return Sections(**split(settings, "train", {"loop": loops.Scratch}))


def split(settings: Settings, section: Stage, configs: Mapping[str, type[Any]]) -> dict[str, Any]:
    """A stage's section: each config's part by its name, and the algorithm's as `algo`."""
    configs = {**configs, "algo": algos.named(settings.algo).config_type}
    tree = {"pretrain": settings.pretrain, "finetune": settings.finetune, "train": settings.train}[section]
    known = {f.name for config in configs.values() for f in fields(config)}
    for key in tree:
        if key not in known and (owners := _owners(key)):
            raise UsageError(
                f"{section}.{key} is a setting of {' and '.join(owners)}, and this run is with algo={settings.algo}",
                f"in a recipe, keep it under algos: {{{owners[0]}: {{{section}: {{{key}: …}}}}}}",
            )
    return recipe.split(configs, tree, section)


def defaults_of(algo: str) -> Mapping[str, Any]:
    """What an algorithm sets outside of its own knobs (SAC Flow's six critics), below any recipe."""
    return algos.named(algo).defaults


def without_knobs(tree: Mapping[str, Any], section: str, algo: str) -> recipe.Tree:
    """A section without the knobs of an algorithm: those of the one that made a checkpoint mean nothing to another."""
    return {key: value for key, value in tree.get(section, {}).items() if key not in _knobs(algo)}


def _owners(key: str) -> list[str]:
    """The algorithms that have a knob of that name; a plug-in that is none has none."""
    found = []
    for name in registry.names("algos"):
        with contextlib.suppress(UsageError):
            found += [name] if key in _knobs(name) else []
    return found


def _knobs(algo: str) -> set[str]:
    return {f.name for f in fields(algos.named(algo).config_type)}


def reward_transform(settings: Settings) -> RewardTransform:
    """Of settings whose shift has been resolved."""
    return RewardTransform(settings.reward.scale, settings.reward.shift or 0.0)
