"""`flowft plot RUN… --out F.png`."""

from __future__ import annotations

from pathlib import Path

import click

from flowft.errors import UsageError, did_you_mean


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="Picture to write: .png, .pdf or .svg.")
@click.option("--kind", type=click.Choice(["success", "return", "gradients"]), default="success", show_default=True, help="What to draw.")
def plot(runs: tuple[str, ...], out: Path, kind: str) -> None:
    """Draw success, return or gradients against online steps, from one run or many.

    RUN is a name in runs/ or a run folder. Runs that differ in nothing but their seed become one curve: the mean with
    its interval. The dashed line is the cloned policy, as evaluated before the first online step.

    \b
    --kind gradients draws how gradients pass through the flow steps, each run by itself, and prints them as a table.
    The runs must have been made with --set diagnostics.gradients=true.
    """
    from flowft.report import gradients, plots

    if kind == "gradients":
        click.echo(gradients.table(gradients.draw([gradients.read_run(folder(run)) for run in runs], out)))
        click.echo(str(out))
        return
    curves = plots.draw([plots.read_run(folder(run)) for run in runs], out, kind)
    for curve in curves:
        unit = "{:.0%}" if kind == "success" else "{:.2f}"
        start = "" if curve.start is None else f"cloned {unit.format(curve.start)}, "
        click.echo(f"{curve.label}: {start}{unit.format(curve.middle[-1])} after {curve.steps[-1]} online steps")
    click.echo(str(out))


def folder(run: str) -> Path:
    """A run by path or by name in `runs/`."""
    from flowft.train import runlog

    root = runlog.folder("")
    for path in (Path(run), root / run):
        if path.is_dir():
            return path
    there = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    raise UsageError(
        f"no run {run!r}" + (did_you_mean(run, there) if there else f" (there is none in {root}/ yet)"), "flowft finetune --ckpt NAME"
    )
