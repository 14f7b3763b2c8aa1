"""Environments as a user might have them: a module in a folder, and a toy that does what a test asks for."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from flowft.data.spec import EnvSpec
from flowft.envs import base

MODULE = """
    import gymnasium
    import numpy as np
    print("hello from the module")

    class Line(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-10, 10, (3,), np.float64)
        action_space = gymnasium.spaces.Box(-2, 2, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.x = self.np_random.normal(size=3)
            return self.x, {}

        def step(self, action):
            assert self.action_space.contains(action), action
            self.x = self.x + action
            return self.x, -abs(float(self.x[0])), False, False, {"metrics": {"solved": bool(self.x[0] > 1)}}

    gymnasium.register("Line-v0", "%s:Line", max_episode_steps=40)
"""


class Toy(gymnasium.Env[Any, Any]):
    """What a test asks for: spaces, and functions of the step's number."""

    def __init__(
        self, space: Any = None, actions: Any = None, info: Callable[[int], dict[str, Any]] = lambda n: {}, ends: int = 0, **more: Any
    ) -> None:
        self.observation_space = space or Box(-1, 1, (2,))
        self.action_space = actions or Box(-1, 1, (2,))
        self.info, self.ends, self.more = info, ends, more
        self.n, self.options, self.received = 0, None, None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.n, self.options = 0, options
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.n, self.received = self.n + 1, action
        reward = self.more.get("reward", lambda n: float(n))(self.n)
        return self.observe(), reward, bool(self.ends) and self.n >= self.ends, False, self.info(self.n)

    def observe(self) -> Any:
        return self.more["observe"](self) if "observe" in self.more else self.observation_space.sample()


COUNT = itertools.count()


def toy(limit: int | None = 20, spec: dict[str, Any] | None = None, **kwargs: Any) -> EnvSpec:
    """Registers a Toy under a name of its own and gives its EnvSpec; `limit` is its registered step limit."""
    name = f"Toy{next(COUNT)}-v0"
    gymnasium.register(name, lambda: Toy(**kwargs), max_episode_steps=limit)
    return EnvSpec("gymnasium", name, **(spec or {}))


def steps(env: base.FlowEnv, count: int) -> list[tuple[bool, bool, bool]]:
    """(success, terminated, truncated) of so many steps after a reset."""
    env.reset(seed=0)
    rows = [env.step(np.zeros(env.flow_spec.action_dim, np.float32)) for _ in range(count)]
    return [(row[4]["success"], row[2], row[3]) for row in rows]


def own_module(folder: Path, name: str, code: str = MODULE) -> None:
    code = textwrap.dedent(code)
    (folder / f"{name}.py").write_text(code % name if "%s" in code else code)


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a fresh interpreter with nothing of `folder` on its path, as a console script has it."""
    program = f"import sys; sys.path = [p for p in sys.path if p not in ('', {str(folder)!r})]\n{code}"
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
