"""Before training: do the data belong to the environment? Which evidence applies, and its numbers in sentences.

With stored simulator states: the observations at them, the steps from them, and a replay. Without: first observations against
resets, and what actions do in the data and here. Seconds; the same every time; nobody else's random numbers are touched.
"""

from __future__ import annotations

import contextlib
import random
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flowft.data import simulator_states
from flowft.data.simulator_states import Stored
from flowft.data.source import Options
from flowft.data.spec import Dataset, EnvSpec, Episode
from flowft.envs import base, robosuite_controllers, robosuite_versions, stored_states
from flowft.envs.base import FlowEnv
from flowft.envs.stored_states import States
from flowft.errors import DataError
from flowft.train.match import actions, effects, open_loop, resets, transitions
from flowft.train.match.actions import Cause
from flowft.train.match.conventions import Convention
from flowft.train.match.finding import LAST_RESORT, Finding, Unit, units

TYPICAL = 0.25  # error of a step, as a share of its size, above which the actions are looked into
SLIGHT = 0.02  # from which they are worth a note: another version of the simulator
OTHER_ENV = "--env with the environment that the data were made in"
NORMALISED = 0.1  # how near to mean 0 and deviation 1 the whole data must be


@dataclass(frozen=True)
class Pairing:
    """What is compared: the data, the environment as it is named and built, and the units of their observation."""

    dataset: Dataset
    spec: EnvSpec
    env: FlowEnv
    units: list[Unit]


def require_match(dataset: Dataset, env: EnvSpec | None, options: Options) -> list[str]:
    """Notes for the user; DataError for the first difference unless `options.match` is warn (then a note) or off (nothing is done)."""
    if options.match == "off" or env is None:
        return []
    findings = compare(dataset, env)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors and options.match != "warn":
        more = f" (and {len(errors) - 1} more: flowft data check {shlex.quote(dataset.id)})" if len(errors) > 1 else ""
        raise DataError(errors[0].what + more, errors[0].fix)
    return [finding.what for finding in findings]


def compare(dataset: Dataset, spec: EnvSpec) -> list[Finding]:
    """Every difference between the data and the environment `spec`, errors first. EnvError where it cannot be built."""
    with _untouched():
        env = base.make(replace(spec, observation=spec.observation or tuple(name for name, _ in dataset.spec.parts)))
        try:
            found = _sizes(dataset, spec, env) or _compared(dataset, spec, env)
        finally:
            env.close()
    return sorted(found, key=lambda finding: finding.severity != "error")


def _sizes(dataset: Dataset, spec: EnvSpec, env: FlowEnv) -> list[Finding]:
    different = [d for d in dataset.spec.differences(env.flow_spec) if not d.startswith("action bounds")]
    if not different:
        return []
    return [Finding(f"{dataset.id} has other observations or actions than {spec.id}: {'; '.join(different)}", OTHER_ENV)]


def _compared(dataset: Dataset, spec: EnvSpec, env: FlowEnv) -> list[Finding]:
    states = stored_states.of(env, spec)
    pairing = Pairing(dataset, spec, env, units(env.flow_spec.parts, states.names if states else env.flow_spec.parts))
    stored = list(simulator_states.stored(dataset, _some(dataset, transitions.EPISODES))) if states else []
    if states is not None and stored:
        return _with_states(pairing, states, stored)
    return _without_states(pairing)


def _with_states(pairing: Pairing, states: States, stored: list[Stored]) -> list[Finding]:
    if not transitions.usable(states, stored):
        size, spec = stored[0].states.shape[1], pairing.spec
        what = f"the file's simulator states have {size} values, {spec.id}'s have {states.size}: the data are of another task"
        return [Finding(what, OTHER_ENV)]
    pairs = transitions.observations(pairing.dataset, states, stored, pairing.units)
    found = [_of_observation(pairing, pair.unit, pair.convention, "at the file's own simulator states") for pair in pairs]
    if rate := _rate(pairing, states, stored):
        return _together([*found, rate])
    kept = [unit for unit in pairing.units if unit not in [pair.unit for pair in pairs]]
    if kept:
        found += _of_steps(pairing, states, stored, kept)
    if not found and (note := _replay(states, stored)):
        found.append(note)
    return _together(found)


def _of_steps(pairing: Pairing, states: States, stored: list[Stored], kept: list[Unit]) -> list[Finding]:
    steps = transitions.steps(pairing.dataset, states, stored, kept)
    grippers = sorted(_grippers(pairing))
    inverted = [axis for axis, step in zip(grippers, [s for s in steps if s.unit.part.endswith("gripper_qpos")], strict=False) if step.typical > 1]
    steps = [step for step in steps if not inverted or (step.unit.part != "object" and not step.unit.part.endswith("gripper_qpos"))]
    names = robosuite_controllers.action_names(pairing.spec, len(pairing.dataset.spec.action_low)) if inverted else ()
    found = [_of_action(pairing, actions.other_sign(axis, names), "grippers go the other way in the recorded steps") for axis in inverted]
    if not steps:
        return found
    worst = max(steps, key=lambda step: (step.unit.part != "object", step.typical))  # objects lie still, or slip
    size = f"{worst.unit.name} is off by {worst.typical:.0%} of the step's own size after the recorded action"
    if worst.typical > TYPICAL:
        robosuite = pairing.spec.family == "robosuite"
        if robosuite and (mode := _mode(pairing)):
            return [mode]
        if robosuite and robosuite_controllers.is_absolute(pairing.spec):
            return [_unknown(pairing, size)]
        reading = transitions.reading(pairing.dataset, states, stored, kept)
        reading.matrix[grippers, grippers] = np.nan  # told by the way they go
        found += [_of_action(pairing, cause, size) for cause in _causes(pairing, reading)]
        return found or [_unknown(pairing, size)]
    if worst.typical > SLIGHT and not found:
        return [Finding(f"from the stored states {size}: near, as another version of the simulator is", None, "note")]
    return found


def _without_states(pairing: Pairing) -> list[Finding]:
    if normalised := _normalised(pairing):
        return [normalised]
    firsts, begun = resets.first_observations(pairing.dataset), resets.reset_observations(pairing.env)
    starts = resets.compare(firsts, begun, pairing.units)
    found = [_of_observation(pairing, start.unit, start.convention, "at the first observations") for start in starts]
    if pairing.spec.family == "robosuite" and (mode := _mode(pairing)):
        return _together([*found, mode])
    if any(start.unit.part != "object" for start in starts):  # what actions do to it would be read in that convention
        return _together(found)
    grippers = sorted(_grippers(pairing))
    reading = effects.compare(pairing.dataset, pairing.env, pairing.units, grippers)
    causes = _causes(pairing, reading) if reading is not None else []
    found += [_of_action(pairing, cause, "by a short model of what actions do in the data and here") for cause in causes]
    return _together(found)


def _grippers(pairing: Pairing) -> frozenset[int]:
    width = len(pairing.dataset.spec.action_low)
    return robosuite_controllers.gripper_axes(pairing.spec, width) if pairing.spec.family == "robosuite" else frozenset()


def _causes(pairing: Pairing, reading: transitions.Reading) -> list[Cause]:
    width = len(pairing.dataset.spec.action_low)
    if pairing.spec.family != "robosuite":
        return actions.causes(reading, tuple(f"action {i}" for i in range(width)))
    names = robosuite_controllers.action_names(pairing.spec, width)
    return actions.causes(reading, names, _grippers(pairing))


def _of_observation(pairing: Pairing, unit: Unit, convention: Convention | None, where: str) -> Finding:
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


def _of_action(pairing: Pairing, cause: Cause, evidence: str) -> Finding:
    if cause.factor is not None and pairing.spec.family == "robosuite":
        largest = max(float(np.abs(e.actions[:, :6]).max()) for e in pairing.dataset.episodes)
        if largest * cause.factor > 1.0:  # the scaled actions would leave the range: the controller is what moves further
            kwargs = robosuite_controllers.with_scale(pairing.spec, round(cause.factor, 2))
            return Finding(f"{cause.says} ({evidence})", f"--set {shlex.quote(f'env_kwargs={kwargs}')}")
    fix = f"--set data.change=[{cause.change}]" if cause.change else LAST_RESORT
    return Finding(f"{cause.says} ({evidence})", fix)


def _unknown(pairing: Pairing, size: str) -> Finding:
    what = f"{size}, and no sign, scale or order of the actions explains it: another controller, frame or version than {pairing.spec.id}'s"
    return Finding(what, LAST_RESORT) if _same_version(pairing) else Finding(what, None, "note")


def _same_version(pairing: Pairing) -> bool:
    """Were the data made with the simulator that is installed? An older one need not repeat them."""
    said = pairing.spec.versions.get("robosuite")
    return pairing.spec.family == "robosuite" and (said is None or not robosuite_versions.before_1_5(said))


def _mode(pairing: Pairing) -> Finding | None:
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
    what = f"actions are absolute in the data (actions 0 to 2 are targets of {unit.name}{frame}), but the controller takes increments"
    return Finding(what, fix)


def _rate(pairing: Pairing, states: States, stored: list[Stored]) -> Finding | None:
    period = transitions.recorded_period(stored) if states.period else None
    if period is None or states.period is None or abs(period / states.period - 1) < 0.05:
        return None
    what = f"the data's control rate is {1 / period:.3g} Hz, that of {pairing.spec.id} here is {1 / states.period:.3g} Hz"
    return Finding(what, f"--set {shlex.quote(f'env_kwargs={{control_freq: {1 / period:.3g}}}')}")


def _replay(states: States, stored: list[Stored]) -> Finding | None:
    back, tried = open_loop.replayed(states, stored)
    if back == tried:
        return None
    return Finding(f"replayed open loop, {back} of {tried} successes come back: the simulator is not exactly that of the data", None, "note")


def _normalised(pairing: Pairing) -> Finding | None:
    """Mean 0 and deviation 1 (or exactly −1 to 1) in nearly every value of positions, where the environment's are not."""
    dataset = pairing.dataset
    rows = np.concatenate([dataset.spec.flatten(episode.observations) for episode in _some(dataset, 100)])
    begun = resets.reset_observations(pairing.env, 4)
    varied = rows.std(0) > 1e-6
    for one in pairing.units:
        values = one.of(rows)
        if one.size == 3 and (np.abs(values.mean(0)) < NORMALISED).all() and (np.abs(values.std(0) - 1) < NORMALISED).all():
            what = f"{one.name} is normalised (mean 0 and deviation 1); {pairing.spec.id} gives its own units, and flowft normalises by itself"
            return Finding(what + ": take the raw observations", LAST_RESORT)
    standard = (np.abs(rows.mean(0)) < NORMALISED) & (np.abs(rows.std(0) - 1) < NORMALISED)
    unit = (np.abs(rows.min(0) + 1) < 1e-3) & (np.abs(rows.max(0) - 1) < 1e-3)
    away = np.abs(begun.mean(0)) > 0.05
    for kind, how in ((standard, "mean 0 and deviation 1"), (unit, "-1 to 1")):
        if varied.sum() >= 3 and kind[varied].mean() > 0.7 and away.any():
            what = f"the observations are normalised ({how} in {int(kind.sum())} of {len(kind)} values); {pairing.spec.id} gives its own units"
            return Finding(what + ", and flowft normalises by itself: take the raw observations", LAST_RESORT)
    return None


def _together(found: list[Finding]) -> list[Finding]:
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


def _some(dataset: Dataset, count: int) -> list[Episode]:
    episodes = dataset.episodes
    return [episodes[int(i)] for i in np.unique(np.linspace(0, len(episodes) - 1, min(count, len(episodes))).astype(int))]


@contextlib.contextmanager
def _untouched() -> Iterator[None]:
    """The global generators are afterwards as they were, and the simulators find the same state every time."""
    kept: Any = np.random.get_state()
    kept_python = random.getstate()
    np.random.seed(0)
    random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(kept)
        random.setstate(kept_python)
