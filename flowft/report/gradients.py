"""How gradients pass through the rollout of each run: four panels and a table, from the rows of kind "gradients".

flowft/algos/diagnostics.py says what the numbers are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flowft.errors import UsageError
from flowft.report import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """The measurements of one run; N rows, K flow steps."""

    name: str
    network: str
    steps: Numbers  # (N,) online steps
    grad_x: Numbers  # (N, K + 1) ‖∂L/∂x_i‖
    jacobian: Numbers  # (N, K) spectral norm of ∂x_{i+1}/∂x_i
    jacobian_rollout: Numbers  # (N,) of ∂x_K/∂x_0
    actor_grad_norm: Numbers  # (N,) before clipping

    @property
    def label(self) -> str:
        return f"{self.name} ({self.network})"

    @property
    def growth(self) -> Numbers:
        """‖∂L/∂x_0‖ / ‖∂L/∂x_K‖ (N,): above 1 gradients explode on their way back, below 1 they vanish."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.grad_x[:, 0] / self.grad_x[:, -1])


def read_run(folder: Path) -> Run:
    """The measurements in `folder/metrics.jsonl`."""
    by_step = {int(row["step"]): row for row in plots.read_rows(folder) if row.get("kind") == "gradients"}
    if not by_step:
        raise UsageError(
            f"{folder / 'metrics.jsonl'} holds no measurements of gradients",
            "flowft finetune --ckpt NAME --name NEW --set diagnostics.gradients=true",
        )
    rows = [by_step[step] for step in sorted(by_step)]
    network = plots.read_recipe(folder).get("policy", {}).get("network", "network not known")
    return Run(
        name=folder.name,
        network=network,
        steps=np.asarray(sorted(by_step), dtype=np.float64),
        grad_x=_numbered(rows, "grad_x"),
        jacobian=_numbered(rows, "jacobian_"),
        jacobian_rollout=np.asarray([row["jacobian_rollout"] for row in rows], dtype=np.float64),
        actor_grad_norm=np.asarray([row["actor_grad_norm"] for row in rows], dtype=np.float64),
    )


def draw(runs: Sequence[Run], out: Path) -> Sequence[Run]:
    """Write the plot to `out` (PNG, PDF or SVG by its suffix), whole or not at all. Returns what was drawn."""
    figure = plots.new_figure(out, (10.0, 7.2))
    through, growth, norm, jacobian = figure.subplots(2, 2).flat
    for run, colour in zip(runs, plots.colours(len(runs)), strict=True):
        _band(through, run.grad_x, colour, run.label)
        _line(growth, run.steps, run.growth, colour)
        _line(norm, run.steps, run.actor_grad_norm, colour)
        _band(jacobian, run.jacobian, colour, run.label)
    _dress(through, r"$\|\partial L/\partial x_i\|$", "flow step i (0: noise, K: action)")
    _dress(growth, r"$\|\partial L/\partial x_0\|\ /\ \|\partial L/\partial x_K\|$", "online environment steps")
    _dress(norm, "gradient norm of the actor, before clipping", "online environment steps")
    _dress(jacobian, r"largest singular value of $\partial x_{i+1}/\partial x_i$", "flow step i")
    growth.axhline(1.0, color="#8a8f94", linewidth=1.0)
    jacobian.axhline(1.0, color="#8a8f94", linewidth=1.0)
    through.legend(framealpha=0.9, edgecolor="none", fontsize=9)
    plots.save(figure, out)
    return runs


def table(runs: Sequence[Run]) -> str:
    """Markdown: median and range over the rows of each run."""
    head = ["run", "rows", "‖∂L/∂x_0‖ / ‖∂L/∂x_K‖", "actor's gradient norm", "largest step Jacobian", "Jacobian of the rollout"]
    lines = [head, ["---"] * len(head)]
    for run in runs:
        columns = (run.growth, run.actor_grad_norm, run.jacobian.max(axis=1), run.jacobian_rollout)
        lines.append([run.label, str(len(run.steps)), *map(_spread, columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _numbered(rows: Sequence[Mapping[str, Any]], prefix: str) -> Numbers:
    """The columns prefix0, prefix1, … of all rows (N, how many there are)."""
    names = sorted((name for name in rows[0] if name.removeprefix(prefix).isdigit()), key=lambda name: int(name.removeprefix(prefix)))
    return np.asarray([[row[name] for name in names] for row in rows], dtype=np.float64)


def _spread(values: Numbers) -> str:
    """`median (least–largest)` of what is finite, and how much is not."""
    finite = values[np.isfinite(values)]
    text = f"{np.median(finite):.3g} ({finite.min():.3g}–{finite.max():.3g})" if finite.size else "–"
    return text if finite.size == values.size else f"{text}, {values.size - finite.size} not finite"


def _band(axes: Axes, values: Numbers, colour: str, label: str) -> None:
    """Median over the rows against the flow step, from least to largest shaded."""
    finite = values[np.isfinite(values).all(axis=1)]
    if not len(finite):
        finite = np.full((1, values.shape[1]), np.nan)  # the label all the same
    i = np.arange(values.shape[1])
    axes.fill_between(i, finite.min(axis=0), finite.max(axis=0), color=colour, alpha=0.16, linewidth=0)
    axes.plot(i, np.median(finite, axis=0), color=colour, linewidth=1.8, marker="o", markersize=3.5, label=label)
    axes.locator_params(axis="x", integer=True)


def _line(axes: Axes, steps: Numbers, values: Numbers, colour: str) -> None:
    axes.plot(steps, np.ma.masked_invalid(values), color=colour, linewidth=1.5, marker="o", markersize=2.5)
    axes.xaxis.set_major_formatter(plots.thousands)


def _dress(axes: Axes, title: str, x: str) -> None:
    axes.set_yscale("log")
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x)
    plots.lighten(axes)
