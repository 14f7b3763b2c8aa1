"""One file over HTTP: resumed where it broke off, verified, renamed when whole."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flowft.data.files import require_readable
from flowft.data.source import sha256 as sha256_of
from flowft.errors import DataError

TIMEOUT = 5  # seconds to wait for a server's answer: no network must be said at once
BLOCK = 1 << 18
AGAIN = "flowft data download"  # the same again, which continues where it broke off; the id is added by who knows it


class Unreachable(Exception):
    """The server cannot be reached; the reason in words."""


def fetch(url: str, path: Path, size: int | None = None, sha256: str | None = None, progress: bool = True) -> Path:
    """Bring `url` to `path`. `size` (bytes) and `sha256`: where published; else the server's own size is checked.

    What has arrived is kept beside `path` as `.<name>.<tag>.part` and continued by the next call; the tag is of the
    server's version of the file, so that halves of two versions never meet. Raises Unreachable, DataError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _open(urllib.request.Request(url, method="HEAD"), url) as answer:
        told = int(answer.headers.get("Content-Length") or 0) or None
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    if size is not None and told is not None and told != size:
        raise DataError(f"{url} has {told} bytes, not the {size} that were published: it is another file now")
    total = size or told
    part = path.with_name(f".{path.name}.{hashlib.sha256(f'{url} {version}'.encode()).hexdigest()[:8]}.part")
    have = part.stat().st_size if part.exists() else 0
    room_for(None if total is None else total - have, path)
    if total is None or have != total:
        _append(url, part, have, total, path.name, progress)
    finish(part, path, total, sha256)
    return path


def finish(part: Path, path: Path, size: int | None, sha256: str | None) -> None:
    """Give a whole, verified file its final name; one that is neither is removed, so that the next call begins anew."""
    found = part.stat().st_size
    if size is not None and found < size:
        raise DataError(f"the download of {path} broke off at {found} of {size} bytes", AGAIN)
    wrong = f"{found} bytes, not {size}" if size is not None and found != size else ""
    if not wrong and sha256 is not None and (digest := sha256_of(part)) != sha256:
        wrong = f"sha256 {digest[:12]}…, not {sha256[:12]}…"
    if wrong:
        part.unlink()
        raise DataError(f"the download of {path} is damaged ({wrong}) and was removed", AGAIN)
    try:
        require_readable(part, wholly=True)
    except DataError as error:
        part.unlink()
        raise DataError(f"what the server sent for {path} is no dataset: {error.what}", AGAIN) from error
    os.replace(part, path)


def room_for(size: int | None, path: Path) -> None:
    """DataError when the disk cannot take so many bytes more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if size is not None and free < size:
        instead = "$FLOWFT_DATASETS may name a folder on another disk"
        raise DataError(f"{path} needs {size / 1e6:.0f} MB more, the disk has {free / 1e6:.0f} MB: {instead}")


def _append(url: str, part: Path, have: int, total: int | None, name: str, progress: bool) -> None:
    """Continue `part` from byte `have`; a server that cannot continue sends the whole file."""
    headers = {"Range": f"bytes={have}-"} if have else {}
    interval = 0.5 if sys.stderr.isatty() else 60
    try:
        with _open(urllib.request.Request(url, headers=headers), url) as answer:
            resumed = have if answer.status == 206 else 0
            bar = tqdm(total=total, initial=resumed, desc=name, unit="B", unit_scale=True, mininterval=interval, disable=not progress)
            with bar, part.open("ab" if resumed else "wb") as handle:
                while block := answer.read(BLOCK):
                    handle.write(block)
                    bar.update(len(block))
    except (OSError, http.client.HTTPException) as error:
        arrived = part.stat().st_size if part.exists() else 0
        raise DataError(f"the download of {name} broke off at {arrived} bytes: {error}", AGAIN) from error


def _open(request: urllib.request.Request, url: str) -> Any:
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        raise DataError(f"{url}: the server answers {error.code} ({error.reason})") from error
    except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        host = url.split("/")[2]
        raise Unreachable(f"{host}: {getattr(reason, 'strerror', None) or reason}") from error
