"""Pretraining: clone the demonstrations by flow matching, train the critic on them, optionally go on with regularised RL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowft import checkpoint
from flowft.data.replay import from_dataset
from flowft.data.spec import Batch
from flowft.train import plan as planning
from flowft.train.evaluate import Evaluator
from flowft.train.loops import Pretrain as Loop
from flowft.train.nonfinite import Watch
from flowft.train.plan import Plan
from flowft.train.run import Clock, Interrupts, checkpoint_content, describe, to_device
from flowft.train.runlog import Progress, RunFolder, say
from flowft.train.settings import reward_transform


def pretrain(tree: Mapping[str, Any], name: str | None = None) -> Path:
    """Run it (or continue it) as the recipe says; writes checkpoints/NAME.pt and returns that path."""
    with planning.pretraining(tree, name) as plan:
        return run(plan)


def run(plan: Plan[Loop]) -> Path:
    """Clone, go on offline where that is asked, evaluate, publish."""
    assert plan.dataset is not None  # pretraining has one
    say(f"{plan.name}: {len(plan.dataset.episodes)} episodes, {plan.dataset.steps} steps from {plan.dataset.path}, on {plan.device}")
    for note in plan.notes:
        say(f"note: {note}")
    with plan.folder() as folder, Interrupts() as interrupts:
        cloning = Cloning(plan, folder, interrupts)
        cloning.go()
        return cloning.finish()


class Cloning:
    """The updates and what a continued run needs of them."""

    def __init__(self, plan: Plan[Loop], folder: RunFolder, interrupts: Interrupts) -> None:
        assert plan.dataset is not None
        self.plan, self.folder, self.interrupts, self.algo, self.loop = plan, folder, interrupts, plan.algo, plan.loop
        self.replay = from_dataset(plan.dataset, reward_transform(plan.settings), plan.settings.seed)
        self.watch = Watch(folder, plan.settings.diagnostics.nonfinite_limit, plan.device, plan.algo.config)
        self.step = 0

    def go(self) -> None:
        """Cloning updates, then regularised ones; saves as it goes."""
        self._begin()
        clock, progress = Clock(), Progress("pretrain", self.loop.total, self.step, "update")
        while self.step < self.loop.total:
            batch = self._batch()
            metrics = self.algo.clone(batch) if self.step < self.loop.updates else self.algo.regularise(batch)
            self.step += 1
            self.watch.see(self.step, batch, metrics)
            if self.watch.verdict:
                self._save()
                raise self.watch.verdict
            progress.advance(self.step, 1)
            if self.step % self.loop.log_every == 0:
                self.folder.write("train", self.step, metrics)
                progress.show(f"flow matching {metrics['flow_matching_loss']:.3f}" if "flow_matching_loss" in metrics else "")
            if self.interrupts.asked or clock.due():
                self._save()
            if self.interrupts.asked:
                raise KeyboardInterrupt
        progress.close()
        self._save()
        if self.watch.verdict:
            raise self.watch.verdict

    def finish(self) -> Path:
        """Write the checkpoint; evaluate the cloned policy where that is possible, and write it again with the result."""
        self._publish(None)  # an evaluation that fails costs the evaluation, not the clone
        if self.plan.simulators is not None:
            env = self.plan.env
            assert env is not None  # it was built
            result = Evaluator(env, self.plan.settings.eval, self.plan.simulators)(self.algo.acting).row()
            self.folder.write("eval", self.loop.total, result)
            say(f"cloned policy: {result['successes']}/{result['episodes']} successes, mean return {result['return']:.1f}")
            self._publish({"env": env.id, **self.plan.settings.eval.origin(), **result})
        return self.plan.out

    def _batch(self) -> Batch:
        found = self.replay.sample(self.loop.batch_size, self.algo.policy.horizon, offline=True, n_step=self.loop.n_step)
        return to_device(found, self.plan.device)

    def _begin(self) -> None:
        saved = self.folder.saved()
        if saved is None:
            self._save()  # a sound state, whatever comes
            return
        self.step = saved["step"]
        self.algo.load_state_dict(saved["algo"])
        self.replay.generator.set_state(saved["replay_rng"])
        self.watch.in_a_row = dict(saved.get("nonfinite", {}))  # states of older versions lack it
        if self.step:
            say(f"continuing at update {self.step}")

    def _save(self) -> None:
        self.watch.look()
        self.watch.require_sound(self.step, self.algo, self.replay.observation[:16].numpy())
        self.folder.save(
            {
                "step": self.step, "cloning": min(self.step, self.loop.updates), "algo": self.algo.state_dict(),
                "replay_rng": self.replay.generator.get_state(), "nonfinite": self.watch.in_a_row,
            }
        )  # fmt: skip

    def _publish(self, evaluation: Mapping[str, Any] | None) -> None:
        assert self.plan.dataset is not None
        content = checkpoint_content(
            self.plan.settings, "pretrain", self.loop.total, self.algo, self.plan.env, describe(self.plan.dataset), evaluation
        )
        checkpoint.save(self.plan.out, "policy checkpoint", content)
