"""LeRobot folders of both layouts, as the lerobot package writes them, made with pyarrow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet

RIGHT = {"reward": True, "success": True, "done": True}
TEMPLATES = {
    "v2.1": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "v3.0": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}


def actions(episode: int, steps: int, size: int = 3) -> Any:
    """Joint targets in degrees, other ones in each episode."""
    return np.random.default_rng(episode).uniform(-90, 120, (steps, size)).astype(np.float32)


def write(
    folder: Path,
    version: str = "v3.0",
    lengths: Sequence[int] = (5, 4, 6),
    per_file: int = 2,
    outcome: bool = True,
    tasks: Sequence[str] = ("pick the cube",),
    image: bool = False,
    more: Mapping[str, Any] | None = None,
    make: Any = actions,
) -> Path:
    """Episode i is of task i modulo the number of tasks. `outcome`: with next.reward, next.done and next.success.

    `more`: name -> function of (episode, steps) that gives a column. v3.0: `per_file` episodes in each file.
    """
    features = _features(make(0, 2).shape[1], outcome, image, {name: give(0, 2) for name, give in (more or {}).items()})
    episodes, first = [], 0
    for episode, steps in enumerate(lengths):
        task = episode % len(tasks)
        columns = {
            "observation.state": np.random.default_rng(100 + episode).normal(size=(steps, 4)).astype(np.float32),
            "observation.environment_state": np.full((steps, 2), episode, dtype=np.float32),
            "action": make(episode, steps),
            **({
                "next.reward": np.r_[np.zeros(steps - 1), 1].astype(np.float32),
                "next.done": np.arange(steps) == steps - 1, "next.success": np.arange(steps) == steps - 1,
            } if outcome else {}),
            **{name: give(episode, steps) for name, give in (more or {}).items()},
            "timestamp": (np.arange(steps) / 30).astype(np.float32), "frame_index": np.arange(steps),
            "episode_index": np.full(steps, episode), "index": first + np.arange(steps), "task_index": np.full(steps, task),
        }  # fmt: skip
        if image:
            columns["observation.images.top"] = [{"bytes": b"\x89PNG", "path": f"{t}.png"} for t in range(steps)]
        episodes.append({"columns": columns, "length": steps, "task": tasks[task], "from": first})
        first += steps
    _meta(folder, version, features, episodes, tasks, per_file)
    groups = [episodes[i : i + per_file] for i in range(0, len(episodes), per_file)] if version == "v3.0" else [[e] for e in episodes]
    for index, group in enumerate(groups):
        path = TEMPLATES[version].format(episode_chunk=0, episode_index=index, chunk_index=0, file_index=index)
        rows(folder / path, [table(episode["columns"]) for episode in group])
    return folder


def table(columns: Mapping[str, Any]) -> Any:
    """Vectors as lists, as the package stores them."""
    return arrow.table({
        name: arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel()), values.shape[1])
        if isinstance(values, np.ndarray) and values.ndim == 2 else arrow.array(values) for name, values in columns.items()
    })  # fmt: skip


def rows(path: Path, tables: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.concat_tables(tables), path)


def edit(file: Path, change: Any) -> None:
    """`change`: a function of the table, for what a converter did to it."""
    parquet.write_table(change(parquet.read_table(file)), file)


def edit_info(folder: Path, **changes: Any) -> None:
    """Replaces keys of meta/info.json; None takes one out."""
    info = json.loads((folder / "meta/info.json").read_text()) | changes
    (folder / "meta/info.json").write_text(json.dumps({key: value for key, value in info.items() if value is not None}))


def with_column(table: Any, name: str, values: Any) -> Any:
    return table.set_column(table.column_names.index(name), name, arrow.array(values))


def _features(size: int, outcome: bool, image: bool, more: Mapping[str, Any]) -> dict[str, Any]:
    vector = {"observation.state": 4, "observation.environment_state": 2, "action": size}
    out: dict[str, Any] = {name: {"dtype": "float32", "shape": [n], "names": [f"m{i}" for i in range(n)]} for name, n in vector.items()}
    kinds = {"next.reward": "float32", "next.done": "bool", "next.success": "bool"} if outcome else {}
    plain = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}
    out |= {name: {"dtype": kind, "shape": [1], "names": None} for name, kind in {**kinds, **plain}.items()}
    for name, values in more.items():
        out[name] = {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1], "names": None}
    if image:
        out["observation.images.top"] = {"dtype": "image", "shape": [96, 96, 3], "names": ["height", "width", "channel"]}
    return out


def _meta(folder: Path, version: str, features: Any, episodes: Sequence[Any], tasks: Sequence[str], per_file: int) -> None:
    meta = folder / "meta"
    meta.mkdir(parents=True)
    info = {
        "codebase_version": version, "robot_type": "so101", "fps": 30, "chunks_size": 1000, "total_episodes": len(episodes),
        "total_frames": sum(e["length"] for e in episodes), "total_tasks": len(tasks), "data_path": TEMPLATES[version],
        "features": features,
    }  # fmt: skip
    (meta / "info.json").write_text(json.dumps(info, indent=4))
    known = [{"episode_index": i, "tasks": [e["task"]], "length": e["length"]} for i, e in enumerate(episodes)]
    if version == "v2.1":
        (meta / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in known))
        (meta / "episodes_stats.jsonl").write_text("".join(json.dumps({"episode_index": i, "stats": {}}) + "\n" for i in range(len(known))))
        (meta / "tasks.jsonl").write_text("".join(json.dumps({"task_index": i, "task": t}) + "\n" for i, t in enumerate(tasks)))
        return
    for i, (row, episode) in enumerate(zip(known, episodes, strict=True)):
        row |= {"data/chunk_index": 0, "data/file_index": i // per_file, "dataset_from_index": episode["from"]}
        row["dataset_to_index"] = episode["from"] + episode["length"]
    rows(meta / "episodes/chunk-000/file-000.parquet", [arrow.Table.from_pylist(known)])
    parquet.write_table(arrow.table({"task_index": list(range(len(tasks))), "__index_level_0__": list(tasks)}), meta / "tasks.parquet")
    (meta / "stats.json").write_text("{}")
