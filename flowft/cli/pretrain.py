"""`flowft pretrain --dataset ID|PATH`."""

from __future__ import annotations

import click

from flowft.cli import options


@click.command()
@click.option("--dataset", metavar="ID|PATH", help="Dataset id (`flowft data list`) or file; wins over the recipe's.")
@options.training
def pretrain(
    dataset: str | None, recipes: tuple[str, ...], assignments: tuple[str, ...], seed: int | None, device: str | None,
    env: str | None, name: str | None,
) -> None:  # fmt: skip
    """Clone a flow policy from demonstrations and train its critic.

    A dataset with a recipe of its own (`flowft pretrain --dataset scripted/lift`) brings it along; any other starts at
    the published scale. Writes checkpoints/NAME.pt and runs/NAME/. NAME is the dataset's unless --name says otherwise.
    The same command continues a run that was interrupted.
    """
    tree = options.tree(recipes or options.recipe_of(dataset), assignments, dataset=dataset, seed=seed, device=device, env=env)
    with options.interruptible():
        from flowft.train import pretrain as stage

        path = stage.pretrain(tree, name)
    options.conclude(path, f"flowft finetune --ckpt {path.stem}")
