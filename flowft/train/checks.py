"""What a run may not begin with, each said before anything is trained or written."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flowft import registry
from flowft.algos import base as algos
from flowft.algos.base import Algorithm, ThroughRollout
from flowft.data import source
from flowft.data.spec import Dataset, Spec
from flowft.errors import CheckpointError, DataError, UsageError
from flowft.policies import policy as policies
from flowft.train import loops
from flowft.train.settings import Settings, finetune_section, pretrain_section


class Start(NamedTuple):
    """The checkpoint that a run goes on from."""

    path: Path
    content: Mapping[str, Any]


def require_stage(name: str, algorithm: type[Algorithm], from_scratch: bool) -> None:
    """An algorithm learns from demonstrations or from scratch: the wrong command is a mistake to be told of."""
    if algorithm.from_scratch == from_scratch:
        return
    if from_scratch:
        raise UsageError(f"{name} starts from demonstrations; `train` has none", "--set algo=sac_flow_scratch")
    raise UsageError(f"{name} learns from scratch, without demonstrations (flowft train --env ENV)", "--set algo=sac_flow")


def require_rollout(settings: Settings, algorithm: type[Algorithm]) -> None:
    """Gradients through the rollout can be logged where the actor learns through one."""
    if settings.diagnostics.gradients and not issubclass(algorithm, ThroughRollout):
        raise UsageError(f"the algorithm {settings.algo} learns nothing through the rollout", "--set diagnostics.gradients=false")


def require_reach(section: str, n_step: int | None, horizon: int) -> None:
    """Q is of a whole chunk, so its target cannot bootstrap before the chunk's end."""
    if n_step is not None and n_step < horizon:
        raise UsageError(f"{section}.n_step is {n_step}, less than the chunk's {horizon} steps", f"--set {section}.n_step=null")


def require_unused(settings: Settings, *names: str) -> None:
    """A section that this command does not read must not look as if it were."""
    given = {"pretrain": settings.pretrain, "finetune": settings.finetune, "train": settings.train}
    for name in names:
        if given[name]:
            raise UsageError(
                f"{name}.{next(iter(given[name]))} is a setting of `flowft {name}`; this command does not read that section "
                "(leave it out, or give it in the section named after this command)",
                f"--set {name}=null",
            )


def rehearse(settings: Settings) -> None:
    """Build both offline-to-online stages' learners for a task of two numbers, so that settings that do not fit are told of at once."""
    algorithm = algos.named(settings.algo)
    spec = Spec((("state", 2),), (-1.0,), (1.0,))
    for stage, made in (("pretrain", pretrain_section(settings)), ("finetune", finetune_section(settings))):
        require_reach(stage, made.loop.n_step, settings.policy.horizon)
        algorithm(policies.build(algorithm.policy_kind, spec, settings.networks), settings.critic, made.algo, settings.seed)


def require_same_kind(start: Start, settings: Settings) -> None:
    """An algorithm goes on with the kind of policy that it trains, or with one whose weights that kind takes."""
    found, wanted = start.content.get("policy_kind", "flow"), algos.named(settings.algo).policy_kind
    if found not in (wanted, *registry.get("policies", wanted).takes):
        made = start.content["recipe"]["algo"]
        raise UsageError(
            f"{start.path} holds a {found} policy, pretrained with algo={made}; {settings.algo} trains a {wanted} policy",
            f"flowft pretrain --dataset {_dataset_id(start)} --set algo={settings.algo} --name {start.path.stem}-{settings.algo}",
        )


def require_moments(algo: Algorithm, start: Start, loop: loops.Finetune) -> None:
    """Adam's state can be kept where the checkpoint has it."""
    optimizers = {name for name in algo.state_dict() if name.endswith("optimizer")}
    if loop.keep_optimizers and not optimizers <= set(start.content["algo"]):
        lacking = ", ".join(sorted(optimizers - set(start.content["algo"])))
        raise CheckpointError(f"{start.path} was made otherwise and holds no {lacking} to keep", "--set finetune.keep_optimizers=false")


def same_dataset(start: Start, settings: Settings) -> Dataset:
    """The demonstrations that the checkpoint was pretrained on; other bytes under the same name are an error."""
    before, path = start.content["dataset"], shlex.quote(str(start.path))
    named = settings.dataset or (before["id"] if before else None)
    if named is None:
        raise DataError(f"{start.path} knows no demonstrations to go on with", f"flowft finetune --ckpt {path} --dataset ID --env ENV")
    try:
        dataset = source.load(named, settings.data)
    except DataError as error:
        if before and named == before["id"] and not Path(before["path"]).exists():
            what = f"the demonstrations that {start.path} was made from are no longer at {before['path']}"
            raise DataError(what, f"flowft finetune --ckpt {path} --dataset PATH, with where they are now") from error
        raise
    then = start.content["recipe"].get("data", {})
    if before and settings.dataset == before["id"] and not source.unchanged(dataset, before["hash"], then):
        raise DataError(
            f"{dataset.path} has changed since the checkpoint was made from it (sha256 {dataset.hash[:12]}, then {before['hash'][:12]})",
            f"flowft pretrain --dataset {shlex.quote(dataset.id)} --name {shlex.quote(start.path.stem + '-again')}",
        )
    return dataset


def _dataset_id(start: Start) -> str:
    return shlex.quote(start.content["dataset"]["id"]) if start.content["dataset"] else "ID"
