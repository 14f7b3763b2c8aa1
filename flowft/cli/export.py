"""`flowft data export ID --to robomimic|lerobot|minari OUT`: a dataset, or what a run collected online, in another layout."""

from __future__ import annotations

from pathlib import Path

import click

from flowft.cli import reading
from flowft.data import source
from flowft.data.export import FORMATS
from flowft.data.spec import Dataset
from flowft.errors import UsageError


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="[ID|PATH] OUT")
@click.option("--to", type=click.Choice(FORMATS), required=True, help="robomimic: an HDF5 file; lerobot, minari: a folder.")
@click.option("--run", metavar="NAME", help="Instead of a dataset: the online replay of a run in runs/.")
@reading.setting
@click.option("--fps", type=click.FloatRange(min=0, min_open=True), help="lerobot: steps a second, where the data do not say it.")
@click.option("--force", is_flag=True, help="Replace what is there.")
def export(places: tuple[str, ...], to: str, run: str | None, assignments: tuple[str, ...], fps: float | None, force: bool) -> None:
    """Write a dataset, or what a run collected, in another program's layout. Read back, it is equal."""
    from flowft.data.export import write

    if len(places) != (1 if run else 2):
        what = f"--run {run} needs one path, to write to" if run else "a dataset and a path to write to are needed"
        raise UsageError(f"{what}; given: {' '.join(places)}", "flowft data export --help")
    if fps is not None and to != "lerobot":
        raise UsageError(f"--fps is for --to lerobot; {to} keeps no rate", "the same command without --fps")
    dataset = _collected(run, assignments) if run else source.load(places[0], reading.options(assignments))
    out = Path(places[-1])
    for line in write(dataset, to, out, fps, force):
        click.echo(f"note: {line}", err=True)
    click.echo(str(out))
    click.echo(f"{len(dataset.episodes)} episodes, {dataset.steps} steps; next: flowft data info {out}", err=True)


def _collected(run: str, assignments: tuple[str, ...]) -> Dataset:
    from flowft.cli.plot import folder
    from flowft.train import collected

    if assignments:
        raise UsageError(f"--set is for datasets; the replay of {run} is written as it is", "the same command without --set")
    dataset = collected.read(folder(run))
    for note in dataset.notes:
        click.echo(f"note: {note}", err=True)
    return dataset
