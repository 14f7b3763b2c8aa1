"""What a LeRobot folder holds: meta/info.json, tasks, what meta says of episodes, and the rows of its parquet files.

The rows' own episode_index and frame_index are the truth. meta's record of which file and which rows an episode has is only
compared with them, because published converters left it wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from flowft.errors import DataError, MissingExtra, did_you_mean

Numbers = npt.NDArray[Any]
READ = ("v2.0", "v2.1", "v3.0")
INFO, OLD_INFO = Path("meta/info.json"), Path("meta_data/info.json")
CONVERT_V1 = 'pip install "lerobot==0.3.3" && python -m lerobot.datasets.v2.convert_dataset_v1_to_v2 --repo-id USER/NAME'


@dataclass
class Folder:
    """A folder's meta. `notes` grows with what is not as the format has it, but can be read."""

    path: Path
    info: Mapping[str, Any]
    version: str
    features: Mapping[str, Mapping[str, Any]]
    tasks: dict[int, str]
    notes: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float | None:
        """Steps a second."""
        fps = self.info.get("fps")
        return float(fps) if isinstance(fps, (int, float)) and fps > 0 else None


def root_of(path: Path) -> Path | None:
    """The dataset's folder, given itself, its meta folder or info.json; None if it is no LeRobot dataset."""
    for root in (path, path.parent, path.parent.parent) if path.name in ("meta", "info.json") else (path,):
        if (root / INFO).is_file() or (root / OLD_INFO).is_file():
            return root
    without_info = (path / "meta").is_dir() and any((path / "data").glob("chunk-*/*.parquet"))
    return path if without_info else None


def open_folder(path: Path) -> Folder:
    """DataError where info.json is missing, damaged, or of a version that is not read."""
    file = path / (INFO if (path / INFO).is_file() or not (path / OLD_INFO).is_file() else OLD_INFO)
    info = _json(file)
    if not isinstance(info, dict):
        raise DataError(f"{file} holds {type(info).__name__}, not an object of facts")
    told, notes = str(info.get("codebase_version") or ""), list[str]()
    if file.parent.name == OLD_INFO.parent.name:
        raise _too_old(file, told or "v1.x")
    version = _version(file, told)
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise DataError(f"{file} has no features (name, dtype and shape of each column): no dataset, or a damaged one")
    found = _layout(path)
    if found and (version is None or version[:2] != found[:2]):
        notes.append(f"info.json says {told or 'no version'}, but meta's files are those of {found}: read as {found}")
        version = found
    return Folder(path, info, version or READ[-1], features, _tasks(path), notes)


def _version(file: Path, told: str) -> str | None:
    """`v2.1` of "v2.1", "2.1" or "v2.1.0"; None where nothing is said."""
    parts = re.match(r"[vV]?(\d+)\.(\d+)", told)
    if parts is None:
        if told:
            raise DataError(f"{file}: codebase_version is {told!r}; flowft reads {', '.join(READ)}")
        return None
    version = f"v{int(parts[1])}.{int(parts[2])}"
    if int(parts[1]) < 2:
        raise _too_old(file, told)
    if version not in READ:
        raise DataError(f"{file}: codebase_version is {told}, which flowft does not know; it reads {', '.join(READ)}")
    return version


def _too_old(file: Path, told: str) -> DataError:
    what = f"{file}: codebase_version is {told}; flowft reads {', '.join(READ)}, and LeRobot's convert_dataset_v1_to_v2 makes v2.0 of it"
    return DataError(what, CONVERT_V1)


def _layout(path: Path) -> str | None:
    """By the files, not by the label."""
    if (path / "meta/tasks.parquet").is_file() or (path / "meta/episodes").is_dir():
        return "v3.0"
    if (path / "meta/episodes.jsonl").is_file() or (path / "meta/tasks.jsonl").is_file():
        return "v2.1" if (path / "meta/episodes_stats.jsonl").is_file() else "v2.0"
    return None


def _tasks(path: Path) -> dict[int, str]:
    """task_index -> text. In v3.0 the text is the table's index, or a column of whatever name."""
    found: dict[int, str] = {}
    if (file := path / "meta/tasks.parquet").is_file():
        table = read_table(file)
        texts = [name for name in table.column_names if "string" in str(table.schema.field(name).type)]
        if texts and "task_index" in table.column_names:
            numbers = table.column("task_index").to_pylist()
            found = {int(n): str(t) for n, t in zip(numbers, table.column(texts[0]).to_pylist(), strict=True) if n is not None}
    elif (file := path / "meta/tasks.jsonl").is_file():
        for row in _json_lines(file):
            if isinstance(row.get("task_index"), int):
                found[row["task_index"]] = str(row.get("task", ""))
    return found


def recorded_episodes(folder: Folder) -> dict[int, dict[str, Any]]:
    """What meta says of each episode: length, file (relative path), from, to. Empty where its file is missing."""
    rows: list[dict[str, Any]] = []
    if (lines := folder.path / "meta/episodes.jsonl").is_file():
        rows = list(_json_lines(lines))
    for file in sorted((folder.path / "meta/episodes").rglob("*.parquet")):
        known = ("episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
        rows += read_table(file, [name for name in known if name in column_names(file)]).to_pylist()
    return {
        int(row["episode_index"]): {
            "length": row.get("length"), "file": _file(folder, row),
            "from": row.get("dataset_from_index"), "to": row.get("dataset_to_index"),
        }
        for row in rows if isinstance(row.get("episode_index"), int)
    }  # fmt: skip


def _file(folder: Folder, row: Mapping[str, Any]) -> str | None:
    """Where meta says that an episode lies, from info.json's data_path."""
    index, chunk = row["episode_index"], row.get("data/chunk_index")
    per_chunk = folder.info.get("chunks_size") or 1000
    words = {"episode_index": index, "episode_chunk": index // per_chunk, "chunk_index": chunk, "file_index": row.get("data/file_index")}
    try:
        return str(folder.info.get("data_path", "")).format(**{key: value for key, value in words.items() if value is not None}) or None
    except (KeyError, ValueError, IndexError, AttributeError, TypeError):
        return None  # a template of another version, or no file named


def data_files(folder: Folder) -> list[Path]:
    """All parquet files of steps, in name order."""
    head = Path(str(folder.info.get("data_path") or "data/").split("{")[0].rpartition("/")[0] or "data")
    inside = not head.is_absolute() and ".." not in head.parts
    homes = [folder.path / head] if inside and (folder.path / head).is_dir() else [folder.path / "data"]
    files = sorted(file for home in homes for file in home.rglob("*.parquet"))
    if not files:
        raise DataError(f"{folder.path}: there is no parquet file below {homes[0]}: the steps are missing")
    return files


def read_table(file: Path, columns: list[str] | None = None) -> Any:
    """A pyarrow table; DataError where the file is damaged."""
    arrow, parquet = _arrow(file)
    try:
        with parquet.ParquetFile(file) as handle:  # of exactly this file: folder names are no columns
            return handle.read(columns=columns)
    except (arrow.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{file} is a damaged parquet file: {_line(error)}") from error


def column_names(file: Path) -> list[str]:
    """Names of a parquet file's columns; DataError where the file is damaged."""
    arrow, parquet = _arrow(file)
    try:
        return list(parquet.read_schema(file).names)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is a damaged parquet file: {_line(error)}") from error


def numbers(column: Any, file: Path, name: str) -> Numbers:
    """A column as (N,) or (N, size); DataError for nulls, text, and lists of different lengths."""
    import pyarrow.types as kinds

    array = column.combine_chunks()
    array = array.storage if hasattr(array, "storage") else array
    if array.null_count:
        raise DataError(f"{file}:{name}: {array.null_count} of {len(array)} rows have no value")
    if not (kinds.is_list(array.type) or kinds.is_large_list(array.type) or kinds.is_fixed_size_list(array.type)):
        return _plain(array, file, name)
    sizes = set(array.value_lengths().to_pylist()) if not kinds.is_fixed_size_list(array.type) else {array.type.list_size}
    if len(sizes) > 1:
        raise DataError(f"{file}:{name}: rows have {min(sizes)} to {max(sizes)} values, not all as many")
    flat = array.flatten()
    if flat.null_count:
        raise DataError(f"{file}:{name}: {flat.null_count} values are missing")
    return _plain(flat, file, name).reshape(len(array), -1)


def _plain(array: Any, file: Path, name: str) -> Numbers:
    values: Numbers = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiub":
        raise DataError(f"{file}:{name}: holds {array.type}, not numbers")
    return values


def choose_task(folder: Folder, wanted: str | int) -> int:
    """The index of a task that is named by its text or its index."""
    by_text = {text: index for index, text in folder.tasks.items()}
    if str(wanted) in by_text:
        return by_text[str(wanted)]
    if str(wanted).isdigit() and (not folder.tasks or int(wanted) in folder.tasks):
        return int(wanted)
    there = [f"{index}: {text}" for index, text in sorted(folder.tasks.items())]
    raise DataError(f"{folder.path}: data.task is {wanted!r}{did_you_mean(str(wanted), there)}", "--set data.task=0")


def _arrow(file: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "lerobot", f"reading {file}") from error
    return pyarrow, pyarrow.parquet


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing: it says which columns a LeRobot dataset has") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {_line(error)}") from error


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        for line in file.read_text(encoding="utf-8-sig").splitlines():
            if line.strip() and isinstance(row := json.loads(line), dict):
                yield row
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
