"""`flowft eval NAME`: k of n with a Wilson interval, on seeds that training never uses."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from flowft import recipe
from flowft.errors import EnvError, UsageError


@click.command("eval")
@click.argument("checkpoint", required=False)
@click.option("--ckpt", help="The same as the argument, as `finetune` spells it.")
@click.option("--episodes", type=click.IntRange(min=1), default=50, show_default=True, help="Episodes; 45/50 is 79–96 %, judge with 100.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which block of evaluation seeds.")
@click.option("--stochastic", is_flag=True, help="Act with the noisy rollout, as training does; the default is noise-free.")
@click.option("--envs", type=click.IntRange(min=1), default=1, show_default=True, help="Worker processes; the numbers do not depend on it.")
@click.option("--env", metavar="ENV", help="Another environment than the checkpoint's; observations and actions must be the same.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option("--video", type=click.Path(file_okay=False, path_type=Path), help="Folder for one film per episode (extra [video]).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    checkpoint: str | None, ckpt: str | None, episodes: int, seed: int, stochastic: bool, envs: int, env: str | None, device: str,
    video: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Count successes of a checkpoint on seeds that training never uses."""
    name = checkpoint or ckpt
    if name is None or (checkpoint and ckpt):
        raise UsageError("eval takes one checkpoint, as an argument or as --ckpt", "flowft eval NAME")
    if video is not None:
        _require_rendering()
    result = _run(name, episodes, seed, stochastic, envs, env, device, video)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    from flowft.report.stats import percent

    how = "with sampling noise" if stochastic else "noise-free"
    click.echo(f"{result['checkpoint']} on {result['env']}, {how}, evaluation seeds {seed}")
    click.echo(f"success {percent(result['successes'], result['episodes'])} (Wilson 95 %)")
    click.echo(f"mean return {result['return']:.2f}, mean length {result['length']:.1f} steps")
    if "normalized_score" in result:
        click.echo(f"D4RL-normalised score {result['normalized_score']:.1f} (0 random, 100 expert)")
    if video is not None:
        click.echo(f"films in {video}/")


def _run(
    name: str, episodes: int, seed: int, stochastic: bool, envs: int, env: str | None, device: str, video: Path | None
) -> dict[str, Any]:
    from flowft import checkpoint as files
    from flowft.data.d4rl_scores import normalized_score
    from flowft.data.spec import EnvSpec
    from flowft.device import resolve
    from flowft.policies.policy import from_checkpoint
    from flowft.report.stats import wilson
    from flowft.train import evaluate as evaluation
    from flowft.train.run import other_versions
    from flowft.train.simulator import named_environment

    path = files.find(name)
    content = files.load(path, "policy checkpoint", resolve(device))
    if env is None and not content["env"]:
        raise UsageError(f"{path} names no environment", f"flowft eval {name} --env ENV")
    for difference in other_versions(content):
        click.echo(f"note: {difference}: the same actions may lead elsewhere", err=True)
    known = EnvSpec.from_tree(content["env"]) if content["env"] else None
    spec = named_environment(env, known) if env else known
    assert spec is not None  # one of the two is there
    config = recipe.build(evaluation.Config, {"episodes": episodes, "seed": seed, "envs": envs, "stochastic": stochastic}, "eval")
    policy = from_checkpoint(content).to(resolve(device))
    found = evaluation.evaluate(policy, spec, config, video, str(path))
    row = found.row()
    if content["dataset"] and content["dataset"]["id"].startswith("d4rl/") and env is None:
        row |= {"normalized_score": normalized_score(content["dataset"]["id"], row["return"])}
    low, high = wilson(row["successes"], row["episodes"])
    return {
        "checkpoint": str(path), "env": f"{spec.family}:{spec.id}", "seed": seed, "stochastic": stochastic, **row,
        "success_rate": row["successes"] / row["episodes"], "success_low": low, "success_high": high, "confidence": 0.95,
        "each": {"success": list(found.success), "return": list(found.returns), "length": list(found.lengths)},
    }  # fmt: skip


def _require_rendering() -> None:
    """Choose an offscreen OpenGL before any simulator is imported: with a wrong one MuJoCo ends the process."""
    if os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY") or sys.platform != "linux":
        return
    from flowft.cli.doctor import rendering

    found = rendering()
    if found["works_with"] is None:
        raise EnvError("--video needs offscreen rendering, which does not work here", found["fix"])
    os.environ["MUJOCO_GL"] = found["works_with"]
