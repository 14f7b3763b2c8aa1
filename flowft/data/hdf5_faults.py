"""What is wrong with an HDF5 file that cannot be opened or read, in one sentence, with the command that mends it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py

from flowft.errors import DamagedFile, DataError

# Registered filters that data are seen to be compressed with: https://github.com/HDFGroup/hdf5_plugins
FILTERS = {
    4: "szip", 305: "lzo", 307: "bzip2", 32000: "lzf", 32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32013: "zfp", 32014: "fpzip",
    32015: "zstd", 32017: "sz", 32018: "fcidecomp", 32019: "jpeg", 32024: "sz3", 32026: "blosc2", 32028: "sperr", 32030: "h5pl-crf",
}  # fmt: skip


def explain(path: Path, error: BaseException) -> DataError:
    """The error to tell for what h5py raised while `path` was opened or read."""
    said = str(error)
    if isinstance(error, BlockingIOError) or "unable to lock file" in said:
        return _locked(path)
    if "h5clear" in said or "already open for" in said:
        return _killed(path)
    if "external link" in said or "external file" in said:
        return DataError(f"{path} links to another file, which cannot be opened: {reason(error)}")
    if "plugin" in said or "required filter" in said or "filter returned failure" in said or "filter is not registered" in said:
        if missing := missing_filter(path):
            key, number = missing
            name = FILTERS.get(number, "unknown")
            what = f"{path}:{key}: compressed with the HDF5 filter {name} ({number}), which is not installed"
            return DataError(what, "pip install hdf5plugin" if find_spec("hdf5plugin") is None else None)
    return DamagedFile(f"{path} is a damaged HDF5 file: {reason(error)}")


def use_plugins() -> None:
    """Let HDF5 find the filters of the package hdf5plugin, where it is installed (without importing it)."""
    spec = find_spec("hdf5plugin")
    for place in spec.submodule_search_locations or () if spec else ():
        folder = os.path.join(place, "plugins").encode()
        known = [h5py.h5pl.get(i) for i in range(h5py.h5pl.size())]
        if folder not in known:
            h5py.h5pl.append(folder)


def open_despite(path: Path) -> h5py.File | None:
    """A file whose writer (of HDF5's SWMR kind) is still at work or was killed, as its readers open it; None if that is not what it is."""
    try:
        return h5py.File(path, "r", swmr=True)
    except (OSError, ValueError):
        return None


def link_gone(group: h5py.Group, key: str) -> str | None:
    """Where a link leads whose target is not there, in words; None for what is no such link.

    A virtual dataset whose files are gone is one, too: HDF5 would give its fill value for what they held.
    """
    try:
        link = group.get(key, getlink=True)
    except (KeyError, ValueError):
        return None
    if (item := group.get(key)) is not None:
        return sources_gone(item) if isinstance(item, h5py.Dataset) else None
    if isinstance(link, h5py.SoftLink):
        return f"links to {link.path}, which is not in the file"
    if not isinstance(link, h5py.ExternalLink):
        return None
    target = Path(group.file.filename).parent / link.filename
    if not target.is_file():
        return f"links to {link.path} of {link.filename}, and there is no file {target}"
    try:
        with h5py.File(target, "r"):
            return f"links to {link.path} of {target}, which has nothing of that name"
    except OSError as error:
        return f"links to {link.path} of another file: {explain(target, error).what}"


def sources_gone(dataset: h5py.Dataset) -> str | None:
    """A file that a virtual dataset is put together from and that is not there; None for all others."""
    if not dataset.is_virtual:
        return None
    files = {source.file_name for source in dataset.virtual_sources()} - {"."}
    folder = Path(dataset.file.filename).parent
    gone = sorted(name for name in files if not (folder / name).is_file())
    return f"is put together from {gone[0]}, and there is no file {folder / gone[0]}" if gone else None


def missing_filter(path: Path) -> tuple[str, int] | None:
    """The first array that needs a filter which is not there, and that filter's number."""
    found: list[tuple[str, int]] = []

    def look(name: str, item: Any) -> bool | None:
        if isinstance(item, h5py.Dataset):
            plist = item.id.get_create_plist()
            numbers = [plist.get_filter(i)[0] for i in range(plist.get_nfilters())]
            found.extend((name, number) for number in numbers if not h5py.h5z.filter_avail(number))
        return True if found else None

    try:
        with h5py.File(path, "r") as file:
            file.visititems(look)
    except (OSError, RuntimeError, KeyError, ValueError):
        return None
    return found[0] if found else None


def reason(error: BaseException) -> str:
    """One line of an exception, shortened: h5py wraps the cause in brackets, with addresses nobody needs."""
    line = " ".join(str(error).strip("'\"").split())
    inner = re.search(r"\((.*)\)$", line)
    if isinstance(error, OSError) and inner and "truncated" in line:
        sizes = [int(n) for n in re.findall(r"= (\d+)", line)]
        return f"truncated ({sizes[0]} of {sizes[-1]} bytes)" if len(sizes) >= 2 else "truncated"
    return line[:200] or type(error).__name__


def _locked(path: Path) -> DataError:
    """Held by a writer. What it has flushed can be read, if it can be, by telling HDF5 not to ask for the lock."""
    what = f"{path} is open for writing in another program, which holds a lock on it: close it there"
    try:
        with h5py.File(path, "r", locking=False) as file:
            file.visit(lambda name: None)
    except (OSError, RuntimeError, KeyError, ValueError):
        return DataError(what)
    fix = f"HDF5_USE_FILE_LOCKING=FALSE flowft data check {shlex.quote(str(path))}"
    return DataError(f"{what}, or read what it has written so far", fix)


def _killed(path: Path) -> DataError:
    """Marked as open for writing. The mark of a writer that was killed stays until `h5clear` takes it away."""
    if _in_use(path):
        return _locked(path)
    clear = f"h5clear -s {shlex.quote(str(path))}"
    what = f"{path} is marked as open for writing, and no program holds it: its writer was killed; the mark can be cleared"
    if shutil.which("h5clear") is None:
        return DataError(f"{what} with h5clear, of HDF5's tools", f"apt-get install -y hdf5-tools && {clear}")
    return DataError(what, clear)


def _in_use(path: Path) -> bool:
    """Does another program hold HDF5's lock on the file?"""
    with path.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EACCES)
    return False
