"""`--set data.KEY=V` of the `flowft data` commands: how a dataset is read, as in a recipe."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from flowft import recipe
from flowft.data.source import Options
from flowft.errors import UsageError

setting = click.option("--set", "assignments", multiple=True, metavar="data.KEY=V", help="How to read it, as in a recipe. Repeatable.")


def options(assignments: tuple[str, ...], base: dict[str, Any] | None = None) -> Options:
    """The recipe's `data` section as it is given on the command line, over `base`."""
    tree = recipe.from_assignments(assignments)
    if other := [key for key in tree if key != "data"]:
        near = f"data.{other[0]}"
        what = f"{other[0]!r} is no setting of how data are read (those begin with data.)"
        raise UsageError(what, f"--set {near}=…" if other[0] in {f.name for f in dataclasses.fields(Options)} else None)
    return recipe.build(Options, {**(base or {}), **recipe.section(tree, "data")}, "data")
