"""Every fix that the data layer offers is a command: pasted as it stands, it removes the problem. One fix a cause."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flowft.cli.main import run

from .test_data_minari import make_minari
from .test_data_robomimic import put, remove, replace, write
from .test_data_sources import d4rl, npz, ogbench

Make = Callable[[Path], tuple[Path, tuple[str, ...]]]  # the file, and settings to check it with


def robomimic(*changes: Callable[[h5py.File], object], sets: tuple[str, ...] = ()) -> Make:
    def make(folder: Path) -> tuple[Path, tuple[str, ...]]:
        path = write(folder / "three demos.hdf5", {"demo_0": 5, "demo_2": 4, "demo_10": 6})
        with h5py.File(path, "a") as file:
            for change in changes:
                change(file)
        return path, sets

    return make


def of_all(change: Callable[[str], Callable[[h5py.File], object]]) -> Callable[[h5py.File], object]:
    """The change made to each of the three demos."""
    return lambda file: [change(f"data/{name}")(file) for name in ("demo_0", "demo_2", "demo_10")]


def absolute(file: h5py.File) -> None:
    arguments = json.loads(file["data"].attrs["env_args"])
    arguments["env_kwargs"]["controller_configs"] = {"type": "OSC_POSE", "control_delta": False}
    file["data"].attrs["env_args"] = json.dumps(arguments)


def in_metres_and_radians(file: h5py.File) -> None:
    for name in file["data"]:
        file[f"data/{name}/actions"][:, 3:6] = np.random.default_rng(0).uniform(1.5, 3.1, (len(file[f"data/{name}/actions"]), 3))


def gone(file: h5py.File) -> None:
    file["data/demo_11"] = h5py.ExternalLink("moved away.hdf5", "data/demo_0")


def d4rl_with(change: Callable[[h5py.File], object], sets: tuple[str, ...] = (), **how: Any) -> Make:
    def make(folder: Path) -> tuple[Path, tuple[str, ...]]:
        path = d4rl(folder / "hopper_medium-v2.hdf5", [3], [7], 8, **how)
        with h5py.File(path, "a") as file:
            change(file)
        return path, sets

    return make


def npz_with(sets: tuple[str, ...] = (), scale: dict[str, Any] | None = None, **changes: Any) -> Make:
    def make(folder: Path) -> tuple[Path, tuple[str, ...]]:
        if scale is not None:
            np.savez(folder / "normalization.npz", **scale)
        return npz(folder, **changes), sets

    return make


def play(folder: Path, **changes: Any) -> tuple[Path, tuple[str, ...]]:
    path = ogbench(folder / "my play.npz")
    arrays = dict(np.load(path)) | changes
    np.savez(path, **arrays)
    return path, ()


SCALE = {"obs_min": -np.ones(5), "obs_max": np.ones(5), "action_min": -np.ones(2), "action_max": np.ones(2)}
WIDE = np.random.default_rng(1).uniform(-3, 3, (7, 2))

# what is refused -> (how it comes about, what the sentence says, what the fix sets)
REFUSED: dict[str, tuple[Make, str, str]] = {
    "a demo without actions": (robomimic(remove("data/demo_2/actions")), "actions: missing", "data.skip=[demo_2]"),
    "two demos without rewards": (
        robomimic(remove("data/demo_2/rewards"), remove("data/demo_10/rewards")), "likewise 1 more: demo_10", "data.skip=[demo_2, demo_10]",
    ),
    "a part that a demo lacks": (robomimic(remove("data/demo_2/obs/object")), "obs/object: missing", "data.skip=[demo_2]"),
    "a part that all lack": (
        robomimic(of_all(lambda at: remove(f"{at}/obs/object"))), "missing in all demonstrations (there are: robot0_eef_pos",
        "data.observation=[robot0_eef_pos, robot0_eef_quat, robot0_gripper_qpos]",
    ),
    "a part of another name": (robomimic(sets=("data.observation=[objekt]",)), "obs/objekt: missing in all", "data.observation=[object"),
    "pictures": (
        robomimic(of_all(lambda at: lambda f: f.__setitem__(f"{at}/obs/image", np.zeros((len(f[f"{at}/actions"]), 4, 4, 3), "u1"))),
                  sets=("data.observation=[object, image]",)), "images are not read yet", "data.observation=[object]",
    ),
    "NaN in one part of all": (
        robomimic(of_all(lambda at: put(f"{at}/obs/object", (1, 0), np.nan))), "likewise 2 more: demo_2, demo_10",
        "data.observation=[robot0_eef_pos, robot0_eef_quat, robot0_gripper_qpos]",
    ),
    "NaN rewards in all": (robomimic(of_all(lambda at: put(f"{at}/rewards", 1, np.nan))), "rewards: NaN value", "data.success=last"),
    "half of next_obs": (robomimic(remove("data/demo_2/next_obs/object")), "next_obs/object: missing", "data.skip=[demo_2]"),
    "actions of another length": (
        robomimic(replace("data/demo_2/actions", np.zeros((3, 7)))), "4 rows, but data/demo_2/actions has 3 (8 more arrays",
        "data.skip=[demo_2]",
    ),
    "a part that a link has lost": (
        robomimic(lambda f: [remove("data/demo_2/obs/object")(f), f.__setitem__("data/demo_2/obs/object", h5py.SoftLink("/gone"))]),
        "links to /gone, which is not in the file", "data.skip=[demo_2]",
    ),
    "names that a shell and YAML would take apart": (
        robomimic(lambda f: f.move("data/demo_2", "data/it's [2], null"), put("data/it's [2], null/actions", (0, 0), np.nan)),
        "NaN value in row 0", "data.skip=",
    ),
    "lengths": (robomimic(replace("data/demo_2/obs/object", np.zeros((2, 10)))), "2 rows, but", "data.skip=[demo_2]"),
    "num_samples": (robomimic(lambda f: f["data/demo_2"].attrs.__setitem__("num_samples", 9)), "num_samples is 9", "data.skip=[demo_2]"),
    "a mask of lost demos": (robomimic(replace("mask/train", np.array([b"demo_0", b"demo_7"]))), "names 1 demos", "data.demos=all"),
    "no such mask": (robomimic(sets=("data.demos=trian",)), "no such mask (did you mean 'train'?)", "data.demos=all"),
    "env_args": (robomimic(lambda f: f["data"].attrs.__setitem__("env_args", "{")), "env_args is not JSON", "data.ignore=[env_args]"),
    "a demo twice": (robomimic(lambda f: f.copy("data/demo_2", "data/demo_11")), "the same as data/demo_2", "data.duplicates=drop"),
    "an overshoot": (
        robomimic(put("data/demo_2/actions", (1, 0), 3.75)), "clipping changes 1 of 105 action values", "data.clip_actions=true",
    ),
    "absolute by env_args": (robomimic(absolute), "control_delta is false in env_args", "data.action_bounds=data"),
    "absolute by their values": (robomimic(in_metres_and_radians), "are they absolute targets", "data.action_bounds=data"),
    "a link whose target is gone": (robomimic(gone), "moved away.hdf5", "data.skip=[demo_11]"),
    "a name to skip that is not there": (
        robomimic(sets=("data.skip=[demo_0, demo_3]",)), "'demo_3', which is not in", "data.skip=[demo_0]",
    ),
    "all left out": (robomimic(sets=("data.skip=[demo_0, demo_2, demo_10]",)), "no episode is left", "check"),
    "no such key of success": (robomimic(sets=("data.success=doens",)), "did you mean 'dones'", "data.success=last"),
    "a key of success that is no number a step": (
        robomimic(of_all(lambda at: lambda f: f.__setitem__(f"{at}/mark", np.zeros(2))), sets=("data.success=mark",)),
        "which has shape (2,)", "data.success=last",
    ),
    "steps of an episode that are marked": (robomimic(sets=("data.episode_steps=7",)), "keeps its demonstrations apart", "check"),
    "bounds of another size": (
        robomimic(sets=("data.action_bounds=[[-1, 1], [-1, 1]]",)), "7 values, but 2 bounds", "data.action_bounds=data",
    ),
    "D4RL without ends": (d4rl_with(remove("timeouts")), "timeouts: missing", "data.episode_steps="),
    "D4RL whose next rows are others": (d4rl_with(remove("timeouts"), following=True), "in most rows", "data.episode_steps="),
    "D4RL without terminals": (d4rl_with(remove("terminals")), "terminals: missing", "data.success=none"),
    "D4RL with a mask": (d4rl_with(lambda f: None, ("data.demos=train",)), "have no masks", "data.demos=all"),
    "D4RL with a part": (d4rl_with(lambda f: None, ("data.observation=[x]",)), "no observation part 'x'", "data.observation=[observation]"),
    "D4RL whose rewards are gone": (
        d4rl_with(lambda f: [remove("rewards")(f), f.__setitem__("rewards", h5py.ExternalLink("gone.hdf5", "rewards"))]),
        "no file", "data.success=last",
    ),
    "D4RL whose rewards are text": (d4rl_with(replace("rewards", np.full(8, b"x"))), "not a column of numbers", "data.success=last"),
    "D4RL whose rewards are short": (d4rl_with(replace("rewards", np.ones(7))), "7 rows, but actions has 8", "data.success=last"),
    "D4RL whose timeouts are a matrix": (
        d4rl_with(replace("timeouts", np.zeros((8, 2)))), "not one flag for each row", "data.episode_steps=1000",
    ),
    "D4RL with NaN": (d4rl_with(put("observations", (1, 2), np.nan)), "observations: NaN value in row 1", "data.skip=[episode_0]"),
    "D4RL with an overshoot": (d4rl_with(put("actions", (5, 1), 2.5)), "largest 2.5 at row 5", "data.clip_actions=true"),
    "D4RL with one-step episodes": (d4rl_with(put("timeouts", slice(4, 6), True)), "one step only", "data.min_steps=2"),
    "npz without ends": (npz_with(traj_lengths=None), "traj_lengths: missing", "data.episode_steps="),
    "npz whose ends do not fit": (npz_with(traj_lengths=np.array([4, 4])), "sums to 8", "data.episode_steps="),
    "npz with one step": (npz_with(traj_lengths=np.array([6, 1])), "one step only", "data.min_steps=2"),
    "npz with a mask": (npz_with(("data.demos=train",)), "have no masks", "data.demos=all"),
    "npz with a part": (npz_with(("data.observation=[x]",)), "no observation part 'x'", "data.observation=[observation]"),
    "npz far outside": (npz_with(actions=WIDE), "are they absolute targets", "data.action_bounds=data"),
    "npz scaled by another's": (npz_with(scale=SCALE | {"obs_min": -np.ones(4), "obs_max": np.ones(4)}), "scales 4 values", "mv"),
    "npz scaled by half": (npz_with(scale={"obs_min": -np.ones(5)}), "obs_max: missing", "mv"),
    "npz scaled by NaN": (npz_with(scale=SCALE | {"obs_min": np.full(5, np.nan)}), "not a vector of finite numbers", "mv"),
    "OGBench that ends in the middle": (
        lambda folder: play(folder, terminals=np.array([0, 0, 0, 0, 1, 0, 0, 0, 0])), "middle of a trajectory", "data.skip=[episode_1]",
    ),
    "OGBench with a mask": (lambda folder: (play(folder)[0], ("data.demos=train",)), "have no masks", "data.demos=all"),
    "OGBench with a part": (
        lambda folder: (play(folder)[0], ("data.observation=[x]",)), "no observation part 'x'", "data.observation=[observation]",
    ),
    "OGBench with steps": (lambda folder: (play(folder)[0], ("data.episode_steps=5",)), "terminals tell where", "check"),
}  # fmt: skip


def check(path: Path | str, sets: tuple[str, ...] = ()) -> list[str]:
    return ["data", "check", str(path), *(word for value in sets for word in ("--set", value))]


def paste(command: str) -> int:
    """Type it in as it stands."""
    words = shlex.split(command)
    return run(words[1:]) if words[0] == "flowft" else subprocess.run(words, check=False).returncode


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_offered_mends(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, says, sets = REFUSED[name]
    (folder := tmp_path / "my files, of today's").mkdir()
    path, given = make(folder)
    assert run(check(path, given)) == 1
    out = capsys.readouterr().out
    assert says in out and out.count("  fix: ") == 1, out
    told, fix = out.splitlines()[0], out.split("  fix: ")[1].strip()
    assert sets in shlex.join(shlex.split(fix)).replace("'", "") and (fix.startswith(("flowft data check ", "mv ")))
    assert paste(fix) == 0, (fix, capsys.readouterr())
    if fix.startswith("mv "):
        assert run(check(path, given)) == 0
    out, err = capsys.readouterr()
    assert told not in out + err and "no problems" in out
    if fix.startswith("flowft"):  # and what it says to do next has the settings that it was mended with
        assert shlex.split(fix)[3:] == shlex.split(err.split("next: ")[1])[3:]


@pytest.mark.parametrize("name", [name for name in REFUSED if "mv" not in REFUSED[name][2]])
def test_training_is_told_the_same_fix(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, says, _ = REFUSED[name]
    path, given = make(tmp_path)
    run(check(path, given))
    fix = capsys.readouterr().out.split("  fix: ")[1].strip()
    assert run(["pretrain", "--dataset", str(path), "--name", "never", *check(path, given)[3:]]) == 1
    err = capsys.readouterr().err
    assert says in err and f"fix: {fix}\n" in err and "Traceback" not in err
    assert not Path("runs/never").exists()


def test_twenty_demos_with_one_fault_are_one_problem_with_one_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "many.hdf5", {f"demo_{i}": 4 + i for i in range(25)})
    with h5py.File(path, "a") as file:
        for i in range(20):
            del file[f"data/demo_{i}/rewards"]
        file["data/demo_22/actions"][0, 0] = 7
    assert run(check(path)) == 1
    out, err = capsys.readouterr()
    first, fix, second, other = out.splitlines()
    assert first.startswith(f"{path}:data/demo_0/rewards: missing; likewise 19 more: demo_1, demo_2, ")
    assert "2 problems" in err and "demo_22" in second
    assert paste(fix.removeprefix("  fix: ")) == 1 and "demo_22" in capsys.readouterr().out  # the other is still there
    assert paste(other.removeprefix("  fix: ")) == 1
    capsys.readouterr()
    assert paste(err.split("all fixes at once: ")[1]) == 0  # and one command for both


def test_a_fix_keeps_what_was_set_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.hdf5", {f"demo_{i}": 4 for i in range(6)})
    with h5py.File(path, "a") as file:
        file["data/demo_1/obs/object"][0, 0] = file["data/demo_4/obs/object"][0, 0] = np.nan
    assert run(check(path, ("data.skip=[demo_1]", "data.limit=5", "data.success=last"))) == 1
    fix = capsys.readouterr().out.split("  fix: ")[1].strip()
    assert fix == f"flowft data check {path} --set data.limit=5 --set 'data.skip=[demo_1, demo_4]' --set data.success=last"
    assert paste(fix) == 0


@pytest.mark.filterwarnings("ignore")
def test_minaris_fixes_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_minari(tmp_path, "mine/reach-v0", monkeypatch)
    with h5py.File(tmp_path / "mine/reach-v0/data/main_data.hdf5", "a") as file:
        file["episode_2/actions"][1, 0] = np.nan
        del file["episode_3/rewards"], file["episode_4/rewards"]
    for sets, settings in (
        ((), ["data.skip=[episode_3, episode_4]", "data.skip=[episode_2]"]),
        (("data.observation=[word]",), ["data.observation=[pair/0, position]"]),
        (("data.demos=x",), ["data.demos=all"]), (("data.episode_steps=9",), [""]),
    ):  # fmt: skip
        assert run(check("minari/mine/reach-v0", sets)) == 1
        fixes = [line.removeprefix("  fix: ") for line in capsys.readouterr().out.splitlines() if line.startswith("  fix: ")]
        for fix, setting in zip(fixes, settings, strict=False):
            assert setting in fix.replace("'", "")
            paste(fix)
            assert f"  fix: {fix}\n" not in capsys.readouterr().out  # that problem is gone, others may be left


UNMENDABLE: dict[str, tuple[Make, str]] = {
    "no actions": (robomimic(of_all(lambda at: remove(f"{at}/actions"))), "actions: missing; likewise 2 more"),
    "no observations": (robomimic(of_all(lambda at: remove(f"{at}/obs"))), "obs: missing; likewise 2 more"),
    "NaN in all actions": (robomimic(of_all(lambda at: put(f"{at}/actions", (0, 0), np.nan))), "NaN value in row 0"),
    "demos that are all lost": (
        robomimic(of_all(lambda at: lambda f: [remove(at)(f), f.__setitem__(at, h5py.ExternalLink("b.hdf5", at))])), "there is no file",
    ),
    "data that are lost": (
        robomimic(lambda f: [remove("data")(f), f.__setitem__("data", h5py.ExternalLink("b.hdf5", "data"))]), "links to data of b.hdf5",
    ),
    "steps that are all alone": (lambda folder: (write(folder / "a.hdf5", {"demo_0": 1, "demo_1": 1}), ()), "one step only"),
    "D4RL with text actions": (d4rl_with(replace("actions", np.full((8, 3), b"x"))), "actions: holds |S1"),
    "D4RL with actions in a group": (
        d4rl_with(lambda f: [remove("actions")(f), f.create_group("actions")]), "actions: missing (there are: observations, rewards",
    ),
    "D4RL with ends that are no numbers": (d4rl_with(replace("terminals", np.full(8, np.nan))), "terminals: 8 rows are not finite"),
    "D4RL with half of next_observations": (d4rl_with(replace("next_observations", np.zeros((7, 11))), following=True), "7 rows, but"),
    "npz of other lengths": (npz_with(states=np.zeros((5, 5))), "7 rows, but states has 5 (rewards, terminals differ, too)"),
    "npz with NaN": (npz_with(states=np.full((7, 5), np.nan)), "states: NaN value in row 0"),
}


@pytest.mark.parametrize("name", UNMENDABLE)
def test_what_no_setting_mends_has_no_fix(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, says = UNMENDABLE[name]
    path, _ = make(tmp_path)
    for verb in ("info", "check"):
        assert run(["data", verb, str(path)]) == 1
        out, err = capsys.readouterr()
        assert says in out + err and "fix: " not in out + err and "Traceback" not in out + err
        assert verb == "info" or err.strip().endswith(("1 problem", "2 problems"))


def test_settings_that_do_not_exist_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.hdf5", {"demo_0": 4})
    for sets, says in (
        ("data.sucess=last", "unknown setting 'data.sucess' (did you mean 'success'?)"), ("demos=all", "'demos' is no setting of how data"),
        ("data.success=reward>1", "a threshold is written reward>=0.5"), ("data.action_bounds=[1, -1]", "whose low is not below its high"),
        ("data.limit=0", "limit is 0"), ("data.min_steps=1", "must be at least 2"), ("data.ignore=[mask]", "ignore names 'mask'"),
        ("data.action_bounds=[[0, 1], [1, 0]]", "whose low"), ("data.action_bounds=wide", "data.action_bounds is 'wide'"),
        ("data.action_bounds=[]", "action_bounds is an empty list"), ("data.success=reward>=high", "could not convert"),
    ):  # fmt: skip
        for verb in ("info", "check"):
            assert run(["data", verb, str(path), "--set", sets]) == 2
            assert says in (err := capsys.readouterr().err) and "Traceback" not in err, err
