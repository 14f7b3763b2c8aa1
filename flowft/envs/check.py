"""Is an environment fit to learn in? What training relies on, tried out: repeats, shapes, finite numbers, success, ends, speed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from flowft.data.spec import Array, EnvSpec
from flowft.envs import base, modules, repeats, rules
from flowft.envs.base import FlowEnv
from flowft.envs.repeats import Finding
from flowft.errors import FlowftError

SPARSE = 3  # so many different rewards or fewer: the reward says what happened, not how near it was
TIMED_RESETS = 5
LIKELY = re.compile(r"succe|solved|complete|achieved|goal_reached|done|win", re.I)  # keys that may tell success


@dataclass
class Seen:
    """What happened in the episodes of random actions."""

    lengths: list[int] = field(default_factory=list)
    terminated: int = 0
    rewards: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    successes: int = 0
    at_first_step: int = 0  # episodes that were a success after one random action
    keys: dict[str, Any] = field(default_factory=dict)  # of the infos, with the latest value
    not_finite: str = ""  # where the first NaN or infinity was
    outside: dict[str, float] = field(default_factory=dict)  # part -> how far it left its declared bounds
    seconds: float = 0.0  # in steps


def check(env: EnvSpec, episodes: int = 3) -> Iterator[Finding]:
    """Every check in turn; what fails to build, reset or step is a finding, and the last one."""
    made: FlowEnv | None = None
    try:
        made = base.make(env)
        yield _built(made)
        yield from repeats.check(made, env)
        seen = play(made, episodes)
        yield from _numbers(made, seen)
        yield from _rewards(made, seen)
        yield from _ends(made, seen)
        yield _speed(made, seen)
    except FlowftError as error:
        yield Finding("runs" if made else "builds", error.what, False, error.fix)
    except Exception as error:  # the user's own code: where and what, not our traceback
        what = f"it raised {modules.what_and_where(error)}"
        fix = "reset(seed=…, options=…) returns observation and info; step returns observation, reward, terminated, truncated, info"
        yield Finding("runs" if made else "builds", what, False, fix)
    finally:
        if made is not None:
            made.close()


def play(env: FlowEnv, episodes: int) -> Seen:
    """Episodes of uniformly random actions, from the seeds 0, 1, …"""
    seen = Seen()
    for seed in range(episodes):
        draw = np.random.default_rng(seed)
        _look(env, seen, env.reset(seed=seed)[0], 0.0, f"after the reset with seed {seed}")
        length, total, success, ended = 0, 0.0, False, False
        while not ended:
            action = draw.uniform(-1, 1, env.flow_spec.action_dim).astype(np.float32)
            began = time.perf_counter()
            observation, reward, terminated, truncated, info = env.step(action)
            seen.seconds += time.perf_counter() - began
            length, total, success = length + 1, total + reward, success or info["success"]
            seen.at_first_step += length == 1 and info["success"]
            seen.keys |= info
            seen.rewards.append(reward)
            _look(env, seen, observation, reward, f"at step {length} of the episode with seed {seed}")
            ended, seen.terminated = terminated or truncated, seen.terminated + terminated
        seen.lengths.append(length)
        seen.returns.append(total)
        seen.successes += success
    return seen


def _look(env: FlowEnv, seen: Seen, observation: Array, reward: float, where: str) -> None:
    start = 0
    for name, size in env.flow_spec.parts:
        part, start = observation[start : start + size], start + size
        if not seen.not_finite and not np.isfinite(part).all():
            index = int(np.flatnonzero(~np.isfinite(part))[0])
            seen.not_finite = f"{name}[{index}] is {part[index]} {where}"
        low, high = env.observation_bounds.get(name, (-np.inf, np.inf))
        if (off := float(np.max(np.maximum(low - part, part - high), initial=0.0))) > 1e-4 * (1 + float(np.max(np.abs(part)))):
            seen.outside[name] = max(off, seen.outside.get(name, 0.0))
    if not seen.not_finite and not np.isfinite(reward):
        seen.not_finite = f"the reward is {reward} {where}"


def _built(env: FlowEnv) -> Finding:
    spec = env.flow_spec
    parts = ", ".join(f"{name} {size}" for name, size in spec.parts)
    pairs = sorted(set(zip(spec.action_low, spec.action_high, strict=True)))
    bounds = "in " + ", ".join(f"[{low:g}, {high:g}]" for low, high in pairs)
    actions = f"{spec.action_dim} action{'s' * (spec.action_dim != 1)}"
    return Finding("builds", f"{spec.observation_dim} observation values ({parts}), {actions} {bounds}")


def _numbers(env: FlowEnv, seen: Seen) -> Iterator[Finding]:
    if seen.not_finite:
        yield Finding("finite", seen.not_finite, False, "end the episode (terminated) before the simulation diverges, or mend that sensor")
    else:
        yield Finding("finite", f"observations and rewards, in {len(seen.rewards)} steps of random actions")
    if seen.outside:
        worst = ", ".join(f"{name} by {off:.3g}" for name, off in seen.outside.items())
        yield Finding("bounds", f"observations leave the declared observation_space: {worst} (nothing relies on it)", note=True)
    else:
        yield Finding("bounds", f"observations keep the shapes{' and bounds' if env.observation_bounds else ''} that are declared")


def _rewards(env: FlowEnv, seen: Seen) -> Iterator[Finding]:
    different = sorted(set(seen.rewards))
    if len(different) <= SPARSE:
        what = f"sparse ({', '.join(f'{value:g}' for value in different)} seen)"
    else:
        what = f"dense, {different[0]:.3g} to {different[-1]:.3g} a step"
    more = "; success ends the episode, so what could be earned after it is lost (--set environment.success_ends=false)"
    lost = env.success_ends and len(different) > SPARSE and different[-1] > 0
    low, high = min(seen.returns), max(seen.returns)
    yield Finding("rewards", f"{what}; return {low:.4g} to {high:.4g} with random actions{more if lost else ''}", note=lost)
    yield _success(env, seen)


def _success(env: FlowEnv, seen: Seen) -> Finding:
    rule = env.success_rule
    if rule in rules.NEVER:
        return Finding("success", "there is none: the return is the measure")
    if not env.success_known:
        there = ", ".join(key for key in seen.keys if key != "success") or "nothing"
        likely = _likely(rule, {key: value for key, value in seen.keys.items() if key != "success"})
        what = f"info never holds {rule!r}" if rule else "info holds neither success nor is_success"
        others = "it may also be 'reward>=X', 'return>=X', terminated, or never: then the return is the measure"
        fix = f"--set environment.success={likely or 'never'}"
        return Finding("success", f"{what} (it holds: {there}): every episode counts as failed; {others}", False, fix)
    count = len(seen.lengths)
    how = rule or ("is_success" if "is_success" in seen.keys else "success")
    ends = "it ends the episode" if env.success_ends else "the environment ends the episode"
    if seen.at_first_step == count:
        fix = "--set environment.success=KEY, with another key or rule"
        return Finding("success", f"{how}: every episode is a success after one random action", False, fix)
    return Finding("success", f"{how}; {ends}; seen in {seen.successes} of {count} episodes of random actions")


def _likely(rule: str, info: Mapping[str, Any]) -> str | None:
    """The key that was meant, else one whose name sounds like success, else one that is true or false."""
    near = get_close_matches(rule, info, n=1) if rule else []
    sounding = [key for key in info if LIKELY.search(key)]
    return next(iter([*near, *sounding, *(key for key, value in info.items() if isinstance(value, (bool, np.bool_)))]), None)


def _ends(env: FlowEnv, seen: Seen) -> Iterator[Finding]:
    cut = len(seen.lengths) - seen.terminated
    spread = f"{min(seen.lengths)}" if len(set(seen.lengths)) == 1 else f"{min(seen.lengths)} to {max(seen.lengths)}"
    yield Finding("ends", f"after {spread} steps: {seen.terminated} terminated, {cut} cut; the limit is {env.max_steps} steps")
    if seen.terminated == len(seen.lengths) and max(seen.lengths) == 1:
        yield Finding(
            "length", "every episode ends with its first step", False, "look at `terminated` of step, or --set environment.success=KEY"
        )


def _speed(env: FlowEnv, seen: Seen) -> Finding:
    began = time.perf_counter()
    for seed in range(TIMED_RESETS):
        env.reset(seed=seed)
    reset = (time.perf_counter() - began) / TIMED_RESETS
    return Finding("speed", f"{len(seen.rewards) / max(seen.seconds, 1e-9):.0f} steps/s, {1000 * reset:.1f} ms a reset")
