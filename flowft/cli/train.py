"""`flowft train --env ENV`."""

from __future__ import annotations

import click

from flowft.cli import options


@click.command()
@options.training
def train(
    recipes: tuple[str, ...], assignments: tuple[str, ...], seed: int | None, device: str | None, env: str | None, name: str | None,
    dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Learn a flow policy from scratch, from rewards alone.

    An environment that a recipe is named after (`flowft train --env HalfCheetah-v5`: scratch/halfcheetah) brings that
    recipe along; any other starts at the published scale. Plain SAC: --set algo=sac_scratch. Writes
    checkpoints/NAME.pt and runs/NAME/. NAME is the environment's unless --name says otherwise. The same command
    continues a run that was interrupted.
    """
    asked = options.asked(recipes or options.recipe_of_env(env), assignments, seed=seed, device=device, env=env)
    with options.interruptible():
        from flowft.train import plan as planning
        from flowft.train import scratch as stage

        with planning.from_scratch(asked.tree, name, options.layers(asked)) as plan:
            if dry_run:
                options.show(plan, as_json)
                return
            path = stage.run(plan)
    options.conclude(path, ["flowft", "plot", path.stem, "--kind", "return", "--out", f"{path.stem}.png"])
