"""The range of actions: as declared, as `data.action_bounds` says, or the data's own; and what lies outside of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from flowft.data import fixes
from flowft.data.source import Options
from flowft.data.spec import Episode
from flowft.data.sweep import Numbers

ROUNDING = 1e-5  # float32 files overshoot ±1 by so much; such values are set to the bound without ado
SMALL_SHARE, SMALL_EXCESS = 0.05, 0.1  # of all action values, of half the range: up to there clipping may be a fix
STILL = 1e-6  # a value that never moves has no range of its own: it gets one unit around it


class ActionRange:
    """`low`, `high`: bounds (A,) or scalars, environment units. Counts what lies outside of them."""

    def __init__(self, low: npt.ArrayLike, high: npt.ArrayLike, options: Options) -> None:
        if pairs := options.bound_pairs:
            low, high = (pairs[0] if len(pairs) == 1 else np.transpose(pairs))[:2]
        self.low, self.high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        self.from_data = options.action_bounds == "data"
        self.chosen = options.action_bounds is not None
        self.clip = options.clip_actions
        self.name: str | None = None  # how to call the bounds, where they are not declared
        self.values = self.outside = self.clipped = 0
        self.largest = 0.0  # excess over a bound

    def fits(self, width: int) -> bool:
        return self.from_data or not self.low.ndim or self.low.shape == (width,)

    def limit(self, actions: Numbers) -> tuple[Numbers, npt.NDArray[np.bool_] | None]:
        """The actions (T, A) within the bounds, and where (T, A) they were outside by more than rounding; None: nowhere."""
        self.values += actions.size
        if self.from_data or not actions.size or ((actions >= self.low) & (actions <= self.high)).all():
            return actions, None
        limited = np.clip(actions, self.low, self.high).astype(actions.dtype)
        excess = np.abs(actions - limited)
        outside = excess > ROUNDING * (self.high - self.low)
        if not outside.any():
            return limited, None
        self.outside += int(outside.sum())
        self.largest = max(self.largest, float(excess.max()))
        if self.clip:
            self.clipped += int(outside.sum())
        return limited, outside

    def rounded(self, actions: Numbers) -> tuple[Numbers, npt.NDArray[np.bool_]]:
        """The actions with those set to the bound that are beyond it by rounding only, and where (T, A) they are outside by more."""
        limited = np.clip(actions, self.low, self.high).astype(actions.dtype)
        with np.errstate(invalid="ignore"):
            outside = np.abs(actions - limited) > ROUNDING * (self.high - self.low)
        return np.where(outside, actions, limited), outside

    def words(self) -> str:
        return self.name or (f"[{self.low:g}, {self.high:g}]" if self.low.ndim == 0 else "the declared bounds")

    @property
    def effect(self) -> str:
        """What clipping would do."""
        share = 100 * self.outside / max(self.values, 1)
        said = f"clipping changes {self.outside} of {self.values} action values ({share:.2g} %), by at most {self.largest:.3g}"
        return said if self._little else f"{said}, which is no overshoot: are they absolute targets, or in other units?"

    @property
    def fix(self) -> str:
        """Clipping where it changes little, else the data's own range."""
        return fixes.setting(clip_actions=True) if self._little else fixes.setting(action_bounds="data")

    @property
    def _little(self) -> bool:
        half = float(np.min(self.high - self.low)) / 2
        return self.outside <= SMALL_SHARE * self.values or self.largest <= SMALL_EXCESS * half

    def of(self, episodes: Sequence[Episode]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Low and high for each of the A action values."""
        width = episodes[0].actions.shape[1]
        if not self.from_data:
            low, high = np.broadcast_to(self.low, (width,)), np.broadcast_to(self.high, (width,))
        else:
            low, high = own_range(episodes)
        return tuple(map(float, low)), tuple(map(float, high))


def own_range(episodes: Sequence[Episode]) -> tuple[Numbers, Numbers]:
    """Minimum and maximum (A,) of the episodes' actions."""
    low = np.min([episode.actions.min(axis=0) for episode in episodes], axis=0).astype(np.float64)
    high = np.max([episode.actions.max(axis=0) for episode in episodes], axis=0).astype(np.float64)
    still = high - low < STILL
    return np.where(still, low - 0.5, low), np.where(still, high + 0.5, high)
