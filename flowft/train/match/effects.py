"""The third kind of evidence: what actions do to the observation, in the data and in the environment.

Where no simulator states are stored. The demonstrations' own actions are replayed in the environment from its resets, so that
both sides see the same commands, and the same short linear model is fitted to both:

    o[t+1] − o[t] = A a[t] + B a[t−1] + C (o[t] − o[t−1]) + d

Which values respond to actions is read from the environment's fit. effective action = (A_env)⁺ A_data · recorded action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowft.data.spec import Dataset, Episode
from flowft.envs.base import FlowEnv
from flowft.train.match.conventions import is_quaternion
from flowft.train.match.finding import Numbers, Unit
from flowft.train.match.transitions import Reading

EPISODES, STEPS = 8, 60  # replayed: episodes, and steps of each at most
LEAST = 60  # steps without which nothing is fitted
CLEAR = 8.0  # standard errors by which an axis must act, on both sides
DELAYS = (-2, -1, 0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Model:
    """What the fit says: effect (F, A) of each action value on each response, and its standard error."""

    effect: Numbers
    error: Numbers


def responses(observations: Numbers, units: Sequence[Unit]) -> Numbers:
    """What changes from row to row, (T−1, F): differences, for quaternions the rotation vector in the world's frame."""
    columns = []
    for unit in units:
        values = unit.of(observations).astype(np.float64)
        columns.append(_rotations(values) if is_quaternion(unit, values) else np.diff(values, axis=0))
    return np.concatenate(columns, axis=1)


def compare(dataset: Dataset, env: FlowEnv, units: Sequence[Unit], grippers: Sequence[int] = ()) -> Reading | None:
    """How the environment must read the data's actions; None where there is too little to tell. `grippers`: see `_closing`."""
    width = len(dataset.spec.action_low)
    chosen = _chosen(dataset.episodes)
    moving = [unit for unit in units if unit.part != "object"]
    rows = [(e.actions[:STEPS].astype(np.float64), dataset.spec.flatten(e.observations)[: STEPS + 1]) for e in chosen]
    recorded = [(actions, responses(observations, moving)) for actions, observations in rows]
    played = [_play(env, e, seed, moving) for seed, e in enumerate(chosen)]
    recorded = [(actions[: len(moved)], moved) for actions, moved in recorded]
    if min(sum(len(moved) for _, moved in side) for side in (recorded, played)) < max(LEAST, 5 * width):
        return None
    data, here = _fit(recorded), _fit(played)
    if data is None or here is None:
        return None
    reading = Reading(_reading(data, here), _delay(recorded) - _delay(played))
    for axis, column in zip(grippers, _gripper_columns(moving, dataset), strict=False):
        ours, theirs = _closing(recorded, axis, column), _closing(played, axis, column)
        if ours and theirs:
            reading.matrix[axis, :] = 0.0
            reading.matrix[axis, axis] = np.sign(ours * theirs)
    return reading


def _gripper_columns(units: Sequence[Unit], dataset: Dataset) -> list[int]:
    """The response of each gripper: the first of its values."""
    sizes = [3 if is_quaternion(u, u.of(dataset.spec.flatten(dataset.episodes[0].observations))) else u.size for u in units]
    starts = np.cumsum([0, *sizes])
    return [int(start) for unit, start in zip(units, starts, strict=False) if unit.part.endswith("gripper_qpos")]


def _closing(side: Sequence[tuple[Numbers, Numbers]], axis: int, column: int) -> float:
    """Which way a gripper goes under a positive command against a negative one, among the rows in which it goes at all; 0: unclear.

    Its speed is a matter of contact and of commands before, so a linear model says nothing.
    """
    commands, moved = np.concatenate([a[1:, axis] for a, _ in side]), np.concatenate([m[1:, column] for _, m in side])
    going = np.abs(moved) > 0.3 * np.abs(moved).max()
    up, down = moved[going & (commands > 0)], moved[going & (commands < 0)]
    agreed = [float(np.sign(values).mean()) for values in (up, -down) if len(values) >= 5]
    return float(np.mean(agreed)) if agreed and np.abs(agreed).min() > 0.6 and len({np.sign(a) for a in agreed}) == 1 else 0.0


def _chosen(episodes: Sequence[Episode]) -> list[Episode]:
    """Some of them, spread over the file."""
    return [episodes[int(i)] for i in np.unique(np.linspace(0, len(episodes) - 1, EPISODES).astype(int))]


def _play(env: FlowEnv, episode: Episode, seed: int, units: Sequence[Unit]) -> tuple[Numbers, Numbers]:
    """The episode's actions from a reset: (T, A) and responses (T, F)."""
    rows, actions = [env.reset(seed=seed)[0]], []
    for action in episode.actions[:STEPS]:
        observation, _, terminated, truncated, _ = env.step(env.flow_spec.to_unit(action))
        rows.append(observation)
        actions.append(action)
        if terminated or truncated:
            break
    return np.asarray(actions, dtype=np.float64), responses(np.asarray(rows), units)


def _fit(side: Sequence[tuple[Numbers, Numbers]]) -> Model | None:
    inputs, outputs = [], []
    for actions, moved in side:
        if len(moved) > 2:
            inputs.append(np.concatenate([actions[1:], actions[:-1]], axis=1))
            outputs.append(np.concatenate([moved[1:], moved[:-1]], axis=1))
    if not inputs:
        return None
    x, y = np.concatenate(inputs), np.concatenate(outputs)
    width, count = x.shape[1] // 2, y.shape[1] // 2
    effect, error = np.zeros((count, width)), np.ones((count, width))
    for value in range(count):
        design = np.column_stack([x, y[:, count + value], np.ones(len(x))])
        spread = design.std(0) + 1e-9
        spread[-1] = 1.0
        scaled = design / spread
        inverse = np.linalg.pinv(scaled.T @ scaled + 1e-6 * len(x) * np.eye(scaled.shape[1]))
        solved = inverse @ scaled.T @ y[:, value]
        noise = float(np.var(y[:, value] - scaled @ solved)) + 1e-16
        effect[value] = (solved / spread)[:width]
        error[value] = (np.sqrt(noise * np.diag(inverse)) / spread)[:width]
    return Model(effect, error)


def _reading(data: Model, here: Model) -> Numbers:
    """Axes that act clearly on both sides; each value weighted by how surely the environment moves it."""
    certainty = np.abs(here.effect) / (here.error + 1e-12)
    strong = certainty.max(axis=0) > CLEAR
    answers = certainty.max(axis=1) > CLEAR  # values that respond; what hardly moves is all weight and no evidence
    weight = np.where(answers, 1 / (np.hypot(here.error, data.error).mean(axis=1) + 1e-9), 0.0)
    seen = (np.abs(data.effect) / (data.error + 1e-12)).max(axis=0) > CLEAR
    width = data.effect.shape[1]
    matrix = np.full((width, width), np.nan)
    if strong.any() and seen.any():
        known = here.effect[:, strong] * weight[:, None]
        size = np.linalg.norm(known, axis=0)
        solved = np.linalg.lstsq(known / size, data.effect[:, seen] * weight[:, None], rcond=0.03)[0]
        block = np.zeros((width, int(seen.sum())))
        block[strong] = solved / size[:, None]
        matrix[:, seen] = block
        matrix[np.ix_(~strong, seen)] = np.nan
    return matrix


def _delay(side: Sequence[tuple[Numbers, Numbers]]) -> int:
    """After how many steps actions act most."""
    explained = []
    for delay in DELAYS:
        pairs = [_shifted(actions, moved, delay) for actions, moved in side if len(moved) > len(DELAYS) + 4]
        if not pairs:
            return 0
        x, y = np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])
        design = np.column_stack([x, np.ones(len(x))])
        left = y - design @ np.linalg.lstsq(design, y, rcond=1e-6)[0]
        explained.append(float(np.mean(1 - left.var(0) / (y.var(0) + 1e-12))))
    return DELAYS[int(np.argmax(explained))]


def _shifted(actions: Numbers, moved: Numbers, delay: int) -> tuple[Numbers, Numbers]:
    """Rows that all delays have: action t − delay against response t."""
    first, last = max(DELAYS), len(moved) + min(DELAYS)
    return actions[first - delay : last - delay], moved[first:last]


def _rotations(quaternions: Numbers) -> Numbers:
    """(T, 4) in the order xyzw -> (T−1, 3): small rotations from row to row."""
    a, b = quaternions[:-1], quaternions[1:]
    b = b * np.where((a * b).sum(-1) < 0, -1.0, 1.0)[:, None]
    vector, scalar = a[:, :3], a[:, 3:]
    turned: Numbers = 2 * (scalar * b[:, :3] - b[:, 3:] * vector + np.cross(vector, b[:, :3]))
    return turned
