"""Tasks that packages on top of robosuite bring along: their files name them in env_args as if robosuite had them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

MIMICGEN = re.compile(r"_[DO]\d+$")  # Coffee_D0, MugCleanup_O1: a task with the variant of its start positions


def package_of(task: str, arguments: Mapping[str, Any]) -> str | None:
    """LIBERO or mimicgen, by what env_args says; None for a task of robosuite's own."""
    if task.lower().startswith("libero") or "bddl_file" in arguments:
        return "LIBERO"
    return "mimicgen" if MIMICGEN.search(task) else None


def not_built(task: str, arguments: Mapping[str, Any]) -> str | None:
    """What is to be said of a task whose package is not installed; None where robosuite can be asked for it."""
    package = package_of(task, arguments)
    if package is None or find_spec(package.lower()) is not None:
        return None
    return f"the task {task} is {package}'s, which is not installed: good for cloning; for online steps name an environment with --env"
