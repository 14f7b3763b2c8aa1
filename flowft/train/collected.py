"""What a run collected online, as a dataset: the replay of its saved state, in the environment's units."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from flowft import checkpoint
from flowft.data import replayed
from flowft.data.replay import RewardTransform
from flowft.data.spec import Dataset, EnvSpec, Spec
from flowft.errors import CheckpointError, DataError
from flowft.train.runlog import STATE

SHORTEST = 2  # steps of an episode that can be trained on


def read(run: Path) -> Dataset:
    """The online replay of a run folder. Sizes, bounds and environment are those of the run's checkpoint."""
    settings = _recipe(run)
    if settings.get("stage") == "pretrain":
        raise DataError(f"{run} is a pretraining run: it collected nothing", f"flowft finetune --ckpt {run.name}")
    if not (run / "state.pt").is_file():
        raise DataError(f"{run} has no state.pt: its replay was not saved, or it was cleared away")
    path = checkpoint.folder() / f"{run.name}.pt"
    if not path.is_file():
        raise CheckpointError(f"no {path}, which says the sizes and bounds of {run}", f"cp YOUR/{run.name}.pt {path}")
    content, state = checkpoint.load(path, "policy checkpoint"), checkpoint.load(run / "state.pt", STATE)
    if "online" not in state:
        raise DataError(f"{run / 'state.pt'} holds no online replay")
    reward = settings.get("reward") or {}
    spec = Spec.from_tree(content["spec"])
    found = replayed.episodes(state["online"], spec, RewardTransform(float(reward.get("scale", 1.0)), float(reward.get("shift") or 0.0)))
    kept = [episode for episode in found if len(episode) >= SHORTEST]
    if not kept:
        raise DataError(f"{run}: the replay holds no episode of {SHORTEST} steps or more", f"flowft finetune --ckpt {run.name}")
    notes = (
        f"the online replay of {run.name} after {state.get('step', 'unknown')} environment steps",
        *_notes(state["online"], found, kept),
    )
    env = EnvSpec.from_tree(content["env"]) if content["env"] else None
    digest = hashlib.sha256((run / "state.pt").read_bytes()).hexdigest()
    return Dataset(f"runs/{run.name}", "run", "replay of a run", str(run / "state.pt"), digest, spec, env, kept, notes)


def _notes(replay: dict[str, Any], found: list[Any], kept: list[Any]) -> list[str]:
    out = []
    if len(found) > len(kept):
        out.append(f"{len(found) - len(kept)} episodes of one step are left out")
    if replay["written"] > replay["capacity"]:
        out.append(
            f"the replay holds {replay['capacity']} states: what is older was overwritten, at the earliest episode from its beginning"
        )
    return out


def _recipe(run: Path) -> dict[str, Any]:
    file = run / "recipe.yaml"
    try:
        tree = yaml.safe_load(file.read_text())
    except FileNotFoundError as error:
        raise DataError(f"{run} is no run: it has no recipe.yaml", f"ls {run}") from error
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(tree, dict):
        raise DataError(f"{file} holds no settings")
    return tree
