"""One file per checkpoint: written whole or not at all, loaded without executing anything from it."""

from __future__ import annotations

import io
import os
import pickle
import shlex
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowft.errors import CheckpointError

FORMAT = 1
WRITTEN = "name a file that flowft pretrain or flowft finetune wrote"


def folder() -> Path:
    """`checkpoints/` of the working folder, or $FLOWFT_CHECKPOINTS."""
    return Path(os.environ.get("FLOWFT_CHECKPOINTS", "checkpoints"))


def find(name_or_path: str) -> Path:
    """`can.pt` or `can`: as given, else inside `checkpoints/`, else beside us."""
    given = Path(name_or_path)
    candidates = [given, folder() / given, folder() / f"{name_or_path}.pt", Path(f"{name_or_path}.pt")]
    for path in candidates:
        if path.is_file():
            return path
    there = ", ".join(sorted(p.name for p in folder().glob("*.pt"))) or "none yet"
    what = f"no checkpoint {name_or_path!r} here or in {folder()}/ (there: {there})"
    raise CheckpointError(what, "flowft pretrain --dataset scripted/lift")


def save(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write `content` (tensors and plain values, numpy converted) to `path` through a temporary file and a rename."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb", buffering=0) as raw, _Remembering(raw) as file:
            torch.save(plain({"format": FORMAT, "kind": kind, **content}), file)
            file.flush()
            os.fsync(raw.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else file.error
        if cause is None:
            raise
        raise CheckpointError(f"cannot write {path}: {cause.strerror or cause}", f"df -h {shlex.quote(str(path.parent))}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


class _Remembering(io.BufferedWriter):
    """torch.save says of a full disk only that it is somewhere else in the file than it thought: this knows why."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self.error = error
            raise


def load(path: Path, kind: str, device: torch.device | str = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read a file that `save` wrote. `weights_only=True`: nothing in it is executed. `mmap`: tensors are read when they are used."""
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise CheckpointError(f"no file {path}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile, AttributeError) as error:
        reason = _reason(error)
        raise CheckpointError(f"{path} is not a flowft checkpoint, or it is damaged: {reason}", WRITTEN) from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        found = content.get("kind", "another program's file") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path} holds {found}, not a flowft {kind}", WRITTEN)
    if content.get("format") != FORMAT:
        found = content.get("format")
        raise CheckpointError(f"{path} has format {found}; this flowft reads format {FORMAT}", "pip install --upgrade flowft")
    return content


def plain(value: Any) -> Any:
    """Only what `weights_only=True` accepts: numpy becomes tensors or Python numbers, paths become text. Else TypeError."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (Path, str)):  # torch.__version__ is a subclass of str that `weights_only` refuses
        return str(value)
    if value is None or isinstance(value, torch.Tensor) or type(value) in (bool, int, float):
        return value
    raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")


def _reason(error: Exception) -> str:
    """One line. torch's own message begins with advice to load unsafely; what it refused comes after."""
    text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    return (text.strip().splitlines() or ["unreadable"])[0].split(". ")[0]
