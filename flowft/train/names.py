"""Names of runs: what a dataset's or an environment's run is called when nobody says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from flowft import registry
from flowft.errors import UsageError


def of_dataset(dataset: str) -> str:
    """`robomimic/can/mh` -> can, `my/demos.hdf5` -> demos."""
    parts = [part for part in dataset.split("/") if part]
    known = parts[0] in registry.names("sources") and len(parts) > 1
    return parts[1] if known else Path(dataset).stem


def of_environment(env_id: str) -> str:
    """`HalfCheetah-v5` -> halfcheetah-v5."""
    return re.sub(r"[^\w.-]+", "-", env_id).lower()


def usable(name: str) -> str:
    """The name, unless it cannot be a folder's."""
    if not name or Path(name).name != name:
        raise UsageError(f"the name {name!r} cannot be a folder's", "--name lift-1")
    return name


def quoted(text: str) -> str:
    """As a shell takes it."""
    return shlex.quote(text)
