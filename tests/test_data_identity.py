"""By what a run recognises its data: what is read, through links as well, and nothing else; older whole-file sums still count."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

from flowft.cli.main import run
from flowft.data import identity, source
from flowft.data.source import Options

from .test_data_robomimic import write
from .test_data_sources import d4rl, npz, ogbench

TINY = [
    "--set", "pretrain.updates=2", "--set", "pretrain.batch_size=4", "--set", "policy.network=mlp", "--set", "policy.net.hidden=[8]",
    "--set", "critic.hidden=[8]", "--set", "policy.horizon=2", "--set", "pretrain.evaluate=false",
]  # fmt: skip


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    return write(tmp_path / "lift.hdf5", {"demo_0": 5, "demo_1": 4})


def test_what_is_read_counts_and_what_is_not_does_not(demos: Path) -> None:
    first = source.load(str(demos)).hash
    with h5py.File(demos, "a") as file:
        file["data/demo_0/obs/agentview_image"] = np.zeros((5, 8, 8, 3), "u1")
        file["note"] = 3
    assert source.load(str(demos)).hash == first != identity.sha256(demos)
    with h5py.File(demos, "a") as file:
        file["data/demo_1/actions"][2, 0] *= 0.5
    assert source.load(str(demos)).hash != first


@pytest.mark.parametrize("layout", ["d4rl", "npz", "ogbench"])
def test_flat_files_too(tmp_path: Path, layout: str) -> None:
    path = {"d4rl": lambda: d4rl(tmp_path / "a.hdf5", [3], [7], 8, following=True), "npz": lambda: npz(tmp_path),
            "ogbench": lambda: ogbench(tmp_path / "b.npz")}[layout]()  # fmt: skip
    first = source.load(str(path)).hash
    shutil.copy(path, tmp_path / f"copy{path.suffix}")
    assert source.load(str(tmp_path / f"copy{path.suffix}")).hash == first
    if layout == "d4rl":
        with h5py.File(path, "a") as file:
            file["next_observations"][-1, 0] += 1  # the state after the last action: read, though in no other array
    else:
        arrays: dict[str, Any] = dict(np.load(path))
        np.savez(path, **arrays | {"actions": arrays["actions"] * 0.5})
    assert source.load(str(path)).hash != first


def test_links_lead_to_what_counts(demos: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged.hdf5"
    with h5py.File(merged, "w") as file:
        for name in ("demo_0", "demo_1"):
            file[f"data/{name}"] = h5py.ExternalLink("lift.hdf5", f"data/{name}")
    first, whole = source.load(str(merged)).hash, identity.sha256(merged)
    with h5py.File(demos, "a") as file:
        file["data/demo_1/actions"][2, 0] *= 0.5
    assert identity.sha256(merged) == whole and source.load(str(merged)).hash != first


@pytest.fixture
def cloned(demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run and a checkpoint of the demonstrations, as flowft wrote them when whole files were summed."""
    monkeypatch.setenv("FLOWFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FLOWFT_CHECKPOINTS", str(tmp_path / "checkpoints"))
    assert run(["pretrain", "--dataset", str(demos), "--name", "old", *TINY]) == 0
    whole = hashlib.sha256(demos.read_bytes()).hexdigest()
    recipe = tmp_path / "runs/old/recipe.yaml"
    tree = yaml.safe_load(recipe.read_text())
    assert tree["dataset_hash"] == source.load(str(demos)).hash
    known = ("observation", "demos", "limit", "skip", "clip_actions", "duplicates")
    options = {key: tree["data"][key] for key in known}
    recipe.write_text(yaml.safe_dump(tree | {"dataset_hash": whole, "data": options}))
    content = torch.load(tmp_path / "checkpoints/old.pt", weights_only=True)
    content["dataset"]["hash"], content["recipe"]["data"] = whole, options
    torch.save(content, tmp_path / "checkpoints/old.pt")
    return demos


def test_an_old_run_goes_on_and_one_on_other_data_does_not(cloned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = [*TINY[:1], "pretrain.updates=4", *TINY[2:]]
    assert run(["pretrain", "--dataset", str(cloned), "--name", "old", *more]) == 0
    assert "continuing at update 2" in capsys.readouterr().err
    with h5py.File(cloned, "a") as file:
        file["data/demo_1/actions"][2, 0] *= 0.5
    assert run(["pretrain", "--dataset", str(cloned), "--name", "old", *more]) == 2
    assert "dataset_hash" in capsys.readouterr().err


def test_an_old_checkpoint_knows_its_data(cloned: Path, tmp_path: Path) -> None:
    from flowft.errors import DataError
    from flowft.train.checks import Start, same_dataset
    from flowft.train.settings import Settings

    content = torch.load(tmp_path / "checkpoints/old.pt", weights_only=True)
    settings = Settings.read(content["recipe"])
    assert same_dataset(Start(Path("old.pt"), content), settings).steps == 9
    content["dataset"]["hash"] = source.load(str(cloned)).hash  # a new one, and fine-tuning on a part of the data
    assert same_dataset(Start(Path("old.pt"), content), Settings.read(content["recipe"] | {"data": {"limit": 1}})).steps == 5
    with h5py.File(cloned, "a") as file:
        file["data/demo_1/actions"][2, 0] *= 0.5
    with pytest.raises(DataError, match="has changed since"):
        same_dataset(Start(Path("old.pt"), content), settings)


def test_options_that_are_new_change_no_recipe(demos: Path) -> None:
    from flowft import recipe

    old = {"observation": [], "demos": None, "limit": None, "skip": [], "clip_actions": False, "duplicates": "refuse"}
    assert recipe.differences(old, recipe.to_tree(Options())) == []
