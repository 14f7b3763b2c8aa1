"""Any environment that Gymnasium can make: its own (Hopper-v5, Pendulum-v1, …), and yours as `my_module:MyEnv-v0`.

The module is imported and registers its ids; those of installed packages may be in a namespace (`Meta-World/MT1`). Boxes,
Dicts and Tuples of numbers are observed (spaces.py). What counts as success, whether it ends the episode and how to reset are
rules that hold for every family (rules.py); without a rule it is `success` or `is_success` of the info, and the episode ends
where the environment says so.

Gymnasium's MuJoCo tasks have no success: the return is the measure.
"""

from __future__ import annotations

import shlex
from difflib import get_close_matches
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding

from flowft.data.spec import EnvSpec
from flowft.envs import generators, modules, named, spaces
from flowft.envs.base import Family
from flowft.errors import EnvError, did_you_mean

BUILD_SEED = 0  # of what an environment draws while it is built: the same in every process
NO_LIMIT = 1000  # steps, where neither the registration nor a wrapper limits the episode


def known() -> list[str]:
    """Every id that is registered without a module of yours, but those that Gymnasium keeps only to say what became of them."""
    return [s.id for s in gymnasium.registry.values() if not str(getattr(s.entry_point, "__module__", "")).startswith("gymnasium.")]


def build(env: EnvSpec) -> Family:
    """The environment that `env.id` names, `module:id` or `id`."""
    module, _, env_id = env.id.rpartition(":")
    if module:
        modules.load(module, env.id)
    if env_id not in known():
        raise _unknown(module, env_id)
    registered = gymnasium.registry[env_id]
    if ours := _of_mujoco(registered):
        named.require("mujoco", "mujoco", "robotics", f"the environment {env.id}")
    with modules.working_folder(), modules.stdout_to_stderr(), generators.seeded(BUILD_SEED):
        made = named.make(env, env_id, fix=_try_it(env) if module else "flowft doctor")
    parts = spaces.Parts(made.observation_space, env.id)
    limit = registered.max_episode_steps or _inner_limit(made)
    return Family(
        env=named.Named(made, parts.read, succeeded=None) if ours else Foreign(made, parts, clip=not env.action_bounds),
        spec=spaces.spec(parts, made.action_space, env),
        max_steps=limit or NO_LIMIT,
        success_ends=False,
        success="never" if ours else "",
        notes=tuple(_notes(env, parts, limit)),
        observation_bounds=parts.bounds,
    )


class Foreign(named.Named):
    """Somebody else's environment, of which only Gymnasium's interface is known.

    It may draw from the process's generators, or from its own before it seeds it (Meta-World chooses its goal so): both are
    seeded before it is reset. Actions reach it in the shape and type of its space.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], parts: spaces.Parts, clip: bool) -> None:
        super().__init__(env, parts.read, succeeded=None, draws_while_stepping=True)
        self._box: Any = env.action_space
        self._clip = clip

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[named.Parts, dict[str, Any]]:
        if seed is not None and isinstance(getattr(type(self.unwrapped), "np_random", None), property):
            self.unwrapped.np_random = seeding.np_random(seed)[0]
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[named.Parts, Any, bool, bool, dict[str, Any]]:
        shaped = np.reshape(action, self._box.shape).astype(self._box.dtype)
        return super().step(np.clip(shaped, self._box.low, self._box.high) if self._clip else shaped)  # float32 rounds beyond a bound


def _try_it(env: EnvSpec) -> str:
    """The command that shows the whole of what the user's own code raised."""
    given = "".join(f", {key}={value!r}" for key, value in env.kwargs.items() if key.isidentifier() and key != "success_ends")
    return f"python -c {shlex.quote(f'import gymnasium; gymnasium.make({env.id!r}{given})')}"


def _of_mujoco(spec: Any) -> bool:
    return str(spec.entry_point).startswith("gymnasium.envs.mujoco")


def _inner_limit(made: gymnasium.Env[Any, Any]) -> int | None:
    """Of a TimeLimit that the environment's own builder put around it."""
    layer: Any = made
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, gymnasium.wrappers.TimeLimit):
            return int(layer._max_episode_steps)
        layer = layer.env
    return None


def _notes(env: EnvSpec, parts: spaces.Parts, limit: int | None) -> list[str]:
    """What a user should know of how this environment is read."""
    notes = [f"{env.id}: {name} is {why}, and left out" for name, why in parts.left_out.items() if not env.observation]
    if limit is None and env.max_steps is None:
        notes.append(f"{env.id} has no step limit: episodes are cut after {NO_LIMIT} steps (--set max_steps=N for another limit)")
    return notes


def _unknown(module: str, env_id: str) -> EnvError:
    if not module:
        near = get_close_matches(env_id, known(), n=1)
        if near:
            return EnvError(f"no environment {env_id!r} in the family gymnasium{did_you_mean(env_id, known())}", f"--env {near[0]}")
        where = f"--env MODULE:{env_id}, with the module that registers it"
        return EnvError(f"no environment {env_id!r} is registered with Gymnasium", where)
    own = [s.id for s in gymnasium.registry.values() if _module_of(s.entry_point) == module.partition(".")[0]]
    if not own:
        line = f'gymnasium.register(id="{env_id}", entry_point="{module}:CLASS")'
        return EnvError(f"the module {module} registers no environment", f"in {module}: {line}")
    near = get_close_matches(env_id, own, n=1, cutoff=0) or own
    return EnvError(f"the module {module} registers no environment {env_id!r}{did_you_mean(env_id, own)}", f"--env {module}:{near[0]}")


def _module_of(entry_point: Any) -> str:
    """The first package of an entry point, which is text (`package.module:Class`) or something to call."""
    where = entry_point.partition(":")[0] if isinstance(entry_point, str) else str(getattr(entry_point, "__module__", ""))
    return where.partition(".")[0]
