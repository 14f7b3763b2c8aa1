"""The online loop: collect, update, evaluate, save. Fine-tuning and training from scratch are this, with other beginnings."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowft import checkpoint
from flowft.algos import diagnostics
from flowft.algos.base import ThroughRollout
from flowft.data import mixture
from flowft.data.replay import Replay
from flowft.data.spec import Batch
from flowft.errors import NonFiniteAction
from flowft.train import loops
from flowft.train.collect import Collector, Finished
from flowft.train.evaluate import Evaluator
from flowft.train.nonfinite import Watch
from flowft.train.plan import Plan
from flowft.train.run import Clock, Interrupts, checkpoint_content, to_device
from flowft.train.runlog import Progress, RunFolder, say
from flowft.train.settings import reward_transform


def improve(plan: Plan[Any], demonstrations: Replay | None, origin: Mapping[str, Any] | None) -> Path:
    """The online stage of a plan: run it, or continue it. `origin`: what the checkpoint says of the demonstrations."""
    with plan.folder() as folder, Interrupts() as interrupts:
        run = Run(plan, demonstrations, origin, folder, interrupts)
        try:
            run.go(plan.settings.eval.every)
        finally:
            run.evaluator.close()
    return plan.out


class Run:
    """The loop and its counters, for fine-tuning and for training from scratch."""

    def __init__(
        self,
        plan: Plan[Any],
        demonstrations: Replay | None,
        origin: Mapping[str, Any] | None,
        folder: RunFolder,
        interrupts: Interrupts,
    ) -> None:
        assert plan.env is not None and plan.simulators is not None  # an online stage has both
        self.plan, self.origin, self.folder, self.interrupts = plan, origin, folder, interrupts
        self.algo, self.device, self.env = plan.algo, plan.device, plan.env
        self.loop: loops.Finetune | loops.Scratch = plan.loop
        self.diagnose = plan.settings.diagnostics
        spec, seed = self.algo.policy.spec, plan.settings.seed
        online = Replay(self.loop.capacity, spec.observation_dim, spec.action_dim, reward_transform(plan.settings), seed + 1)
        self.data = mixture.Mixture(demonstrations, online, plan.mixture)
        self.collector = Collector(plan.simulators, self.algo.acting, online, seed, self.loop.random_steps)
        self.evaluator = Evaluator(plan.env, plan.settings.eval)
        self.watch = Watch(folder, self.diagnose.nonfinite_limit, self.device, self.algo.config)
        self.batch: Batch | None = None  # of the last update
        self.step = 0  # environment steps
        self.updates = 0  # critic updates
        self.actor_updates = 0
        self.evaluated = 0  # updates that the policy had had which `latest` is about
        self.latest: dict[str, Any] = {}  # evaluation
        self.metrics: dict[str, Any] = {}  # each as of the last update that gave it: the actor learns less often than the critic
        self.recent: deque[Finished] = deque(maxlen=50)  # training episodes, for the progress line

    def go(self, eval_every: int) -> None:
        """Collect, update, evaluate, save, until `steps`."""
        self._begin()
        try:
            self._go(eval_every)
        except NonFiniteAction as error:
            raise self.watch.diverged(self.step, "actor", error.what) from error

    def _go(self, eval_every: int) -> None:
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
            if self.diagnose.gradients and crossed(before, self.step, self.diagnose.every):
                self._look_at_gradients()
            if (eval_every and crossed(before, self.step, eval_every)) or self.step >= self.loop.steps:
                self._evaluate(progress)
                self._save()
            elif self.interrupts.asked or clock.due():
                self._save()
            if self.interrupts.asked and self.step < self.loop.steps:
                raise KeyboardInterrupt
        progress.close()
        if self.watch.verdict:  # found by the last look, in `_save`
            raise self.watch.verdict

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

    def _look_at_gradients(self) -> None:
        if self.batch is not None and isinstance(self.algo, ThroughRollout):
            self.folder.write("gradients", self.step, diagnostics.gradients(self.algo, self.batch, self.diagnose.elements))

    def _evaluate(self, progress: Progress) -> None:
        changes = self.updates if self.algo.every_update_acts else self.actor_updates
        if changes != self.evaluated:  # the same policy on the same seeds gives the same numbers
            self.latest = self.evaluator(self.algo.acting).row()
            self.evaluated = changes
        self.folder.write("eval", self.step, self.latest)
        self._publish()
        progress.say(f"step {self.step}: {_score(self.latest)}{_training(self.recent)}")

    def _publish(self) -> None:
        """The policy that has just been evaluated, as a checkpoint."""
        evaluation = {"env": self.env.id, **self.plan.settings.eval.origin(), **self.latest}
        content = checkpoint_content(self.plan.settings, self.plan.stage, self.step, self.algo, self.env, self.origin, evaluation)
        checkpoint.save(self.plan.out, "policy checkpoint", content)

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
        self.watch.require_sound(self.step, self.algo, self.collector.observations())
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
