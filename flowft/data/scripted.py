"""Demonstrations made here: a scripted expert in the real simulator, written as robomimic HDF5.

Ids: `scripted/<lift|can|square>[/<imperfection>]`. The file is made on first use and kept in the datasets folder. Only
demonstrations that succeed are kept, as human sets do; each ends with the step that succeeds. Every attempt has a seed of
its own, so the number of worker processes does not change the file: same task, episodes, seed and imperfection, same bytes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from flowft import registry
from flowft.data import source
from flowft.data.experts.rollout import Demonstration, attempt
from flowft.data.experts.tasks import TASKS, Task
from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset
from flowft.errors import DataError, UsageError, did_you_mean

NAME = "scripted"
FORMAT = "robomimic HDF5"
READS = "as robomimic HDF5, made here by scripted experts"
GIVE_UP_AFTER = 20  # attempts in a row without a success
VALIDATION_EVERY = 10  # each tenth demonstration is in mask/valid


def known() -> list[str]:
    return [f"scripted/{task}" for task in TASKS]


def matches(path: Path) -> bool:
    """Never: the files are robomimic's layout and are read as such."""
    return False


def locate(dataset_id: str) -> Path:
    """The file of `scripted/<task>[/<imperfection>]`, generated with the task's defaults when it is not there."""
    task, imperfection = _parse(dataset_id)
    path = source.folder() / NAME / (dataset_id.split("/", 1)[1].replace("/", "-") + ".hdf5")
    if not path.is_file():
        print(f"{path} is not there yet: generating {TASKS[task].episodes} demonstrations", file=sys.stderr)
        generate(task, path, imperfection=imperfection)
    return path


def read(path: Path, dataset_id: str, problems: Problems, options: Options) -> Dataset:
    """As the robomimic file that it is."""
    dataset: Dataset = registry.get("sources", "robomimic").read(path, dataset_id, problems, options)
    return dataclasses.replace(dataset, source=NAME)


def generate(
    task: str,
    path: str | Path,
    episodes: int | None = None,
    seed: int = 0,
    imperfection: float | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Path:
    """Write `episodes` successful demonstrations of `task` ("lift" or "scripted/lift") to `path`; returns it.

    `imperfection` >= 0: 0 is the clean expert, None the task's own, at which cloning reaches an intermediate success rate.
    About 150 simulator steps a second for each worker. Nothing lies under the final name until the file is whole.
    """
    task, variant = _parse(f"scripted/{task.removeprefix('scripted/')}")
    found = TASKS[task]
    episodes = found.episodes if episodes is None else episodes
    level = next(v for v in (imperfection, variant, found.imperfection) if v is not None)
    for name, value, least in (("--episodes", episodes, 1), ("--workers", workers, 1), ("--seed", seed, 0), ("--imperfection", level, 0)):
        if not value >= least or value == float("inf"):
            raise UsageError(f"{name} {value} is less than {least} or not finite", f"{name} {least}")
    with _replacing(Path(path)) as part, h5py.File(part, "w", track_order=False) as file:
        data = file.create_group("data")
        tried = _collect(data, found, episodes, seed, level, workers, progress)
        data.attrs["total"] = sum(int(data[name].attrs["num_samples"]) for name in data)
        data.attrs["env_args"] = json.dumps(_env_args(found), indent=4)
        data.attrs["flowft"] = json.dumps({"task": task, "imperfection": level, "seed": seed, "attempts": tried})
        names = np.array([f"demo_{i}".encode() for i in range(episodes)])
        valid = np.arange(episodes) % VALIDATION_EVERY == VALIDATION_EVERY - 1
        file.create_dataset("mask/train", data=names[~valid], track_times=False)
        file.create_dataset("mask/valid", data=names[valid], track_times=False)
    return Path(path)


def _collect(data: h5py.Group, task: Task, episodes: int, seed: int, imperfection: float, workers: int, progress: bool) -> int:
    """Write the first `episodes` successes; returns how many attempts that took."""
    kept = missed = 0
    interval = 0.5 if sys.stderr.isatty() else 60
    bar = tqdm(total=episodes, desc=f"scripted/{task.name}", unit="demo", disable=not progress, mininterval=interval)
    with bar, closing(_attempts(task, seed, imperfection, workers)) as attempts:
        for tried, demonstration in enumerate(attempts, start=1):
            if demonstration is None:
                missed += 1
            else:
                _write(data, f"demo_{kept}", demonstration)
                kept, missed = kept + 1, 0
                bar.update()
            if kept == episodes:
                return tried
            if missed == GIVE_UP_AFTER:
                break
    raise DataError(f"the {task.name} expert failed {missed} times in a row at imperfection {imperfection}", "--imperfection 1")


def _parse(dataset_id: str) -> tuple[str, float | None]:
    """`scripted/lift/1.5` as ("lift", 1.5)."""
    words = dataset_id.split("/")
    if len(words) not in (2, 3) or words[1] not in TASKS:
        raise UsageError(f"unknown dataset {dataset_id!r}{did_you_mean(dataset_id, known())}", "flowft data list")
    if len(words) == 2:
        return words[1], None
    try:
        return words[1], float(words[2])
    except ValueError:
        raise UsageError(f"{dataset_id!r}: the third word is the imperfection, a number", f"scripted/{words[1]}/1.5") from None


def _attempts(task: Task, seed: int, imperfection: float, workers: int) -> Generator[Demonstration | None, None, None]:
    """One result an attempt, in the order of the attempts, without end."""
    if workers == 1:
        for index in itertools.count():
            yield attempt(task, seed, index, imperfection)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    waiting: deque[Future[Demonstration | None]] = deque()
    try:
        for index in itertools.count():
            waiting.append(pool.submit(attempt, task, seed, index, imperfection))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(f"a worker process that generated {task.name} demonstrations died", "--workers 1") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _env_args(task: Task) -> dict[str, Any]:
    family = registry.get("envs", "robosuite")
    return {"env_name": task.env_id, "env_version": family.versions()["robosuite"], "type": 1, "env_kwargs": family.default_kwargs()}


def _write(data: h5py.Group, name: str, demonstration: Demonstration) -> None:
    """Observations have a row more than actions: the last one is only in next_obs."""
    group = data.create_group(name)
    group.attrs["num_samples"] = len(demonstration.actions)
    columns: dict[str, Any] = {
        "actions": demonstration.actions,
        "rewards": demonstration.rewards,
        "dones": demonstration.successes.astype(np.int64),
        "states": demonstration.states[:-1],
    }
    for part, values in demonstration.observations.items():
        columns[f"obs/{part}"], columns[f"next_obs/{part}"] = values[:-1], values[1:]
    for column, values in columns.items():
        group.create_dataset(column, data=values, track_times=False)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its name at the end, or vanishes after an error."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}", "FLOWFT_DATASETS=FOLDER flowft …") from error
    finally:
        part.unlink(missing_ok=True)
