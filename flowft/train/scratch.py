"""Training from scratch: the policy acts, its own steps are all the data there is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowft import checkpoint, device, recipe, registry
from flowft.data import mixture
from flowft.data.replay import Replay
from flowft.envs.vector import Vector
from flowft.errors import UsageError
from flowft.policies import policy as policies
from flowft.train.collect import Collector
from flowft.train.evaluate import Evaluator
from flowft.train.online import Run
from flowft.train.run import Interrupts, checkpoint_content, environment, require_reach, require_rollout, require_stage, require_unused
from flowft.train.runlog import RunFolder, say
from flowft.train.settings import Settings, reward_transform, split

FREE = ("train.steps", "eval.envs", "wandb", "threads", "device", "diagnostics")

# What is different from scratch: the published scale (arXiv 2509.25756). A recipe holds what differs from this.
DEFAULTS: recipe.Tree = {
    "algo": "sac_flow_scratch",
    "policy": {"network": "flow_g", "horizon": 1, "squash": "tanh", "noise": "learned", "observation_clip": None},
    "critic": {"hidden": [1024, 1024], "ensemble": 2, "activation": "relu"},
    "actor": {"hidden": [256, 256], "activation": "relu"},
    "eval": {"episodes": 10, "every": 50_000},
}
NETS: dict[str, recipe.Tree] = {
    "flow_g": {"hidden": [256, 256], "activation": "silu", "gate_hidden": 128},
    "flow_t": {"width": 64, "norm": "pre"},  # ahead of post-norm on both seeds (recipes/README.md)
    "mlp": {"hidden": [256, 256], "activation": "silu"},
}


@dataclass(frozen=True)
class Loop:
    """The loop's part of the `train` section."""

    steps: int = 1_000_000  # environment steps, all environments together
    random_steps: int = 50_000  # the first of them: uniformly random actions, and nothing learns
    updates_per_step: float = 1.0  # critic updates per environment step
    actor_every: int = 3  # critic updates per actor update
    batch_size: int = 512
    n_step: int | None = None  # steps of reward before the critic's target bootstraps; None: the chunk's h
    capacity: int = 1_000_000  # states in the replay
    envs: int = 1  # environments stepped together, each in a worker process when more than one
    log_every: int = 500  # environment steps between training rows of metrics.jsonl

    def __post_init__(self) -> None:
        recipe.require(self, "steps", "random_steps", "actor_every", "batch_size", "envs", "log_every", least=1)
        recipe.require(self, "updates_per_step", least=0)

    @property
    def start_updates(self) -> int:
        return self.random_steps

    @property
    def start_actor(self) -> int:
        return self.random_steps


def train(tree: Mapping[str, Any], name: str | None = None) -> Path:
    """Run it (or continue it). checkpoints/NAME.pt is there from the first evaluation on; returns its path."""
    settings = Settings.read(with_defaults(tree))
    if settings.env is None:
        raise UsageError("no environment was named", "flowft train --env HalfCheetah-v5")
    algorithm = registry.get("algos", settings.algo)
    require_stage(settings.algo, algorithm, from_scratch=True)
    require_rollout(settings, algorithm)
    loop, config = split(settings, "train", {"loop": Loop}).values()
    require_unused(settings, "pretrain", "finetune")
    require_reach("train", loop.n_step, settings.policy.horizon)
    where = device.resolve(settings.device)
    settings.apply_threads()
    env = environment(settings, None)
    assert env is not None  # `settings.env` names it
    name = name or default_name(env.id)
    with Vector(env, loop.envs) as vector:
        torch.manual_seed(settings.seed)  # of the initial weights
        policy = policies.build(algorithm.policy_kind, vector.spec, settings.networks).to(where)
        algo = algorithm(policy, settings.critic, config, settings.seed)
        online = Replay(loop.capacity, vector.spec.observation_dim, vector.spec.action_dim, reward_transform(settings), settings.seed + 1)
        data = mixture.Mixture(None, online, mixture.Config())
        collector = Collector(vector, algo.acting, online, settings.seed, loop.random_steps)
        with RunFolder(name, "train", recipe.to_tree(settings), FREE, settings.wandb) as folder, Interrupts() as interrupts:
            say(f"{name}: {env.id} from scratch, {loop.steps} steps, {settings.algo}, on {where}")
            evaluator = Evaluator(env, settings.eval)
            out = checkpoint.folder() / f"{name}.pt"

            def publish(step: int, latest: Mapping[str, Any]) -> None:
                evaluation = {"env": env.id, **settings.eval.origin(), **latest}
                now = checkpoint_content(settings, "train", step, algo.acting, algo.state_dict(), env, None, evaluation)
                checkpoint.save(out, "policy checkpoint", now)

            try:
                Run(folder, interrupts, algo, collector, data, evaluator, loop, publish, settings.diagnostics).go(settings.eval.every)
            finally:
                evaluator.close()
        return out


def with_defaults(tree: Mapping[str, Any]) -> recipe.Tree:
    """The recipe on top of what is different from scratch; each network brings its own sizes."""
    network = recipe.section(tree, "policy").get("network", DEFAULTS["policy"]["network"])
    return recipe.merge(DEFAULTS, {"policy": {"net": NETS.get(network, {})}}, tree)


def default_name(env_id: str) -> str:
    """`HalfCheetah-v5` -> halfcheetah-v5."""
    return re.sub(r"[^\w.-]+", "-", env_id).lower()
