"""`flowft pretrain --dataset ID|PATH`."""

from __future__ import annotations

import click

from flowft.cli import options


@click.command()
@click.option("--dataset", metavar="ID|PATH", help="Dataset id (`flowft data list`) or file; wins over the recipe's.")
@options.training
def pretrain(
    dataset: str | None, recipes: tuple[str, ...], assignments: tuple[str, ...], seed: int | None, device: str | None,
    env: str | None, name: str | None, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Clone a flow policy from demonstrations and train its critic.

    A dataset with a recipe of its own (`flowft pretrain --dataset scripted/lift`) brings it along; any other starts at
    the published scale. Writes checkpoints/NAME.pt and runs/NAME/. NAME is the dataset's unless --name says otherwise.
    The same command continues a run that was interrupted.
    """
    asked = options.asked(recipes or options.recipe_of(dataset), assignments, dataset=dataset, seed=seed, device=device, env=env)
    with options.interruptible():
        from flowft.train import plan as planning
        from flowft.train import pretrain as stage

        with planning.pretraining(asked.tree, name, options.layers(asked)) as plan:
            if dry_run:
                options.show(plan, as_json)
                return
            path = stage.run(plan)
    options.conclude(path, ["flowft", "finetune", "--ckpt", path.stem])
