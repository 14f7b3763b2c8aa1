"""Small things that several tests build."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flowft.algos.sac_flow import Config, SACFlow
from flowft.data.replay import Replay, RewardTransform, from_dataset
from flowft.data.spec import Batch, Dataset, Episode, Spec
from flowft.policies import critic
from flowft.policies import policy as policies
from flowft.policies.policy import FlowPolicy

SPEC = Spec((("position", 2), ("object", 3)), (-1.0, -1.0), (1.0, 1.0))
NETS: dict[str, dict[str, Any]] = {
    "flow_g": {"hidden": [32, 32], "gate_hidden": 16},
    "flow_t": {"width": 32},
    "mlp": {"hidden": [32, 32]},
}


def episode(length: int, *, terminated: bool = True, last_state: bool = True, seed: int = 0, action: float | None = None) -> Episode:
    """Random observations; actions random or constant; reward 1 at the end of a terminated episode."""
    g = np.random.default_rng(seed)
    states = g.normal(size=(length + int(last_state), 5)).astype(np.float32)
    actions = g.uniform(-1, 1, (length, 2)) if action is None else np.full((length, 2), action)
    rewards = np.zeros(length)
    rewards[-1] = float(terminated)
    return Episode(f"demo_{seed}", {"position": states[:, :2], "object": states[:, 2:]}, actions, rewards, terminated)


def dataset(*episodes: Episode) -> Dataset:
    return Dataset("test", "test", "made here", "nowhere", "0", SPEC, None, list(episodes))


def replay(*episodes: Episode, seed: int = 0) -> Replay:
    return from_dataset(dataset(*episodes), RewardTransform(1.0, -1.0), seed)


def policy(network: str = "mlp", **settings: Any) -> FlowPolicy:
    torch.manual_seed(0)
    return FlowPolicy(SPEC, policies.Config(network=network, **{"net": NETS[network], "horizon": 3, "steps": 4, **settings}))


def agent(network: str = "mlp", config: Config | None = None, seed: int = 0, **settings: Any) -> SACFlow:
    made = policy(network, **settings)
    return SACFlow(made, critic.Config(hidden=(32, 32)), config or Config(), seed)


def batch(size: int = 16, horizon: int = 3) -> Batch:
    return replay(*(episode(7, seed=i) for i in range(4))).sample(size, horizon, offline=True)


def same(one: Any, other: Any) -> bool:
    """Two states, tensor by tensor."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)
