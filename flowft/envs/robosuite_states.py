"""robosuite in a stored state: the simulator, and what robosuite keeps beside it (controllers' goals, the gripper's command)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flowft.data.spec import Array
from flowft.envs.base import FlowEnv

Numbers = npt.NDArray[Any]


class RobosuiteStates:
    """Sets states and steps from them; see `stored_states.States`."""

    def __init__(self, env: FlowEnv) -> None:
        self._env = env
        simulator: Any = env.unwrapped
        self._simulator = simulator
        self._simulator.reset(seed=0)
        self.size = int(simulator.state().size)
        self.period: float | None = 1.0 / float(simulator.raw.control_freq)
        self.names = tuple(pair for part in env.flow_spec.parts for pair in self._inside(*part))

    def observe(self, states: Numbers) -> Array:
        parts, _, _ = self._simulator.observations_at(states)
        return self._env.flow_spec.flatten(parts)

    def start(self, states: Numbers, actions: Numbers, at: int) -> None:
        """Controllers forget their goals, the null space pulls to the episode's first posture, grippers are as far as they were."""
        raw = self._simulator.raw
        self._put(states[0])
        for robot in raw.robots:
            for arm in robot.arms:
                controller = robot.part_controllers[arm]
                if hasattr(controller, "update_initial_joints"):
                    controller.update_initial_joints(raw.sim.data.qpos[controller.qpos_index].copy())
        self._put(states[at])
        for robot in raw.robots:
            for controller in robot.part_controllers.values():
                controller.update(force=True)  # else it believes that it has read this state already
            robot.composite_controller.update_state()
            robot.composite_controller.reset()
        self._move_grippers(actions[:at])
        self._simulator._cache = {}
        self._simulator._observe()

    def step(self, action: Numbers) -> tuple[Array, bool]:
        parts, _, _, _, info = self._simulator.step(action)
        return self._env.flow_spec.flatten(parts), bool(info["success"])

    def _put(self, state: Numbers) -> None:
        self._simulator.raw.sim.set_state_from_flattened(np.asarray(state, dtype=np.float64))
        self._simulator.raw.sim.forward()

    def _move_grippers(self, actions: Numbers) -> None:
        """A gripper closes by a little in each step: its command is the sum of those before."""
        start = 0
        for robot in self._simulator.raw.robots:
            width = int(robot.action_dim)
            for arm in robot.arms:
                gripper = robot.gripper[arm]
                if not getattr(gripper, "dof", 0):
                    continue
                gripper.current_action = np.zeros_like(np.asarray(gripper.current_action, dtype=np.float64))
                for action in actions[-20:]:  # after ten steps one way it is at its end
                    gripper.format_action(np.asarray(action[start + width - gripper.dof : start + width]))
            start += width

    def _inside(self, part: str, size: int) -> list[tuple[str, int]]:
        """`object` by the names of what it is put together from."""
        if part != "object":
            return [(part, size)]
        simulator = self._simulator
        seen = simulator.all_parts()
        shown = [n for n, o in simulator.raw._observables.items() if o.is_enabled() and o.is_active() and o.modality == "object"]
        found = [(name, int(seen[name].size)) for name in simulator._object_order or shown]
        return found if sum(width for _, width in found) == size else [(part, size)]
