"""Putting a simulator into a stored state and stepping it from there: what each family needs for that.

robosuite has a file of its own; Gymnasium's MuJoCo tasks share the class below. The model stays the environment's: sizes of
objects that differ from episode to episode are not those of the file, which changes little before contact.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flowft.data.spec import Array, EnvSpec
from flowft.envs import robosuite_states
from flowft.envs.base import FlowEnv

Numbers = npt.NDArray[Any]


class States(Protocol):
    """A simulator that can be put into the states of a file."""

    size: int  # values of a state
    period: float | None  # seconds between two states; None: a state holds no time
    names: tuple[tuple[str, int], ...]  # the observation's values under the simulator's own names, in order

    def observe(self, states: Numbers) -> Array:
        """Flat observations (T, D) of states (T, S)."""

    def start(self, states: Numbers, actions: Numbers, at: int) -> None:
        """Be in state `at` of an episode, with everything that the `actions` before it left behind."""

    def step(self, action: Numbers) -> tuple[Array, bool]:
        """Flat observation (D,) after the action (environment units), and whether the task is then done."""


def of(env: FlowEnv, spec: EnvSpec) -> States | None:
    """Of this environment; None where the family cannot."""
    if spec.family == "robosuite":
        return robosuite_states.RobosuiteStates(env)
    inner = env.unwrapped
    ours = spec.family == "gymnasium" and type(inner).__module__.startswith("gymnasium.envs.mujoco")
    return Joints(env, inner) if ours and hasattr(inner, "set_state") and hasattr(inner, "_get_obs") else None


class Joints:
    """Gymnasium's MuJoCo tasks: joint positions and velocities are the whole state."""

    period: float | None = None

    def __init__(self, env: FlowEnv, inner: Any) -> None:
        self._env, self._inner = env, inner
        env.reset(seed=0)
        self.size = int(inner.model.nq + inner.model.nv)
        self.names = env.flow_spec.parts

    def observe(self, states: Numbers) -> Array:
        rows = []
        for state in states:
            self._set(state)
            rows.append(np.ravel(self._inner._get_obs()))
        return np.asarray(rows, dtype=np.float32)

    def start(self, states: Numbers, actions: Numbers, at: int) -> None:
        self._set(states[at])

    def step(self, action: Numbers) -> tuple[Array, bool]:
        observation: Any
        observation, _, _, _, info = self._env.env.step(np.asarray(action))
        return self._env.flow_spec.flatten(observation), bool(info.get("success", False))

    def _set(self, state: Numbers) -> None:
        positions = self._inner.model.nq
        self._inner.set_state(np.asarray(state[:positions], dtype=np.float64), np.asarray(state[positions:], dtype=np.float64))
