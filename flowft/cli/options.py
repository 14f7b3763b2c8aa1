"""Options that `pretrain`, `finetune` and `train` share, and how they become one tree of settings."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from flowft import recipe

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Asked:
    """What the command line asks for: the settings as one tree, and the layers that it came from, later ones win."""

    tree: recipe.Tree
    layers: tuple[tuple[str, recipe.Tree], ...]


def training(command: F) -> F:
    """--recipe, --set, --seed, --device, --env, --name, --dry-run, --json."""
    for option in reversed(
        [
            click.option("--recipe", "recipes", multiple=True, metavar="NAME|FILE", help="Settings (YAML). Repeatable: later ones win."),
            click.option("--set", "assignments", multiple=True, metavar="A.B=V", help="One setting; wins over the recipe. Repeatable."),
            click.option("--seed", type=click.IntRange(min=0), help="Seed of everything random in this run."),
            click.option("--device", metavar="DEVICE", help="auto (the default), cpu, cuda or cuda:N."),
            click.option("--env", metavar="ENV", help="Environment, e.g. Lift or ogbench:cube-single-play-singletask-v0."),
            click.option("--name", help="Name of the run folder and of the checkpoint."),
            click.option("--dry-run", is_flag=True, help="Check everything, print what would be trained, with which settings, and stop."),
            click.option("--json", "as_json", is_flag=True, help="With --dry-run: print one JSON object."),
        ]
    ):
        command = option(command)
    return command


def asked(recipes: Sequence[str], assignments: tuple[str, ...], **given: Any) -> Asked:
    """The recipes, then --set, then the options that were given (None: not given); later ones win."""
    read = [(f"recipe {name}", recipe.read(name)) for name in recipes]
    named: recipe.Tree = {}
    for _, own in read:
        named = recipe.assemble(named, own)
    options = {key: value for key, value in given.items() if value is not None}
    sets = recipe.from_assignments(assignments)
    layers = [*read, ("--set", sets), *((f"--{key}", {key: value}) for key, value in options.items())]
    return Asked(recipe.assemble(named, recipe.merge(sets, options)), tuple(layers))


def layers(asked: Asked) -> Sequence[Any]:
    """For a plan, which tells from which of them each setting came."""
    from flowft.train.origins import Layer

    return [Layer(name, tree) for name, tree in asked.layers]


def show(plan: Any, as_json: bool) -> None:
    """`--dry-run`: the plan on stdout."""
    import json

    from flowft.report import planned

    click.echo(json.dumps(planned.as_tree(plan), indent=2) if as_json else planned.as_text(plan))


def recipe_of(dataset: str | None) -> list[str]:
    """A dataset's recipe, said on stderr: named after its id or task (`robomimic/can/mh`: robomimic/can), or the one made for it.

    Empty if there is none; then the settings are the defaults, which are of the published scale.
    """
    names = recipe.available()
    named = [name for name in (dataset or "", (dataset or "").rpartition("/")[0]) if name in names]
    made_for = [name for name in names if not named and recipe.read(name).get("dataset") == dataset]
    if name := next(iter(named or made_for), None):
        click.echo(f"recipe: {name}, as it is this dataset's (--recipe NAME for another)", err=True)
        return [name]
    if dataset is not None:
        click.echo("recipe: none, so the published scale: 1M updates, 1M steps (--recipe small for a laptop)", err=True)
    return []


def recipe_of_env(env: str | None) -> list[str]:
    """The recipe from scratch named after an environment (`HalfCheetah-v5`: scratch/halfcheetah), said on stderr; or none."""
    name = "scratch/" + re.sub(r"-v\d+$", "", (env or "").rpartition(":")[2]).lower()
    if name not in recipe.available():
        return []
    click.echo(f"recipe: {name}, as the environment's name is (--recipe scratch/published for the published scale)", err=True)
    return [name]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C (or SIGTERM) ends in the command that goes on from the last saved state, exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("\ninterrupted; the run folder holds the last saved state, and the same command continues from there:", err=True)
        click.echo(f"  {command_line()}", err=True)
        raise click.exceptions.Exit(130) from None


def conclude(path: Path, next_command: Sequence[str]) -> None:
    """Describe the new checkpoint beside its run, and print (stdout) its path, its result and what to type next."""
    from flowft import checkpoint
    from flowft.report import card
    from flowft.train import runlog

    content = checkpoint.load(path, "policy checkpoint")
    card.write(runlog.folder(path.stem) / "README.md", card.card(content, path.stem, command_line()))
    result = content["evaluation"]
    click.echo(f"{path}: " + (_score(result) if result else "not evaluated"))
    click.echo(f"next: {shlex.join(next_command)}")


def _score(result: Mapping[str, Any]) -> str:
    from flowft.report import stats

    return f"success {stats.percent(result['successes'], result['episodes'])}, mean return {result['return']:.2f}"


def command_line() -> str:
    """What was typed, ready to be typed again."""
    return shlex.join(["flowft", *sys.argv[1:]])
