"""A run's folder: runs/NAME/{recipe.yaml, metrics.jsonl, state.pt, tensorboard/, .lock}.

metrics.jsonl holds no clock times: the same seed on the same device writes the same file. Its rows are
{"kind": "train" | "episode" | "eval" | "gradients" | "nonfinite", "stage": "pretrain" | "finetune" | "train",
"step": …, values}.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from flowft import checkpoint, recipe
from flowft.errors import CheckpointError, FlowftError, MissingExtra, TrainingError, UsageError

STATE = "run state"


def folder(name: str) -> Path:
    """runs/NAME of the working folder, or under $FLOWFT_RUNS."""
    return Path(os.environ.get("FLOWFT_RUNS", "runs")) / name


def state(name: str) -> dict[str, Any] | None:
    """The saved state of a run, as it lies there (its tensors are read when they are used); None where there is none."""
    path = folder(name) / "state.pt"
    return checkpoint.load(path, STATE, mmap=True) if path.exists() else None


def require_unlocked(name: str) -> None:
    """TrainingError where another process has the run open."""
    if (folder(name) / ".lock").exists():
        _locked(folder(name)).close()


def require_same_run(name: str, stage: str, tree: recipe.Tree, free: tuple[str, ...], defaults: recipe.Tree) -> None:
    """UsageError where the folder holds another run. Settings that its version did not know count as `defaults`.

    `free`: dotted settings that may change when a run is continued (how far it goes, not what it is).
    """
    path = folder(name)
    if not ((path / "recipe.yaml").exists() and (path / "state.pt").exists()):  # without a state there is nothing to mix with
        return
    before = recipe.merge(defaults, yaml.safe_load((path / "recipe.yaml").read_text()) or {})
    changed = [d for d in recipe.differences(before, {"stage": stage, **tree}) if not d.startswith(free)]
    if changed:
        what = f"{path} holds a run with other settings ({'; '.join(changed[:5])}); give those, or another name"
        raise UsageError(what, f"--name {shlex.quote(name + '-2')}")


def require_room(name: str, out: Path) -> None:
    """CheckpointError where the run's folder or its checkpoint could not be written. Nothing is left behind by asking."""
    for path, variable in ((folder(name), "FLOWFT_RUNS"), (out.parent, "FLOWFT_CHECKPOINTS")):
        there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        with _writing(path, variable), tempfile.TemporaryFile(dir=there):
            pass


@contextlib.contextmanager
def _writing(path: Path, variable: str = "FLOWFT_RUNS") -> Iterator[None]:
    """What the system says of a disk that is full, read-only or gone, as one sentence."""
    try:
        yield
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror or error}"
        raise CheckpointError(what, f"export {variable}=~/flowft-{path.parent.name}") from error


class RunFolder:
    """Opens a new run or continues the one that is there; refuses to mix two, and to be opened by two processes."""

    def __init__(
        self, name: str, stage: str, tree: recipe.Tree, free: tuple[str, ...], wandb: str | None, defaults: recipe.Tree | None = None
    ) -> None:
        """`free` and `defaults`: see `require_same_run`."""
        self.path, self.stage, self.tree = folder(name), stage, tree
        with _writing(self.path), contextlib.ExitStack() as opened:
            self.path.mkdir(parents=True, exist_ok=True)
            opened.enter_context(_locked(self.path))
            require_same_run(name, stage, tree, free, defaults or {})
            self._write_recipe(tree)
            self._metrics = opened.enter_context((self.path / "metrics.jsonl").open("a", encoding="utf-8"))
            self._board = opened.enter_context(contextlib.closing(SummaryWriter(str(self.path / "tensorboard"))))
            self._wandb = _start_wandb(wandb, self.path, tree)
            self._open = opened.pop_all()

    def _write_recipe(self, tree: recipe.Tree) -> None:
        file = self.path / "recipe.yaml"
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
        with _writing(self.path):
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
        numbers = {f"{kind}/{key}": float(value) for key, value in row.items() if isinstance(value, (int, float))}
        with _writing(self.path):
            self._metrics.write(json.dumps({"kind": kind, "stage": self.stage, "step": step, **row}) + "\n")
            self._metrics.flush()
            for key, value in numbers.items():
                self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        if self._wandb is not None:
            self._wandb.finish()
        self._open.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():  # what ends the run is told, not its echo
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


def _locked(path: Path) -> IO[str]:
    """An open file that holds the folder's lock, with who holds it written inside. The lock goes with the process, however it ends."""
    handle = (path / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.seek(0)
        owner = handle.read().strip() or "another process"
        handle.close()
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # a file system without locks: as before there were any
            return (path / ".lock").open("a+", encoding="utf-8")
        raise TrainingError(f"{path} is in use by {owner}", f"--name {shlex.quote(path.name + '-2')}") from error
    handle.seek(0)
    handle.truncate()
    handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    handle.flush()
    return handle


def _start_wandb(project: str | None, path: Path, tree: recipe.Tree) -> Any:
    if project is None:
        return None
    try:
        import wandb
    except ImportError as error:
        raise MissingExtra("wandb", "wandb", "--set wandb=PROJECT") from error
    try:
        return wandb.init(project=project, name=path.name, config=tree, resume="allow", id=_wandb_id(path))
    except Exception as error:  # its own hierarchy differs between versions
        raise FlowftError(f"Weights & Biases did not start: {error}", "--set wandb=null") from error


def _wandb_id(path: Path) -> str:
    """The run's own, kept in its folder: folders of one name on two machines are two runs. Runs that have begun keep the id they had."""
    file = path / "wandb-id"
    if not file.exists():
        file.write_text(f"{path.name if (path / 'state.pt').exists() else f'{path.name}-{uuid.uuid4().hex[:12]}'}\n")
    return file.read_text().strip()
