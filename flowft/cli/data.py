"""`flowft data`: list, info, check, download, export, generate."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from flowft import registry
from flowft.cli import reading
from flowft.cli.check import check
from flowft.cli.export import export
from flowft.data import fixes, source
from flowft.data.spec import Dataset
from flowft.errors import DataError, FlowftError, UsageError, did_you_mean


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def data() -> None:
    """List, inspect, check, download, export and generate datasets."""


@data.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def list_command(as_json: bool) -> None:
    """Show every dataset that has a name and whether it is here, and which layouts are read."""
    rows = [{"id": dataset_id, "path": path and str(path), "how": how} for dataset_id, path, how in _listed()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(str(row["id"])) for row in rows)
    for row in rows:
        click.echo(f"{row['id']:<{width}}  {row['path'] or row['how']}")
    click.echo("\nA path is read by its content (datasets/README.md has more):")
    for name, words in _layouts().items():
        click.echo(f"  {name:<10} {words}")


@data.command()
@click.argument("id_or_path", metavar="ID|PATH")
@reading.setting
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(id_or_path: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Show what a dataset holds. Masks, duplicates and the action range are `check`'s to judge."""
    tolerant = reading.options(assignments, {"demos": "all", "clip_actions": True, "duplicates": "keep"})
    facts = describe(source.load(id_or_path, tolerant, said=reading.options(assignments)))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        for line in value if isinstance(value, list) and key == "notes" else [value]:
            click.echo(f"{key.replace('_', ' '):<16} {_readable(line)}")


@data.command()
@click.argument("dataset_id", metavar="ID")
@click.option("--version", default="v1.5", show_default=True, type=click.Choice(["v1.5", "v0.1"]), help="Of robomimic's files.")
def download(dataset_id: str, version: str) -> None:
    """Fetch a public dataset; an interrupted download continues."""
    from flowft.data.download import download as get
    from flowft.data.fetch import AGAIN

    again = fixes.command(AGAIN, dataset_id, {}) + (f" --version {version}" if version != "v1.5" else "")
    try:
        paths = get(dataset_id, version)
    except DataError as error:
        raise DataError(error.what, again if error.fix == AGAIN else error.fix) from error
    for path in paths:
        click.echo(str(path))
    click.echo(f"next: flowft data info {dataset_id}", err=True)


data.add_command(check)
data.add_command(export)


@dataclass(frozen=True)
class Order:
    """What `generate` was asked for."""

    dataset_id: str
    episodes: int | None
    steps: int | None
    seed: int
    imperfection: float | None
    workers: int
    out: Path | None

    @property
    def name(self) -> str:
        return self.dataset_id.partition("/")[2]


_DEFAULTS = {"seed": 0, "workers": 1}  # of what an order holds; the others are None


@data.command()
@click.argument("dataset_id", metavar="ID")
@click.option("--episodes", type=click.IntRange(1), help="How many demonstrations (ogbench: trajectories of 1000 steps).")
@click.option("--steps", type=click.IntRange(1), help="ogbench only: how many actions.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same file.")
@click.option("--imperfection", type=click.FloatRange(0), help="scripted only: 0 is a clean expert; default: the task's own.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes; the file does not depend on it.")
@click.option("--out", "--output", "out", type=click.Path(path_type=Path), help="File to write; default: where the id is looked for.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def generate(force: bool, **asked: Any) -> None:
    """Make demonstrations here: scripted/lift, scripted/can, scripted/square, ogbench/cube-single-play, …"""
    order = Order(**asked)
    family = order.dataset_id.partition("/")[0]
    if order.dataset_id not in _generatable() or family not in ("scripted", "ogbench"):
        raise UsageError(f"{order.dataset_id!r} cannot be made here{did_you_mean(order.dataset_id, _generatable())}", "flowft data list")
    path, make = _scripted(order) if family == "scripted" else _played(order)
    if path.exists() and not force:
        raise DataError(f"{path} is there already; --force replaces it, --out names another", _typed(order, "--force"))
    click.echo(str(make(path)))
    click.echo(f"next: flowft data info {path}", err=True)


def _typed(order: Order, *more: str) -> str:
    """The command that an order is, with what is to be added."""
    values = {f.name: getattr(order, f.name) for f in dataclasses.fields(order)[1:]}
    given = [(f"--{name}", str(value)) for name, value in values.items() if value != _DEFAULTS.get(name)]
    words = ["flowft", "data", "generate", order.dataset_id, *(word for pair in given for word in pair), *more]
    return shlex.join(words)


def describe(dataset: Dataset) -> dict[str, Any]:
    """The facts of `info --json`."""
    lengths = [len(episode) for episode in dataset.episodes]
    successes = [episode.success for episode in dataset.episodes]
    env = dataset.env
    return {
        "id": dataset.id,
        "source": dataset.source,
        "format": dataset.format,
        "path": dataset.path,
        "sha256": dataset.hash,
        "episodes": len(dataset.episodes),
        "steps": dataset.steps,
        "lengths": {"min": min(lengths), "median": float(np.median(lengths)), "max": max(lengths)},
        "observation_dim": dataset.spec.observation_dim,
        "observation": dict(dataset.spec.parts),
        "action_dim": dataset.spec.action_dim,
        "action_low": list(dataset.spec.action_low),
        "action_high": list(dataset.spec.action_high),
        "reward_sum": float(sum(episode.rewards.sum(dtype=np.float64) for episode in dataset.episodes)),
        "successes": None if any(success is None for success in successes) else sum(bool(success) for success in successes),
        "env": None if env is None else {"family": env.family, "id": env.id, "version": _version(env.id, env.versions)},
        "notes": list(dataset.notes),
    }


def _version(env_id: str, versions: Any) -> str | None:
    """Of the simulator that the data were made with, else the one that the environment's id ends in."""
    tail = env_id.rpartition("-v")[2]
    return ", ".join(f"{name} {number}" for name, number in versions.items()) or (f"v{tail}" if tail.isdigit() else None)


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, list):
        return str(value[0]) if value and len(set(value)) == 1 else " ".join(f"{v:.4g}" for v in value)
    return "unknown" if value is None else str(value)


def _listed() -> list[tuple[str, Path | None, str]]:
    """(id, where it lies or None, how to get it)."""
    makeable = _generatable()
    return [
        (dataset_id, _here(dataset_id), "made on first use" if dataset_id in makeable else f"flowft data download {dataset_id}")
        for dataset_id in source.known_ids()
    ]


def _layouts() -> dict[str, str]:
    """What each source reads and what not, in its own words; a plug-in may have none."""
    modules = {name: registry.get("sources", name) for name in registry.names("sources")}
    return {name: words for name, module in modules.items() if (words := getattr(module, "READS", None))}


def _here(dataset_id: str) -> Path | None:
    """Where an id's file lies, without making it."""
    family, _, name = dataset_id.partition("/")
    if family == "scripted":
        path = source.folder() / family / f"{name}.hdf5"
        return path if path.is_file() else None
    module = registry.get("sources", family)
    try:
        found: Path | None = module.here(dataset_id) if hasattr(module, "here") else module.locate(dataset_id)
    except FlowftError:
        return None
    return found


def _generatable() -> list[str]:
    from flowft.data import ogbench_play

    return [*registry.get("sources", "scripted").known(), *(f"ogbench/{name}" for name in ogbench_play.known())]


def _scripted(order: Order) -> tuple[Path, Callable[[Path], Path]]:
    """Where the demonstrations go, and what makes them."""
    if order.steps is not None:
        fix = f"flowft data generate {order.dataset_id} --episodes 100"
        raise UsageError(f"--steps is for ogbench/…; {order.dataset_id} is counted in demonstrations", fix)
    level = "" if order.imperfection is None else f"-{order.imperfection:g}"  # as the id scripted/lift/1.5 is looked for
    path = order.out or source.folder() / "scripted" / f"{order.name}{level}.hdf5"
    how = {"episodes": order.episodes, "seed": order.seed, "imperfection": order.imperfection, "workers": order.workers}
    make = registry.get("sources", "scripted").generate
    return path, lambda file: Path(make(order.name, file, **how))


def _played(order: Order) -> tuple[Path, Callable[[Path], Path]]:
    from flowft.data import ogbench_npz, ogbench_play

    if order.imperfection is not None:
        what = f"--imperfection is for scripted/…; the oracles of {order.dataset_id} have their own noise"
        raise UsageError(what, f"flowft data generate {order.dataset_id}")
    if order.episodes is not None and order.steps is not None:
        raise UsageError("--episodes and --steps say the same thing twice", _typed(replace(order, episodes=None)))
    steps = order.episodes * ogbench_play.EPISODE_STEPS if order.episodes else order.steps
    how: dict[str, Any] = {"seed": order.seed, "workers": order.workers, **({"steps": steps} if steps else {})}
    path = order.out or ogbench_npz.homes()[0] / f"{order.name}-v0.npz"
    return path, lambda file: ogbench_play.generate(order.name, file, **how)
