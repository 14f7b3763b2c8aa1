"""Public dataset files, fetched: resumed after an interruption, verified, and under their final name only when whole.

robomimic's and LeRobot's files come through huggingface_hub (extra `[hub]`), Minari's through the minari package, D4RL's and OGBench's from
their authors' server. Without network the answer comes at once and says where the file would have to lie.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowft.data import d4rl, lerobot, minari_source, ogbench_npz, ogbench_play, robomimic, source
from flowft.data.fetch import AGAIN, TIMEOUT, Unreachable, fetch, finish, room_for
from flowft.data.files import require_readable
from flowft.data.lerobot_folder import root_of
from flowft.errors import DamagedFile, DataError, MissingExtra, UsageError

HUB_REPO = "robomimic/robomimic_datasets"
RAIL = "https://rail.eecs.berkeley.edu/datasets"
# robomimic's first release: (bytes, sha256) of the proficient-human files, from the checksums that TensorFlow Datasets publishes.
V01 = "http://downloads.cs.stanford.edu/downloads/rt_benchmark"
V01_PH = {
    "lift": (18548952, "18106c8c072020672fecdd2a9ffbfe7dc656823cb877f972ade7fad34d2a5b74"),
    "can": (45491992, "2e90c44517dfda237875d61ba52e38c1c6ac5a23a89c9acf8c86cbc3f4c79a5d"),
    "square": (50004112, "aa3cef7b7f9ba6ba8c25a5d1a690d06b2468b55e3a0999ab6e3c188c800355d9"),
    "tool_hang": (201634440, "211e30293d9bb63136dc944ab81e985fb2ed90f6af970f3c3c346be56ccc4dc0"),
    "transport": (309012088, "88d93bb9387a9382541158d9ba6c3a90b208b4bc535234261f6d5b5ada794c3c"),
}
ANTMAZE = {  # D4RL's names of the files of its second version
    "umaze": "u-maze_noisy_multistart_False_multigoal_False", "umaze-diverse": "u-maze_noisy_multistart_True_multigoal_True",
    "medium-play": "big-maze_noisy_multistart_True_multigoal_False", "medium-diverse": "big-maze_noisy_multistart_True_multigoal_True",
    "large-play": "hardest-maze_noisy_multistart_True_multigoal_False",
    "large-diverse": "hardest-maze_noisy_multistart_True_multigoal_True",
}  # fmt: skip


@dataclass(frozen=True)
class File:
    """A public file and where it goes."""

    url: str
    path: Path
    size: int | None = None  # bytes, where published
    sha256: str | None = None


def download(dataset_id: str, version: str = "v1.5", progress: bool = True) -> list[Path]:
    """Fetch the files of an id; those that are there and whole are left alone. Returns where they lie."""
    family = dataset_id.split("/")[0]
    if family == robomimic.NAME and version == "v1.5":
        return [_from_hub(dataset_id, progress)]
    if family == lerobot.NAME:
        return [_lerobot(dataset_id, progress)]
    if family == minari_source.NAME:
        return [_with_minari(dataset_id)]
    return [_plain(dataset_id, file, progress) for file in files(dataset_id, version)]


def files(dataset_id: str, version: str = "v1.5") -> list[File]:
    """The plain files of an id. Raises UsageError for an id that has none."""
    family, _, name = dataset_id.partition("/")
    if family == robomimic.NAME:
        task, (variant, *_) = robomimic.parse(dataset_id if "/" in name else f"{dataset_id}/ph")
        if variant != "ph":
            raise UsageError(f"version {version} is known for ph only, not for {variant}", f"flowft data download {dataset_id}")
        return [File(f"{V01}/{task}/ph/low_dim.hdf5", robomimic.homes(task, "ph")[0] / "low_dim.hdf5", *V01_PH[task])]
    if family == ogbench_npz.NAME:
        stem = ogbench_npz.stem(dataset_id)
        return [File(f"{RAIL}/ogbench/{file}", ogbench_npz.homes()[0] / file) for file in (f"{stem}-v0.npz", f"{stem}-v0-val.npz")]
    if family == d4rl.NAME:
        return [File(f"{RAIL}/offline_rl/{_d4rl_path(dataset_id)}", source.folder() / d4rl.NAME / f"{name}.hdf5")]
    if family == "scripted":
        raise UsageError(f"{dataset_id} is made here, not downloaded", f"flowft data generate {dataset_id}")
    raise UsageError(f"no public files are known for {dataset_id!r}", "flowft data list")


def _d4rl_path(dataset_id: str) -> str:
    """Where D4RL's server keeps a dataset."""
    name = dataset_id.partition("/")[2]
    if found := re.fullmatch(r"(hopper|halfcheetah|walker2d|ant)-([a-z-]+)-v([12])", name):
        return f"gym_mujoco_v{found[3]}/{found[1]}_{found[2].replace('-', '_')}-v{found[3]}.hdf5"
    if re.fullmatch(r"(door|pen|hammer|relocate)-(human|cloned|expert)-v1", name):
        return f"hand_dapg_v1/{name}.hdf5"
    if (found := re.fullmatch(r"antmaze-([a-z-]+)-v2", name)) and found[1] in ANTMAZE:
        return f"ant_maze_v2/Ant_maze_{ANTMAZE[found[1]]}_sparse_fixed.hdf5"
    raise source.bad_id(dataset_id, d4rl.known())


def _plain(dataset_id: str, file: File, progress: bool) -> Path:
    if _is_whole(file.path):
        return file.path
    try:
        return fetch(file.url, file.path, file.size, file.sha256, progress)
    except Unreachable as error:
        raise _no_network(dataset_id, file.path, str(error)) from error


def _from_hub(dataset_id: str, progress: bool) -> Path:
    """A file of robomimic's v1.5 release. The hub keeps the beginnings of files in `.download/`, where it resumes them."""
    task, (variant, *_) = robomimic.parse(dataset_id)
    name = "low_dim_sparse_v15.hdf5" if variant == "mg" else "low_dim_v15.hdf5"
    path = robomimic.homes(task, variant)[0] / name
    if _is_whole(path):
        return path
    hub = _hub(dataset_id)
    remote = f"v1.5/{task}/{variant}/{name}"
    begun = path.parent / ".download"

    def get() -> tuple[str, int | None, str | None]:
        facts = hub.get_hf_file_metadata(hub.hf_hub_url(HUB_REPO, remote, repo_type="dataset"), timeout=TIMEOUT)
        room_for(facts.size, path)
        bars = {} if progress else {"tqdm_class": _silent()}
        got = hub.hf_hub_download(HUB_REPO, remote, repo_type="dataset", local_dir=begun, etag_timeout=TIMEOUT, **bars)
        return got, facts.size, facts.etag

    got, size, etag = _asking_hub(get, dataset_id, path)
    checksum = etag if etag and re.fullmatch(r"[0-9a-f]{64}", etag) else None  # large files' tags are their sha256
    finish(Path(got), path, size, checksum)
    shutil.rmtree(begun, ignore_errors=True)
    return path


def _lerobot(dataset_id: str, progress: bool) -> Path:
    """A LeRobot dataset without its videos, into LeRobot's own cache. Under its final name only when every file is there."""
    name = lerobot.repository(dataset_id)
    path = lerobot.homes()[0] / name
    if root_of(path) is not None:
        return path
    hub = _hub(dataset_id)
    begun = lerobot.homes()[0] / ".download" / name

    def get() -> list[Path]:
        facts = hub.HfApi().dataset_info(name, timeout=TIMEOUT, files_metadata=True)
        wanted = {file.rfilename: file.size for file in facts.siblings if file.rfilename.startswith(("meta/", "data/", "meta_data/"))}
        room_for(sum(size or 0 for size in wanted.values()), path)
        bars = {} if progress else {"tqdm_class": _silent()}
        how = {"repo_type": "dataset", "revision": facts.sha, "allow_patterns": list(wanted), "etag_timeout": TIMEOUT}
        hub.snapshot_download(name, local_dir=begun, **how, **bars)
        return [begun / file for file, size in wanted.items() if not _has(begun / file, size)]

    if missing := _asking_hub(get, dataset_id, path):
        raise DataError(f"the download of {dataset_id} broke off: {missing[0].relative_to(begun)} is not whole", AGAIN)
    if root_of(begun) is None:
        raise DataError(f"{name} on the Hugging Face hub is no LeRobot dataset: it has no meta/info.json", "flowft data list")
    shutil.rmtree(begun / ".cache", ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(begun, path)
    return path


def _has(file: Path, size: int | None) -> bool:
    return file.is_file() and size in (None, file.stat().st_size)


def _hub(dataset_id: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "hub", f"downloading {dataset_id}") from error
    return huggingface_hub


def _with_minari(dataset_id: str) -> Path:
    """Through the minari package, into a folder beside the final one."""
    name = dataset_id.partition("/")[2]
    root = minari_source.homes()[0]
    if (root / name / "data" / "main_data.hdf5").is_file():
        return _whole(root / name / "data" / "main_data.hdf5").parent
    host = re.sub(r"^https?://|/.*$", "", os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:  # the package itself retries for 23 seconds before it says so
        socket.create_connection((host.split(":")[0], int(host.partition(":")[2] or 443)), timeout=TIMEOUT).close()
    except OSError as error:
        raise _no_network(dataset_id, root / name / "data", f"{host}: {error.strerror or error}") from error
    begun, before = root / ".download", os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(begun)  # the package looks there at each call
    try:
        import minari

        _asking_hub(lambda: minari.download_dataset(name), dataset_id, root / name / "data")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(begun / name, root / name)
    finally:
        del os.environ["MINARI_DATASETS_PATH"]
        if before is not None:
            os.environ["MINARI_DATASETS_PATH"] = before
    shutil.rmtree(begun, ignore_errors=True)
    return root / name / "data"


def _asking_hub(get: Callable[[], Any], dataset_id: str, path: Path) -> Any:
    """What `get` returns; the hub's and its HTTP library's exceptions as sentences."""
    from huggingface_hub import errors as hub

    try:
        return get()
    except (hub.EntryNotFoundError, hub.RepositoryNotFoundError) as error:
        raise DataError(f"{dataset_id} is not on the server: {' '.join(str(error).split())[:200]}", "flowft data list") from error
    except (hub.OfflineModeIsEnabled, OSError) as error:
        raise _no_network(dataset_id, path, " ".join(str(error).split())[:200]) from error
    except ValueError as error:  # Minari: no such dataset, no version that this package reads
        raise DataError(f"{dataset_id}: {' '.join(str(error).split())[:200]}", "minari list remote") from error
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):  # its errors are no OSErrors
            raise
        raise _no_network(dataset_id, path, " ".join(str(error).split())[:200]) from error


def _whole(path: Path) -> Path:
    require_readable(path)
    return path


def _is_whole(path: Path) -> bool:
    """Is the file there? A damaged one is got again, and replaced once the new one is whole."""
    try:
        return path.is_file() and _whole(path) == path
    except DamagedFile as error:
        print(f"{error.what}: getting it again", file=sys.stderr)
        return False


def _no_network(dataset_id: str, path: Path, reason: str) -> DataError:
    """One sentence: no network, where the file has to lie, what can be made here instead."""
    family, _, name = dataset_id.partition("/")
    task = name.split("/")[0]
    instead = f"scripted/{task}" if family == robomimic.NAME and task in ("lift", "can", "square") else "scripted/lift"
    if family == ogbench_npz.NAME and (played := ogbench_npz.stem(dataset_id)) in ogbench_play.known():
        instead = f"ogbench/{played}"
    where = f"the file would have to lie at {path}, and {instead} can be made here instead"
    return DataError(f"{dataset_id} cannot be downloaded, there is no network ({reason}): {where}", f"flowft data generate {instead}")


def _silent() -> Any:
    from tqdm import tqdm

    class Silent(tqdm):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **{**keywords, "disable": True})

    return Silent
