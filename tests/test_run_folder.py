"""A run's folder: one process at a time, one sentence when the system refuses, an identity of its own elsewhere."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flowft import checkpoint
from flowft.cli import main
from flowft.errors import CheckpointError, TrainingError, UsageError
from flowft.train import runlog
from flowft.train.runlog import RunFolder

from .test_cli import refused

HOLD = """
import sys, time
from flowft.train.runlog import RunFolder
with RunFolder("busy", "pretrain", {"seed": 0}, (), None) as folder:
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLOWFT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_a_run_that_another_process_has_open_is_refused_and_free_when_that_one_is_killed(runs: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        for attempt in (lambda: RunFolder("busy", "pretrain", {"seed": 1}, (), None), lambda: runlog.require_unlocked("busy")):
            with pytest.raises(TrainingError, match=rf"runs/busy is in use by process {other.pid} on {os.uname().nodename}") as caught:
                attempt()
            assert (caught.value.fix, caught.value.exit_code) == ("--name busy-2", 1)
        other.kill()
    with RunFolder("busy", "pretrain", {"seed": 1}, (), None) as folder:
        assert folder.saved() is None
    with RunFolder("busy", "pretrain", {"seed": 1}, (), None):
        pass  # and after its own close it is free as well


def test_a_folder_that_was_refused_is_left_as_it_was(runs: Path) -> None:
    with RunFolder("mine", "pretrain", {"seed": 0}, (), None) as folder:
        folder.save({"step": 3})
    before = (runs / "mine" / "recipe.yaml").read_text()
    with pytest.raises(UsageError, match="holds a run with other settings"):
        RunFolder("mine", "pretrain", {"seed": 1}, (), None)
    assert (runs / "mine" / "recipe.yaml").read_text() == before
    with RunFolder("mine", "pretrain", {"seed": 0}, (), None) as folder:
        found = folder.saved()
        assert found is not None
        assert found["step"] == 3


def test_settings_that_the_run_did_not_know_count_as_their_defaults(runs: Path) -> None:
    with RunFolder("old", "pretrain", {"seed": 0}, (), None) as folder:
        folder.save({"step": 3})
    for new, ok in (({"seed": 0, "data": {"success": None}}, True), ({"seed": 0, "data": {"success": "last"}}, False)):
        defaults = {"seed": 0, "data": {"success": None}}
        if ok:
            runlog.require_same_run("old", "pretrain", new, (), defaults)
        else:
            with pytest.raises(UsageError, match="data.success: None -> last"):
                runlog.require_same_run("old", "pretrain", new, (), defaults)


@pytest.fixture
def small_disk() -> Any:
    """A limit on the size of files, which fails as a full disk does: in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_leaves_the_state_before_it(runs: Path, small_disk: None) -> None:
    with RunFolder("full", "pretrain", {"seed": 0}, (), None) as folder:
        folder.save({"step": 1, "w": torch.zeros(10)})
        with pytest.raises(CheckpointError, match=r"cannot write .*state.pt: File too large") as caught:
            folder.save({"step": 2, "w": torch.zeros(100_000)})
        assert str(caught.value.fix).startswith("df -h ")
        found = folder.saved()
        assert found is not None
        assert found["step"] == 1
    assert [path.name for path in (runs / "full").iterdir() if path.name.endswith(".tmp")] == []


def test_a_row_that_cannot_be_written_is_said(runs: Path, small_disk: None) -> None:
    with pytest.raises(CheckpointError, match="rows cannot be written"), RunFolder("rows", "pretrain", {"seed": 0}, (), None) as folder:
        for step in range(1000):
            folder.write("train", step, {"loss": 1.0})


def test_a_folder_below_a_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLOWFT_RUNS", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="cannot be written: Not a directory") as caught:
        RunFolder("x", "pretrain", {}, (), None)
    assert str(caught.value.fix).startswith("export FLOWFT_RUNS=")


@pytest.mark.parametrize(("number", "code"), [(28, 1), (30, 1), (2, main.BUG)])
def test_the_door_tells_a_full_disk_from_a_bug(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flowft.cli import plot

    def fails(run: str) -> None:
        raise OSError(number, os.strerror(number), "a.png")

    monkeypatch.setattr(plot, "folder", fails)
    assert main.run(["plot", "x", "--out", "a.png"]) == code
    shown = capsys.readouterr().err
    assert ("this is a bug in flowft" in shown) == (code == main.BUG)
    assert code == main.BUG or refused(shown) == f"error: a.png: {os.strerror(number)}\nfix: df -h a.png"


STUB = "def init(**k):\n    import json; print(json.dumps({x: k[x] for x in ('id', 'name', 'resume')}))\n    return None\n"


def test_runs_of_one_name_in_two_folders_are_two_to_weights_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "wandb.py").write_text(STUB)
    monkeypatch.syspath_prepend(str(tmp_path / "stub"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    asked = []
    for machine in ("one", "two", "one"):
        monkeypatch.setenv("FLOWFT_RUNS", str(tmp_path / machine))
        with RunFolder("lift", "finetune", {"seed": 1}, (), "project") as folder:
            folder.save({"step": 1})
        asked.append(json.loads(capsys.readouterr().out))
    assert [run["name"] for run in asked] == ["lift"] * 3
    assert asked[0]["id"] == asked[2]["id"] != asked[1]["id"]
    monkeypatch.setenv("FLOWFT_RUNS", str(tmp_path / "before"))
    with RunFolder("older", "finetune", {"seed": 1}, (), None) as folder:
        folder.save({"step": 1})  # begun by a version whose id was the name
    RunFolder("older", "finetune", {"seed": 1}, (), "project").close()
    assert json.loads(capsys.readouterr().out)["id"] == "older"
    monkeypatch.delitem(sys.modules, "wandb", raising=False)


def test_a_state_is_looked_at_without_reading_its_tensors(runs: Path) -> None:
    assert runlog.state("none") is None
    with RunFolder("seen", "pretrain", {}, (), None) as folder:
        folder.save({"step": 7, "w": torch.arange(4.0)})
    found = runlog.state("seen")
    assert found is not None
    assert (found["step"], found["w"].tolist()) == (7, [0.0, 1.0, 2.0, 3.0])
    assert checkpoint.load(runs / "seen" / "state.pt", runlog.STATE)["step"] == 7
