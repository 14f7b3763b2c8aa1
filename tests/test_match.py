"""Do data and environment belong together: each fault is named with its part or axis and mended by its command; honest data pass."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from flowft import recipe
from flowft.cli.main import cli
from flowft.data import scripted, source
from flowft.data.change import changed
from flowft.data.source import Options
from flowft.data.spec import Dataset, EnvSpec, Episode
from flowft.envs import base
from flowft.errors import DataError, UsageError
from flowft.train.match import match

pytest.importorskip("robosuite")

Fault = Callable[[Episode], Episode]
REAL = Path(os.environ.get("FLOWFT_REAL_DATA", "nowhere"))
ALL = Options(demos="all")


@pytest.fixture(scope="module")
def lift_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted.generate("lift", tmp_path_factory.mktemp("match") / "lift.hdf5", episodes=8, progress=False)


@pytest.fixture(scope="module")
def lift(lift_file: Path) -> Dataset:
    return source.load(str(lift_file), ALL)


@pytest.fixture(scope="module")
def stateless(lift_file: Path) -> Dataset:
    return source.load(str(rewritten(lift_file, "stateless", lambda demo: demo.__delitem__("states"))), ALL)


@pytest.fixture(scope="module")
def env(lift: Dataset) -> base.FlowEnv:
    assert lift.env is not None
    return base.make(lift.env)


def rewritten(file: Path, name: str, change: Callable[[Any], Any], env_args: dict[str, Any] | None = None) -> Path:
    """A copy of the file with each demo changed in place."""
    path = file.with_name(f"{name}.hdf5")
    path.write_bytes(file.read_bytes())
    with h5py.File(path, "r+") as copy:
        for demo in copy["data"].values():
            change(demo)
        if env_args is not None:
            copy["data"].attrs["env_args"] = json.dumps({**json.loads(copy["data"].attrs["env_args"]), **env_args})
    return path


def faulty(dataset: Dataset, fault: Fault) -> Dataset:
    return replace(dataset, episodes=tuple(fault(episode) for episode in dataset.episodes))


def seen(part: str, columns: list[int], factor: float) -> Fault:
    """Columns of an observation part times a factor."""

    def fault(episode: Episode) -> Episode:
        values = np.array(episode.observations[part])
        values[:, columns] *= factor
        return replace(episode, observations={**episode.observations, part: values})

    return fault


def ordered(part: str, order: list[int]) -> Fault:
    return lambda e: replace(e, observations={**e.observations, part: e.observations[part][:, order]})


def done(columns: list[int], factor: float) -> Fault:
    """Columns of the actions times a factor."""

    def fault(episode: Episode) -> Episode:
        actions = np.array(episode.actions)
        actions[:, columns] *= factor
        return replace(episode, actions=np.clip(actions, -1, 1))

    return fault


def crossed(order: list[int]) -> Fault:
    return lambda e: replace(e, actions=e.actions[:, order])


def absolute(episode: Episode) -> Episode:
    """Positions as targets, as robomimic's *_abs files have them."""
    targets = np.array(episode.actions)
    targets[:, :3] = episode.observations["robot0_eef_pos"][:-1] + 0.05 * targets[:, :3]
    return replace(episode, actions=targets)


def late(episode: Episode) -> Episode:
    return replace(episode, actions=np.roll(episode.actions, 2, axis=0))


SEEN = {  # fault, the words that name the part and the cause
    "cube's sign": (seen("object", [0, 1, 2], -1), r"cube_pos has the other sign "),
    "hand's sign in z": (seen("robot0_eef_pos", [2], -1), r"robot0_eef_pos has the other sign in z"),
    "hand wxyz": (ordered("robot0_eef_quat", [3, 0, 1, 2]), r"robot0_eef_quat is a quaternion in the order wxyz"),
    "cube wxyz": (ordered("object", [0, 1, 2, 6, 3, 4, 5, 7, 8, 9]), r"cube_quat is a quaternion in the order wxyz"),
    "millimetres": (seen("object", [0, 1, 2], 1000.0), r"cube_pos is in millimetres"),
    "hand's axes": (ordered("robot0_eef_pos", [1, 0, 2]), r"robot0_eef_pos has its values in another order"),
    "order of the objects": (ordered("object", [7, 8, 9, 3, 4, 5, 6, 0, 1, 2]), r"order"),
}
DONE = {
    "x": (done([0], -1), r"action 0 \(x\) has the other sign"),
    "z": (done([2], -1), r"action 2 \(z\) has the other sign"),
    "rotation": (done([4], -1), r"action 4 \(rotation about y\) has the other sign"),
    "gripper": (done([6], -1), r"action 6 \(gripper\) has the other sign"),
    "half": (done([0, 1, 2, 3, 4, 5], 0.5), r"a recorded action moves (2|1\.9) times as far"),
    "crossed": (crossed([0, 2, 1, 3, 4, 5, 6]), r"action 1 \(y\) and action 2 \(z\) are in each other's place"),
}


def errors(dataset: Dataset, env: base.FlowEnv) -> list[match.Finding]:
    assert dataset.env is not None
    return [finding for finding in match.findings(dataset, dataset.env, env) if finding.severity == "error"]


def mended(dataset: Dataset, fix: str | None) -> Dataset:
    """What the offered command does to the data."""
    words = shlex.split(fix or "")
    assert words[0] == "--set"
    options = recipe.build(Options, recipe.from_assignments([words[1]])["data"], "data")
    return changed(dataset, options.change or ())


@pytest.mark.parametrize("stored", [True, False], ids=["states", "no states"])
def test_honest_data_pass(lift: Dataset, stateless: Dataset, env: base.FlowEnv, stored: bool) -> None:
    dataset = lift if stored else stateless
    assert dataset.env is not None
    assert match.findings(dataset, dataset.env, env) == []


@pytest.mark.parametrize("stored", [True, False], ids=["states", "no states"])
@pytest.mark.parametrize("fault", SEEN)
def test_a_part_in_another_convention_is_named(lift: Dataset, stateless: Dataset, env: base.FlowEnv, fault: str, stored: bool) -> None:
    change, words = SEEN[fault]
    wrong = faulty(lift if stored else stateless, change)
    found = errors(wrong, env)
    assert found and re.search(words, found[0].what), found
    if "data.change" in (found[0].fix or ""):
        assert errors(mended(wrong, found[0].fix), env) == []


@pytest.mark.parametrize("stored", [True, False], ids=["states", "no states"])
@pytest.mark.parametrize("fault", DONE)
def test_an_action_in_another_convention_is_named(lift: Dataset, stateless: Dataset, env: base.FlowEnv, fault: str, stored: bool) -> None:
    change, words = DONE[fault]
    wrong = faulty(lift if stored else stateless, change)
    found = errors(wrong, env)
    assert len(found) == 1 and re.search(words, found[0].what), found
    assert errors(mended(wrong, found[0].fix), env) == []


@pytest.mark.parametrize("stored", [True, False], ids=["states", "no states"])
def test_actions_twice_as_large_are_mended_by_the_controller(lift: Dataset, stateless: Dataset, env: base.FlowEnv, stored: bool) -> None:
    found = errors(faulty(lift if stored else stateless, done([0, 1, 2, 3, 4, 5], 2.0)), env)
    assert len(found) == 1 and re.search(r"moves 0\.\d+ times as far", found[0].what), found


@pytest.mark.parametrize("stored", [True, False], ids=["states", "no states"])
def test_absolute_actions_need_an_absolute_controller(lift: Dataset, stateless: Dataset, env: base.FlowEnv, stored: bool) -> None:
    found = errors(faulty(lift if stored else stateless, absolute), env)
    assert len(found) == 1 and "actions are absolute in the data" in found[0].what
    kwargs = recipe.from_assignments([shlex.split(found[0].fix or "")[1]])["env_kwargs"]
    assert kwargs["controller_configs"]["body_parts"]["right"]["input_type"] == "absolute"


def test_the_absolute_controller_offered_repeats_absolute_actions(lift_file: Path) -> None:
    """Whole targets (position and rotation vector), as robomimic's *_abs files have them: the fix makes every step exact."""
    from scipy.spatial.transform import Rotation

    parts = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object", "robot0_eef_quat_site")

    def whole(episode: Episode) -> Episode:
        targets = np.array(absolute(episode).actions)
        now = Rotation.from_quat(episode.observations["robot0_eef_quat_site"][:-1])
        targets[:, 3:6] = (Rotation.from_rotvec(0.5 * episode.actions[:, 3:6]) * now).as_rotvec()
        return replace(episode, actions=targets)

    dataset = faulty(source.load(str(lift_file), replace(ALL, observation=parts)), whole)
    assert dataset.env is not None
    (found,) = [finding for finding in match.compare(dataset, dataset.env) if finding.severity == "error"]
    kwargs = recipe.from_assignments([shlex.split(found.fix or "")[1]])["env_kwargs"]
    assert match.compare(dataset, replace(dataset.env, kwargs={**dataset.env.kwargs, **kwargs})) == []


def test_increments_need_a_controller_of_increments(lift: Dataset) -> None:
    from flowft.envs import robosuite_controllers

    assert lift.env is not None
    kwargs = {**lift.env.kwargs, **json.loads(robosuite_controllers.with_mode(lift.env, absolute=True))}
    found = [f for f in match.compare(lift, replace(lift.env, kwargs=kwargs)) if f.severity == "error"]
    assert found and "actions are increments in the data" in found[0].what


@pytest.mark.parametrize("stored", [True, False], ids=["states", "no states"])
def test_actions_beside_the_wrong_rows_are_told(lift: Dataset, stateless: Dataset, env: base.FlowEnv, stored: bool) -> None:
    found = errors(faulty(lift if stored else stateless, late), env)
    assert len(found) == 1 and "the actions stand 2 rows too late" in found[0].what


def test_normalised_observations_are_told(stateless: Dataset, env: base.FlowEnv) -> None:
    rows = np.concatenate([episode.observations["robot0_eef_pos"] for episode in stateless.episodes])

    def normal(episode: Episode) -> Episode:
        values = (episode.observations["robot0_eef_pos"] - rows.mean(0)) / rows.std(0)
        return replace(episode, observations={**episode.observations, "robot0_eef_pos": values})

    found = errors(faulty(stateless, normal), env)
    assert len(found) == 1 and found[0].what.startswith("robot0_eef_pos is normalised")


def test_another_control_rate_is_read_from_the_states(lift_file: Path, env: base.FlowEnv) -> None:
    def halved(demo: Any) -> None:
        keys: list[str] = []
        demo.visititems(lambda key, item: keys.append(key) if isinstance(item, h5py.Dataset) else None)
        for key in keys:
            values = demo[key][()][::2]
            del demo[key]
            demo[key] = values
        for key in [key for key in keys if key.startswith("next_obs/")]:
            del demo[key]
        demo.attrs["num_samples"] = len(demo["actions"])

    found = errors(source.load(str(rewritten(lift_file, "slow", halved)), ALL), env)
    assert len(found) == 1 and "10 Hz" in found[0].what and "20 Hz" in found[0].what
    assert "env_kwargs={control_freq: 10}" in (found[0].fix or "")


@pytest.mark.parametrize("stored", [True, False], ids=["states", "no states"])
def test_a_wrong_version_in_env_args_is_told_and_mended(lift_file: Path, stored: bool) -> None:
    """The file that used to pass every check and clone to 0/50: 1.5.1 data that say 1.4.1."""

    def change(demo: Any) -> None:
        if not stored:
            del demo["states"]

    path = rewritten(lift_file, f"says-old-{stored}", change, {"env_version": "1.4.1"})
    ran = CliRunner().invoke(cli, ["data", "check", str(path)])
    assert ran.exit_code == 1
    assert "gripper_to_cube_pos has the other sign" in ran.output and "said to be robosuite 1.4.1" in ran.output
    version = re.search(r"fix: flowft data check .* --set data\.env_version=(\S+)", ran.output)
    assert version is not None
    right = source.load(str(path), replace(ALL, env_version=version[1]))
    assert match.require_match(right, right.env, Options()) == []


def test_old_data_that_say_1_5_are_told(lift: Dataset, env: base.FlowEnv) -> None:
    found = errors(faulty(lift, seen("object", [7, 8, 9], -1)), env)
    assert len(found) == 1 and found[0].fix == "--set data.env_version=1.4.1"


def test_another_task_of_the_same_sizes_is_told(tmp_path: Path) -> None:
    can = scripted.generate("can", tmp_path / "can.hdf5", episodes=2, progress=False)
    for path in (can, rewritten(can, "stateless", lambda demo: demo.__delitem__("states"))):
        ran = CliRunner().invoke(cli, ["data", "check", str(path), "--env", "NutAssemblySquare"])
        assert ran.exit_code == 1 and "another task" in ran.output, ran.output
    ran = CliRunner().invoke(cli, ["data", "check", str(can)])
    assert ran.exit_code == 0 and "compared with PickPlaceCan" in ran.output


def test_what_follows_is_the_users_choice(lift: Dataset) -> None:
    wrong = faulty(lift, seen("object", [0, 1, 2], -1))
    state = np.random.get_state()[1].copy()
    with pytest.raises(DataError, match="cube_pos has the other sign"):
        match.require_match(wrong, wrong.env, Options())
    warned = match.require_match(wrong, wrong.env, Options(match="warn"))
    assert len(warned) == 1 and "cube_pos has the other sign" in warned[0]
    assert match.require_match(wrong, wrong.env, Options(match="off")) == []
    assert match.require_match(wrong, None, Options()) == []
    assert (np.random.get_state()[1] == state).all()


def test_hopper_with_an_inverted_joint(tmp_path: Path) -> None:
    """Without names and without stored states: a long vector of joints that answer to torques."""
    env = base.make(EnvSpec("gymnasium", "Hopper-v5"))
    generator, episodes = np.random.default_rng(0), []
    for seed in range(8):
        rows, actions = [env.reset(seed=100 + seed)[0]], []
        for _ in range(25):
            actions.append(generator.uniform(-1, 1, 3).astype(np.float32))
            rows.append(env.step(actions[-1])[0])
        episodes.append(Episode(f"e{seed}", {"observation": np.asarray(rows)}, np.asarray(actions), np.zeros(25), False))
    spec = EnvSpec("gymnasium", "Hopper-v5")
    honest = Dataset("made", "npz", "made here", str(tmp_path / "none"), "0", env.flow_spec, spec, tuple(episodes))
    assert match.compare(honest, spec) == []
    found = match.compare(faulty(honest, done([1], -1)), spec)
    assert len(found) == 1 and "action 1 has the other sign" in found[0].what


@pytest.mark.skipif(not REAL.is_dir(), reason="FLOWFT_REAL_DATA is not set")
@pytest.mark.parametrize(
    "file",
    ["robomimic/lift_ph_low_dim.3demos.hdf5", "robosuite/lift_v1.4.1/demo.hdf5", "d4rl/door-human-v1.hdf5", "d4rl/hopper_medium-v2.hdf5",
     "d4rl/walker2d_medium-v2.hdf5"],
)  # fmt: skip
def test_real_data_are_at_most_noted(file: str) -> None:
    dataset = source.load(str(REAL / file), Options(clip_actions=True))
    assert dataset.env is not None
    assert [finding for finding in match.compare(dataset, dataset.env) if finding.severity == "error"] == []


@pytest.mark.parametrize("change", ["object", "object[9", "objekt*-1", "object[40]*-1", "object[1,1]", "object*x"])
def test_a_change_that_is_none_is_refused(change: str) -> None:
    episode = Episode("demo_0", {"object": np.ones((3, 10))}, np.ones((2, 2)), np.zeros(2), True)
    data = Dataset("made", "test", "made here", "nowhere", "0", None, None, (episode,))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"data\.change"):
        changed(data, [change])


def test_states_that_belong_to_no_step_are_not_used(lift_file: Path) -> None:
    """More rows than actions, as a public set has them."""

    def longer(demo: Any) -> None:
        states = demo["states"][()]
        del demo["states"]
        demo["states"] = np.concatenate([np.zeros((50, states.shape[1])), states])

    path = rewritten(lift_file, "longer", longer, {})
    ran = CliRunner().invoke(cli, ["data", "check", str(path)])
    assert ran.exit_code == 0, ran.output
