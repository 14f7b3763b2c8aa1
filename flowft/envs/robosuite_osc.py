"""robosuite's operational-space controller without its bookkeeping: the same numbers to the bit, in half the time.

In each of the 25 substeps of a control step robosuite looks up names, computes each Jacobian three times and moves constants
about. Here the arithmetic is written once, in robosuite's order of operations and with its own compiled functions, so that
no rounding differs. Setting the goal from the action stays robosuite's. A controller that is not exactly the known kind, or a
task that reads the records kept beside the control (Wipe), is left alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def install(env: Any) -> bool:
    """Speed up a robosuite environment if every robot's controller is known; says whether it was."""
    if type(env).__name__ == "Wipe" or not all(_known(robot) for robot in env.robots):
        return False
    for robot in env.robots:
        robot.control = Substeps(robot)
    first_substep = env._pre_action

    def pre_action(action: Any, policy_step: bool = False) -> None:
        if policy_step:
            first_substep(action, policy_step)
        else:  # robosuite's own cuts the action into robots' shares here, to no use
            for robot in env.robots:
                robot.control.substep()

    env._pre_action = pre_action
    return True


class Substeps:
    """Takes the place of `robot.control`: called for the first substep of a control step, `substep` for the others."""

    def __init__(self, robot: Any) -> None:
        from mujoco import mj_fullM, mj_jacSite
        from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

        self._jacobian, self._full_mass = mj_jacSite, mj_fullM
        self._matrices, self._nullspace, self._orientation_error = opspace_matrices, nullspace_torques, orientation_error
        self._robot = robot
        self._control = robot.control
        self._arm: Any = None

    def __call__(self, action: Any, policy_step: bool = True) -> None:
        """The first substep: robosuite's own goal and gripper command; its records of past velocities are left out."""
        if self._robot.part_controllers[self._robot.arms[0]] is not self._arm:
            self._control(action, policy_step=True)  # a new episode: this one reuses what was read while the robot was put together
            self._bind()
            return
        composite = self._robot.composite_controller
        composite.update_state()
        composite.set_goal(action)
        self.substep()
        self._arm.new_update = True  # read the state again at the next goal
        for gripper, actuators, low, high in self._grippers:
            self._data.ctrl[actuators] = np.clip(gripper.run_controller(), low, high)

    def _bind(self) -> None:
        """After a reset: robosuite makes new controllers, with new joint references."""
        robot = self._robot
        name = robot.arms[0]
        self._arm = arm = robot.part_controllers[name]
        self._model, self._data = arm.sim.model._model, arm.sim.data._data
        self._site = arm.sim.model.site_name2id(arm.ref_name)
        self._positions, self._velocities = _indices(arm.qpos_index), _indices(arm.qvel_index)
        self._actuators = _indices(robot._ref_actuators_indexes_dict[name])
        self._low, self._high = self._model.actuator_ctrlrange[self._actuators].T.copy()
        grippers = [(part, _indices(robot._ref_actuators_indexes_dict[key])) for key, part in robot.part_controllers.items() if key != name]
        self._grippers = [(part, where, *self._model.actuator_ctrlrange[where].T.copy()) for part, where in grippers]
        joints, nv = len(arm.joint_index), self._model.nv
        self._mass = np.zeros((nv, nv))
        self._order = "F" if self._mass[arm.qvel_index, :][:, arm.qvel_index].flags.f_contiguous else "C"  # of robosuite's array
        self._jacobian_pos, self._jacobian_rot = np.zeros((3, nv)), np.zeros((3, nv))
        self._j_pos, self._j_rot, self._j_full = np.zeros((3, joints)), np.zeros((3, joints)), np.zeros((6, joints))
        self._orientation = np.zeros((3, 3))
        self._stiffness, self._damping = (arm.kp[0:3], arm.kp[3:6]), (arm.kd[0:3], arm.kd[3:6])

    def substep(self) -> None:
        """Torques that pull the hand to the controller's goal, written to `ctrl` (the gripper's command does not change)."""
        arm, data, joints = self._arm, self._data, self._velocities
        self._jacobian(self._model, data, self._jacobian_pos, self._jacobian_rot, self._site)
        self._full_mass(self._model, self._mass, data.qM)
        qvel = data.qvel
        self._orientation[:] = data.site_xmat[self._site].reshape(3, 3)
        self._j_pos[:] = self._j_full[:3] = self._jacobian_pos[:, joints]
        self._j_rot[:] = self._j_full[3:] = self._jacobian_rot[:, joints]
        mass = self._mass[joints][:, joints].copy(self._order)

        goal_pos, goal_ori = arm.goal_pos, arm.goal_ori
        if arm.input_ref_frame == "base":
            goal_pos, goal_ori = arm.origin_pos + np.dot(arm.origin_ori, goal_pos), np.dot(arm.origin_ori, goal_ori)
        error = self._orientation_error(goal_ori, self._orientation)
        force = (goal_pos - data.site_xpos[self._site]) * self._stiffness[0] + -np.dot(self._jacobian_pos, qvel) * self._damping[0]
        torque = error * self._stiffness[1] + -np.dot(self._jacobian_rot, qvel) * self._damping[1]

        full, position, rotation, null = self._matrices(mass, self._j_full, self._j_pos, self._j_rot)
        if arm.uncoupling:
            wrench = np.concatenate([np.dot(position, force), np.dot(rotation, torque)])
        else:
            wrench = np.dot(full, np.concatenate([force, torque]))
        torques = np.dot(self._j_full.T, wrench) + data.qfrc_bias[joints]
        torques += self._nullspace(mass, null, arm.initial_joint, data.qpos[self._positions].copy(), qvel[joints].copy())
        arm.torques = torques
        data.ctrl[self._actuators] = np.minimum(np.maximum(torques, self._low), self._high)


def _indices(numbers: list[int]) -> Any:
    """A slice where the numbers are consecutive (a view is quicker to take), else an array."""
    first, last = numbers[0], numbers[-1]
    return slice(first, last + 1) if list(numbers) == list(range(first, last + 1)) else np.asarray(numbers)


def _known(robot: Any) -> bool:
    """One arm on a fixed base, a plain OSC_POSE controller of fixed stiffness, a plain gripper, physics stepped in halves."""
    composite = robot.composite_controller
    parts = composite.part_controllers
    if type(robot).__name__ != "FixedBaseRobot" or type(composite).__name__ != "CompositeController" or len(robot.arms) != 1:
        return False
    arm = parts[robot.arms[0]]
    others = [controller for name, controller in parts.items() if name != robot.arms[0]]
    if type(arm).__name__ != "OperationalSpaceController" or any(type(c).__name__ != "SimpleGripController" for c in others):
        return False
    center = arm.sim.model.site_name2id(f"{arm.naming_prefix}{arm.part_name}_center")
    model = arm.sim.model._model
    return bool(
        arm.use_ori
        and arm.impedance_mode == "fixed"
        and arm.lite_physics
        and robot.lite_physics
        and arm.num_ref_sites == 1
        and arm.interpolator_pos is None
        and arm.interpolator_ori is None
        and all(c.interpolator is None for c in others)
        and all(robot._enabled_parts.get(name, False) for name in parts)
        and model.body_weldid[model.site_bodyid[center]] == 0  # the arm's base does not move
    )
