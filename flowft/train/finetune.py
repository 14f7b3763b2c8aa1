"""Fine-tuning: the policy acts, its steps join the demonstrations in every batch, SAC Flow improves it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from flowft import checkpoint, device, recipe, registry
from flowft.algos import diagnostics
from flowft.data import mixture, source
from flowft.data.replay import Replay, from_dataset
from flowft.data.spec import Batch, Dataset, EnvSpec, Spec
from flowft.envs import base
from flowft.envs.vector import Vector
from flowft.errors import CheckpointError, DataError, EnvError, UsageError
from flowft.policies import policy as policies
from flowft.train.collect import Collector, Finished
from flowft.train.evaluate import Evaluator
from flowft.train.nonfinite import Watch
from flowft.train.run import Clock, Interrupts, checkpoint_content, describe, environment, other_versions, require_stage, to_device
from flowft.train.runlog import Progress, RunFolder, say
from flowft.train.settings import Settings, reward_transform, split, without_knobs

FREE = ("finetune.steps", "eval.envs", "wandb", "threads", "device", "diagnostics")


@dataclass(frozen=True)
class Loop:
    """The fine-tuning loop's part of the `finetune` section."""

    steps: int = 1_000_000  # environment steps, all environments together
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


def finetune(ckpt: Path, tree: Mapping[str, Any], name: str | None = None) -> Path:
    """Run it (or continue it) from a checkpoint. checkpoints/NAME.pt is there from the first evaluation on; returns its path."""
    path = checkpoint.find(str(ckpt))
    content = checkpoint.load(path, "policy checkpoint")
    settings = Settings.read(recipe.merge(_recipe_of(content, tree), tree))
    name = name or f"{path.stem}-finetuned"
    algorithm = registry.get("algos", settings.algo)
    require_stage(settings.algo, algorithm, from_scratch=False)
    parts = sections(settings)
    loop: Loop = parts["loop"]
    if settings.diagnostics.gradients and not getattr(algorithm, "through_rollout", False):
        raise UsageError(f"the algorithm {settings.algo} learns nothing through the rollout", "--set diagnostics.gradients=false")
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
    transform = reward_transform(settings)
    online = Replay(loop.capacity, policy.spec.observation_dim, policy.spec.action_dim, transform, settings.seed + 1)
    data = mixture.Mixture(from_dataset(dataset, transform, settings.seed), online, parts["mixture"])
    kept = recipe.to_tree(settings) | {"dataset_hash": dataset.hash}
    with RunFolder(name, "finetune", kept, FREE, settings.wandb) as folder, Interrupts() as interrupts, Vector(env, loop.envs) as vector:
        base.require_same(policy.spec, vector.spec, str(path), env.id)
        for difference in other_versions(content):
            say(f"note: {difference}: the same actions may lead elsewhere")
        say(f"{name}: {env.id} from {path}, {loop.steps} steps with {dataset.id}, on {where}")
        collector = Collector(vector, algo.acting, online, settings.seed)
        evaluator = Evaluator(env, settings.eval)
        out = checkpoint.folder() / f"{name}.pt"
        origin = content["dataset"] or describe(dataset)

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


class Pace(Protocol):
    """How much is done when: what `Run` reads from a loop's settings."""

    @property
    def steps(self) -> int: ...
    @property
    def start_updates(self) -> int: ...
    @property
    def start_actor(self) -> int: ...
    @property
    def updates_per_step(self) -> float: ...
    @property
    def actor_every(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def n_step(self) -> int | None: ...
    @property
    def log_every(self) -> int: ...


class Run:
    """The loop and its counters, for fine-tuning and for training from scratch."""

    def __init__(
        self,
        folder: RunFolder,
        interrupts: Interrupts,
        algo: Any,
        collector: Collector,
        data: mixture.Mixture,
        evaluator: Evaluator,
        loop: Pace,
        publish: Callable[[int, Mapping[str, Any]], None],
        diagnose: diagnostics.Config,
    ) -> None:
        """`publish(step, evaluation)` is called with each evaluated policy."""
        self.folder, self.interrupts, self.algo, self.collector = folder, interrupts, algo, collector
        self.data, self.evaluator, self.loop, self.publish = data, evaluator, loop, publish
        self.diagnose, self.device = diagnose, algo.policy.normalizer.mean.device
        self.watch = Watch(folder, diagnose.nonfinite_limit, self.device, algo.config)
        self.batch: Batch | None = None  # of the last update
        self.step = 0  # environment steps
        self.updates = 0  # critic updates
        self.actor_updates = 0
        self.evaluated = 0  # actor updates of the policy that `latest` is about
        self.latest: dict[str, Any] = {}  # evaluation
        self.metrics: dict[str, Any] = {}  # each as of the last update that gave it: the actor learns less often than the critic
        self.recent: deque[Finished] = deque(maxlen=50)  # training episodes, for the progress line

    def go(self, eval_every: int) -> None:
        """Collect, update, evaluate, save, until `steps`."""
        self._begin()
        clock, progress = Clock(), Progress(self.folder.stage, self.loop.steps, self.step, "step")
        while self.step < self.loop.steps:
            lanes = self.collector.vector.count
            for ended in self.collector.step():
                self.recent.append(ended)
                self.folder.write("episode", self.step + lanes, {"return": ended.total, "success": ended.success, "length": ended.length})
            before, self.step = self.step, self.step + lanes
            self._update()
            if self.watch.verdict:
                self._save()
                raise self.watch.verdict
            progress.advance(self.step, lanes)
            if self.metrics and crossed(before, self.step, self.loop.log_every):
                self.folder.write("train", self.step, self.metrics)
            if self.diagnose.gradients and self.batch and crossed(before, self.step, self.diagnose.every):
                self.folder.write("gradients", self.step, diagnostics.gradients(self.algo, self.batch, self.diagnose.elements))
            if (eval_every and crossed(before, self.step, eval_every)) or self.step >= self.loop.steps:
                self._evaluate(progress)
                self._save()
            elif self.interrupts.asked or clock.due():
                self._save()
            if self.interrupts.asked and self.step < self.loop.steps:
                raise KeyboardInterrupt
        progress.close()

    def _update(self) -> None:
        """As many updates as this step owes."""
        owed = int(max(0, self.step - self.loop.start_updates) * self.loop.updates_per_step)
        while self.updates < owed:
            batch = self.data.sample(self.loop.batch_size, self.algo.policy.horizon, self.step, self.loop.n_step)
            self.updates += 1
            actor = self.step > self.loop.start_actor and self.updates % self.loop.actor_every == 0
            self.actor_updates += int(actor)
            self.batch = to_device(batch, self.device)
            now = self.algo.update(self.batch, actor=actor)
            self.watch.see(self.step, self.batch, now)
            self.metrics |= now

    def _evaluate(self, progress: Progress) -> None:
        if self.actor_updates != self.evaluated:  # the same policy on the same seeds gives the same numbers
            self.latest = self.evaluator(self.algo.acting).row()
            self.evaluated = self.actor_updates
        self.folder.write("eval", self.step, self.latest)
        self.publish(self.step, self.latest)
        progress.say(f"step {self.step}: {_score(self.latest)}{_training(self.recent)}")

    def _begin(self) -> None:
        if saved := self.folder.saved():
            for name in _COUNTERS:
                setattr(self, name, saved.get(name, getattr(self, name)))  # older runs kept no metrics
            self.algo.load_state_dict(saved["algo"])
            self.data.load_state_dict(saved)
            self.collector.load_state_dict(saved["collector"])
            self.watch.in_a_row = dict(saved.get("nonfinite", {}))  # states of older versions lack it
            say(f"continuing at step {self.step}")
            return
        self.collector.begin()
        self.latest = self.evaluator(self.algo.acting).row()
        self.folder.write("eval", 0, self.latest)
        came = "untrained" if self.folder.stage == "train" else "the policy as it came"
        say(f"step 0 ({came}): {_score(self.latest)}")
        self._save()

    def _save(self) -> None:
        self.watch.look()
        self.folder.save(
            {
                **{name: getattr(self, name) for name in _COUNTERS}, "algo": self.algo.state_dict(),
                "collector": self.collector.state_dict(), "nonfinite": self.watch.in_a_row, **self.data.state_dict(),
            }
        )  # fmt: skip


_COUNTERS = ("step", "updates", "actor_updates", "evaluated", "latest", "metrics")


def _score(row: Mapping[str, Any]) -> str:
    return f"{row['successes']}/{row['episodes']} successes, mean return {row['return']:.1f}, length {row['length']:.0f}"


def _training(recent: Sequence[Finished]) -> str:
    if not recent:
        return ""
    mean = sum(ended.total for ended in recent) / len(recent)
    return f"; last {len(recent)} training episodes: {sum(ended.success for ended in recent)} successes, mean return {mean:.1f}"


def crossed(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every != after // every


def _recipe_of(content: Mapping[str, Any], tree: Mapping[str, Any]) -> recipe.Tree:
    """The checkpoint's recipe; where another algorithm goes on, without the knobs of the one that made it.

    A variant of the same algorithm (its config a subclass) keeps them: they mean the same to it.
    """
    before: recipe.Tree = content["recipe"]
    old, new = (registry.get("algos", name).config_type for name in (before["algo"], tree.get("algo", before["algo"])))
    if issubclass(new, old):
        return before
    return {**before, **{section: without_knobs(before, section, before["algo"]) for section in ("pretrain", "finetune")}}


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
    if before and settings.dataset == before["id"] and dataset.hash != before["hash"]:
        raise DataError(
            f"{dataset.path} has changed since the checkpoint was made from it (sha256 {dataset.hash[:12]}, then {before['hash'][:12]})",
            f"flowft pretrain --dataset {dataset.id}",
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
