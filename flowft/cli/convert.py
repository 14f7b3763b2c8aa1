"""`flowft convert --from FORMAT FILE --out NAME.pt`."""

from __future__ import annotations

from pathlib import Path

import click

from flowft import registry


@click.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--from", "form", required=True, type=click.Choice(registry.names("converters")), help="Whose file it is.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Checkpoint to write.")
@click.option("--obs-dim", type=click.IntRange(1), help="Observation values; default: as the file's shapes say.")
@click.option("--action-dim", type=click.IntRange(1), help="Values of one action; default: as the file says, else all of a chunk.")
@click.option("--horizon", type=click.IntRange(1), help="Actions per chunk; default: as the file says, else 1.")
def convert(file: Path, form: str, out: Path, obs_dim: int | None, action_dim: int | None, horizon: int | None) -> None:
    """Make a checkpoint from the parameters of a policy trained elsewhere.

    sacflow-npz: the published networks (Flow-G, Flow-T, MLP) in Flax naming, arrays `param:…` and, if there, `critic:…`.
    """
    from flowft import checkpoint
    from flowft.convert import Sizes

    content = registry.get("converters", form).convert(file, Sizes(obs_dim, action_dim, horizon))
    checkpoint.save(out, "policy checkpoint", content)
    policy, spec = content["recipe"]["policy"], content["spec"]
    observation, action = sum(size for _, size in spec["parts"]), len(spec["action_low"])
    critic = f"a critic of {content['recipe']['critic']['ensemble']}" if content["algo"] else "no critic"
    click.echo(
        f"{out}: {policy['network']}, {observation} observation values, chunks of {policy['horizon']} x {action}, "
        f"{policy['steps']} flow steps, step noise {policy['sigma'] * policy['steps'] ** -0.5:.3g}, {critic}"
    )
    click.echo(f"next: flowft finetune --ckpt {out} --dataset ID|PATH --env ENV")
