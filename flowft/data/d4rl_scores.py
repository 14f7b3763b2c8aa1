"""D4RL's normalised score: 0 for a random policy's return, 100 for an expert's (Fu et al. 2020, reference returns of D4RL 1.1).

The d4rl package cannot be imported beside a current MuJoCo, so its table is kept here.
"""

from __future__ import annotations

import re

from flowft.errors import UsageError, did_you_mean

# task -> (return of a random policy, return of an expert)
RETURNS: dict[str, tuple[float, float]] = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "door": (-56.512833, 2880.5693087298737),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "relocate": (-6.425911, 4233.877797728884),
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
    "maze2d-open": (0.01, 20.66),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "maze2d-open-dense": (11.17817, 27.166538620695782),
    "maze2d-umaze-dense": (68.537689, 193.66285642381482),
    "maze2d-medium-dense": (44.264742, 297.4552547777125),
    "maze2d-large-dense": (30.569041, 303.4857382709002),
}
# Gymnasium's names of the same tasks, in lower case and without the version
ALIASES = {f"adroithand{task}": task for task in ("door", "pen", "hammer", "relocate")} | {"frankakitchen": "kitchen"}


def normalized_score(name: str, episode_return: float) -> float:
    """The score of a return. `name`: a D4RL dataset or task (`d4rl/door-human-v1`, `hopper`) or its environment (`Hopper-v5`)."""
    random, expert = RETURNS[task_of(name)]
    return 100.0 * (episode_return - random) / (expert - random)


def task_of(name: str) -> str:
    """The row of the table that a dataset's or an environment's name belongs to; UsageError if there is none."""
    plain = re.sub(r"-v\d+$", "", name.removeprefix("d4rl/")).lower().replace("_", "-")
    words = plain.split("-")
    for task in sorted(RETURNS, key=len, reverse=True):  # maze2d-umaze-dense before maze2d-umaze
        if words[: task.count("-") + 1] == task.split("-"):
            return task
    if words[0] in ALIASES:
        return ALIASES[words[0]]
    raise UsageError(f"no reference returns are known for {name!r}{did_you_mean(plain, RETURNS)}")
