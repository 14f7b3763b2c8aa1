"""robosuite's own demonstrations (`demo.hdf5` of its collection scripts): simulator states and actions, nothing else.

Observations, rewards and successes are rebuilt by setting the states in the simulator. The state after the last action was
not stored, so that action is left out; what comes after the first success is cut off, as the task is over there.
Ids: `robosuite/<name>`, looked for as <datasets folder>/robosuite/<name>/demo.hdf5 (or <name>.hdf5).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from flowft import registry
from flowft.data import fixes, masks, source
from flowft.data.check import Inspector, refuse, skip
from flowft.data.files import being_written, is_hdf5, numeric_order, open_hdf5, text
from flowft.data.hdf5_faults import link_gone
from flowft.data.progress import watched
from flowft.data.robomimic import absolute
from flowft.data.robomimic_demo import Marks
from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset, EnvSpec, Episode
from flowft.errors import DataError, EnvError

NAME = "robosuite"
FORMAT = "robosuite demo.hdf5 (states and actions)"
READS = "robosuite 1.4 and 1.5: states and actions of demo.hdf5, observations and rewards rebuilt in the simulator"


def known() -> list[str]:
    """Those that lie in the datasets folder: there is no public collection to name."""
    home = source.folder() / NAME
    found = [path.parent.name for path in home.glob("*/demo.hdf5")] + [path.stem for path in home.glob("*.hdf5")]
    return [f"{NAME}/{name}" for name in sorted(found)]


def locate(dataset_id: str) -> Path:
    name = dataset_id.partition("/")[2]
    places = [source.folder() / NAME / name / "demo.hdf5", source.folder() / NAME / f"{name}.hdf5"]
    for path in places:
        if name and path.is_file():
            return path
    raise DataError(f"{dataset_id} is not here: demo.hdf5 would have to lie at {places[0]}, or give its path")


def matches(path: Path) -> bool:
    """HDF5 with a group `data` whose demos have states and actions, and neither observations nor rewards."""
    if not is_hdf5(path):
        return False
    with open_hdf5(path) as file:
        data = file.get("data")
        return isinstance(data, h5py.Group) and states_only(data)


def states_only(data: h5py.Group) -> bool:
    """Have all demos (there is one at least) states, and neither observations nor rewards?"""
    demos = [demo for name in data if isinstance(demo := data.get(name), h5py.Group)]
    return bool(demos) and all("states" in demo and "obs" not in demo and "rewards" not in demo for demo in demos)


def read(path: Path, dataset_id: str, problems: Problems, options: Options) -> Dataset:
    """All demos, rebuilt in the simulator of the file's `env_info` and checked. About 3,000 states a second."""
    refuse(str(path), options, "episode_steps", "robosuite keeps demonstrations apart")
    inspector = Inspector(str(path), problems, options)
    with open_hdf5(path) as file:
        data = file.get("data")
        if not isinstance(data, h5py.Group):
            raise DataError(f"{path}:data: missing; robosuite keeps its demos there")
        env = _environment(str(path), data, options)
        if said := absolute(env.kwargs.get("controller_configs")):
            inspector.absolute_actions(f"{said} in env_info")
        inspector.notes += being_written(file)
        family = registry.get("envs", "robosuite")
        built = _built(family, env, path)
        env = EnvSpec(**{**env.__dict__, "observation": tuple(name for name, _ in built.spec.parts)})
        installed, made_with = family.versions()["robosuite"], env.versions.get("robosuite", "unknown")
        inspector.notes.append(f"made with robosuite {made_with}; observations and rewards rebuilt with robosuite {installed}")
        try:
            chosen = inspector.wanted(masks.chosen(inspector, file, numeric_order(list(data))))
            for name in watched(chosen, f"rebuilding {path.name}", "demo"):
                own_model = _minor(made_with) == _minor(installed)
                _demo(inspector, data, name, built.env, own_model)
        finally:
            built.env.close()
    return inspector.dataset(dataset_id, NAME, FORMAT, inspector.identity.hexdigest(), env, env.observation)


def _environment(file: str, data: h5py.Group, options: Options) -> EnvSpec:
    """From `env_info` (JSON; older files have only the attribute `env`), else from robomimic's `env_args`, as demo_v15.hdf5 has it."""
    try:
        if "env_args" in data.attrs and not ("env" in data.attrs or "env_info" in data.attrs):
            told = json.loads(text(data.attrs["env_args"]))
            kwargs, task, version = dict(told.get("env_kwargs") or {}), str(told["env_name"]), str(told.get("env_version") or "unknown")
            return EnvSpec("robosuite", task, kwargs, observation=options.observation, versions={"robosuite": version})
        kwargs = dict(json.loads(text(data.attrs.get("env_info", "{}"))))
        task = str(kwargs.pop("env_name", None) or text(data.attrs["env"]))
    except (AttributeError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file}:data: the attributes env and env_info do not tell the task ({error})") from error
    version = options.env_version or text(data.attrs.get("repository_version", "unknown"))
    return EnvSpec("robosuite", task, kwargs, observation=options.observation, versions={"robosuite": version})


def _built(family: Any, env: EnvSpec, path: Path) -> Any:
    """The simulator; an observation part that it does not have is told with the way back to its usual ones."""
    try:
        return family.build(env)
    except EnvError as error:
        if not env.observation:
            raise
        family.build(replace(env, observation=())).env.close()  # what is wrong with more than the parts is told as such
        raise DataError(f"{path}: {error.what}", fixes.setting(observation=[])) from error


def _demo(inspector: Inspector, data: h5py.Group, name: str, simulator: Any, own_model: bool) -> None:
    """Check one demo's keys, rebuild it, and hand it to the inspector."""
    at, demo = f"data/{name}", data.get(name)
    if not isinstance(demo, h5py.Group) or not all(isinstance(demo.get(key), h5py.Dataset) for key in ("states", "actions")):
        inspector.report(at, link_gone(data, name) or "not a group with states and actions", skip(name))
        return
    if not inspector.same_length({f"{at}/actions": len(demo["actions"]), f"{at}/states": len(demo["states"])}, name):
        return
    states, actions = (inspector.identity.add(f"{at}/{key}", demo[key][()]) for key in ("states", "actions"))
    if len(states) < 3 or states.dtype.kind != "f" or not np.isfinite(states).all():
        reason = f"has {len(states)} rows only" if len(states) < 3 else "holds values that are not finite numbers"
        inspector.report(f"{at}/states", reason, skip(name))
        return
    xml = text(demo.attrs["model_file"]) if own_model and "model_file" in demo.attrs else None
    try:
        parts, rewards, successes = simulator.observations_at(states, xml)
    except EnvError as error:
        inspector.report(f"{at}/states", error.what, skip(name))
        return
    reached = successes[1:]
    steps = int(np.argmax(reached)) + 1 if reached.any() else len(reached)
    episode = Episode(
        name=at,
        observations={part: rows[: steps + 1] for part, rows in parts.items()},
        actions=actions[:steps],
        rewards=rewards[1 : steps + 1],
        terminated=bool(reached.any()),
        success=bool(reached.any()),
    )
    given, key = Marks(demo, inspector), inspector.success_key
    marks = {key: given[key][:steps] if np.ndim(given[key]) else given[key]} if key is not None and key in given else {}
    inspector.accept(episode, lambda key: f"{at}/{key}" if key == "actions" else f"{at}/states", marks=marks)


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]
