"""One door to every simulator: flat float32 observations, actions in [-1, 1], `info["success"]`, exact reseeding.

A family is a module (one file, one line in registry.py) with `build(env: EnvSpec) -> Family`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from flowft import registry
from flowft.data.spec import Array, EnvSpec, Spec
from flowft.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Family:
    """What a family's `build` returns: a Gymnasium environment and how to read it.

    `env` must give observations as a dict of named parts, take actions in its own units, accept `reset(seed=…)` such
    that the same seed gives the same episode whatever happened before, and set `info["success"]` at every step.
    """

    env: gymnasium.Env[Any, Any]
    spec: Spec
    max_steps: int  # truncation when EnvSpec.max_steps is None
    success_ends: bool  # the task is over at the first success


class FlowEnv(gymnasium.Wrapper[Array, Array, Any, Any]):
    """The environment as training sees it.

    reset(seed) -> (D,) ; step(unit action (A,)) -> (D,), raw reward, terminated, truncated, info with `success`: bool.
    """

    def __init__(self, family: Family, max_steps: int | None = None) -> None:
        super().__init__(family.env)
        self.flow_spec = family.spec
        self.max_steps = max_steps or family.max_steps
        self.success_ends = family.success_ends
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (family.spec.observation_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (family.spec.action_dim,), np.float32)
        self.metadata = dict(family.env.metadata or {})  # robosuite's wrapper has None, which crashes vector environments
        self._simulator: gymnasium.Env[Any, Any] = family.env
        self._elapsed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        observation, info = self._simulator.reset(seed=seed, options=options)
        self._elapsed = 0
        return self.flow_spec.flatten(observation), {**info, "success": False}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self._simulator.step(self.flow_spec.from_unit(np.clip(action, -1.0, 1.0)))
        self._elapsed += 1
        success = bool(info["success"])
        terminated = bool(terminated) or (success and self.success_ends)
        truncated = not terminated and (bool(truncated) or self._elapsed >= self.max_steps)
        return self.flow_spec.flatten(observation), float(reward), terminated, truncated, {**info, "success": success}


def parse(text: str) -> EnvSpec:
    """What a user wrote after --env: `family:id`, or an id alone, whose family is then told from its form."""
    family, colon, env_id = text.partition(":")
    if not colon:
        return EnvSpec(_family_of(text), text)
    if family not in registry.names("envs"):
        raise UsageError(f"unknown environment family {family!r}{did_you_mean(family, registry.names('envs'))}", "--env family:id")
    return EnvSpec(family, env_id)


def _family_of(env_id: str) -> str:
    if not re.search(r"-v\d+$", env_id):
        return "robosuite"  # the only ones without a version: Lift, PickPlaceCan, NutAssemblySquare
    if env_id[0].islower():
        return "ogbench"  # cube-single-play-singletask-v0
    if env_id.startswith(("Adroit", "Franka", "AntMaze", "PointMaze", "Fetch", "Hand")):
        return "robotics"
    return "gymnasium"


def make(env: EnvSpec) -> FlowEnv:
    """Build the environment that `env` names."""
    family: Family = registry.get("envs", env.family).build(env)
    return FlowEnv(family, env.max_steps)

