"""By what a run recognises its data: a sha256 over what is read of a dataset, wherever it lies (links are followed).

Pictures and other arrays that are not used cost nothing and do not count. Older checkpoints and runs hold the sha256 of the
whole file instead, which `same_data` knows as well.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from flowft import registry
from flowft.data.spec import Dataset


class Identity:
    """Names, types, shapes and bytes of the arrays that are read, in whatever order they are added."""

    def __init__(self) -> None:
        self._parts: dict[str, str] = {}

    def add(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An array as it lies in the file; returns it."""
        stream = self.stream(name, values.dtype, values.shape)
        if values.dtype.hasobject:
            stream.update(repr(values.tolist()).encode())
        else:
            stream.update(np.ascontiguousarray(values))
        return values

    def stream(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Stream:
        """For an array that is read block by block: `update` with each block."""
        return Stream(self._parts, name, f"{np.dtype(dtype).str} {shape}")

    def text(self, name: str, value: str) -> None:
        self._parts[name] = hashlib.sha256(value.encode()).hexdigest()

    def hexdigest(self) -> str:
        return hashlib.sha256("\n".join(f"{name} {digest}" for name, digest in sorted(self._parts.items())).encode()).hexdigest()


class Stream:
    """The bytes of one array, one block after the other."""

    def __init__(self, parts: dict[str, str], name: str, head: str) -> None:
        self._parts, self._name, self._digest = parts, name, hashlib.sha256(head.encode())
        self._parts[name] = ""  # in case no block follows

    def update(self, block: Any) -> None:
        self._digest.update(block)
        self._parts[self._name] = self._digest.hexdigest()


def sha256(path: Path) -> str:
    """Of one whole file, or of all files of a folder in name order."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def same_data(dataset: Dataset, before: str) -> bool:
    """Does the identity `before`, of a checkpoint or a run, belong to these data? Also true for a whole file's sha256 of older versions."""
    return before == dataset.hash or before == _whole(dataset)


def recorded(dataset: Dataset, recipe_file: Path) -> str:
    """The identity to write into a run's recipe: as it stands there already where it belongs to the same data, else the dataset's."""
    try:
        there = yaml.safe_load(recipe_file.read_text()) if recipe_file.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError):
        return dataset.hash  # whoever opens the run says what is wrong with its recipe
    before = there.get("dataset_hash") if isinstance(there, dict) else None
    return before if isinstance(before, str) and same_data(dataset, before) else dataset.hash


def _whole(dataset: Dataset) -> str | None:
    """What identified a dataset before: the sha256 of its file, or of the folder that the source names."""
    path = Path(dataset.path)
    hashed = getattr(registry.get("sources", dataset.source), "hashed", None) if dataset.source in registry.names("sources") else None
    where: Path = hashed(path) if hashed else path
    return sha256(where) if where.exists() else None
