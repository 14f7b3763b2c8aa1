"""Several tasks at a glance: the cloned policy, the fine-tuned one at two numbers of steps, and the best rival; a table and its picture.

The file names, for each task, where its counts lie; it holds no result itself:

    {"picture": "results.png", "tasks": [{
        "task": "scripted/lift", "page": "scripted/lift.md", "command": "flowft compare …",
        "table": "scripted/lift-compared.json",  a comparison, or FILE.json#NAME: a table whose rows are seeds (`seed`, `counts`)
        "row": "sac_flow",                       of a comparison: the row that is reported, the others are its rivals …
        "own": ["sac_flow-mlp"],                 … but for its variants
        "steps": [4000, 10000]}]}

Without a rival (or a page, or a picture) there is none to show. Intervals are `success_interval`'s.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowft.errors import DataError, did_you_mean
from flowft.report import plots, tables
from flowft.report.compare import Level, Row
from flowft.report.plots import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

VIEWS = ("", "short")  # short: no lowest evaluation, no command
STYLE = 2  # of the picture; another number draws it anew
CLONE, TUNED, RIVAL = "#8a8f94", "#0b6e99", "#d1495b"
NEEDED = {"task": str, "table": str, "steps": list}
ALLOWED = (*NEEDED, "page", "command", "row", "own")


@dataclass(frozen=True)
class Task:
    """One line of the table."""

    name: str
    page: Path | None
    command: str
    steps: tuple[int, ...]
    reported: Row
    rivals: tuple[Row, ...]

    def rival(self) -> Row | None:
        """The one with the highest mean at the last step (the first of equals)."""
        there = [row for row in self.rivals if self.steps[-1] in row.steps()]
        return max(there, key=lambda row: row.level(self.steps[-1]).rate) if there else None

    def fall(self) -> str:
        """The evaluation that is furthest below its own seed's clone."""
        worst, text = 0.0, "never"
        for run in self.reported.runs:
            first, *later = run.evaluations
            for row in later:
                depth = first["successes"] / first["episodes"] - row["successes"] / row["episodes"]
                if depth > worst + 1e-12:
                    start = f"{first['successes']}/{first['episodes']}"
                    worst, text = depth, f"{row['successes']}/{row['episodes']} at {row['step']:,} (start: {start})"
        return text


@dataclass(frozen=True)
class Summary:
    """What a file of tasks leads to."""

    tasks: tuple[Task, ...]
    picture: Path | None


def read(content: Mapping[str, Any], source: Path, load: Callable[[Path], Any]) -> Summary:
    """The tasks of the file `source`, with their counts. DataError: it names something that is not there."""
    tasks = content.get("tasks")
    if not isinstance(tasks, list) or not tasks:
        raise DataError("`tasks` is no list of tasks")
    picture = content.get("picture")
    if picture is not None and (not isinstance(picture, str) or Path(picture).suffix not in (".png", ".svg")):
        raise DataError(f"picture {picture!r} is neither .png nor .svg", '"picture": "results.png"')
    return Summary(tuple(_task(task, source, load) for task in tasks), None if picture is None else source.parent / picture)


def table(summary: Summary, view: str, folder: Path) -> str:
    """Markdown for a page in `folder`, from which its links go."""
    heads = ["task", "clone", "fine-tuned", "and further", "best rival at the same step"]
    cells = []
    for task in summary.tasks:
        name = task.name if task.page is None else f"[{task.name}]({Path(os.path.relpath(task.page, folder or '.')).as_posix()})"
        seeds = f"{len(task.reported.runs)} seed{'s' * (len(task.reported.runs) > 1)}"
        tuned = [f"{step:,} steps: {percent(task.reported.level(step))}" for step in task.steps]
        rival = task.rival()
        best = "none measured" if rival is None else f"{rival.label}: {percent(rival.level(task.steps[-1]))}"
        line = [f"{name}, {seeds}", percent(task.reported.level(0)), tuned[0], " ".join(tuned[1:]), best]
        cells.append(line if view == "short" else [*line, task.fall(), f"`{task.command}`" if task.command else ""])
    return tables.lines(heads if view == "short" else [*heads, "lowest below the clone", "command"], cells)


def percent(level: Level) -> str:
    """`99 % (96–100 %)`"""
    return f"{level.rate * 100:.0f} % ({level.low * 100:.0f}–{level.high * 100:.0f} %)"


def drawn(path: Path, summary: Summary) -> bool:
    """Is there a picture, and is it of these numbers? It carries their digest as its title."""
    return path.is_file() and _digest(summary).encode() in path.read_bytes()


def draw(path: Path, summary: Summary) -> None:
    """The picture: a panel per task."""
    figure = plots.new_figure(path, (2.75 * len(summary.tasks), 3.3))
    grid = figure.subplots(1, len(summary.tasks), sharey=True, squeeze=False)
    for axes, task in zip(grid.flat, summary.tasks, strict=True):
        _panel(axes, task)
    grid.flat[0].set_ylabel("success rate (%)", fontsize=9)
    figure.suptitle(
        "grey: the clone; blue: fine-tuned; red: the best rival. Mean over seeds with its 95 % interval, small dots: each seed",
        fontsize=9,
        color="#5b6770",
    )
    plots.save(figure, path, {"Title": _digest(summary)})


def points(task: Task) -> list[tuple[str, str, Row, int]]:
    """What a panel shows, from left to right: label, colour, and the level of a row at a step."""
    found = [("clone", CLONE, task.reported, 0)]
    found += [(f"fine-tuned\n{plots.thousands(step)} steps", TUNED, task.reported, step) for step in task.steps]
    rival = task.rival()
    return found if rival is None else [*found, (f"{rival.label}\n{plots.thousands(task.steps[-1])} steps", RIVAL, rival, task.steps[-1])]


def _panel(axes: Axes, task: Task) -> None:
    shown = points(task)
    for x, (_, colour, row, step) in enumerate(shown):
        level = row.level(step)
        rate, low, high = 100 * level.rate, 100 * level.low, 100 * level.high
        axes.plot([x, x], [low, high], color=colour, linewidth=6, alpha=0.22, solid_capstyle="butt", zorder=1)
        seeds = [100 * each["successes"] / each["episodes"] for run in row.runs for each in run.evaluations if each["step"] == step]
        axes.plot([x - 0.2] * len(seeds), seeds, "o", color=colour, markersize=2.5, alpha=0.7, zorder=2)
        axes.plot([x], [rate], "o", color=colour, markersize=8, zorder=3)
        axes.annotate(f"{rate:.0f}", (x, rate), (8, 0), textcoords="offset points", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(shown)), [label for label, *_ in shown], fontsize=7.5)
    axes.set_xlim(-0.5, len(shown) - 0.3)
    axes.set_ylim(-3, 103)
    axes.set_title(f"{task.name} ({len(task.reported.runs)} seeds)", fontsize=9.5, loc="left")
    plots.lighten(axes)
    axes.grid(False, axis="x")


def _digest(summary: Summary) -> str:
    """Of all that the picture shows."""
    shown = [
        [task.name, *([label, step, [run.evaluations for run in row.runs]] for label, _, row, step in points(task))]
        for task in summary.tasks
    ]
    return "flowft results " + hashlib.sha256(json.dumps([STYLE, shown], sort_keys=True).encode()).hexdigest()[:16]


def _task(task: Any, source: Path, load: Callable[[Path], Any]) -> Task:
    if not isinstance(task, Mapping):
        raise DataError(f"{task!r} is no task")
    for key in task:
        if key not in ALLOWED:
            raise DataError(f"unknown {key!r} in a task{did_you_mean(str(key), ALLOWED)}")
    for key, kind in NEEDED.items():
        if not isinstance(task.get(key), kind) or not task[key]:
            raise DataError(f"task {task.get('task')!r}: {key} is {task.get(key)!r}", '"steps": [4000, 10000]' if key == "steps" else None)
    if not isinstance(task.get("own", []), list) or not all(isinstance(name, str) for name in task.get("own", [])):
        raise DataError(f"task {task['task']!r}: own is {task['own']!r}", '"own": ["sac_flow-mlp"]')
    rows = _rows(str(task["table"]), source, load)
    labels = [row.label for row in rows]
    label = str(task.get("row", labels[0]))
    for name in (label, *task.get("own", [])):
        if name not in labels:
            raise DataError(f"task {task['task']!r}: {task['table']} has no row {name!r}{did_you_mean(name, labels)}")
    reported = rows[labels.index(label)]
    for step in (0, *task["steps"]):
        if step not in reported.steps():
            raise DataError(f"task {task['task']!r}: not every seed of {label} was evaluated at {step!r} (there are: {reported.steps()})")
    rivals = tuple(row for row in rows if row.label != label and row.label not in task.get("own", []))
    page = source.parent / str(task["page"]) if task.get("page") else None
    if page is not None and not page.is_file():
        raise DataError(f"task {task['task']!r}: its page {page} is not there")
    return Task(str(task["task"]), page, str(task.get("command", "")), tuple(task["steps"]), reported, rivals)


def _rows(name: str, source: Path, load: Callable[[Path], Any]) -> Sequence[Row]:
    """Of a comparison; or one row, whose seeds are the rows of a table."""
    file, _, part = name.partition("#")
    path = source.parent / file
    if not path.is_file():
        raise DataError(f"{path} is not there", f"ls {source.parent}/*.json")
    content = load(path)
    if "algorithms" in content:
        return tables.comparison(content)
    if part not in tables.names(content):
        raise DataError(f"{path} has no table {part!r}{did_you_mean(part, tables.names(content))}")
    runs = []
    for i, row in enumerate(tables.entry(content, part)[1]):
        found = tables.counts(row).items()
        rows = tuple({"step": step, "successes": successes, "episodes": episodes} for step, (successes, episodes) in found)
        runs.append(Run(f"seed {row.get('seed', i)}", {}, rows, ()))
    return [Row(part, tuple(runs), ())]
