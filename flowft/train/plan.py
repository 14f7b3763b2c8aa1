"""A run, put together and checked in one place: (command, checkpoint or none, recipe tree) becomes a plan.

Every refusal is here (or in checks.py, which this calls), with its fix, and it has happened before anything is trained or
written. A stage (pretrain.py, finetune.py, scratch.py) then does what its plan says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic

import torch

from flowft import checkpoint, device, recipe
from flowft.algos import base as algos
from flowft.algos.base import Algorithm
from flowft.data import mixture, source
from flowft.data.description import Description
from flowft.data.replay import observation_statistics
from flowft.data.spec import Dataset, EnvSpec, Spec
from flowft.envs.vector import Vector
from flowft.errors import EnvError, UsageError
from flowft.policies import policy as policies
from flowft.policies.base import Policy
from flowft.train import checks, loops, names, runlog, simulator
from flowft.train.checks import Start
from flowft.train.origins import Layer, checkpoint_recipe, scratch_layers
from flowft.train.run import other_versions
from flowft.train.settings import (
    L,
    Reward,
    Settings,
    Stage,
    defaults_of,
    finetune_section,
    pretrain_section,
    train_section,
)


@dataclass(frozen=True)
class Plan(Generic[L]):
    """What will be trained on what, where and with which settings. A context manager: it holds built simulators."""

    stage: Stage
    name: str  # of runs/NAME and checkpoints/NAME.pt
    settings: Settings  # resolved: what the dataset decides is written out
    loop: L
    algo: Algorithm  # on its device, with what it takes over
    device: torch.device
    dataset: Dataset | None
    env: EnvSpec | None
    simulators: Vector | None  # built and compared: what the clone is evaluated in, what a live policy acts in
    layers: tuple[Layer, ...]  # where the settings came from, later ones win
    start: Start | None = None
    takes: tuple[str, ...] = ()  # what is taken over from the checkpoint
    saved_step: int = 0  # where a run of this name stands already
    mixture: mixture.Config = field(default_factory=mixture.Config)
    notes: tuple[str, ...] = ()

    @property
    def out(self) -> Path:
        """The checkpoint that the run writes."""
        return checkpoint.folder() / f"{self.name}.pt"

    @property
    def run_folder(self) -> Path:
        """Where its metrics and states lie."""
        return runlog.folder(self.name)

    @property
    def kept(self) -> recipe.Tree:
        """What the run folder keeps, by which a continued run knows itself."""
        tree = recipe.to_tree(self.settings)
        return tree if self.dataset is None else tree | {"dataset_hash": source.recorded(self.dataset, self.run_folder / "recipe.yaml")}

    @property
    def policy(self) -> Description:
        """What the policy sees and does."""
        policy, told = self.algo.policy, bool((self.algo.policy.normalizer.mean != 0).any())
        return Description("policy", self.name, policy.spec, policy.horizon, told)

    def folder(self) -> runlog.RunFolder:
        """The run's folder, opened: the first thing that is written."""
        return runlog.RunFolder(self.name, self.stage, self.kept, self.loop.FREE, self.settings.wandb, recipe.to_tree(Settings()))

    def close(self) -> None:
        """End the simulators."""
        if self.simulators is not None:
            self.simulators.close()

    def __enter__(self) -> Plan[L]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def pretraining(tree: Mapping[str, Any], name: str | None = None, layers: Sequence[Layer] = ()) -> Plan[loops.Pretrain]:
    """From demonstrations to a clone. `layers`: where the tree came from, for whoever asks."""
    settings = Settings.read(tree)
    if settings.dataset is None:
        raise UsageError("no dataset was named", "flowft pretrain --dataset scripted/lift")
    checks.require_stage(settings.algo, algos.named(settings.algo), from_scratch=False)
    checks.require_unused(settings, "train")
    section = pretrain_section(settings)
    checks.rehearse(settings)  # a finetune setting that does not fit must not wait until the policy has been cloned
    name = names.usable(name or names.of_dataset(settings.dataset))
    where = _place(settings)
    dataset = source.load(settings.dataset, settings.data)
    settings = settings.with_dataset(dataset)
    env = simulator.environment(settings, dataset)
    vector, why = simulator.for_cloning(settings, dataset, env) if env is not None and section.loop.evaluate else (None, None)
    with _closing(vector):
        told = simulator.compared(settings, dataset, env, name) if env is not None and vector is not None else []
        algo = _learner(settings, section.algo, dataset, where)
    return _allowed(
        Plan(
            "pretrain", name, settings, section.loop, algo, where, dataset, env, vector,
            (*_below(settings), *layers), notes=(*dataset.notes, *([why] if why else []), *told),
        )
    )  # fmt: skip


def finetuning(ckpt: Path | str, tree: Mapping[str, Any], name: str | None = None, layers: Sequence[Layer] = ()) -> Plan[loops.Finetune]:
    """From a checkpoint to a policy improved online. The checkpoint's settings lie below the tree's."""
    path = checkpoint.find(str(ckpt))
    start = Start(path, checkpoint.load(path, "policy checkpoint"))
    before = checkpoint_recipe(start.content, tree)
    settings = Settings.read(recipe.merge(before, tree))
    algorithm = algos.named(settings.algo)
    checks.require_stage(settings.algo, algorithm, from_scratch=False)
    checks.require_unused(settings, "train")
    section = finetune_section(settings)
    checks.require_rollout(settings, algorithm)
    checks.require_reach("finetune", section.loop.n_step, settings.policy.horizon)
    checks.require_same_kind(start, settings)
    name = names.usable(name or f"{path.stem}-finetuned")
    where = _place(settings)
    env = simulator.environment(settings, None, EnvSpec.from_tree(start.content["env"]) if start.content["env"] else None)
    if env is None:
        raise EnvError(f"{path} does not say in which environment to fine-tune", "--env ENV")
    dataset = checks.same_dataset(start, settings)
    settings = settings.with_dataset(dataset)
    seen = Description.of_checkpoint(path, start.content)
    seen.require_fit(Description.of_dataset(dataset), f"flowft data info {names.quoted(dataset.id)}")
    spec = dataset.spec if seen.spec.unnamed else seen.spec  # a converted policy knows sizes only
    vector = simulator.built(env, section.loop.envs, Description("policy", str(path), spec, rate=seen.rate), _that_env(start))
    with _closing(vector):
        told = simulator.compared(settings, dataset, env, name)
        algo = _continued(settings, section.algo, start, spec, where)
        checks.require_moments(algo, start, section.loop)
        takes = _take_over(algo, start, section.loop)
    return _allowed(
        Plan(
            "finetune", name, settings, section.loop, algo, where, dataset, env, vector,
            (*_below(settings), Layer("checkpoint", before, whole=True), *layers), start, takes,
            mixture=section.mixture or mixture.Config(), notes=(*_remarks(start, settings, section.loop, algo, takes), *told),
        )
    )  # fmt: skip


def from_scratch(tree: Mapping[str, Any], name: str | None = None, layers: Sequence[Layer] = ()) -> Plan[loops.Scratch]:
    """From nothing but an environment."""
    below = scratch_layers(tree)
    settings = Settings.read(recipe.merge(*(layer.tree for layer in below), tree))
    if settings.env is None:
        raise UsageError("no environment was named", "flowft train --env HalfCheetah-v5")
    algorithm = algos.named(settings.algo)
    checks.require_stage(settings.algo, algorithm, from_scratch=True)
    checks.require_rollout(settings, algorithm)
    section = train_section(settings)
    checks.require_unused(settings, "pretrain", "finetune")
    checks.require_reach("train", section.loop.n_step, settings.policy.horizon)
    where = _place(settings)
    env = simulator.environment(settings, None)
    assert env is not None  # `settings.env` names it
    name = names.usable(name or names.of_environment(env.id))
    vector = Vector(env, section.loop.envs)
    with _closing(vector):
        torch.manual_seed(settings.seed)  # of the initial weights
        policy = policies.build(algorithm.policy_kind, vector.spec, settings.networks).to(where)
        algo = algorithm(policy, settings.critic, section.algo, settings.seed)
    return _allowed(
        Plan("train", name, settings, section.loop, algo, where, None, env, vector, (*_below(settings), *below, *layers))
    )  # fmt: skip


# Pieces -----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _closing(simulators: Vector | None) -> Iterator[None]:
    """Simulators end with what fails after they were built."""
    try:
        yield
    except BaseException:
        if simulators is not None:
            simulators.close()
        raise


def _place(settings: Settings) -> torch.device:
    where = device.resolve(settings.device)
    settings.apply_threads()
    return where


def _below(settings: Settings) -> tuple[Layer, ...]:
    return (Layer(f"algorithm {settings.algo}", defaults_of(settings.algo)),)


def _learner(settings: Settings, config: algos.Config, dataset: Dataset, where: torch.device) -> Algorithm:
    """An untrained one for these data."""
    algorithm = algos.named(settings.algo)
    torch.manual_seed(settings.seed)  # of the initial weights
    policy: Policy = policies.build(algorithm.policy_kind, dataset.spec, settings.networks).to(where)
    policy.normalizer.fit(*observation_statistics(dataset))
    return algorithm(policy, settings.critic, config, settings.seed)


def _continued(settings: Settings, config: algos.Config, start: Start, spec: Spec, where: torch.device) -> Algorithm:
    """One around the checkpoint's policy, which sees and does what `spec` says."""
    algorithm = algos.named(settings.algo)
    torch.manual_seed(settings.seed)  # of a critic that starts anew
    as_trained = {**start.content, "recipe": recipe.to_tree(settings), "policy_kind": algorithm.policy_kind}
    policy = policies.from_checkpoint(as_trained).to(where)
    policy.spec = spec
    return algorithm(policy, settings.critic, config, settings.seed)


def _take_over(algo: Algorithm, start: Start, loop: loops.Finetune) -> tuple[str, ...]:
    """What the checkpoint holds beside the policy: its critic, and Adam's state, when asked. Says what was taken."""
    critic = not loop.fresh_critic and not (algo.critic is not None and "critic" not in start.content["algo"])
    algo.load_pretrained(start.content["algo"], critic=critic, optimizers=loop.keep_optimizers)
    return ("policy", *(["critic"] if critic and algo.critic is not None else []), *(["optimizers"] if loop.keep_optimizers else []))


def _remarks(start: Start, settings: Settings, loop: loops.Finetune, algo: Algorithm, takes: Sequence[str]) -> list[str]:
    """What is no error, but must not be silent either."""
    out = []
    fresh = loop.fresh_critic or "critic" not in start.content["algo"]
    if algo.critic is not None and "critic" not in takes and not loop.fresh_critic:
        out.append(f"{start.path} has no critic; a fresh one starts untrained")
    before = recipe.build(Reward, start.content["recipe"]["reward"], "reward")
    if before.shift is not None and before != settings.reward and not fresh:  # it has to unlearn the old ones first
        was, new = (f"{reward.scale:g}·r {reward.shift or 0:+g}" for reward in (before, settings.reward))
        out.append(f"the critic in {start.path} learned from {was}, now it is {new} (--set finetune.fresh_critic=true starts a new one)")
    return out + [f"{difference}: the same actions may lead elsewhere" for difference in other_versions(start.content)]


def _that_env(start: Start) -> str:
    env = start.content["env"]
    return f"--env {env['family']}:{env['id']}" if env else "--env with the environment that it was trained in"


def _allowed(plan: Plan[L]) -> Plan[L]:
    """The plan, unless its folder holds another run, is in use, or cannot be written."""
    with _closing(plan.simulators):
        runlog.require_room(plan.name, plan.out)
        runlog.require_unlocked(plan.name)
        runlog.require_same_run(plan.name, plan.stage, plan.kept, plan.loop.FREE, recipe.to_tree(Settings()))
        saved = runlog.state(plan.name)
        if saved is not None and isinstance(plan.loop, loops.Pretrain):
            _require_order(plan, saved, plan.loop)
    return replace(plan, saved_step=int(saved["step"])) if saved is not None else plan


def _require_order(plan: Plan[L], saved: Mapping[str, Any], loop: loops.Pretrain) -> None:
    """A clone goes on where it stopped: not back before it, and not back to cloning once that is over."""
    step = int(saved["step"])
    cloning = int(saved.get("cloning", min(step, loop.updates)))
    if step > loop.total:
        what = f"{plan.run_folder} has had {step} updates, more than the {loop.total} asked for"
        raise UsageError(what, f"--name {names.quoted(plan.name + '-2')}")
    if step > cloning != loop.updates:
        what = f"{plan.run_folder} went on from cloning after {cloning} updates; {loop.updates} of them are asked for"
        raise UsageError(what, f"--set pretrain.updates={cloning}")
