"""Replay of action chunks: every step stored once, chunks that never cross an episode's end.

Each row is a state; it gains an action, a reward and the row of its successor when the step is taken. A row without an
action is a last state, or the tip of an episode that is still going on. A chunk of length h is read by following
successors, so several environments may write into one ring in turn, and because a successor is always younger than its
predecessor, overwriting the oldest row can never break a chunk that starts at a row still there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flowft.data.spec import Batch, Dataset, Episode, Spec
from flowft.errors import DataError, UsageError

NONE = -1
TOGETHER = 1 << 16  # steps written at once: few enough that copies on the way cost no memory


@dataclass(frozen=True)
class RewardTransform:
    """r -> scale·r + shift, for offline and online steps alike. 0/1 success rewards become −1 until success with shift −1."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, reward: Any) -> Any:
        return self.scale * reward + self.shift


class Replay:
    """A ring of `capacity` states with their steps. Tensors live on the CPU; sampling is seeded."""

    def __init__(self, capacity: int, observation_dim: int, action_dim: int, reward: RewardTransform, seed: int) -> None:
        if capacity < 2:
            raise UsageError(f"a replay of {capacity} states cannot hold a step", "--set finetune.capacity=1000000")
        self.capacity = capacity
        self.reward_transform = reward
        self.written = 0  # rows ever written; row = written % capacity
        self.steps = 0  # rows that hold an action now
        self.observation = torch.zeros(capacity, observation_dim)
        self.action = torch.zeros(capacity, action_dim)
        self.reward = torch.zeros(capacity)
        self.terminated = torch.zeros(capacity, dtype=torch.bool)
        self.has_action = torch.zeros(capacity, dtype=torch.bool)
        self.successor = torch.full((capacity,), NONE, dtype=torch.int64)
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.steps

    def add_state(self, observation: torch.Tensor) -> int:
        """Write a state (D,) without an action, as at a reset. Returns its row."""
        row = self.written % self.capacity
        self.steps -= int(self.has_action[row])
        self.observation[row] = observation
        self.has_action[row] = False
        self.successor[row] = NONE
        self.written += 1
        return row

    def add_step(self, row: int, action: torch.Tensor, reward: float, terminated: bool, next_observation: torch.Tensor | None) -> int:
        """Give the state in `row` its unit action (A,), raw reward and successor state (D,). Returns the successor's row."""
        self.action[row] = action
        self.reward[row] = self.reward_transform(reward)
        self.terminated[row] = terminated
        self.has_action[row] = True
        self.steps += 1
        if next_observation is None:
            return NONE
        following = self.add_state(next_observation)
        self.successor[row] = following
        return following

    def add_episode(self, spec: Spec, episode: Episode) -> None:
        """Write a whole episode in environment units. Its last state is kept when the data have it."""
        self.add_episodes(spec, [episode])

    def add_episodes(self, spec: Spec, episodes: Sequence[Episode]) -> None:
        """Several at once: the rows that `add_state` and `add_step` would write one by one."""
        steps = np.array([len(episode) for episode in episodes])
        states = np.array([min(len(next(iter(e.observations.values()))), len(e) + 1) for e in episodes])
        if (total := int(states.sum())) > self.capacity:
            raise UsageError(f"a replay of {self.capacity} states cannot hold {total}", f"--set finetune.capacity={total}")
        first = np.cumsum(states) - states
        acts, ends = np.ones(total, dtype=bool), np.zeros(total, dtype=bool)
        acts[(first + steps)[states > steps]] = False  # a last state
        ends[(first + states - 1)] = True
        rows = torch.arange(self.written, self.written + total) % self.capacity
        acted = rows[torch.from_numpy(acts)]
        parts = {name: np.concatenate([e.observations[name][:n] for e, n in zip(episodes, states, strict=True)]) for name, _ in spec.parts}
        rewards = np.concatenate([np.asarray(episode.rewards, dtype=np.float64) for episode in episodes])
        self.steps += len(acted) - int(self.has_action[rows].sum())
        self.observation[rows] = torch.from_numpy(spec.flatten(parts))
        self.action[acted] = torch.from_numpy(spec.to_unit(np.concatenate([episode.actions for episode in episodes])))
        self.reward[acted] = torch.from_numpy(self.reward_transform(rewards)).float()
        self.terminated[acted] = False
        self.terminated[rows[torch.from_numpy(first + steps - 1)]] = torch.tensor([episode.terminated for episode in episodes])
        self.has_action[rows] = torch.from_numpy(acts)
        inside = torch.from_numpy(~ends[:-1])
        self.successor[rows] = NONE
        self.successor[rows[:-1][inside]] = rows[1:][inside]
        self.written += total

    def sample(self, batch_size: int, horizon: int, *, offline: bool, n_step: int | None = None) -> Batch:
        """`batch_size` chunks of `horizon` steps, starts uniform over the stored steps."""
        return self.chunks(self._starts(batch_size), horizon, offline=offline, n_step=n_step)

    def chunks(self, starts: torch.Tensor, horizon: int, *, offline: bool, n_step: int | None = None) -> Batch:
        """The chunks that start at the given rows (B,); past an episode's end the last real step is repeated and masked.

        Rewards go on for `n_step` steps (None: as long as the chunk), as far as the episode goes: an n-step return.
        """
        reach = max(horizon, n_step or 0)
        rows, valid = [starts], [torch.ones_like(starts, dtype=torch.bool)]
        for _ in range(reach - 1):
            following = self.successor[rows[-1]]
            alive = valid[-1] & (following != NONE) & self.has_action[following]
            rows.append(torch.where(alive, following, rows[-1]))
            valid.append(alive)
        steps, real = torch.stack(rows, dim=1), torch.stack(valid, dim=1)  # (B, reach)
        last = rows[-1]
        following = self.successor[last]
        terminated, stored = self.terminated[last], following != NONE
        return Batch(
            observation=self.observation[starts],
            action=self.action[steps[:, :horizon]],
            valid=real[:, :horizon].float(),
            reward=self.reward[steps] * real,
            length=real.sum(dim=1).float(),
            next_observation=self.observation[torch.where(stored, following, last)],
            terminated=terminated.float(),
            complete=(terminated | (real[:, horizon - 1] & stored)).float(),
            offline=torch.full((len(starts),), float(offline)),
        )

    def _starts(self, count: int) -> torch.Tensor:
        if self.steps == 0:
            raise DataError("nothing to sample: the replay holds no step")
        size = min(self.written, self.capacity)
        rows = torch.randint(size, (count,), generator=self.generator)
        while not bool((ready := self.has_action[rows]).all()):  # one state in an episode has no action: draw those again
            rows = torch.where(ready, rows, torch.randint(size, (count,), generator=self.generator))
        return rows

    def state_dict(self) -> dict[str, Any]:
        """All rows written so far, the ring's position and the random state."""
        size = min(self.written, self.capacity)
        arrays = {name: getattr(self, name)[:size].clone() for name in _ARRAYS}
        return {"written": self.written, "steps": self.steps, "capacity": self.capacity, "rng": self.generator.get_state(), **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["capacity"] != self.capacity:
            raise UsageError(
                f"the saved replay holds {state['capacity']} states, this one {self.capacity}",
                f"--set finetune.capacity={state['capacity']}",
            )
        for name in _ARRAYS:
            getattr(self, name)[: len(state[name])] = state[name]
        self.written, self.steps = state["written"], state["steps"]
        self.generator.set_state(state["rng"].cpu())


_ARRAYS = ("observation", "action", "reward", "terminated", "has_action", "successor")


def from_dataset(dataset: Dataset, reward: RewardTransform, seed: int) -> Replay:
    """A replay that holds exactly the dataset's episodes."""
    states = sum(len(episode) + 1 for episode in dataset.episodes)
    replay = Replay(max(states, 2), dataset.spec.observation_dim, dataset.spec.action_dim, reward, seed)
    group: list[Episode] = []
    waiting = 0
    for episode in dataset.episodes:
        group.append(episode)
        waiting += len(episode)
        if waiting >= TOGETHER:
            replay.add_episodes(dataset.spec, group)
            group, waiting = [], 0
    if group:
        replay.add_episodes(dataset.spec, group)
    return replay


def observation_statistics(dataset: Dataset) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Mean and standard deviation (D,) of all stored states, for the policy's normaliser."""
    states = np.concatenate([dataset.spec.flatten(episode.observations) for episode in dataset.episodes]).astype(np.float64)
    return states.mean(axis=0), states.std(axis=0)
