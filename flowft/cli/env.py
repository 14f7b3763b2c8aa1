"""`flowft env`: check, list."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import click

from flowft import registry
from flowft.data.spec import Dataset, EnvSpec, Spec
from flowft.envs import base, modules
from flowft.envs.repeats import Finding
from flowft.errors import MissingExtra, UsageError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def env() -> None:
    """Check whether an environment is fit to learn in; list what there is."""


@env.command("list")
@click.argument("family", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: family -> ids.")
def list_command(family: str | None, as_json: bool) -> None:
    """Show the environments of every family that is installed, or of one. Yours is MODULE:ID."""
    wanted = [family] if family else registry.names("envs")
    found = {name: _ids(name) for name in wanted}
    if as_json:
        click.echo(json.dumps({name: ids for name, ids in found.items() if not isinstance(ids, str)}, indent=2))
        return
    for name, ids in found.items():
        for line in [ids] if isinstance(ids, str) else [f"{name}:{i}" for i in ids]:
            click.echo(line)


def _ids(family: str) -> list[str] | str:
    """The ids of a family, or why there are none here."""
    module = registry.get("envs", family)
    try:
        ids = sorted(module.known()) if hasattr(module, "known") else []
    except MissingExtra as error:
        return f"{family}: {error.what} ({error.fix})"
    return [i for i in ids if base.parse(i).family == family] if family == "gymnasium" else ids


@env.command()
@click.argument("env_id", metavar="[ENV]", required=False)
@click.option("--env", "env_option", metavar="ENV", help="The same as the argument, as other commands spell it.")
@click.option("--episodes", type=click.IntRange(min=1), default=3, show_default=True, help="Of random actions.")
@click.option("--ckpt", metavar="NAME", help="Is it the environment that this checkpoint was trained for?")
@click.option("--dataset", metavar="ID|PATH", help="Does it have the observations and actions of these demonstrations?")
@click.option("--recipe", "recipes", multiple=True, metavar="NAME|FILE", help="Settings (YAML). Repeatable: later ones win.")
@click.option("--set", "assignments", multiple=True, metavar="A.B=V", help="One setting, e.g. environment.success=solved. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def check(
    ctx: click.Context, env_id: str | None, env_option: str | None, episodes: int, ckpt: str | None, dataset: str | None,
    recipes: tuple[str, ...], assignments: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Try out what training relies on; exit 1 if there is a problem.

    ENV is `family:id`, `my_module:MyEnv-v0`, or an id alone; without it, the environment of the checkpoint or of the
    dataset. Seeds must repeat, shapes and bounds hold, numbers be finite, success be known.
    """
    if env_id and env_option:
        raise UsageError("two environments were named", f"flowft env check {env_id}")
    with modules.stdout_to_stderr():  # simulators print; stdout is the report's
        wanted = _wanted(env_id or env_option, ckpt, dataset, recipes, assignments)
        found = list(_findings(wanted, episodes))
    _report(wanted.env, found, as_json)
    if problems := sum(not finding.ok for finding in found):
        click.echo(f"{problems} problem{'s' * (problems != 1)}", err=True)
        ctx.exit(1)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to check, and against what."""

    env: EnvSpec
    checkpoint: tuple[str, Spec] | None
    dataset: Dataset | None


def _wanted(env: str | None, ckpt: str | None, dataset: str | None, recipes: tuple[str, ...], assignments: tuple[str, ...]) -> Wanted:
    """The environment as a run with these options would build it."""
    from flowft import checkpoint
    from flowft.cli import options
    from flowft.data import source
    from flowft.train.settings import Settings
    from flowft.train.simulator import environment

    settings = Settings.read(options.asked(recipes, assignments, env=env).tree)
    content = checkpoint.load(checkpoint.find(ckpt), "policy checkpoint") if ckpt else None
    loaded = source.load(dataset, settings.data) if dataset else None
    saved = EnvSpec.from_tree(content["env"]) if content and content["env"] else None
    spec = environment(settings, loaded, saved)
    if spec is None:
        raise UsageError("no environment was named", "flowft env check ENV   (flowft env list shows some)")
    return Wanted(spec, (str(ckpt), Spec.from_tree(content["spec"])) if content else None, loaded)


def _findings(wanted: Wanted, episodes: int) -> Iterator[Finding]:
    from flowft.envs.check import check as try_out

    yield from (found := list(try_out(wanted.env, episodes)))
    if not found[0].ok:  # it cannot be built
        return
    made = base.make(wanted.env)
    try:
        if wanted.checkpoint is not None:
            yield _compared("checkpoint", *wanted.checkpoint, made.flow_spec)
        if wanted.dataset is not None:
            yield _compared("dataset", wanted.dataset.id, wanted.dataset.spec, made.flow_spec)
            yield from _demonstrations(wanted.dataset, made)
    finally:
        made.close()


def _compared(what: str, name: str, known: Spec, found: Spec) -> Finding:
    """Its differences in words: the other's first, then the environment's."""
    different = known.differences(found)
    if not different:
        return Finding(what, f"{name} has the same observations and actions")
    names = [part for part, _ in known.parts]
    if set(known.parts) <= set(found.parts):  # only chosen or ordered otherwise
        return Finding(what, f"{name} differs: {'; '.join(different)}", False, f"--set 'data.observation=[{', '.join(names)}]'")
    return Finding(what, f"{name} differs: {'; '.join(different)}", False, f"--env with the environment that {name} was made in")


def _demonstrations(dataset: Dataset, env: base.FlowEnv) -> Iterator[Finding]:
    """Do the demonstrations end as episodes here do?"""
    longest = max(map(len, dataset.episodes))
    if longest > env.max_steps:
        what = f"the longest demonstration has {longest} steps; an episode is cut after {env.max_steps}"
        yield Finding("dataset", what, False, f"--set max_steps={longest}")
    solved = [episode for episode in dataset.episodes if episode.success]
    if solved and all(episode.terminated for episode in solved) and not env.success_ends:
        what = f"the {len(solved)} demonstrations that succeed end there; if an episode here goes on: --set environment.success_ends=true"
        yield Finding("dataset", what, note=True)


def _report(env: EnvSpec, found: list[Finding], as_json: bool) -> None:
    name = f"{env.family}:{env.id}"
    if as_json:
        rows: list[dict[str, Any]] = [dataclasses.asdict(finding) for finding in found]
        click.echo(json.dumps({"env": name, "problems": sum(not finding.ok for finding in found), "checks": rows}, indent=2))
        return
    click.echo(name)
    width = max(len(finding.check) for finding in found)
    for finding in found:
        click.echo(f"{('note' if finding.note else 'ok') if finding.ok else 'problem':<7}  {finding.check:<{width}}  {finding.what}")
        if finding.fix:
            click.echo(f"{'':<7}  {'':<{width}}  fix: {finding.fix}")
