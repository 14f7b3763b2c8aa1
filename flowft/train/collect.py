"""The way of a live step: observation -> chunk -> queue -> environment -> replay."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from flowft.data.replay import Replay
from flowft.data.spec import Array
from flowft.envs.vector import Vector
from flowft.errors import EnvError
from flowft.policies.base import Policy
from flowft.policies.uniform import Uniform


class Finished(NamedTuple):
    """A training episode that has ended."""

    length: int
    total: float  # undiscounted, raw rewards
    success: bool


@dataclass
class Lane:
    """One environment's episode under way: all that it takes to bring it back."""

    seed: int
    observation: Array  # (O,)
    row: int  # of the current state in the replay
    actions: list[Array] = field(default_factory=list)  # unit actions since the reset
    queue: list[Array] = field(default_factory=list)  # rest of the chunk
    total: float = 0.0
    success: bool = False


class Collector:
    """Steps every environment with the policy's noisy rollout and writes what happens to the replay."""

    def __init__(self, vector: Vector, policy: Policy, replay: Replay, seed: int, random_steps: int = 0) -> None:
        """`random_steps`: of all lanes together, taken at first with uniformly random actions."""
        self.vector, self.policy, self.replay, self.seed = vector, policy, replay, seed
        self.uniform, self.random_steps = Uniform(policy.spec, policy.horizon, None), random_steps
        self.episodes = 0
        self.taken = 0  # steps of all lanes
        self.stream = torch.Generator().manual_seed(seed)
        self.lanes: list[Lane] = []

    def begin(self) -> None:
        """Start the first episode in every lane."""
        self.lanes = [self._reset(lane) for lane in range(self.vector.count)]

    def step(self) -> list[Finished]:
        """One step of every lane. Returns the episodes that ended with it."""
        self._think()
        actions = np.stack([lane.queue.pop(0) for lane in self.lanes])
        steps = self.vector.step(actions)
        self.taken += len(actions)
        return [ended for i, lane in enumerate(self.lanes) if (ended := self._took(i, lane, actions[i], *(column[i] for column in steps)))]

    def _think(self) -> None:
        """A new chunk for every lane that has none left."""
        empty = [lane for lane in self.lanes if not lane.queue]
        if empty:
            policy = self.policy if self.taken >= self.random_steps else self.uniform
            x0, noise = policy.draw(len(empty), self.stream)
            chunks = policy.decide(np.stack([lane.observation for lane in empty]), x0, noise)
            for lane, chunk in zip(empty, chunks, strict=True):
                lane.queue = list(chunk)

    def observations(self) -> Array:
        """Where the lanes are now, (lanes, O)."""
        return np.stack([lane.observation for lane in self.lanes])

    def _took(
        self, index: int, lane: Lane, action: Array, observation: Array, reward: float, terminated: bool, truncated: bool, success: bool
    ) -> Finished | None:
        following = torch.from_numpy(observation)
        lane.row = self.replay.add_step(lane.row, torch.from_numpy(action), float(reward), bool(terminated), following)
        lane.actions.append(action)
        lane.observation = observation
        lane.total += float(reward)
        lane.success = lane.success or bool(success)
        if not (terminated or truncated):
            return None
        self.lanes[index] = self._reset(index)  # what is left of the chunk is dropped with the lane
        return Finished(len(lane.actions), lane.total, lane.success)

    def _reset(self, index: int) -> Lane:
        # below 2**30: evaluation seeds begin there
        seed = int(np.random.SeedSequence([self.seed, self.episodes]).generate_state(1)[0]) % 2**30
        self.episodes += 1
        observation = self.vector.reset(index, seed)
        return Lane(seed, observation, self.replay.add_state(torch.from_numpy(observation)))

    def state_dict(self) -> dict[str, Any]:
        """Seeds and actions since each reset instead of simulator states: it holds for every simulator."""
        lanes = [
            {
                "seed": lane.seed, "row": lane.row, "total": lane.total, "success": lane.success,
                "observation": torch.from_numpy(lane.observation),
                "actions": _stack(lane.actions, self.vector.spec.action_dim),
                "queue": _stack(lane.queue, self.vector.spec.action_dim),
            }
            for lane in self.lanes
        ]  # fmt: skip
        return {"episodes": self.episodes, "taken": self.taken, "rng": self.stream.get_state(), "lanes": lanes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replay each lane's actions from its seed; the simulator must come to the state that was saved."""
        if len(state["lanes"]) != self.vector.count:
            raise EnvError(
                f"this run was started with {len(state['lanes'])} environments, not {self.vector.count}",
                f"--set finetune.envs={len(state['lanes'])} (or train.envs, from scratch)",
            )
        self.episodes, self.taken = state["episodes"], state.get("taken", 0)  # older runs did not count
        self.stream.set_state(state["rng"].cpu())
        self.lanes = []
        for i, saved in enumerate(state["lanes"]):
            actions = saved["actions"].cpu().numpy()
            found = self.vector.restore(i, saved["seed"], actions)
            expected = saved["observation"].cpu().numpy()
            if not np.array_equal(found, expected):
                off = float(np.abs(found - expected).max())
                raise EnvError(
                    f"the simulator did not repeat itself: {len(actions)} actions after seed {saved['seed']} it is {off:.2g} off",
                    "continue on the machine and with the package versions that the run was started with",
                )
            self.lanes.append(
                Lane(
                    saved["seed"], found, saved["row"], list(actions), list(saved["queue"].cpu().numpy()), saved["total"], saved["success"]
                )
            )


def _stack(rows: list[Array], width: int) -> torch.Tensor:
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, width)
