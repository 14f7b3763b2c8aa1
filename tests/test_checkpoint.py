"""Checkpoints: whole or not at all, plain on disk, refused with a reason when they are something else."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch

from flowft import checkpoint
from flowft.errors import CheckpointError


def test_content_survives_with_numpy_and_paths_made_plain(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "can.pt"
    weights = torch.randn(3, 2)
    content = {
        "weights": {"w": weights},
        "mean": np.arange(3.0),
        "steps": np.int64(7),
        "from": Path("a/b"),
        "parts": [("eef", 3)],
        "none": None,
    }
    checkpoint.save(path, "policy", content)
    found = checkpoint.load(path, "policy")
    assert torch.equal(found["weights"]["w"], weights)
    assert torch.equal(found["mean"], torch.arange(3.0, dtype=torch.float64))
    assert (found["steps"], found["from"], found["parts"], found["none"]) == (7, "a/b", [["eef", 3]], None)
    assert sorted(p.name for p in path.parent.iterdir()) == ["can.pt"], "no temporary file stays"


def test_what_could_not_be_loaded_again_is_refused_at_saving(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.pt", "policy", {"torch": torch.__version__})  # a subclass of str
    assert checkpoint.load(tmp_path / "a.pt", "policy")["torch"] == str(torch.__version__)
    with pytest.raises(TypeError, match="cannot hold set"):
        checkpoint.save(tmp_path / "b.pt", "policy", {"x": {1, 2}})


def half_written(content: object, file: IO[bytes]) -> None:
    file.write(b"PK")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_save_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "can.pt"
    checkpoint.save(path, "policy", {"step": 1})
    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(CheckpointError, match="can.pt: No space left"):
        checkpoint.save(path, "policy", {"step": 2})
    assert checkpoint.load(path, "policy")["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["can.pt"]


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "hostile.pt"
    torch.save({"format": checkpoint.FORMAT, "kind": "policy", "x": Hostile()}, path)
    with pytest.raises(CheckpointError, match="hostile.pt"):
        checkpoint.load(path, "policy")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short", b"\x80\x02}q\x00."])
def test_damaged_files_are_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="bad.pt") as caught:
        checkpoint.load(path, "policy")
    assert "\n" not in caught.value.what


def test_a_truncated_checkpoint_is_refused_at_every_length(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    checkpoint.save(whole, "policy", {"w": torch.zeros(100)})
    data = whole.read_bytes()
    for length in range(0, len(data), max(1, len(data) // 20)):
        cut = tmp_path / "cut.pt"
        cut.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="cut.pt"):
            checkpoint.load(cut, "policy")


def test_another_kind_or_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    checkpoint.save(path, "run", {})
    with pytest.raises(CheckpointError, match="holds run, not a flowft policy"):
        checkpoint.load(path, "policy")
    torch.save({"format": 99, "kind": "policy"}, path)
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(path, "policy")


def test_find_looks_beside_and_in_the_checkpoint_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFT_CHECKPOINTS", str(tmp_path))
    checkpoint.save(tmp_path / "can.pt", "policy", {})
    assert checkpoint.find("can") == checkpoint.find("can.pt") == checkpoint.find(str(tmp_path / "can.pt")) == tmp_path / "can.pt"
    with pytest.raises(CheckpointError, match=r"no checkpoint 'cna'.*there: can.pt"):
        checkpoint.find("cna")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWFT_CHECKPOINTS", "elsewhere")
    assert checkpoint.find("can") == Path("can.pt"), "`convert --out can.pt` writes it here"
