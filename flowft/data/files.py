"""Opening dataset files: everything that can be wrong with a file becomes one sentence that names it."""

from __future__ import annotations

import os
import re
import shlex
import struct
import traceback
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from flowft.data import hdf5_faults
from flowft.errors import DamagedFile, DataError

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# What numpy and zipfile raise for damaged files, and for a bare npy file.
NPZ_ERRORS = (
    OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, RuntimeError, MemoryError, OverflowError, SyntaxError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


def require_readable(path: Path, wholly: bool = False) -> None:
    """DataError unless `path` is a folder or a file that can be opened and is HDF5 or npz (as far as its head tells, or `wholly`)."""
    if path.is_dir():
        return
    head = _head(path)
    if not head:
        raise DamagedFile(f"{path} is empty (0 bytes)")
    if head == HDF5_SIGNATURE:
        with open_hdf5(path):
            return
    if head.startswith(b"PK") and zarr_in_zip(path):
        return
    if head.startswith(b"PK"):
        with open_npz(path) as arrays:
            for key in arrays if wholly else ():
                arrays[key]
            return
    if head.startswith(b"version "):
        where = shlex.quote(str(path.parent))
        fix = f"git -C {where} lfs pull --include {shlex.quote(path.name)}"
        raise DamagedFile(f"{path} is a Git LFS pointer, not the data themselves", fix)
    raise DamagedFile(f"{path} is neither HDF5 nor npz (it begins with {head!r})")


def is_hdf5(path: Path) -> bool:
    """Does it begin as an HDF5 file does? (Whether it is whole is `open_hdf5`'s to say.)"""
    try:
        return path.is_file() and _head(path) == HDF5_SIGNATURE
    except DataError:
        return False


def is_npz(path: Path) -> bool:
    """Does it begin as a zip archive does, which npz files are?"""
    try:
        return path.is_file() and _head(path).startswith(b"PK")
    except DataError:
        return False


def zarr_in_zip(path: Path) -> bool:
    """A zip with zarr's metadata files, which numpy's archives have not."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rpartition("/")[2] in (".zgroup", ".zarray", "zarr.json") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The open file; DataError for what h5py and the system say about it, also while it is read."""
    if path.is_dir():
        raise DataError(f"{path} is a folder, not an HDF5 file")
    if (head := _head(path)) != HDF5_SIGNATURE:
        size = "empty (0 bytes)" if not head else f"not HDF5 (it begins with {head!r})"
        raise DamagedFile(f"{path} is {size}")
    hdf5_faults.use_plugins()
    try:
        with _opened(path) as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:  # h5py's, for damaged files
        if not _from_h5py(error):
            raise
        raise hdf5_faults.explain(path, error) from error


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError:
        if (file := hdf5_faults.open_despite(path)) is None:
            raise
        return file


class Npz(Mapping[str, npt.NDArray[Any]]):
    """The arrays of an npz file, each read when it is asked for."""

    def __init__(self, path: Path, archive: Any) -> None:
        self.path, self._archive = path, archive

    def __getitem__(self, key: str) -> npt.NDArray[Any]:
        if key not in self._archive.files:
            raise KeyError(key)
        with _whole_npz(self.path):
            array: npt.NDArray[Any] = self._archive[key]
            return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive.files)

    def __len__(self) -> int:
        return len(self._archive.files)

    def __contains__(self, key: object) -> bool:
        return key in self._archive.files


@contextmanager
def open_npz(path: Path) -> Iterator[Npz]:
    """The arrays of an npz file; DataError when it is none, is damaged, or holds Python objects (which are never unpickled)."""
    _head(path)  # permission and existence
    with _whole_npz(path):
        archive = np.load(path, allow_pickle=False)
        if not hasattr(archive, "files"):
            raise ValueError("it is no archive")
    with archive:
        yield Npz(path, archive)


@contextmanager
def _whole_npz(path: Path) -> Iterator[None]:
    try:
        yield
    except NPZ_ERRORS as error:
        # numpy's own words advise to unpickle it
        reason = "it is no archive, or holds Python objects" if "pickle" in str(error) else hdf5_faults.reason(error)
        raise DamagedFile(f"{path} is not a whole npz file: {reason}") from error


def being_written(file: h5py.File) -> list[str]:
    """A note for a file that was opened although it is marked as being written."""
    mark = "the file is marked as being written: read as far as its writer, which may have been killed, has flushed it"
    return [mark] if file.swmr_mode else []


def numeric_order(names: Iterator[str] | list[str]) -> list[str]:
    """demo_2 before demo_10: by the number at the end, then by the name."""
    return sorted(names, key=lambda name: (int(tail[0]) if (tail := re.findall(r"\d+$", name)) else -1, name))


def names(group: h5py.Group) -> list[str]:
    """What a group holds, printable. A damaged file's names may be no UTF-8, which h5py gives as bytes, or control characters."""
    return [name if (name := text(raw)).isprintable() else name.encode("unicode_escape").decode() for raw in group]


def text(value: Any) -> str:
    """An HDF5 string attribute or scalar, which h5py gives as str, bytes or a numpy scalar of either."""
    value = value.item() if isinstance(value, (np.ndarray, np.generic)) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            return handle.read(8)
    except FileNotFoundError as error:
        raise DataError(f"no file {str(path)!r}", "flowft data list") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not a file") from error
    except PermissionError as error:
        raise _forbidden(path) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {hdf5_faults.reason(error)}") from error


def _forbidden(path: Path) -> DataError:
    """Only the owner may change who may read."""
    what = f"{path} may not be read by this user ({os.environ.get('USER', os.getuid())})"
    try:
        mine = path.stat().st_uid == os.getuid()
    except OSError:
        mine = False
    return DataError(what if mine else f"{what}: its owner may allow it", f"chmod u+r {shlex.quote(str(path))}" if mine else None)


def _from_h5py(error: BaseException) -> bool:
    """Was it raised inside h5py? The same exceptions from our own lines are mistakes of ours and must be seen as such."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any("h5py" in frame.f_code.co_filename for frame in frames)
