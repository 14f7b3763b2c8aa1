"""OGBench npz: observations, actions, terminals (+ qpos, qvel, button_states); no rewards, `<name>-val.npz` beside it.

`terminals` is 1 on the last STATE of a trajectory: that row's action leads nowhere and is dropped. Rewards are those of the
singletask environment, by OGBench's own relabelling: reward t belongs to the state BEFORE action t, and the action taken in a
solved state ends the episode. So a trajectory is cut after that action and goes on as a new episode once the task is unsolved.

Ids: `ogbench/<name>` (cube-single-play, antmaze-large-navigate-singletask-task2-v0, …), looked for as <name>-v0.npz in
<datasets folder>/ogbench/ and ~/.ogbench/data/. Play data of the manipulation scenes are generated when they are missing.
"""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from flowft.data import fixes, ogbench_play, source
from flowft.data.check import Inspector, refuse, skip
from flowft.data.columns import Numbers, Spans, choose, clean, complete, flags, segments
from flowft.data.files import is_npz, open_npz
from flowft.data.source import Options, Problems
from flowft.data.spec import Dataset, EnvSpec, Episode
from flowft.errors import DataError, MissingExtra

NAME = "ogbench"
FORMAT = "OGBench npz"
READS = "OGBench 1.x play and navigation sets, as their single-task environments; no pixels"
USED = {"observations", "actions", "terminals", "qpos", "qvel", "button_states"}
SIZES, BODIES = ("medium", "large", "giant"), ("point", "ant", "humanoid")
MAZES = [f"{body}maze-{size}-{kind}" for body in BODIES for size in SIZES for kind in ("navigate", "stitch")]
SHAPE = re.compile(
    r"(?P<scene>[a-z0-9]+(?:-(?:single|double|triple|quadruple|octuple|medium|large|giant|teleport|arena|\d+x\d+))?)"
    r"-(?P<kind>play|noisy|navigate|stitch|explore)(?:-singletask)?(?:-(?P<task>task\d))?(?:-v0)?"
)


def known() -> list[str]:
    played = ogbench_play.known()
    return [f"ogbench/{name}" for name in [*played, *(name.removesuffix("play") + "noisy" for name in played), *MAZES]]


def stem(dataset_id: str) -> str:
    """The dataset of an id without task and version: ogbench/cube-single-play-singletask-task2-v0 -> cube-single-play."""
    if not (found := SHAPE.fullmatch(dataset_id.partition("/")[2])):
        raise source.bad_id(dataset_id, known())
    return f"{found['scene']}-{found['kind']}"


def here(dataset_id: str) -> Path | None:
    """The training file, if it is in one of the folders."""
    name = stem(dataset_id)
    candidates = [home / file for home in homes() for file in (f"{name}-v0.npz", f"{name}.npz")]
    return next((path for path in candidates if path.is_file()), None)


def locate(dataset_id: str) -> Path:
    """The training file of an id; made first when OGBench's oracles can make it here."""
    if found := here(dataset_id):
        return found
    name = stem(dataset_id)
    path = homes()[0] / f"{name}-v0.npz"
    if name in ogbench_play.known():
        print(f"{path} is not there yet: generating it", file=sys.stderr)
        return ogbench_play.generate(name, path)
    raise DataError(f"{dataset_id} is not here: no {path}", f"flowft data download ogbench/{name}")


def homes() -> list[Path]:
    """Folders in which files may lie, the first being where downloads and generated files go."""
    return [source.folder() / NAME, Path.home() / ".ogbench" / "data"]


def matches(path: Path) -> bool:
    """An npz file with observations, actions and terminals."""
    if not is_npz(path):
        return False
    with open_npz(path) as arrays:
        return "observations" in arrays and "traj_lengths" not in arrays


def read(path: Path, dataset_id: str, problems: Problems, options: Options) -> Dataset:
    """All trajectories, with the rewards of the singletask environment that the id or the file's name says."""
    inspector = Inspector(str(path), problems, options)
    if options.demos not in (None, "all"):
        raise DataError(f"{path}: OGBench files have no masks, but data.demos is {options.demos!r}", fixes.setting(demos="all"))
    refuse(str(path), options, "episode_steps", "terminals tell where an OGBench file's trajectories end")
    choose(inspector, ["observation"])
    inspector.whole = lambda piece: piece.partition(".")[0]
    with open_npz(path) as arrays:
        inspector.marks = [key for key in arrays if key not in USED]
        wanted = ("observations", "actions", "terminals", "qpos", "button_states", inspector.success_key)
        columns = {key: inspector.identity.add(key, arrays[key]) for key in wanted if key is not None and key in arrays}
        sound = complete(inspector, columns, ("observations", "actions", "terminals"), list(arrays))
    environment = _environment(dataset_id, path)
    if sound and columns["observations"].ndim > 2:
        inspector.report("observations", f"shape {columns['observations'].shape}: images are not read yet, only vectors")
    elif sound:
        _episodes(inspector, columns, _rewards(inspector, environment, columns) if inspector.uses_rewards else None)
    return inspector.dataset(dataset_id, NAME, FORMAT, inspector.identity.hexdigest(), environment)


def _episodes(inspector: Inspector, columns: dict[str, Numbers], labels: tuple[Numbers, Numbers] | None) -> None:
    """Row t holds state t and action t. `labels`: reward and success of each row's state."""
    terminals, actions, states = flags(inspector, "terminals", columns["terminals"]), columns["actions"], columns["observations"]
    rewards, solved = labels or (np.zeros(len(terminals), np.float32), np.zeros(len(terminals), bool))
    spans = {f"episode_{i}": span for i, span in enumerate(segments(terminals))}
    chosen = inspector.wanted(list(spans))
    if not terminals[-1] and (unfinished := list(spans)[-1]) in chosen:
        what = "not set on the last row: the file ends in the middle of a trajectory"
        inspector.report("terminals", what, skip(unfinished) if len(spans) > 1 else None)
        return
    pieces, left_out = [], 0
    for name in chosen:
        start, stop = spans[name]
        cuts, lost = _cut(solved[start:stop])
        left_out += lost
        pieces += [(name if len(cuts) == 1 else f"{name}.{i}", start + first, start + last) for i, (first, last) in enumerate(cuts)]
    where = np.array([piece[1:] for piece in pieces], dtype=np.int64).reshape(-1, 2)
    sound = clean(inspector, Spans([piece[0] for piece in pieces], where, where + np.array([0, 1])), actions, states, rewards)
    key = inspector.success_key
    for (name, begin, end), good in zip(pieces, sound.tolist(), strict=True):
        done = bool(solved[begin:end][-1:].any())
        success = None if labels is None else done
        episode = Episode(name, {"observation": states[begin : end + 1]}, actions[begin:end], rewards[begin:end], done, success)
        marks = {key: columns[key][begin:end]} if key is not None and key in columns else {}
        inspector.accept(episode, lambda key: key if key == "actions" else "observations", row=begin, marks=marks, clean=good)
    if left_out:
        inspector.notes.append(f"left out {left_out} actions of solved states, where the task is already over")


def _cut(solved: Numbers) -> tuple[list[tuple[int, int]], int]:
    """[first, last) actions of each piece of one trajectory (T+1 states): from an unsolved state to the action in the first solved one.

    Also the number of actions in no piece: the others of solved states, and a single action left at the end. A trajectory
    that is never solved is one piece, however short, so that the checks see it.
    """
    actions = len(solved) - 1
    if not solved[:actions].any():
        return [(0, actions)], 0
    pieces, first = [], None
    for t in range(actions):
        if first is None and not solved[t]:
            first = t
        if first is not None and (solved[t] or t + 1 == actions):
            pieces.append((first, t + 1))
            first = None
    pieces = [(first, last) for first, last in pieces if last - first >= 2]
    return pieces, actions - sum(last - first for first, last in pieces)


def _environment(dataset_id: str, path: Path) -> EnvSpec | None:
    """cube-single-play[-singletask[-task2]] -> the singletask environment with this dataset's name."""
    name = dataset_id.partition("/")[2] if dataset_id.startswith("ogbench/") else path.stem.removesuffix("-val").replace("-val-v", "-v")
    if not (found := SHAPE.fullmatch(name)):
        return None
    task = f"-{found['task']}" if found["task"] else ""
    return EnvSpec("ogbench", f"{found['scene']}-{found['kind']}-singletask{task}-v0")


def _rewards(inspector: Inspector, environment: EnvSpec | None, columns: dict[str, Numbers]) -> tuple[Numbers, Numbers] | None:
    """Reward and success of each row's state in the environment's task; None (rewards 0) where they cannot be known."""
    if environment is None or "qpos" not in columns:
        missing = "the file's name says no OGBench task" if environment is None else "the file has no qpos"
        inspector.without_rewards(missing)
        return None
    try:
        import ogbench
        from ogbench.relabel_utils import relabel_dataset
    except ImportError as error:
        raise MissingExtra("ogbench", "ogbench", f"{inspector.file}: computing its rewards") from error
    rows: dict[str, Any] = {key: columns[key] for key in ("qpos", "button_states") if key in columns}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            env = ogbench.make_env_and_datasets(environment.id, env_only=True)
            relabel_dataset(environment.id, env, rows)
            env.close()
    except Exception as error:  # an unknown scene, qpos of another scene: whatever OGBench says, in one line
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        what = f"{inspector.file}:qpos: OGBench cannot compute the rewards of {environment.id}: {reason}"
        raise DataError(what, fixes.setting(success="last")) from error
    return rows["rewards"], rows["masks"] == 0
