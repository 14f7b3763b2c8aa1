"""What changed from robosuite 1.4, which most public files were made with, to 1.5: so that a policy sees what its file holds.

Controllers were described by one arm's settings, now by a composite of parts. The part `object` of two tasks changed: Lift
gave the hand's position minus the cube's and now gives the reverse; TwoArmTransport puts its values in another order.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

NEGATED_IN_1_4 = {"Lift": frozenset({"gripper_to_cube_pos"})}
ORDER_IN_1_4 = {
    "TwoArmTransport": (
        "payload_pos", "payload_quat", "trash_pos", "trash_quat", "lid_handle_pos", "lid_handle_quat", "target_bin_pos", "trash_bin_pos",
        "gripper0_to_payload", "gripper0_to_lid_handle", "gripper1_to_payload", "gripper1_to_trash",
        "payload_in_target_bin", "trash_in_trash_bin",
    )
}  # fmt: skip


def installed() -> dict[str, str]:
    """Versions of the simulator, without importing it; empty when it is not installed."""
    try:
        return {name: version(name) for name in ("robosuite", "mujoco")}
    except PackageNotFoundError:
        return {}


def before_1_5(number: str | None) -> bool:
    """Is this the version of an old file? What is no version number counts as new."""
    digits = (number or "").split(".")[:2]
    return len(digits) == 2 and all(d.isdigit() for d in digits) and tuple(map(int, digits)) < (1, 5)


def controller(config: Any, robot: str) -> Any:
    """A controller of robosuite 1.4 as one of 1.5; a 1.5 one as it is."""
    if not isinstance(config, dict) or "body_parts" in config:
        return config
    arm = dict(config)
    for old, new in (("damping", "damping_ratio"), ("damping_limits", "damping_ratio_limits")):
        if old in arm:
            arm[new] = arm.pop(old)
    arm["input_type"] = "delta" if arm.pop("control_delta", True) else "absolute"
    arm.setdefault("input_ref_frame", "world")  # the frame of 1.4; the default of 1.5 is the robot's base
    from robosuite.controllers.composite.composite_controller_factory import refactor_composite_controller_config

    with quiet():
        return refactor_composite_controller_config(arm, robot, ["right"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without robosuite's warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
