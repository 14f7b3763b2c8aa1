"""What every source's episodes must satisfy before anything trains on them; each defect is reported with its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from flowft.data import duplicates, fixes, mending, success, sweep
from flowft.data.bounds import ActionRange
from flowft.data.duplicates import fingerprint
from flowft.data.identity import Identity
from flowft.data.problems import Problems
from flowft.data.source import Options
from flowft.data.spec import Dataset, EnvSpec, Episode, Spec
from flowft.errors import DataError, did_you_mean

__all__ = ["Inspector", "NothingLeft", "Numbers", "Place", "fingerprint", "refuse", "sizes_of", "skip"]

Numbers = npt.NDArray[Any]
Place = Callable[[str], str]  # "actions" or an observation part -> its key in the file


class Inspector:
    """Takes the episodes of one file one by one, keeps the sound ones, and makes the Dataset of them.

    `low`, `high`: the declared action bounds (A,) or scalars, environment units. Problems are told at the end (strict) or
    kept, as `problems` says; an episode with a problem is never kept. `identity` takes what a source reads.
    """

    def __init__(self, file: str, problems: Problems, options: Options, low: npt.ArrayLike = -1.0, high: npt.ArrayLike = 1.0) -> None:
        if options.task is not None:
            raise DataError(f"{file}: data.task is {options.task!r}, but this layout has no tasks", "--set data.task=null")
        self.file, self.problems, self.options = file, problems, options
        self.range = ActionRange(low, high, options)
        self.rule = success.Rule.parse(options.success) if options.success is not None else None
        self.episodes: list[Episode] = []
        self.notes: list[str] = []
        self.identity = Identity()
        self.marks: Sequence[str] = ()  # names that data.success could take, for its error
        self.parts: Sequence[str] = ()  # observation parts that are read, where data.observation chooses among them
        self.sparse = False  # do rewards tell success, −1/0 as well as 0/1?
        self.whole: Callable[[str], str] = str  # the episode of the file that one of ours is a piece of
        self._chosen: list[str] = []
        self._short = self._longest = 0  # episodes below data.min_steps, and the steps of the longest of them
        self._faults = 0

    @property
    def success_key(self) -> str | None:
        """The array or attribute that `data.success` names; a source hands it to `accept` among `marks`."""
        return self.rule.key if self.rule is not None and self.rule.kind == "key" else None

    @property
    def uses_rewards(self) -> bool:
        """Are the file's rewards needed, or does `data.success` make others without them?"""
        return self.rule is None or self.rule.kind in ("none", "reward")

    def report(self, key: str, what: str, fix: str | None = None, episode: str | None = None) -> None:
        """`fix`: a whole command, or what has to be set (`--set …`, `skip(name)`). `episode`: name of the one that has it."""
        self._faults += 1
        short = None if episode is None else self.whole(episode).rsplit("/", 1)[-1]
        self.problems.add(f"{self.file}:{key}" if key else self.file, what, fix, short)

    def without_rewards(self, why: str) -> None:
        """The file has no rewards; its episodes come with zeros."""
        if self.rule is None:
            self.notes.append(f"{why}, so rewards are unknown and set to 0: good for cloning only; {success.DECLARE}")

    def absolute_actions(self, why: str) -> None:
        """The actions are known to be absolute targets, of which ±1 is not the range: their bounds are for the user to name."""
        if self.range.chosen:
            return
        what = f"actions are absolute targets ({why}), whose range is not [-1, 1]: clipping would destroy them"
        if self.range.clip:
            self.notes.append(f"{what}; their bounds are the data's own minimum and maximum (--set data.action_bounds=data)")
        else:
            self.report("actions", what, fixes.setting(action_bounds="data"))
        self.range.from_data = True

    def wanted(self, names: Sequence[str]) -> list[str]:
        """The episodes to read: `names` without `data.skip`, at most `data.limit`."""
        if not self.options.skip:
            self._chosen = list(names[: self.options.limit])
            return self._chosen
        short = [name.rsplit("/", 1)[-1] for name in names]
        left_out, known = set(self.options.skip), {*names, *short}
        for name in (name for name in self.options.skip if name not in known):
            there = [other for other in self.options.skip if other in known]
            fix = fixes.check(self.file, fixes.given(self.options) | {"skip": there})
            self.report("", f"data.skip names {name!r}, which is not in the file{did_you_mean(name, short)}", fix)
        kept = [n for n, s in zip(names, short, strict=True) if n not in left_out and s not in left_out]
        self._chosen = kept[: self.options.limit] if self.options.limit is not None else kept
        return self._chosen

    def same_length(self, lengths: Mapping[str, int], name: str) -> bool:
        """Do all keys have as many rows as the first? Reports the first that does not, with the number of others."""
        (first, rows), *rest = lengths.items()
        different = [(key, n) for key, n in rest if n != rows]
        if different:
            more = f" ({len(different) - 1} more arrays differ)" if len(different) > 1 else ""
            self.report(different[0][0], f"{different[0][1]} rows, but {first} has {rows}{more}", skip(name))
        return not different

    def accept(self, episode: Episode, place: Place, row: int = 0, marks: Mapping[str, Any] | None = None, clean: bool = False) -> bool:
        """Keep the episode if it is sound.

        `row`: where its first step lies in the file's arrays. `marks`: its further arrays, for `data.success`. `clean`: its
        values were looked at already, with those of all episodes (`columns.clean`).
        """
        before = self._faults
        if self.options.min_steps is not None and len(episode.actions) < self.options.min_steps:
            self._short += 1
            self._longest = max(self._longest, len(episode.actions))
            return False
        if (clean or self._shapes(episode, place)) and self._lengths(episode, place) and not clean:
            for key, values in {"actions": episode.actions, "rewards": episode.rewards, **episode.observations}.items():
                self._finite(place(key), values, row, episode.name)
            if self._faults == before:
                episode = self._in_bounds(episode, place, row)
        if self._faults == before and self.rule is not None:
            episode = self._declared(episode, place, marks or {})
        if self._faults == before:
            self.episodes.append(episode)
        return self._faults == before

    def dataset(
        self, dataset_id: str, source: str, layout: str, file_hash: str, env: EnvSpec | None, parts: Sequence[str] | None = None
    ) -> Dataset:
        """The Dataset of the episodes kept. `parts`: observation parts in order; None: as the episodes have them."""
        self._one_size()
        self._no_duplicates()
        self._told_rewards()
        self.problems.found = mending.fitted(self.problems.found, self.file, self._chosen, self.range, self.parts, self.uses_rewards)
        if self.problems.found and not self.problems.collect:
            raise self.problems.error()
        if not self.episodes:
            raise self._nothing_left()
        if self._short:
            self.notes.append(f"left out {self._short} episodes of less than {self.options.min_steps} steps")
        if self.range.clipped:
            self.notes.append(f"clipped {self.range.clipped} action values to the declared range")
        low, high = self.range.of(self.episodes)
        if self.options.action_bounds == "data":
            self.notes.append("action bounds are the data's own minimum and maximum, as data.action_bounds says")
        first = self.episodes[0]
        sizes = tuple((name, int(first.observations[name].shape[1])) for name in parts or first.observations)
        spec = Spec(sizes, low, high)
        return Dataset(dataset_id, source, layout, self.file, file_hash, spec, env, tuple(self.episodes), tuple(self.notes))

    def _shapes(self, episode: Episode, place: Place) -> bool:
        before = self._faults
        observations = [(part, values, 2) for part, values in episode.observations.items()]
        for key, values, ndim in [("actions", episode.actions, 2), ("rewards", episode.rewards, 1), *observations]:
            if values.dtype.kind not in "fiub":
                self.report(place(key), f"holds {values.dtype}, not numbers", self._skip(episode.name))
            elif values.ndim != ndim or (ndim == 2 and values.shape[1] == 0):
                wanted = "(steps, size)" if ndim == 2 else "(steps,)"
                self.report(place(key), f"has shape {values.shape}, not {wanted}", self._skip(episode.name))
        return self._faults == before

    def _lengths(self, episode: Episode, place: Place) -> bool:
        before, steps = self._faults, len(episode.actions)
        if steps < 2:
            what = "the episode is empty" if steps == 0 else "the episode has one step only"
            self.report(place("actions"), what, fixes.setting(min_steps=2), episode.name)
        if len(episode.rewards) != steps:
            self.report(place("rewards"), f"{len(episode.rewards)} rows, but {place('actions')} has {steps}", self._skip(episode.name))
        for part, values in episode.observations.items():
            if len(values) not in (steps, steps + 1):
                self.report(place(part), f"{len(values)} rows, but {place('actions')} has {steps}", self._skip(episode.name))
        return self._faults == before

    def _finite(self, key: str, values: Numbers, row: int, name: str) -> None:
        if (bad := sweep.not_finite(values)) is not None:
            first = int(np.argmax(bad))
            kind = "NaN" if np.isnan(values[first]).any() else "infinite"
            self.report(key, f"{kind} value in row {row + first} ({int(bad.sum())} rows are not finite)", self._skip(name))

    def _in_bounds(self, episode: Episode, place: Place, row: int) -> Episode:
        actions = episode.actions
        if not self.range.fits(actions.shape[1]):
            return episode  # a width that differs is `_one_size`'s to report
        limited, outside = self.range.limit(actions)
        if outside is not None and not self.range.clip:
            excess = np.where(outside, np.abs(actions - limited), 0.0)
            worst = np.unravel_index(int(np.argmax(excess)), actions.shape)
            largest = f"largest {actions[worst]:.6g} at row {row + int(worst[0])}"
            what = f"{int(outside.sum())} values outside {self.range.words()} ({largest})"
            self.report(place("actions"), what, mending.OUTSIDE, episode.name)
        return episode if limited is actions else replace(episode, actions=limited)

    def _declared(self, episode: Episode, place: Place, marks: Mapping[str, Any]) -> Episode:
        """With the rewards and the end that `data.success` makes."""
        assert self.rule is not None
        try:
            return self.rule.apply(episode, marks, ["last", "none", *self.marks])
        except success.NoSuccess as error:
            where = place("actions").removesuffix("actions").rstrip("/")
            self.report(where, str(error), fixes.setting(success="last"), episode.name)
            return episode

    def _told_rewards(self) -> None:
        """Rewards of −1 until success become 0/1; rewards that never tell a success are said to."""
        if self.rule is not None or not self.episodes:
            return
        if success.minus_one_until(self.episodes):
            self._minus_one_until()
        value = success.never(self.episodes)
        if value is not None and not any("data.success" in note for note in self.notes):
            key = f", or data.success=KEY with what tells it (there are: {', '.join(self.marks)})" if self.marks else ""
            self.notes.append(f"all rewards are {value:g}, so no demonstration seems to succeed; {success.DECLARE}{key}")

    def _skip(self, name: str) -> str:
        return skip(self.whole(name))

    def _minus_one_until(self) -> None:
        """Where only rewards tell success they are read as 0 and 1; a file with marks of its own is left as it is."""
        told = "rewards are −1 until success and 0 at it"
        if self.sparse:
            self.episodes = [success.shifted(episode) for episode in self.episodes]
            self.notes.append(f"{told}: read as 0 and 1, ends with a success are terminal (--set data.success=none for neither)")
        elif not any(episode.terminated for episode in self.episodes):
            self.notes.append(f"{told}, and no end is marked as terminal: where success ends the task, --set 'data.success=reward>=0'")

    def _one_size(self) -> None:
        """All episodes must have the sizes that most of them have."""
        if not self.episodes:
            return
        counts = Counter(sizes_of(episode) for episode in self.episodes)
        usual = dict(most := counts.most_common(1)[0][0])
        sizes = [sizes_of(episode) for episode in self.episodes] if len(counts) > 1 else []
        for episode, size in zip(self.episodes, sizes, strict=False):
            found = dict(size)
            odd = [f"{key} has {found.get(key)} values, not {n} as in most episodes" for key, n in usual.items() if found.get(key) != n]
            if odd:
                self.report(episode.name, "; ".join(odd), self._skip(episode.name))
        if sizes:
            self.episodes = [episode for episode, size in zip(self.episodes, sizes, strict=True) if size == most]
        if not self.range.fits(usual["actions"]):
            declared = self.range.low.shape[0]
            fix = fixes.setting(action_bounds="data")
            self.report("", f"actions have {usual['actions']} values, but {declared} bounds are declared", fix)
            self.episodes = []

    def _no_duplicates(self) -> None:
        if self.options.duplicates == "keep":
            return
        repeated = duplicates.first_of(self.episodes)
        for index, first in repeated.items() if self.options.duplicates == "refuse" else ():
            what = f"the same as {self.episodes[first].name}, number for number"
            self.report(self.episodes[index].name, what, fixes.setting(duplicates="drop"), self.episodes[index].name)
        if repeated and self.options.duplicates == "drop":
            self.notes.append(f"dropped {len(repeated)} duplicate episodes")
        if repeated:
            self.episodes = [episode for i, episode in enumerate(self.episodes) if i not in repeated]

    def _nothing_left(self) -> DataError:
        if self.problems.found:
            return NothingLeft(f"{self.file}: no sound episode", None)
        given = fixes.given(self.options)
        narrow = [key for key in ("skip", "min_steps", "demos") if key in given]
        left = {key: value for key, value in given.items() if key not in narrow}
        if self._short:  # what is shorter than two steps no other setting brings back
            left = left | {"min_steps": self._longest} if self._longest > 1 else {}
        fix = fixes.check(self.file, left) if narrow and (left or not self._short) else None
        told = f" ({', '.join('data.' + key for key in narrow)} leave all out)" if narrow else ""
        return NothingLeft(f"{self.file}: no episode is left to train on{told}", fix)


class NothingLeft(DataError):
    """Every episode had a problem; in collecting mode the problems are already in the list."""


def sizes_of(episode: Episode) -> tuple[tuple[str, int], ...]:
    """Values per step of the actions and of each observation part."""
    return ("actions", episode.actions.shape[1]), *((part, values.shape[1]) for part, values in episode.observations.items())


def skip(name: str) -> str:
    """The setting that leaves one episode out."""
    return fixes.setting(skip=[name.rsplit("/", 1)[-1]])


def refuse(file: str, options: Options, key: str, why: str) -> None:
    """DataError when an option is set that this source has no use for: it must not be ignored in silence."""
    given = fixes.given(options)
    if key in given:
        fix = fixes.check(file, {name: value for name, value in given.items() if name != key})
        raise DataError(f"{file}: data.{key} is {fixes.written(given[key])}, but {why}", fix)
