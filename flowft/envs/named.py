"""What the Gymnasium-based families share: making an environment by id, naming its observation parts, exact reseeding."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import gymnasium

from flowft.data.spec import EnvSpec, Spec
from flowft.envs import generators, spaces
from flowft.errors import EnvError, MissingExtra, did_you_mean

Parts = dict[str, Any]  # observation part -> (size,)


class Named(gymnasium.Wrapper[Parts, Any, Any, Any]):
    """An environment whose observation is a dict of named parts and whose `info` says `success` at every step.

    `parts` reads the environment's own observation, `succeeded` its info (None: the info stays as it is). `settle`, when
    given, runs after each reset and returns the first observation: a family uses it to clear what the simulator keeps from
    the episode before. `draws_while_stepping`: its steps may draw from the process's generators, which then have a course of
    their own in here.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        parts: Callable[[Any], Parts],
        succeeded: Callable[[Mapping[str, Any]], bool] | None,
        settle: Callable[[Any], Any] | None = None,
        draws_while_stepping: bool = False,
    ) -> None:
        super().__init__(env)
        self._parts, self._succeeded, self._settle = parts, succeeded, settle
        self._stream = generators.Stream() if draws_while_stepping else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Parts, dict[str, Any]]:
        with generators.seeded(seed):  # some simulators draw from numpy's global generator, some from their action space
            self.env.action_space.seed(seed)
            observation, info = self.env.reset(seed=seed, options=options)
            if self._stream is not None:
                self._stream.keep()
        if self._settle is not None:
            observation = self._settle(observation)
        return self._parts(observation), dict(info) if self._succeeded is None else {**info, "success": False}

    def step(self, action: Any) -> tuple[Parts, Any, bool, bool, dict[str, Any]]:
        with self._stream.continued() if self._stream is not None else contextlib.nullcontext():
            observation, reward, terminated, truncated, info = self.env.step(action)
        if self._succeeded is not None:
            info = {**info, "success": self._succeeded(info)}
        return self._parts(observation), reward, terminated, truncated, info


def require(module: str, package: str, extra: str, needed_for: str) -> Any:
    """The module, imported without the remarks that simulators make; MissingExtra or EnvError when it cannot be."""
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(package, extra, needed_for)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except Exception as error:  # most often: MUJOCO_GL names a library that is not installed
        reason = " ".join(str(error).split())
        gl = f" (MUJOCO_GL is {os.environ['MUJOCO_GL']!r})" if "MUJOCO_GL" in os.environ else ""
        raise EnvError(f"{needed_for} needs {package}, which cannot be imported{gl}: {reason}", "flowft doctor") from error


def unknown(env: EnvSpec, known: Iterable[str]) -> EnvError:
    """For an id that the family does not have."""
    ids = sorted(known)
    hint = did_you_mean(env.id, ids) if get_close_matches(env.id, ids, n=1) else f" (for example {', '.join(ids[:4])})"
    return EnvError(f"no environment {env.id!r} in the family {env.family}{hint}", "--env with the id of an environment that exists")


def make(env: EnvSpec, env_id: str | None = None, fix: str = "flowft doctor", **defaults: Any) -> gymnasium.Env[Any, Any]:
    """`gymnasium.make` without time limit and checker; EnvSpec.kwargs win over `defaults`. What fails is an EnvError."""
    own = {key: value for key, value in env.kwargs.items() if key not in ("render", "success_ends")}
    if env.kwargs.get("render"):
        require_gl()
        own["render_mode"] = "rgb_array"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = gymnasium.make(env_id or env.id, max_episode_steps=-1, disable_env_checker=True, **{**defaults, **own})
            if "render_mode" in own:  # now, not at the end of a run, is the time to learn that it does not work
                made.reset(seed=0)
                made.render()
            return made
    except Exception as error:  # a wrong keyword, a broken installation: whatever the simulator says, in one line
        raise EnvError(
            f"{env.id} cannot be built with {dict(env.kwargs)}: {' '.join(str(error).split()) or type(error).__name__}", fix
        ) from error


def box_spec(parts: Iterable[tuple[str, int]], action_space: gymnasium.Space[Any], env: EnvSpec) -> Spec:
    """The Spec of an environment with a bounded Box of actions, or with bounds set for it."""
    return Spec(tuple(parts), *spaces.bounds(action_space, env))


def step_limit(env_id: str) -> int:
    """The limit with which the id is registered; 1000 when there is none."""
    return gymnasium.registry[env_id].max_episode_steps or 1000


def require_gl() -> None:
    """Rendering without a screen and without MUJOCO_GL aborts the process inside MuJoCo: refuse before."""
    if sys.platform == "linux" and not os.environ.get("MUJOCO_GL") and not os.environ.get("DISPLAY"):
        raise EnvError("pictures were asked for, but there is no screen and MUJOCO_GL is not set", "export MUJOCO_GL=egl   (or osmesa)")
