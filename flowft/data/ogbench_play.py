"""OGBench play data made here: the benchmark's own scripted oracles, in its own simulators, in its own file layout.

The public play sets come from the plan oracle: the arm pursues one random sub-task after another (move this cube there,
press that button), with correlated noise, for 1000 actions an episode. The oracles are in the ogbench package; its loop
around them is not, so this is one. Each episode has a seed of its own: the number of workers does not change the file.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from flowft.errors import DataError, MissingExtra, UsageError, did_you_mean

Rows = dict[str, npt.NDArray[Any]]  # column -> (T+1, …): T actions and the state after the last one
Job = tuple[str, tuple[int, int, int], int]  # scene, (seed, split, episode), actions

EPISODE_STEPS = 1000  # actions in an episode, as in the public sets
VALIDATION_SHARE = 10  # one validation episode for so many training ones, as in the public sets
MINIMUM_STEPS = 200  # an oracle's sub-task takes about 100
# Odds that a cube's next place is on top of another one, drawn anew for each episode: more cubes, more stacking.
STACKING = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}
SCENES = [f"cube-{n}" for n in STACKING] + ["scene", "puzzle-3x3", "puzzle-4x4", "puzzle-4x5", "puzzle-4x6"]


def known() -> list[str]:
    """Names that `generate` takes."""
    return [f"{scene}-play" for scene in SCENES]


def generate(name: str, path: str | Path, steps: int = 100_000, seed: int = 0, workers: int = 1, progress: bool = True) -> Path:
    """Write `steps` actions of play to `path` (….npz) and a tenth as many to its `-val.npz`; returns `path`.

    `name` is e.g. `cube-single-play`. About 370 steps a second for each worker. The same name, steps and seed give the
    same two files. Nothing lies under the final names until both are whole. Raises UsageError, MissingExtra, DataError.
    """
    scene = _scene(name)
    if importlib.util.find_spec("ogbench") is None:
        raise MissingExtra("ogbench", "ogbench", f"generating {name}")
    if steps < MINIMUM_STEPS:
        raise UsageError(f"{steps} steps are too few for play data: one sub-task takes about 100", f"--steps {MINIMUM_STEPS}")
    if workers < 1:
        raise UsageError(f"{workers} workers", "--workers 1")
    path = Path(path)
    if path.suffix != ".npz":
        raise UsageError(f"{path} does not end in .npz", f"--output {path}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, scene, steps, seed, workers, progress)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}", f"df -h {path.parent}") from error
    return path


def _scene(name: str) -> str:
    scene = name.removesuffix("-v0").removesuffix("-play")
    if scene not in SCENES:
        raise UsageError(f"unknown play data {name!r}{did_you_mean(name, known())}", "flowft data list")
    return scene


def _write(path: Path, scene: str, steps: int, seed: int, workers: int, progress: bool) -> None:
    train = _lengths(steps)
    validation = _lengths(max(steps // VALIDATION_SHARE, MINIMUM_STEPS))
    jobs: list[Job] = [(scene, (seed, split, i), n) for split, lengths in enumerate([train, validation]) for i, n in enumerate(lengths)]
    episodes: list[Rows] = []
    with tqdm(total=sum(n for *_, n in jobs), desc=path.stem, unit="step", disable=not progress) as bar:
        for rows in _run(jobs, workers):
            episodes.append(rows)
            bar.update(len(rows["actions"]) - 1)
    files = [path.with_name(f"{path.stem}-val.npz"), path]  # the training file last: where it is, both are
    temporary = [file.with_name(f".{file.name}.{os.getpid()}.part") for file in files]
    try:
        for file, part in zip(temporary, [episodes[len(train) :], episodes[: len(train)]], strict=True):
            with file.open("wb") as handle:
                columns: dict[str, Any] = {key: np.concatenate([rows[key] for rows in part]) for key in part[0]}
                np.savez_compressed(handle, **columns)
        for file, final in zip(temporary, files, strict=True):
            os.replace(file, final)
    finally:
        for file in temporary:
            file.unlink(missing_ok=True)


def _lengths(steps: int) -> list[int]:
    whole, rest = divmod(steps, EPISODE_STEPS)
    return [EPISODE_STEPS] * whole + ([rest] if rest else [])


def _run(jobs: list[Job], workers: int) -> Iterator[Rows]:
    """The episodes in the order of the jobs, whoever makes them."""
    if workers == 1:
        yield from map(_episode, jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(_episode, jobs)
        except BrokenProcessPool as error:
            raise DataError("a worker process of the generation died (out of memory?)", "the same command with --workers 1") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _episode(job: Job) -> Rows:
    """One episode of play: a function of the job alone."""
    scene, seeds, steps = job
    env_seed, oracle_seed = np.random.SeedSequence(seeds).generate_state(2).tolist()
    env, oracles = _simulator(scene)
    with _numpy_seeded(oracle_seed):  # the oracles draw their plans from numpy's global generator
        stacking = float(np.random.uniform(*STACKING[scene.split("-")[1]])) if scene.startswith("cube") else 0.5
        return _play(env, oracles, env_seed, steps, stacking)


def _play(env: Any, oracles: dict[str, Any], seed: int, steps: int, stacking: float) -> Rows:
    env.reset(seed=seed)
    observation, info = env.set_new_target(p_stack=stacking)
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(observation, info)
    columns: dict[str, list[Any]] = {key: [] for key in ("observations", "actions", "terminals", "qpos", "qvel", "button_states")}
    for step in range(steps + 1):  # the last row is the state after the last action; its own action leads nowhere
        action = np.clip(oracle.select_action(observation, info), -1, 1)
        row = {"observations": observation, "actions": action, "terminals": step == steps, "qpos": info["qpos"], "qvel": info["qvel"]}
        for key, value in {**row, "button_states": info.get("button_states")}.items():
            columns[key].append(value)
        observation, _, _, _, info = env.step(action)
        if oracle.done:
            observation, info = env.set_new_target(p_stack=stacking)
            oracle = oracles[info["privileged/target_task"]]
            oracle.reset(observation, info)
    types = {"terminals": np.bool_, "button_states": np.int64}
    return {key: np.array(values, types.get(key, np.float32)) for key, values in columns.items() if values[0] is not None}


_built: dict[str, tuple[Any, dict[str, Any]]] = {}  # one simulator a process: building it takes half a second


def _simulator(scene: str) -> tuple[Any, dict[str, Any]]:
    if scene in _built:
        return _built[scene]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gymnasium
        import ogbench.manipspace  # noqa: F401 - registers the scenes
        from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
        from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
        from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

        made = gymnasium.make(
            f"{scene}-v0",
            max_episode_steps=-1,
            disable_env_checker=True,
            mode="data_collection",
            terminate_at_goal=False,
            visualize_info=False,
        )
    env: Any = made.unwrapped
    makers: dict[str, Callable[[], Any]] = {
        "cube": lambda: CubePlanOracle(env=env),
        "button": lambda: ButtonPlanOracle(env=env, gripper_always_closed=scene.startswith("puzzle")),
        "drawer": lambda: DrawerPlanOracle(env=env),
        "window": lambda: WindowPlanOracle(env=env),
    }
    _built[scene] = env, {task: maker() for task, maker in makers.items()}
    return _built[scene]


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
