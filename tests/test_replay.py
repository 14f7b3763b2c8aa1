"""Chunks against a slow oracle; the ring; the offline share; no chunk crosses an episode's end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowft.data.mixture import Config, Mixture
from flowft.data.replay import _ARRAYS, Replay, RewardTransform, from_dataset
from flowft.data.spec import Dataset, Episode

from .helpers import SPEC, dataset, episode, replay

episodes = st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(shapes=episodes, horizon=st.integers(1, 6), n_step=st.none() | st.integers(1, 12))
def test_chunks_against_a_slow_oracle(shapes: list[tuple[int, bool, bool]], horizon: int, n_step: int | None) -> None:
    data = [episode(n, terminated=ends, last_state=keeps, seed=i) for i, (n, ends, keeps) in enumerate(shapes)]
    filled = replay(*data)
    starts = torch.nonzero(filled.has_action).flatten()
    chunks = filled.chunks(starts, horizon, offline=True, n_step=n_step)
    reach = max(horizon, n_step or 1)
    k = 0
    for each in data:
        states = SPEC.flatten(each.observations)
        for start in range(len(each)):
            real = list(range(start, min(start + reach, len(each))))
            acted = real[:horizon]
            padded = acted + [acted[-1]] * (horizon - len(acted))
            assert np.allclose(chunks.observation[k], states[start])
            assert np.allclose(chunks.action[k], each.actions[padded].astype(np.float32))
            assert chunks.valid[k].tolist() == [1.0] * len(acted) + [0.0] * (horizon - len(acted))
            assert chunks.reward[k].tolist() == [each.rewards[j] - 1 for j in real] + [0.0] * (reach - len(real))
            assert chunks.length[k] == len(real)
            at_end = real[-1] == len(each) - 1
            assert bool(chunks.terminated[k]) == (at_end and each.terminated)
            has_next = real[-1] + 1 < len(states)
            if has_next:
                assert np.allclose(chunks.next_observation[k], states[real[-1] + 1])
            assert bool(chunks.complete[k]) == ((at_end and each.terminated) or (len(acted) == horizon and has_next))
            k += 1
    assert k == len(starts) == len(filled)


@settings(max_examples=40, deadline=None)
@given(
    capacity=st.integers(3, 40),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=12),
    lanes=st.integers(1, 3),
    horizon=st.integers(1, 5),
)
def test_a_full_ring_never_joins_two_episodes(capacity: int, lengths: list[int], lanes: int, horizon: int) -> None:
    """Several lanes write in turn; every state carries its episode and time, so a wrong join shows."""
    capacity = max(capacity, 2 * lanes + 1)
    ring = Replay(capacity, 2, 1, RewardTransform(), seed=0)
    waiting = list(enumerate(lengths))
    live: dict[int, list[int]] = {}  # lane -> [episode, length, time, row]
    while waiting or live:
        for lane in range(lanes):
            if lane not in live:
                if not waiting:
                    continue
                number, length = waiting.pop(0)
                live[lane] = [number, length, 0, ring.add_state(torch.tensor([number, 0.0]))]
            number, length, time, row = live[lane]
            row = ring.add_step(row, torch.tensor([float(time)]), 0.0, time + 1 == length, torch.tensor([number, time + 1.0]))
            live[lane] = [number, length, time + 1, row]
            if time + 1 == length:
                del live[lane]
        check_joins(ring, horizon)
    assert ring.steps == int(ring.has_action.sum())


def check_joins(ring: Replay, horizon: int) -> None:
    starts = torch.nonzero(ring.has_action).flatten()
    chunks = ring.chunks(starts, horizon, offline=False)
    for k, start in enumerate(starts):
        number, time = ring.observation[start].tolist()
        real = int(chunks.length[k])
        assert chunks.action[k, :real, 0].tolist() == [time + j for j in range(real)]
        if chunks.complete[k] and not chunks.terminated[k]:
            assert chunks.next_observation[k].tolist() == [number, time + real]


def test_a_truncated_episode_keeps_its_bootstrap_and_a_terminated_one_does_not() -> None:
    cut = replay(episode(6, terminated=False)).chunks(torch.tensor([3]), 3, offline=True)
    done = replay(episode(6, terminated=True)).chunks(torch.tensor([3]), 3, offline=True)
    assert (cut.complete.item(), cut.terminated.item()) == (1.0, 0.0)
    assert (done.complete.item(), done.terminated.item()) == (1.0, 1.0)


def test_saved_and_loaded_it_draws_the_same() -> None:
    first, second = replay(episode(9)), replay(episode(9), seed=5)
    first.sample(4, 3, offline=True)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first.sample(32, 3, offline=True), second.sample(32, 3, offline=True), strict=True))


def test_the_offline_share_is_exact_and_stays() -> None:
    """Defect 9: one ring drawn uniformly lets the demonstrations' share fall as the run goes on."""
    offline, online = replay(episode(9)), replay(*(episode(9, seed=i) for i in range(50)))
    mixed = Mixture(offline, online, Config(offline_share=0.5))
    assert [int(mixed.sample(64, 3, step).offline.sum()) for step in (0, 10_000, 1_000_000)] == [32, 32, 32]
    uniform = Mixture(offline, online, Config(offline_share="uniform"))
    assert uniform.offline_count(510, 0) == 10
    schedule = Mixture(offline, online, Config(offline_share=0.5, offline_share_end=0.1, offline_share_steps=100))
    assert [schedule.offline_count(100, step) for step in (0, 50, 100, 500)] == [50, 30, 10, 10]


def test_an_empty_online_replay_leaves_the_demonstrations() -> None:
    mixed = Mixture(replay(episode(9)), Replay(10, 5, 2, RewardTransform(), 0), Config(offline_share=0.25))
    assert mixed.sample(8, 3, 0).offline.sum() == 8


def one_by_one(ring: Replay, data: Dataset) -> None:
    """What filled a replay before episodes were written at once."""
    for each in data.episodes:
        observations, actions = torch.from_numpy(SPEC.flatten(each.observations)), torch.from_numpy(SPEC.to_unit(each.actions))
        row = ring.add_state(observations[0])
        for t in range(len(each)):
            following = observations[t + 1] if t + 1 < len(observations) else None
            row = ring.add_step(row, actions[t], float(each.rewards[t]), each.terminated and t == len(each) - 1, following)


@settings(max_examples=60, deadline=None)
@given(shapes=episodes, before=st.integers(0, 30), spare=st.integers(0, 20), scale=st.sampled_from([1.0, 0.1, -3.7]))
def test_episodes_written_at_once_are_those_written_step_by_step(
    shapes: list[tuple[int, bool, bool]], before: int, spare: int, scale: float
) -> None:
    """Bit for bit, in a ring that has come round as well."""
    data = dataset(*(episode(n, terminated=ends, last_state=keeps, seed=i) for i, (n, ends, keeps) in enumerate(shapes)))
    size = max(2, sum(len(each) + 1 for each in data.episodes) + spare)
    slow, quick = (Replay(size, 5, 2, RewardTransform(scale, 0.3), 0) for _ in "ab")
    for ring in (slow, quick):
        row = ring.add_state(torch.ones(5))
        for i in range(before):
            row = ring.add_step(row, torch.full((2,), float(i)), float(i), False, torch.full((5,), float(i)))
    one_by_one(slow, data)
    quick.add_episodes(SPEC, data.episodes)
    assert (slow.written, slow.steps) == (quick.written, quick.steps)
    for name, values in slow.state_dict().items():
        assert not isinstance(values, torch.Tensor) or torch.equal(values, quick.state_dict()[name]), name
    fresh = Replay(size, 5, 2, RewardTransform(scale, 0.3), 0)
    one_by_one(fresh, data)
    filled = from_dataset(data, RewardTransform(scale, 0.3), 0)
    assert all(torch.equal(getattr(fresh, name)[: fresh.written], getattr(filled, name)[: fresh.written]) for name in _ARRAYS)


def test_one_reward_transform_for_both_kinds() -> None:
    transform = RewardTransform(2.0, -1.0)
    online = Replay(10, 5, 2, transform, 0)
    online.add_step(online.add_state(torch.zeros(5)), torch.zeros(2), 1.0, True, torch.zeros(5))
    offline = Replay(10, 5, 2, transform, 0)
    offline.add_episode(SPEC, Episode("d", {"position": np.zeros((2, 2)), "object": np.zeros((2, 3))}, np.zeros((1, 2)), np.ones(1), True))
    assert online.reward[0] == offline.reward[0] == pytest.approx(1.0)
