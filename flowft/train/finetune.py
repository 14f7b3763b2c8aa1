"""Fine-tuning: the policy acts, its steps join the demonstrations in every batch, SAC Flow improves it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowft.data import source
from flowft.data.replay import from_dataset
from flowft.data.spec import Dataset
from flowft.train import plan as planning
from flowft.train.loops import Finetune as Loop
from flowft.train.online import improve
from flowft.train.plan import Plan
from flowft.train.run import describe
from flowft.train.runlog import say
from flowft.train.settings import reward_transform


def finetune(ckpt: Path, tree: Mapping[str, Any], name: str | None = None) -> Path:
    """Run it (or continue it) from a checkpoint. checkpoints/NAME.pt is there from the first evaluation on; returns its path."""
    with planning.finetuning(ckpt, tree, name) as plan:
        return run(plan)


def run(plan: Plan[Loop]) -> Path:
    """Collect, update, evaluate, publish, from the checkpoint's policy on."""
    assert plan.start is not None and plan.dataset is not None and plan.env is not None  # fine-tuning has them
    for note in plan.notes:
        say(f"note: {note}")
    say(f"{plan.name}: {plan.env.id} from {plan.start.path}, {plan.loop.steps} steps with {plan.dataset.id}, on {plan.device}")
    demonstrations = from_dataset(plan.dataset, reward_transform(plan.settings), plan.settings.seed)
    return improve(plan, demonstrations, origin(plan.start.content["dataset"], plan.dataset))


def origin(before: Mapping[str, Any] | None, dataset: Dataset) -> dict[str, Any]:
    """The demonstrations of this stage; the policy may have been cloned from others."""
    now = describe(dataset)
    if before is None or source.same_data(dataset, before["hash"]):
        return dict(before or now)
    return now | {"notes": [*now["notes"], f"it came from a policy cloned from {before['id']}, sha256 {before['hash']}"]}
