"""A comparison: every algorithm and seed through `pretrain` and `finetune`, under names that say which part it is.

Each part continues by itself, and a part that is done is left alone: so the same call continues the whole.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowft import checkpoint, recipe, registry
from flowft.algos import base as algos
from flowft.errors import UsageError, did_you_mean
from flowft.train import checks, loops
from flowft.train import finetune as finetuning
from flowft.train import pretrain as pretraining
from flowft.train.runlog import say
from flowft.train.settings import Settings, finetune_section, pretrain_section


class Entry(NamedTuple):
    """One row of the table: an algorithm with settings of its own."""

    label: str
    given: recipe.Tree  # `algo` and what else this entry sets


class Part(NamedTuple):
    """One training run from the demonstrations to the last online step."""

    entry: Entry
    seed: int
    clone: str  # names of its two run folders and checkpoints
    online: str
    tree: recipe.Tree


def entries(algos: str | None, variants: Sequence[str]) -> list[Entry]:
    """`a,b` and `NAME=ALGO KEY=VALUE …`, in that order."""
    found = [Entry(name, {"algo": name}) for name in (algos or "").split(",") if name]
    for text in variants:
        label, equals, rest = text.partition("=")
        try:
            words = shlex.split(rest)
        except ValueError:  # a quote without its other half
            words = []
        if not equals or not words or not re.fullmatch(r"[\w.-]+", label):
            raise UsageError(f"--variant {text!r} is not of the form NAME=ALGO KEY=VALUE …", "--variant 'mlp=sac_flow policy.network=mlp'")
        own = recipe.from_assignments(words[1:])
        if "algo" in own:
            raise UsageError(f"--variant {text!r} names two algorithms", f"--variant '{label}={words[0]} KEY=VALUE …'")
        require_same_ground(own, f"--variant {text!r}")
        found.append(Entry(label, recipe.merge({"algo": words[0]}, own)))
    labels = [entry.label for entry in found]
    if not found or len(set(labels)) < len(labels):
        raise UsageError(
            f"the algorithms to compare are {', '.join(labels) or 'none'}",
            f"--algos {','.join(dict.fromkeys(labels)) or 'sac_flow,qc_fql'}",
        )
    for entry in found:
        if (name := entry.given["algo"]) not in registry.names("algos"):
            raise UsageError(f"unknown algo {name!r}{did_you_mean(name, registry.names('algos'))}")
    return found


def require_same_ground(tree: Mapping[str, Any], where: str) -> None:
    """What all rows share has options of its own; elsewhere it would be ignored, or make rows that cannot be compared."""
    options = {"algo": "--algos A,B", "seed": "--seeds N,N", "dataset": "--dataset ID"}
    for key in options.keys() & tree.keys():
        raise UsageError(f"{where} sets {key}, which all rows share", options[key])


def parts(named: Mapping[str, Any], given: Mapping[str, Any], rows: Sequence[Entry], seeds: Sequence[int], name: str) -> list[Part]:
    """Every entry with every seed, checked before the first one starts. Seed by seed, so that whole rows of the table grow together."""
    found = []
    for seed in seeds:
        for entry in rows:
            # The run's own evaluation at online step 0 is that of the cloned policy.
            own = recipe.merge({"pretrain": {"evaluate": False}}, given, entry.given, {"seed": seed})
            tree = recipe.assemble(named, own)
            settings = Settings.read(tree)
            rehearse(settings)
            stem = f"{name}-{entry.label}-s{seed}"
            found.append(Part(entry, seed, stem, f"{stem}-online", tree))
    return found


def run(todo: Sequence[Part]) -> Iterator[Part]:
    """Bring each part to its end, and give it back when it is there."""
    for number, part in enumerate(todo, start=1):
        say(f"== part {number} of {len(todo)}: {part.entry.label}, seed {part.seed}")
        settings = Settings.read(part.tree)
        clone, online = (checkpoint.folder() / f"{name}.pt" for name in (part.clone, part.online))
        if _at(online, settings, loops.Finetune.FREE, finetune_section(settings).loop.steps):
            say(f"{online} is done")
        else:
            if not _at(clone, settings, loops.Pretrain.FREE, pretrain_section(settings).loop.total, exactly=True):
                pretraining.pretrain(part.tree, part.clone)
            finetuning.finetune(clone, part.tree, part.online)
        yield part


def rehearse(settings: Settings) -> None:
    """What either stage of a part would refuse, as far as its settings tell."""
    algorithm = algos.named(settings.algo)
    checks.require_stage(settings.algo, algorithm, from_scratch=False)
    checks.require_rollout(settings, algorithm)
    checks.rehearse(settings)


def _at(path: Path, settings: Settings, free: tuple[str, ...], step: int, exactly: bool = False) -> bool:
    """Whether the checkpoint is there and that far. One of other settings is an error: it must not pass for this part's."""
    if not path.is_file():
        return False
    content = checkpoint.load(path, "policy checkpoint")
    before, now = recipe.merge(recipe.to_tree(Settings()), content["recipe"]), recipe.to_tree(settings)
    if settings.reward.shift is None:  # the dataset decides it
        now["reward"] = {**now["reward"], "shift": before["reward"]["shift"]}
    if changed := [line for line in recipe.differences(before, now) if not line.startswith(free)]:
        raise UsageError(f"{path} was made with other settings ({'; '.join(changed[:5])}); give those, or another name", "--name again")
    done = int(content["step"])
    if exactly and done > step:
        raise UsageError(f"{path} was made with {done} updates, more than the {step} asked for", "--name again")
    return done >= step
