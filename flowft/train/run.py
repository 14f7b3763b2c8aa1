"""What both loops need around their steps: the environment, interrupts, saving now and then, the checkpoint's content."""

from __future__ import annotations

import platform
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import Any

import torch

import flowft
from flowft import recipe
from flowft.data.spec import Batch, Dataset, EnvSpec
from flowft.envs import base
from flowft.errors import UsageError
from flowft.policies.base import Policy
from flowft.train.settings import Settings

SAVE_SECONDS = 120.0
SIMULATORS = ("gymnasium", "mujoco", "robosuite", "ogbench", "gymnasium-robotics")


class Interrupts:
    """Ctrl-C and SIGTERM end the run at the next whole step, after its state has been saved. A second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread: somebody else handles signals there
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Clock:
    """True once every `SAVE_SECONDS`. When a run is saved changes nothing in it."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def due(self) -> bool:
        if time.monotonic() - self.last < SAVE_SECONDS:
            return False
        self.last = time.monotonic()
        return True


def environment(settings: Settings, dataset: Dataset | None, saved: EnvSpec | None = None) -> EnvSpec | None:
    """The environment of a run: `env` of the recipe, else the checkpoint's, else the dataset's."""
    found = saved or (dataset.env if dataset else None)
    if settings.env is not None:
        found = named_environment(settings.env, found)
        if dataset is not None and not found.observation and len(dataset.spec.parts) > 1:
            found = replace(found, observation=tuple(name for name, _ in dataset.spec.parts))  # in the order of the data
    if found is not None and settings.max_steps is not None:
        found = replace(found, max_steps=settings.max_steps)
    if found is not None and settings.env_kwargs:
        found = replace(found, kwargs={**found.kwargs, **settings.env_kwargs})
    if found is not None and settings.environment is not None:
        found = settings.environment.applied(found)
    if found is not None and settings.data.observation and not found.observation:
        found = replace(found, observation=settings.data.observation)
    return found


def named_environment(text: str, known: EnvSpec | None) -> EnvSpec:
    """What was written after --env; where that is the environment already known, with all that is known of it."""
    named = base.parse(text)
    return known if known is not None and (named.family, named.id) == (known.family, known.id) else named


def require_stage(name: str, algorithm: Any, from_scratch: bool) -> None:
    """An algorithm learns from demonstrations or from scratch: the wrong command is a mistake to be told of."""
    if getattr(algorithm, "from_scratch", False) == from_scratch:
        return
    if from_scratch:
        raise UsageError(f"{name} starts from demonstrations; `train` has none", "--set algo=sac_flow_scratch")
    raise UsageError(f"{name} learns from scratch, without demonstrations", "flowft train --env ENV, or --set algo=sac_flow")


def require_rollout(settings: Settings, algorithm: Any) -> None:
    """Gradients through the rollout can be logged where the actor learns through one."""
    if settings.diagnostics.gradients and not getattr(algorithm, "through_rollout", False):
        raise UsageError(f"the algorithm {settings.algo} learns nothing through the rollout", "--set diagnostics.gradients=false")


def require_reach(section: str, n_step: int | None, horizon: int) -> None:
    """Q is of a whole chunk, so its target cannot bootstrap before the chunk's end."""
    if n_step is not None and n_step < horizon:
        raise UsageError(f"{section}.n_step is {n_step}, less than the chunk's {horizon} steps", f"--set {section}.n_step=null")


def require_unused(settings: Settings, *sections: str) -> None:
    """A section that this command does not read must not look as if it were."""
    for section in sections:
        if tree := getattr(settings, section):
            raise UsageError(
                f"{section}.{next(iter(tree))} is a setting of `flowft {section}`; this command does not read that section",
                "leave it out, or give it in the section named after this command",
            )


def to_device(batch: Batch, device: torch.device) -> Batch:
    return batch if device.type == "cpu" else Batch(*(x.to(device, non_blocking=True) for x in batch))


def checkpoint_content(
    settings: Settings, stage: str, step: int, policy: Policy, algo: Mapping[str, Any], env: EnvSpec | None,
    dataset: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """All it takes to act, to go on fine-tuning, and to know where the policy came from."""
    return {
        "stage": stage,
        "step": step,
        "spec": policy.spec.to_tree(),
        "env": env.to_tree() if env else None,
        "dataset": dict(dataset) if dataset else None,
        "recipe": recipe.to_tree(settings),
        "policy_kind": policy.kind,
        "policy": policy.state_dict(),
        "algo": dict(algo),
        "evaluation": dict(evaluation) if evaluation else None,
        "versions": versions(),
    }


def describe(dataset: Dataset) -> dict[str, Any]:
    """Which data a policy was made from."""
    return {
        "id": dataset.id, "path": dataset.path, "hash": dataset.hash, "format": dataset.format,
        "episodes": len(dataset.episodes), "steps": dataset.steps, "notes": list(dataset.notes),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Of what a result may depend on."""
    found = {"flowft": flowft.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("numpy", *SIMULATORS):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def other_versions(content: Mapping[str, Any]) -> list[str]:
    """Simulator packages whose version is not the one that the checkpoint was made with, in words."""
    now = versions()
    before = {package: content["versions"].get(package) for package in SIMULATORS}
    changed = {package: was for package, was in before.items() if was != now.get(package, was)}
    return [f"{package} {now[package]} here, {was} when the checkpoint was made" for package, was in changed.items()]
