"""What a comparison found: one table (Markdown and JSON) and one plot, of as many seeds as there are yet."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flowft.errors import UsageError
from flowft.report import card, plots
from flowft.report.plots import Run
from flowft.report.stats import success_interval

COLUMNS = 4  # levels at so many numbers of online steps, the last one included


class Level(NamedTuple):
    """Success at one number of online steps: the interval is `success_interval`'s."""

    step: int
    rate: float
    low: float
    high: float
    successes: int  # of all seeds together
    episodes: int
    seeds: int


@dataclass(frozen=True)
class Row:
    """An algorithm and the online runs of its seeds."""

    label: str
    runs: tuple[Run, ...]
    missing: tuple[str, ...]  # names of runs that have no evaluation yet

    def steps(self) -> list[int]:
        """At which every seed was evaluated."""
        found = [{int(row["step"]) for row in run.evaluations} for run in self.runs]
        return sorted(set.intersection(*found)) if found else []

    def level(self, step: int) -> Level:
        """Over all seeds."""
        rows = [row for run in self.runs for row in run.evaluations if int(row["step"]) == step]
        counts = [(int(row["successes"]), int(row["episodes"])) for row in rows]
        successes, episodes = (sum(column) for column in zip(*counts, strict=True))
        return Level(step, *success_interval(counts), successes, episodes, len(rows))

    def lowest(self) -> Mapping[str, Any] | None:
        """The worst single evaluation after the start, of any seed; of equal ones that with the highest start."""
        later = [(run, row) for run in self.runs for row in run.evaluations if int(row["step"]) > 0]
        if not later:
            return None
        run, row = min(later, key=lambda pair: (_rate(pair[1]), -_rate(pair[0].evaluations[0])))
        return {
            "successes": int(row["successes"]), "episodes": int(row["episodes"]), "step": int(row["step"]), "run": run.name,
            "start": _rate(run.evaluations[0]),
        }  # fmt: skip

    def steps_to(self, rate: float) -> int | None:
        """The first step at which the mean over seeds is at `rate`; None: not yet."""
        return next((step for step in self.steps() if self.level(step).rate >= rate), None)


def gather(runs: Mapping[str, Sequence[Path]]) -> list[Row]:
    """From label -> run folders, to what is in them."""
    rows = []
    for label, folders in runs.items():
        found, missing = [], []
        for folder in folders:
            try:
                found.append(plots.read_run(folder))
            except UsageError:
                missing.append(folder.name)
        rows.append(Row(label, tuple(found), tuple(missing)))
    if not any(row.runs for row in rows):
        raise UsageError("no run of this comparison has been evaluated yet", "leave out --report-only, or wait for the first evaluation")
    return rows


def write(rows: Sequence[Row], out: Path, title: str, command: str, goal: float = 0.9) -> None:
    """table.md, table.json and success.png in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    card.write(out / "table.json", json.dumps(as_json(rows, goal), indent=2) + "\n")
    card.write(out / "table.md", f"# {title}\n\n{table(rows, goal)}\n\n{_notes(rows, goal)}\n\n    {command}\n\n![success](success.png)\n")
    plots.write_panels(curves(rows), out / "success.png")


def curves(rows: Sequence[Row]) -> list[plots.Curve]:
    """One per row that has a run; the curve begins at the start's level, so it needs no line of its own."""
    found = []
    for row in rows:
        if row.runs:
            curve = plots.curve(row.runs, "success")
            label = row.label + (f" (mean of {curve.runs} seeds)" if curve.runs > 1 else "")
            found.append(dataclasses.replace(curve, label=label, start=None))
    return found


def columns(rows: Sequence[Row]) -> list[int]:
    """The numbers of steps that the table shows: evenly spread over those that all of the furthest rows have, the last one included."""
    found = [steps for row in rows if (steps := row.steps())]
    furthest = max((steps[-1] for steps in found), default=0)
    shared = set.intersection(*(set(steps) for steps in found if steps[-1] == furthest)) if found else set()
    later = sorted(step for step in shared if step > 0)
    if len(later) <= COLUMNS:
        return later
    return sorted({later[round((i + 1) * len(later) / COLUMNS) - 1] for i in range(COLUMNS)})


def table(rows: Sequence[Row], goal: float) -> str:
    """Markdown. A dash: not reached yet."""
    shown = columns(rows)
    head = ["algorithm", "seeds", "start", *(f"{step:,} steps" for step in shown), "lowest after the start", f"steps to {goal:.0%}"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        steps = row.steps()
        levels = [_level(row.level(step)) if step in steps else "–" for step in [0, *shown]]
        lowest, first = row.lowest(), row.steps_to(goal)
        worst = "–"
        if lowest:
            worst = f"{lowest['successes']}/{lowest['episodes']} at {lowest['step']:,} (start: {lowest['start']:.0%})"
        cells = [row.label, str(len(row.runs)), *levels, worst, "–" if first is None else f"{first:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("%", " %")


def as_json(rows: Sequence[Row], goal: float) -> dict[str, Any]:
    """Every level of every row, and of every run its counts."""
    return {
        "confidence": 0.95,
        "goal": goal,
        "algorithms": [
            {
                "label": row.label,
                "levels": [row.level(step)._asdict() for step in row.steps()],
                "lowest": row.lowest(),
                "steps_to_goal": row.steps_to(goal),
                "runs": {
                    run.name: [{key: evaluation[key] for key in ("step", "successes", "episodes")} for evaluation in run.evaluations]
                    for run in row.runs
                },
                "missing": list(row.missing),
            }
            for row in rows
        ],
    }


def _rate(evaluation: Mapping[str, Any]) -> float:
    return int(evaluation["successes"]) / int(evaluation["episodes"])


def _level(level: Level) -> str:
    interval = f"({level.low * 100:.0f}–{level.high:.0%})"
    return f"{level.successes}/{level.episodes} {interval}" if level.seeds == 1 else f"{level.rate:.0%} {interval}"


def _notes(rows: Sequence[Row], goal: float) -> str:
    counts = sorted({int(evaluation["episodes"]) for row in rows for run in row.runs for evaluation in run.evaluations})
    noisy = {bool(run.recipe.get("eval", {}).get("stochastic")) for row in rows for run in row.runs}
    how = "with exploration noise" if noisy == {True} else "without exploration noise" + (" in some runs" if len(noisy) > 1 else "")
    text = (
        f"Online environment steps; {' or '.join(map(str, counts))} episodes {how} per evaluation, on seeds "
        "that training never uses, the same ones every time. In brackets 95%: Wilson for one seed, the wider of "
        "Student's t and Wilson over several. "
        f"Start: the policy as pretraining left it. The last column: the first evaluation at which the mean over seeds is at {goal:.0%}."
    ).replace("%", " %")
    if missing := [name for row in rows for name in row.missing]:
        text += f" Not evaluated yet: {', '.join(missing)}."
    return text
