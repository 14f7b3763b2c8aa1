"""Live steps: what the collector stores against an independent simulation of the same episodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowft.data.replay import Replay, RewardTransform
from flowft.data.spec import EnvSpec
from flowft.envs.vector import Vector
from flowft.errors import EnvError
from flowft.policies import policy as policies
from flowft.policies.policy import FlowPolicy
from flowft.train.collect import Collector

ENV = EnvSpec("gymnasium", "Hopper-v5", max_steps=15)  # a random Hopper falls after 10 to 20 steps: both kinds of end


def collector(vector: Vector, seed: int = 0) -> Collector:
    torch.manual_seed(0)
    config = policies.Config(network="mlp", net={"hidden": [16]}, horizon=4, sigma=0.5)
    policy = FlowPolicy(vector.spec, config)
    replay = Replay(1000, vector.spec.observation_dim, vector.spec.action_dim, RewardTransform(), seed)
    return Collector(vector, policy, replay, seed)


@pytest.fixture(scope="module")
def vector() -> Vector:
    return Vector(ENV, 2, processes=False)


def test_no_stored_transition_crosses_a_reset(vector: Vector) -> None:
    live = collector(vector)
    live.begin()
    seeds = [lane.seed for lane in live.lanes]
    ended = 0
    for _ in range(150):
        before = [lane.seed for lane in live.lanes]
        ended += len(live.step())
        seeds += [lane.seed for lane, seed in zip(live.lanes, before, strict=True) if lane.seed != seed]
    ring = live.replay
    assert len(ring) == 300
    assert ended > 10
    firsts = {vector.reset(0, seed).tobytes(): seed for seed in seeds}
    assert len(set(seeds)) == len(seeds)
    followed = set(ring.successor[ring.successor >= 0].tolist())
    size = ring.written
    starts = [row for row in range(size) if row not in followed]
    assert len(starts) == len(seeds)
    ends = set()
    for row in starts:  # each chain is one episode: its seed and its actions give its states and ends again
        seed = firsts[ring.observation[row].numpy().tobytes()]
        vector.reset(0, seed)
        while ring.has_action[row]:
            steps = vector.step(ring.action[row].numpy()[None], [0])
            following = int(ring.successor[row])
            assert np.array_equal(steps.observations[0], ring.observation[following].numpy())
            assert steps.rewards[0] == pytest.approx(float(ring.reward[row]))
            assert bool(steps.terminated[0]) == bool(ring.terminated[row])
            ends |= {kind for kind in ("terminated", "truncated") if getattr(steps, kind)[0]}
            assert not (steps.terminated[0] or steps.truncated[0]) or not ring.has_action[following]
            row = following
    assert ends == {"terminated", "truncated"}


def test_saved_in_the_middle_of_a_chunk_it_goes_on_as_if_never_stopped(vector: Vector) -> None:
    whole, first, second = collector(vector), collector(vector), collector(vector)
    whole.begin()
    for _ in range(41):
        whole.step()
    expected = whole.replay.state_dict()
    first.begin()
    for _ in range(22):
        first.step()
    second.replay.load_state_dict(first.replay.state_dict())
    second.load_state_dict(first.state_dict())
    for _ in range(19):
        second.step()
    found = second.replay.state_dict()
    assert all(torch.equal(expected[k], found[k]) for k in ("observation", "action", "reward", "successor", "terminated"))


def test_a_simulator_that_does_not_repeat_itself_is_an_error(vector: Vector) -> None:
    live = collector(vector)
    live.begin()
    live.step()
    state = live.state_dict()
    state["lanes"][1]["observation"] = state["lanes"][1]["observation"] + 1e-3
    with pytest.raises(EnvError, match="did not repeat itself: 1 actions after seed"):
        collector(vector).load_state_dict(state)


def test_training_seeds_stay_below_those_of_evaluation(vector: Vector) -> None:
    live = collector(vector, seed=7)
    live.begin()
    for _ in range(60):
        live.step()
    assert live.episodes > 4
    assert all(lane.seed < 2**30 for lane in live.lanes)
