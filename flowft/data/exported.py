"""robomimic files that `flowft data export` wrote: read as robomimic's, with what the attribute of our own adds.

That is what robomimic's layout has no place for: bounds, the order of observation parts, any environment, and the ends and
successes of episodes whose rewards are not 0 and 1.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py

from flowft import registry
from flowft.data import source
from flowft.data.export import OURS, Facts
from flowft.data.files import is_hdf5, open_hdf5, text
from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset, Episode

NAME = "exported"
READS = "robomimic HDF5 that flowft data export wrote, with its bounds and environment"


def known() -> list[str]:
    return []


def locate(dataset_id: str) -> Path:
    raise source.bad_id(dataset_id, source.known_ids())


def matches(path: Path) -> bool:
    """robomimic HDF5 with our attribute."""
    if not is_hdf5(path):
        return False
    with open_hdf5(path) as file:
        return isinstance(data := file.get("data"), h5py.Group) and OURS in data.attrs


def read(path: Path, dataset_id: str, problems: Problems, options: Options) -> Dataset:
    """As robomimic reads it, then with our own facts. What `options` say wins over them."""
    with open_hdf5(path) as file:
        data = file["data"]
        ours = Facts.read(text(data.attrs[OURS]), f"{path}:data:{OURS}")
        ends = {f"data/{name}": dict(demo.attrs) for name in data if isinstance(demo := data[name], h5py.Group)}
    asked = replace(
        options,
        observation=options.observation or tuple(name for name, _ in ours.spec.parts),
        action_bounds=options.action_bounds or ours.bounds,
    )
    found: Dataset = registry.get("sources", "robomimic").read(path, dataset_id, problems, asked)
    declared = options.success is not None
    episodes = found.episodes if declared else [_with_end(episode, ends.get(episode.name, {})) for episode in found.episodes]
    notes = tuple(note for note in found.notes if "env_args" not in note) if ours.env else found.notes
    env = ours.env and replace(ours.env, observation=options.observation or ours.env.observation)
    return replace(found, episodes=tuple(episodes), env=env, rate=ours.rate, notes=notes)


def _with_end(episode: Episode, attributes: dict[str, Any]) -> Episode:
    """The end that was written, instead of the one that rewards of 0 and 1 tell."""
    if "terminated" not in attributes:
        return episode
    success = bool(attributes["success"]) if "success" in attributes else None
    return replace(episode, terminated=bool(attributes["terminated"]), success=success)
