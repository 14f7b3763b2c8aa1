"""Notices updates that were refused because a loss or gradient was not finite, writes down what they had to learn from, and
ends a run that does not recover. The algorithm refuses on the device by itself (flowft/algos/optim.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from flowft.algos.base import Metrics
from flowft.data.spec import Array, Batch
from flowft.errors import NonFiniteAction, TrainingError
from flowft.policies.base import Policy
from flowft.train.runlog import RunFolder, say

ON_A_DEVICE = 50  # updates between looks where looking makes the host wait
WATCHED = ("_loss", "_grad_norm")  # endings of the metrics that must be finite
COLUMNS = ("observation", "action", "reward", "next_observation")


class Update(NamedTuple):
    """What is kept of an update until somebody looks."""

    step: int
    batch: Batch
    names: list[str]
    values: torch.Tensor  # of the watched metrics, still on the device


class Watch:
    """`see` each update, `look` now and then; `verdict` is the error that ends the run, once there is one."""

    def __init__(self, folder: RunFolder, limit: int, where: torch.device, config: object) -> None:
        """`limit` updates in a row end the run; `config` is the algorithm's, for what to try then."""
        self.folder, self.limit, self.config = folder, limit, config
        self.every = 1 if where.type == "cpu" else ON_A_DEVICE
        self.waiting: list[Update] = []
        self.in_a_row: dict[str, int] = {}  # refused updates by metric; an update without that metric does not count
        self.verdict: TrainingError | None = None

    def see(self, step: int, batch: Batch, metrics: Metrics) -> None:
        """Keep what an update returned. No host synchronisation."""
        names = [name for name in metrics if name.endswith(WATCHED)]
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
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        for name in found:
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
            self.verdict = self._error(update.step, said, "critic" if bad[0].startswith("critic") else "actor", row)
            self.in_a_row.clear()  # the same command, given again, tries as many once more

    def _error(self, step: int, said: str, part: str, row: Mapping[str, Any]) -> TrainingError:
        data = [f"{row[f'{name}_nonfinite']} of {name}" for name in COLUMNS if row[f"{name}_nonfinite"]]
        inside = f"; its batch holds non-finite values: {', '.join(data)}" if data else ""
        what = (
            f"not finite for {row['in_a_row']} updates in a row, last at step {step}: {said}{inside} "
            f'(the rows of kind "nonfinite" in {self.folder.path}/metrics.jsonl have the statistics; the state is saved)'
        )
        if data:
            return TrainingError(what, "flowft data check DATASET; if the demonstrations are sound, it was the environment")
        return TrainingError(what, f"--name NEW {' or '.join(self._slower(part))}")

    def require_actor(self, step: int, policy: Policy, observation: Array) -> None:
        """Before its state is saved over a sound one. TrainingError where the policy's answer to (B, O) is not finite."""
        try:
            policy.decide(observation, *policy.draw(len(observation), torch.Generator().manual_seed(0)))
        except NonFiniteAction as error:
            raise self.diverged(step, error) from error

    def diverged(self, step: int, error: NonFiniteAction) -> TrainingError:
        """The end of a run whose actor has left the finite numbers, by steps that were finite themselves."""
        kept = f"; the state in {self.folder.path} is the last sound one" if (self.folder.path / "state.pt").exists() else ""
        what = f"the actor has diverged by step {step}: {error.what}{kept}"
        return TrainingError(what, f"--name NEW {' or '.join(self._slower('actor'))}")

    def _slower(self, part: str) -> list[str]:
        """The settings that hold a part of the algorithm back, with values below those of this run."""
        present = {name: getattr(self.config, name) for name in (f"{part}_learning_rate", "learning_rate") if hasattr(self.config, name)}
        tries = {name: min(1e-4, value / 10) for name, value in present.items()}
        if hasattr(self.config, "max_grad_norm"):
            tries["max_grad_norm"] = (self.config.max_grad_norm or 100) / 10
        return [f"--set {self.folder.stage}.{name}={value:g}" for name, value in tries.items()]


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
