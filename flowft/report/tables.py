"""From numbers in JSON to a Markdown table. What can be computed (intervals, means, the lowest) is computed here, never written down.

A file of tables holds, beside whatever it says about itself (`about`), one entry per table:

    {"tables": {"online": {"columns": [COLUMN, …], "rows": [{"seed": 0, "episodes": 50, "counts": {"0": 26, "1000": [13, 20]}}, …]}}}

Counts are successes by step: a number is one of the row's `episodes`, a pair is [successes, episodes]. Each COLUMN has a `title`
and says with one of these keys what it shows of each row; a row that lacks it, or has null, gets an empty cell:

    "key": NAME       the value as it is; a pair [206, 53] is 206 → 53. "once": true leaves out what repeats the row above
    "rate": NAME      a pair [successes, episodes] with its Wilson interval
    "counts": NAME    the successes at each of "steps", a column each; "of": "first" or "each" shows k/n there;
                      "also": NAME adds a value by step. The title may hold {step}; without one it is the step
    "values": NAME    numbers by step (returns), likewise; a list is one number per seed
    "lowest": NAME    the lowest count later than step "after" (0), with the first one where "start": true
    "mean": NAME      of the counts at "steps"
    "cost": NAME      how far that mean is below the one of the row whose `name` is this row's `base`

The other layout is `flowft compare`'s table.json: {"goal": 0.9, "algorithms": [{"label": …, "runs": {RUN: [{"step", "successes",
"episodes"}, …]}}]}. Its table is the one that compare writes; `seeds` is the counts of each run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowft.errors import DataError, did_you_mean
from flowft.report import compare
from flowft.report.plots import Run
from flowft.report.stats import wilson

Rows = list[Mapping[str, Any]]
KINDS = ("key", "rate", "counts", "values", "lowest", "mean", "cost")
OPTIONS = ("title", "once", "steps", "of", "also", "after", "start", "round")
SEEDS = "seeds"  # the other view of a comparison


def names(content: Mapping[str, Any]) -> list[str]:
    """The tables that a file offers; the empty name is what a marker without `#NAME` means."""
    if "algorithms" in content:
        return ["", SEEDS]
    tables = _mapping(content.get("tables"), "tables")
    return ["", *tables] if len(tables) == 1 else list(tables)


def markdown(content: Mapping[str, Any], name: str) -> str:
    """The table of that name (one of `names`). DataError: where the file does not say what its layout asks for."""
    if "algorithms" in content:
        rows = comparison(content)
        return seeds(rows) if name == SEEDS else compare.table(rows, goal(content))
    columns, rows_ = entry(content, name)
    heads: list[str] = []
    cells: list[list[str]] = [[] for _ in rows_]
    for column in columns:
        titles, body = _column(column, rows_)
        heads += titles
        for line, more in zip(cells, body, strict=True):
            line += more
    return lines(heads, cells)


def lines(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A Markdown table; whatever a cell holds stays inside it."""
    first, *rest = ["".join(f"| {cell} " if cell else "| " for cell in map(_inside, row)) + "|" for row in (heads, *cells)]
    return "\n".join([first, "|" + "---|" * len(heads), *rest])


def _inside(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def entry(content: Mapping[str, Any], name: str) -> tuple[list[Mapping[str, Any]], Rows]:
    """Columns and rows of one table."""
    tables = _mapping(content.get("tables"), "tables")
    table = _mapping(tables[name or next(iter(tables))], f"table {name!r}")
    found = []
    for part in ("columns", "rows"):
        values = table.get(part)
        if not isinstance(values, list) or not values:
            raise DataError(f"table {name!r} has no list of {part}", f'"{part}": [{{…}}, …]')
        found.append([_mapping(value, f"table {name!r}: each of {part}") for value in values])
    return found[0], found[1]


# A column -----------------------------------------------------------------------------------------------------------------


def _column(column: Mapping[str, Any], rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Its titles (one per step where there are steps) and, row by row, as many cells."""
    kinds = [kind for kind in KINDS if kind in column]
    unknown = [key for key in column if key not in (*KINDS, *OPTIONS)]
    title = str(column.get("title", "{step}"))
    if unknown:
        raise DataError(f"column {title!r}: unknown {unknown[0]!r}{did_you_mean(unknown[0], (*KINDS, *OPTIONS))}")
    if len(kinds) != 1:
        raise DataError(f"column {title!r} has {' and '.join(kinds) or 'nothing'} to show", f"one of {', '.join(KINDS)}")
    kind, name = kinds[0], str(column[kinds[0]])
    if not any(row.get(name) is not None for row in rows):
        raise DataError(f"column {title!r}: no row has {name!r}{did_you_mean(name, {key for row in rows for key in row})}")
    if kind in ("counts", "values"):
        steps = _steps(column, title)
        for step in steps:
            if not any(str(step) in _mapping(row.get(name) or {}, name) for row in rows):
                raise DataError(f"column {title!r}: no row has {name!r} at step {step}")
        titles = [title.replace("{step}", f"{step:,}") for step in steps]
        return titles, [[_at(column, kind, name, row, step) for step in steps] for row in rows]
    if kind == "key" and column.get("once"):
        shown = [_text(row.get(name)) for row in rows]
        return [title], [[text if i == 0 or text != shown[i - 1] else ""] for i, text in enumerate(shown)]
    return [title], [[_single(column, kind, name, row, rows)] for row in rows]


def _single(column: Mapping[str, Any], kind: str, name: str, row: Mapping[str, Any], rows: Rows) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if kind == "key":
        return _text(value)
    if kind == "rate":
        return rate(*pair(value, None))
    if kind == "lowest":
        after = column.get("after", 0)
        if type(after) is not int:
            raise DataError(f"column {column.get('title')!r}: after {after!r} is no number of steps")
        return _lowest(counts(row, name), after, bool(column.get("start")))
    steps = _steps(column, str(column.get("title")))
    own = _mean(row, name, steps)
    if kind == "mean":
        return "" if own is None else f"{own:.1f}"
    base = next((other for other in rows if row.get("base") is not None and other.get("name") == row["base"]), None)
    if base is None and row.get("base") is not None:
        raise DataError(f"no row has the name {row['base']!r}, with which another is to be compared")
    other = None if base is None else _mean(base, name, steps)
    return "" if own is None or other is None else number(f"{other - own:+.1f}")


def _at(column: Mapping[str, Any], kind: str, name: str, row: Mapping[str, Any], step: int) -> str:
    """The cell of one step."""
    if kind == "values":
        value = _mapping(row.get(name) or {}, name).get(str(step))
        return "" if value is None else ", ".join(_text(each) for each in (value if isinstance(value, list) else [value]))
    count = counts(row, name).get(step)
    if count is None:
        return ""
    whole = column.get("of") == "each" or (column.get("of") == "first" and step == _steps(column, name)[0])
    text = f"{count[0]}/{count[1]}" if whole else str(count[0])
    also = _mapping(row.get(str(column.get("also"))) or {}, "also").get(str(step))
    return text if also is None else f"{text}, {_text(also)}"


def counts(row: Mapping[str, Any], name: str = "counts") -> dict[int, tuple[int, int]]:
    """step -> (successes, episodes) of a row, in the order of the steps."""
    found = {}
    for step, value in _mapping(row.get(name) or {}, name).items():
        if not (step.isascii() and step.isdigit()):
            raise DataError(f"{name}: {step!r} is not a number of steps")
        found[int(step)] = pair(value, row.get("episodes"))
    return dict(sorted(found.items()))


def pair(value: Any, episodes: Any) -> tuple[int, int]:
    """(successes, episodes) of a count. DataError: where it is none."""
    both = value if isinstance(value, list) else [value, episodes]
    if len(both) != 2 or not all(type(each) is int for each in both) or not 0 <= both[0] <= both[1] or both[1] == 0:
        raise DataError(f"{value!r} of {episodes!r} episodes is no count of successes" if both is not value else f"{value!r} is no count")
    return both[0], both[1]


def rate(successes: int, episodes: int) -> str:
    """`60/100 (50–69 %)`: Wilson, 95 %."""
    low, high = wilson(successes, episodes)
    return f"{successes}/{episodes} ({low * 100:.0f}–{high * 100:.0f} %)"


def _lowest(found: Mapping[int, tuple[int, int]], after: int, start: bool) -> str:
    later = [count for step, count in found.items() if step > after]
    if not later:
        return ""
    worst, first = min(later, key=lambda count: count[0] / count[1]), next(iter(found.values()))
    return f"{worst[0]}/{worst[1]}" + (f" (start: {first[0]}/{first[1]})" if start else "")


def _mean(row: Mapping[str, Any], name: str, steps: Sequence[int]) -> float | None:
    """Of the successes at these steps; None where one is missing."""
    found = counts(row, name)
    return sum(found[step][0] for step in steps) / len(steps) if all(step in found for step in steps) else None


def _steps(column: Mapping[str, Any], title: str) -> list[int]:
    steps = column.get("steps")
    if not isinstance(steps, list) or not steps or not all(type(step) is int and step >= 0 for step in steps):
        raise DataError(f"column {title!r} needs steps, not {steps!r}", '"steps": [0, 1000]')
    return steps


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " → ".join(map(_text, value))
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{value!r} is neither text nor a number")
    return number(f"{value:,}")


def number(text: str) -> str:
    """With a minus sign that is one."""
    return text.replace("-", "−")


# A comparison -------------------------------------------------------------------------------------------------------------


def comparison(content: Mapping[str, Any]) -> list[compare.Row]:
    """The rows of a table.json, from the counts of its runs."""
    found = []
    algorithms = content["algorithms"]
    for algorithm in algorithms if isinstance(algorithms, list) else [algorithms]:
        label = str(_mapping(algorithm, "each of algorithms").get("label"))
        runs = _mapping(algorithm.get("runs"), f"runs of {label}")
        online = tuple(Run(name, {}, _evaluations(name, rows), ()) for name, rows in runs.items() if rows)
        found.append(compare.Row(label, online, tuple(name for name, rows in runs.items() if not rows)))
    if not any(row.runs for row in found):
        raise DataError("no run in it has been evaluated")
    return found


def _evaluations(name: str, rows: Any) -> tuple[Mapping[str, Any], ...]:
    """Of a run, by step."""
    found: dict[int, Mapping[str, Any]] = {}
    for row in rows if isinstance(rows, list) else [rows]:
        row = _mapping(row, f"each evaluation of {name}")
        step = row.get("step")
        if type(step) is not int or step < 0 or step in found:
            raise DataError(f"{name}: {step!r} is no step of its own")
        successes, episodes = pair([row.get("successes"), row.get("episodes")], None)
        found[step] = {"step": step, "successes": successes, "episodes": episodes}
    return tuple(found[step] for step in sorted(found))


def goal(content: Mapping[str, Any]) -> float:
    """The level whose first step the table tells; compare's default where the file does not say."""
    value = content.get("goal", 0.9)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise DataError(f"goal {value!r} is not between 0 and 1")
    return float(value)


def seeds(rows: Sequence[compare.Row]) -> str:
    """The counts of each run at the steps that any of them has."""
    steps = sorted({int(each["step"]) for row in rows for run in row.runs for each in run.evaluations})
    cells = []
    for row in rows:
        for i, run in enumerate(row.runs):
            found = {int(each["step"]): f"{each['successes']}/{each['episodes']}" for each in run.evaluations}
            cells.append([row.label if i == 0 else "", run.name, *(found.get(step, "") for step in steps)])
    return lines(["algorithm", "run", *(f"{step:,}" for step in steps)], cells)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DataError(f"{what}: {'missing' if value is None else repr(value)[:40] + ' is no mapping'}")
    return value
