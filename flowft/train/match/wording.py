"""Numbers of the comparison in sentences: the part or axis, the likely cause, the command that mends it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

import numpy as np

from flowft.data.spec import Dataset, EnvSpec
from flowft.envs import robosuite_controllers, robosuite_versions
from flowft.envs.base import FlowEnv
from flowft.train.match import actions
from flowft.train.match.actions import Cause
from flowft.train.match.conventions import Convention
from flowft.train.match.finding import LAST_RESORT, Finding, Unit
from flowft.train.match.transitions import Reading

OTHER_ENV = "--env with the environment that the data were made in"


@dataclass(frozen=True)
class Pairing:
    """What is compared: the data, the environment as it is named and built, and the units of their observation."""

    dataset: Dataset
    spec: EnvSpec
    env: FlowEnv
    units: list[Unit]


def causes(pairing: Pairing, reading: Reading) -> list[Cause]:
    width = len(pairing.dataset.spec.action_low)
    if pairing.spec.family != "robosuite":
        return actions.causes(reading, tuple(f"action {i}" for i in range(width)))
    names = robosuite_controllers.action_names(pairing.spec, width)
    return actions.causes(reading, names, grippers(pairing))


def of_observation(pairing: Pairing, unit: Unit, convention: Convention | None, where: str) -> Finding:
    task = pairing.spec.id
    if convention is None:
        what = f"{unit.name} is not {task}'s {where}: the data are of another task, or of another version of it"
        return Finding(what, OTHER_ENV)
    old = robosuite_versions.before_1_5(pairing.spec.versions.get("robosuite"))
    changed = unit.name in robosuite_versions.NEGATED_IN_1_4.get(task, ()) and convention.negates
    moved = task in robosuite_versions.ORDER_IN_1_4 and unit.part == "object" and "another order" in convention.says
    if pairing.spec.family == "robosuite" and (changed or moved):
        said = pairing.spec.versions.get("robosuite", "of no version")
        other = robosuite_versions.installed()["robosuite"] if old else "1.4.1"
        cause = f"the data are said to be robosuite {said}, but are as robosuite {other} gives them"
        return Finding(f"{unit.name} {convention.says} {where}: {cause}", f"--set data.env_version={other}")
    fix = f"--set data.change=[{convention.change}]" if convention.change else LAST_RESORT
    return Finding(f"{unit.name} {convention.says} {where} of {task}", fix)


def of_action(pairing: Pairing, cause: Cause, evidence: str) -> Finding:
    if cause.factor is not None and pairing.spec.family == "robosuite":
        largest = max(float(np.abs(e.actions[:, :6]).max()) for e in pairing.dataset.episodes)
        if largest * cause.factor > 1.0:  # the scaled actions would leave the range: the controller is what moves further
            kwargs = robosuite_controllers.with_scale(pairing.spec, round(cause.factor, 2))
            return Finding(f"{cause.says} ({evidence})", f"--set {shlex.quote(f'env_kwargs={kwargs}')}")
    fix = f"--set data.change=[{cause.change}]" if cause.change else LAST_RESORT
    return Finding(f"{cause.says} ({evidence})", fix)


def unknown(pairing: Pairing, size: str) -> Finding:
    cause = f"another controller, frame or version than {pairing.spec.id}'s"
    what = f"{size}, and no sign, scale or order of the actions explains it: {cause}"
    return Finding(what, LAST_RESORT) if _same_version(pairing) else Finding(f"{size}: the data's simulator was older", None, "note")


def _same_version(pairing: Pairing) -> bool:
    """Were the data made with the simulator that is installed? An older one need not repeat them."""
    said = pairing.spec.versions.get("robosuite")
    return pairing.spec.family == "robosuite" and (said is None or not robosuite_versions.before_1_5(said))


def mode(pairing: Pairing) -> Finding | None:
    """Absolute actions with a controller of increments, or the reverse."""
    absolute = robosuite_controllers.is_absolute(pairing.spec)
    followed = actions.targets(pairing.dataset, [unit for unit in pairing.units if unit.part.endswith("eef_pos")])
    if (followed is not None) == absolute:
        return None
    kwargs = robosuite_controllers.with_mode(pairing.spec, followed is not None)
    fix = f"--set {shlex.quote(f'env_kwargs={kwargs}')}"
    if followed is None:
        return Finding("actions are increments in the data, but the controller takes absolute targets", fix)
    unit, apart = followed
    frame = "" if np.abs(apart).max() < 0.1 else f", in a frame {', '.join(f'{v:+.2f}' for v in apart)} away (the robot's base?)"
    what = f"actions are absolute in the data (actions 0 to 2 are targets of {unit.name}{frame})"
    return Finding(what + ", but the controller takes increments", fix)


def together(found: list[Finding]) -> list[Finding]:
    """One command for all changes of the data: a setting given twice counts once."""
    found = _grouped(found)
    start, end = "--set data.change=[", "]"
    changes = [finding.fix[len(start) : -len(end)] for finding in found if finding.fix and finding.fix.startswith(start)]
    if not changes:
        return found
    listed = ", ".join(f'"{change}"' for change in dict.fromkeys(changes))
    command = f"--set {shlex.quote(f'data.change=[{listed}]')}"
    return [replace(f, fix=command) if f.fix and f.fix.startswith(start) else f for f in found]


def _grouped(found: list[Finding]) -> list[Finding]:
    """Several parts of which the same is said, in one sentence."""
    says = " is normalised"
    same = [finding for finding in found if says in finding.what]
    if len(same) < 2:
        return found
    names = ", ".join(finding.what.partition(says)[0] for finding in same)
    one = replace(same[0], what=f"{names}: each{says}{same[0].what.partition(says)[2]}")
    return [one, *(finding for finding in found if finding not in same)]


def grippers(pairing: Pairing) -> frozenset[int]:
    width = len(pairing.dataset.spec.action_low)
    return robosuite_controllers.gripper_axes(pairing.spec, width) if pairing.spec.family == "robosuite" else frozenset()
