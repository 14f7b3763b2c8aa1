"""How sure a number is: intervals for success counts, means over seeds and paired differences. Plain NumPy, no SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate with its confidence interval, all in the unit of the values given."""

    mean: float
    low: float
    high: float


def wilson(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of a success rate, both in [0, 1].

    Unlike mean ± 2 standard errors it stays honest at 0/n and n/n. No episodes: (0, 1), nothing is known.
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes in {episodes} episodes")
    if episodes == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, weight = successes / episodes, z * z / episodes
    centre = (rate + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(rate * (1 - rate) / episodes + weight / (4 * episodes))
    # At the ends the two terms are equal; rounding must not put 50/50 outside its own interval.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == episodes else min(1.0, centre + half)
    return low, high


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean over seeds with Student's t interval. One value says nothing about the spread: its interval is infinite."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no values to average")
    mean = float(data.mean())
    if data.size == 1:
        return Interval(mean, -math.inf, math.inf)
    half = student_quantile(data.size - 1, confidence) * float(data.std(ddof=1)) / math.sqrt(data.size)
    return Interval(mean, mean - half, mean + half)


def success_interval(counts: Sequence[tuple[int, int]], confidence: float = 0.95) -> Interval:
    """Mean success rate of seeds, each (successes, episodes), within [0, 1].

    One seed: Wilson's interval. Several: Student's t over their rates, or Wilson's of all episodes together where that
    reaches further, as seeds that happen to agree would else look like certainty.
    """
    pooled = wilson(sum(k for k, _ in counts), sum(n for _, n in counts), confidence)
    mean = mean_interval([k / n for k, n in counts], confidence)
    if len(counts) == 1:
        return Interval(mean.mean, *pooled)
    return Interval(mean.mean, max(0.0, min(mean.low, pooled[0])), min(1.0, max(mean.high, pooled[1])))


def paired_difference(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of `after - before` over pairs (the same seeds, the same starts) with Student's t interval."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values before, {len(after)} after: pairs need as many of each")
    return mean_interval(np.subtract(after, before).tolist(), confidence)


def bootstrap_interval(values: Sequence[float], confidence: float = 0.95, draws: int = 10_000, seed: int = 0) -> Interval:
    """Mean with a percentile bootstrap interval, for values far from normal (returns, lengths). Same seed, same interval."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise ValueError("no values to average")
    picks = np.random.default_rng(seed).integers(0, data.size, (draws, data.size))
    low, high = np.quantile(data[picks].mean(axis=1), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(data.mean()), float(low), float(high))


def student_quantile(freedom: int, confidence: float = 0.95) -> float:
    """t with P(|T| < t) = confidence for `freedom` degrees of freedom.

    With T = sqrt(freedom)·tan(angle) the density becomes cos(angle)^(freedom - 1) on (-pi/2, pi/2): smooth and
    bounded, so that a trapezoid sum inverts it to better than 1e-6.
    """
    if freedom < 1:
        raise ValueError(f"{freedom} degrees of freedom")
    angle = np.linspace(0.0, math.pi / 2, 200_001)
    density = np.cos(angle) ** (freedom - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(confidence, area / area[-1], angle)))


def percent(successes: int, episodes: int) -> str:
    """`45/50 = 90 % (79–96 %)`: the count, the rate and its Wilson interval, as every report here prints it."""
    if episodes == 0:
        return "0/0"
    low, high = wilson(successes, episodes)
    return f"{successes}/{episodes} = {successes / episodes:.0%} ({low * 100:.0f}–{high:.0%})".replace("%", " %")
