"""What a checkpoint is, in words: what it was trained on, how good it is with what certainty, how to repeat it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowft import recipe
from flowft.report.stats import percent
from flowft.train.settings import Settings

STAGES = {
    "pretrain": "cloned from demonstrations",
    "finetune": "fine-tuned online",
    "train": "learned from scratch",
    "convert": "converted",
}


def card(content: Mapping[str, Any], name: str, command: str | None = None) -> str:
    """Markdown for a loaded policy checkpoint called `name`; `command`: the command line that made it."""
    stage = STAGES.get(content["stage"], content["stage"])
    sections = [
        f"# {name}\n\nA {content.get('policy_kind', 'flow')} policy, {stage} with flowft {content['versions'].get('flowft', '?')}.",
        "## Result\n\n" + _result(content["evaluation"], name),
        "## Sees and does\n\n" + _spec(content["spec"], content["recipe"]["policy"], content.get("policy_kind", "flow")),
        "## Made from\n\n" + _origin(content),
        "## Settings that differ from the defaults\n\n" + _settings(content["recipe"]),
    ]
    if command:
        sections.append(f"## Command\n\n```bash\n{command}\n```")
    sections.append("## Versions\n\n" + ", ".join(f"{package} {version}" for package, version in content["versions"].items()))
    return "\n\n".join(sections) + "\n"


def write(path: Path, text: str) -> None:
    """Write a card whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _result(evaluation: Mapping[str, Any] | None, name: str) -> str:
    if not evaluation:
        return "Not evaluated."
    count = percent(int(evaluation["successes"]), int(evaluation["episodes"]))
    how, more = ("with sampling noise", " --stochastic") if evaluation.get("stochastic") else ("noise-free", "")
    return (
        f"{count} successes on {evaluation['env']} (Wilson 95 %), mean return {evaluation['return']:.2f}, "
        f"mean length {evaluation['length']:.1f} steps; {how}, evaluation seeds {evaluation['seed']}. One training run.\n\n"
        f"```bash\nflowft eval {name} --episodes {evaluation['episodes']} --seed {evaluation['seed']}{more}\n```"
    )


def _spec(spec: Mapping[str, Any], policy: Mapping[str, Any], kind: str) -> str:
    parts = ", ".join(f"{part} {size}" for part, size in spec["parts"])
    network = f"Network {policy['network']}, {policy['steps']} flow steps" if kind != "gaussian" else "A network of the state"
    network += {"one_step": ", distilled into one step", "best_of_n": f", the best of {policy.get('candidates')} by Q"}.get(kind, "")
    return (
        f"Observation, in order: {parts} ({sum(int(size) for _, size in spec['parts'])} values). "
        f"Action: {len(spec['action_low'])} values in {_numbers(spec['action_low'])} to {_numbers(spec['action_high'])}, "
        f"in chunks of {policy['horizon']}, executed open loop. {network}."
    )


def _origin(content: Mapping[str, Any]) -> str:
    environment = f" Environment {content['env']['family']}:{content['env']['id']}." if content["env"] else " No environment."
    unit = "updates" if content["stage"] == "pretrain" else "online environment steps"
    data = content["dataset"]
    if data is None:
        if content["stage"] == "convert":
            return f"Parameters in {content['origin']['path']}, {content['origin']['format']}, sha256 `{content['origin']['hash']}`."
        return f"Rewards alone: no demonstrations.{environment} {content['step']} {unit}."
    text = f"{data['episodes']} episodes ({data['steps']} steps) of {data['id']}, {data['format']}, sha256 `{data['hash']}`."
    text += "".join(f" Note: {note}." for note in data["notes"])
    return f"{text}{environment} {content['step']} {unit}."


def _settings(tree: Mapping[str, Any]) -> str:
    changed = recipe.differences(recipe.to_tree(Settings()), tree)
    return "\n".join(f"- {line.partition(': ')[0]}: {line.rpartition(' -> ')[2]}" for line in changed) or "None."


def _numbers(values: list[float]) -> str:
    """`-1` when all are the same, else the list."""
    return f"{values[0]:g}" if len(set(values)) == 1 else "[" + ", ".join(f"{value:g}" for value in values) + "]"
