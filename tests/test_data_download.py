"""Downloads against a server of our own: whole, resumed, damaged, refused, and without any network."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flowft.data.download import V01_PH, download, files
from flowft.data.fetch import Unreachable, fetch, room_for
from flowft.errors import DataError, UsageError


class Server(ThreadingHTTPServer):
    """Serves `content` under every path that ends in .hdf5; `stop_after` bytes it hangs up."""

    daemon_threads = True
    content = b""
    stop_after: int | None = None
    tag: str | None = None  # the checksum that it claims

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    ranges: list[str] = []

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        if not self.path.split("?")[0].endswith(".hdf5"):
            self.send_error(404)
            return
        content, asked = self.server.content, self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").rstrip("-").split("-")[0]) if asked else 0
        if body and asked:
            self.ranges.append(asked)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", f'"{self.server.tag or hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(content[start : self.server.stop_after])

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    source = tmp_path / "source.hdf5"
    with h5py.File(source, "w") as file:
        file["data/demo_0/actions"] = np.random.default_rng(0).uniform(-1, 1, (4000, 7))
    server = Server(("127.0.0.1", 0), Handler)
    server.content = source.read_bytes()
    Handler.ranges = []
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_a_whole_file_is_verified_and_named(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.hdf5"
    digest = hashlib.sha256(server.content).hexdigest()
    assert fetch(f"{server.url}/x.hdf5", path, len(server.content), digest, progress=False) == path
    assert path.read_bytes() == server.content and left_in(path.parent) == ["b.hdf5"]


def test_an_interrupted_download_continues_where_it_broke_off(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.hdf5"
    server.stop_after = 100_000
    with pytest.raises(DataError, match="broke off at 100000"):
        fetch(f"{server.url}/x.hdf5", path, progress=False)
    assert not path.exists() and len(left_in(path.parent)) == 1  # never a half file under the final name
    server.stop_after = None
    fetch(f"{server.url}/x.hdf5", path, progress=False)
    assert Handler.ranges == ["bytes=100000-"]
    assert path.read_bytes() == server.content and left_in(path.parent) == ["b.hdf5"]


def test_halves_of_two_versions_never_meet(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.hdf5"
    server.stop_after = 100_000
    with pytest.raises(DataError):
        fetch(f"{server.url}/x.hdf5", path, progress=False)
    server.stop_after, server.content = None, server.content[:50_000] + b"x" + server.content[50_001:]
    fetch(f"{server.url}/x.hdf5", path, progress=False)
    assert path.read_bytes() == server.content


def test_a_wrong_checksum_size_or_content_leaves_nothing(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.hdf5"
    with pytest.raises(DataError, match="is damaged .sha256"):
        fetch(f"{server.url}/x.hdf5", path, None, "0" * 64, progress=False)
    with pytest.raises(DataError, match="bytes, not the 5 that were published"):
        fetch(f"{server.url}/x.hdf5", path, 5, None, progress=False)
    server.content = b"<html>please log in</html>"
    with pytest.raises(DataError, match="is no dataset"):
        fetch(f"{server.url}/x.hdf5", path, progress=False)
    assert left_in(path.parent) == []


def test_what_the_server_does_not_have_and_a_server_that_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the server answers 404"):
        fetch(f"{server.url}/x", tmp_path / "x.hdf5")
    with pytest.raises(Unreachable, match="refused"):
        fetch("http://127.0.0.1:9/x.hdf5", tmp_path / "x.hdf5")


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="MB more, the disk has"):
        room_for(10**18, tmp_path / "x")


def flowft(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flowft", "data", *arguments], capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "FLOWFT_DATASETS": str(folder), "HF_HUB_DISABLE_XET": "1", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("identifier", ["robomimic/can/mh", "robomimic/square", "minari/D4RL/door/human-v2"])
def test_without_network_one_sentence_at_once(tmp_path: Path, identifier: str) -> None:
    pytest.importorskip("huggingface_hub")
    home = str(tmp_path / "minari")
    began = time.monotonic()
    done = flowft("download", identifier, folder=tmp_path / "d", HF_ENDPOINT="http://127.0.0.1:9", MINARI_DATASETS_PATH=home)
    assert time.monotonic() - began < 20
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    what, fix = done.stderr.splitlines()
    task = identifier.split("/")[1]
    instead = f"scripted/{task}" if task in ("can", "square") else "scripted/lift"
    assert "there is no network" in what and instead in what and fix == f"fix: flowft data generate {instead}"
    place = f"{home}/D4RL/door/human-v2/data" if "minari" in identifier else f"{tmp_path}/d/robomimic/{task}/mh/low_dim_v15.hdf5"
    assert place in what


def test_through_the_hub_verified_and_once(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    home = tmp_path / "robomimic" / "can" / "mh"
    server.tag = "0" * 64
    refused = flowft("download", "robomimic/can/mh", folder=tmp_path, HF_ENDPOINT=server.url)
    assert refused.returncode == 1 and "is damaged (sha256" in refused.stderr and left_in(home) == []
    server.tag = None
    done = flowft("download", "robomimic/can/mh", folder=tmp_path, HF_ENDPOINT=server.url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(home / "low_dim_v15.hdf5")
    assert (home / "low_dim_v15.hdf5").read_bytes() == server.content
    assert [path.name for path in home.iterdir()] == ["low_dim_v15.hdf5"]
    again = flowft("download", "robomimic/can/mh", folder=tmp_path, HF_ENDPOINT="http://127.0.0.1:9")  # it is there: nothing is asked
    assert again.returncode == 0


def test_published_places_and_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWFT_DATASETS", str(tmp_path))
    (file,) = files("robomimic/lift/ph", "v0.1")
    assert (file.size, file.sha256) == V01_PH["lift"] and file.path == tmp_path / "robomimic/lift/ph/low_dim.hdf5"
    assert [file.path.name for file in files("ogbench/cube-double-play")] == ["cube-double-play-v0.npz", "cube-double-play-v0-val.npz"]
    assert files("d4rl/hopper-medium-replay-v2")[0].url.endswith("gym_mujoco_v2/hopper_medium_replay-v2.hdf5")
    with pytest.raises(UsageError, match="for ph only"):
        files("robomimic/lift/mh", "v0.1")
    with pytest.raises(UsageError, match="made here, not downloaded"):
        download("scripted/lift")
    with pytest.raises(UsageError, match="did you mean"):
        download("robomimic/cann/ph")


REAL = os.environ.get("FLOWFT_REAL_DATA")


@pytest.mark.skipif(REAL is None, reason="FLOWFT_REAL_DATA is not set: no published checksums")
def test_checksums_are_the_published_ones() -> None:
    lines = (Path(str(REAL)) / "robomimic" / "upstream_ph_checksums.tsv").read_text().splitlines()
    published = {url: (int(size), digest) for url, size, digest, _ in (line.split() for line in lines)}
    for task in V01_PH:
        (file,) = files(f"robomimic/{task}/ph", "v0.1")
        assert published[file.url] == (file.size, file.sha256)
