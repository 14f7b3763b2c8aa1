"""zarr replay buffers: folder and zip, PushT as it is published, real arms, and what is broken."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

from flowft.cli.main import run
from flowft.data import source
from flowft.data.source import Options
from flowft.errors import DataError

ENDS = (6, 10, 17)


def pusht(path: Path, ends: Any = ENDS, form: Any = 2, rows: int = 17, **arrays: Any) -> Path:
    """PushT's layout: absolute targets in pixels, Blosc, pictures beside."""
    generator = np.random.default_rng(0)
    columns = {
        "action": generator.uniform(20, 500, (rows, 2)).astype(np.float32),
        "state": generator.uniform(0, 512, (rows, 5)).astype(np.float32),
        "keypoint": np.arange(rows * 18, dtype=np.float32).reshape(rows, 9, 2), "n_contacts": np.zeros((rows, 1), np.float32),
        "img": np.zeros((rows, 96, 96, 3), np.float32), **arrays,
    }  # fmt: skip
    root = zarr.open_group(path, mode="w", zarr_format=form)
    data, meta = root.create_group("data"), root.create_group("meta")
    how: dict[str, Any] = {"compressors": numcodecs.Blosc("zstd")} if form == 2 else {}
    for key, values in columns.items():
        if values is not None:
            data.create_array(key, data=values, chunks=(5, *values.shape[1:]), config={"write_empty_chunks": True}, **how)
    if ends is not None:
        meta.create_array("episode_ends", data=np.asarray(ends, dtype=np.int64), **how)
    return path


def zipped(folder: Path, inside: str = "") -> Path:
    """The folder as a zip, `inside` a folder of that name or at its root."""
    base = folder.parent / "packed"
    shutil.copytree(folder, base / inside if inside else base)
    return Path(shutil.make_archive(str(folder), "zip", base))


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize("packed", ["folder", "zip", "zip with a folder"])
def test_pusht_as_it_is_published(tmp_path: Path, form: int, packed: str) -> None:
    folder = pusht(tmp_path / "pusht.zarr", form=form)
    path = folder if packed == "folder" else zipped(folder, "pusht/pusht.zarr" if packed != "zip" else "")
    dataset = source.load(str(path))
    stored = zarr.open_group(folder, mode="r")["data"]
    assert [len(e) for e in dataset.episodes] == [6, 4, 7] and dataset.source == "zarr" and dataset.env is None
    assert dataset.spec.parts == (("state", 5),)
    np.testing.assert_array_equal(np.concatenate([e.actions for e in dataset.episodes]), stored["action"][:])
    np.testing.assert_array_equal(dataset.episodes[1].observations["state"], stored["state"][6:10])
    assert {(e.terminated, e.success, e.rewards.sum()) for e in dataset.episodes} == {(False, None, 0)}
    assert min(dataset.spec.action_low) < 60 and max(dataset.spec.action_high) > 450
    notes = " | ".join(dataset.notes)
    assert "pictures are left alone: img" in notes and "data.success=last" in notes and "--env" in notes and "widened" in notes


def test_pictures_are_never_opened(tmp_path: Path) -> None:
    folder = pusht(tmp_path / "a.zarr")
    before = source.load(str(folder)).hash
    facts = json.loads((folder / "data/img/.zarray").read_text()) | {"compressor": {"id": "imagecodecs_jpegxl"}}
    (folder / "data/img/.zarray").write_text(json.dumps(facts))
    for chunk in (folder / "data/img").glob("[0-9]*"):
        chunk.write_bytes(b"no picture")
    assert source.load(str(folder)).hash == before
    with pytest.raises(DataError, match="pictures are not read") as raised:
        source.load(str(folder), Options(observation=("img",)))
    assert str(raised.value.fix).endswith("--set 'data.observation=[state]'")


def test_parts_by_choice(tmp_path: Path) -> None:
    dataset = source.load(str(pusht(tmp_path / "a.zarr")), Options(observation=("keypoint", "state")))
    assert dataset.spec.parts == (("keypoint", 18), ("state", 5))
    assert dataset.episodes[1].observations["keypoint"][0, 0] == 6 * 18
    with pytest.raises(DataError, match="data/keypoints: missing .did you mean 'keypoint'"):
        source.load(str(tmp_path / "a.zarr"), Options(observation=("keypoints",)))


def test_a_real_arm_without_a_state(tmp_path: Path) -> None:
    arrays = {
        "state": None,
        "robot_eef_pose": np.ones((17, 6)),
        "robot_gripper": np.ones(17),
        "timestamp": np.arange(17.0),
        "stage": np.arange(17),
    }
    dataset = source.load(str(pusht(tmp_path / "a.zarr", **arrays)))
    assert dict(dataset.spec.parts) == {"n_contacts": 1, "robot_eef_pose": 6, "robot_gripper": 1}


def test_rewards_where_they_are(tmp_path: Path) -> None:
    dataset = source.load(str(pusht(tmp_path / "a.zarr", reward=np.isin(np.arange(17), (5, 16)).astype(np.float32))))
    assert [(e.terminated, e.success) for e in dataset.episodes] == [(True, True), (False, False), (True, True)]


def test_a_success_may_be_any_array(tmp_path: Path) -> None:
    path = pusht(tmp_path / "a.zarr", covered=np.isin(np.arange(17), (5, 16)).astype(np.float32))
    dataset = source.load(str(path), source.Options(success="covered"))
    assert [(e.terminated, e.success, e.rewards.sum()) for e in dataset.episodes] == [(True, True, 1), (False, False, 0), (True, True, 1)]
    with pytest.raises(DataError, match="data.success is 'coverd', which is not there .did you mean 'covered'"):
        source.load(str(path), source.Options(success="coverd"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"ends": None}, "meta/episode_ends: missing"), ({"ends": (6, 4, 17)}, "goes back at episode 1"),
     ({"ends": (6, 10, 18)}, "ends at row 18, but data/action has 17"), ({"action": None}, "data/action: missing (there are: img,"),
     ({"state": np.zeros((16, 5))}, "data/state: 16 rows, but data/action has 17"), ({"ends": (6.0, 17.0)}, None),
     ({"action": np.full((17, 2), np.nan)}, "NaN value in row 0"),
     ({"obs": np.full((17, 5), "a", dtype="S1"), "state": None, "n_contacts": None}, "no array is an observation")],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, changes: dict[str, Any], words: str | None) -> None:
    path = pusht(tmp_path / "a.zarr", **changes)
    if words is None:
        assert len(source.load(str(path)).episodes) == 2
        return
    with pytest.raises(DataError) as raised:
        source.load(str(path))
    assert words in raised.value.what and str(path) in raised.value.what


def test_rows_after_the_last_end_are_no_episode(tmp_path: Path) -> None:
    dataset = source.load(str(pusht(tmp_path / "a.zarr", ends=(6, 10))))
    assert dataset.steps == 10 and any("7 rows after the last episode's end" in note for note in dataset.notes)


def test_lost_and_damaged_chunks(tmp_path: Path) -> None:
    lost = pusht(tmp_path / "a.zarr")
    (lost / "data/action/1.0").unlink()
    with pytest.raises(DataError, match="data/action: 1 of its chunks are not stored"):
        source.load(str(lost))
    damaged = pusht(tmp_path / "b.zarr")
    (damaged / "data/state/1.0").write_bytes(b"xx")
    with pytest.raises(DataError, match="data/state is damaged"):
        source.load(str(damaged))


def test_nothing_from_a_file_is_unpickled(tmp_path: Path) -> None:
    folder = pusht(tmp_path / "a.zarr")
    facts = json.loads((folder / "data/state/.zarray").read_text()) | {"compressor": None, "filters": [{"id": "pickle"}]}
    (folder / "data/state/.zarray").write_text(json.dumps(facts))
    (folder / "data/state/0.0").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(DataError, match="packed with 'pickle'"):
        source.load(str(folder))
    assert not (tmp_path / "sprung").exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("content", [{"data/action/.zarray": "{}", "meta/episode_ends/0": "1234"}, {"data/action/.zarray": "{"}])
def test_a_broken_zip_is_one_sentence(tmp_path: Path, content: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "replay.zarr.zip", "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    assert run(["data", "info", str(tmp_path / "replay.zarr.zip")]) == 1
    told = capsys.readouterr().err
    assert "replay.zarr.zip:data" in told or "replay.zarr.zip:meta" in told
    assert "Traceback" not in told and "h5ls" not in told and told.count("error:") == 1


def test_ids_and_cloning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, folder in (("FLOWFT_DATASETS", "datasets"), ("FLOWFT_RUNS", "runs"), ("FLOWFT_CHECKPOINTS", "checkpoints")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    (tmp_path / "datasets/zarr").mkdir(parents=True)
    pusht(tmp_path / "datasets/zarr/pusht.zarr")
    zipped(pusht(tmp_path / "other.zarr")).rename(tmp_path / "datasets/zarr/other.zarr.zip")
    assert run(["data", "list"]) == 0
    assert "zarr/other" in (listed := capsys.readouterr().out) and "zarr/pusht" in listed
    assert run(["data", "check", "zarr/other"]) == 0 and "3 episodes, 17 steps" in capsys.readouterr().out
    small = ["--recipe", "small", "--set", "pretrain.updates=2", "--set", "critic.hidden=[8]"]
    assert run(["pretrain", "--dataset", "zarr/pusht", "--name", "pusht", *small]) == 0
    assert (tmp_path / "checkpoints/pusht.pt").is_file()
