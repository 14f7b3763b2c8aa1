"""One door to every simulator: flat float32 observations, actions in [-1, 1], `info["success"]`, exact reseeding.

A family is a module (one file, one line in registry.py) with `build(env: EnvSpec) -> Family`.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import gymnasium
import numpy as np

from flowft import registry
from flowft.data.spec import Array, EnvSpec, Spec
from flowft.envs import modules, rules, spaces
from flowft.errors import EnvError, UsageError, did_you_mean

FIRST_WORKER = "flowft-env-0"  # the name of the process in which the first lane lives
_TOLD: set[str] = set()


@dataclass(frozen=True)
class Family:
    """What a family's `build` returns: a Gymnasium environment and how to read it.

    `env` must give observations as a dict of named parts, take actions in its own units, and accept `reset(seed=…)` such
    that the same seed gives the same episode whatever happened before. What is success is in `info["success"]` of each step,
    unless `success` or EnvSpec.success say otherwise.
    """

    env: gymnasium.Env[Any, Any]
    spec: Spec
    max_steps: int  # truncation when EnvSpec.max_steps is None
    success_ends: bool  # the task is over at the first success, when EnvSpec.success_ends is None
    success: str = ""  # the rule when EnvSpec.success is empty (rules.py)
    notes: tuple[str, ...] = ()  # what the user should know of how the environment is read
    observation_bounds: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)  # part -> declared low, high (size,)


class FlowEnv(gymnasium.Wrapper[Array, Array, Any, Any]):
    """The environment as training sees it, under the rules of its EnvSpec.

    reset(seed) -> (D,) ; step(unit action (A,)) -> (D,), raw reward, terminated, truncated, info with `success`: bool.
    """

    def __init__(self, family: Family, env: EnvSpec) -> None:
        super().__init__(family.env)
        self.env_spec = env
        self.flow_spec = family.spec if not env.action_bounds else _bounded(family.spec, env)
        self.max_steps = env.max_steps or family.max_steps
        self.success_ends = _first(env.success_ends, env.kwargs.get("success_ends"), family.success_ends)
        self.notes, self.observation_bounds = family.notes, family.observation_bounds
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (self.flow_spec.observation_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (self.flow_spec.action_dim,), np.float32)
        self.metadata = dict(family.env.metadata or {})  # robosuite's wrapper has None, which crashes vector environments
        self.success_known = False  # has any step said whether it succeeded?
        self._simulator: gymnasium.Env[Any, Any] = family.env
        self.success_rule = env.success or family.success
        self._succeeded = rules.parse(self.success_rule)
        self._elapsed, self._total = 0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        asked = {**self.env_spec.reset_options, **(options or {})}
        observation, info = self._simulator.reset(seed=seed, options=asked or None)
        self._elapsed, self._total = 0, 0.0
        return self.flow_spec.flatten(observation), {**info, "success": False}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        observation, reward, ended, cut, info = self._simulator.step(self.flow_spec.from_unit(np.clip(action, -1.0, 1.0)))
        reward = _number(reward, self.env_spec.id)
        self._elapsed += 1
        self._total += reward
        found = self._succeeded(rules.Step(info, reward, self._total, bool(ended)))
        self.success_known |= found is not None
        success = bool(found)
        terminated = bool(ended) or (success and self.success_ends)
        truncated = not terminated and (bool(cut) or self._elapsed >= self.max_steps)
        if (terminated or truncated) and not self.success_known:
            tell(_unknown_success(self.env_spec, info))
        return self.flow_spec.flatten(observation), reward, terminated, truncated, {**info, "success": success}


def parse(text: str) -> EnvSpec:
    """What a user wrote after --env: `family:id`, `module:id` as Gymnasium takes it, or an id alone, whose family its form tells."""
    first, colon, rest = text.partition(":")
    if not colon:
        return EnvSpec(_family_of(text), text)
    if not rest:
        raise UsageError(f"{text!r} names no environment", f"--env {first}:ID")
    families = registry.names("envs")
    if first in families:
        return EnvSpec(first, rest)
    if get_close_matches(first, families, n=1) and not modules.exists(first):
        raise UsageError(f"unknown environment family {first!r}{did_you_mean(first, families)}", "--env family:id")
    return EnvSpec("gymnasium", text)


def _family_of(env_id: str) -> str:
    if (registered := gymnasium.registry.get(env_id)) is not None:  # by a package that is installed
        point = str(registered.entry_point)
        return "robotics" if point.startswith("gymnasium_robotics") else "ogbench" if point.startswith("ogbench") else "gymnasium"
    if "/" in env_id:
        return "gymnasium"  # a namespace: Meta-World/MT1, ALE/Pong-v5
    if not re.search(r"-v\d+$", env_id):
        return "robosuite"  # the only ones without a version: Lift, PickPlaceCan, NutAssemblySquare
    if env_id[0].islower():
        return "ogbench"  # cube-single-play-singletask-v0
    if env_id.startswith(("Adroit", "Franka", "AntMaze", "PointMaze", "Fetch", "Hand")):
        return "robotics"
    return "gymnasium"


def make(env: EnvSpec) -> FlowEnv:
    """Build the environment that `env` names, under its rules."""
    family: Family = registry.get("envs", env.family).build(env)
    made = FlowEnv(family, env)
    for note in made.notes:
        tell(note)
    return made


def tell(text: str) -> None:
    """A line on stderr, once: not again for the next environment of the process, nor from every worker."""
    if text not in _TOLD and multiprocessing.current_process().name in ("MainProcess", FIRST_WORKER):
        print(f"note: {text}", file=sys.stderr, flush=True)
    _TOLD.add(text)


def _bounded(spec: Spec, env: EnvSpec) -> Spec:
    low, high = spaces.override(env, spec.action_dim)
    return replace(spec, action_low=low, action_high=high)


def _first(*values: Any) -> bool:
    """The first that is not None."""
    return bool(next(value for value in values if value is not None))


def _number(reward: Any, env_id: str) -> float:
    if isinstance(reward, float):
        return reward
    array = np.asarray(reward)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise EnvError(f"{env_id} gave {reward!r} as its reward, which is not one number")
    return float(array.item())


def _unknown_success(env: EnvSpec, info: dict[str, Any]) -> str:
    there = ", ".join(map(str, info)) or "nothing"
    what = repr(env.success) if env.success else "neither 'success' nor 'is_success'"
    never = "has not been in" if env.success else "is in"
    return (
        f"{what} {never} the info of {env.id} ({there}): every episode counts as failed; "
        "--set environment.success=KEY, or 'reward>=X', 'return>=X', terminated, never"
    )

