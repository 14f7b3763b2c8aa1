"""Training from scratch: the policy acts, its own steps are all the data there is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowft.train import plan as planning
from flowft.train.loops import Scratch as Loop
from flowft.train.online import improve
from flowft.train.plan import Plan
from flowft.train.runlog import say


def train(tree: Mapping[str, Any], name: str | None = None) -> Path:
    """Run it (or continue it). checkpoints/NAME.pt is there from the first evaluation on; returns its path."""
    with planning.from_scratch(tree, name) as plan:
        return run(plan)


def run(plan: Plan[Loop]) -> Path:
    """Collect, update, evaluate, publish, from an untrained policy on."""
    assert plan.env is not None  # training from scratch has one
    say(f"{plan.name}: {plan.env.id} from scratch, {plan.loop.steps} steps, {plan.settings.algo}, on {plan.device}")
    return improve(plan, demonstrations=None, origin=None)
