"""Size: what loading costs beside h5py's plain read of the same arrays, in time and in memory; what is not read costs nothing."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from flowft.data import source
from flowft.data.replay import RewardTransform, from_dataset

from .test_data_robomimic import write

ROWS = 200_000


def flat(path: Path, episode: int, following: bool, rows: int = ROWS) -> Path:
    """Hopper-like rows in episodes of so many steps, all of them sound."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(rows + 1, 11)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = states[:-1], rng.uniform(-1, 1, (rows, 3)).astype(np.float32)
        file["rewards"], file["terminals"] = rng.normal(size=rows).astype(np.float32), np.zeros(rows, bool)
        file["timeouts"] = np.arange(rows) % episode == episode - 1
        if following:
            file["next_observations"] = states[1:]
    return path


def plain(path: Path) -> int:
    """Bytes of all arrays, read as h5py reads them."""
    with h5py.File(path) as file:
        return sum(file[key][()].nbytes for key in file)


def fastest(what: Callable[[], object], times: int = 5) -> float:
    def once() -> float:
        began = time.perf_counter()
        what()
        return time.perf_counter() - began

    return min(once() for _ in range(times))


@pytest.mark.parametrize(("episode", "following", "most"), [(500, True, 150), (500, False, 150), (20, False, 500)])
def test_loading_beside_a_plain_read(
    tmp_path: Path, episode: int, following: bool, most: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """The read itself is a few milliseconds from memory; the rest is summing, checking and, with short episodes, objects."""
    path = flat(tmp_path / "hopper_medium-v2.hdf5", episode, following)
    read, load = fastest(lambda: plain(path)), fastest(lambda: source.load(str(path)), 3)
    dataset = source.load(str(path))
    fill = fastest(lambda: from_dataset(dataset, RewardTransform(), 0), 2)
    with capsys.disabled():
        costs = f"read {read:.3f} s, load {load:.3f} s ({load / read:.0f} x), replay {fill:.3f} s"
        print(f"\n{ROWS} rows, {len(dataset.episodes)} episodes: {costs}")
    assert len(dataset.episodes) == ROWS // episode and dataset.steps == ROWS
    assert load < most * read + 0.1 and fill < most * read + 0.1


@pytest.mark.parametrize("following", [True, False])
def test_memory_is_little_more_than_the_arrays(tmp_path: Path, following: bool) -> None:
    path = flat(tmp_path / "hopper_medium-v2.hdf5", 500, following, 1_000_000)
    size = plain(path)
    tracemalloc.start()
    dataset = source.load(str(path))
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept <= most < 1.2 * size
    assert np.shares_memory(dataset.episodes[0].actions, dataset.episodes[-1].actions.base)  # slices are views


def test_pictures_that_are_not_used_are_not_touched(tmp_path: Path) -> None:
    """A chunk of the pictures is broken: whoever reads it fails."""
    path = write(tmp_path / "image.hdf5", {"demo_0": 5, "demo_1": 4})
    before = source.load(str(path))
    pictures = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    with h5py.File(path, "a") as file:
        stored = file["data/demo_0"].create_dataset("obs/agentview_image", data=pictures, compression="gzip")
        where = stored.id.get_chunk_info(0)
    with path.open("r+b") as handle:
        handle.seek(where.byte_offset)
        handle.write(b"\xff" * where.size)
    with h5py.File(path) as file, pytest.raises(OSError):
        file["data/demo_0/obs/agentview_image"][()]
    assert source.load(str(path)).hash == before.hash
