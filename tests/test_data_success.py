"""What a success is, what is not refused because it is not used, and what must not be passed over in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flowft.cli.main import run
from flowft.data import source
from flowft.data.replay import from_dataset
from flowft.data.source import Options
from flowft.errors import DataError
from flowft.train.settings import Reward

from .test_data_minari import make_minari
from .test_data_robomimic import write
from .test_data_sources import d4rl, npz, ogbench


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    return write(tmp_path / "lift.hdf5", {"demo_0": 5, "demo_1": 4, "demo_2": 6})


def rewrite(path: Path, key: str, values: Any) -> None:
    """`values` of each demo's number of steps under `key`, in place of what was there."""
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            if key in demo:
                del demo[key]
            if values is not None:
                demo[key] = values(len(demo["actions"]))


def notes(path: Path, capsys: pytest.CaptureFixture[str], *sets: str) -> str:
    """What check and info both say."""
    given = [word for value in sets for word in ("--set", value)]
    assert run(["data", "check", str(path), *given]) == 0
    checked = capsys.readouterr().err
    assert run(["data", "info", str(path), *given, "--json"]) == 0
    told: list[str] = json.loads(capsys.readouterr().out)["notes"]
    assert all(f"note: {note}\n" in checked for note in told)
    return "\n".join(told)


# data.success


def test_the_last_step_is_the_success_where_the_user_says_so(demos: Path) -> None:
    rewrite(demos, "rewards", np.zeros)
    plain, said = source.load(str(demos)), source.load(str(demos), Options(success="last"))
    assert [(e.terminated, e.success) for e in plain.episodes] == [(False, False)] * 3
    assert [(e.terminated, e.success) for e in said.episodes] == [(True, True)] * 3
    assert said.episodes[1].rewards.tolist() == [0, 0, 0, 1]
    transform = Reward().resolved(said)
    assert (transform.scale, transform.shift) == (1.0, -1.0)  # −1 until success, as for all success rewards
    assert from_dataset(said, transform, 0).reward.tolist()[:5] == [-1, -1, -1, -1, 0]


def test_a_key_of_the_demonstrations_tells_success_step_by_step(demos: Path) -> None:
    rewrite(demos, "solved", lambda n: np.arange(n) >= 4)  # demo_1 has four steps: never
    said = source.load(str(demos), Options(success="solved"))
    assert [(e.terminated, e.success) for e in said.episodes] == [(True, True), (False, False), (True, True)]
    assert said.episodes[2].rewards.tolist() == [0, 0, 0, 0, 1, 1]  # what follows a success stays, as in robomimic's files


def test_an_attribute_tells_success_of_the_whole_demonstration(demos: Path) -> None:
    with h5py.File(demos, "a") as file:
        for i, demo in enumerate(file["data"].values()):
            demo.attrs["success"] = i != 1
    said = source.load(str(demos), Options(success="success"))
    assert [(e.terminated, e.success, e.rewards.sum()) for e in said.episodes] == [(True, True, 1), (False, False, 0), (True, True, 1)]
    rewrite(demos, "rewards", None)  # as Isaac Lab's recorder writes it
    assert [e.success for e in source.load(str(demos)).episodes] == [True, False, True]


def test_a_threshold_of_shaped_rewards(demos: Path) -> None:
    rewrite(demos, "rewards", lambda n: np.linspace(0, 2, n) if n != 4 else np.linspace(0, 1, n))
    said = source.load(str(demos), Options(success="reward>=1.5"))
    assert [(e.terminated, e.success) for e in said.episodes] == [(True, True), (False, False), (True, True)]
    assert said.episodes[0].rewards.tolist() == [0, 0, 0, 1, 1]


def test_none_leaves_the_rewards_and_ends_nothing(demos: Path) -> None:
    said = source.load(str(demos), Options(success="none"))
    assert all(not e.terminated and e.success is None and e.rewards[-1] == 1 for e in said.episodes)


@pytest.mark.filterwarnings("ignore")
def test_every_layout_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_minari(tmp_path, "mine/reach-v0", monkeypatch)
    (tmp_path / "npz").mkdir()
    made = (d4rl(tmp_path / "a.hdf5", [3], [7], 8), npz(tmp_path / "npz"), ogbench(tmp_path / "b.npz"))
    paths = ["minari/mine/reach-v0", *map(str, made)]
    for path in paths:
        said = source.load(path, Options(success="last"))
        assert all(e.terminated and e.success and e.rewards[-1] == 1 and not e.rewards[:-1].any() for e in said.episodes), path
        assert not any("data.success" in note for note in said.notes)
        assert not any(e.terminated for e in source.load(path, Options(success="none")).episodes)
    assert [e.success for e in source.load(paths[0], Options(success="success")).episodes] == [i == 1 for i in range(11)]
    with h5py.File(paths[1], "a") as file:
        file["goals"] = np.arange(8) == 6
    assert [e.success for e in source.load(paths[1], Options(success="goals")).episodes] == [False, True]


# Silence


def test_rewards_that_are_all_zero_are_said(demos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(demos, "rewards", lambda n: np.zeros(n, "i8"))
    said = notes(demos, capsys)
    assert "all rewards are 0, so no demonstration seems to succeed" in said and "--set data.success=last" in said and "dones" in said
    assert "rewards" not in notes(demos, capsys, "data.success=last")


def test_minus_one_until_success_is_understood(demos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(demos, "rewards", lambda n: np.where(np.arange(n) == n - 1, 0.0, -1.0))
    found = source.load(str(demos))
    assert all(e.terminated and e.success and e.rewards.tolist() == [0.0] * (len(e) - 1) + [1.0] for e in found.episodes)
    assert from_dataset(found, Reward().resolved(found), 0).reward.tolist()[:5] == [-1, -1, -1, -1, 0]  # as they are in the file
    assert "rewards are −1 until success" in notes(demos, capsys)


def test_minus_one_at_every_step_is_said(demos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(demos, "rewards", lambda n: -np.ones(n))
    assert "all rewards are -1" in notes(demos, capsys)


def test_minus_one_until_success_in_a_file_that_marks_ends_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = d4rl(tmp_path / "reach.hdf5", [], [3, 7], 8)
    with h5py.File(path, "a") as file:
        file["rewards"][:] = np.where(np.isin(np.arange(8), (3, 7)), 0, -1)[:, None]
    found = source.load(str(path))
    assert not any(e.terminated for e in found.episodes) and found.episodes[0].rewards.tolist() == [-1, -1, -1, 0]
    assert "--set 'data.success=reward>=0'" in notes(path, capsys)
    assert all(e.terminated and e.success for e in source.load(str(path), Options(success="reward>=0")).episodes)
    with h5py.File(path, "a") as file:
        file["terminals"][3] = 1
    assert "reward" not in notes(path, capsys)


def test_shaped_rewards_are_left_alone(demos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(demos, "rewards", lambda n: np.linspace(-1, 0, n))
    found = source.load(str(demos))
    assert not any(e.terminated for e in found.episodes) and found.episodes[0].rewards[0] == -1
    assert "reward" not in notes(demos, capsys)


def test_an_end_that_only_next_observations_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hopper_medium_replay-v2.hdf5"
    states = np.cumsum(np.random.default_rng(0).normal(size=(33, 11)), 0)
    states[11:22] += 50  # three walks of ten steps; the second begins elsewhere
    first, second, third = states[:11], states[11:22], states[22:]
    with h5py.File(path, "w") as file:
        file["observations"] = np.concatenate([first[:-1], second[:-1], third[:-1]])
        file["next_observations"] = np.concatenate([first[1:], second[1:], third[1:]])
        file["actions"], file["rewards"] = np.zeros((30, 3)), np.ones(30)
        file["terminals"], file["timeouts"] = np.zeros(30), np.isin(np.arange(30), [19])
    found = source.load(str(path))
    assert [len(e) for e in found.episodes] == [10, 10, 10]
    for episode, walk in zip(found.episodes, (first, second, third), strict=True):
        np.testing.assert_array_equal(episode.observations["observation"], walk)
    assert "1 ends of episodes are not marked, row 9 first" in notes(path, capsys)


@pytest.mark.filterwarnings("ignore")
def test_an_action_space_without_bounds_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_minari(tmp_path, "mine/reach-v0", monkeypatch)
    metadata = tmp_path / "mine/reach-v0/data/metadata.json"
    kept = json.loads(metadata.read_text())
    space = json.loads(kept["action_space"])
    space["low"], space["high"] = [-2.0, -float("inf")], [2.0, float("inf")]
    metadata.write_text(json.dumps(kept | {"action_space": json.dumps(space)}))
    with pytest.raises(DataError, match="values outside the bounds ±1 that are taken for an action space without any") as raised:
        source.load("minari/mine/reach-v0")
    assert "data.action_bounds=data" in str(raised.value.fix)
    found = source.load("minari/mine/reach-v0", Options(action_bounds=((-2.0, 2.0), (-3.0, 3.0))))
    assert found.spec.action_high == (2.0, 3.0)
    said = source.load("minari/mine/reach-v0", Options(clip_actions=True)).notes
    assert any("the action space, in value 1, has no bounds: ±1 is taken" in note and "data.action_bounds" in note for note in said)


# What is not used


def test_what_is_not_used_is_not_in_the_way(demos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = source.load(str(demos))
    rewrite(demos, "states", lambda n: np.zeros((n + 50, 32)))
    rewrite(demos, "dones", lambda n: np.zeros(n + 3))
    rewrite(demos, "obs/words", lambda n: np.full(n, b"grasp"))
    rewrite(demos, "initial_state/robot/joints", lambda n: np.zeros((1, 9)))
    rewrite(demos, "obs/camera/rgb", lambda n: np.zeros((n, 4, 4, 3), "u1"))
    after = source.load(str(demos))
    assert (after.hash, after.steps, after.notes) == (before.hash, before.steps, before.notes)
    rewrite(demos, "states", None)
    rewrite(demos, "states/articulation/robot/joint_position", lambda n: np.zeros((n, 9)))
    assert source.load(str(demos)).steps == before.steps


def test_a_part_of_one_number_and_a_nested_part(demos: Path) -> None:
    for key in ("obs", "next_obs"):
        rewrite(demos, f"{key}/distance", np.ones)
        rewrite(demos, f"{key}/left/force", lambda n: np.ones((n, 3)))
    found = source.load(str(demos), Options(observation=("object", "distance", "left/force")))
    assert found.spec.parts == (("object", 10), ("distance", 1), ("left/force", 3))
    assert found.episodes[0].observations["distance"].shape == (6, 1)


def test_numbers_of_samples_that_never_fit_are_ignored(demos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(demos, "a") as file:
        for demo in file["data"].values():
            demo.attrs["num_samples"] = 99
    assert "num_samples is not the number of rows in any demonstration" in notes(demos, capsys)


def test_next_obs_that_always_lacks_a_part_is_not_used(demos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(demos, "next_obs/object", None)
    assert "next_obs has no object" in notes(demos, capsys)
    assert all(len(e.observations["object"]) == len(e) for e in source.load(str(demos)).episodes)


def test_files_without_rewards_are_good_for_cloning(demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(demos, "rewards", None)
    flat = d4rl(tmp_path / "a.hdf5", [], [7], 8)
    with h5py.File(flat, "a") as file:
        del file["rewards"]
    for path in (demos, flat, npz(tmp_path, rewards=None)):
        assert "rewards are unknown and set to 0" in (said := notes(path, capsys)) and said.count("data.success=last") == 1
        assert all(not e.terminated and e.success is None for e in source.load(str(path)).episodes)


# Small settings


def test_episodes_of_a_known_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = d4rl(tmp_path / "halfcheetah_medium-v0.hdf5", [13], [], 30, size=17)
    with h5py.File(path, "a") as file:
        del file["timeouts"]
    found = source.load(str(path), Options(episode_steps=10))
    assert [len(e) for e in found.episodes] == [10, 4, 10, 6]  # a terminal state begins a new one, too
    assert [e.terminated for e in found.episodes] == [False, True, False, False]
    assert "as data.episode_steps says" in notes(path, capsys, "data.episode_steps=10", "data.match=off")


def test_short_episodes_are_left_out_when_asked(tmp_path: Path) -> None:
    path = d4rl(tmp_path / "a.hdf5", [0, 1], [7], 8)
    found = source.load(str(path), Options(min_steps=2))
    assert [len(e) for e in found.episodes] == [6] and "left out 2 episodes of less than 2 steps" in found.notes


def test_parts_are_chosen_for_info_too(demos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "info", str(demos), "--json", "--set", "data.observation=[object]", "--set", "data.demos=train"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["observation"] == {"object": 10} and facts["episodes"] == 1


def test_bounds_of_the_environment_instead_of_the_datas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scale = {"obs_min": -np.ones(5), "obs_max": np.ones(5), "action_min": np.array([-0.4, -0.9]), "action_max": np.array([0.7, 0.8])}
    np.savez(tmp_path / "normalization.npz", **scale)
    path = npz(tmp_path)
    own, wide = source.load(str(path)), source.load(str(path), Options(action_bounds=(-1.0, 1.0)))
    assert own.spec.action_high == (0.7, 0.8) and (wide.spec.action_low, wide.spec.action_high) == ((-1.0, -1.0), (1.0, 1.0))
    np.testing.assert_array_equal(own.episodes[0].actions, wide.episodes[0].actions)
    assert "--set 'data.action_bounds=[-1, 1]'" in notes(path, capsys)


def test_absolute_targets_have_the_datas_own_bounds(demos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(demos, "a") as file:
        for demo in file["data"].values():
            demo["actions"][:, 0] += 4
    found = source.load(str(demos), Options(action_bounds="data"))
    actions = np.concatenate([e.actions for e in found.episodes])
    np.testing.assert_array_equal([found.spec.action_low, found.spec.action_high], [actions.min(0), actions.max(0)])
    assert np.abs(found.spec.to_unit(actions)).max() <= 1 + 1e-6
    assert "action bounds are the data's own" in notes(demos, capsys, "data.action_bounds=data")
