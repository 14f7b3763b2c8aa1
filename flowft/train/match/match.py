"""Before training: do the data belong to the environment? Which evidence applies, and its numbers in sentences.

With stored simulator states: the observations at them, the steps from them, and a replay. Without: first observations against
resets, and what actions do in the data and here. Seconds; the same every time; nobody else's random numbers are touched.
"""

from __future__ import annotations

import contextlib
import random
import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from flowft.data import simulator_states
from flowft.data.simulator_states import Stored
from flowft.data.source import Options
from flowft.data.spec import Dataset, EnvSpec, Episode
from flowft.envs import base, robosuite_controllers, stored_states
from flowft.envs.base import FlowEnv
from flowft.envs.stored_states import States
from flowft.errors import DataError
from flowft.train.match import actions, effects, open_loop, resets, transitions, wording
from flowft.train.match.finding import LAST_RESORT, Finding, Unit, units

TYPICAL = 0.25  # error of a step, as a share of its size, above which the actions are looked into
SLIGHT = 0.02  # from which they are worth a note: another version of the simulator
NORMALISED = 0.1  # how near to mean 0 and deviation 1 the whole data must be
ENOUGH = 200  # steps; from fewer, ranges and models of what actions do fit another convention by chance


def require_match(dataset: Dataset, env: EnvSpec | None, options: Options) -> list[str]:
    """Notes for the user; DataError for the first difference unless `options.match` is warn (then a note) or off (nothing is done)."""
    if options.match == "off" or env is None:
        return []
    found = compare(dataset, env)
    errors = [finding for finding in found if finding.severity == "error"]
    if errors and options.match != "warn":
        more = f" (and {len(errors) - 1} more: flowft data check {shlex.quote(dataset.id)})" if len(errors) > 1 else ""
        raise DataError(errors[0].what + more, errors[0].fix)
    return [finding.what for finding in found]


def environment(dataset: Dataset, named: str | None) -> EnvSpec | None:
    """The environment to compare with: the one named, with all that the data know of it if it is theirs; else theirs."""
    if named is None:
        return dataset.env
    asked, known = base.parse(named), dataset.env
    return known if known is not None and (asked.family, asked.id) == (known.family, known.id) else asked


def compare(dataset: Dataset, spec: EnvSpec) -> list[Finding]:
    """Every difference between the data and the environment `spec`, errors first. EnvError where it cannot be built."""
    with _untouched():
        env = base.make(replace(spec, observation=spec.observation or tuple(name for name, _ in dataset.spec.parts)))
        try:
            return findings(dataset, spec, env)
        finally:
            env.close()


def findings(dataset: Dataset, spec: EnvSpec, env: FlowEnv) -> list[Finding]:
    """The same in an environment that is built already; its episode is lost."""
    with _untouched():
        found = _sizes(dataset, spec, env) or _compared(dataset, spec, env)
    return sorted(found, key=lambda finding: finding.severity != "error")


def _sizes(dataset: Dataset, spec: EnvSpec, env: FlowEnv) -> list[Finding]:
    different = [d for d in dataset.spec.differences(env.flow_spec) if not d.startswith("action bounds")]
    if not different:
        return []
    return [Finding(f"{dataset.id} has other observations or actions than {spec.id}: {'; '.join(different)}", wording.OTHER_ENV)]


def _compared(dataset: Dataset, spec: EnvSpec, env: FlowEnv) -> list[Finding]:
    states = stored_states.of(env, spec)
    pairing = wording.Pairing(dataset, spec, env, units(env.flow_spec.parts, states.names if states else env.flow_spec.parts))
    stored = list(simulator_states.stored(dataset, _some(dataset, transitions.EPISODES))) if states else []
    if states is not None and stored:
        return _with_states(pairing, states, stored)
    return _without_states(pairing)


def _with_states(pairing: wording.Pairing, states: States, stored: list[Stored]) -> list[Finding]:
    if not transitions.usable(states, stored):
        size, spec = stored[0].states.shape[1], pairing.spec
        what = f"the file's simulator states have {size} values, {spec.id}'s have {states.size}: the data are of another task"
        return [Finding(what, wording.OTHER_ENV)]
    pairs = transitions.observations(pairing.dataset, states, stored, pairing.units)
    found = [wording.of_observation(pairing, pair.unit, pair.convention, "at the file's own simulator states") for pair in pairs]
    if rate := _rate(pairing, states, stored):
        return wording.together([*found, rate])
    kept = [unit for unit in pairing.units if unit not in [pair.unit for pair in pairs]]
    if kept:
        found += _of_steps(pairing, states, stored, kept)
    if not found and (note := _replay(states, stored)):
        found.append(note)
    return wording.together(found)


def _of_steps(pairing: wording.Pairing, states: States, stored: list[Stored], kept: list[Unit]) -> list[Finding]:
    steps = transitions.steps(pairing.dataset, states, stored, kept)
    grippers = sorted(wording.grippers(pairing))
    fingers = [step for step in steps if step.unit.part.endswith("gripper_qpos")]
    inverted = [axis for axis, step in zip(grippers, fingers, strict=False) if step.typical > 1]
    if inverted:  # what they hold goes with them
        steps = [step for step in steps if step.unit.part != "object" and step not in fingers]
    names = robosuite_controllers.action_names(pairing.spec, len(pairing.dataset.spec.action_low)) if inverted else ()
    way = "the fingers go the other way in the recorded steps"
    found = [wording.of_action(pairing, actions.other_sign(axis, names), way) for axis in inverted]
    if not steps:
        return found
    worst = max(steps, key=lambda step: (step.unit.part != "object", step.typical))  # objects lie still, or slip
    size = f"{worst.unit.name} is off by {worst.typical:.0%} of the step's own size after the recorded action"
    if worst.typical > TYPICAL:
        robosuite = pairing.spec.family == "robosuite"
        if robosuite and (mode := wording.mode(pairing)):
            return [mode]
        if robosuite and robosuite_controllers.is_absolute(pairing.spec):
            return [wording.unknown(pairing, size)]
        reading = transitions.reading(pairing.dataset, states, stored, kept, grippers)
        reading.matrix[grippers, grippers] = np.nan  # told by the way they go
        found = [] if reading.delay else found
        found += [wording.of_action(pairing, cause, size) for cause in wording.causes(pairing, reading)]
        return found or [wording.unknown(pairing, size)]
    if worst.typical > SLIGHT and not found:
        return [Finding(f"from the stored states {size}: near, as another version of the simulator is", None, "note")]
    return found


def _without_states(pairing: wording.Pairing) -> list[Finding]:
    dataset = pairing.dataset
    if dataset.steps < ENOUGH:
        few = f"{len(dataset.episodes)} demonstrations of {dataset.steps} steps are too few to be compared with {pairing.spec.id}"
        return [Finding(few, None, "note")]
    if normalised := _normalised(pairing):
        return [normalised]
    firsts, begun = resets.first_observations(pairing.dataset), resets.reset_observations(pairing.env)
    starts = resets.compare(firsts, begun, pairing.units)
    found = [wording.of_observation(pairing, start.unit, start.convention, "at the first observations") for start in starts]
    if pairing.spec.family == "robosuite" and (mode := wording.mode(pairing)):
        return wording.together([*found, mode])
    if any(start.unit.part != "object" for start in starts):  # what actions do to it would be read in that convention
        return wording.together(found)
    if pairing.spec.family == "robosuite" and robosuite_controllers.is_absolute(pairing.spec):
        return wording.together(found)  # targets from another start say nothing about the axes
    grippers = sorted(wording.grippers(pairing))
    reading = effects.compare(pairing.dataset, pairing.env, pairing.units, grippers)
    causes = wording.causes(pairing, reading) if reading is not None else []
    found += [wording.of_action(pairing, cause, "by a short model of what actions do in the data and here") for cause in causes]
    return wording.together(found)


def _rate(pairing: wording.Pairing, states: States, stored: list[Stored]) -> Finding | None:
    period = transitions.recorded_period(stored) if states.period else None
    if period is None or states.period is None or abs(period / states.period - 1) < 0.05:
        return None
    what = f"the data's control rate is {1 / period:.3g} Hz, that of {pairing.spec.id} here is {1 / states.period:.3g} Hz"
    return Finding(what, f"--set {shlex.quote(f'env_kwargs={{control_freq: {1 / period:.3g}}}')}")


def _replay(states: States, stored: list[Stored]) -> Finding | None:
    back, tried = open_loop.replayed(states, stored)
    if back == tried:
        return None
    what = f"replayed open loop, {back} of {tried} successes come back: the simulator is not exactly that of the data"
    return Finding(what, None, "note")


def _normalised(pairing: wording.Pairing) -> Finding | None:
    """Mean 0 and deviation 1 (or exactly −1 to 1) in nearly every value of positions, where the environment's are not."""
    dataset = pairing.dataset
    rows = np.concatenate([dataset.spec.flatten(episode.observations) for episode in _some(dataset, 100)])
    begun = resets.reset_observations(pairing.env, 4)
    varied = rows.std(0) > 1e-6
    for one in pairing.units:
        values = one.of(rows)
        if one.size == 3 and (np.abs(values.mean(0)) < NORMALISED).all() and (np.abs(values.std(0) - 1) < NORMALISED).all():
            what = f"{one.name} is normalised (mean 0 and deviation 1); {pairing.spec.id} gives its own units"
            return Finding(what + ", and flowft normalises by itself: take the raw observations", LAST_RESORT)
    standard = (np.abs(rows.mean(0)) < NORMALISED) & (np.abs(rows.std(0) - 1) < NORMALISED)
    unit = (np.abs(rows.min(0) + 1) < 1e-3) & (np.abs(rows.max(0) - 1) < 1e-3)
    away = np.abs(begun.mean(0)) > 0.05
    for kind, how in ((standard, "mean 0 and deviation 1"), (unit, "-1 to 1")):
        if varied.sum() >= 3 and kind[varied].mean() > 0.7 and away.any():
            what = f"the observations are normalised ({how} in {int(kind.sum())} of {len(kind)} values)"
            own = f"; {pairing.spec.id} gives its own units, and flowft normalises by itself: take the raw observations"
            return Finding(what + own, LAST_RESORT)
    return None


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
