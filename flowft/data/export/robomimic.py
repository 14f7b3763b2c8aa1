"""As robomimic HDF5: data/demo_<i>/{obs, next_obs, actions, rewards, dones}, attributes total and env_args."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flowft.data.export import OURS, facts, has_last_state, success_of_steps
from flowft.data.spec import Dataset, EnvSpec, Episode

TYPES = {"robosuite": 1, "gymnasium": 2, "robotics": 2}  # robomimic's numbers of kinds of environments


def write(dataset: Dataset, out: Path) -> list[str]:
    """Values stay as they are, bit for bit. next_obs is written where the state after the last action is known."""
    with h5py.File(out, "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = dataset.steps
        data.attrs[OURS] = json.dumps(facts(dataset))
        if dataset.env is not None and dataset.env.family in TYPES:
            data.attrs["env_args"] = json.dumps(_env_args(dataset.env), indent=4)
        for i, episode in enumerate(dataset.episodes):
            _demo(data.create_group(f"demo_{i}"), episode)
    unit = all(v == -1 for v in dataset.spec.action_low) and all(v == 1 for v in dataset.spec.action_high)
    return [] if unit else ["robomimic takes actions in [-1, 1]; these have other bounds, and are written as they are"]


def _env_args(env: EnvSpec) -> dict[str, Any]:
    version = env.versions.get(env.family)
    return {"env_name": env.id, "type": TYPES[env.family], "env_kwargs": dict(env.kwargs), **({"env_version": version} if version else {})}


def _demo(group: h5py.Group, episode: Episode) -> None:
    """`dones` is 1 on every success state and where the episode ended for good, as robomimic writes it."""
    group.attrs["num_samples"] = len(episode)
    group.attrs["terminated"] = episode.terminated
    if episode.success is not None:
        group.attrs["success"] = episode.success
    dones = success_of_steps(episode)
    dones[-1:] |= episode.terminated
    columns = {"actions": episode.actions, "rewards": episode.rewards, "dones": dones.astype(np.int64)}
    for part, rows in episode.observations.items():
        columns[f"obs/{part}"] = rows[: len(episode)]
        if has_last_state(episode):
            columns[f"next_obs/{part}"] = rows[1:]
    for column, values in columns.items():
        group.create_dataset(column, data=values, track_times=False)
