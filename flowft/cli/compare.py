"""`flowft compare --dataset ID|PATH --algos a,b,c --out DIR`."""

from __future__ import annotations

from pathlib import Path

import click

from flowft import recipe
from flowft.cli import options
from flowft.errors import UsageError


@click.command()
@click.option("--dataset", required=True, metavar="ID|PATH", help="Dataset id (`flowft data list`) or file.")
@click.option("--algos", metavar="A,B,C", help="Algorithms, each with the recipe's settings for it: sac_flow, qc_fql, qc, rlpd, flow_bc.")
@click.option("--variant", "variants", multiple=True, metavar="'NAME=ALGO KEY=VALUE …'", help="One more row of the table. Repeatable.")
@click.option("--seeds", default="0", show_default=True, metavar="N,N,…", help="Each algorithm runs with each of them.")
@click.option("--steps", type=click.IntRange(min=1), help="Online environment steps of each run; the recipe's without it.")
@click.option(
    "--recipe", "recipes", multiple=True, metavar="NAME|FILE", help="Settings that all share; without it the dataset's. Repeatable."
)
@click.option("--set", "assignments", multiple=True, metavar="A.B=V", help="One setting for all of them. Repeatable.")
@click.option("--device", metavar="DEVICE", help="auto (the default), cpu, cuda or cuda:N.")
@click.option("--name", help="What the names of the runs begin with; the dataset's without it.")
@click.option(
    "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder for table.md, table.json, success.png."
)
@click.option("--goal", type=click.FloatRange(0, 1), default=0.9, show_default=True, help="The level whose first step the table tells.")
@click.option("--report-only", is_flag=True, help="Train nothing; report on what is there.")
def compare(
    dataset: str, algos: str | None, variants: tuple[str, ...], seeds: str, steps: int | None, recipes: tuple[str, ...],
    assignments: tuple[str, ...], device: str | None, name: str | None, out: Path, goal: float, report_only: bool,
) -> None:  # fmt: skip
    """Run several algorithms on one dataset with the same seeds; write one table and one plot.

    \b
    flowft compare --dataset scripted/lift --algos sac_flow,qc_fql,rlpd --seeds 0,1,2 --out lift-compared
    flowft compare … --variant 'free=sac_flow finetune.radius=null finetune.beta=100'

    Each part is a `pretrain` and a `finetune` named NAME-ALGO-sSEED and NAME-ALGO-sSEED-online; parts that are done
    are left alone, so the same command continues a killed comparison. To use more cores, start it once per seed and
    then with all seeds and --report-only.
    """
    own = recipe.from_assignments(assignments)
    shared = {"dataset": dataset}, {"device": device} if device else {}, {"finetune": {"steps": steps}} if steps else {}
    given = recipe.merge(own, *shared)
    with options.interruptible():
        from flowft import checkpoint
        from flowft.report import card, plots
        from flowft.report import compare as report
        from flowft.train import compare as comparison
        from flowft.train import runlog
        from flowft.train.names import of_dataset

        plots.require_matplotlib("flowft compare")  # before hours of training, not after them
        rows = comparison.entries(algos, variants)
        comparison.require_same_ground(own, "--set")
        named = options.asked(recipes or options.recipe_of(dataset), ()).tree
        todo = comparison.parts(named, given, rows, _numbers(seeds), name or of_dataset(dataset))
        folders = {entry.label: [runlog.folder(part.online) for part in todo if part.entry.label == entry.label] for entry in rows}

        def write() -> None:
            report.write(report.gather(folders), out, f"{dataset}: {', '.join(folders)}", options.command_line(), goal)

        if not report_only:
            for part in comparison.run(todo):
                path = checkpoint.folder() / f"{part.online}.pt"
                text = card.card(checkpoint.load(path, "policy checkpoint"), part.online, options.command_line())
                card.write(runlog.folder(part.online) / "README.md", text)
                write()  # of what there is by now
        write()
    click.echo((out / "table.md").read_text().split("\n\n")[1])
    click.echo(str(out / "table.md"))


def _numbers(text: str) -> list[int]:
    try:
        found = [int(number) for number in text.split(",") if number.strip()]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise UsageError(f"--seeds {text!r} is not a list of different numbers from 0 on", "--seeds 0,1,2")
    return found
