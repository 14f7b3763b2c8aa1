"""What a policy sees and does, as a checkpoint, a dataset or an environment says it: one type, compared in one place.

Policies, datasets and environments of other programs meet here as well: what they do not say is None and fits anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowft.data.spec import Dataset, EnvSpec, Spec
from flowft.errors import DataError, EnvError

Side = Literal["policy", "data", "environment"]
# What two sides that differ are in a sentence: {0} the first, {1} the second.
SENTENCES: dict[tuple[Side, Side], str] = {
    ("policy", "environment"): "{0} was trained on other observations or actions than {1} gives",
    ("policy", "data"): "{0} sees or does something else than {1} holds",
    ("data", "environment"): "{0} holds other observations or actions than {1} gives",
}


@dataclass(frozen=True)
class Description:
    """Observations (parts, order, sizes, normalisation), actions (bounds, units, chunk) and rate, in the words of one side."""

    side: Side
    name: str  # in a sentence: checkpoints/can.pt, robomimic/can, Lift
    spec: Spec
    horizon: int | None = None  # actions per chunk; data and environments take any
    normalised: bool | None = None  # whether it brings the observations' mean and deviation; None: it has nothing to do with that
    rate: float | None = None  # actions per second

    @classmethod
    def of_checkpoint(cls, path: Path, content: Mapping[str, Any]) -> Description:
        """A loaded policy checkpoint."""
        policy = content["policy"]
        means = [value for name, value in policy.items() if name.endswith("normalizer.mean")]
        env = EnvSpec.from_tree(content["env"]) if content["env"] else None
        return cls(
            "policy", str(path), Spec.from_tree(content["spec"]), int(content["recipe"]["policy"]["horizon"]),
            any(bool((mean != 0).any()) for mean in means), rate_of(env),
        )  # fmt: skip

    @classmethod
    def of_dataset(cls, dataset: Dataset) -> Description:
        """A loaded dataset."""
        return cls("data", dataset.id, dataset.spec, rate=rate_of(dataset.env))

    @classmethod
    def of_environment(cls, env: EnvSpec, spec: Spec) -> Description:
        """An environment; `spec` is what it gives once it is built."""
        return cls("environment", env.id, spec, rate=rate_of(env))

    def differences(self, other: Description) -> list[str]:
        """What differs in `other`, in words; empty when a policy for one can run on the other."""
        out = self.spec.differences(other.spec)
        if self.rate is not None and other.rate is not None and self.rate != other.rate:
            out.append(f"{self.rate:g} actions per second against {other.rate:g}")
        return out

    def require_fit(self, other: Description, fix: str) -> None:
        """EnvError (DataError where the other side is data) that lists the differences."""
        if different := self.differences(other):
            sentence = SENTENCES[self.side, other.side].format(self.name, other.name)
            raise (DataError if other.side == "data" else EnvError)(f"{sentence}: {'; '.join(different)}", fix)

    def words(self) -> str:
        """All of it on one line."""
        parts = ", ".join(f"{name} {size}" for name, size in self.spec.parts)
        low, high = (_numbers(bounds) for bounds in (self.spec.action_low, self.spec.action_high))
        chunk = f", in chunks of {self.horizon}" if self.horizon is not None else ""
        rate = f", {self.rate:g} a second" if self.rate is not None else ""
        return (
            f"sees {self.spec.observation_dim} values ({parts}){' and normalises them' if self.normalised else ''}; "
            f"does {self.spec.action_dim} values in {low} to {high}{chunk}{rate}"
        )

    def to_tree(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **self.spec.to_tree(), "observation_dim": self.spec.observation_dim, "action_dim": self.spec.action_dim,
            "horizon": self.horizon, "normalised": self.normalised, "rate": self.rate,
        }  # fmt: skip


def rate_of(env: EnvSpec | None) -> float | None:
    """Actions per second, where the environment's settings say so (robosuite's do)."""
    found = env.kwargs.get("control_freq") if env is not None else None
    return float(found) if isinstance(found, (int, float)) and found > 0 else None


def _numbers(values: tuple[float, ...]) -> str:
    """`-1` when all are the same, else the list."""
    return f"{values[0]:g}" if len(set(values)) == 1 else "[" + ", ".join(f"{value:g}" for value in values) + "]"
