"""LeRobot folders: both layouts, as real arms and simulators write them, and as converters left them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest

import flowft
from flowft.cli.main import run
from flowft.data import inferred_bounds, lerobot, source
from flowft.data.source import Options
from flowft.errors import DataError, UsageError
from tests import lerobot_folders as folders

REAL = os.environ.get("FLOWFT_REAL_DATA")
needs_real = pytest.mark.skipif(REAL is None, reason="FLOWFT_REAL_DATA is not set: no real excerpts")
VERSIONS = ("v2.1", "v3.0")
FILE = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def same_steps(folder: Path, lengths: tuple[int, ...] = (5, 4, 6), **options: Any) -> list[str]:
    """Asserts that the folder is read as the episodes that were written; its notes."""
    dataset = source.load(str(folder), Options(**options))
    assert [len(episode) for episode in dataset.episodes] == list(lengths)
    for i, episode in enumerate(dataset.episodes):
        np.testing.assert_array_equal(episode.actions, folders.actions(i, lengths[i]))
        np.testing.assert_array_equal(episode.observations["observation.environment_state"], np.full((lengths[i], 2), i))
    return list(dataset.notes)


def says(notes: list[str], *words: str) -> bool:
    return any(all(word in note for word in words) for note in notes)


@pytest.mark.parametrize("version", VERSIONS)
def test_both_layouts_are_read_as_they_were_written(tmp_path: Path, version: str) -> None:
    folder = folders.write(tmp_path / "d", version, image=True)
    notes = same_steps(folder)
    dataset = source.load(str(folder))
    assert dataset.format == f"LeRobot {version}" and dataset.rate == 30 and dataset.env is None
    assert dataset.spec.parts == (("observation.state", 4), ("observation.environment_state", 2))
    assert [(e.terminated, e.success, e.rewards.sum()) for e in dataset.episodes] == [(True, True, 1)] * 3
    assert [len(e.observations["observation.state"]) for e in dataset.episodes] == [5, 4, 6]
    assert says(notes, "pictures are left alone: observation.images.top") and says(notes, "30 steps a second by so101")
    assert says(notes, "--env") and not says(notes, "disagrees")


@needs_real
@pytest.mark.parametrize("name", ["scripted_lift_v21", "scripted_lift_v30", "scripted_lift_v30_files", "scripted_lift_v30_stale"])
def test_what_the_package_wrote_is_what_was_recorded(name: str) -> None:
    folder = Path(str(REAL)) / "lerobot"
    dataset = source.load(str(folder / name))
    recorded = source.load(str(folder / "scripted_lift.robomimic.hdf5"))
    assert dataset.steps == 789 and dataset.spec.action_low == (-1.0,) * 7 and dataset.spec.action_high == (1.0,) * 7
    for ours, theirs in zip(dataset.episodes, recorded.episodes, strict=True):
        np.testing.assert_array_equal(ours.actions, theirs.actions.astype(np.float32))
        np.testing.assert_array_equal(ours.rewards, theirs.rewards)
        assert (ours.terminated, ours.success) == (theirs.terminated, theirs.success)
    assert any("meta/episodes disagrees" in note for note in dataset.notes) == name.endswith("stale")


# What users choose


def test_observations_by_choice_in_their_order(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "d", image=True)
    dataset = source.load(str(folder), Options(observation=("observation.environment_state", "observation.state")))
    assert [name for name, _ in dataset.spec.parts] == ["observation.environment_state", "observation.state"]
    for part, words in (("observation.stat", "did you mean 'observation.state'"), ("observation.images.top", "image of shape")):
        with pytest.raises(DataError, match=words) as raised:
            source.load(str(folder), Options(observation=(part,)))
        assert str(raised.value.fix).endswith("--set 'data.observation=[observation.state, observation.environment_state]'")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("wanted", ["place it", 1, "1"])
def test_one_of_several_tasks(tmp_path: Path, version: str, wanted: Any) -> None:
    folder = folders.write(tmp_path / "d", version, lengths=(5, 4, 6, 3), tasks=("pick it", "place it"))
    assert says(same_steps(folder, (5, 4, 6, 3)), "2 tasks (data.task chooses one): 0 'pick it', 1 'place it'")
    assert [e.name for e in source.load(str(folder), Options(task=wanted)).episodes] == ["episode_1", "episode_3"]
    with pytest.raises(DataError, match="data.task is 'plaice it'"):
        source.load(str(folder), Options(task="plaice it"))


def test_a_task_of_a_layout_that_has_none_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "train.npz", states=np.zeros((4, 2)), actions=np.zeros((4, 1)), rewards=np.zeros(4), traj_lengths=[4])
    with pytest.raises(DataError, match="this layout has no tasks"):
        source.load(str(tmp_path), Options(task=0))


def test_task_texts_may_be_a_column_of_any_name(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "d", tasks=("pick it", "place it"))
    folders.edit(folder / "meta/tasks.parquet", lambda t: arrow.table({"task": t.column(1), "task_index": t.column(0)}))
    assert len(source.load(str(folder), Options(task="place it")).episodes) == 1
    (folder / "meta/tasks.parquet").unlink()
    assert len(source.load(str(folder), Options(task=0)).episodes) == 2


# Real arms


def test_a_teleoperated_arm_has_no_rewards_and_its_own_range(tmp_path: Path) -> None:
    dataset = source.load(str(folders.write(tmp_path / "d", outcome=False)))
    assert [(e.terminated, e.success, e.rewards.sum()) for e in dataset.episodes] == [(False, None, 0)] * 3
    assert says(list(dataset.notes), "no next.reward", "data.success=last") and says(
        list(dataset.notes), "widened by 5 %", "data.action_bounds"
    )
    every = np.concatenate([folders.actions(i, n) for i, n in enumerate((5, 4, 6))])
    margin = 0.05 * (every.max(0) - every.min(0))
    np.testing.assert_allclose(dataset.spec.action_low, every.min(0) - margin, rtol=1e-6)
    np.testing.assert_allclose(dataset.spec.action_high, every.max(0) + margin, rtol=1e-6)


def test_bounds_do_not_depend_on_how_many_episodes_are_read(tmp_path: Path) -> None:
    folder = str(folders.write(tmp_path / "d"))
    assert source.load(folder).spec == source.load(folder, Options(limit=1)).spec


def test_bounds_by_choice(tmp_path: Path) -> None:
    folder = str(folders.write(tmp_path / "d"))
    assert source.load(folder, Options(action_bounds=(-100.0, 150.0))).spec.action_high == (150.0,) * 3
    each = source.load(folder, Options(action_bounds=((-100.0, 130.0), (-110.0, 140.0), (-120.0, 150.0)))).spec
    assert (each.action_low, each.action_high) == ((-100.0, -110.0, -120.0), (130.0, 140.0, 150.0))
    with pytest.raises(DataError, match="outside"):
        source.load(folder, Options(action_bounds=(-1.0, 1.0)))


@pytest.mark.parametrize(
    ("low", "high", "normalised"),
    [((-1, -0.7, -1), (0.9, 0.8, 1), True), ((-0.9, -0.4, 0), (0.8, 0.9, 0.5), False), ((-0.02, -0.03, -1), (0.02, 0.02, 1), False),
     ((-1, -0.7, 0), (0.9, 1.2, 1), False), ((-0.8, -0.9, 0), (0.9, 0.9, 1), False)],
)  # fmt: skip
def test_only_actions_that_look_normalised_get_the_unit_range(low: Any, high: Any, normalised: bool) -> None:
    bounds = inferred_bounds.find(np.array([low, high], dtype=np.float32))
    assert (bounds[0].tolist() == [-1, -1, -1]) == normalised
    assert (bounds[0] <= low).all() and (bounds[1] >= high).all() and (bounds[0] < bounds[1]).all()


def test_interventions_are_named(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "d", more={"complementary_info.is_intervention": lambda e, n: np.arange(n) < 2})
    assert says(list(source.load(str(folder)).notes), "complementary_info.is_intervention: 6 of 15 steps")


def test_success_without_reward_and_reward_without_success(tmp_path: Path) -> None:
    only = folders.write(tmp_path / "a", outcome=False, more={"next.success": lambda e, n: (np.arange(n) == n - 1) & (e > 0)})
    assert [(e.terminated, e.success, e.rewards.sum()) for e in source.load(str(only)).episodes] == [
        (False, False, 0), (True, True, 1), (True, True, 1),
    ]  # fmt: skip
    shaped = folders.write(tmp_path / "b", outcome=False, more={"next.reward": lambda e, n: np.linspace(0, 0.7, n)})
    assert {(e.terminated, e.success) for e in source.load(str(shaped)).episodes} == {(False, None)}


# As converters left them


def test_the_file_index_of_the_episode_before(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "d", per_file=1)
    folders.edit(folder / EPISODES, lambda t: folders.with_column(t, "data/file_index", [0, 0, 1]))
    assert says(same_steps(folder), "meta/episodes disagrees", "another file for episodes 1, 2")


def test_from_and_to_scrambled(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "d")
    folders.edit(folder / EPISODES, lambda t: folders.with_column(t, "dataset_from_index", [9, 0, 5]))
    assert says(same_steps(folder), "meta/episodes disagrees", "from/to")


def test_rows_in_any_order_and_in_any_file(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "d", per_file=3)
    file = folder / FILE
    whole = folders.parquet.read_table(file).take(np.random.default_rng(0).permutation(15))
    folders.rows(file, [whole.slice(0, 7)])
    folders.rows(folder / "data/chunk-001/file-007.parquet", [whole.slice(7)])
    same_steps(folder)


def test_rows_that_are_stored_twice_are_read_once(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "d")
    shutil.copy(folder / FILE, folder / "data/chunk-000/file-005.parquet")
    assert says(same_steps(folder), "9 rows are stored twice")


def test_two_episodes_of_one_index_cannot_be_told_apart(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "d")
    other = folders.write(tmp_path / "e", lengths=(7,), make=lambda episode, steps: folders.actions(9, steps))
    shutil.copy(other / FILE, folder / "data/chunk-000/file-005.parquet")
    with pytest.raises(DataError, match="two different rows have the same frame_index in episode 0") as raised:
        source.load(str(folder))
    assert "data.skip=[episode_0]" in str(raised.value.fix)


def test_rows_missing_in_the_middle_of_an_episode(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "d")
    folders.edit(folder / FILE, lambda t: t.take([0, 1, 3, 4, 5, 6, 7, 8]))
    with pytest.raises(DataError, match="frame_index: goes from 1 to 3 in episode 0: rows are missing"):
        source.load(str(folder))


@pytest.mark.parametrize("lost", ["meta/tasks.parquet", "meta/stats.json", EPISODES])
def test_a_missing_meta_file_is_no_hindrance(tmp_path: Path, lost: str) -> None:
    folder = folders.write(tmp_path / "d")
    (folder / lost).unlink()
    assert says(same_steps(folder), "meta/episodes is missing") == (lost == EPISODES)


def test_a_missing_file_of_steps_is_named(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "d")
    (folder / "data/chunk-000/file-001.parquet").unlink()
    assert says(same_steps(folder, (5, 4)), "no rows for episode 2", "there is no data/chunk-000/file-001.parquet")


def test_names_as_a_dictionary_and_the_label_of_the_other_version(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "d")
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["action"]["names"] = {"motors": ["a", "b", "c"]}
    folders.edit_info(folder, features=info["features"], codebase_version="v2.1")
    assert says(same_steps(folder), "info.json says v2.1, but meta's files are those of v3.0")
    other = folders.write(tmp_path / "e", "v2.1")
    folders.edit_info(other, codebase_version="3.0")
    assert says(same_steps(other), "says 3.0", "v2.1")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"codebase_version": "v1.6"}, "convert_dataset_v1_to_v2"), ({"codebase_version": "v9.0"}, "v9.0, which flowft does not know"),
     ({"features": None}, "has no features"), ({"features": {"action": {"dtype": "float32", "shape": [3]}}}, "no feature observation")],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    folder = folders.write(tmp_path / "d")
    folders.edit_info(folder, **changes)
    assert run(["data", "info", str(folder)]) == 1
    told = capsys.readouterr().err
    assert words in told and "Traceback" not in told and told.count("error:") == 1


def test_the_layout_of_version_1_names_its_converter(tmp_path: Path) -> None:
    (tmp_path / "meta_data").mkdir()
    (tmp_path / "meta_data/info.json").write_text('{"codebase_version": "v1.6", "fps": 10}')
    with pytest.raises(DataError, match="v1.6; flowft reads v2.0, v2.1, v3.0") as raised:
        source.load(str(tmp_path))
    assert "convert_dataset_v1_to_v2" in str(raised.value.fix)


def test_damaged_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folders.write(tmp_path / "d")
    (folder / FILE).write_bytes(b"PAR1")
    assert run(["data", "check", str(folder)]) == 1
    assert f"{folder / FILE} is a damaged parquet file" in capsys.readouterr().out
    (folder / "meta/info.json").write_text("{")
    assert run(["data", "check", str(folder)]) == 1
    assert "info.json cannot be read" in capsys.readouterr().out


def test_a_column_that_is_not_there_and_values_that_are_no_numbers(tmp_path: Path) -> None:
    folder = folders.write(tmp_path / "d", per_file=3)
    original = (folder / FILE).read_bytes()
    folders.edit(folder / FILE, lambda t: t.drop_columns(["observation.state"]))
    with pytest.raises(DataError, match="observation.state: missing"):
        source.load(str(folder))
    (folder / FILE).write_bytes(original)
    folders.edit(folder / FILE, lambda t: folders.with_column(t, "next.reward", [None, *[0.0] * 14]))
    with pytest.raises(DataError, match="next.reward: 1 of 15 rows have no value"):
        source.load(str(folder))


# By id, and as the user drives it


def test_ids_are_found_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FLOWFT_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.delenv("HF_LEROBOT_HOME", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folders.write(tmp_path / "hf/lerobot/me/cubes")
    folders.write(tmp_path / "hf/lerobot/lerobot/pusht", "v2.1")
    assert lerobot.known() == ["lerobot/lerobot/pusht", "lerobot/me/cubes"]
    assert source.load("lerobot/me/cubes").steps == source.load("lerobot/pusht").steps == 15
    folders.write(tmp_path / "own/hub/datasets--me--new/snapshots/0123", lengths=(4,))
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "own"))
    assert source.load("lerobot/me/new").steps == 4
    with pytest.raises(DataError) as raised:
        source.load("lerobot/me/cubes")
    assert raised.value.fix == "flowft data download lerobot/me/cubes" and "meta/info.json" in raised.value.what
    with pytest.raises(UsageError):
        source.load("lerobot/a/b/c")


def test_the_identity_is_of_what_is_read(tmp_path: Path) -> None:
    one, other = folders.write(tmp_path / "a", image=True), folders.write(tmp_path / "b", "v2.1", image=True)
    assert source.load(str(one)).hash == source.load(str(other)).hash
    (one / "videos").mkdir()
    (one / "videos/a.mp4").write_bytes(b"1")
    assert source.load(str(one)).hash == source.load(str(other)).hash
    folders.edit(one / FILE, lambda t: folders.with_column(t, "next.reward", [0.5] * t.num_rows))
    assert source.load(str(one)).hash != source.load(str(other)).hash


def test_cloning_runs_on_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FLOWFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FLOWFT_CHECKPOINTS", str(tmp_path / "checkpoints"))
    folder = folders.write(tmp_path / "d", outcome=False, lengths=(20, 20))
    assert run(["data", "check", str(folder)]) == 0
    assert "note: there is no next.reward" in capsys.readouterr().err
    small = ["--recipe", "small", "--set", "pretrain.updates=2", "--set", "critic.hidden=[8]", "--set", "data.action_bounds=[-100, 150]"]
    assert run(["pretrain", "--dataset", str(folder), "--name", "arm", *small]) == 0
    assert flowft.load_policy(tmp_path / "checkpoints/arm.pt").spec.action_high == (150.0,) * 3


class Hub(BaseHTTPRequestHandler):
    """The part of Hugging Face's server that a download asks: a repository's facts, and its files."""

    root: Path
    broken = ""  # a file that the server does not have, though it lists it

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        files = sorted(path for path in self.root.rglob("*") if path.is_file())
        names = [str(path.relative_to(self.root)) for path in files]
        name = self.path.partition("/resolve/")[2].partition("/")[2].split("?")[0]
        if self.path.startswith("/api/datasets/me/cubes/tree"):
            told = [{"type": "file", "path": n, "size": path.stat().st_size, "oid": "0" * 40} for n, path in zip(names, files, strict=True)]
            self.reply(json.dumps(told).encode())
        elif self.path.startswith("/api/datasets/me/cubes"):
            siblings = [{"rfilename": n, "size": path.stat().st_size, "blobId": "0" * 40} for n, path in zip(names, files, strict=True)]
            self.reply(json.dumps({"_id": "1", "id": "me/cubes", "sha": "1" * 40, "siblings": siblings}).encode())
        elif name in names and name != self.broken and "me/cubes" in self.path:
            self.reply((self.root / name).read_bytes())
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "me/cubes" in self.path else "RepoNotFound")
            self.end_headers()

    def reply(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


def test_a_download_brings_all_but_the_videos_or_nothing(tmp_path: Path) -> None:
    repository = folders.write(tmp_path / "repository")
    (repository / "videos").mkdir()
    (repository / "videos/a.mp4").write_bytes(b"large")
    handler = type("Handler", (Hub,), {"root": repository, "broken": FILE})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    where = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_LEROBOT_HOME": "",
        "HF_HUB_DISABLE_XET": "1",
    }

    def flowft_data(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flowft", "data", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **where, **more}, timeout=60)

    try:
        failed = flowft_data("download", "lerobot/me/cubes")
        assert failed.returncode == 1 and "fix: " in failed.stderr and "Traceback" not in failed.stderr, failed.stderr
        assert not (tmp_path / "hf/lerobot/me/cubes").exists()
        handler.broken = ""  # type: ignore[attr-defined]
        got = flowft_data("download", "lerobot/me/cubes")
        assert got.returncode == 0 and got.stdout.strip() == str(tmp_path / "hf/lerobot/me/cubes"), got.stderr
    finally:
        server.shutdown()
        server.server_close()
    assert not (tmp_path / "hf/lerobot/me/cubes/videos").exists()
    assert "3 episodes, 15 steps" in flowft_data("check", "lerobot/me/cubes").stdout
    nobody = flowft_data("download", "lerobot/me/others", HF_ENDPOINT="http://127.0.0.1:1")
    assert nobody.returncode == 1 and "there is no network" in nobody.stderr and "Traceback" not in nobody.stderr


def test_a_success_may_be_any_feature(tmp_path: Path) -> None:
    def grasped(episode: int, steps: int) -> Any:
        return np.arange(steps) >= steps - 1 + episode  # only the first episode's last step

    folder = folders.write(tmp_path / "arm", outcome=False, more={"next.grasped": grasped})
    dataset = source.load(str(folder), source.Options(success="next.grasped"))
    assert [(e.terminated, e.success) for e in dataset.episodes] == [(True, True), (False, False), (False, False)]
    with pytest.raises(DataError, match="data.success is 'grasped', which is not there"):
        source.load(str(folder), source.Options(success="grasped"))
