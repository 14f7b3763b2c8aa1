"""`flowft data list | info | check | generate` as a user meets them."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest

from flowft import registry
from flowft.cli.main import run
from flowft.data import source
from flowft.errors import DataError


@pytest.fixture
def hopper(tmp_path: Path) -> Path:
    path = tmp_path / "hopper_medium-v2.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.random.default_rng(0).normal(size=(9, 11))
        file["actions"] = np.random.default_rng(1).uniform(-1, 1, (9, 3))
        file["rewards"] = np.full(9, 0.5)
        file["terminals"] = np.arange(9) == 3
        file["timeouts"] = np.arange(9) == 8
    return path


def test_info_has_all_keys(hopper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "info", str(hopper), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    expected = {
        "source": "d4rl", "format": "D4RL HDF5", "episodes": 2, "steps": 9, "observation_dim": 11, "action_dim": 3, "action_low": [-1] * 3,
        "action_high": [1] * 3, "reward_sum": 4.5, "successes": None, "lengths": {"min": 4, "median": 4.5, "max": 5},
    }  # fmt: skip
    assert {key: facts[key] for key in expected} == expected
    assert facts["env"] == {"family": "gymnasium", "id": "Hopper-v5", "version": "v5"}
    assert run(["data", "info", str(hopper)]) == 0
    assert "successes        unknown" in capsys.readouterr().out


def test_info_describes_what_check_refuses(hopper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(hopper, "a") as file:
        file["actions"][0, 0] = 3
    assert run(["data", "info", str(hopper), "--json"]) == 0
    assert "clipped 1 action values to the declared range" in json.loads(capsys.readouterr().out)["notes"]
    assert run(["data", "check", str(hopper)]) == 1
    out = capsys.readouterr().out
    assert f"{hopper}:actions: 1 values outside [-1, 1] (largest 3 at row 0); clipping changes 1 of 27 action values (3.7 %)" in out
    assert f"\n  fix: flowft data check {hopper} --set data.clip_actions=true\n" in out


def test_check_of_a_sound_file(hopper: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "check", str(hopper)]) == 0
    assert capsys.readouterr().out == "no problems: 2 episodes, 9 steps\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may read everything")
def test_a_file_that_may_not_be_read(hopper: Path) -> None:
    hopper.chmod(0)
    with pytest.raises(DataError, match="may not be read"):
        source.load(str(hopper))


def test_list_says_what_is_here(hopper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FLOWFT_DATASETS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "d4rl").mkdir()
    here = hopper.rename(tmp_path / "d4rl" / hopper.name)
    assert run(["data", "list", "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["d4rl/hopper-medium-v2"]["path"] == str(here)
    assert rows["robomimic/can/mh"] == {"id": "robomimic/can/mh", "path": None, "how": "flowft data download robomimic/can/mh"}
    assert rows["scripted/lift"]["how"] == rows["ogbench/cube-single-play"]["how"] == "made on first use"
    assert not (tmp_path / "scripted").exists()  # listing makes nothing
    assert run(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in registry.names("sources")) and "not v1.x, no images or videos" in listed
    assert run(["data", "info", "d4rl/hopper-medium-v2", "--json"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["info", "robomimic/can/mh"], 1, "flowft data download robomimic/can/mh"),
        (["info", "robomimic/cam/mh"], 2, "did you mean 'robomimic/can/mh'"),
        (["info", "robomimick/can"], 1, "did you mean 'robomimic'"),
        (["info", "d4rl/hoper-medium-v2"], 2, "did you mean 'd4rl/hopper-medium-v2'"),
        (["info", "ogbench/cube-sngle-play"], 2, "did you mean"),
        (["info", "minari/no/such-v0"], 1, "is not here"),
        (["info", "nowhere.hdf5"], 1, "no file 'nowhere.hdf5'"),
        (["generate", "scripted/lfit"], 2, "did you mean 'scripted/lift'"),
        (["generate", "robomimic/can/mh"], 2, "cannot be made here"),
        (["generate", "ogbench/cube-single-play", "--imperfection", "1"], 2, "have their own noise"),
        (["generate", "ogbench/cube-single-play", "--steps", "9", "--episodes", "9"], 2, "say the same thing twice"),
        (["generate", "scripted/lift", "--steps", "9"], 2, "counted in demonstrations"),
        (["generate", "scripted/lift", "--episodes", "0"], 2, "0 is not in the range"),
        (["generate", "scripted/lift", "--out", "."], 1, "is there already"),
        (["inf", "x"], 2, "No such command 'inf'"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FLOWFT_DATASETS", raising=False)
    assert run(["data", *arguments]) == code
    captured = capsys.readouterr()
    assert says in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_generated_demonstrations_are_sound_and_the_same_for_the_same_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("robosuite")
    paths = [tmp_path / f"{name}.hdf5" for name in ("a", "b")]
    for path in paths:
        assert run(["data", "generate", "scripted/lift", "--episodes", "2", "--seed", "3", "--imperfection", "0", "--out", str(path)]) == 0
        assert capsys.readouterr().out.strip() == str(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert run(["data", "check", str(paths[0])]) == 0
    assert "no problems: 2 episodes" in capsys.readouterr().out
    assert run(["data", "info", str(paths[0]), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["successes"] == 2 and facts["env"]["id"] == "Lift"


def test_what_is_there_already_is_replaced_by_what_is_offered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("robosuite")
    out = tmp_path / "my demos.hdf5"
    out.write_bytes(b"")
    assert run(["data", "generate", "scripted/lift", "--episodes", "1", "--imperfection", "0", "--out", str(out)]) == 1
    fix = capsys.readouterr().err.split("fix: ")[1].strip()
    assert fix == f"flowft data generate scripted/lift --episodes 1 --imperfection 0.0 --out '{out}' --force"
    assert run(shlex.split(fix)[1:]) == 0 and source.load(str(out)).episodes[0].success
