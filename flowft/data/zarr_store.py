"""A zarr group in a folder or a zip: what it holds, told by its metadata alone, and single arrays of numbers, read with zarr.

Nothing but the arrays that are asked for is opened: pictures often need codecs that are not installed. An array whose codec
would unpickle what the file holds is refused.
"""

from __future__ import annotations

import json
import re
import shlex
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from flowft.data.check import Numbers
from flowft.data.files import zarr_in_zip
from flowft.errors import DataError, MissingExtra

METADATA = (".zarray", "zarr.json")
# What decodes bytes to numbers and nothing more. (numcodecs has one that unpickles.)
CODECS = (
    "blosc", "zstd", "gzip", "zlib", "lz4", "bz2", "lzma", "delta", "shuffle", "bitround", "fixedscaleoffset", "quantize", "packbits",
    "astype", "crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3", "bytes", "transpose", "sharding_indexed",
)  # fmt: skip
DAMAGE = (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class Store:
    """`path`: the folder or the zip. A zip may hold the group in a folder of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zipped = path.is_file()
        try:
            self._entries = frozenset(zipfile.ZipFile(path).namelist() if self.zipped else ())
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is a damaged zip: {_line(error)}") from error
        self.prefix = self._prefix()

    def _prefix(self) -> str:
        """The folder inside the zip; "" where the group is the zip's root."""
        tails = [f"meta/episode_ends/{kind}" for kind in METADATA]
        found = {name.removesuffix(tail) for tail in tails for name in self._entries if f"/{name}".endswith(f"/{tail}")}
        if len(found) > 1:
            inside = ", ".join(sorted(found))
            raise DataError(f"{self.path} holds several replay buffers ({inside})", f"unzip {shlex.quote(str(self.path))}")
        return found.pop() if found else ""

    def names(self, group: str) -> list[str]:
        """The arrays of a group."""
        if not self.zipped:
            children = (self.path / group).iterdir() if (self.path / group).is_dir() else ()
            return sorted(child.name for child in children if any((child / kind).is_file() for kind in METADATA))
        start = f"{self.prefix}{group}/"
        inside = [name.removeprefix(start).split("/") for name in self._entries if name.startswith(start)]
        return sorted({words[0] for words in inside if len(words) == 2 and words[1] in METADATA})

    def shape(self, key: str) -> tuple[int, ...]:
        """An array's shape, by its metadata; () where they do not tell."""
        shape = self._metadata(key).get("shape")
        return tuple(int(n) for n in shape) if isinstance(shape, list) and all(isinstance(n, int) for n in shape) else ()

    def holds_numbers(self, key: str) -> bool:
        """By its metadata: format 2 writes <f4, format 3 float32."""
        facts = self._metadata(key)
        return re.match(r"[<>|]?[fiub]\d|float|u?int|bool", str(facts.get("dtype", facts.get("data_type")))) is not None

    def _metadata(self, key: str) -> dict[str, Any]:
        for kind in METADATA:
            try:
                raw = self._bytes(f"{key}/{kind}")
                facts = json.loads(raw) if raw is not None else None
            except (*DAMAGE, UnicodeDecodeError) as error:
                raise DataError(f"{self.path}:{key}/{kind} cannot be read: {_line(error)}") from error
            if isinstance(facts, dict):
                return facts
        return {}

    def _bytes(self, name: str) -> bytes | None:
        if not self.zipped:
            file = self.path / name
            return file.read_bytes() if file.is_file() else None
        if self.prefix + name not in self._entries:
            return None
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(self.prefix + name)

    def read(self, key: str) -> tuple[Numbers, int]:
        """An array of numbers, and how many of its chunks are not stored (zarr gives the fill value for those)."""
        facts = self._metadata(key)
        if not facts.get("shape") or not ("dtype" in facts or "data_type" in facts):
            raise DataError(f"{self.path}:{key} is no zarr array: its metadata have no shape and type")
        if foreign := [name for name in _codecs(facts) if name.removeprefix("numcodecs.") not in CODECS]:
            raise DataError(f"{self.path}:{key} is packed with {foreign[0]!r}, which flowft does not unpack")
        zarr = _zarr(self.path)
        store = zarr.storage.ZipStore(self.path, mode="r") if self.zipped else zarr.storage.LocalStore(self.path, read_only=True)
        try:
            array = zarr.open_array(store, path=self.prefix + key, mode="r")
            values = np.asarray(array[...])
            missing = int(array.nchunks) - int(array.nchunks_initialized)
        except DAMAGE as error:
            raise DataError(f"{self.path}:{key} is damaged: {_line(error)}") from error
        finally:
            store.close()
        if values.dtype.kind not in "fiub":
            raise DataError(f"{self.path}:{key} holds {values.dtype}, not numbers")
        return values, missing


def looks_like(path: Path) -> bool:
    """A folder or a zip with zarr's metadata files."""
    if path.is_dir():
        roots = (path, path / "data", path / "meta", path / "meta/episode_ends")
        return any((root / name).is_file() for root in roots for name in (".zgroup", *METADATA))
    return zarr_in_zip(path)


def _codecs(facts: dict[str, Any]) -> list[str]:
    """Names of the compressor and the filters, of either format."""
    packed = [facts.get("compressor"), *(facts.get("filters") or [])] if "dtype" in facts else list(facts.get("codecs") or [])
    names = [str(one.get("id", one.get("name"))) if isinstance(one, dict) else str(one) for one in packed if one is not None]
    inner = [one["configuration"] for one in packed if isinstance(one, dict) and isinstance(one.get("configuration"), dict)]
    return names + [name for one in inner if "codecs" in one for name in _codecs({"codecs": one["codecs"]})]


def _zarr(path: Path) -> Any:
    try:
        import zarr
        import zarr.storage
    except ImportError as error:
        raise MissingExtra("zarr", "zarr", f"reading {path}") from error
    return zarr


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
