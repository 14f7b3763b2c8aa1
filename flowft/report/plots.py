"""Success (or return) against online steps: one curve per run, or one per recipe when several seeds share it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from flowft.errors import FlowftError, MissingExtra, UsageError
from flowft.report.stats import mean_interval, success_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0b6e99", "#d1495b", "#3d8b37", "#8f5aa8", "#c47f17", "#5b6770", "#2a9d8f")
# What may differ between the seeds of one experiment.
ONLINE = ("finetune", "train")  # stages whose steps are the environment's
SEED_KEYS = ("seed", "device", "threads", "wandb")


@dataclass(frozen=True)
class Run:
    """What a run folder says about itself."""

    name: str
    recipe: Mapping[str, Any]
    evaluations: tuple[Mapping[str, Any], ...]  # rows of kind "eval" of the online stage, by step
    episodes: tuple[Mapping[str, Any], ...]  # rows of kind "episode": training episodes


@dataclass(frozen=True)
class Curve:
    """One line with its band; `start` is the level of the cloned policy (the evaluation at online step 0); from scratch there is none."""

    label: str
    steps: tuple[int, ...]
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    start: float | None
    runs: int
    each: tuple[tuple[float, ...], ...] = ()  # where it is a mean: its seeds, at the same steps


def read_run(folder: Path) -> Run:
    """The evaluations and training episodes of a run folder."""
    rows: dict[tuple[str, int], Mapping[str, Any]] = {}
    episodes: list[Mapping[str, Any]] = []
    for row in read_rows(folder):
        if row.get("kind") == "eval" and row.get("stage", "finetune") in ONLINE:
            rows["eval", int(row["step"])] = row  # a run that went on after a kill repeats a step: the later row counts
        elif row.get("kind") == "episode":
            episodes.append(row)
    if not rows:
        raise UsageError(
            f"{folder / 'metrics.jsonl'} holds no evaluation of an online run yet",
            "flowft finetune --ckpt NAME, or wait for its first evaluation",
        )
    return Run(folder.name, read_recipe(folder), tuple(rows[key] for key in sorted(rows)), tuple(episodes))


def read_rows(folder: Path) -> list[Mapping[str, Any]]:
    """All rows of `folder/metrics.jsonl`. A half-written last line (a killed run) is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise UsageError(f"{folder} is not a run: it has no metrics.jsonl", "flowft finetune --ckpt NAME")
    rows: list[Mapping[str, Any]] = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise FlowftError(f"{path} line {number} is not JSON: {line[:60]!r}", f"remove line {number}") from error
    return rows


def read_recipe(folder: Path) -> Mapping[str, Any]:
    """The settings of a run folder; empty when it does not say."""
    path = folder / "recipe.yaml"
    return (yaml.safe_load(path.read_text()) if path.is_file() else None) or {}


def curves(runs: Sequence[Run], kind: str = "success") -> list[Curve]:
    """One curve per recipe, of one run or the mean of its seeds: success with `success_interval`, several returns with Student's t."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = json.dumps({k: v for k, v in run.recipe.items() if k not in SEED_KEYS}, sort_keys=True, default=str)
        groups.setdefault(same if run.recipe else run.name, []).append(run)
    return [curve(group, kind) for group in groups.values()]


def curve(group: Sequence[Run], kind: str) -> Curve:
    """Of one run, or the mean of several seeds."""
    return _single(group[0], kind) if len(group) == 1 else _mean(group, kind)


def draw(runs: Sequence[Run], out: Path, kind: str = "success") -> list[Curve]:
    """Write the plot of these runs to `out`; a single run also shows its training episodes. Returns what was drawn."""
    lines = curves(runs, kind)
    write(lines, out, kind, runs[0] if len(runs) == 1 and kind == "success" else None)
    return lines


def write(lines: Sequence[Curve], out: Path, kind: str = "success", training: Run | None = None) -> None:
    """Write a plot of these curves to `out`."""
    figure = new_figure(out, (7.2, 4.4))
    axes = figure.add_subplot()
    for curve, colour in zip(lines, colours(len(lines)), strict=True):
        _draw_curve(axes, curve, colour, kind)
    if training is not None:
        _draw_training(axes, training)
    _dress(axes, lines, kind)
    save(figure, out)


def write_panels(lines: Sequence[Curve], out: Path) -> None:
    """A panel per curve, with its band and its seeds, the other curves behind it in grey: many bands on one another say nothing."""
    across = min(4, len(lines))
    down = -(-len(lines) // across)
    figure = new_figure(out, (2.9 * across, 2.4 * down + 0.3))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, curve, colour in zip(grid.flat, lines, colours(len(lines)), strict=False):
        for other in lines:
            if other is not curve:
                axes.plot(other.steps, 100 * np.asarray(other.middle), color="#c9ced2", linewidth=1.0, zorder=1)
        _draw_curve(axes, curve, colour, "success")
        axes.set_title(curve.label, fontsize=10, loc="left")
        axes.set_ylim(-2, 102)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(thousands)
        lighten(axes)
    for axes in grid.flat[len(lines) :]:
        axes.set_visible(False)
    figure.supxlabel("online environment steps", fontsize=9)
    figure.supylabel("success rate (%)", fontsize=9)
    figure.suptitle(f"{_legend(lines, 'success')}; grey: the other rows", fontsize=9, color="#5b6770")
    save(figure, out)


def require_matplotlib(needed_for: str) -> None:
    """An error that names the extra where it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtra("matplotlib", "plot", needed_for) from error


def new_figure(out: Path, size: tuple[float, float]) -> Figure:
    """An empty figure, inches wide and high, that `save` can write to `out` (PNG, PDF or SVG by its suffix)."""
    require_matplotlib("flowft plot")
    from matplotlib.figure import Figure

    if out.suffix not in (".png", ".pdf", ".svg"):
        raise UsageError(f"--out {out} is neither .png, .pdf nor .svg", f"--out {out.with_suffix('.png')}")
    return Figure(figsize=size, layout="constrained")  # no pyplot: no global state, no screen


def save(figure: Figure, out: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the picture whole or not at all, with what it says about itself beside Matplotlib's own."""
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.stem}.", suffix=out.suffix)
    os.close(handle)
    try:
        figure.savefig(temporary, dpi=160, metadata=None if metadata is None else dict(metadata))
        os.chmod(temporary, 0o644)
        os.replace(temporary, out)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _single(run: Run, kind: str) -> Curve:
    steps = tuple(int(row["step"]) for row in run.evaluations)
    middle = tuple(_value(row, kind) for row in run.evaluations)
    bands = [
        success_interval([_counts(row)])[1:] if kind == "success" else (value, value)
        for row, value in zip(run.evaluations, middle, strict=True)
    ]
    low, high = zip(*bands, strict=True)
    return Curve(run.name, steps, middle, low, high, _start(run, kind), 1)


def _mean(group: Sequence[Run], kind: str) -> Curve:
    """Over the steps at which every seed was evaluated."""
    tables = [{int(row["step"]): row for row in run.evaluations} for run in group]
    steps = tuple(sorted(set.intersection(*(set(table) for table in tables))))
    if not steps:
        raise UsageError(f"{', '.join(run.name for run in group)} were evaluated at no common step", "plot them one by one")
    if kind == "success":
        means = [success_interval([_counts(table[step]) for table in tables]) for step in steps]
    else:
        means = [mean_interval([_value(table[step], kind) for table in tables]) for step in steps]
    starts = [start for run in group if (start := _start(run, kind)) is not None]
    return Curve(
        label=f"{_common_name([run.name for run in group])} (mean of {len(group)} seeds)",
        steps=steps,
        middle=tuple(m.mean for m in means),
        low=tuple(m.low for m in means),
        high=tuple(m.high for m in means),
        start=float(np.mean(starts)) if starts else None,
        runs=len(group),
        each=tuple(tuple(_value(table[step], kind) for step in steps) for table in tables),
    )


def _counts(row: Mapping[str, Any]) -> tuple[int, int]:
    return int(row["successes"]), int(row["episodes"])


def _value(row: Mapping[str, Any], kind: str) -> float:
    return float(row["successes"]) / max(int(row["episodes"]), 1) if kind == "success" else float(row["return"])


def _start(run: Run, kind: str) -> float | None:
    first = run.evaluations[0]
    cloned = first.get("stage", "finetune") == "finetune"  # from scratch the first policy is an untrained one
    return _value(first, kind) if cloned and int(first["step"]) == 0 else None


def _common_name(names: Sequence[str]) -> str:
    """`lift-s0`, `lift-s1` -> `lift`: what the seeds' names share, without a dangling separator."""
    shared = os.path.commonprefix(list(names))
    for ending in ("seed", "s"):
        if len(shared) > len(ending) and shared.endswith(ending) and shared[-len(ending) - 1] in "-_.":
            shared = shared[: -len(ending)]
    return shared.rstrip("-_.") or names[0]


def thousands(value: float, _: object = None) -> str:
    """15000 -> 15k, as a tick."""
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def lighten(axes: Axes) -> None:
    """A pale grid behind the data, no frame above and to the right."""
    axes.grid(True, color="#e3e6e8", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _draw_curve(axes: Axes, curve: Curve, colour: str, kind: str) -> None:
    scale = 100.0 if kind == "success" else 1.0
    steps, middle = np.asarray(curve.steps), scale * np.asarray(curve.middle)
    if _has_band(curve, kind):
        axes.fill_between(steps, scale * np.asarray(curve.low), scale * np.asarray(curve.high), color=colour, alpha=0.16, linewidth=0)
    for values in curve.each:
        axes.plot(steps, scale * np.asarray(values), color=colour, linewidth=0.8, alpha=0.6, zorder=2)
    axes.plot(steps, middle, color=colour, linewidth=1.8, marker="o", markersize=3.5, label=curve.label, zorder=3)
    if curve.start is not None:
        level = f"{curve.start:.0%}".replace("%", " %") if kind == "success" else f"{curve.start:.1f}"
        axes.axhline(scale * curve.start, color=colour, linewidth=1.2, linestyle=(0, (5, 4)), label=f"cloned policy ({level})")


def _draw_training(axes: Axes, run: Run, window: int = 50) -> None:
    """The training episodes themselves (noise on), as a moving rate: a dip shows here between two evaluations."""
    if len(run.episodes) < 2 * window:
        return
    steps = np.asarray([int(row["step"]) for row in run.episodes])
    wins = np.asarray([float(row["success"]) for row in run.episodes])
    rate = np.convolve(wins, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], 100 * rate, color="#8a8f94", linewidth=1.0, label=f"training episodes (mean of last {window})", zorder=2)


def _dress(axes: Axes, lines: Sequence[Curve], kind: str) -> None:
    axes.set_xlabel("online environment steps" if any(curve.start is not None for curve in lines) else "environment steps")
    axes.set_ylabel("success rate (%)" if kind == "success" else "return")
    if kind == "success":
        axes.set_ylim(-2, 102)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(thousands)
    lighten(axes)
    axes.set_title(_legend(lines, kind), fontsize=9, color="#5b6770", loc="left")
    axes.legend(framealpha=0.9, edgecolor="none", loc="lower right" if kind == "success" else "best", fontsize=9)


def _has_band(curve: Curve, kind: str) -> bool:
    """One return has none. Of two, Student's t reaches six times as far as they are apart, and nothing stops it at 0 or 100 %."""
    return kind == "success" or curve.runs > 2


def _legend(lines: Sequence[Curve], kind: str) -> str:
    """What bands and thin lines are."""
    several, single = any(curve.runs > 1 for curve in lines), any(curve.runs == 1 for curve in lines)
    words = []
    if kind == "success":
        kinds = ["Wilson interval of each evaluation"] * single + ["the wider of t and Wilson over seeds"] * several
        words.append(f"shaded: 95 %, {' or '.join(kinds)}")
    elif any(_has_band(curve, kind) for curve in lines):
        words.append("shaded: 95 %, Student's t over three or more seeds")
    if several:
        words.append("thin: each seed")
    text = "; ".join(words)
    return text[:1].upper() + text[1:]
