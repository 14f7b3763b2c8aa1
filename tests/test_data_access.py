"""Access: who may read a dataset's file, who holds it, what it takes to unpack it, where it comes from."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from flowft.cli.main import run
from flowft.data import source
from flowft.data.source import Options
from flowft.errors import DataError

from .test_data_fixes import check, paste
from .test_data_robomimic import write


def test_a_file_held_by_a_writer_is_not_called_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "being written.hdf5", {"demo_0": 4, "demo_1": 5})
    with h5py.File(path, "r+"):
        done = subprocess.run([sys.executable, "-m", "flowft", *check(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "open for writing in another program" in done.stdout and "damaged" not in done.stdout
        fix = done.stdout.split("  fix: ")[1].strip().replace("flowft", f"{sys.executable} -m flowft", 1)
        mended = subprocess.run(fix, shell=True, capture_output=True, text=True, check=False)
        assert mended.returncode == 0 and "no problems: 2 episodes" in mended.stdout
    assert run(check(path)) == 0


def test_a_file_whose_writer_was_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With SWMR on it can be read as its readers do; without, the mark has to be cleared."""
    sound = write(tmp_path / "sound.hdf5", {"demo_0": 4, "demo_1": 5})
    code = (
        "import h5py, os, sys; s = h5py.File(sys.argv[1], 'r'); h = h5py.File(sys.argv[2], 'w', libver='latest'); s.copy('data', h)\n"
        "h.flush()\nif sys.argv[3] == 'swmr': h.swmr_mode = True\nh.flush(); os._exit(9)"
    )
    for how in ("swmr", "plain"):
        path = tmp_path / f"killed, {how}.hdf5"
        subprocess.run([sys.executable, "-c", code, str(sound), str(path), how], check=False)
        status = run(check(path))
        out, err = capsys.readouterr()
        if status == 0:
            assert "no problems: 2 episodes" in out and "marked as being written" in err
        else:
            assert "its writer was killed" in out and f"h5clear -s {shlex.quote(str(path))}" in out and "damaged" not in out


def test_a_compression_that_is_not_installed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = pytest.importorskip("hdf5plugin")
    path = write(tmp_path / "packed.hdf5", {"demo_0": 4})
    with h5py.File(path, "a") as file:
        actions = file["data/demo_0/actions"][()]
        del file["data/demo_0/actions"]
        file["data/demo_0"].create_dataset("actions", data=actions, **plugin.Zstd())
    without = f"import sys; sys.modules['hdf5plugin'] = None\nfrom flowft.cli.main import run\nsys.exit(run({check(path)!r}))"
    done = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == (
        f"{path}:data/demo_0/actions: compressed with the HDF5 filter zstd (32015), which is not installed\n  fix: pip install hdf5plugin\n"
    )
    with_it = subprocess.run([sys.executable, "-m", "flowft", *check(path)], capture_output=True, text=True, check=False)
    assert with_it.returncode == 0


def test_a_virtual_dataset_whose_file_is_gone_is_not_read_as_zeros(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, other = write(tmp_path / "merged.hdf5", {"demo_0": 4, "demo_1": 5}), tmp_path / "part.hdf5"
    with h5py.File(path, "a") as file, h5py.File(other, "w") as part:
        part["actions"] = file["data/demo_1/actions"][()]
        del file["data/demo_1/actions"]
        layout = h5py.VirtualLayout((5, 7), "f8")
        layout[:] = h5py.VirtualSource("part.hdf5", "actions", (5, 7))
        file["data/demo_1"].create_virtual_dataset("actions", layout)
    before = source.load(str(path))
    assert before.steps == 9 and before.episodes[1].actions.any()
    other.rename(tmp_path / "moved.hdf5")
    assert run(check(path)) == 1
    out = capsys.readouterr().out
    assert f"data/demo_1/actions: is put together from part.hdf5, and there is no file {other}" in out
    assert paste(out.split("  fix: ")[1].strip()) == 0


def test_damaged_files_of_an_id_are_got_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFT_DATASETS", str(tmp_path))
    for dataset_id, place, fix in (
        ("d4rl/door-human-v1", "d4rl/door-human-v1.hdf5", "flowft data download d4rl/door-human-v1"),
        ("scripted/lift", "scripted/lift.hdf5", "flowft data generate scripted/lift --force"),
    ):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(b"")
        with pytest.raises(DataError, match="empty") as raised:
            source.load(dataset_id)
        assert raised.value.fix == fix
        with pytest.raises(DataError, match="empty") as raised:
            source.load(str(tmp_path / place))
        assert raised.value.fix is None  # nobody knows where a file came from


def test_a_misspelt_file_name_is_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "my demos.hdf5", {"demo_0": 4})
    with pytest.raises(DataError, match="no file") as raised:
        source.load(str(tmp_path / "my demo.hdf5"))
    assert paste(str(raised.value.fix)) == 0
    with pytest.raises(DataError, match="none of the layouts") as raised:
        source.load(str(tmp_path))  # its folder
    assert paste(str(raised.value.fix)) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may read everything")
def test_permission_is_given_by_what_is_offered(tmp_path: Path) -> None:
    path = write(tmp_path / "mine alone.hdf5", {"demo_0": 4})
    path.chmod(0)
    with pytest.raises(DataError, match="may not be read") as raised:
        source.load(str(path))
    assert paste(str(raised.value.fix)) == 0 and source.load(str(path), Options()).steps == 4
