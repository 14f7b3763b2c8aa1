"""As a LeRobot v3.0 folder: one parquet file of steps, meta/{info.json, stats.json, tasks.parquet, episodes/…}.

Observation parts become one feature observation.state, which LeRobot's policies look for, in float32 as LeRobot has them;
parts that are features already (observation.…) stay features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowft.data.export import OURS, facts, has_last_state, success_of_steps
from flowft.data.spec import Dataset
from flowft.errors import MissingExtra

Numbers = npt.NDArray[Any]
STATE = "observation.state"
DATA, EPISODES = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", "meta/episodes/chunk-000/file-000.parquet"
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
CONTROL_RATE = 20.0  # robosuite's default; LeRobot needs a number
UNKNOWN_RATE = 10.0


def write(dataset: Dataset, out: Path, fps: float | None) -> list[str]:
    """The folder `out`. `fps`: steps a second, for data that do not say it."""
    arrow, parquet = _arrow()
    rate, said = _rate(dataset, fps)
    columns, names = _columns(dataset, rate)
    task = dataset.env.id if dataset.env else dataset.id
    tables = {
        DATA.format(chunk_index=0, file_index=0): arrow.table({name: _column(arrow, values) for name, values in columns.items()}),
        EPISODES: arrow.Table.from_pylist(_episodes(dataset, task)),
        "meta/tasks.parquet": _tasks(arrow, task),
    }
    for name, table in tables.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, out / name)
    (out / "meta/info.json").write_text(json.dumps(_info(dataset, columns, names, rate), indent=4))
    (out / "meta/stats.json").write_text(json.dumps({name: _statistics(values) for name, values in columns.items()}, indent=4))
    if any(has_last_state(episode) for episode in dataset.episodes):
        said.append("LeRobot's layout has no state after the last action: it is left out")
    return said


def _rate(dataset: Dataset, fps: float | None) -> tuple[float, list[str]]:
    if fps is not None or dataset.rate is not None:
        return float(fps or dataset.rate or 0), []
    if dataset.env is not None and dataset.env.family == "robosuite":
        return float(dataset.env.kwargs.get("control_freq", CONTROL_RATE)), []
    return UNKNOWN_RATE, [f"nothing says how many steps a second these are: {UNKNOWN_RATE:g} is written (--fps says another)"]


def _columns(dataset: Dataset, rate: float) -> tuple[dict[str, Numbers], dict[str, list[str]]]:
    """name -> (N,) or (N, size), all episodes one after the other; names of a vector's values."""
    lengths = [len(episode) for episode in dataset.episodes]
    parts = {name: _joined(dataset, name) for name, _ in dataset.spec.parts}
    if all(name.startswith("observation.") for name in parts):
        vectors = parts
    else:
        vectors = {STATE: np.concatenate([*parts.values()], axis=1)}
    names = {STATE: [f"{name}.{i}" for name, size in dataset.spec.parts for i in range(size)]} if vectors is not parts else {}
    frame = np.concatenate([np.arange(length) for length in lengths])
    last = np.concatenate([np.arange(length) == length - 1 for length in lengths])
    terminal = np.repeat([episode.terminated for episode in dataset.episodes], lengths)
    rewards = np.concatenate([episode.rewards for episode in dataset.episodes]).astype(np.float32)
    outcome = {"next.done": last & terminal, "next.truncated": last & ~terminal}
    if rewards.any() or any(episode.success is not None for episode in dataset.episodes):  # else they are unknown, not 0
        outcome["next.reward"] = rewards
    if all(episode.success is not None for episode in dataset.episodes):
        outcome["next.success"] = np.concatenate([success_of_steps(episode) for episode in dataset.episodes])
    actions = np.concatenate([episode.actions for episode in dataset.episodes]).astype(np.float32)
    indices = {"frame_index": frame, "episode_index": np.repeat(np.arange(len(lengths)), lengths), "index": np.arange(len(frame))}
    ours = {"timestamp": (frame / rate).astype(np.float32), **indices, "task_index": np.zeros_like(frame)}
    return {**vectors, "action": actions, **outcome, **ours}, names


def _joined(dataset: Dataset, part: str) -> Numbers:
    return np.concatenate([episode.observations[part][: len(episode)] for episode in dataset.episodes]).astype(np.float32)


def _column(arrow: Any, values: Numbers) -> Any:
    if values.ndim == 1:
        return arrow.array(values)
    return arrow.FixedSizeListArray.from_arrays(arrow.array(np.ascontiguousarray(values).ravel()), values.shape[1])


def _episodes(dataset: Dataset, task: str) -> list[dict[str, Any]]:
    rows, start = [], 0
    for i, episode in enumerate(dataset.episodes):
        place = {"data/chunk_index": 0, "data/file_index": 0, "dataset_from_index": start, "dataset_to_index": start + len(episode)}
        meta = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        rows.append({"episode_index": i, "tasks": [task], "length": len(episode), **place, **meta})
        start += len(episode)
    return rows


def _tasks(arrow: Any, task: str) -> Any:
    """The task's text is the table's index, which LeRobot reads through pandas: hence pandas' own note in the file."""
    table = arrow.table({"task_index": arrow.array([0], arrow.int64()), "__index_level_0__": [task]})
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
        {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ]
    index = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": {"encoding": "UTF-8"}}
    note = {"index_columns": ["__index_level_0__"], "column_indexes": [index], "columns": columns, "pandas_version": "2.0.0"}
    return table.replace_schema_metadata({"pandas": json.dumps(note)})


def _info(dataset: Dataset, columns: Mapping[str, Numbers], names: Mapping[str, list[str]], rate: float) -> dict[str, Any]:
    features = {
        name: {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1], "names": names.get(name)}
        for name, values in columns.items()
    }
    count = len(dataset.episodes)
    return {
        "codebase_version": "v3.0", "robot_type": None, "total_episodes": count, "total_frames": dataset.steps, "total_tasks": 1,
        "chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200, "fps": int(rate) if rate == int(rate) else rate,
        "splits": {"train": f"0:{count}"}, "data_path": DATA, "video_path": None, "features": features, OURS: facts(dataset),
    }  # fmt: skip


def _statistics(values: Numbers) -> dict[str, list[Any]]:
    rows = values.reshape(len(values), -1).astype(np.float64)
    quantiles = {name: np.quantile(rows, q, axis=0).tolist() for name, q in QUANTILES.items()}
    spread = {"min": rows.min(axis=0), "max": rows.max(axis=0), "mean": rows.mean(axis=0), "std": rows.std(axis=0)}
    return {**{name: row.tolist() for name, row in spread.items()}, "count": [len(rows)], **quantiles}


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "lerobot", "writing LeRobot's layout") from error
    return pyarrow, pyarrow.parquet
