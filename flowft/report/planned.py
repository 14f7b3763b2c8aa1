"""A plan in words and as plain values: what would be trained on what, where, with which settings and where each came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowft import recipe, registry
from flowft.train.origins import Origin, origins
from flowft.train.plan import Plan
from flowft.train.run import describe
from flowft.train.settings import Settings

STAGES = {"pretrain": "clone", "finetune": "improve online", "train": "learn from scratch"}


def as_tree(plan: Plan[Any]) -> dict[str, Any]:
    """Plain values, for JSON. `settings`: dotted name -> {"value", "from"}."""
    return {
        "stage": plan.stage,
        "name": plan.name,
        "folder": str(plan.run_folder),
        "checkpoint": str(plan.out),
        "continues_at": plan.saved_step,
        "device": str(plan.device),
        "algo": plan.settings.algo,
        "policy": {"kind": plan.algo.policy_kind, **plan.policy.to_tree()},
        "dataset": describe(plan.dataset) if plan.dataset else None,
        "env": plan.env.to_tree() if plan.env else None,
        "simulators": plan.simulators.count if plan.simulators else 0,
        "start": str(plan.start.path) if plan.start else None,
        "takes": list(plan.takes),
        "notes": list(plan.notes),
        "settings": {name: {"value": origin.value, "from": origin.layer} for name, origin in settings(plan).items()},
    }


def as_text(plan: Plan[Any]) -> str:
    """For a person."""
    tree, dataset = as_tree(plan), plan.dataset
    done = f", continued at {plan.saved_step}" if plan.saved_step else ""
    lines = {
        "stage": f"{plan.stage}: {STAGES[plan.stage]}{done}",
        "from": f"{plan.start.path}: {', '.join(plan.takes)}" if plan.start else None,
        "policy": f"a {tree['policy']['kind']} policy: {plan.policy.words()}",
        "algorithm": f"{plan.settings.algo} on {plan.device}",
        "dataset": f"{dataset.id}: {len(dataset.episodes)} episodes, {dataset.steps} steps from {dataset.path}" if dataset else None,
        "environment": _environment(plan),
        "writes": f"{plan.out} and {plan.run_folder}/",
    }
    facts = [f"{key:<12} {value}" for key, value in lines.items() if value is not None]
    notes = [f"note: {note}" for note in plan.notes]
    rows = settings(plan)
    width = max(map(len, rows)), max(len(_shown(row.value)) for row in rows.values())
    table = [f"{name:<{width[0]}}  {_shown(row.value):<{min(width[1], 40)}}  {row.layer}" for name, row in rows.items()]
    return "\n".join([*facts, *notes, "", "settings, and where each comes from", *table])


def settings(plan: Plan[Any]) -> dict[str, Origin]:
    """Every setting that this stage reads, defaults included."""
    section: recipe.Tree = recipe.to_tree(plan.loop) | recipe.to_tree(plan.algo.config)
    usual: recipe.Tree = recipe.to_tree(type(plan.loop)()) | recipe.to_tree(type(plan.algo.config)())
    if plan.stage == "finetune":
        section, usual = section | recipe.to_tree(plan.mixture), usual | recipe.to_tree(type(plan.mixture)())
    network = registry.get("networks", plan.settings.policy.network).config_type
    net = recipe.to_tree(recipe.build(network, plan.settings.policy.net, "policy.net"))
    effective = _of_stage(recipe.to_tree(plan.settings), plan.stage, section, net)
    defaults = _of_stage(recipe.to_tree(Settings()), plan.stage, usual, recipe.to_tree(network()))
    return origins(effective, defaults, plan.layers, plan.settings.algo)


def _of_stage(tree: recipe.Tree, stage: str, section: Mapping[str, Any], net: Mapping[str, Any]) -> recipe.Tree:
    """Without the other stages' sections, with all of this one's and of the network's."""
    rest = {key: value for key, value in tree.items() if key not in STAGES}
    return {**rest, "policy": {**rest["policy"], "net": dict(net)}, stage: dict(section)}


def _environment(plan: Plan[Any]) -> str:
    if plan.env is None:
        return "none: nothing is evaluated"
    count = plan.simulators.count if plan.simulators else 0
    made = f"{count} built, and compared with the policy" if count else "not built"
    limit = f", at most {plan.simulators.max_steps} steps an episode" if plan.simulators else ""
    return f"{plan.env.family}:{plan.env.id}, {made}{limit}"


def _shown(value: Any) -> str:
    """As a recipe would write it, shortened."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
