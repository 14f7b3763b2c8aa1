"""Play data made here: OGBench's layout, the same file from the same seed, and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowft.data import ogbench_play
from flowft.errors import DataError, MissingExtra, UsageError

ogbench = pytest.importorskip("ogbench")


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("play") / "cube-single-play-v0.npz"
    assert ogbench_play.generate("cube-single-play", path, steps=2200, seed=1, progress=False) == path
    return path


def test_the_layout_is_ogbench_s_own(cubes: Path) -> None:
    for path, ends in [(cubes, [1000, 2001, 2202]), (cubes.with_name("cube-single-play-v0-val.npz"), [220])]:
        with np.load(path) as file:
            rows = ends[-1] + 1
            assert {key: (file[key].shape, str(file[key].dtype)) for key in file.files} == {
                "observations": ((rows, 28), "float32"), "actions": ((rows, 5), "float32"), "terminals": ((rows,), "bool"),
                "qpos": ((rows, 21), "float32"), "qvel": ((rows, 20), "float32"),
            }  # fmt: skip
            assert np.flatnonzero(file["terminals"]).tolist() == ends
            assert np.abs(file["actions"]).max() <= 1 and all(np.isfinite(file[key]).all() for key in file.files)


def test_ogbench_loads_it_and_its_task_is_reached_in_it(cubes: Path) -> None:
    _, train, validation = ogbench.make_env_and_datasets("cube-single-play-singletask-v0", dataset_path=str(cubes))
    assert len(train["actions"]) == 2200 and len(validation["actions"]) == 220
    assert set(np.unique(train["rewards"])) == {-1.0, 0.0}  # somewhere in the play the cube lies at the task's target


def test_the_arm_moves_the_cube_from_place_to_place(cubes: Path) -> None:
    with np.load(cubes) as file:
        cube, ends = file["qpos"][:1001, 14:17], file["terminals"]
        assert not ends[:1000].any()
    resting = cube[cube[:, 2] < 0.025][:, :2]
    places = np.unique(np.round(resting / 0.05), axis=0)
    assert len(places) >= 4 and cube[:, 2].max() > 0.1


def test_actions_lead_from_each_state_to_the_next(cubes: Path) -> None:
    """Put the simulator into a stored state, take the stored action: the next stored state follows, closely."""
    from flowft.envs import base

    env = base.make(base.parse("cube-single-play-singletask-v0"))
    env.reset(seed=0)
    simulator = env.unwrapped
    with np.load(cubes) as file:
        for row in range(5, 60, 11):  # on the way down to the cube: no contacts, which a state does not hold
            simulator.set_state(np.float64(file["qpos"][row]), np.float64(file["qvel"][row]))  # type: ignore[attr-defined]
            assert np.abs(simulator.compute_observation()[:18] - file["observations"][row][:18]).max() < 0.02  # type: ignore[attr-defined]
            env.step(file["actions"][row])
            moved = np.abs(file["qpos"][row + 1][:6] - file["qpos"][row][:6]).max()
            missed = np.abs(simulator.data.qpos[:6] - file["qpos"][row + 1][:6]).max()  # type: ignore[attr-defined]
            assert missed < 0.1 * moved + 1e-3


def test_the_same_seed_gives_the_same_file_whoever_makes_it(tmp_path: Path, cubes: Path) -> None:
    again = ogbench_play.generate("cube-single-play-v0", tmp_path / "again.npz", steps=2200, seed=1, workers=2, progress=False)
    assert again.read_bytes() == cubes.read_bytes()
    assert (tmp_path / "again-val.npz").read_bytes() == cubes.with_name("cube-single-play-v0-val.npz").read_bytes()
    other = ogbench_play.generate("cube-single-play", tmp_path / "other.npz", steps=200, seed=4, progress=False)
    with np.load(other) as a, np.load(cubes) as b:
        assert not np.array_equal(a["observations"][:200], b["observations"][:200])


@pytest.mark.parametrize(("name", "width"), [("cube-double-play", 37), ("scene-play", 40), ("puzzle-3x3-play", 55)])
def test_other_scenes(tmp_path: Path, name: str, width: int) -> None:
    path = ogbench_play.generate(name, tmp_path / f"{name}-v0.npz", steps=300, seed=5, progress=False)
    _, train, _ = ogbench.make_env_and_datasets(f"{name}-singletask-v0", dataset_path=str(path), add_info=True)
    assert train["observations"].shape == (300, width)
    assert ("button_states" in train) == (not name.startswith("cube"))


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(DataError, match="cannot be written: No space left"):
        ogbench_play.generate("cube-single-play", tmp_path / "a.npz", steps=200, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_generated_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="did you mean 'cube-single-play'"):
        ogbench_play.generate("cube-sinle-play", tmp_path / "a.npz")
    with pytest.raises(UsageError, match="too few"):
        ogbench_play.generate("cube-single-play", tmp_path / "a.npz", steps=10)
    with pytest.raises(UsageError, match=r"does not end in \.npz"):
        ogbench_play.generate("cube-single-play", tmp_path / "a")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"flowft\[ogbench\]"):
        ogbench_play.generate("cube-single-play", tmp_path / "a.npz")
