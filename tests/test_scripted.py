"""Scripted demonstrations: robomimic's layout, the same file from the same seed, replayable to the bit, honest about failing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from flowft.data import scripted, source
from flowft.data.experts import rollout
from flowft.data.experts.hand import Hand, Motion, heading_of, rotation_matrix, rotation_vector
from flowft.data.experts.tasks import TASKS, Task
from flowft.envs import base
from flowft.errors import DataError, UsageError

pytest.importorskip("robosuite")


@pytest.fixture(scope="module")
def lift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted.generate("lift", tmp_path_factory.mktemp("scripted") / "lift.hdf5", episodes=3, seed=1, imperfection=1, progress=False)


def test_the_layout_is_robomimic_s(lift: Path) -> None:
    with h5py.File(lift) as file:
        data = file["data"]
        assert json.loads(data.attrs["env_args"])["env_name"] == "Lift"
        assert data.attrs["total"] == sum(demo.attrs["num_samples"] for demo in data.values())
        assert sorted(file["mask/train"][()].tolist()) == [b"demo_0", b"demo_1", b"demo_2"]
        for demo in data.values():
            assert np.abs(demo["actions"][()]).max() <= 1
            assert demo["rewards"][()].tolist() == [0.0] * (len(demo["actions"]) - 1) + [1.0]  # ends at the first success
            assert demo["dones"][-1] == 1 and len(demo["states"]) == len(demo["actions"])
            np.testing.assert_array_equal(demo["next_obs/object"][:-1], demo["obs/object"][1:])
    assert not scripted.matches(lift)
    assert source.detect(lift).NAME == "robomimic"


def test_it_reads_as_a_dataset_of_terminated_successes(lift: Path) -> None:
    dataset = source.load(str(lift))
    assert dataset.env is not None and dataset.env.id == "Lift"
    assert dataset.spec.observation_dim == 19
    assert all(episode.terminated and episode.success for episode in dataset.episodes)
    assert not dataset.spec.differences(base.make(dataset.env).flow_spec)


def test_replaying_the_actions_from_the_seed_gives_the_file_to_the_bit(lift: Path) -> None:
    dataset = source.load(str(lift))
    env = base.make(dataset.env)  # type: ignore[arg-type]
    episode = dataset.episodes[0]
    attempts = json.loads(h5py.File(lift)["data"].attrs["flowft"])["attempts"]
    assert attempts == 3  # so that demo 0 is attempt 0
    observation, _ = env.reset(seed=rollout.FIRST_SEED + 16381)
    for t, action in enumerate(episode.actions):
        np.testing.assert_array_equal(observation, dataset.spec.flatten({k: v[t] for k, v in episode.observations.items()}))
        observation, reward, terminated, _, _ = env.step(dataset.spec.to_unit(action))
        assert (reward, terminated) == (episode.rewards[t], t == len(episode) - 1)


def test_the_same_settings_give_the_same_bytes_with_any_number_of_workers(lift: Path, tmp_path: Path) -> None:
    again = scripted.generate("lift", tmp_path / "a.hdf5", episodes=3, seed=1, imperfection=1, workers=2, progress=False)
    other = scripted.generate("lift", tmp_path / "b.hdf5", episodes=1, seed=2, imperfection=1, progress=False)
    digest = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (lift, again, other)]
    assert digest[0] == digest[1] != digest[2]


@pytest.mark.parametrize("task", ["can", "square"])
def test_the_other_experts_succeed(task: str) -> None:
    tried = [rollout.attempt(TASKS[task], seed=0, index=index, imperfection=0.0) for index in range(4)]
    done = [demonstration for demonstration in tried if demonstration is not None]
    assert len(done) >= 2
    assert all(d.rewards[-1] == 1 and not d.successes[:-1].any() and np.abs(d.actions).max() <= 1 for d in done)


def test_imperfection_makes_episodes_longer() -> None:
    lengths = []
    for imperfection in (0.0, 2.0):
        tried = [rollout.attempt(TASKS["lift"], seed=0, index=index, imperfection=imperfection) for index in range(4)]
        lengths.append(np.mean([len(d.actions) for d in tried if d is not None]))
    assert lengths[0] < 45
    assert lengths[1] > 1.3 * lengths[0]


class Idle(Task):
    def plan(self, hand: Hand, simulator: object) -> Motion:
        while True:
            yield np.zeros(7)


def test_an_expert_that_never_succeeds_is_an_error_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scripted.TASKS, "lift", Idle("lift", "Lift", 1, 0.0))
    monkeypatch.setattr(scripted, "GIVE_UP_AFTER", 1)
    with pytest.raises(DataError, match="failed 1 times in a row"):
        scripted.generate("lift", tmp_path / "lift.hdf5", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_id_generates_once_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FLOWFT_DATASETS", str(tmp_path))
    monkeypatch.setitem(scripted.TASKS, "lift", Task("lift", "Lift", episodes=1, imperfection=2.0))
    path = scripted.locate("scripted/lift/0")
    assert path == tmp_path / "scripted" / "lift-0.hdf5"
    assert json.loads(h5py.File(path)["data"].attrs["flowft"])["imperfection"] == 0
    assert "generating 1 demonstration" in capsys.readouterr().err
    written = path.stat().st_mtime_ns
    assert scripted.locate("scripted/lift/0").stat().st_mtime_ns == written
    assert source.load("scripted/lift/0").source == "scripted"


@pytest.mark.parametrize(("dataset_id", "said"), [("scripted/lft", "did you mean 'scripted/lift'"), ("scripted/lift/much", "a number")])
def test_a_wrong_id_says_what_was_meant(dataset_id: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        scripted.locate(dataset_id)


@pytest.mark.parametrize("wrong", [{"episodes": 0}, {"workers": 0}, {"seed": -1}, {"imperfection": -1.0}, {"imperfection": float("nan")}])
def test_impossible_settings_are_refused(wrong: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        scripted.generate("lift", tmp_path / "lift.hdf5", **wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_demonstration_seeds_are_disjoint_from_training_and_evaluation() -> None:
    assert rollout.FIRST_SEED >= 2**30 + 2**20
    assert rollout.FIRST_SEED + rollout.SEEDS <= 2**31


def test_rotations() -> None:
    quaternion = np.array([0.0, 0.0, np.sin(0.35), np.cos(0.35)])
    assert heading_of(quaternion) == pytest.approx(0.7)
    np.testing.assert_allclose(rotation_vector(rotation_matrix(quaternion)), [0, 0, 0.7], atol=1e-12)
    np.testing.assert_allclose(rotation_vector(np.eye(3)), 0)
