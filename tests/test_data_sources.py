"""D4RL, OGBench and DPPO layouts: episodes, their ends, their last states, their environments."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowft.cli.main import run
from flowft.data import ogbench_npz, source
from flowft.data.columns import segments
from flowft.data.d4rl_scores import normalized_score
from flowft.data.source import Options
from flowft.errors import DataError, UsageError

REAL = os.environ.get("FLOWFT_REAL_DATA")
needs_real = pytest.mark.skipif(REAL is None, reason="FLOWFT_REAL_DATA is not set: no real excerpts")


def d4rl(path: Path, terminals: list[int], timeouts: list[int], rows: int, following: bool = False, size: int = 11) -> Path:
    """A D4RL file of `rows` steps whose observation t is t everywhere; `following`: with next_observations."""
    with h5py.File(path, "w") as file:
        file["observations"] = np.tile(np.arange(rows, dtype=np.float32)[:, None], (1, size))
        file["actions"] = np.random.default_rng(0).uniform(-1, 1, (rows, 3))
        file["rewards"] = np.ones((rows, 1))
        file["terminals"] = np.isin(np.arange(rows), terminals).astype(np.float64)
        file["timeouts"] = np.isin(np.arange(rows), timeouts)
        if following:
            file["next_observations"] = file["observations"][()] + 0.5
        file["metadata/algorithm"] = np.bytes_(b"SAC")
    return path


def npz(folder: Path, lengths: tuple[int, ...] = (4, 3), **changes: Any) -> Path:
    rows = sum(lengths)
    generator = np.random.default_rng(0)
    arrays = {
        "states": generator.uniform(-1, 1, (rows, 5)), "actions": generator.uniform(-1, 1, (rows, 2)),
        "rewards": np.isin(np.arange(rows), np.cumsum(lengths) - 1).astype(float), "terminals": np.zeros(rows, bool),
        "traj_lengths": np.array(lengths), **changes,
    }  # fmt: skip
    np.savez(folder / "train.npz", **{key: value for key, value in arrays.items() if value is not None})
    return folder / "train.npz"


def ogbench(path: Path, lengths: tuple[int, ...] = (5, 4)) -> Path:
    """Trajectories of so many STATES each."""
    rows = sum(lengths)
    np.savez(
        path, observations=np.arange(rows, dtype=np.float32)[:, None].repeat(3, 1),
        actions=np.random.default_rng(0).uniform(-1, 1, (rows, 2)), terminals=np.isin(np.arange(rows), np.cumsum(lengths) - 1),
    )  # fmt: skip
    return path


# D4RL


def test_without_next_observations_the_last_action_stays_and_its_next_state_is_unknown(tmp_path: Path) -> None:
    dataset = source.load(str(d4rl(tmp_path / "hopper_medium-v2.hdf5", terminals=[3], timeouts=[8], rows=12)))
    assert [len(e) for e in dataset.episodes] == [4, 5, 3] and dataset.steps == 12
    assert [e.terminated for e in dataset.episodes] == [True, False, False]
    assert [len(e.observations["observation"]) for e in dataset.episodes] == [4, 5, 3]
    assert any("ends in the middle of an episode" in note for note in dataset.notes)


def test_next_observations_give_the_state_after_the_last_action(tmp_path: Path) -> None:
    dataset = source.load(str(d4rl(tmp_path / "hopper_medium-v2.hdf5", [3], [7], 8, following=True)))
    first = dataset.episodes[0].observations["observation"]
    np.testing.assert_array_equal(first[:, 0], [0, 1, 2, 3, 3.5])
    assert dataset.env is not None and (dataset.env.family, dataset.env.id) == ("gymnasium", "Hopper-v5")


def test_a_single_row_after_the_last_mark_is_where_the_writer_stopped(tmp_path: Path) -> None:
    assert [len(e) for e in source.load(str(d4rl(tmp_path / "a.hdf5", [3], [7], 9))).episodes] == [4, 4]


def test_early_files_without_timeouts(tmp_path: Path) -> None:
    path = d4rl(tmp_path / "a.hdf5", [3], [], 8)
    with h5py.File(path, "a") as file:
        del file["timeouts"]
        with pytest.raises(DataError, match="timeouts: missing, and without next_observations"):
            source.load(str(path))
        following = np.r_[np.arange(1, 8), 99.0]
        following[5] = 50  # row 6 is not its successor: a reset happened
        file["next_observations"] = np.tile(following[:, None], (1, 11))
    assert [len(e) for e in source.load(str(path)).episodes] == [4, 2, 2]


def test_observations_of_no_known_size_have_no_environment(tmp_path: Path) -> None:
    dataset = source.load(str(d4rl(tmp_path / "hopper_medium-v2.hdf5", [3], [7], 8, size=12)))
    assert dataset.env is None and any("--env" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("key", "values", "says"),
    [("rewards", np.ones(7), "rewards: 7 rows, but actions has 8"), ("terminals", None, "terminals: missing (there are: actions,"),
     ("actions", np.full((8, 3), np.nan), "actions: NaN value in row 0"), ("observations", np.zeros((0, 11)), "observations: 0 rows")],
)  # fmt: skip
def test_d4rl_columns_that_do_not_fit(tmp_path: Path, key: str, values: Any, says: str) -> None:
    path = d4rl(tmp_path / "a.hdf5", [3], [7], 8)
    with h5py.File(path, "a") as file:
        del file[key]
        if values is not None:
            file[key] = values
    with pytest.raises(DataError) as raised:
        source.load(str(path))
    assert f"{path}:{says}" in raised.value.what


def test_a_bad_row_is_named_by_its_place_in_the_file(tmp_path: Path) -> None:
    path = d4rl(tmp_path / "a.hdf5", [3], [7], 8)
    with h5py.File(path, "a") as file:
        file["actions"][5, 1] = 2.5
    with pytest.raises(DataError, match=r"actions: 1 values outside \[-1, 1\] \(largest 2.5 at row 5\)"):
        source.load(str(path))


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_segments_cover_all_rows_once_and_end_at_the_marks(marks: list[bool]) -> None:
    spans = segments(np.array(marks))
    assert [row for start, stop in spans for row in range(start, stop)] == list(range(len(marks)))
    assert all(marks[stop - 1] or stop == len(marks) for _, stop in spans)
    assert not any(marks[row] for start, stop in spans for row in range(start, stop - 1))


def test_normalised_scores() -> None:
    assert normalized_score("d4rl/hopper-medium-v2", 3234.3) == pytest.approx(100)
    assert normalized_score("AdroitHandDoor-v1", -56.512833) == pytest.approx(0)
    assert normalized_score("maze2d-umaze-dense-v1", 68.537689) == pytest.approx(0)  # not maze2d-umaze's row
    assert normalized_score("antmaze-large-play-v2", 0.5) == pytest.approx(50)
    with pytest.raises(UsageError, match="did you mean 'hopper'"):
        normalized_score("hoper", 1)


@needs_real
def test_a_complete_human_d4rl_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "info", f"{REAL}/d4rl/door-human-v1.full.hdf5", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["source"], facts["episodes"], facts["steps"]) == ("d4rl", 25, 6729)
    assert (facts["observation_dim"], facts["action_dim"], facts["successes"]) == (39, 28, None)
    assert facts["action_low"] == [-1] * 28 and facts["env"]["id"] == "AdroitHandDoor-v1" and facts["env"]["version"] == "v1"
    assert facts["reward_sum"] == pytest.approx(20076.56, abs=0.1)


@needs_real
@pytest.mark.parametrize("path", sorted(Path(str(REAL)).glob("d4rl/*.hdf5")) if REAL else [], ids=lambda path: path.stem)
def test_real_excerpts_of_all_versions_are_sound(path: Path) -> None:
    dataset = source.load(str(path))
    assert dataset.source == "d4rl"
    with h5py.File(path) as file:
        assert dataset.steps == len(file["actions"])


# DPPO


def test_npz_without_normalization_stays_scaled(tmp_path: Path) -> None:
    dataset = source.load(str(npz(tmp_path)))
    assert [len(e) for e in dataset.episodes] == [4, 3] and dataset.spec.action_low == (-1, -1)
    assert all(e.success and e.terminated and len(e.observations["observation"]) == len(e) for e in dataset.episodes)


def test_npz_is_unscaled_with_the_normalization_beside_it(tmp_path: Path) -> None:
    low, high = np.array([-0.3, 2.0]), np.array([0.7, 2.0])  # the second value never moves
    path = npz(tmp_path, actions=np.c_[np.linspace(-1, 1, 7), -np.ones(7)])
    np.savez(tmp_path / "normalization.npz", obs_min=-2 * np.ones(5), obs_max=2 * np.ones(5), action_min=low, action_max=high)
    dataset = source.load(str(tmp_path))  # by its folder
    assert dataset.path == str(path)
    np.testing.assert_allclose(dataset.spec.action_low, [-0.3, 1.5], atol=1e-6)
    actions = np.concatenate([e.actions for e in dataset.episodes])
    np.testing.assert_allclose(actions[[0, -1]], [[-0.3, 2], [0.7, 2]], atol=1e-5)
    assert np.abs(dataset.spec.to_unit(actions)).max() <= 1 + 1e-5


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"traj_lengths": np.array([4, 4])}, "traj_lengths: sums to 8, but states has 7 rows"),
     ({"traj_lengths": None}, "traj_lengths: missing"),
     ({"traj_lengths": np.array([6, 1])}, "one step only"),
     ({"traj_lengths": np.array([7, 0])}, "the episode is empty"), ({"states": np.full((7, 5), np.nan)}, "states: NaN value in row 0"),
     ({"states": np.array([{}] * 7)}, "not a whole npz file")],
)  # fmt: skip
def test_npz_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as raised:
        source.load(str(npz(tmp_path, **changes)))
    assert says in raised.value.what


@needs_real
def test_the_processed_file_holds_the_same_demonstrations_as_the_original() -> None:
    processed, original = source.load(f"{REAL}/dppo_lift_ph"), source.load(f"{REAL}/robomimic/lift_ph_low_dim.3demos.hdf5")
    assert [len(e) for e in processed.episodes] == [len(e) for e in original.episodes]
    for mine, theirs in zip(processed.episodes, original.episodes, strict=True):
        np.testing.assert_allclose(mine.actions, theirs.actions, atol=1e-5)
    assert all(e.success for e in processed.episodes)


# OGBench


def test_the_row_of_a_last_state_is_no_step(tmp_path: Path) -> None:
    dataset = source.load(str(ogbench(tmp_path / "mine.npz")))
    assert dataset.source == "ogbench" and [len(e) for e in dataset.episodes] == [4, 3]
    np.testing.assert_array_equal(dataset.episodes[1].observations["observation"][:, 0], [5, 6, 7, 8])
    assert dataset.env is None and dataset.episodes[0].success is None


@given(st.lists(st.booleans(), min_size=3, max_size=30))
def test_a_trajectory_is_cut_where_the_task_is_solved(solved: list[bool]) -> None:
    pieces, left_out = ogbench_npz._cut(np.array(solved))
    actions = len(solved) - 1
    used = [t for first, last in pieces for t in range(first, last)]
    assert len(used) == len(set(used)) == actions - left_out
    for first, last in pieces:
        assert not any(solved[first : last - 1])  # only the last action may be of a solved state: it ends the episode
        assert solved[last - 1] or last == actions
    if not any(solved[:actions]):
        assert pieces == [(0, actions)]


def test_generated_play_has_the_rewards_and_ends_of_the_environment(tmp_path: Path) -> None:
    """Rows put back into the simulator and stepped there give the reward and the end that the dataset says."""
    ogbench_package = pytest.importorskip("ogbench")
    import mujoco

    path = tmp_path / "cube-single-play-v0.npz"
    assert run(["data", "generate", "ogbench/cube-single-play", "--steps", "1500", "--seed", "4", "--out", str(path)]) == 0
    name = "cube-single-play-singletask-task1-v0"
    dataset = ogbench_npz.read(path, f"ogbench/{name}", source.Problems(), Options())
    assert dataset.env is not None and (dataset.env.family, dataset.env.id) == ("ogbench", name)
    stored = np.load(path)
    env = ogbench_package.make_env_and_datasets(name, env_only=True)
    env.reset(seed=0)
    inner = env.unwrapped
    for episode in dataset.episodes:
        (begin, *_) = np.flatnonzero((stored["observations"] == episode.observations["observation"][0]).all(axis=1))
        for t in {0, len(episode) // 2, len(episode) - 2, len(episode) - 1}:
            inner._data.qpos[:], inner._data.qvel[:] = stored["qpos"][begin + t], stored["qvel"][begin + t]
            mujoco.mj_forward(inner._model, inner._data)
            inner.post_step()
            _, reward, terminated, *_ = inner.step(stored["actions"][begin + t])
            assert reward == episode.rewards[t]
            assert terminated == (episode.terminated and t == len(episode) - 1)
    env.close()
