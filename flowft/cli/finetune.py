"""`flowft finetune --ckpt NAME`."""

from __future__ import annotations

import click

from flowft.cli import options


@click.command()
@click.option("--ckpt", required=True, metavar="NAME|FILE", help="Checkpoint to start from; a name is looked up in checkpoints/.")
@click.option("--dataset", metavar="ID|PATH", help="Demonstrations; a converted checkpoint knows none, others know theirs.")
@options.training
def finetune(
    ckpt: str, dataset: str | None, recipes: tuple[str, ...], assignments: tuple[str, ...], seed: int | None, device: str | None,
    env: str | None, name: str | None, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Improve a checkpoint online; the same command continues a killed run.

    Needs nothing but --ckpt: environment, demonstrations and settings travel with the checkpoint. What is given here
    wins over them. Writes checkpoints/NAME.pt and runs/NAME/; NAME is the checkpoint's with -finetuned unless --name
    says otherwise.
    """
    asked = options.asked(recipes, assignments, dataset=dataset, seed=seed, device=device, env=env)
    with options.interruptible():
        from flowft.train import finetune as stage
        from flowft.train import plan as planning

        with planning.finetuning(ckpt, asked.tree, name, options.layers(asked)) as plan:
            if dry_run:
                options.show(plan, as_json)
                return
            path = stage.run(plan)
    options.conclude(path, ["flowft", "plot", path.stem, "--out", f"{path.stem}.png"])
