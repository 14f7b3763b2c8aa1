"""What every source's episodes must satisfy before anything trains on them; each defect is reported with its place."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset, EnvSpec, Episode, Spec
from flowft.errors import DataError, did_you_mean

Numbers = npt.NDArray[Any]
Place = Callable[[str], str]  # "actions" or an observation part -> its key in the file
ROUNDING = 1e-5  # float32 files overshoot ±1 by so much; such values are set to the bound without ado


class Inspector:
    """Takes the episodes of one file one by one, keeps the sound ones, and makes the Dataset of them.

    `low`, `high`: the declared action bounds (A,) or scalars, environment units. Problems are raised or collected
    as `problems` says; an episode with a problem is never kept.
    """

    def __init__(self, file: str, problems: Problems, options: Options, low: npt.ArrayLike = -1.0, high: npt.ArrayLike = 1.0) -> None:
        if options.task is not None:
            raise DataError(f"{file}: data.task is {options.task!r}, but this layout has no tasks", "--set data.task=null")
        self.file, self.problems, self.options = file, problems, options
        if pairs := options.bound_pairs:
            low, high = np.transpose(pairs) if len(pairs) > 1 else pairs[0]
        elif options.action_bounds == "data":
            low, high = -np.inf, np.inf
        self.low, self.high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
        self.episodes: list[Episode] = []
        self.notes: list[str] = []
        self.clipped = 0
        self._faults = 0

    def report(self, key: str, what: str, fix: str | None = None) -> None:
        self._faults += 1
        self.problems.add(f"{self.file}:{key}" if key else self.file, what, fix)

    def wanted(self, names: Sequence[str]) -> list[str]:
        """The episodes to read: `names` without `data.skip`, at most `data.limit`."""
        short = [name.rsplit("/", 1)[-1] for name in names]
        for name in self.options.skip:
            if name not in names and name not in short:
                near = did_you_mean(name, short)
                self.report("", f"data.skip names {name!r}, which is not in the file{near}", f"flowft data info {self.file}")
        kept = [n for n, s in zip(names, short, strict=True) if n not in self.options.skip and s not in self.options.skip]
        return kept[: self.options.limit] if self.options.limit is not None else kept

    def same_length(self, lengths: Mapping[str, int], name: str) -> bool:
        """Do all keys have as many rows as the first? Reports each that does not."""
        (first, rows), *rest = lengths.items()
        different = [(key, n) for key, n in rest if n != rows]
        for key, n in different:
            self.report(key, f"{n} rows, but {first} has {rows}", skip(name))
        return not different

    def accept(self, episode: Episode, place: Place, row: int = 0) -> bool:
        """Keep the episode if it is sound. `row`: where its first step lies in the file's arrays."""
        before = self._faults
        if self._shapes(episode, place) and self._lengths(episode, place):
            for key, values in {"actions": episode.actions, "rewards": episode.rewards, **episode.observations}.items():
                self._finite(place(key), values, row, episode.name)
            if self._faults == before:
                episode = self._in_bounds(episode, place, row)
        if self._faults == before:
            self.episodes.append(episode)
        return self._faults == before

    def dataset(
        self, dataset_id: str, source: str, layout: str, file_hash: str, env: EnvSpec | None, parts: Sequence[str] | None = None
    ) -> Dataset:
        """The Dataset of the episodes kept. `parts`: observation parts in order; None: as the episodes have them."""
        self._one_size()
        self._no_duplicates()
        if not self.episodes:
            if not self.problems.found:
                self.report("", "no episode is left to train on", f"flowft data info {self.file}")
            raise NothingLeft(f"{self.file}: no sound episode", f"flowft data check {self.file}")
        if self.clipped:
            self.notes.append(f"clipped {self.clipped} action values to the declared range")
        if self.options.action_bounds == "data":
            self.low = np.min([episode.actions.min(axis=0) for episode in self.episodes], axis=0)
            self.high = np.max([episode.actions.max(axis=0) for episode in self.episodes], axis=0)
        first = self.episodes[0]
        names = list(parts or first.observations)
        width = first.actions.shape[1]
        spec = Spec(
            tuple((name, int(first.observations[name].shape[1])) for name in names),
            tuple(float(v) for v in np.broadcast_to(self.low, (width,))),
            tuple(float(v) for v in np.broadcast_to(self.high, (width,))),
        )
        return Dataset(dataset_id, source, layout, self.file, file_hash, spec, env, tuple(self.episodes), tuple(self.notes))

    def _shapes(self, episode: Episode, place: Place) -> bool:
        before = self._faults
        observations = [(part, values, 2) for part, values in episode.observations.items()]
        for key, values, ndim in [("actions", episode.actions, 2), ("rewards", episode.rewards, 1), *observations]:
            if values.dtype.kind not in "fiub":
                self.report(place(key), f"holds {values.dtype}, not numbers", skip(episode.name))
            elif values.ndim != ndim or (ndim == 2 and values.shape[1] == 0):
                wanted = "(steps, size)" if ndim == 2 else "(steps,)"
                self.report(place(key), f"has shape {values.shape}, not {wanted}", skip(episode.name))
        return self._faults == before

    def _lengths(self, episode: Episode, place: Place) -> bool:
        before, steps = self._faults, len(episode.actions)
        if steps < 2:
            self.report(place("actions"), "the episode is empty" if steps == 0 else "the episode has one step only", skip(episode.name))
        if len(episode.rewards) != steps:
            self.report(place("rewards"), f"{len(episode.rewards)} rows, but {place('actions')} has {steps}", skip(episode.name))
        for part, values in episode.observations.items():
            if len(values) not in (steps, steps + 1):
                self.report(place(part), f"{len(values)} rows, but {place('actions')} has {steps}", skip(episode.name))
        return self._faults == before

    def _finite(self, key: str, values: Numbers, row: int, name: str) -> None:
        with np.errstate(over="ignore"):  # what float32 cannot hold is inf to everything that follows
            bad = ~np.isfinite(values.astype(np.float32)).reshape(len(values), -1).all(axis=1)
        if bad.any():
            first = int(np.argmax(bad))
            kind = "NaN" if np.isnan(values[first]).any() else "infinite"
            self.report(key, f"{kind} value in row {row + first} ({int(bad.sum())} rows are not finite)", skip(name))

    def _in_bounds(self, episode: Episode, place: Place, row: int) -> Episode:
        actions = episode.actions
        if self.low.ndim and self.low.shape != actions.shape[1:]:
            return episode  # a width that differs is `_one_size`'s to report
        limited = np.clip(actions, self.low, self.high).astype(actions.dtype)
        outside = np.abs(actions - limited) > ROUNDING * (self.high - self.low)
        if outside.any() and not self.options.clip_actions:
            excess = np.where(outside, np.abs(actions - limited), 0.0)
            worst = np.unravel_index(int(np.argmax(excess)), actions.shape)
            bounds = f"[{self.low:g}, {self.high:g}]" if self.low.ndim == 0 else "the declared bounds"
            largest = f"largest {actions[worst]:.6g} at row {row + int(worst[0])}"
            self.report(place("actions"), f"{int(outside.sum())} values outside {bounds} ({largest})", "--set data.clip_actions=true")
        self.clipped += int(outside.sum())
        return replace(episode, actions=limited)

    def _one_size(self) -> None:
        """All episodes must have the sizes that most of them have."""
        if not self.episodes:
            return
        sizes = [sizes_of(episode) for episode in self.episodes]
        usual = dict(Counter(tuple(size.items()) for size in sizes).most_common(1)[0][0])
        sound = []
        for episode, size in zip(self.episodes, sizes, strict=True):
            odd = [f"{key} has {size.get(key)} values, not {n} as in most episodes" for key, n in usual.items() if size.get(key) != n]
            if odd:
                self.report(episode.name, "; ".join(odd), skip(episode.name))
            else:
                sound.append(episode)
        self.episodes = sound
        if self.low.ndim and sound and self.low.shape != (usual["actions"],):
            self.report("", f"actions have {usual['actions']} values, but {self.low.shape[0]} bounds are declared")
            self.episodes = []

    def _no_duplicates(self) -> None:
        if self.options.duplicates == "keep":
            return
        seen: dict[bytes, str] = {}
        unique, dropped = [], 0
        for episode in self.episodes:
            digest = fingerprint(episode)
            if digest not in seen:
                seen[digest] = episode.name
                unique.append(episode)
            elif self.options.duplicates == "drop":
                dropped += 1
            else:
                self.report(episode.name, f"the same as {seen[digest]}, number for number", "--set data.duplicates=drop (or keep)")
        if dropped:
            self.notes.append(f"dropped {dropped} duplicate episodes")
        self.episodes = unique


class NothingLeft(DataError):
    """Every episode had a problem; in collecting mode the problems are already in the list."""


def sizes_of(episode: Episode) -> dict[str, int]:
    """Values per step of the actions and of each observation part."""
    return {"actions": episode.actions.shape[1], **{part: values.shape[1] for part, values in episode.observations.items()}}


def fingerprint(episode: Episode) -> bytes:
    """Equal for episodes with the same actions and observations, number for number."""
    digest = hashlib.blake2b(np.ascontiguousarray(episode.actions, dtype=np.float32).tobytes(), digest_size=16)
    for part in sorted(episode.observations):
        digest.update(np.ascontiguousarray(episode.observations[part], dtype=np.float32).tobytes())
    return digest.digest()


def skip(name: str) -> str:
    """The setting that leaves one episode out."""
    return f"--set 'data.skip=[{name.rsplit('/', 1)[-1]}]'"
