"""Pretraining: clone the demonstrations by flow matching, train the critic on them, optionally go on with regularised RL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowft import checkpoint, device, recipe, registry
from flowft.data import source
from flowft.data.replay import Replay, from_dataset, observation_statistics
from flowft.data.spec import Dataset
from flowft.errors import UsageError
from flowft.policies import policy as policies
from flowft.train.evaluate import evaluate
from flowft.train.finetune import sections
from flowft.train.nonfinite import Watch
from flowft.train.run import (
    Clock,
    Interrupts,
    checkpoint_content,
    describe,
    environment,
    require_reach,
    require_stage,
    require_unused,
    to_device,
)
from flowft.train.runlog import Progress, RunFolder, say
from flowft.train.runlog import folder as folder_of
from flowft.train.settings import Settings, reward_transform, split

FREE = ("pretrain.updates", "pretrain.regularised_updates", "eval.", "wandb", "threads", "device", "finetune.", "diagnostics")


@dataclass(frozen=True)
class Loop:
    """The pretraining loop's part of the `pretrain` section."""

    updates: int = 1_000_000  # of cloning, one critic update with each
    regularised_updates: int = 0  # after them: offline updates of the regularised actor loss
    batch_size: int = 256
    n_step: int | None = None  # steps of reward before the critic's target bootstraps; None: the chunk's h
    log_every: int = 500  # updates between rows of metrics.jsonl
    evaluate: bool = True  # in the simulator at the end

    def __post_init__(self) -> None:
        recipe.require(self, "updates", "batch_size", "log_every", least=1)
        recipe.require(self, "regularised_updates", least=0)


def pretrain(tree: Mapping[str, Any], name: str | None = None) -> Path:
    """Run it (or continue it) as the recipe says; writes checkpoints/NAME.pt and returns that path."""
    settings = Settings.read(tree)
    if settings.dataset is None:
        raise UsageError("no dataset was named", "flowft pretrain --dataset scripted/lift")
    algorithm = registry.get("algos", settings.algo)
    require_stage(settings.algo, algorithm, from_scratch=False)
    loop, config = split(settings, "pretrain", {"loop": Loop}).values()
    require_unused(settings, "train")
    require_reach("pretrain", loop.n_step, settings.policy.horizon)
    sections(settings)  # a misspelt finetune setting must not wait until the policy has been cloned
    where = device.resolve(settings.device)
    settings.apply_threads()
    dataset = source.load(settings.dataset, settings.data)
    name = name or default_name(settings.dataset)
    settings = settings.with_dataset(dataset)
    say(f"{name}: {len(dataset.episodes)} episodes, {dataset.steps} steps from {dataset.path}, on {where}")
    for note in dataset.notes:
        say(f"note: {note}")

    torch.manual_seed(settings.seed)  # of the initial weights
    policy = policies.build(algorithm.policy_kind, dataset.spec, settings.networks).to(where)
    policy.normalizer.fit(*observation_statistics(dataset))
    algo = algorithm(policy, settings.critic, config, settings.seed)
    replay = from_dataset(dataset, reward_transform(settings), settings.seed)
    kept = recipe.to_tree(settings) | {"dataset_hash": source.recorded(dataset, folder_of(name) / "recipe.yaml")}
    with RunFolder(name, "pretrain", kept, FREE, settings.wandb) as folder, Interrupts() as interrupts:
        watch = Watch(folder, settings.diagnostics.nonfinite_limit, where, config)
        run_updates(folder, interrupts, algo, replay, loop, where, watch)
        return finish(folder, name, settings, algo, dataset, loop)


def run_updates(
    folder: RunFolder, interrupts: Interrupts, algo: Any, replay: Replay, loop: Loop, where: torch.device, watch: Watch
) -> None:
    """Cloning updates, then regularised ones; saves as it goes."""
    total = loop.updates + loop.regularised_updates
    step = 0
    saved = folder.saved()
    if saved is not None:
        step = saved["step"]
        _require_order(folder, step, saved.get("cloning", min(step, loop.updates)), loop)
        algo.load_state_dict(saved["algo"])
        replay.generator.set_state(saved["replay_rng"])
        watch.in_a_row = dict(saved.get("nonfinite", {}))  # states of older versions lack it
        if step:
            say(f"continuing at update {step}")
    regularise = getattr(algo, "regularise", algo.update)
    clock, progress = Clock(), Progress("pretrain", total, step, "update")

    def save() -> None:
        watch.look()
        watch.require_sound(step, algo, replay.observation[:16].numpy())
        folder.save(
            {
                "step": step, "cloning": min(step, loop.updates), "algo": algo.state_dict(), "replay_rng": replay.generator.get_state(),
                "nonfinite": watch.in_a_row,
            }
        )  # fmt: skip

    if saved is None:
        save()  # a sound state, whatever comes
    while step < total:
        batch = to_device(replay.sample(loop.batch_size, algo.policy.horizon, offline=True, n_step=loop.n_step), where)
        metrics = algo.clone(batch) if step < loop.updates else regularise(batch)
        step += 1
        watch.see(step, batch, metrics)
        if watch.verdict:
            save()
            raise watch.verdict
        progress.advance(step, 1)
        if step % loop.log_every == 0:
            folder.write("train", step, metrics)
            progress.show(f"flow matching {metrics['flow_matching_loss']:.3f}" if "flow_matching_loss" in metrics else "")
        if interrupts.asked or clock.due():
            save()
        if interrupts.asked:
            raise KeyboardInterrupt
    progress.close()
    save()
    if watch.verdict:
        raise watch.verdict


def _require_order(folder: RunFolder, step: int, cloning: int, loop: Loop) -> None:
    """A run goes on where it stopped: not back before it, and not back to cloning once that is over."""
    fix = "--name NEW, or the numbers of updates that it was started with"
    if step > loop.updates + loop.regularised_updates:
        raise UsageError(f"{folder.path} has had {step} updates, more than the {loop.updates + loop.regularised_updates} asked for", fix)
    if step > cloning != loop.updates:
        raise UsageError(f"{folder.path} went on from cloning after {cloning} updates; {loop.updates} of them are asked for", fix)


def finish(folder: RunFolder, name: str, settings: Settings, algo: Any, dataset: Dataset, loop: Loop) -> Path:
    """Evaluate the cloned policy where that is possible, and write its checkpoint."""
    env = environment(settings, dataset)
    evaluation = None
    if loop.evaluate and env is not None:
        result = evaluate(algo.acting, env, settings.eval)
        evaluation = {"env": env.id, **settings.eval.origin(), **result.row()}
        folder.write("eval", loop.updates + loop.regularised_updates, result.row())
        say(f"cloned policy: {sum(result.success)}/{len(result.success)} successes, mean return {evaluation['return']:.1f}")
    path = checkpoint.folder() / f"{name}.pt"
    content = checkpoint_content(
        settings, "pretrain", loop.updates + loop.regularised_updates, algo.acting, algo.state_dict(), env, describe(dataset), evaluation
    )
    checkpoint.save(path, "policy checkpoint", content)
    return path


def default_name(dataset: str) -> str:
    """`robomimic/can/mh` -> can, `my/demos.hdf5` -> demos."""
    parts = [part for part in dataset.split("/") if part]
    known = parts[0] in registry.names("sources") and len(parts) > 1
    return parts[1] if known else Path(dataset).stem
