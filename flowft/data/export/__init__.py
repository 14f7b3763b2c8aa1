"""Datasets written in other programs' layouts: robomimic HDF5, LeRobot v3.0, Minari. Read back, they are equal.

What a layout has no place for (bounds, environment, names of observation parts) stands in an attribute of our own beside it,
which other programs ignore and flowft reads.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowft.data.spec import Dataset, EnvSpec, Episode, Spec
from flowft.errors import DataError

OURS = "flowft_export"  # the attribute of our own
FORMATS = ("robomimic", "lerobot", "minari")
SHORTEST = 2  # steps of an episode that can be read back


def write(dataset: Dataset, to: str, out: Path, fps: float | None = None, force: bool = False) -> list[str]:
    """Write `dataset` to `out` (robomimic: a file; lerobot, minari: a folder), whole or not at all. Returns what is to be said of it."""
    from flowft.data.export import lerobot, minari, robomimic

    writers: Mapping[str, Callable[[Dataset, Path], list[str]]] = {
        "robomimic": robomimic.write,
        "minari": lambda data, part: minari.write(data, part, out),
        "lerobot": lambda data, part: lerobot.write(data, part, fps),
    }
    if (out.exists() or out.is_symlink()) and not force:
        raise DataError(f"{out} is there already", "the same command with --force, which replaces it")
    if out.is_dir() and to == "robomimic":
        raise DataError(f"{out} is a folder; robomimic's layout is a file", f"--to robomimic {out / 'demos.hdf5'}")
    out = Path(os.path.abspath(out))  # Minari doubles a relative path
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        said = writers[to](dataset, part)
        _remove(out)
        os.replace(part, out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}", "another path, on a disk with room") from error
    finally:
        _remove(part)
    return said


def facts(dataset: Dataset) -> dict[str, Any]:
    """What no layout has a place for, as plain values."""
    return {
        "id": dataset.id, "hash": dataset.hash, "spec": dataset.spec.to_tree(), "rate": dataset.rate,
        "env": None if dataset.env is None else dataset.env.to_tree(),
    }  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What `facts` wrote, read again."""

    spec: Spec
    env: EnvSpec | None
    rate: float | None

    @property
    def bounds(self) -> tuple[tuple[float, float], ...]:
        return tuple(zip(self.spec.action_low, self.spec.action_high, strict=True))

    @classmethod
    def read(cls, said: Any, where: str) -> Facts:
        """From JSON text or what it says. DataError, with `where`, for what we did not write so."""
        try:
            tree = json.loads(said) if isinstance(said, (str, bytes)) else said
            env = EnvSpec.from_tree(tree["env"]) if tree["env"] else None
            return cls(Spec.from_tree(tree["spec"]), env, tree["rate"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: what flowft data export wrote there is damaged ({error})") from error


def success_of_steps(episode: Episode) -> np.ndarray[Any, Any]:
    """(T,) bool: the steps that reach success, as far as it is known: rewards of 1 where they are 0 and 1, else the last step."""
    rewards = np.asarray(episode.rewards)
    if np.isin(rewards, (0, 1)).all() and bool((rewards == 1).any()) == bool(episode.success):
        return np.asarray(rewards == 1)
    return np.asarray((np.arange(len(rewards)) == len(rewards) - 1) & bool(episode.success))


def has_last_state(episode: Episode) -> bool:
    return all(len(rows) > len(episode) for rows in episode.observations.values())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
