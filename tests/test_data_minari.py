"""Minari datasets, written by Minari itself: parts, bounds, ends, order, damage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flowft.data import source
from flowft.data.source import Options
from flowft.errors import DataError

REAL = os.environ.get("FLOWFT_REAL_DATA")
needs_real = pytest.mark.skipif(REAL is None, reason="FLOWFT_REAL_DATA is not set: no real excerpts")


def make_minari(root: Path, name: str, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """A Minari dataset written by Minari itself."""
    minari = pytest.importorskip("minari")
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    generator = np.random.default_rng(0)
    space = spaces.Dict({"position": spaces.Box(-9, 9, (2,)), "pair": spaces.Tuple([spaces.Box(-9, 9, (3,))]), "word": spaces.Text(5)})
    episodes = [
        EpisodeBuffer(
            id=i, seed=None, options=None,
            observations={
                "position": generator.normal(size=(n + 1, 2)).astype("f4"), "word": ["ab"] * (n + 1),
                "pair": (generator.normal(size=(n + 1, 3)).astype("f4"),),
            },
            actions=generator.uniform(-2, 2, (n, 2)).astype("f4"), rewards=[0.0] * n, terminations=[False] * (n - 1) + [i == 1],
            truncations=[False] * (n - 1) + [i != 1], infos={"success": [i == 1] * (n + 1)},
        )
        for i, n in enumerate([3] * 10 + [4])
    ]  # fmt: skip
    minari.create_dataset_from_buffers(
        dataset_id=name, buffer=episodes, action_space=spaces.Box(-2, 2, (2,)), observation_space=space,
        algorithm_name="a", author="a", author_email="a", code_permalink="a", description="a", **fields,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_minari_parts_bounds_ends_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_minari(tmp_path, "mine/reach-v0", monkeypatch)
    dataset = source.load("minari/mine/reach-v0")
    assert dataset.spec.parts == (("pair/0", 3), ("position", 2))  # the text part is left out
    assert dataset.spec.action_low == (-2, -2)
    assert [len(e) for e in dataset.episodes] == [3] * 10 + [4]  # episode_10 is the last, not the third
    assert [e.terminated for e in dataset.episodes] == [i == 1 for i in range(11)]
    assert [e.success for e in dataset.episodes] == [i == 1 for i in range(11)]
    assert all(len(e.observations["position"]) == len(e) + 1 for e in dataset.episodes)
    assert source.load("minari/mine/reach-v0", Options(observation=("position",))).spec.observation_dim == 2
    with pytest.raises(DataError, match="word has shape None|only vectors"):
        source.load("minari/mine/reach-v0", Options(observation=("word",)))


@pytest.mark.filterwarnings("ignore")
def test_minari_damage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_minari(tmp_path, "mine/reach-v0", monkeypatch)
    folder = tmp_path / "mine/reach-v0/data"
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        file["episode_2/actions"][1, 0] = np.nan
        del file["episode_3/rewards"]
    problems = source.Problems(collect=True)
    source.load(str(folder), problems=problems)
    assert [p.where.split(":")[-1] for p in problems.found] == ["episode_3/rewards", "episode_2/actions"]
    (folder / "metadata.json").unlink()
    with pytest.raises(DataError, match="has no metadata.json beside it"):
        source.load(str(folder))


@needs_real
def test_minari_and_d4rl_give_the_same_door_demonstrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", f"{REAL}/minari")
    theirs, ours = source.load("minari/flowft/door/human-v0"), source.load(f"{REAL}/d4rl/door-human-v1.full.hdf5")
    assert theirs.steps == ours.steps == 6729 and theirs.env is not None and theirs.env.family == "robotics"
    for a, b in zip(theirs.episodes, ours.episodes, strict=True):
        np.testing.assert_allclose(a.actions, b.actions, atol=1e-5)
        assert len(a.observations["observation"]) == len(a) + 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_the_other_formats_of_minari_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    pytest.importorskip("pyarrow")
    make_minari(tmp_path / "a", "mine/reach-v0", monkeypatch)
    hdf5 = source.load("minari/mine/reach-v0")
    make_minari(tmp_path / "b", "mine/reach-v0", monkeypatch, data_format=form)
    arrow = source.load("minari/mine/reach-v0")
    assert (arrow.format, arrow.spec, arrow.steps) == ("Minari arrow", hdf5.spec, hdf5.steps)
    for ours, theirs in zip(arrow.episodes, hdf5.episodes, strict=True):
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        np.testing.assert_array_equal(ours.observations["pair/0"], theirs.observations["pair/0"])
        assert (ours.name, ours.terminated, ours.success) == (theirs.name, theirs.terminated, theirs.success)
    folder = tmp_path / "b/mine/reach-v0"
    assert source.load(str(folder)).hash == source.load(str(folder / "data")).hash == arrow.hash
    for file in (folder / "data/3").glob("*.[ap]*"):
        file.write_bytes(b"no arrow file")
    with pytest.raises(DataError, match="episode_3: Minari cannot read it"):
        source.load(str(folder))
