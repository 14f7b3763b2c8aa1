"""robomimic's layout: what is read from a sound file, and one sentence for everything that can be wrong with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowft.cli.main import run
from flowft.data import source
from flowft.data.source import Options, Problems
from flowft.errors import DataError

SIZES = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
ENV_ARGS = {"env_name": "Lift", "env_version": "1.5.1", "type": 1, "env_kwargs": {"robots": ["Panda"]}}
Change = Callable[[h5py.File], object]


def write(path: Path, lengths: dict[str, int], next_obs: bool = True, env_args: bool = True, sizes: dict[str, int] = SIZES) -> Path:
    """A robomimic file with one demo for each name; the last step of each succeeds."""
    generator = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(lengths.values())
        if env_args:
            data.attrs["env_args"] = json.dumps(ENV_ARGS)
        for name, steps in lengths.items():
            demo = data.create_group(name)
            demo.attrs["num_samples"] = steps
            demo["actions"] = generator.uniform(-1, 1, (steps, 7))
            demo["rewards"] = np.r_[np.zeros(steps - 1), 1.0] if steps else np.zeros(0)
            demo["dones"] = np.zeros(steps, dtype=np.int64)
            for part, size in sizes.items():
                states = generator.normal(size=(steps + 1, size))
                demo[f"obs/{part}"] = states[:-1]
                if next_obs:
                    demo[f"next_obs/{part}"] = states[1:]
        file["mask/train"] = np.array([name.encode() for name in list(lengths)[:1]])
    return path


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write(tmp_path / "lift.hdf5", {"demo_0": 5, "demo_2": 4, "demo_10": 6})


def test_a_sound_file_is_read_as_it_lies(sound: Path) -> None:
    dataset = source.load(str(sound))
    assert [episode.name for episode in dataset.episodes] == ["data/demo_0", "data/demo_2", "data/demo_10"]  # by number, not as text
    assert dataset.steps == 15
    assert dataset.spec.parts == tuple(SIZES.items())
    assert dataset.env is not None and (dataset.env.id, dataset.env.max_steps) == ("Lift", 300)
    assert dataset.env.versions == {"robosuite": "1.5.1"}
    assert all(episode.terminated and episode.success for episode in dataset.episodes)
    with h5py.File(sound) as file:
        demo = file["data/demo_2"]
        stored = np.concatenate([demo["obs/object"][()], demo["next_obs/object"][-1:]])
        np.testing.assert_array_equal(dataset.episodes[1].observations["object"], stored)
        np.testing.assert_array_equal(dataset.episodes[1].actions, demo["actions"][()])


def test_without_next_obs_there_is_no_row_for_the_last_state(tmp_path: Path) -> None:
    dataset = source.load(str(write(tmp_path / "a.hdf5", {"demo_0": 5}, next_obs=False)))
    assert dataset.episodes[0].observations["object"].shape == (5, 10)


def test_dones_mark_no_end_and_a_demo_that_ends_unsolved_is_cut_short(sound: Path) -> None:
    with h5py.File(sound, "a") as file:
        file["data/demo_0/dones"][:] = [0, 1, 1, 1, 1]
        file["data/demo_0/rewards"][:] = [0, 1, 1, 0, 0]
    episode = source.load(str(sound)).episodes[0]
    assert len(episode) == 5 and not episode.terminated and episode.success


def test_two_robots_come_before_the_objects(tmp_path: Path) -> None:
    arms = {part.replace("robot0", robot): size for robot in ("robot1", "robot0") for part, size in SIZES.items() if part != "object"}
    dataset = source.load(str(write(tmp_path / "transport.hdf5", {"demo_0": 3}, sizes={"object": 41, **arms})))
    names = [name for name, _ in dataset.spec.parts]
    assert names[:3] == ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    assert names[3] == "robot1_eef_pos" and names[-1] == "object"
    assert dataset.spec.observation_dim == 59


def test_the_environment_is_inferred_from_the_id_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFT_DATASETS", str(tmp_path))
    home = tmp_path / "robomimic" / "can" / "ph"
    home.mkdir(parents=True)
    path = write(home / "low_dim.hdf5", {"demo_0": 3}, env_args=False)
    by_id, by_path = source.load("robomimic/can"), source.load(str(path))
    assert by_id.env is not None and by_id.env.id == "PickPlaceCan"
    assert by_path.env is None and any("--env" in note for note in by_path.notes)


def test_masks_limits_and_skips_choose_demos(sound: Path) -> None:
    def names(**options: object) -> list[str]:
        return [episode.name[5:] for episode in source.load(str(sound), Options(**options)).episodes]  # type: ignore[arg-type]

    assert names(demos="train") == ["demo_0"]
    assert names(limit=2) == ["demo_0", "demo_2"]
    assert names(skip=("demo_2",)) == ["demo_0", "demo_10"]
    with pytest.raises(DataError, match="no such mask.*train"):
        names(demos="trian")
    with pytest.raises(DataError, match="demo_3.*not in the file.*did you mean"):
        names(skip=("demo_3",))


def test_actions_are_clipped_only_when_asked_and_counted(sound: Path) -> None:
    with h5py.File(sound, "a") as file:
        file["data/demo_2/actions"][1, :2] = [3.75, -2]
    with pytest.raises(DataError, match=r"data/demo_2/actions: 2 values outside \[-1, 1\] \(largest 3.75 at row 1\)"):
        source.load(str(sound))
    dataset = source.load(str(sound), Options(clip_actions=True))
    assert np.abs(dataset.episodes[1].actions).max() == 1
    assert "clipped 2 action values to the declared range" in dataset.notes


def test_duplicates_are_refused_dropped_or_kept(sound: Path) -> None:
    with h5py.File(sound, "a") as file:
        file.copy("data/demo_2", "data/demo_11")
    with pytest.raises(DataError, match="data/demo_11: the same as data/demo_2"):
        source.load(str(sound))
    assert len(source.load(str(sound), Options(duplicates="drop")).episodes) == 3
    assert len(source.load(str(sound), Options(duplicates="keep")).episodes) == 4


def replace(key: str, values: object) -> Change:
    def change(file: h5py.File) -> None:
        del file[key]
        file[key] = values

    return change


def put(key: str, index: object, value: float) -> Change:
    return lambda file: file[key].__setitem__(index, value)


def remove(key: str) -> Change:
    return lambda file: file.__delitem__(key)


# what was done to the file -> what the sentence must say
BROKEN: dict[str, tuple[Change, str]] = {
    "no actions": (remove("data/demo_2/actions"), "data/demo_2/actions: missing"),
    "no rewards": (remove("data/demo_2/rewards"), "data/demo_2/rewards: missing"),
    "no observations": (remove("data/demo_2/obs"), "data/demo_2/obs: missing"),
    "obs is an array": (replace("data/demo_2/obs", np.zeros(4)), "data/demo_2/obs: missing"),
    "no object": (remove("data/demo_2/obs/object"), "data/demo_2/obs/object: missing (there are: robot0_eef_pos"),
    "half of next_obs": (remove("data/demo_2/next_obs/object"), "data/demo_2/next_obs/object: missing"),
    "short actions": (replace("data/demo_2/actions", np.zeros((3, 7))), "data/demo_2/rewards: 4 rows, but data/demo_2/actions has 3"),
    "short observations": (replace("data/demo_2/obs/object", np.zeros((2, 10))), "data/demo_2/obs/object: 2 rows"),
    "short next_obs": (replace("data/demo_2/next_obs/object", np.zeros((2, 10))), "data/demo_2/next_obs/object: 2 rows"),
    "NaN observation": (put("data/demo_2/obs/object", (1, 3), np.nan), "data/demo_2/obs/object: NaN value in row 1"),
    "infinite reward": (put("data/demo_2/rewards", 2, np.inf), "data/demo_2/rewards: infinite value in row 2"),
    "NaN action": (put("data/demo_2/actions", (0, 0), np.nan), "data/demo_2/actions: NaN value in row 0"),
    "float32 overflow": (put("data/demo_2/obs/object", (1, 3), 1e300), "data/demo_2/obs/object: infinite value in row 1"),
    "flat actions": (replace("data/demo_2/actions", np.zeros(4)), "data/demo_2/actions: has shape (4,), not (steps, size)"),
    "matrix of rewards": (replace("data/demo_2/rewards", np.zeros((4, 2))), "data/demo_2/rewards: has shape (4, 2)"),
    "text actions": (replace("data/demo_2/actions", np.full((4, 7), b"x")), "data/demo_2/actions: holds |S1, not numbers"),
    "actions is a group": (lambda f: remove("data/demo_2/actions")(f) or f.create_group("data/demo_2/actions"), "data/demo_2/actions"),
    "images": (
        lambda f: [replace(f"data/demo_2/{k}/object", np.zeros((4, 8, 8, 3), "u1"))(f) for k in ("obs", "next_obs")],
        "data/demo_2/obs/object: shape (4, 8, 8, 3): images are not read yet",
    ),
    "next_obs of other width": (
        replace("data/demo_2/next_obs/object", np.zeros((4, 9))),
        "data/demo_2/next_obs/object: has shape (4, 9), but data/demo_2/obs/object has (4, 10)",
    ),
    "out of range": (put("data/demo_2/actions", (2, 0), 3.75), "data/demo_2/actions: 1 values outside [-1, 1] (largest 3.75 at row 2)"),
    "absent demo in mask": (replace("mask/train", np.array([b"demo_0", b"demo_7"])), "mask/train: names 1 demos that are not in the file"),
    "duplicate": (lambda f: f.copy("data/demo_2", "data/demo_11"), "data/demo_11: the same as data/demo_2"),
    "env_args is no JSON": (lambda f: f["data"].attrs.__setitem__("env_args", "{"), "data: the attribute env_args is not JSON"),
    "num_samples": (
        lambda f: f["data/demo_2"].attrs.__setitem__("num_samples", 9),
        "data/demo_2: num_samples is 9, but actions has 4 rows",
    ),
    "demo is an array": (replace("data/demo_2", np.zeros(3)), "data/demo_2: not a group of arrays"),
    "other dimensions": (
        lambda f: [replace(f"data/demo_2/{k}/object", np.zeros((4, 14)))(f) for k in ("obs", "next_obs")],
        "data/demo_2: object has 14 values, not 10",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("verb", ["load", "check"])
def test_a_broken_file_gives_one_sentence_with_its_place(sound: Path, name: str, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    change, says = BROKEN[name]
    with h5py.File(sound, "a") as file:
        change(file)
    if verb == "load":
        with pytest.raises(DataError) as raised:
            source.load(str(sound))
        assert raised.value.what.startswith(str(sound)) and "\n" not in raised.value.what
        assert says in raised.value.what
        assert str(raised.value.fix).startswith(f"flowft data check {sound} --set ")
    else:
        assert run(["data", "check", str(sound)]) == 1
        out, err = capsys.readouterr()
        assert says in out and "Traceback" not in out + err


@pytest.mark.parametrize(("steps", "says"), [(0, "the episode is empty"), (1, "the episode has one step only")])
def test_empty_and_one_step_demos_are_refused(tmp_path: Path, steps: int, says: str) -> None:
    path = write(tmp_path / "a.hdf5", {"demo_0": 5, "demo_1": steps})
    with pytest.raises(DataError, match=f"data/demo_1/actions: {says}") as raised:
        source.load(str(path))
    assert raised.value.fix == f"flowft data check {path} --set data.min_steps=2"
    assert source.load(str(path), Options(min_steps=2)).notes[-1] == "left out 1 episodes of less than 2 steps"
    assert len(source.load(str(path), Options(skip=("demo_1",))).episodes) == 1  # the fix mends it


@pytest.mark.parametrize(
    ("name", "says"),
    [("empty", "is empty (0 bytes)"), ("text", "neither HDF5 nor npz"), ("truncated", "truncated"), ("folder", "none of the layouts"),
     ("no data", "none of the layouts"), ("pointer", "Git LFS pointer"), ("absent", "no file"), ("no demos", "no demo in the file")],
)  # fmt: skip
def test_files_that_are_no_dataset(sound: Path, tmp_path: Path, name: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.hdf5"
    contents = {"empty": b"", "text": b"hello there", "truncated": sound.read_bytes()[:-5000], "pointer": b"version https://git-lfs"}
    if name in contents:
        path.write_bytes(contents[name])
    elif name == "folder":
        path.mkdir()
    elif name != "absent":
        with h5py.File(path, "w") as file:
            file.create_group("data" if name == "no demos" else "other")
    for command in ("info", "check"):
        assert run(["data", command, str(path)]) == 1
        out, err = capsys.readouterr()
        assert says in out + err and "Traceback" not in out + err


def test_check_lists_every_problem(sound: Path) -> None:
    with h5py.File(sound, "a") as file:
        file["data/demo_0/obs/object"][2, 0] = np.nan
        file["data/demo_2/actions"][0, 0] = 2
        file["data/demo_10/rewards"][0] = np.inf
    problems = Problems(collect=True)
    with pytest.raises(DataError):
        source.load(str(sound), problems=problems)
    assert [problem.where.removeprefix(f"{sound}:") for problem in problems.found] == [
        "data/demo_0/obs/object", "data/demo_2/actions", "data/demo_10/rewards",
    ]  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0.01, 0.99), flips=st.lists(st.floats(0, 0.999), max_size=3))
def test_damaged_bytes_never_end_in_a_traceback(tmp_path: Path, cut: float, flips: list[float]) -> None:
    """Truncated anywhere and with bytes turned over: read as it is, or refused in a sentence."""
    whole = bytearray(write(tmp_path / "whole.hdf5", {"demo_0": 5, "demo_1": 3}).read_bytes())
    broken = tmp_path / "broken.hdf5"
    broken.write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(DataError):
        source.load(str(broken))
    for place in flips:
        whole[int(len(whole) * place)] ^= 0xFF
    broken.write_bytes(whole)
    try:
        assert source.load(str(broken)).steps > 0
    except DataError as error:
        assert "\n" not in error.what


def test_in_a_process_of_its_own_an_error_is_two_lines(sound: Path) -> None:
    with h5py.File(sound, "a") as file:
        file["data/demo_2/actions"][0, 0] = np.nan
    done = subprocess.run([sys.executable, "-m", "flowft", "data", "info", str(sound)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    what, fix = done.stderr.splitlines()
    assert what == f"error: {sound}:data/demo_2/actions: NaN value in row 0 (1 rows are not finite)"
    assert fix == f"fix: flowft data check {sound} --set 'data.skip=[demo_2]'"


REAL = os.environ.get("FLOWFT_REAL_DATA")


@pytest.mark.skipif(REAL is None, reason="FLOWFT_REAL_DATA is not set: no real excerpts")
def test_real_demonstrations(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(str(REAL)) / "robomimic"
    assert run(["data", "info", str(folder / "lift_ph_low_dim.3demos.hdf5"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["episodes"], facts["steps"], facts["observation_dim"], facts["successes"]) == (3, 174, 19, 3)
    assert facts["lengths"] == {"min": 57, "median": 58, "max": 59} and facts["env"]["id"] == "Lift"
    assert run(["data", "check", str(folder / "lift_ph_low_dim.3demos.hdf5")]) == 0
    assert "no problems" in capsys.readouterr().out
    assert run(["data", "check", str(folder / "lift_ph_low_dim.2demos.hdf5")]) == 1  # its masks name 200 demos
    assert "mask/train: names 179 demos" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "more", "package"),
    [("Libero_Kitchen_Tabletop_Manipulation", {"bddl_file": "a.bddl", "problem_name": "x"}, "LIBERO"), ("Coffee_D0", {}, "mimicgen"),
     ("MugCleanup_O1", {}, "mimicgen"), ("Lift", {}, None)],
)  # fmt: skip
def test_tasks_of_packages_that_are_not_installed(tmp_path: Path, task: str, more: dict[str, str], package: str | None) -> None:
    parts = {"ee_states": np.zeros((4, 6)), "gripper_states": np.arange(8.0).reshape(4, 2)}
    with h5py.File(tmp_path / "demo.hdf5", "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"type": 1, "env_name": task, "env_kwargs": {}, **more})
        for key, rows in {"actions": np.zeros((4, 7)), "rewards": np.arange(4) == 3, **{f"obs/{k}": v for k, v in parts.items()}}.items():
            file[f"data/demo_0/{key}"] = rows
        file["data/demo_0/obs/agentview_rgb"] = np.zeros((4, 8, 8, 3), np.uint8)
    dataset = source.load(str(tmp_path / "demo.hdf5"), Options(observation=("ee_states", "gripper_states")))
    assert (dataset.env is None) == (package is not None)
    assert any(f"is {package}'s, which is not installed" in note for note in dataset.notes) == (package is not None)
