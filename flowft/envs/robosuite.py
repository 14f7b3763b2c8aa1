"""robosuite tasks (Lift, PickPlaceCan, NutAssemblySquare, TwoArmTransport, …), built as a robomimic file's `env_args` says.

Three things differ from stepping robosuite by hand, none of them in the dynamics:

- An episode follows from its seed alone. robosuite draws from the global numpy state, also while it builds the model (the
  cube of Lift has a random size), so both happen under a seed of our own, and the caller's global state is put back.
- Observations are read once, after the step, from the state that the step reached. robosuite samples them inside the step on
  a clock that drifts by a substep (2 ms) per step and is not reset between episodes; files hold values of the exact state.
- `robosuite_osc` runs robosuite's controller arithmetic without its per-substep bookkeeping, where it knows the controller.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from flowft.data.spec import EnvSpec, Spec
from flowft.envs import robosuite_controllers, robosuite_osc, robosuite_versions
from flowft.envs.base import Family
from flowft.envs.robosuite_controllers import default_kwargs
from flowft.envs.robosuite_versions import quiet
from flowft.errors import EnvError, MissingExtra, did_you_mean

Parts = dict[str, npt.NDArray[np.float64]]

MAX_STEPS = {"Lift": 300, "PickPlaceCan": 300, "NutAssemblySquare": 400, "ToolHang": 700, "TwoArmTransport": 800}
OTHER_MAX_STEPS = 500
MODEL_SEED = 0  # of the random sizes in the model: one fixed model for every process and every episode
ROBOT_PARTS = ("eef_pos", "eef_quat", "gripper_qpos")
RENDER_HINT = "MUJOCO_GL=egl flowft …   (or MUJOCO_GL=osmesa, without a GPU driver)"

# robosuite sets MUJOCO_GL itself when it is imported; what counts is what the user set before mujoco was.
_USER_GL = os.environ.get("MUJOCO_GL")


def build(env: EnvSpec) -> Family:
    """The simulator of `env`. Raises EnvError for a task, setting or observation part that robosuite does not have."""
    if env.reset_options:
        asked = dict(env.reset_options)
        raise EnvError(f"robosuite's resets take no options; environment.reset_options is {asked}", "leave environment.reset_options out")
    kwargs = {key: value for key, value in env.kwargs.items() if key != "success_ends"}
    simulator = RobosuiteEnv(env.id, kwargs, env.observation, made_with=env.versions.get("robosuite"))
    return Family(simulator, simulator.spec_, MAX_STEPS.get(env.id, OTHER_MAX_STEPS), success_ends=True)


def known() -> list[str]:
    """Every task of the installed robosuite."""
    return sorted(_robosuite().ALL_ENVIRONMENTS)


def takes_targets(env: EnvSpec) -> bool:
    """Are the arms commanded by absolute targets, in metres and radians, and not by increments in ±1?"""
    return robosuite_controllers.is_absolute(env)


def versions() -> dict[str, str]:
    """Of the installed simulator, without importing it; empty when it is not installed."""
    return robosuite_versions.installed()


class RobosuiteEnv(gymnasium.Env[Parts, npt.NDArray[np.float64]]):
    """One robosuite task. reset(seed) -> parts; step(action (A,)) -> parts, reward, False, False, {"success": bool}."""

    render_mode = "rgb_array"
    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self, task: str, kwargs: Mapping[str, Any], parts: Sequence[str] = (), made_with: str | None = None, speed_up: bool = True
    ) -> None:
        suite = _robosuite()
        settings = {**default_kwargs(_default_robots(task)), **copy.deepcopy(dict(kwargs))}
        self.camera = "agentview"
        self._renderer: Any = None
        if settings.pop("render", False):
            _require_gl()
        if task not in suite.ALL_ENVIRONMENTS:
            raise EnvError(f"robosuite has no task {task!r}{did_you_mean(task, suite.ALL_ENVIRONMENTS)}")
        self.raw = _construct(suite, task, settings)
        self._order = self._wanted(parts)
        old = robosuite_versions.before_1_5(made_with)
        self._negated = robosuite_versions.NEGATED_IN_1_4.get(task, frozenset()) if old else frozenset()
        self._object_order = robosuite_versions.ORDER_IN_1_4.get(task) if old else None
        self._cache: Parts = {}
        self._last: Parts = {}
        self._take_over_observations()
        self.sped_up = speed_up and robosuite_osc.install(self.raw)
        found = self.reset(seed=MODEL_SEED)[0]
        low, high = self.raw.action_spec
        self.spec_ = Spec(tuple((n, found[n].size) for n in self._order), tuple(map(float, low)), tuple(map(float, high)))
        self.action_space = gymnasium.spaces.Box(np.asarray(low), np.asarray(high), dtype=np.float64)
        spaces: dict[str, Any] = {name: gymnasium.spaces.Box(-np.inf, np.inf, value.shape, np.float64) for name, value in found.items()}
        self.observation_space = gymnasium.spaces.Dict(spaces)  # type: ignore[assignment]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Parts, dict[str, Any]]:
        super().reset(seed=seed)
        with _global_seed(int(self.np_random.integers(2**32))):
            self.raw.reset()
        self._cache = {}
        self._observe()  # twice: relative poses are computed from the object pose of the reading before (as robosuite does)
        return self._observe(), {"success": bool(self.raw._check_success())}

    def step(self, action: npt.NDArray[Any]) -> tuple[Parts, float, bool, bool, dict[str, Any]]:
        _, reward, _, _ = self.raw.step(np.asarray(action, dtype=np.float64))
        success = bool(self.raw._check_success())
        self._kinematics()
        return self._observe(), float(reward), False, False, {"success": success}

    def state(self) -> npt.NDArray[np.float64]:
        """Time, joint positions and velocities (S,), as robomimic and robosuite files store them."""
        state: npt.NDArray[np.float64] = self.raw.sim.get_state().flatten()
        return state

    def observations_at(
        self, states: npt.NDArray[Any], model_xml: str | None = None
    ) -> tuple[Parts, npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Observation parts (T, size), rewards (T,) and successes (T,) of stored simulator states (T, S).

        `model_xml` is the file's own model (object sizes differ from episode to episode), where the installed robosuite wrote
        it: older ones name bodies otherwise. The simulator keeps that model: no episodes on it afterwards.
        """
        if model_xml is not None:
            with _global_seed(MODEL_SEED), quiet():
                self.raw.reset_from_xml_string(self.raw.edit_model_xml(model_xml))
        expected = self.state().size
        if states.ndim != 2 or states.shape[1] != expected:
            raise EnvError(f"states of shape {states.shape} do not fit {type(self.raw).__name__}, which has {expected} values per state")
        rows: list[Parts] = []
        judged: list[tuple[float, bool]] = []
        self._cache = {}
        for state in states:
            self.raw.sim.set_state_from_flattened(np.asarray(state, dtype=np.float64))
            self.raw.sim.forward()
            if not rows:
                self._observe()
            rows.append(self._observe())
            judged.append((float(self.raw.reward(None)), bool(self.raw._check_success())))
        rewards, successes = zip(*judged, strict=True)
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, np.asarray(rewards), np.asarray(successes)

    def render(self) -> npt.NDArray[np.uint8]:
        """The camera `self.camera`, (480, 640, 3) uint8; the dynamics do not notice."""
        import mujoco

        _require_gl()
        model, data = self.raw.sim.model._model, self.raw.sim.data._data
        if self._renderer is None:
            model.vis.global_.offwidth, model.vis.global_.offheight = 640, 480
            self._renderer = mujoco.Renderer(model, 480, 640)
        option = mujoco.MjvOption()
        option.geomgroup[0] = 0  # collision shapes
        self._renderer.update_scene(data, self.camera, option)
        image: npt.NDArray[np.uint8] = self._renderer.render()
        return image

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self.raw.close()

    def all_parts(self) -> Parts:
        """Every low-dimensional part of the last observation, also those that were not asked for (to write files)."""
        return dict(self._last)

    def _wanted(self, parts: Sequence[str]) -> tuple[str, ...]:
        usual = [f"robot{i}_{name}" for i in range(len(self.raw.robots)) for name in ROBOT_PARTS] + ["object"]
        there = {name for name, o in self.raw._observables.items() if o.is_enabled() and o.is_active()} | {"object"}
        if unknown := [name for name in parts if name not in there]:
            raise EnvError(f"{type(self.raw).__name__} does not observe {unknown[0]!r}{did_you_mean(unknown[0], there)}")
        return tuple(parts) or tuple(usual)

    def _take_over_observations(self) -> None:
        self.raw._update_observables = lambda force=False: None
        self.raw._get_observations = lambda force_update=False: {}

    def _observe(self) -> Parts:
        observed: Parts = {}
        objects: Parts = {}
        for name, observable in self.raw._observables.items():
            if not observable.is_enabled():
                continue
            value = np.array(observable._sensor(self._cache), dtype=np.float64)
            self._cache[name] = value = -value if name in self._negated else value
            if observable.is_active():
                observed[name] = np.atleast_1d(value)
                if observable.modality == "object":
                    objects[name] = observed[name]
        order = self._object_order or tuple(objects)
        observed["object"] = np.concatenate([objects[name] for name in order]) if objects else np.zeros(0)
        self._last = observed
        return {name: observed[name] for name in self._order}

    def _kinematics(self) -> None:
        """Positions of bodies and sites for the state reached: MuJoCo leaves those of one substep earlier."""
        import mujoco

        mujoco.mj_kinematics(self.raw.sim.model._model, self.raw.sim.data._data)


def _robosuite() -> Any:
    """The package, imported without its five warnings and without its change of MUJOCO_GL."""
    try:
        with quiet():
            import robosuite
    except ImportError as error:
        raise MissingExtra("robosuite", "robosuite", "a robosuite environment") from error
    if _USER_GL is None:
        os.environ.pop("MUJOCO_GL", None)
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    return robosuite


def _construct(suite: Any, task: str, settings: dict[str, Any]) -> Any:
    settings.update(has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False, renderer="mujoco")
    settings.update(hard_reset=False, ignore_done=True)
    robots = settings["robots"] if isinstance(settings["robots"], list) else [settings["robots"]]
    given = settings["controller_configs"]
    configs = given if isinstance(given, list) else [given] * len(robots)
    settings["controller_configs"] = [robosuite_versions.controller(config, robot) for config, robot in zip(configs, robots, strict=True)]
    try:
        with _global_seed(MODEL_SEED), quiet():
            return suite.make(task, **settings)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise EnvError(f"robosuite cannot build {task}: {error}") from error


def _default_robots(task: str) -> tuple[str, ...]:
    return ("Panda", "Panda") if task.startswith("TwoArm") else ("Panda",)


def _require_gl() -> None:
    if not _USER_GL:
        raise EnvError("rendering robosuite needs MUJOCO_GL to be set before start (unset, MuJoCo aborts the process)", RENDER_HINT)


@contextlib.contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed the global generators that robosuite draws from, and put them back as they were."""
    kept, kept_python = np.random.get_state(), random.getstate()
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(kept)
        random.setstate(kept_python)
