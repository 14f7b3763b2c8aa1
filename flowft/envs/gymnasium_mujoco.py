"""Gymnasium's MuJoCo locomotion tasks: Hopper-v5, HalfCheetah-v5, Walker2d-v5, Ant-v5, …

There is no success here; the return is the measure. A fall terminates, the step limit (1000) truncates.
"""

from __future__ import annotations

import gymnasium
import numpy as np

from flowft.data.spec import EnvSpec
from flowft.envs import named
from flowft.envs.base import Family
from flowft.errors import EnvError


def known() -> list[str]:
    """Ids of this family that the installed Gymnasium can build (v4 and later; older ones need mujoco-py)."""
    ours = [s for s in gymnasium.registry.values() if str(s.entry_point).startswith("gymnasium.envs.mujoco")]
    return [s.id for s in ours if (s.version or 0) >= 4]


def build(env: EnvSpec) -> Family:
    """The task that `env.id` names; one observation part, `observation`, in float64 as the simulator gives it."""
    named.require("mujoco", "mujoco", "robotics", f"the environment {env.id}")
    if env.id not in known():
        raise named.unknown(env, known())
    made = named.make(env)
    space = made.observation_space
    if not isinstance(space, gymnasium.spaces.Box):
        raise EnvError(f"{env.id} gives {type(space).__name__} observations; a vector is needed", "--env with another environment")
    return Family(
        env=named.Named(made, parts=lambda observation: {"observation": np.ravel(observation)}, succeeded=lambda info: False),
        spec=named.box_spec([("observation", int(np.prod(space.shape)))], made.action_space),
        max_steps=named.step_limit(env.id),
        success_ends=False,
    )
