"""robosuite's own files of states and actions: observations and rewards rebuilt in the simulator."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest

from flowft.cli.main import run
from flowft.data import robosuite_demo, scripted, source
from flowft.data.robomimic import absolute
from flowft.data.source import Options, Problems
from flowft.errors import DataError

pytest.importorskip("robosuite")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A robomimic file, and what robosuite's collection script would have written of the same two episodes."""
    folder = tmp_path_factory.mktemp("demo")
    full, bare = scripted.generate("lift", folder / "full.hdf5", episodes=2, imperfection=0, progress=False), folder / "demo.hdf5"
    with h5py.File(full) as given, h5py.File(bare, "w") as file:
        arguments = json.loads(given["data"].attrs["env_args"])
        data = file.create_group("data")
        data.attrs["env"] = "Lift"
        data.attrs["env_info"] = json.dumps({"env_name": "Lift", **arguments["env_kwargs"]})
        data.attrs["repository_version"] = arguments["env_version"]
        for i in range(2):
            for key in ("states", "actions"):
                data[f"demo_{i + 1}/{key}"] = given[f"data/demo_{i}/{key}"][()]
    return full, bare


def test_rebuilt_observations_are_those_that_were_recorded(made: tuple[Path, Path]) -> None:
    full, bare = source.load(str(made[0])), source.load(str(made[1]))
    assert (bare.source, bare.env.id if bare.env else None, bare.spec) == ("robosuite", "Lift", full.spec)
    assert [e.name for e in bare.episodes] == ["data/demo_1", "data/demo_2"]
    for mine, given in zip(bare.episodes, full.episodes, strict=True):
        assert len(mine) == len(given) - 1  # the state after the last action was not stored
        for part, rows in mine.observations.items():
            np.testing.assert_allclose(rows, given.observations[part][:-1], atol=1e-9)
        np.testing.assert_array_equal(mine.rewards, given.rewards[:-1])
        assert not mine.terminated and mine.success is False


def test_the_task_may_stand_in_env_args_only(made: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "demo_v15.hdf5"
    with h5py.File(made[0]) as given, h5py.File(made[1]) as bare, h5py.File(path, "w") as file:
        bare.copy("data", file)
        for name in ("env", "env_info", "repository_version"):
            del file["data"].attrs[name]
        file["data"].attrs["env_args"] = given["data"].attrs["env_args"]
        file["data/demo_1/user_acting"] = np.ones(3)
    found, wanted = source.load(str(path)), source.load(str(made[1]))
    assert found.env == wanted.env and found.steps == wanted.steps


def test_what_follows_the_first_success_is_cut(made: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "demo.hdf5"
    with h5py.File(made[0]) as given, h5py.File(made[1]) as bare, h5py.File(path, "w") as file:
        bare.copy("data", file)
        demo = given["data/demo_0"]
        lifted = demo["states"][-1]  # time, 7 arm joints, 2 fingers, the cube's position, …
        lifted[12] += 0.05
        for key, rows in (("states", np.stack([lifted] * 3)), ("actions", np.zeros((3, 7)))):
            values = file[f"data/demo_1/{key}"][()]
            del file[f"data/demo_1/{key}"]
            file[f"data/demo_1/{key}"] = np.concatenate([values, rows])
        steps = len(demo["actions"])
    episode = source.load(str(path)).episodes[0]
    assert (len(episode), episode.terminated, episode.success) == (steps, True, True)
    assert episode.rewards.tolist() == [0.0] * (steps - 1) + [1.0]


def test_every_defect_is_named(made: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "demo.hdf5"
    with h5py.File(made[1]) as bare, h5py.File(path, "w") as file:
        bare.copy("data", file)
        for name, states in (("demo_3", np.zeros((9, 30))), ("demo_4", np.full((9, 32), np.nan)), ("demo_5", np.zeros((8, 32)))):
            file[f"data/{name}/states"], file[f"data/{name}/actions"] = states, np.zeros((9, 7))
    problems = Problems(collect=True)
    dataset = robosuite_demo.read(path, "demo", problems, Options())
    assert len(dataset.episodes) == 2
    said = [str(problem) for problem in problems.found]
    for place, what in (("demo_3/states", "32 values"), ("demo_4/states", "not finite"), ("demo_5", "8 rows")):
        assert any(place in line and what in line for line in said), (place, said)
    with pytest.raises(DataError, match="demo_3"):
        source.load(str(path))


def test_a_mask_chooses_demonstrations_and_one_that_is_not_there_is_refused(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "my demo.hdf5"
    with h5py.File(made[1]) as bare, h5py.File(path, "w") as file:
        bare.copy("data", file)
        file["mask/valid"] = np.array([b"demo_2"])
    assert [e.name for e in source.load(str(path), Options(demos="valid", success="last")).episodes] == ["data/demo_2"]
    assert source.load(str(path), Options(demos="valid", success="last")).episodes[0].terminated
    for given, setting in (("data.demos=train", "--set data.demos=all"), ("data.skip=[demo_9]", ""), ("data.observation=[foo]", "")):
        assert run(["data", "check", str(path), "--set", given]) == 1
        fix = capsys.readouterr().out.split("  fix: ")[1].strip()
        assert fix == f"flowft data check '{path}' {setting}".strip()
        assert run(shlex.split(fix)[1:]) == 0
        capsys.readouterr()


def test_absolute_targets_are_recognised_in_the_controllers_of_all_versions() -> None:
    assert absolute({"type": "OSC_POSE", "control_delta": False}) == "control_delta is false"
    assert absolute([{"control_delta": True}, {"control_delta": False}]) == "control_delta is false"
    assert absolute({"type": "BASIC", "body_parts": {"right": {"input_type": "absolute"}}}) == "input_type is absolute"
    assert absolute({"type": "BASIC", "body_parts": {"right": {"input_type": "delta"}}}) is None and absolute(None) is None


def test_an_id_that_is_not_there_says_where_it_would_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFT_DATASETS", str(tmp_path))
    with pytest.raises(DataError, match=str(tmp_path / "robosuite" / "mine" / "demo.hdf5")):
        robosuite_demo.locate("robosuite/mine")
    (tmp_path / "robosuite" / "mine").mkdir(parents=True)
    (tmp_path / "robosuite" / "mine" / "demo.hdf5").touch()
    assert robosuite_demo.known() == ["robosuite/mine"]


def test_a_real_file_of_human_demonstrations() -> None:
    root = os.environ.get("FLOWFT_REAL_DATA")
    path = Path(root or "") / "robosuite" / "lift_v1.4.1" / "demo.hdf5"
    if root is None or not path.is_file():
        pytest.skip("FLOWFT_REAL_DATA does not name a folder with robosuite/lift_v1.4.1/demo.hdf5")
    with pytest.raises(DataError, match=r"demo_1/actions: .* values outside \[-1, 1\]"):
        source.load(str(path))
    dataset = source.load(str(path), Options(clip_actions=True))
    assert [(episode.terminated, episode.rewards.sum()) for episode in dataset.episodes] == [(True, 1.0)] * 3
    assert dataset.spec.observation_dim == 19
    assert "made with robosuite 1.4.0" in dataset.notes[0]
