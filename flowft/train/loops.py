"""How much each stage does when: the loops' parts of the recipe's `pretrain`, `finetune` and `train` sections."""

from __future__ import annotations

from dataclasses import dataclass

from flowft import recipe

# Settings that may change when a run is continued: how far it goes and where, not what it is.
ANYWHERE = ("eval.envs", "wandb", "threads", "device", "diagnostics")


@dataclass(frozen=True)
class Pretrain:
    """The pretraining loop's part of the `pretrain` section."""

    updates: int = 1_000_000  # of cloning, one critic update with each
    regularised_updates: int = 0  # after them: offline updates of the regularised actor loss
    batch_size: int = 256
    n_step: int | None = None  # steps of reward before the critic's target bootstraps; None: the chunk's h
    log_every: int = 500  # updates between rows of metrics.jsonl
    evaluate: bool = True  # in the simulator at the end

    FREE = ("pretrain.updates", "pretrain.regularised_updates", "pretrain.evaluate", "env", "max_steps", "eval.", "finetune.", *ANYWHERE)

    def __post_init__(self) -> None:
        recipe.require(self, "updates", "batch_size", "log_every", least=1)
        recipe.require(self, "regularised_updates", least=0)

    @property
    def total(self) -> int:
        """Updates of both kinds."""
        return self.updates + self.regularised_updates


@dataclass(frozen=True)
class Online:
    """What fine-tuning and training from scratch share; `steps` and the like are environment steps, all environments together."""

    steps: int = 1_000_000  # environment steps, all environments together
    updates_per_step: float = 1.0  # critic updates per environment step
    n_step: int | None = None  # steps of reward before the critic's target bootstraps; None: the chunk's h
    capacity: int = 1_000_000  # states in the online replay
    envs: int = 1  # environments stepped together, each in a worker process when more than one
    log_every: int = 500  # environment steps between training rows of metrics.jsonl


@dataclass(frozen=True)
class Finetune(Online):
    """The fine-tuning loop's part of the `finetune` section."""

    random_steps: int = 0  # the first of them: uniformly random actions, as published for starts from nothing (RLPD)
    start_updates: int = 5_000  # environment steps before the critic learns
    start_actor: int = 5_000  # environment steps before the actor learns
    actor_every: int = 1  # critic updates per actor update
    batch_size: int = 256
    fresh_critic: bool = False  # start with an untrained critic instead of the pretrained one
    keep_optimizers: bool = False  # keep Adam's state from pretraining

    FREE = ("finetune.steps", *ANYWHERE)

    def __post_init__(self) -> None:
        recipe.require(self, "steps", "actor_every", "batch_size", "envs", "log_every", least=1)
        recipe.require(self, "random_steps", "start_updates", "start_actor", "updates_per_step", least=0)


@dataclass(frozen=True)
class Scratch(Online):
    """The loop's part of the `train` section."""

    random_steps: int = 50_000  # the first of them: uniformly random actions, and nothing learns
    actor_every: int = 3  # critic updates per actor update
    batch_size: int = 512

    FREE = ("train.steps", *ANYWHERE)

    def __post_init__(self) -> None:
        recipe.require(self, "steps", "random_steps", "actor_every", "batch_size", "envs", "log_every", least=1)
        recipe.require(self, "updates_per_step", least=0)

    @property
    def start_updates(self) -> int:
        return self.random_steps

    @property
    def start_actor(self) -> int:
        return self.random_steps
