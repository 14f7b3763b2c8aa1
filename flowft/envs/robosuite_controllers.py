"""A robosuite controller's settings with one thing changed, as `env_kwargs` takes them: for commands that mend a mismatch."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flowft.data.spec import EnvSpec

AXES = ("x", "y", "z", "rotation about x", "rotation about y", "rotation about z")


def default_kwargs(robots: Sequence[str] = ("Panda",)) -> dict[str, Any]:
    """robomimic-like `env_kwargs`: OSC_POSE position and rotation increments at 20 Hz, sparse reward, nothing rendered."""
    arm = {
        "type": "OSC_POSE", "input_max": 1, "input_min": -1,
        "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5], "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
        "kp": 150, "damping_ratio": 1, "impedance_mode": "fixed", "kp_limits": [0, 300], "damping_ratio_limits": [0, 10],
        "position_limits": None, "orientation_limits": None, "uncouple_pos_ori": True, "input_type": "delta",
        "input_ref_frame": "world", "interpolation": None, "ramp_ratio": 0.2, "gripper": {"type": "GRIP"},
    }  # fmt: skip
    return {
        "robots": list(robots),
        "controller_configs": {"type": "BASIC", "body_parts": {"right": arm}},
        "control_freq": 20, "reward_shaping": False, "ignore_done": True, "use_object_obs": True,
        "has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False,
    }  # fmt: skip


def is_absolute(env: EnvSpec) -> bool:
    """Do the arms take targets instead of increments?"""
    return any(arm.get("input_type") == "absolute" or arm.get("control_delta") is False for arm in _arms(_configs(env)))


def action_names(env: EnvSpec, width: int) -> tuple[str, ...]:
    """`action 2 (z)`, … for one arm with OSC_POSE and a gripper, else by number."""
    poses = all(arm.get("type") == "OSC_POSE" for arm in _arms(_configs(env)))
    known = (*AXES, "gripper") if poses and width == 7 else ()
    return tuple(f"action {i} ({known[i]})" if known else f"action {i}" for i in range(width))


def gripper_axes(env: EnvSpec, width: int) -> frozenset[int]:
    """Values of which only the sign acts."""
    return frozenset({width - 1}) if width == 7 else frozenset({6, 13}) if width == 14 else frozenset()


def with_mode(env: EnvSpec, absolute: bool) -> str:
    """`env_kwargs` in which the arms take targets, or increments."""

    def change(arm: dict[str, Any]) -> None:
        if "control_delta" in arm:
            arm["control_delta"] = not absolute
        else:
            arm["input_type"] = "absolute" if absolute else "delta"

    return _changed(env, change)


def with_scale(env: EnvSpec, factor: float) -> str:
    """`env_kwargs` in which an action moves the arms `factor` times as far."""

    def change(arm: dict[str, Any]) -> None:
        for key in ("output_max", "output_min"):
            value = arm.get(key)
            if isinstance(value, list):
                arm[key] = [round(v * factor, 6) for v in value]
            elif isinstance(value, (int, float)):
                arm[key] = round(value * factor, 6)

    return _changed(env, change)


def _changed(env: EnvSpec, change: Callable[[dict[str, Any]], None]) -> str:
    configs = copy.deepcopy(_configs(env))
    for arm in _arms(configs):
        change(arm)
    return json.dumps({"controller_configs": configs})


def _configs(env: EnvSpec) -> Any:
    return env.kwargs.get("controller_configs", default_kwargs()["controller_configs"])


def _arms(configs: Any) -> list[dict[str, Any]]:
    """The settings of every arm, wherever they stand: one dict, a list of them, or a composite's parts."""
    if isinstance(configs, list):
        return [arm for config in configs for arm in _arms(config)]
    if not isinstance(configs, Mapping):
        return []
    if "body_parts" in configs:
        return [arm for part in configs["body_parts"].values() for arm in _arms(part)]
    kind = str(configs.get("type", ""))
    if not kind and any(isinstance(value, Mapping) for value in configs.values()):
        return [arm for value in configs.values() for arm in _arms(value)]
    return [configs] if kind.startswith(("OSC", "IK", "JOINT")) and isinstance(configs, dict) else []
