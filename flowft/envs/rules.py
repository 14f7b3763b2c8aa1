"""What counts as success, whether it ends the episode, how to reset, action bounds: the recipe's `environment` section.

The same rules for every family of environments. `success` is one of

    is_solved, metrics/solved   a key of the info of each step (nested: with / or .), true in any way Python has it
    reward>=1, return>0         of the step's raw reward, or of their sum since the reset
    terminated                  the environment's own end
    never                       there is no success; the return is the measure
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np

from flowft.data.spec import EnvSpec
from flowft.errors import EnvError, UsageError

NEVER = ("never", "none", "off")  # `off` is how YAML's false arrives
THRESHOLD = re.compile(r"(reward|return)\s*(>=|>)\s*(.+)")


@dataclass(frozen=True)
class Config:
    """The recipe's `environment` section. What is not set stays as the environment's family, or the checkpoint, has it."""

    success: str = ""  # see above; set it where the environment's info has another name for it
    success_ends: bool | None = None  # false where rewards are dense and the episode goes on; true where only success matters
    reset_options: dict[str, Any] = field(default_factory=dict)  # handed to each reset, e.g. {goal_cell: [1, 3]}
    action_bounds: tuple[tuple[float, float], ...] = ()  # [[low, high], …], one pair for all; set it where actions have no bounds

    def __post_init__(self) -> None:
        parse(self.success)
        for low, high in self.action_bounds:
            if not low < high:
                raise ValueError(f"action_bounds has the pair [{low:g}, {high:g}]; the first must be less than the second")

    def applied(self, env: EnvSpec) -> EnvSpec:
        """`env` under the rules that are set here."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(env, **{name: value for name, value in found.items() if value is not None and value not in ("", {}, ())})


class Step(NamedTuple):
    """What a rule may look at."""

    info: Mapping[str, Any]
    reward: float  # raw
    total: float  # raw rewards since the reset, this one included
    terminated: bool  # by the environment itself


Rule = Callable[[Step], bool | None]  # None: this step's info does not say


def parse(text: str) -> Rule:
    """The rule that `text` names; empty: `success` or `is_success` of the info."""
    text = text.strip()
    if not text:
        return lambda step: next((truth(step.info[key], key) for key in ("success", "is_success") if key in step.info), None)
    if text in NEVER:
        return lambda step: False
    if text == "terminated":
        return lambda step: step.terminated
    if match := THRESHOLD.fullmatch(text):
        return _threshold(text, *match.groups())
    if not re.fullmatch(r"[^\s<>=]+", text):
        raise UsageError(
            f"environment.success is {text!r}, neither a key of the environment's info nor a rule",
            "--set environment.success=KEY, or 'reward>=1', 'return>=10', terminated, never",
        )
    return lambda step: None if (value := look_up(step.info, text)) is None else truth(value, text)


def _threshold(text: str, what: str, sign: str, number: str) -> Rule:
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UsageError(f"environment.success is {text!r}, and {number!r} is not a number", f"--set 'environment.success={what}>=1'")

    def reached(step: Step) -> bool:
        value = step.reward if what == "reward" else step.total
        return value >= limit if sign == ">=" else value > limit

    return reached


def look_up(info: Mapping[str, Any], key: str) -> Any:
    """`info["a/b"]`, else `info["a"]["b"]` (also written a.b); None when it is not there."""
    if key in info:
        return info[key]
    value: Any = info
    for word in re.split(r"[/.]", key):
        if not isinstance(value, Mapping) or word not in value:
            return None
        value = value[word]
    return value


def truth(value: Any, key: str) -> bool | None:
    """Of what simulators write: True, 1.0, numpy's bool, an array of one. None and NaN do not say; more values are an error."""
    if value is None:
        return None
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise EnvError(
            f"info[{key!r}] is {value!r}; success must be one truth value", "--set environment.success=KEY, with a key that holds one"
        )
    number = array.item()
    return None if number != number else bool(number)
