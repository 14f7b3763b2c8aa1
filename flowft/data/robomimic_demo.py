"""One demonstration of a robomimic file: which of its arrays are used, whether they fit together, and the episode they make.

Only what is used can be wrong: `states`, `dones`, groups of simulator states and unknown arrays may be there, or not, in any
shape. What all demonstrations lack is found out first (`survey`), so that it is told once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from flowft.data import fixes, success
from flowft.data.check import Inspector, skip
from flowft.data.files import names, text
from flowft.data.hdf5_faults import link_gone, sources_gone
from flowft.data.spec import Episode

USUAL = {"actions", "obs", "next_obs", "rewards"}


@dataclass(frozen=True)
class Layout:
    """What the file's demonstrations have in common."""

    parts: list[str]
    next_obs: bool  # the state after the last action is stored
    rewards: bool
    counted: bool  # num_samples tells how many rows there should be


class Marks(Mapping[str, Any]):
    """Arrays and attributes of a demonstration that `data.success` may name; read when asked for."""

    def __init__(self, demo: h5py.Group, inspector: Inspector) -> None:
        self.demo, self.inspector = demo, inspector

    def __getitem__(self, key: str) -> Any:
        values = self.demo[key][()] if isinstance(self.demo.get(key), h5py.Dataset) else self.demo.attrs[key]
        return self.inspector.identity.add(f"{self.demo.name}/{key}", np.asarray(values))

    def __iter__(self) -> Iterator[str]:
        yield from (key for key in self.demo if key not in USUAL and isinstance(self.demo.get(key), h5py.Dataset))
        yield from self.demo.attrs

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and (isinstance(self.demo.get(key), h5py.Dataset) or key in self.demo.attrs)


def survey(inspector: Inspector, data: h5py.Group, chosen: list[str], parts: list[str]) -> Layout | None:
    """What to read of each demo. None, after a report, where an observation part is in no demo or a picture in all."""
    demos = [demo for name in chosen if isinstance(demo := data.get(name), h5py.Group)]
    inspector.parts = parts
    if demos:
        inspector.marks = [key for key in Marks(demos[0], inspector) if key not in ("num_samples", "model_file", "ep_meta", "states")]
    if not _usable(inspector, demos, parts):
        return None
    in_next = [part for part in parts if any(f"next_obs/{part}" in demo for demo in demos)]
    if in_next and len(in_next) < len(parts):
        lacking = ", ".join(part for part in parts if part not in in_next)
        inspector.notes.append(f"next_obs has no {lacking}: it is not used, and the state after a last action is unknown")
    rewards = not demos or any("rewards" in demo for demo in demos)
    if not rewards:
        _without_rewards(inspector, demos)
    counts = [(text(demo.attrs["num_samples"]), demo.get("actions")) for demo in demos if "num_samples" in demo.attrs]
    wrong = [said for said, actions in counts if isinstance(actions, h5py.Dataset) and actions.ndim and not _counts(said, len(actions))]
    if wrong and len(wrong) == len(demos) > 1:
        inspector.notes.append("num_samples is not the number of rows in any demonstration: it is ignored")
    return Layout(parts, len(in_next) == len(parts), rewards, counted=len(wrong) < len(demos) or len(demos) == 1)


def _without_rewards(inspector: Inspector, demos: list[h5py.Group]) -> None:
    if inspector.rule is not None and inspector.rule.kind == "reward":
        fix = fixes.setting(success="last")
        inspector.report("data", f"data.success is {inspector.options.success!r}, but there are no rewards in the file", fix)
    elif inspector.rule is None and all("success" in demo.attrs for demo in demos):
        inspector.rule = success.Rule.parse("success")
        inspector.notes.append("no rewards in the file: a demonstration's attribute success tells its last step (data.success=success)")
    else:
        inspector.without_rewards("no rewards in the file")


def _usable(inspector: Inspector, demos: list[h5py.Group], parts: list[str]) -> bool:
    """Has at least one demo each part, as a vector?"""
    groups = [obs for demo in demos if isinstance(obs := demo.get("obs"), h5py.Group)]
    if not groups:
        return True  # each demo will be told to lack it
    absent = [part for part in parts if all(obs.get(part) is None for obs in groups)]
    pictures = [part for part in parts if part not in absent and all(getattr(obs.get(part), "ndim", 3) > 2 for obs in groups)]
    there = vectors(groups[0])
    named = [part for part in inspector.options.observation if part not in (*absent, *pictures)]
    fix = fixes.setting(observation=named or there) if there else None
    if absent:
        gone = link_gone(groups[0], absent[0])
        said = gone or f"missing in all demonstrations (there are: {', '.join(names(groups[0])) or 'none'})"
        inspector.report(f"data/*/obs/{'+'.join(absent)}", said, fix)
    if pictures:
        shape = getattr(groups[0].get(pictures[0]), "shape", "of a group")
        what = f"shape {shape}: images are not read yet, only low-dimensional parts"
        inspector.report(f"data/*/obs/{'+'.join(pictures)}", what, fix)
    return not absent and not pictures


def vectors(obs: h5py.Group, prefix: str = "") -> list[str]:
    """Names of all parts that are vectors or single numbers, those in nested groups as a/b."""
    found: list[str] = []
    for key in obs:
        item = obs.get(key)
        if isinstance(item, h5py.Group):
            found += vectors(item, f"{prefix}{key}/")
        elif isinstance(item, h5py.Dataset) and item.ndim in (1, 2) and item.dtype.kind in "fiub":
            found.append(f"{prefix}{key}")
    return found


def read(inspector: Inspector, data: h5py.Group, name: str, layout: Layout) -> None:
    """Check one demo's keys and lengths and hand its episode to the inspector."""
    at, demo = f"data/{name}", data.get(name)
    if not isinstance(demo, h5py.Group):
        inspector.report(at, link_gone(data, name) or "not a group of arrays", skip(name))
        return
    if not _complete(inspector, demo, at, layout):
        return
    keys = ["actions", *(["rewards"] if layout.rewards and inspector.uses_rewards else []), *(f"obs/{part}" for part in layout.parts)]
    keys += [f"next_obs/{part}" for part in layout.parts] if layout.next_obs and "next_obs" in demo else []
    arrays = {key: demo[key] for key in keys}
    if not _arrays(inspector, arrays, at):
        return
    rows, lengths = len(arrays["actions"]), {key: len(array) for key, array in arrays.items()}
    if "next_obs" not in demo:  # then obs may hold the last state as well
        lengths = {key: rows if key.startswith("obs/") and n == rows + 1 else n for key, n in lengths.items()}
    if not inspector.same_length({f"{at}/{key}": n for key, n in lengths.items()}, name):
        return
    if layout.counted and not _counts(said := text(demo.attrs.get("num_samples", rows)), rows):
        inspector.report(at, f"num_samples is {said}, but actions has {rows} rows", skip(name))
        return
    episode = _episode(inspector, at, arrays, layout)
    marks = Marks(demo, inspector)
    inspector.accept(episode, lambda key: f"{at}/{key}" if key in ("actions", "rewards") else f"{at}/obs/{key}", marks=marks)


def _complete(inspector: Inspector, demo: h5py.Group, at: str, layout: Layout) -> bool:
    """Are all keys there? next_obs may be absent, but not by halves."""
    needed = ["actions", *(["rewards"] if layout.rewards and inspector.uses_rewards else []), "obs"]
    missing = [key for key in needed if (found := demo.get(key)) is None or (key == "obs" and not isinstance(found, h5py.Group))]
    for key in missing:
        inspector.report(f"{at}/{key}", link_gone(demo, key) or "missing", skip(at))
    if "obs" in missing:
        return False
    parts_missing = [part for part in layout.parts if demo["obs"].get(part) is None]
    for part in parts_missing:
        choice = f"missing (there are: {', '.join(names(demo['obs'])) or 'none'})"
        inspector.report(f"{at}/obs/{part}", link_gone(demo["obs"], part) or choice, skip(at))
    halves = [part for part in layout.parts if layout.next_obs and "next_obs" in demo and demo.get(f"next_obs/{part}") is None]
    for part in halves:
        inspector.report(f"{at}/next_obs/{part}", "missing, though other parts of next_obs are there", skip(at))
    return not (missing or parts_missing or halves)


def _arrays(inspector: Inspector, arrays: Mapping[str, Any], at: str) -> bool:
    """Is each key an array with rows and no picture, and next_obs of the same width as obs?"""
    wrong = {key: "not an array with a row for each step" for key, a in arrays.items() if not isinstance(a, h5py.Dataset) or not a.ndim}
    for key, array in arrays.items():
        now = key.removeprefix("next_")
        if key in wrong or now in wrong:
            continue
        if gone := sources_gone(array):
            wrong[key] = gone
        elif key.startswith("obs/") and array.ndim > 2:
            wrong[key] = f"shape {array.shape}: images are not read yet, only low-dimensional parts"
        elif key.startswith("next_obs/") and array.shape[1:] != arrays[now].shape[1:]:
            wrong[key] = f"has shape {array.shape}, but {at}/{now} has {arrays[now].shape}"
    for key, what in wrong.items():
        inspector.report(f"{at}/{key}", what, skip(at))
    return not wrong


def _episode(inspector: Inspector, at: str, arrays: Mapping[str, Any], layout: Layout) -> Episode:
    """`dones` is 1 on every success state, so it marks no end: a demo is terminal when its last state is a success."""

    def stored(key: str, rows: Any = ()) -> Any:
        return inspector.identity.add(f"{at}/{key}", arrays[key][rows])

    observations = {part: _column(stored(f"obs/{part}")) for part in layout.parts}
    steps = len(arrays["actions"])
    if layout.next_obs and f"next_obs/{layout.parts[0]}" in arrays and steps:
        last = slice(-1, None)
        observations = {part: np.concatenate([rows, _column(stored(f"next_obs/{part}", last))]) for part, rows in observations.items()}
    actions = stored("actions")
    if "rewards" not in arrays:
        return Episode(at, observations, actions, np.zeros(steps, np.float32), terminated=False, success=None)
    rewards = stored("rewards")
    rewards = rewards[:, 0] if rewards.ndim == 2 and rewards.shape[1] == 1 else rewards
    ends, succeeded = success.from_rewards(rewards)
    return Episode(at, observations, actions, rewards, terminated=ends, success=succeeded)


def _column(values: Any) -> Any:
    """A part that is one number a step, as (T, 1)."""
    return values[:, None] if values.ndim == 1 else values


def _counts(said: str, rows: int) -> bool:
    return said in (str(rows), f"{rows}.0")
