"""The shapes of everything, drawn once.

Episode   observations {part: (T or T+1, size)}   actions (T, A) in the environment's units   rewards (T,)
Dataset   episodes, the Spec they share, and the environment they came from
Spec      observation parts in order -> one vector (D,); action bounds -> the unit box [-1, 1]^A
Batch     what `algo.update` takes: B chunks of h actions, flat observations, unit actions
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flowft.errors import DataError

if TYPE_CHECKING:
    import torch  # an environment worker needs the shapes, not 1.6 s of imports

Array = npt.NDArray[np.float32]
UNNAMED = "unnamed"  # the one observation part of a policy from elsewhere, of which only the sizes are known


@dataclass(frozen=True)
class Spec:
    """What a policy sees and what it commands: names, order, sizes and bounds."""

    parts: tuple[tuple[str, int], ...]  # observation parts in order, e.g. (("robot0_eef_pos", 3), …)
    action_low: tuple[float, ...]  # environment units
    action_high: tuple[float, ...]

    @property
    def observation_dim(self) -> int:
        return sum(size for _, size in self.parts)

    @property
    def action_dim(self) -> int:
        return len(self.action_low)

    @property
    def unnamed(self) -> bool:
        """Only sizes are known: names, order and bounds are whatever the data or the environment has."""
        return [name for name, _ in self.parts] == [UNNAMED]

    def flatten(self, observation: Mapping[str, Any]) -> Array:
        """Named parts, each (..., size), as one float32 vector (..., D) in this spec's order."""
        missing = [name for name, _ in self.parts if name not in observation]
        if missing:
            raise DataError(f"the observation lacks {', '.join(missing)} (it has: {', '.join(observation)})")
        return np.concatenate([np.asarray(observation[name], dtype=np.float32) for name, _ in self.parts], axis=-1)

    def to_unit(self, actions: npt.ArrayLike) -> Array:
        """Environment units (..., A) to [-1, 1]. A bound of exactly ±1 leaves values as they are."""
        low, high = self._bounds()
        unit = (np.asarray(actions, dtype=np.float32) - low) * (2 / (high - low)) - 1
        return np.where((low == -1) & (high == 1), np.asarray(actions, dtype=np.float32), unit).astype(np.float32)

    def from_unit(self, unit: npt.ArrayLike) -> Array:
        """[-1, 1] (..., A) to environment units; the inverse of `to_unit`."""
        low, high = self._bounds()
        value = np.asarray(unit, dtype=np.float32)
        return np.where((low == -1) & (high == 1), value, low + (value + 1) * (high - low) / 2).astype(np.float32)

    def _bounds(self) -> tuple[Array, Array]:
        return np.asarray(self.action_low, dtype=np.float32), np.asarray(self.action_high, dtype=np.float32)

    def differences(self, other: Spec) -> list[str]:
        """What differs in `other`, in words; empty when a policy for one can run on the other."""
        out: list[str] = []
        if self.observation_dim != other.observation_dim:
            out.append(f"{self.observation_dim} observation values against {other.observation_dim}")
        if self.action_dim != other.action_dim:
            out.append(f"{self.action_dim} action values against {other.action_dim}")
        if self.unnamed:
            return out
        mine, theirs = dict(self.parts), dict(other.parts)
        for name in [*mine, *(n for n in theirs if n not in mine)]:
            if mine.get(name) != theirs.get(name):
                out.append(f"{name}: {mine.get(name, 'absent')} against {theirs.get(name, 'absent')}")
        if mine == theirs and self.parts != other.parts:
            out.append(f"order of parts {[n for n, _ in self.parts]} against {[n for n, _ in other.parts]}")
        if self.action_dim == other.action_dim and not (
            np.allclose(self.action_low, other.action_low, atol=1e-5) and np.allclose(self.action_high, other.action_high, atol=1e-5)
        ):
            out.append(f"action bounds {self.action_low}…{self.action_high} against {other.action_low}…{other.action_high}")
        return out

    def to_tree(self) -> dict[str, Any]:
        return {"parts": [[n, s] for n, s in self.parts], "action_low": list(self.action_low), "action_high": list(self.action_high)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Spec:
        parts = tuple((str(n), int(s)) for n, s in tree["parts"])
        return cls(parts, tuple(float(v) for v in tree["action_low"]), tuple(float(v) for v in tree["action_high"]))


@dataclass(frozen=True)
class EnvSpec:
    """Which simulator, exactly: enough to build it again from a checkpoint."""

    family: str  # registry name of the environment family, e.g. "robosuite"
    id: str  # e.g. "Lift", "AdroitHandDoor-v1", "cube-single-play-singletask-v0"
    kwargs: Mapping[str, Any] = field(default_factory=dict)  # plain values, handed to the family's `make`
    max_steps: int | None = None  # truncation, in environment steps; None: the environment's own limit
    observation: tuple[str, ...] = ()  # wanted observation parts in order; empty: the family's usual ones
    versions: Mapping[str, str] = field(default_factory=dict)  # of the packages that the data were made with
    success: str = ""  # what counts as success (flowft/envs/rules.py); empty: the family's own rule
    success_ends: bool | None = None  # does success end the episode; None: as the family has it
    reset_options: Mapping[str, Any] = field(default_factory=dict)  # handed to every reset
    action_bounds: tuple[tuple[float, float], ...] = ()  # (low, high) of each action, or one pair for all; empty: the environment's own

    def to_tree(self) -> dict[str, Any]:
        """Plain values. The rules are in it where they are set, so that a checkpoint without them is what it always was."""
        rules: dict[str, Any] = {
            "success": self.success, "success_ends": self.success_ends, "reset_options": dict(self.reset_options),
            "action_bounds": [list(pair) for pair in self.action_bounds],
        }  # fmt: skip
        return {
            "family": self.family, "id": self.id, "kwargs": dict(self.kwargs), "max_steps": self.max_steps,
            "observation": list(self.observation), "versions": dict(self.versions),
            **{key: value for key, value in rules.items() if value is not None and value not in ("", {}, [])},
        }  # fmt: skip

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> EnvSpec:
        bounds = tuple((float(low), float(high)) for low, high in tree.get("action_bounds", ()))
        return cls(**{**tree, "observation": tuple(tree["observation"]), "action_bounds": bounds})


@dataclass(frozen=True)
class Episode:
    """One demonstration or one live episode, in the environment's units."""

    name: str  # its place in the file, e.g. "data/demo_3"
    observations: Mapping[str, npt.NDArray[Any]]  # part -> (T+1, size); (T, size) when the last state was not stored
    actions: npt.NDArray[Any]  # (T, A)
    rewards: npt.NDArray[Any]  # (T,) for the state after the action
    terminated: bool  # True: the last action reached a terminal state; False: the episode was cut there (truncated)
    success: bool | None = None  # None: the data do not say

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Dataset:
    """Episodes that share a Spec."""

    id: str  # as the user named it
    source: str  # registry name of the source
    format: str  # the layout in words, e.g. "robomimic HDF5"
    path: str
    hash: str  # sha256 of the file (of all files, for a folder)
    spec: Spec
    env: EnvSpec | None
    episodes: Sequence[Episode]
    notes: tuple[str, ...] = ()  # what the reader should know, e.g. "clipped 12 actions", "made with robosuite 1.4.1"
    rate: float | None = None  # steps a second, where the data say it

    @property
    def steps(self) -> int:
        return sum(len(episode) for episode in self.episodes)


class Batch(NamedTuple):
    """B chunks of h actions with rewards of n >= h steps. Past an episode's end is padding: `valid` is 0 there, rewards are 0."""

    observation: torch.Tensor  # (B, D)
    action: torch.Tensor  # (B, h, A) in [-1, 1]; padding repeats the last real action
    valid: torch.Tensor  # (B, h) 1.0 for a real action, 0.0 for padding
    reward: torch.Tensor  # (B, n) after the reward transform
    length: torch.Tensor  # (B,) float, number of real steps, at most n
    next_observation: torch.Tensor  # (B, D) the state after the last real step
    terminated: torch.Tensor  # (B,) 1.0 where that state is terminal (no bootstrap); truncation is 0.0
    complete: torch.Tensor  # (B,) 1.0 where the chunk may train the critic: all h steps real, or terminal at its end
    offline: torch.Tensor  # (B,) 1.0 where the chunk is a demonstration's
