"""What a data source is, and how a dataset is found: by id (`robomimic/can/mh`) or by path (format read from content).

A source is a module (one file, one line in registry.py) with

    NAME: str                                   the first word of its ids
    matches(path) -> bool                       does the content (not the name) look like this layout? cheap
    locate(dataset_id) -> Path                  where an id's file lies; DataError with the command that gets it
    read(path, dataset_id, problems, options)   -> Dataset; every defect goes through `problems`
    known() -> list[str]                        ids worth listing
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from flowft import registry
from flowft.data.spec import Dataset
from flowft.errors import DataError, UsageError, did_you_mean


@dataclass(frozen=True)
class Options:
    """How to read a dataset: the recipe's `data` section."""

    observation: tuple[str, ...] = ()  # observation parts in order; empty: the source's usual ones
    demos: str | None = None  # a mask key of the file (robomimic: train, valid, better, …); None: all
    limit: int | None = None  # only the first so many episodes
    skip: tuple[str, ...] = ()  # episodes to leave out, by name (demo_7), because `flowft data check` found them damaged
    clip_actions: bool = False  # clip actions outside the declared range instead of refusing them
    duplicates: Literal["refuse", "drop", "keep"] = "refuse"  # of episodes that are the same number for number
    match: Literal["refuse", "warn", "off"] | None = None  # what follows when data and environment differ; None: refuse
    env_version: str | None = None  # of the simulator that the data were made with, where the file's own word is wrong
    change: tuple[str, ...] | None = None  # other signs, scales or orders of values, e.g. object[7:10]*-1 (see change.py)


@dataclass(frozen=True)
class Problem:
    where: str  # file:key
    what: str
    fix: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass
class Problems:
    """Strict (training): the first problem is raised. Collecting (`flowft data check`): all are kept."""

    collect: bool = False
    found: list[Problem] = field(default_factory=list)

    def add(self, where: str, what: str, fix: str | None = None) -> None:
        problem = Problem(where, what, fix)
        if not self.collect:
            raise DataError(str(problem), fix)
        self.found.append(problem)


def folder() -> Path:
    """Where dataset files are looked for and put: $FLOWFT_DATASETS, else `datasets/` of the working folder."""
    return Path(os.environ.get("FLOWFT_DATASETS", "datasets"))


def load(id_or_path: str, options: Options | None = None, problems: Problems | None = None) -> Dataset:
    """The dataset, checked. Raises DataError (one sentence, with file, demo and key) if it cannot be trained on."""
    module, path = resolve(id_or_path)
    options = options or Options()
    dataset: Dataset = module.read(path, id_or_path, problems or Problems(), options)
    return adjusted(dataset, options)


def adjusted(dataset: Dataset, options: Options) -> Dataset:
    """What the options say against the file: the simulator's version, other signs, scales and orders."""
    from flowft.data.change import changed  # imported here, as it is seldom needed

    if options.env_version is not None and dataset.env is not None:
        env = replace(dataset.env, versions={**dataset.env.versions, dataset.env.family: options.env_version})
        dataset = replace(dataset, env=env, notes=(*dataset.notes, f"taken as made with {env.family} {options.env_version}"))
    return changed(dataset, options.change or ())


def resolve(id_or_path: str) -> tuple[Any, Path]:
    """The source module and the file (or folder) of an id or a path."""
    head = id_or_path.split("/")[0]
    if head in registry.names("sources") and not Path(id_or_path).exists():
        module = registry.get("sources", head)
        return module, module.locate(id_or_path)
    path = Path(id_or_path).expanduser()
    if not path.exists():
        looks_like_path = path.suffix or id_or_path.startswith((".", "/", "~"))
        kind = "file" if looks_like_path else "dataset"
        hint = "" if looks_like_path else did_you_mean(head, registry.names("sources"))
        raise DataError(f"no {kind} {id_or_path!r}{hint}", "flowft data list")
    return detect(path), path


def detect(path: Path) -> Any:
    """The source whose layout the content has."""
    from flowft.data.files import require_readable  # a leaf module, imported here because it raises this module's errors

    require_readable(path)
    for name in registry.names("sources"):
        module = registry.get("sources", name)
        if module.matches(path):
            return module
    layouts = ", ".join(registry.names("sources"))
    raise DataError(f"{path} has none of the layouts that flowft reads ({layouts})", f"h5ls -r {path}; the layouts: datasets/README.md")


def sha256(path: Path) -> str:
    """Of one file, or of all files of a folder in name order."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def known_ids() -> list[str]:
    """Every id that a source can name."""
    return [dataset_id for name in registry.names("sources") for dataset_id in registry.get("sources", name).known()]


def bad_id(dataset_id: str, known: list[str]) -> UsageError:
    """For a source's `locate`: an id that it does not know."""
    return UsageError(f"unknown dataset {dataset_id!r}{did_you_mean(dataset_id, known)}", "flowft data list")
