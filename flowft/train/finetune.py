"""Fine-tuning: the policy acts, its steps join the demonstrations in every batch, SAC Flow improves it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowft import checkpoint, device, recipe, registry
from flowft.data import mixture, source
from flowft.data.replay import Replay, from_dataset
from flowft.data.spec import Dataset, EnvSpec, Spec
from flowft.envs import base
from flowft.envs.vector import Vector
from flowft.errors import CheckpointError, DataError, EnvError, UsageError
from flowft.policies import policy as policies
from flowft.train.collect import Collector
from flowft.train.evaluate import Evaluator
from flowft.train.online import Run
from flowft.train.run import (
    Interrupts,
    checkpoint_content,
    describe,
    environment,
    other_versions,
    require_reach,
    require_rollout,
    require_stage,
    require_unused,
)
from flowft.train.runlog import RunFolder, say
from flowft.train.runlog import folder as folder_of
from flowft.train.settings import Reward, Settings, defaults_of, reward_transform, split, without_knobs

FREE = ("finetune.steps", "eval.envs", "wandb", "threads", "device", "diagnostics")


@dataclass(frozen=True)
class Loop:
    """The fine-tuning loop's part of the `finetune` section."""

    steps: int = 1_000_000  # environment steps, all environments together
    random_steps: int = 0  # the first of them: uniformly random actions, as published for starts from nothing (RLPD)
    start_updates: int = 5_000  # environment steps before the critic learns
    start_actor: int = 5_000  # environment steps before the actor learns
    updates_per_step: float = 1.0  # critic updates per environment step
    actor_every: int = 1  # critic updates per actor update
    batch_size: int = 256
    n_step: int | None = None  # steps of reward before the critic's target bootstraps; None: the chunk's h
    capacity: int = 1_000_000  # states in the online replay
    envs: int = 1  # environments stepped together, each in a worker process when more than one
    fresh_critic: bool = False  # start with an untrained critic instead of the pretrained one
    keep_optimizers: bool = False  # keep Adam's state from pretraining
    log_every: int = 500  # environment steps between training rows of metrics.jsonl

    def __post_init__(self) -> None:
        recipe.require(self, "steps", "actor_every", "batch_size", "envs", "log_every", least=1)
        recipe.require(self, "random_steps", "start_updates", "start_actor", "updates_per_step", least=0)


def finetune(ckpt: Path, tree: Mapping[str, Any], name: str | None = None) -> Path:
    """Run it (or continue it) from a checkpoint. checkpoints/NAME.pt is there from the first evaluation on; returns its path."""
    path = checkpoint.find(str(ckpt))
    content = checkpoint.load(path, "policy checkpoint")
    settings = Settings.read(recipe.merge(_recipe_of(content, tree), tree))
    name = name or f"{path.stem}-finetuned"
    algorithm = registry.get("algos", settings.algo)
    require_stage(settings.algo, algorithm, from_scratch=False)
    require_unused(settings, "train")
    parts = sections(settings)
    loop: Loop = parts["loop"]
    require_rollout(settings, algorithm)
    require_reach("finetune", loop.n_step, settings.policy.horizon)
    where = device.resolve(settings.device)
    settings.apply_threads()
    env = environment(settings, None, EnvSpec.from_tree(content["env"]) if content["env"] else None)
    if env is None:
        raise EnvError(f"{path} does not say in which environment to fine-tune", f"flowft finetune --ckpt {path} --env ID")
    require_same_kind(path, content, settings)
    dataset = same_dataset(content, settings, path)
    settings = settings.with_dataset(dataset)

    torch.manual_seed(settings.seed)  # of a critic that starts anew
    as_trained = {**content, "recipe": recipe.to_tree(settings), "policy_kind": algorithm.policy_kind}
    policy = policies.from_checkpoint(as_trained).to(where)
    policy.spec = shared_spec(policy.spec, dataset, path)
    algo = algorithm(policy, settings.critic, parts["algo"], settings.seed)
    take_over(algo, content["algo"], loop, path)
    note_other_rewards(content, settings.reward, loop, path)
    transform = reward_transform(settings)
    online = Replay(loop.capacity, policy.spec.observation_dim, policy.spec.action_dim, transform, settings.seed + 1)
    data = mixture.Mixture(from_dataset(dataset, transform, settings.seed), online, parts["mixture"])
    kept = recipe.to_tree(settings) | {"dataset_hash": source.recorded(dataset, folder_of(name) / "recipe.yaml")}
    with RunFolder(name, "finetune", kept, FREE, settings.wandb) as folder, Interrupts() as interrupts, Vector(env, loop.envs) as vector:
        base.require_same(policy.spec, vector.spec, str(path), env.id)
        for difference in other_versions(content):
            say(f"note: {difference}: the same actions may lead elsewhere")
        say(f"{name}: {env.id} from {path}, {loop.steps} steps with {dataset.id}, on {where}")
        collector = Collector(vector, algo.acting, online, settings.seed, loop.random_steps)
        evaluator = Evaluator(env, settings.eval)
        out = checkpoint.folder() / f"{name}.pt"
        origin = _origin(content["dataset"], dataset)

        def publish(step: int, latest: Mapping[str, Any]) -> None:
            evaluation = {"env": env.id, **settings.eval.origin(), **latest}
            now = checkpoint_content(settings, "finetune", step, algo.acting, algo.state_dict(), env, origin, evaluation)
            checkpoint.save(out, "policy checkpoint", now)

        try:
            Run(folder, interrupts, algo, collector, data, evaluator, loop, publish, settings.diagnostics).go(settings.eval.every)
        finally:
            evaluator.close()
        return out


def sections(settings: Settings) -> dict[str, Any]:
    """The `finetune` section, split between the loop, the mixture and the algorithm."""
    return split(settings, "finetune", {"loop": Loop, "mixture": mixture.Config})


def _recipe_of(content: Mapping[str, Any], tree: Mapping[str, Any]) -> recipe.Tree:
    """The checkpoint's recipe; where another algorithm goes on, without the knobs of the one that made it.

    A variant of the same algorithm (its config a subclass) keeps them: they mean the same to it.
    """
    before: recipe.Tree = content["recipe"]
    old, new = (registry.get("algos", name).config_type for name in (before["algo"], tree.get("algo", before["algo"])))
    if not issubclass(new, old):
        before = {**before, "train": {}}
        before |= {section: without_knobs(before, section, content["recipe"]["algo"]) for section in ("pretrain", "finetune")}
    if "critic" not in content["algo"]:  # none to go on with: the new one is as the algorithm would have it
        before = recipe.merge(before, {"critic": defaults_of(tree.get("algo", before["algo"])).get("critic", {})})
    anew = tree.get("reward") or {}
    other = tree.get("dataset") not in (None, before.get("dataset"))
    if "shift" not in anew and ("scale" in anew or other):  # the shift follows from scale and dataset, unless it is given
        before = recipe.merge(before, {"reward": {"shift": None}})
    return before


def _origin(before: Mapping[str, Any] | None, dataset: Dataset) -> dict[str, Any]:
    """The demonstrations of this stage; the policy may have been cloned from others."""
    now = describe(dataset)
    if before is None or source.same_data(dataset, before["hash"]):
        return dict(before or now)
    return now | {"notes": [*now["notes"], f"it came from a policy cloned from {before['id']}, sha256 {before['hash']}"]}


def require_same_kind(path: Path, content: Mapping[str, Any], settings: Settings) -> None:
    """An algorithm goes on with the kind of policy that it trains, or with one whose weights that kind takes."""
    found, wanted = content.get("policy_kind", "flow"), registry.get("algos", settings.algo).policy_kind
    if found not in (wanted, *registry.get("policies", wanted).takes):
        made = content["recipe"]["algo"]
        raise UsageError(
            f"{path} holds a {found} policy, pretrained with algo={made}; {settings.algo} trains a {wanted} policy",
            f"flowft pretrain --dataset {(content['dataset'] or {'id': 'ID'})['id']} --set algo={settings.algo} --name NEW",
        )


def same_dataset(content: Mapping[str, Any], settings: Settings, path: Path) -> Dataset:
    """The demonstrations that the checkpoint was pretrained on; other bytes under the same name are an error."""
    before = content["dataset"]
    named = settings.dataset or (before["id"] if before else None)
    if named is None:
        raise DataError(f"{path} knows no demonstrations to go on with", f"flowft finetune --ckpt {path} --dataset ID|PATH --env ENV")
    dataset = source.load(named, settings.data)
    if before and settings.dataset == before["id"] and not source.unchanged(dataset, before["hash"], content["recipe"].get("data", {})):
        raise DataError(
            f"{dataset.path} has changed since the checkpoint was made from it (sha256 {dataset.hash[:12]}, then {before['hash'][:12]})",
            f"flowft pretrain --dataset {shlex.quote(dataset.id)}",
        )
    return dataset


def shared_spec(trained_on: Spec, dataset: Dataset, path: Path) -> Spec:
    """The policy's spec, which the dataset must have too; a converted policy, which knows sizes only, takes the dataset's."""
    if different := trained_on.differences(dataset.spec):
        what = f"{path} sees or does something else than {dataset.id} holds: {'; '.join(different)}"
        raise DataError(what, "--dataset with the observations and actions of the policy (flowft data info ID)")
    return dataset.spec if trained_on.unnamed else trained_on


def take_over(algo: Any, state: Mapping[str, Any], loop: Loop, path: Path) -> None:
    """What the checkpoint holds beside the policy: its critic, and Adam's state, when asked."""
    optimizers = {name for name in algo.state_dict() if name.endswith("optimizer")}
    if loop.keep_optimizers and not optimizers <= set(state):
        lacking = ", ".join(sorted(optimizers - set(state)))
        raise CheckpointError(f"{path} was made otherwise and holds no {lacking} to keep", "--set finetune.keep_optimizers=false")
    critic = not loop.fresh_critic
    if critic and hasattr(algo, "critic") and "critic" not in state:
        say(f"note: {path} has no critic; a fresh one starts untrained")
        critic = False
    algo.load_pretrained(state, critic=critic, optimizers=loop.keep_optimizers)


def note_other_rewards(content: Mapping[str, Any], now: Reward, loop: Loop, path: Path) -> None:
    """A critic that goes on under other rewards has to unlearn the old ones first: not an error, but not silent either."""
    before = recipe.build(Reward, content["recipe"]["reward"], "reward")
    if before.shift is not None and before != now and "critic" in content["algo"] and not loop.fresh_critic:
        was, new = (f"{reward.scale:g}·r {reward.shift or 0:+g}" for reward in (before, now))
        say(f"note: the critic in {path} learned from {was}, now it is {new} (--set finetune.fresh_critic=true starts a new one)")
