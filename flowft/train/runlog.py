"""A run's folder: runs/NAME/{recipe.yaml, metrics.jsonl, state.pt, tensorboard/}.

metrics.jsonl holds no clock times: the same seed on the same device writes the same file. Its rows are
{"kind": "train" | "episode" | "eval" | "gradients" | "nonfinite", "stage": "pretrain" | "finetune" | "train",
"step": …, values}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from flowft import checkpoint, recipe
from flowft.errors import CheckpointError, FlowftError, MissingExtra, UsageError

STATE = "run state"


def folder(name: str) -> Path:
    """runs/NAME of the working folder, or under $FLOWFT_RUNS."""
    return Path(os.environ.get("FLOWFT_RUNS", "runs")) / name


class RunFolder:
    """Opens a new run or continues the one that is there; refuses to mix two."""

    def __init__(self, name: str, stage: str, tree: recipe.Tree, free: tuple[str, ...], wandb: str | None) -> None:
        """`free`: dotted settings that may change when a run is continued (how far it goes, not what it is)."""
        if not name or Path(name).name != name:
            raise UsageError(f"the name {name!r} cannot be a folder's", "--name lift-1")
        self.path, self.stage = folder(name), stage
        self._continue_or_create(tree, free)
        self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(self.path / "tensorboard"))
        self._wandb = _start_wandb(wandb, name, tree)

    def _continue_or_create(self, tree: recipe.Tree, free: tuple[str, ...]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / "recipe.yaml"
        if file.exists() and (self.path / "state.pt").exists():  # without a state there is nothing to mix with
            before = yaml.safe_load(file.read_text())
            changed = [d for d in recipe.differences(before, {"stage": self.stage, **tree}) if not d.startswith(free)]
            if changed:
                raise UsageError(
                    f"{self.path} holds a run with other settings ({'; '.join(changed[:5])})",
                    "--name NEW, or the settings that it was started with",
                )
        temporary = file.with_suffix(".tmp")
        temporary.write_text(yaml.safe_dump({"stage": self.stage, **tree}, sort_keys=False))
        os.replace(temporary, file)

    # State ------------------------------------------------------------------------------------------------------------

    def saved(self) -> dict[str, Any] | None:
        """The state to continue from, with metrics.jsonl cut back to the moment it was taken; None for a new run."""
        path = self.path / "state.pt"
        if not path.exists():
            self._cut(0)
            return None
        state = checkpoint.load(path, STATE)
        self._cut(int(state["metrics_bytes"]))
        return state

    def save(self, content: Mapping[str, Any]) -> None:
        """Write the state whole or not at all."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        checkpoint.save(self.path / "state.pt", STATE, {**content, "metrics_bytes": self._metrics.tell()})

    def _cut(self, size: int) -> None:
        if os.path.getsize(self._metrics.name) < size:
            raise CheckpointError(
                f"{self._metrics.name} is shorter than when the state beside it was saved", f"rm -r {self.path} and start the run again"
            )
        self._metrics.truncate(size)
        self._metrics.seek(size)

    # Rows -------------------------------------------------------------------------------------------------------------

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl, and the same numbers for TensorBoard (and Weights & Biases when asked)."""
        row = {key: _number(value) for key, value in values.items()}
        self._metrics.write(json.dumps({"kind": kind, "stage": self.stage, "step": step, **row}) + "\n")
        self._metrics.flush()
        numbers = {f"{kind}/{key}": float(value) for key, value in row.items() if isinstance(value, (int, float))}
        for key, value in numbers.items():
            self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        self._metrics.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Progress:
    """A bar with rate and remaining time on a terminal, a line a minute otherwise; always on stderr."""

    def __init__(self, what: str, total: int, start: int, unit: str) -> None:
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=start, desc=what, unit=unit, dynamic_ncols=True, disable=not self.terminal, file=sys.stderr)
        self.what, self.total, self.unit = what, total, unit
        self.start, self.began, self.last, self.shown = start, time.monotonic(), time.monotonic(), ""

    def advance(self, done: int, count: int) -> None:
        """`done` of the total after `count` more."""
        self.bar.update(count)
        if not self.terminal and time.monotonic() - self.last >= 60:
            self.last = time.monotonic()
            rate = (done - self.start) / max(1e-9, self.last - self.began)
            left = (self.total - done) / max(rate, 1e-9) / 60
            say(f"{self.what}: {done}/{self.total} {self.unit}s, {rate:.0f}/s, {left:.0f} min left {self.shown}")

    def show(self, text: str) -> None:
        """The latest numbers, beside the bar."""
        self.shown = text
        self.bar.set_postfix_str(text)

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        self.bar.write(text, file=sys.stderr) if self.terminal else say(text)

    def close(self) -> None:
        self.bar.close()


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else value


def _start_wandb(project: str | None, name: str, tree: recipe.Tree) -> Any:
    if project is None:
        return None
    try:
        import wandb
    except ImportError as error:
        raise MissingExtra("wandb", "wandb", "--set wandb=PROJECT") from error
    try:
        return wandb.init(project=project, name=name, config=tree, resume="allow", id=name)
    except Exception as error:  # its own hierarchy differs between versions
        raise FlowftError(f"Weights & Biases did not start: {error}", "--set wandb=null, or WANDB_MODE=offline") from error
