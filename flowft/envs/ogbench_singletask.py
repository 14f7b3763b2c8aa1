"""OGBench's single-task environments: cube, scene, puzzle and the mazes, by the benchmark's own names.

`cube-single-play-singletask-v0` (with the data set's type, as OGBench writes it) and `cube-single-singletask-v0` are the
same environment; `…-singletask-task3-v0` is another of its five tasks. Success is `info["success"]` and ends the episode.
The manipulation tasks reward and end with what held BEFORE the action (`success_timing="pre"`), which is how OGBench
labels its data: reward t belongs to state t.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from flowft.data.spec import EnvSpec
from flowft.envs import named
from flowft.envs.base import Family
from flowft.errors import EnvError

DATA_TYPES = ("play", "noisy", "navigate", "stitch", "explore")


def known() -> list[str]:
    """Single-task ids without pictures, as registered (without the data set's type)."""
    _register()
    ours = [s.id for s in gymnasium.registry.values() if str(s.entry_point).startswith("ogbench.") and "singletask" in s.id]
    return [i for i in ours if not i.startswith("visual-")]


def build(env: EnvSpec) -> Family:
    """The task that `env.id` names; one observation part, `observation`."""
    ids = known()
    env_id = _registered(env, ids)
    made = named.make(env, env_id)
    observation, _ = made.reset(seed=0)
    return Family(
        env=_Closing(
            made,
            parts=lambda observation: {"observation": np.ravel(observation)},
            succeeded=lambda info: bool(info["success"]),
            settle=_from_cold(made.unwrapped) if hasattr(made.unwrapped, "compute_observation") else None,
            draws_while_stepping="teleport" in env_id,
        ),
        spec=named.box_spec([("observation", int(np.size(observation)))], made.action_space, env),
        max_steps=named.step_limit(env_id),
        success_ends=True,
    )


class _Closing(named.Named):
    """OGBench leaves its renderers open, which ends in a traceback when the interpreter goes first."""

    def close(self) -> None:
        for name in ("_renderer", "custom_renderer"):
            if (renderer := getattr(self.env.unwrapped, name, None)) is not None:
                renderer.close()
        super().close()


def _register() -> None:
    # OGBench makes its action space anew, in float64, each time it is asked for it, and Gymnasium complains each time.
    warnings.filterwarnings("ignore", message=".*precision lowered by casting.*", category=UserWarning)
    named.require("ogbench", "ogbench", "ogbench", "the environment family ogbench")  # registers its environments


def _registered(env: EnvSpec, ids: list[str]) -> str:
    words = env.id.split("-")
    if "singletask" in words:
        at = words.index("singletask")
        without_type = "-".join(words[: at - 1] + words[at:])
        found = next((i for i in (env.id, without_type) if i in ids), None)
        if found is not None:
            return found
    elif len(words) > 2 and words[-2] in DATA_TYPES:
        raise EnvError(
            f"{env.id} is goal-conditioned; its tasks with a reward are …-singletask-v0", f"--env {'-'.join(words[:-1])}-singletask-v0"
        )
    raise named.unknown(env, [re.sub("-singletask", f"-{'navigate' if 'maze' in i else 'play'}-singletask", i) for i in ids])


def _from_cold(simulator: Any) -> Any:
    """What the arm's reset leaves over is cleared: it visits the goal first, with unseeded random actions.

    Positions, velocities and targets are the episode's own. Solver warm start, contact forces (one of them is observed),
    controls and the clock come from that visit, and would make two resets with one seed differ.
    """
    import mujoco

    def settle(_: Any) -> Any:
        model, data = simulator.model, simulator.data
        kept: Mapping[str, Any] = {name: getattr(data, name).copy() for name in ("qpos", "qvel", "mocap_pos", "mocap_quat")}
        mujoco.mj_resetData(model, data)
        for name, value in kept.items():
            getattr(data, name)[:] = value
        mujoco.mj_forward(model, data)
        return simulator.compute_observation()

    return settle
