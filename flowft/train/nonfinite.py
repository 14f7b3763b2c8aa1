"""Notices updates that were refused because a loss or gradient was not finite, writes down what they had to learn from, and
ends a run that does not recover. The algorithm refuses on the device by itself (flowft/algos/optim.py). A step may be
finite and still lead out of all bounds: networks that have diverged are never saved or published."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from flowft.algos.base import Algorithm, Config, Metrics, Part
from flowft.data.spec import Array, Batch
from flowft.errors import NonFiniteAction, TrainingError
from flowft.train.runlog import RunFolder, say

ON_A_DEVICE = 50  # updates between looks where looking makes the host wait
WATCHED = ("_loss", "_grad_norm")  # endings of the metrics that must be finite
EVIDENCE = ("q", "q_target", "alpha")  # metrics that tell whose doing it is
COLUMNS = ("observation", "action", "reward", "next_observation")
LARGEST = 1e4  # no sound weight is as large: a million of Adam's steps at 1e-3 lead no further than 1e3


class Update(NamedTuple):
    """What is kept of an update until somebody looks."""

    step: int
    batch: Batch
    names: list[str]
    values: torch.Tensor  # of these metrics, still on the device


class Watch:
    """`see` each update, `look` now and then; `verdict` is the error that ends the run, once there is one."""

    def __init__(self, folder: RunFolder, limit: int, where: torch.device, config: Config) -> None:
        """`limit` updates in a row end the run; `config` is the algorithm's, for what to try then."""
        self.folder, self.limit, self.config = folder, limit, config
        self.every = 1 if where.type == "cpu" else ON_A_DEVICE
        self.waiting: list[Update] = []
        self.in_a_row: dict[str, int] = {}  # refused updates by metric; an update without that metric does not count
        self.alpha = 0.0  # the last temperature seen
        self.verdict: TrainingError | None = None

    def see(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Keep what an update returned. No host synchronisation."""
        names = [name for name in metrics if name.endswith(WATCHED) or name in EVIDENCE]
        if not names:
            return
        self.waiting.append(Update(step, batch, names, torch.stack([metrics[name] for name in names])))
        if len(self.waiting) >= self.every:
            self.look()

    def look(self) -> None:
        """Read what has been kept, and write a row for each update that was refused."""
        if not self.waiting:
            return
        values = iter(torch.cat([update.values for update in self.waiting]).tolist())
        for update in self.waiting:
            self._judge(update, {name: next(values) for name in update.names})
        self.waiting.clear()

    def _judge(self, update: Update, found: Mapping[str, float]) -> None:
        self.alpha = found.get("alpha", self.alpha)
        watched = [name for name in found if name.endswith(WATCHED)]
        bad = [name for name in watched if not math.isfinite(found[name])]
        for name in watched:
            self.in_a_row[name] = self.in_a_row.get(name, 0) + 1 if name in bad else 0
        if not bad:
            return
        count = max(self.in_a_row[name] for name in bad)
        said = ", ".join(f"{name} {found[name]}" for name in bad)
        row = {"what": said, "in_a_row": count, **statistics(update.batch)}
        self.folder.write("nonfinite", update.step, row)
        if count == 1:
            say(f"note: step {update.step}: {said}: this update was left out; what was in its batch is in {self.folder.path}/metrics.jsonl")
        if count >= self.limit:
            self.verdict = self._error(update.step, said, self._culprit(bad[0], found), row)
            self.in_a_row.clear()  # the same command, given again, tries as many once more

    def _culprit(self, bad: str, found: Mapping[str, float]) -> Part:
        """critic, actor or alpha, whose learning rate is to be lower."""
        if not abs(self.alpha) < LARGEST or bad.startswith("alpha"):
            return "alpha"
        if not bad.startswith("critic"):
            return "actor"
        q, target = found.get("q", math.nan), found.get("q_target", 0.0)
        spoilt = math.isfinite(q) and not abs(target) <= 1e3 * max(1.0, abs(q))  # not by Q, but by what else a target is made of
        return "actor" if spoilt else "critic"

    def _error(self, step: int, said: str, part: Part, row: Mapping[str, Any]) -> TrainingError:
        data = [f"{row[f'{name}_nonfinite']} of {name}" for name in COLUMNS if row[f"{name}_nonfinite"]]
        inside = f"; its batch holds non-finite values: {', '.join(data)}" if data else ""
        what = (
            f"not finite for {row['in_a_row']} updates in a row, last at step {step}: {said}{inside} "
            f'(the rows of kind "nonfinite" in {self.folder.path}/metrics.jsonl have the statistics; the last sound state is saved)'
        )
        if data:
            return TrainingError(what, self._look())
        return TrainingError(what, self._again(part))

    def require_sound(self, step: int, algo: Algorithm, observation: Array) -> None:
        """Before a state is saved over a sound one. TrainingError where a network has diverged; `observation` (B, O) is for the actor."""
        if algo.critic is not None and not (largest := largest_weight(algo.critic)) < LARGEST:
            raise self.diverged(step, "critic", f"its largest weight is {largest:.3g}")
        if not (largest := largest_weight(algo.policy)) < LARGEST:
            raise self.diverged(step, "actor", f"its largest weight is {largest:.3g}")
        try:
            algo.policy.decide(observation, *algo.policy.draw(len(observation), torch.Generator().manual_seed(0)))
        except NonFiniteAction as error:
            raise self.diverged(step, "actor", error.what) from error

    def diverged(self, step: int, part: Part, how: str) -> TrainingError:
        """The end of a run of which a part has left all bounds, perhaps by steps that were finite themselves."""
        self.look()  # what is still waiting is written down
        before = f"{self.verdict.what}: " if self.verdict else ""
        after = "" if self.verdict else f"; the last sound state is saved in {self.folder.path}"
        what = f"{before}the {part} has diverged by step {step}: {how}{after}"
        return TrainingError(what, self._again(part))

    def _again(self, part: Part) -> str:
        """Options that start a run anew, with a part of the algorithm held back."""
        slower = [f"--set {self.folder.stage}.{name}={value:g}" for name, value in self.config.slower(part).items()]
        return f"--name {shlex.quote(self.folder.path.name + '-2')} {' '.join(slower)}"

    def _look(self) -> str:
        """The command that looks for values that are not finite: in the demonstrations, where there are any."""
        dataset = self.folder.tree.get("dataset")
        return f"flowft data check {shlex.quote(str(dataset))}" if dataset else "flowft doctor"


def largest_weight(network: torch.nn.Module) -> float:
    """The largest |weight|; NaN where one is NaN. Waits for the device."""
    return float(torch.stack([weight.detach().abs().max() for weight in network.parameters()]).max())


def statistics(batch: Batch) -> dict[str, float | int | None]:
    """Least, largest and mean of the finite values of each column, and how many are not finite."""
    out: dict[str, float | int | None] = {}
    for name in COLUMNS:
        values: torch.Tensor = getattr(batch, name)
        finite = values[torch.isfinite(values)]
        some = finite.numel() > 0
        out[f"{name}_min"] = float(finite.min()) if some else None
        out[f"{name}_max"] = float(finite.max()) if some else None
        out[f"{name}_mean"] = float(finite.mean()) if some else None
        out[f"{name}_nonfinite"] = values.numel() - finite.numel()
    return out
