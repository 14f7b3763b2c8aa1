"""gymnasium-robotics: Adroit (door, pen, hammer, relocate), FrankaKitchen, AntMaze, PointMaze, Fetch, Shadow hand.

Success, one definition each: Adroit `info["success"]`; Kitchen all tasks done; mazes `info["success"]` (0.45 from the
goal); Fetch and Shadow hand `info["is_success"]`. By default an episode ends there, as a sparse-reward learner wants it;
Adroit's and the mazes' own episodes go on after it (D4RL's do too): EnvSpec.success_ends=False for that.

Kitchen's tasks are D4RL's four unless `tasks_to_complete` says otherwise. AntMaze is the v4 line of environments: `achieved_goal`
(x, y) and `observation` together are laid out as D4RL's 29 values, but motors, origin and goals are not D4RL's.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from flowft.data.spec import EnvSpec
from flowft.envs import named
from flowft.envs.base import Family
from flowft.errors import EnvError

KITCHEN_TASKS = ("microwave", "kettle", "bottom burner", "light switch")  # D4RL's complete, partial and mixed sets
GOALS = {
    "AntMaze": ("achieved_goal", "observation"),
    "Fetch": ("observation", "desired_goal"),
    "PointMaze": ("observation", "desired_goal"),
}
MODULES = ("adroit_hand", "franka_kitchen", "maze", "fetch", "shadow_dexterous_hand")


def known() -> list[str]:
    """Ids that the installed package can build (those for mujoco-py are left out)."""
    _register()
    points = {s.id: str(s.entry_point) for s in gymnasium.registry.values()}
    return [i for i, p in points.items() if any(p.startswith(f"gymnasium_robotics.envs.{m}") for m in MODULES) and "MujocoPy" not in p]


def build(env: EnvSpec) -> Family:
    """The task that `env.id` names. Parts: `observation`, and for goal tasks also `achieved_goal` and `desired_goal`."""
    if env.id not in known():
        raise named.unknown(env, known())
    with contextlib.redirect_stderr(io.StringIO()):  # Gymnasium's loggers, which tell of newer versions
        made = named.make(env, **_defaults(env.id))
    sizes = _sizes(made.observation_space, env)
    usual = next((parts for start, parts in GOALS.items() if env.id.startswith(start)), ("observation",))
    usual = ("observation", "desired_goal") if env.id.startswith(("HandReach", "HandManipulate")) else usual
    wanted = env.observation or usual
    if strange := [name for name in wanted if name not in sizes]:
        raise EnvError(
            f"{env.id} has no observation part {strange[0]!r} (it has: {', '.join(sizes)})", "--env with the environment of the data"
        )
    return Family(
        env=named.Named(made, parts=_parts, succeeded=_success(env.id, made)),
        spec=named.box_spec([(name, sizes[name]) for name in wanted], made.action_space, env),
        max_steps=named.step_limit(env.id),
        success_ends=True,
    )


def _register() -> None:
    package = named.require("gymnasium_robotics", "gymnasium-robotics", "robotics", "the environment family robotics")
    if "AdroitHandDoor-v1" not in gymnasium.registry:
        gymnasium.register_envs(package)


def _defaults(env_id: str) -> dict[str, Any]:
    if env_id.startswith("FrankaKitchen"):
        return {"tasks_to_complete": list(KITCHEN_TASKS)}
    if "Maze_" in env_id:
        return {"continuing_task": False}  # else it is never terminal
    return {}


def _success(env_id: str, made: gymnasium.Env[Any, Any]) -> Callable[[Mapping[str, Any]], bool]:
    if env_id.startswith("FrankaKitchen"):
        tasks: set[str] = set(made.unwrapped.goal)  # type: ignore[attr-defined]
        return lambda info: tasks <= set(info["episode_task_completions"])
    key = "is_success" if env_id.startswith(("Fetch", "HandReach", "HandManipulate")) else "success"
    return lambda info: bool(info[key])


def _sizes(space: gymnasium.Space[Any], env: EnvSpec) -> dict[str, int]:
    """Observation parts that are plain vectors, with their sizes (Kitchen's goals are dictionaries, and constant)."""
    named_spaces: Mapping[str, Any] = space.spaces if isinstance(space, gymnasium.spaces.Dict) else {"observation": space}
    return {name: int(np.prod(box.shape)) for name, box in named_spaces.items() if isinstance(box, gymnasium.spaces.Box)}


def _parts(observation: Any) -> named.Parts:
    if isinstance(observation, Mapping):
        return {name: value for name, value in observation.items() if not isinstance(value, Mapping)}
    return {"observation": observation}
