"""Gymnasium spaces as the named, flat numbers that a policy sees: observation parts, and bounds of actions.

A Box of any shape is ravelled; Dict and Tuple spaces are taken apart by name (`a/b`, `a/0`); Discrete, MultiDiscrete and
MultiBinary parts are numbers as they come (no one-hot: a data set stores them as numbers too). Pictures, text, sequences and
graphs are left out of a Dict, with a word; an environment that gives nothing else is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from flowft.data.spec import EnvSpec, Spec
from flowft.errors import EnvError, did_you_mean

ALONE = "observation"  # the name of an observation that has no parts
PICTURE_SIDE = 16  # pixels; a smaller array of three axes is no picture
CHANNELS = (1, 3, 4)


class Parts:
    """How to read an environment's observation: `sizes` of the numeric parts in order, `left_out` {name: why}."""

    def __init__(self, space: gymnasium.Space[Any], env_id: str) -> None:
        self.env_id = env_id
        self._paths: dict[str, tuple[Any, ...]] = {}
        self.sizes: dict[str, int] = {}
        self.left_out: dict[str, str] = {}
        self.bounds: dict[str, tuple[Any, Any]] = {}  # of the Boxes, as declared: low and high, (size,) each
        for path, leaf in _leaves(space):
            name = "/".join(map(str, path)) or ALONE
            if reason := _not_numbers(leaf, alone=not path):
                self.left_out[name] = reason
            else:
                self._paths[name], self.sizes[name] = path, int(np.prod(leaf.shape or ()))
                if isinstance(leaf, spaces.Box):
                    self.bounds[name] = np.ravel(leaf.low), np.ravel(leaf.high)

    def require(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """The parts to use: those wanted, in that order, or all. EnvError when one is not there, or none is numbers."""
        for name in wanted:
            if name in self.left_out:
                raise EnvError(f"the observation part {name!r} of {self.env_id} is {self.left_out[name]}", _without(self.sizes))
            if name not in self.sizes:
                there = did_you_mean(name, self.sizes)
                raise EnvError(f"{self.env_id} has no observation part {name!r}{there}", _without(self.sizes))
        if not self.sizes:
            seen = "; ".join(f"{'it' if name == ALONE else name} is {why}" for name, why in self.left_out.items()) or "it is empty"
            raise EnvError(
                f"{self.env_id} observes nothing that is a vector of numbers: {seen}",
                "--env with an environment (or a wrapper, registered by your module) whose observation is a Box or a Dict with Boxes",
            )
        return tuple(wanted) or tuple(self.sizes)

    def read(self, observation: Any) -> dict[str, Any]:
        """Every numeric part as float64 (size,). EnvError where the observation is not what the space promised."""
        return {name: self._part(observation, name) for name in self.sizes}

    def _part(self, observation: Any, name: str) -> Any:
        value = observation
        for key in self._paths[name]:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                raise EnvError(f"{self.env_id} gave an observation without {name!r}, which its observation_space has") from None
        try:
            found = np.ravel(np.asarray(value, dtype=np.float64))
        except (TypeError, ValueError):
            raise EnvError(f"{self.env_id} gave {value!r} as {name!r}, which is not numbers") from None
        if found.size != self.sizes[name]:
            raise EnvError(f"{self.env_id} gave {found.size} values as {name!r}; its observation_space has {self.sizes[name]}")
        return found


def bounds(space: gymnasium.Space[Any], env: EnvSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Low and high of each action value, ravelled: EnvSpec.action_bounds, else the Box's own. EnvError without either."""
    if not isinstance(space, spaces.Box) or space.dtype is None or space.dtype.kind != "f":
        raise EnvError(
            f"{env.id} takes actions of the space {_named(space)}; a flow policy gives continuous values",
            "--env with an environment (or a wrapper, registered by your module) whose action_space is a Box of floats",
        )
    if env.action_bounds:
        return override(env, int(np.prod(space.shape)))
    low, high = np.ravel(space.low).astype(float), np.ravel(space.high).astype(float)
    if wrong := [i for i in range(low.size) if not (np.isfinite([low[i], high[i]]).all() and low[i] < high[i])]:
        raise EnvError(
            f"{env.id}: action {wrong[0]} of {low.size} has no bounds ({low[wrong[0]]:g} to {high[wrong[0]]:g})",
            f"--set 'environment.action_bounds=[[-1, 1]]' (for all {low.size} the same, or a pair for each) with the range that is meant",
        )
    return tuple(low.tolist()), tuple(high.tolist())


def override(env: EnvSpec, actions: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """EnvSpec.action_bounds for so many actions; one pair is for all."""
    pairs = env.action_bounds * actions if len(env.action_bounds) == 1 else env.action_bounds
    if len(pairs) != actions:
        raise EnvError(
            f"environment.action_bounds has {len(pairs)} pairs; {env.id} takes {actions} actions",
            "--set 'environment.action_bounds=[[low, high]]' for all, or a pair for each",
        )
    return tuple(float(low) for low, _ in pairs), tuple(float(high) for _, high in pairs)


def spec(parts: Parts, action_space: gymnasium.Space[Any], env: EnvSpec) -> Spec:
    """What a policy for `env` sees and commands."""
    low, high = bounds(action_space, env)
    return Spec(tuple((name, parts.sizes[name]) for name in parts.require(env.observation)), low, high)


def _leaves(space: gymnasium.Space[Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], gymnasium.Space[Any]]]:
    """Each space that has no spaces inside, with the keys that lead to it."""
    if isinstance(space, spaces.Dict):
        inner: Mapping[Any, Any] = space.spaces
    elif isinstance(space, spaces.Tuple):
        inner = dict(enumerate(space.spaces))
    else:
        yield path, space
        return
    for key, child in inner.items():
        yield from _leaves(child, (*path, key))


def _not_numbers(space: gymnasium.Space[Any], alone: bool) -> str:
    """Why a part (or, `alone`, the whole observation) cannot be used; empty for numbers."""
    if alone and isinstance(space, spaces.Discrete):
        return f"of the space {_named(space)}, the number of a state and no measure of it"
    if isinstance(space, spaces.Box):
        return f"a picture of shape {space.shape} (pictures are not learned from yet)" if _picture(space) else ""
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
        return ""
    return "" if isinstance(space, spaces.Discrete) else f"of the space {_named(space)}, which is not numbers of a fixed count"


def _picture(space: spaces.Box) -> bool:
    shape = space.shape
    if len(shape) < 2:
        return False
    sides = sorted(shape)[-2:]
    return min(sides) >= PICTURE_SIDE and (space.dtype == np.uint8 or (len(shape) == 3 and (shape[0] in CHANNELS or shape[-1] in CHANNELS)))


def _named(space: gymnasium.Space[Any]) -> str:
    text = str(space)
    return text if len(text) < 60 else f"{type(space).__name__} {space.shape or ''}".strip()


def _without(sizes: Mapping[str, int]) -> str:
    return f"--set 'data.observation=[{', '.join(sizes)}]', or some of them" if sizes else "another environment"
