"""What a data source is, and how a dataset is found: by id (`robomimic/can/mh`) or by path (format read from content).

A source is a module (one file, one line in registry.py) with

    NAME: str                                   the first word of its ids
    READS: str                                  what of the layout is read, what not, from which versions: a line of `data list`
    matches(path) -> bool                       does the content (not the name) look like this layout? cheap
    locate(dataset_id) -> Path                  where an id's file lies; DataError with the command that gets it
    read(path, dataset_id, problems, options)   -> Dataset; every defect goes through `problems`
    known() -> list[str]                        ids worth listing
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flowft import recipe, registry
from flowft.data import fixes
from flowft.data.identity import recorded, same_data, sha256
from flowft.data.problems import Problem, Problems
from flowft.data.spec import Dataset, EnvSpec, Spec
from flowft.data.success import Rule
from flowft.errors import DamagedFile, DataError, UsageError, did_you_mean

__all__ = [
    "Options", "Problem", "Problems", "bad_id", "detect", "folder", "known_ids", "load", "recorded", "resolve", "same_data", "sha256",
    "unchanged",
]  # fmt: skip

IGNORABLE = ("env_args",)


@dataclass(frozen=True)
class Options:
    """How to read a dataset: the recipe's `data` section."""

    observation: tuple[str, ...] = ()  # observation parts in order; empty: the source's usual ones
    demos: str | None = None  # a mask key of the file (robomimic: train, valid, better, …); None: all
    limit: int | None = None  # only the first so many episodes
    skip: tuple[str, ...] = ()  # episodes to leave out, by name (demo_7), because `flowft data check` found them damaged
    clip_actions: bool = False  # clip actions outside the declared range instead of refusing them
    duplicates: Literal["refuse", "drop", "keep"] = "refuse"  # of episodes that are the same number for number
    # What a success is: last (each demonstration's last step), reward>=X, a key of the demonstrations (dones, success), none
    # (nothing is terminal); None: as the file says it.
    success: Literal["last", "none"] | str | None = None
    episode_steps: int | None = None  # flat files that do not mark ends: an episode is over after so many steps
    min_steps: int | None = None  # leave out episodes shorter than this; None: they are refused
    # Action range in the environment's units: data (the data's own), [low, high] for all values, or a pair for each; None: the source's.
    action_bounds: Literal["data"] | tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    ignore: tuple[str, ...] | None = None  # what is damaged in the file and not needed: env_args (then --env names the environment)
    task: int | str | None = None  # LeRobot: only episodes of this task, by its index or text; None: all
    match: Literal["refuse", "warn", "off"] | None = None  # what follows when data and environment differ; None: refuse
    env_version: str | None = None  # of the simulator that the data were made with, where the file's own word is wrong
    change: tuple[str, ...] | None = None  # other signs, scales or orders of values, e.g. object[7:10]*-1 (see change.py)

    def __post_init__(self) -> None:
        recipe.require(self, "limit", least=1)
        recipe.require(self, "episode_steps", "min_steps", least=2)
        if unknown := [name for name in self.ignore or () if name not in IGNORABLE]:
            raise ValueError(f"ignore names {unknown[0]!r}{did_you_mean(unknown[0], IGNORABLE)}")
        if self.success is not None:
            Rule.parse(self.success)
        if self.action_bounds == ():
            raise ValueError("action_bounds is an empty list; it is data, [low, high], or such a pair for each action value")
        for low, high in self.bound_pairs:
            if not low < high:
                raise ValueError(f"action_bounds has [{low:g}, {high:g}], whose low is not below its high")

    @property
    def bound_pairs(self) -> tuple[tuple[float, float], ...]:
        """The numbers of `action_bounds`: one pair for all values or a pair for each; none for data and None."""
        bounds: Any = self.action_bounds
        if not bounds or isinstance(bounds, str):
            return ()
        return tuple(bounds) if isinstance(bounds[0], (tuple, list)) else (bounds,)


def folder() -> Path:
    """Where dataset files are looked for and put: $FLOWFT_DATASETS, else `datasets/` of the working folder."""
    return Path(os.environ.get("FLOWFT_DATASETS", "datasets"))


def load(id_or_path: str, options: Options | None = None, problems: Problems | None = None, said: Options | None = None) -> Dataset:
    """The dataset, checked. Raises DataError (one sentence, with file, demo and key) if it cannot be trained on.

    Its fix, where there is one, is a whole command for this dataset, with the options that the user `said` (None: all of them).
    """
    options, problems = options or Options(), problems or Problems()
    try:
        module, path = resolve(id_or_path)
        dataset: Dataset = module.read(path, id_or_path, problems, options)
        return adjusted(dataset, options)
    except DamagedFile as error:
        raise DataError(error.what, error.fix or _again(id_or_path)) from error
    except DataError as error:
        told = problems.error() if problems.found and not problems.collect else error
        raise DataError(told.what, fixes.completed(told.fix, id_or_path, said or options)) from error


def _again(dataset_id: str) -> str | None:
    """The command that brings a damaged file of an id anew; for a path nobody knows where it came from."""
    family = dataset_id.split("/")[0]
    if Path(dataset_id).exists() or family not in registry.names("sources"):
        return None
    if family == "scripted":
        return f"flowft data generate {dataset_id} --force"
    return f"flowft data download {dataset_id}" if family in ("robomimic", "d4rl", "ogbench", "minari") else None


def adjusted(dataset: Dataset, options: Options) -> Dataset:
    """What the options say against the file: the simulator's version, other signs, scales and orders."""
    from flowft.data.change import changed  # imported here, as it is seldom needed

    if options.env_version is not None and dataset.env is not None:
        env = replace(dataset.env, versions={**dataset.env.versions, dataset.env.family: options.env_version})
        dataset = replace(dataset, env=env, notes=(*dataset.notes, f"taken as made with {env.family} {options.env_version}"))
    if options.action_bounds is not None and dataset.env is not None:
        dataset = replace(dataset, env=commanded(dataset.env, dataset.spec))
    return changed(dataset, options.change or ())


def commanded(env: EnvSpec, spec: Spec) -> EnvSpec:
    """The environment with the data's action bounds, where actions are absolute targets: their range is not its own to say."""
    asked = getattr(registry.get("envs", env.family), "takes_targets", None)
    if asked is None or env.action_bounds or not asked(env):
        return env
    return replace(env, action_bounds=tuple(zip(spec.action_low, spec.action_high, strict=True)))


def unchanged(dataset: Dataset, before: str, then: Mapping[str, Any]) -> bool:
    """Is `before` the identity of this dataset, as it is read now or as the recipe's section `then` had it read?"""
    if same_data(dataset, before):
        return True
    options = recipe.build(Options, then, "data")
    try:
        return load(dataset.id, options).hash == before
    except DataError:  # what could be read then cannot be read any more
        return False


def resolve(id_or_path: str) -> tuple[Any, Path]:
    """The source module and the file (or folder) of an id or a path."""
    head = id_or_path.split("/")[0]
    if head in registry.names("sources") and not Path(id_or_path).exists():
        module = registry.get("sources", head)
        return module, module.locate(id_or_path)
    path = Path(id_or_path).expanduser()
    if not _exists(path):
        looks_like_path = path.suffix or id_or_path.startswith((".", "/", "~"))
        kind = "file" if looks_like_path else "dataset"
        hint = "" if looks_like_path else did_you_mean(head, registry.names("sources"))
        beside = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.8)
        raise DataError(f"no {kind} {id_or_path!r}{hint}", fixes.check(str(path.with_name(near[0])), {}) if near else "flowft data list")
    return detect(path), path


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a folder on the way that this user may not enter, a name that is too long
        raise DataError(f"{path} cannot be looked at: {error.strerror}") from error


def detect(path: Path) -> Any:
    """The source whose layout the content has."""
    from flowft.data.files import require_readable  # a leaf module, imported here because it raises this module's errors

    require_readable(path)
    for name in registry.names("sources"):
        module = registry.get("sources", name)
        if module.matches(path):
            return module
    layouts = ", ".join(registry.names("sources"))
    inside = [file for pattern in ("*.hdf5", "*.h5", "*.npz") for file in sorted(path.glob(pattern))] if path.is_dir() else []
    fix = fixes.check(str(inside[0]), {}) if inside else None
    raise DataError(f"{path} has none of the layouts that flowft reads ({layouts}; datasets/README.md describes them)", fix)


def known_ids() -> list[str]:
    """Every id that a source can name."""
    return [dataset_id for name in registry.names("sources") for dataset_id in registry.get("sources", name).known()]


def bad_id(dataset_id: str, known: list[str]) -> UsageError:
    """For a source's `locate`: an id that it does not know."""
    return UsageError(f"unknown dataset {dataset_id!r}{did_you_mean(dataset_id, known)}", "flowft data list")
