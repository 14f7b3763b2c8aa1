"""As a Minari dataset, written by the minari package. Its layout has a state after the last action, always."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from flowft.data import minari_source
from flowft.data.export import OURS, facts, has_last_state
from flowft.data.spec import Dataset, EnvSpec, Episode
from flowft.errors import MissingExtra

NAMED = re.compile(r"[\w-]+-v\d+")


def write(dataset: Dataset, part: Path, out: Path) -> list[str]:
    """The folder `part`, which will lie at `out` (and is named after it).

    Where the last state is unknown, it is repeated at a terminal end, where nothing is learnt from it; elsewhere the last action is
    left out, as nobody knows where it led.
    """
    try:
        from minari.data_collector.episode_buffer import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage
    except ImportError as error:
        raise MissingExtra("minari", "dev", "writing Minari's layout") from error
    whole = [_with_last_state(episode) for episode in dataset.episodes]
    kept = [episode for episode in whole if len(episode) > 1]
    first = kept[0]
    spec = _gym_spec(dataset.env)
    (part / "data").mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that author, e-mail and the like are not said
        spaces = {"observation_space": _observation_space(dataset, first), "action_space": _action_space(dataset, first)}
        storage = MinariStorage.new(part / "data", env_spec=spec, data_format="hdf5", **spaces)
        storage.update_metadata({"dataset_id": _name(out), "minari_version": _version(), OURS: json.dumps(facts(dataset))})
        storage.update_episodes(EpisodeBuffer(**_buffer(dataset, i, episode)) for i, episode in enumerate(kept))
    return _said(dataset, len(dataset.episodes) - len(kept))


def _with_last_state(episode: Episode) -> Episode:
    if has_last_state(episode):
        return episode
    steps = len(episode)
    if episode.terminated:
        repeated = {part: np.concatenate([rows[:steps], rows[steps - 1 : steps]]) for part, rows in episode.observations.items()}
        return Episode(episode.name, repeated, episode.actions, episode.rewards, True, episode.success)
    rows = {part: rows[:steps] for part, rows in episode.observations.items()}
    return Episode(episode.name, rows, episode.actions[:-1], episode.rewards[:-1], False, episode.success)


def _said(dataset: Dataset, lost: int) -> list[str]:
    unknown = [episode for episode in dataset.episodes if not has_last_state(episode)]
    cut, repeated = sum(not episode.terminated for episode in unknown), sum(episode.terminated for episode in unknown)
    why = "as the state after it is not in the data, and Minari's layout has it always"
    out = [f"the last action of {cut} episodes is left out, {why}"] if cut else []
    out += [f"the last state of {repeated} terminal episodes is repeated, {why}"] if repeated else []
    return out + ([f"{lost} episodes had no step but that and are left out"] if lost else [])


def _buffer(dataset: Dataset, index: int, episode: Episode) -> dict[str, Any]:
    steps = len(episode)
    last = np.arange(steps) == steps - 1
    infos = {} if episode.success is None else {"success": np.r_[False, last & bool(episode.success)]}
    return {
        "id": index, "observations": _nested({part: episode.observations[part] for part, _ in dataset.spec.parts}),
        "actions": episode.actions, "rewards": episode.rewards, "terminations": last & episode.terminated,
        "truncations": last & (not episode.terminated), "infos": infos,
    }  # fmt: skip


def _nested(parts: dict[str, Any]) -> Any:
    """{"a/b": x} as {"a": {"b": x}}; one part alone that is called observation, as it is."""
    if list(parts) == ["observation"]:
        return parts["observation"]
    tree: dict[str, Any] = {}
    for name, value in parts.items():
        *groups, leaf = name.split("/")
        inside = tree
        for group in groups:
            inside = inside.setdefault(group, {})
        inside[leaf] = value
    return tree


def _observation_space(dataset: Dataset, episode: Episode) -> Any:
    from gymnasium import spaces

    def space(tree: Any) -> Any:
        if isinstance(tree, dict):
            return spaces.Dict({name: space(value) for name, value in tree.items()})
        return spaces.Box(-np.inf, np.inf, tree.shape[1:], tree.dtype if tree.dtype.kind == "f" else np.float64)

    return space(_nested({part: episode.observations[part] for part, _ in dataset.spec.parts}))


def _action_space(dataset: Dataset, episode: Episode) -> Any:
    from gymnasium import spaces

    kind = episode.actions.dtype if episode.actions.dtype.kind == "f" else np.dtype(np.float64)
    return spaces.Box(np.asarray(dataset.spec.action_low, kind), np.asarray(dataset.spec.action_high, kind), dtype=kind.type)


def _gym_spec(env: EnvSpec | None) -> Any:
    """Gymnasium's own description, for environments that it knows."""
    if env is None or env.family not in ("gymnasium", "robotics"):
        return None
    import gymnasium

    if env.family == "robotics":
        import gymnasium_robotics

        gymnasium.register_envs(gymnasium_robotics)
    try:
        spec = gymnasium.spec(env.id)
    except gymnasium.error.Error:
        return None
    spec.kwargs.update(env.kwargs)
    spec.max_episode_steps = env.max_steps or spec.max_episode_steps
    return spec


def _name(out: Path) -> str:
    """Minari's id: the place below its root, else the folder's name."""
    home = minari_source.homes()[0]
    inside = str(out.relative_to(home)) if out.is_relative_to(home) else out.name
    return inside if NAMED.fullmatch(inside.rpartition("/")[2]) else re.sub(r"[^\w-]", "-", out.name) + "-v0"


def _version() -> str:
    import minari

    return str(minari.__version__)
