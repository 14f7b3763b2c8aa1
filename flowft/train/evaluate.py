"""Evaluation: fixed seeds that training never uses, noise-free unless told otherwise, the same answer for any number of workers."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flowft import recipe
from flowft.data.description import Description
from flowft.data.spec import Array, EnvSpec
from flowft.envs.vector import Vector
from flowft.errors import MissingExtra
from flowft.policies.base import Policy

Frame = npt.NDArray[np.uint8]  # (H, W, 3)
FIRST_SEED = 2**30  # training episodes have seeds below this


@dataclass(frozen=True)
class Config:
    """The recipe's `eval` section."""

    episodes: int = 50  # 45 of 50 is 79–96 %: judge with 100
    every: int = 10_000  # environment steps between evaluations of a fine-tuning run; 0: only at its two ends
    envs: int = 1  # worker processes; the numbers do not depend on it
    seed: int = 0  # which block of evaluation seeds
    stochastic: bool = False  # act with the noisy rollout, as training does (and as the published code evaluates)

    def __post_init__(self) -> None:
        recipe.require(self, "episodes", "envs", least=1)
        recipe.require(self, "every", "seed", least=0)

    def origin(self) -> dict[str, Any]:
        """What a checkpoint says of how its evaluation was made."""
        return {"seed": self.seed, "stochastic": self.stochastic}


@dataclass(frozen=True)
class Evaluation:
    """One result per episode, in the order of the seeds."""

    success: tuple[bool, ...]
    returns: tuple[float, ...]  # undiscounted, raw rewards
    lengths: tuple[int, ...]

    def row(self) -> dict[str, Any]:
        """For metrics.jsonl: successes of episodes, mean return and length."""
        return {
            "successes": sum(self.success), "episodes": len(self.success),
            "return": float(np.mean(self.returns)), "length": float(np.mean(self.lengths)),
        }  # fmt: skip


class Evaluator:
    """Keeps its environments between evaluations."""

    def __init__(self, env: EnvSpec, config: Config, vector: Vector | None = None) -> None:
        """`vector`: environments that are built already; without it `config.envs` of them are."""
        self.config, self.env = config, env
        self.vector = vector or Vector(env, min(config.envs, config.episodes))

    def __call__(self, policy: Policy, frames: Callable[[int, Frame], None] | None = None) -> Evaluation:
        """Run every episode once. `frames(episode, picture)` is called after each step when given."""
        policy.eval()
        waiting = list(range(self.config.episodes))
        done: dict[int, Running] = {}
        running: dict[int, Running] = {}  # lane -> its episode
        while waiting or running:
            for lane in range(self.vector.count):
                if lane not in running and waiting:
                    running[lane] = self._start(lane, waiting.pop(0))
            lanes = sorted(running)
            steps = self.vector.step(np.stack([running[lane].next_action(policy, self.config.stochastic) for lane in lanes]), lanes)
            for i, lane in enumerate(lanes):
                if frames is not None:
                    frames(running[lane].episode, self.vector.render(lane))
                if running[lane].took(*(column[i] for column in steps)):
                    ended = running.pop(lane)
                    done[ended.episode] = ended
        policy.train()
        order = [done[i] for i in range(self.config.episodes)]
        return Evaluation(tuple(r.success for r in order), tuple(r.total for r in order), tuple(r.length for r in order))

    def _start(self, lane: int, episode: int) -> Running:
        seed = FIRST_SEED + self.config.seed * 2**16 + episode
        return Running(episode, self.vector.reset(lane, seed), torch.Generator().manual_seed(seed))

    def close(self) -> None:
        self.vector.close()


@dataclass
class Running:
    """An episode under way. Its x_0 come from its own stream and its policy calls are of batch 1, so nothing else matters to it."""

    episode: int
    observation: Array
    stream: torch.Generator
    queue: list[Array] = dataclasses.field(default_factory=list)
    total: float = 0.0
    length: int = 0
    success: bool = False

    def next_action(self, policy: Policy, stochastic: bool) -> Array:
        if not self.queue:
            x0, noise = policy.draw(1, self.stream)
            self.queue = list(policy.decide(self.observation[None], x0, noise if stochastic else None)[0])
        return self.queue.pop(0)

    def took(self, observation: Array, reward: float, terminated: bool, truncated: bool, success: bool) -> bool:
        self.observation = observation
        self.total += float(reward)
        self.length += 1
        self.success = self.success or bool(success)
        return bool(terminated or truncated)


def evaluate(policy: Policy, env: EnvSpec, config: Config, video: Path | None = None, name: str = "this checkpoint") -> Evaluation:
    """Build the environments, run `config.episodes` episodes, close them. `video`: a folder for one film per episode.

    EnvError where the environment is not what the policy (`name` in the message) sees and does.
    """
    if video is not None:
        env = dataclasses.replace(env, kwargs={**env.kwargs, "render": True})
    evaluator = Evaluator(env, config)
    try:
        there = Description.of_environment(env, evaluator.vector.spec)
        Description("policy", name, policy.spec, policy.horizon).require_fit(there, f"flowft eval {shlex.quote(name)}")
        if video is None:
            return evaluator(policy)
        with _Films(video) as films:
            return evaluator(policy, films.add)
    finally:
        evaluator.close()


class _Films:
    """One mp4 per episode."""

    def __init__(self, folder: Path) -> None:
        try:
            import imageio
        except ImportError as error:
            raise MissingExtra("imageio", "video", "--video") from error
        folder.mkdir(parents=True, exist_ok=True)
        self._open: Any = imageio.get_writer
        self.folder, self.writers = folder, {}

    folder: Path
    writers: dict[int, Any]

    def add(self, episode: int, frame: Frame) -> None:
        if episode not in self.writers:
            self.writers[episode] = self._open(self.folder / f"episode_{episode:03d}.mp4", fps=20, macro_block_size=8)
        self.writers[episode].append_data(frame)

    def __enter__(self) -> _Films:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self.writers.values():
            writer.close()
