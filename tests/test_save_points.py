"""Wherever a loop saves, a run that is cut there and continued ends as the one that was never cut, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flowft import recipe
from flowft.train import finetune, online, pretrain, run, scratch

from .helpers import same
from .test_cli import TINY, write_hopper

SMALL: recipe.Tree = recipe.merge(
    TINY,
    {
        "critic": {"ensemble": 2, "hidden": [16]}, "policy": {"net": {"hidden": [16]}}, "max_steps": 9,
        "eval": {"episodes": 1, "every": 12},
        "pretrain": {"updates": 6, "regularised_updates": 4, "log_every": 3, "evaluate": False},
        "finetune": {"steps": 24, "start_updates": 4, "start_actor": 8, "actor_every": 2, "updates_per_step": 0.5},
    },
)  # fmt: skip
ALONE: recipe.Tree = {key: value for key, value in SMALL.items() if key not in ("dataset", "pretrain", "finetune")} | {
    "train": {"steps": 24, "random_steps": 6, "batch_size": 16, "actor_every": 2, "log_every": 5}
}


class Cut(BaseException):
    """The process dies: nothing of ours handles it."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("save-points")
    write_hopper(folder / "hopper.hdf5", episodes=3)
    return folder


def left_by(name: str) -> list[Any]:
    """What a run leaves: metrics, the last state and the checkpoint."""
    metrics, state = Path("runs") / name / "metrics.jsonl", Path("runs") / name / "state.pt"
    return [metrics.read_bytes(), *(torch.load(path, weights_only=True) for path in (state, Path("checkpoints") / f"{name}.pt"))]


def cut_after(monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    """Save at every step, and die right after the save of that number; what is done since the one before is lost with it."""
    done = []

    def save(self: Any, content: Any, real: Any = online.RunFolder.save) -> None:
        if len(done) == saves:
            raise Cut
        real(self, content)
        done.append(len(done))

    monkeypatch.setattr(run.Clock, "due", lambda self: True)
    monkeypatch.setattr(online.RunFolder, "save", save)


STAGES = {
    "pretrain": lambda name: pretrain.pretrain(SMALL, name),
    "finetune": lambda name: finetune.finetune(Path("clone"), {}, name),
    "train": lambda name: scratch.train(ALONE, name),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_cut_at_any_save_point_ends_the_same(workshop: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.chdir(workshop)
    if not Path("checkpoints/clone.pt").exists():
        pretrain.pretrain(SMALL, "clone")
    STAGES[stage](f"{stage}-whole")
    whole = left_by(f"{stage}-whole")
    points = (1, 4, 6, 7, 9) if stage == "pretrain" else (1, 5, 9, 12, 13, 20)  # the start, each change of what learns, an evaluation
    for saves in points:
        name = f"{stage}-{saves}"
        with monkeypatch.context() as patched:
            cut_after(patched, saves)
            with pytest.raises(Cut):
                STAGES[stage](name)
        STAGES[stage](name)
        assert same(left_by(name), whole), saves


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_cut_twice_in_a_row_ends_the_same(workshop: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.chdir(workshop)
    if not Path("checkpoints/clone.pt").exists():
        pretrain.pretrain(SMALL, "clone")
    STAGES[stage](f"{stage}-once")
    for saves in (3, 4):
        with monkeypatch.context() as patched:
            cut_after(patched, saves)
            with pytest.raises(Cut):
                STAGES[stage](f"{stage}-twice")
    STAGES[stage](f"{stage}-twice")
    assert same(left_by(f"{stage}-twice"), left_by(f"{stage}-once"))
