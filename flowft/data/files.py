"""Opening dataset files: everything that can be wrong with a file becomes one sentence that names it."""

from __future__ import annotations

import os
import re
import struct
import traceback
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from flowft.errors import DataError

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# What numpy and zipfile raise for damaged files, and for a bare npy file.
NPZ_ERRORS = (
    OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, RuntimeError, MemoryError, OverflowError, SyntaxError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip
AGAIN = "get the file again, e.g. flowft data download ID (the ids: flowft data list)"


def require_readable(path: Path) -> None:
    """DataError unless `path` is a folder or a file that can be opened and is HDF5 or npz (whole, as far as its head tells)."""
    if path.is_dir():
        return
    head = _head(path)
    if not head:
        raise DataError(f"{path} is empty (0 bytes)", AGAIN)
    if head == HDF5_SIGNATURE:
        with open_hdf5(path):
            return
    if head.startswith(b"PK") and zarr_in_zip(path):
        return
    if head.startswith(b"PK"):
        with open_npz(path):
            return
    if head.startswith(b"version "):
        raise DataError(f"{path} is a Git LFS pointer, not the data themselves", AGAIN)
    raise DataError(f"{path} is neither HDF5 nor npz (it begins with {head!r})", AGAIN)


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
        raise DataError(f"{path} is a folder, not an HDF5 file", f"ls {path}")
    if (head := _head(path)) != HDF5_SIGNATURE:
        size = "empty (0 bytes)" if not head else f"not HDF5 (it begins with {head!r})"
        raise DataError(f"{path} is {size}", AGAIN)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:  # h5py's, for damaged files
        if not _from_h5py(error):
            raise
        raise DataError(f"{path} is a damaged HDF5 file: {_reason(error)}", AGAIN) from error


@contextmanager
def open_npz(path: Path) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """All arrays of an npz file; DataError when it is none, is damaged, or holds Python objects (which are never unpickled)."""
    _head(path)  # permission and existence
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except NPZ_ERRORS as error:
        # numpy's own words advise to unpickle it
        reason = "it is no archive, or holds Python objects" if "pickle" in str(error) else _reason(error)
        raise DataError(f"{path} is not a whole npz file: {reason}", AGAIN) from error
    yield arrays


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
        raise DataError(f"{path} is a folder, not a file", f"ls {path}") from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read by this user ({os.environ.get('USER', os.getuid())})", f"chmod u+r {path}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {_reason(error)}") from error


def _from_h5py(error: BaseException) -> bool:
    """Was it raised inside h5py? The same exceptions from our own lines are mistakes of ours and must be seen as such."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any("h5py" in frame.f_code.co_filename for frame in frames)


def _reason(error: BaseException) -> str:
    """One line of an exception, shortened: h5py wraps the cause in brackets, with addresses nobody needs."""
    line = " ".join(str(error).strip("'\"").split())
    inner = re.search(r"\((.*)\)$", line)
    if isinstance(error, OSError) and inner and "truncated" in line:
        sizes = [int(n) for n in re.findall(r"= (\d+)", line)]
        return f"truncated ({sizes[0]} of {sizes[-1]} bytes)" if len(sizes) >= 2 else "truncated"
    return line[:200] or type(error).__name__
