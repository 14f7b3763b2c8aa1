"""The steps of a LeRobot folder: all rows of all files, each once, in the order of their episode_index and frame_index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flowft.data.lerobot_folder import Folder, Numbers, column_names, data_files, numbers, read_table, recorded_episodes
from flowft.errors import DataError

PLACE = ("episode_index", "frame_index")
NAMED = 4  # so many episodes are named in a note; of more, the number is said


@dataclass(frozen=True)
class Fault:
    """What keeps some rows from being read."""

    where: str  # file and column, relative to the dataset's folder; empty: `what` names it
    what: str
    episode: int | None = None  # to be left out; None: a whole file


@dataclass
class Rows:
    """N steps. `columns`: name -> (N,) or (N, size); `file`: (N,) index into `files`, where each row lies."""

    columns: dict[str, Numbers]
    file: npt.NDArray[np.int64]
    files: list[str]  # relative to the dataset's folder
    faults: list[Fault] = field(default_factory=list)

    @property
    def episode(self) -> Numbers:
        return self.columns["episode_index"]

    def spans(self) -> dict[int, tuple[int, int]]:
        """[start, stop) of each episode."""
        if not len(self.episode):
            return {}
        starts = np.flatnonzero(np.r_[True, np.diff(self.episode) != 0])
        stops = [*starts[1:].tolist(), len(self.episode)]
        return {int(self.episode[start]): (int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)}

    def chosen(self, which: Any) -> Rows:
        return Rows({name: values[which] for name, values in self.columns.items()}, self.file[which], self.files, self.faults)


def read(folder: Folder, wanted: Sequence[str]) -> Rows:
    """`wanted` columns and the place of each row. Damaged files are among `faults`; DataError where nothing can be read."""
    tables: list[tuple[Path, dict[str, Numbers]]] = []
    faults: list[Fault] = []
    for file in data_files(folder):
        try:
            tables.append((file, _columns(file, wanted)))
        except DataError as error:
            faults.append(Fault("", error.what))
    if not tables:
        raise DataError(faults[0].what + (f" (and {len(faults) - 1} more files)" if len(faults) > 1 else ""))
    columns = {name: _joined([(file, table[name]) for file, table in tables], name) for name in tables[0][1]}
    source = np.repeat(np.arange(len(tables)), [len(table[PLACE[0]]) for _, table in tables])
    names = [str(file.relative_to(folder.path)) for file, _ in tables]
    rows = Rows(columns, source, names, faults)
    return _without_gaps(_each_once(_in_order(rows), folder), folder)


def _columns(file: Path, wanted: Sequence[str]) -> dict[str, Numbers]:
    there = column_names(file)
    needed = [*dict.fromkeys([*PLACE, *wanted])]
    if missing := [name for name in needed if name not in there]:
        raise DataError(f"{file}:{missing[0]}: missing (there are: {', '.join(there)})")
    table = read_table(file, needed)
    return {name: numbers(table.column(name), file, name) for name in needed}


def _joined(parts: list[tuple[Path, Numbers]], name: str) -> Numbers:
    widths = {values.shape[1:] for _, values in parts if len(values)}
    if len(widths) > 1:
        odd = next(file for file, values in parts if values.shape[1:] != parts[0][1].shape[1:])
        raise DataError(f"{odd}:{name}: shape {sorted(widths)[-1]}, not {sorted(widths)[0]} as in {parts[0][0].name}")
    filled = [values for _, values in parts if len(values)]
    return np.concatenate(filled or [parts[0][1]])


def _in_order(rows: Rows) -> Rows:
    return rows.chosen(np.lexsort((rows.columns["frame_index"], rows.columns["episode_index"])))


def _each_once(rows: Rows, folder: Folder) -> Rows:
    """Without rows that are there twice. Two different rows of one place are a fault of their episode."""
    place = np.stack([rows.columns[name] for name in PLACE], axis=1)
    again = np.r_[False, (place[1:] == place[:-1]).all(axis=1)]
    if not again.any():
        return rows
    same = np.ones(len(again), dtype=bool)
    for values in rows.columns.values():
        flat = values.reshape(len(values), -1)
        equal = flat[1:] == flat[:-1]
        if flat.dtype.kind == "f":
            equal |= np.isnan(flat[1:]) & np.isnan(flat[:-1])
        same[1:] &= equal.all(axis=1)
    torn = sorted(set(rows.episode[again & ~same].tolist()))
    for episode in torn:
        where = sorted({rows.files[i] for i in set(rows.file[rows.episode == episode].tolist())})
        what = f"two different rows have the same frame_index in episode {episode}: it cannot be told which belong together"
        rows.faults.append(Fault(f"{', '.join(where)}:frame_index", what, episode))
    if twice := int((again & same & ~np.isin(rows.episode, torn)).sum()):
        folder.notes.append(f"{twice} rows are stored twice (the same episode_index and frame_index): each is read once")
    return rows.chosen(~again & ~np.isin(rows.episode, torn))


def _without_gaps(rows: Rows, folder: Folder) -> Rows:
    """An episode's frame_index must count without a gap: else rows were lost in its middle."""
    frames, broken, later = rows.columns["frame_index"], list[int](), list[int]()
    for episode, (start, stop) in rows.spans().items():
        own = frames[start:stop]
        if len(jumps := np.flatnonzero(np.diff(own) != 1)):
            what = f"goes from {own[jumps[0]]} to {own[jumps[0] + 1]} in episode {episode}: rows are missing"
            rows.faults.append(Fault(f"{rows.files[rows.file[start]]}:frame_index", what, episode))
            broken.append(episode)
        elif own[0] != 0:
            later.append(episode)
    if later:
        folder.notes.append(f"frame_index does not begin at 0 in {_named(later)}: the beginning was cut off")
    return rows.chosen(~np.isin(rows.episode, broken)) if broken else rows


def compare(folder: Folder, rows: Rows) -> None:
    """Notes of where meta and the rows disagree; the rows are right."""
    spans, recorded = rows.spans(), recorded_episodes(folder)
    left_out = {fault.episode for fault in rows.faults}
    if not recorded:
        folder.notes.append("meta/episodes is missing: the rows' own episode_index and frame_index decide")
    differ: dict[str, list[int]] = {}
    for episode, said in recorded.items():
        if episode in left_out or episode not in spans:
            if episode not in left_out:
                differ.setdefault("no rows", []).append(episode)
            continue
        start, stop = spans[episode]
        if said["file"] is not None and said["file"] not in {rows.files[i] for i in set(rows.file[start:stop].tolist())}:
            differ.setdefault("another file", []).append(episode)
        if said["length"] not in (None, stop - start):
            differ.setdefault("another length", []).append(episode)
        if said["from"] is not None and (said["from"], said["to"]) != (start, stop) and len(spans) == len(recorded):
            differ.setdefault("other from/to", []).append(episode)
    if unknown := [episode for episode in spans if episode not in recorded] if recorded else []:
        differ["not in meta"] = unknown
    if differ:
        words = "; ".join(f"{what} for {_named(episodes)}" for what, episodes in differ.items())
        lost = sorted({str(said["file"]) for said in recorded.values() if said["file"] and not (folder.path / said["file"]).is_file()})
        words += f" (there is no {', '.join(lost[:NAMED])}{' …' * (len(lost) > NAMED)})" * bool(lost)
        folder.notes.append(f"meta/episodes disagrees with the rows: {words}; the rows' own episode_index and frame_index decide")
    for key, found in (("total_episodes", len(spans)), ("total_frames", len(rows.episode))):
        if not left_out and (told := folder.info.get(key)) not in (None, found):
            folder.notes.append(f"info.json says {key} {told}, the rows are {found}")


def _named(episodes: list[int]) -> str:
    named = ", ".join(map(str, episodes))
    return f"episode{'s' * (len(episodes) > 1)} {named}" if len(episodes) <= NAMED else f"{len(episodes)} episodes"
