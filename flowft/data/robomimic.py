"""robomimic HDF5: `data/demo_<i>/{obs/*, next_obs/*, actions, rewards, dones, states}`, attributes total and env_args, masks.

Ids: `robomimic/<task>/<ph|mh|mg>`, looked for as `low_dim*.hdf5` below <datasets folder>/robomimic/<task>/<variant>/ and
~/.robomimic/<task>/<variant>/. Without a variant: mh when it is there, else ph, else mg (for the error: mh).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py

from flowft.data import elsewhere, fixes, masks, robomimic_demo, source
from flowft.data.check import Inspector, refuse
from flowft.data.files import being_written, is_hdf5, names, numeric_order, open_hdf5, text
from flowft.data.hdf5_faults import link_gone
from flowft.data.progress import watched
from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset, EnvSpec
from flowft.errors import DataError

NAME = "robomimic"
FORMAT = "robomimic HDF5"
READS = "robomimic v0.1 and v1.5, mimicgen, LIBERO, Isaac Lab's recorder: obs of low dimension, actions, rewards, masks; no images"
TASKS = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare", "transport": "TwoArmTransport", "tool_hang": "ToolHang"}
VARIANTS = ("mh", "ph", "mg")  # in the order in which they are looked for
HUMANS_ONLY = {"square": ("mh", "ph"), "transport": ("mh", "ph"), "tool_hang": ("ph",)}  # the others have all three
MAX_STEPS = {"Lift": 300, "PickPlaceCan": 300, "NutAssemblySquare": 400, "TwoArmTransport": 800, "ToolHang": 700}  # usual in the literature
ROBOT_PARTS = ("eef_pos", "eef_quat", "gripper_qpos")


def known() -> list[str]:
    return [f"robomimic/{task}/{variant}" for task in TASKS for variant in sorted(HUMANS_ONLY.get(task, VARIANTS))]


def locate(dataset_id: str) -> Path:
    """The file of `robomimic/<task>[/<variant>]`."""
    task, variants = parse(dataset_id)
    for variant in variants:
        for home in homes(task, variant):
            if found := sorted(home.glob("low_dim*.hdf5")):
                return found[-1]  # the newest version's name sorts last
    place = homes(task, variants[0])[0] / "low_dim_v15.hdf5"
    raise DataError(f"{dataset_id} is not here: no {place}", f"flowft data download robomimic/{task}/{variants[0]}")


def homes(task: str, variant: str) -> list[Path]:
    """Folders in which a file of this task and variant may lie, the first being where downloads go."""
    return [source.folder() / NAME / task / variant, Path.home() / ".robomimic" / task / variant]


def parse(dataset_id: str) -> tuple[str, list[str]]:
    """`robomimic/can/mh` as ("can", ["mh"]); without a variant, all that the task has."""
    words = dataset_id.split("/")
    task = words[1] if len(words) > 1 else ""
    there = [v for v in VARIANTS if v in HUMANS_ONLY.get(task, VARIANTS)]
    if task not in TASKS or len(words) > 3 or (len(words) == 3 and words[2] not in there):
        raise source.bad_id(dataset_id, known())
    return task, words[2:] or there


def matches(path: Path) -> bool:
    """HDF5 with a group `data` whose demos have observations (robosuite's own files have states and actions only)."""
    if not is_hdf5(path):
        return False
    with open_hdf5(path) as file:
        data = file.get("data")
        if not isinstance(data, h5py.Group):
            return link_gone(file, "data") is not None
        first = next((demo for name in data if isinstance(demo := data.get(name), h5py.Group)), None)
        states_only = first is not None and "obs" not in first and "states" in first and "rewards" not in first
        return not (states_only and _all_states_only(data)) and ("observations" not in file)


def _all_states_only(data: h5py.Group) -> bool:
    demos = (demo for name in data if isinstance(demo := data.get(name), h5py.Group))
    return all("obs" not in demo and "states" in demo and "rewards" not in demo for demo in demos)


def read(path: Path, dataset_id: str, problems: Problems, options: Options) -> Dataset:
    """All demos (or a mask's), checked. Observations have T+1 rows where `next_obs` is stored, else T."""
    refuse(str(path), options, "episode_steps", "a robomimic file keeps its demonstrations apart")
    inspector = Inspector(str(path), problems, options)
    inspector.sparse = True
    with open_hdf5(path) as file:
        inspector.notes += being_written(file)
        data = file.get("data")
        if not isinstance(data, h5py.Group):
            missing = f"missing; a robomimic file keeps its demos there (this one has: {', '.join(names(file)) or 'nothing'})"
            raise DataError(f"{path}:data: {link_gone(file, 'data') or missing}")
        demos = numeric_order(names(data))
        if not demos:
            inspector.report("data", "there is no demo in the file")
        chosen = inspector.wanted(masks.chosen(inspector, file, demos))
        env = environment(inspector, data, dataset_id)
        parts = list(options.observation) or usual_parts(inspector, data, chosen)
        layout = robomimic_demo.survey(inspector, data, chosen, parts)
        if layout is not None:
            for name in watched(chosen, f"reading {path.name}", "demo"):
                robomimic_demo.read(inspector, data, name, layout)
    env = env and EnvSpec(**{**env.__dict__, "observation": tuple(parts)})
    return inspector.dataset(dataset_id, NAME, FORMAT, inspector.identity.hexdigest(), env, parts)


def usual_parts(inspector: Inspector, data: h5py.Group, demos: list[str]) -> list[str]:
    """End effector position and orientation, gripper of each robot in turn, then the objects; of other names all vectors."""
    first = next((obs for name in demos if isinstance(obs := data.get(f"{name}/obs"), h5py.Group)), None)
    there = set(first) if first is not None else set()
    robots = [robot for robot in ("robot0", "robot1") if f"{robot}_eef_pos" in there] or ["robot0"]
    if first is not None and not any(f"{robot}_{part}" in there for robot in robots for part in ROBOT_PARTS):
        if vectors := robomimic_demo.vectors(first):
            chosen = f"--set 'data.observation=[{', '.join(vectors)}]'"
            inspector.notes.append(f"observations have other names than robomimic's: all vectors are read, which {chosen} would choose")
            return vectors
    return [f"{robot}_{part}" for robot in robots for part in ROBOT_PARTS] + ["object"]


def environment(inspector: Inspector, data: h5py.Group, dataset_id: str) -> EnvSpec | None:
    """From `env_args`; without it by the task that the id names, else None with a note."""
    ignored = "env_args" in (inspector.options.ignore or ())
    if "env_args" not in data.attrs or ignored:
        words = dataset_id.split("/")
        task = TASKS.get(words[1]) if words[0] == NAME and len(words) > 1 else None
        instead = f"{task} of robosuite 1.4 is inferred from the id" if task else "name the environment with --env"
        inspector.notes.append(f"env_args is ignored: {instead}" if ignored else f"no env_args in the file: {instead}")
        # Files of 1.5 always have env_args; 1.4 gave some object values with another sign or order.
        return EnvSpec("robosuite", task, max_steps=MAX_STEPS[task], versions={"robosuite": "1.4.1"}) if task else None
    try:
        arguments = json.loads(text(data.attrs["env_args"]))
        name, version, kwargs = str(arguments["env_name"]), arguments.get("env_version"), dict(arguments.get("env_kwargs") or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"the attribute env_args is not JSON with env_name and env_kwargs ({error})"
        inspector.report("data", what, fixes.setting(ignore=["env_args"]))
        return None
    inspector.identity.text("env_args", text(data.attrs["env_args"]))
    if said := absolute(kwargs.get("controller_configs")):
        inspector.absolute_actions(f"{said} in env_args")
    if arguments.get("type", 1) != 1:
        inspector.notes.append(f"env_args has type {arguments['type']}, which is no robosuite environment: name one with --env")
        return None
    if (word := elsewhere.not_built(name, arguments)) is not None:
        inspector.notes.append(word)
        return None
    versions = {"robosuite": str(version)} if version else {}
    if version:
        inspector.notes.append(f"made with robosuite {version}")
    return EnvSpec("robosuite", name, kwargs, MAX_STEPS.get(name), versions=versions)


def absolute(controllers: Any) -> str | None:
    """The setting of a controller (or of one of several, or of its parts) that makes actions absolute targets."""
    if isinstance(controllers, list):
        return next((said for each in controllers if (said := absolute(each))), None)
    if not isinstance(controllers, dict):
        return None
    if controllers.get("control_delta") is False:
        return "control_delta is false"
    if controllers.get("input_type") == "absolute":
        return "input_type is absolute"
    return absolute([value for value in controllers.values() if isinstance(value, (dict, list))])
