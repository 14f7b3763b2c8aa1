"""`flowft data check ID|PATH`: every problem of a dataset with its fix, and whether it belongs to its environment."""

from __future__ import annotations

import shlex

import click

from flowft.cli import reading
from flowft.data import fixes, source
from flowft.data.source import Options, Problem, Problems
from flowft.data.spec import Dataset
from flowft.errors import DataError, FlowftError


@click.command()
@click.argument("id_or_path", metavar="ID|PATH")
@reading.setting
@click.option("--env", help="Environment to compare the data with; default: the one they name.")
def check(id_or_path: str, assignments: tuple[str, ...], env: str | None) -> None:
    """Print every problem with its place in the file, one line and one fix a cause, and every difference to the environment; exit 1."""
    problems, options = Problems(collect=True), reading.options(assignments)
    dataset = None
    try:
        dataset = source.load(id_or_path, options, problems)
    except DataError as error:  # what keeps the file from being read further
        if not problems.found:
            problems.found.append(Problem("", error.what, error.fix))
    causes = problems.causes()
    for problem in causes:
        click.echo(str(problem))
        if problem.fix:
            click.echo(f"  fix: {fixes.completed(problem.fix, id_or_path, options)}")
    if causes or dataset is None:
        click.echo(f"{len(causes)} problem{'s' * (len(causes) != 1)}", err=True)
        if len(causes) > 1 and (everything := _all_at_once(causes, id_or_path, options)):
            click.echo(f"all fixes at once: {everything}", err=True)
        click.get_current_context().exit(1)
    for note in dataset.notes:
        click.echo(f"note: {note}", err=True)
    _compare(dataset, env, options)
    click.echo(f"no problems: {len(dataset.episodes)} episodes, {dataset.steps} steps")
    click.echo(f"next: {fixes.command('flowft pretrain --dataset', id_or_path, fixes.given(options))}", err=True)


def _all_at_once(causes: list[Problem], id_or_path: str, options: Options) -> str | None:
    """One command that mends all, if there is one: together they might leave nothing."""
    if not all(fixes.settings(problem.fix) for problem in causes):
        return None
    everything = fixes.completed(fixes.merged(problem.fix for problem in causes), id_or_path, options)
    assignments = [word for word in shlex.split(everything or "") if word.startswith("data.")]
    try:
        source.load(id_or_path, reading.options(tuple(assignments)))
    except DataError:
        return None
    return everything


def _compare(dataset: Dataset, env: str | None, options: Options) -> None:
    """Say whether the data belong to the environment (seconds); exit 1 when they do not. Not where it is not installed."""
    from flowft.train.match import match

    found = match.environment(dataset, env)
    if found is None or options.match == "off":
        return
    try:
        findings = match.compare(dataset, found)
    except FlowftError as error:
        if env is not None:
            raise
        click.echo(f"note: not compared with {found.id}, which cannot be built here: {error.what}", err=True)
        return
    errors = [finding for finding in findings if finding.severity == "error" and options.match != "warn"]
    for finding in findings:
        click.echo(finding.what if finding in errors else f"note: {finding.what}", err=finding not in errors)
        if finding.fix:
            click.echo(f"  fix: {fixes.completed(finding.fix, dataset.id, options)}", err=finding not in errors)
    if errors:
        click.echo(f"{len(errors)} difference{'s' * (len(errors) != 1)} to {found.id}", err=True)
        click.get_current_context().exit(1)
    click.echo(f"compared with {found.id}: the same observations and effects of actions, as far as the file tells", err=True)
