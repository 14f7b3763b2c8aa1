"""robosuite: episodes that follow from the seed, dynamics that are robosuite's own to the bit, observations as files hold them."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from flowft.data.spec import EnvSpec
from flowft.envs import base
from flowft.errors import EnvError

pytest.importorskip("robosuite")
from flowft.envs import robosuite as family  # noqa: E402  (after the skip)
from flowft.envs import robosuite_controllers, robosuite_versions  # noqa: E402

PARTS = (("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("robot0_gripper_qpos", 2))
OLD_CONTROLLER = {  # as robomimic's v1.4.1 files have it
    "type": "OSC_POSE", "input_max": 1, "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5], "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150, "damping": 1, "impedance_mode": "fixed", "kp_limits": [0, 300], "damping_limits": [0, 10], "position_limits": None,
    "orientation_limits": None, "uncouple_pos_ori": True, "control_delta": True, "interpolation": None, "ramp_ratio": 0.2,
}  # fmt: skip
FRESH = """
import sys
sys.path.insert(0, {tests!r})
from flowft.data.spec import EnvSpec
from flowft.envs import base
env = base.make(EnvSpec("robosuite", "Lift"))  # the first to import robosuite, whose warnings must not show
from test_robosuite_env import fingerprint
print(fingerprint(env, 5))
"""


def fingerprint(env: base.FlowEnv, seed: int, steps: int = 12) -> str:
    """Digest of all observations and the final simulator state of one episode under fixed actions."""
    digest, generator = hashlib.sha256(env.reset(seed=seed)[0].tobytes()), np.random.default_rng(seed)
    for _ in range(steps):
        digest.update(env.step(generator.uniform(-1, 1, env.flow_spec.action_dim).astype(np.float32))[0].tobytes())
    digest.update(env.unwrapped.state().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def lift() -> base.FlowEnv:
    return base.make(EnvSpec("robosuite", "Lift"))


@pytest.mark.parametrize(("task", "objects", "limit"), [("Lift", 10, 300), ("PickPlaceCan", 14, 300), ("NutAssemblySquare", 14, 400)])
def test_a_task_observes_what_robomimic_files_hold(task: str, objects: int, limit: int) -> None:
    env = base.make(EnvSpec("robosuite", task))
    assert env.flow_spec.parts == (*PARTS, ("object", objects))
    assert (env.flow_spec.action_low, env.flow_spec.action_high) == ((-1.0,) * 7, (1.0,) * 7)
    assert (env.max_steps, env.success_ends) == (limit, True)
    assert env.reset(seed=1)[0].dtype == np.float32


def test_an_episode_follows_from_its_seed_whatever_came_before(lift: base.FlowEnv) -> None:
    first = fingerprint(lift, 5)
    assert fingerprint(lift, 6) != first
    fingerprint(lift, 7, steps=3)  # stopped in the middle
    np.random.seed(123)
    global_state = np.random.get_state()[1].tolist()
    assert fingerprint(lift, 5) == first
    assert np.random.get_state()[1].tolist() == global_state  # the caller's numpy is left alone


def test_an_episode_is_the_same_in_a_fresh_process(lift: base.FlowEnv) -> None:
    code = FRESH.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "robosuite WARNING" not in done.stderr
    assert done.stdout.strip() == fingerprint(lift, 5)


@pytest.mark.parametrize("settings", [{}, {"controller_configs": OLD_CONTROLLER}, {"lite_physics": False}], ids=["new", "old", "whole"])
def test_the_dynamics_are_robosuite_s_own_to_the_bit(settings: dict[str, Any]) -> None:
    import robosuite

    env = family.RobosuiteEnv("Lift", settings)
    assert env.sped_up == ("lite_physics" not in settings)
    plain = family._construct(robosuite, "Lift", copy.deepcopy({**family.default_kwargs(), **settings}))
    generator = np.random.default_rng(0)
    for seed in (3, 4):
        env.reset(seed=seed)
        with family._global_seed(int(np.random.default_rng(seed).integers(2**32))):
            plain.reset()
        for _ in range(25):  # down to the table, so that contacts are part of it
            action = np.append(generator.uniform(-1, 1, 2), [-1.0, *generator.uniform(-1, 1, 4)])
            _, reward, _, _, info = env.step(action)
            _, expected, _, _ = plain.step(action)
            np.testing.assert_array_equal(env.state(), plain.sim.get_state().flatten())
            assert (reward, info["success"]) == (expected, plain._check_success())


def test_observations_are_those_of_the_state_reached(lift: base.FlowEnv) -> None:
    """robosuite's own lag by some substeps; a file's are those of its states."""
    env = family.RobosuiteEnv("Lift", {})
    rows, states = [env.reset(seed=2)[0]], [env.state()]
    for _ in range(6):
        rows.append(env.step(np.array([1.0, 0.5, -1.0, 0.0, 0.0, 0.5, 1.0]))[0])
        states.append(env.state())
    rebuilt, rewards, successes = lift.unwrapped.observations_at(np.stack(states))
    for name, values in rebuilt.items():
        np.testing.assert_allclose(values, np.stack([row[name] for row in rows]), atol=1e-12)
    assert not rewards.any() and not successes.any()


def test_parts_are_chosen_by_name_and_a_wrong_name_says_which_was_meant() -> None:
    env = base.make(EnvSpec("robosuite", "Lift", observation=("object", "robot0_joint_pos")))
    assert env.flow_spec.parts == (("object", 10), ("robot0_joint_pos", 7))
    with pytest.raises(EnvError, match=r"'robot0_joint_poss' \(did you mean 'robot0_joint_pos'\?\)"):
        base.make(EnvSpec("robosuite", "Lift", observation=("robot0_joint_poss",)))
    with pytest.raises(EnvError, match=r"no task 'Lfit' \(did you mean 'Lift'\?\)"):
        base.make(EnvSpec("robosuite", "Lfit"))
    with pytest.raises(EnvError, match="cannot build Lift.*no_such_setting"):
        base.make(EnvSpec("robosuite", "Lift", {"no_such_setting": 1}))


def test_a_policy_cloned_from_a_1_4_file_sees_what_that_file_holds() -> None:
    new, old = (base.make(EnvSpec("robosuite", "Lift", versions={"robosuite": v})) for v in ("1.5.1", "1.4.1"))
    now, then = (env.reset(seed=1)[0][-10:] for env in (new, old))
    np.testing.assert_array_equal(now[:7], then[:7])
    np.testing.assert_array_equal(now[7:], -then[7:])
    assert all(robosuite_versions.before_1_5(version) for version in ("1.4.1", "1.2"))
    assert not any(robosuite_versions.before_1_5(version) for version in ("1.5.1", "2.0", "unknown", None))


def test_real_files_of_1_4_are_rebuilt_from_their_states() -> None:
    root = os.environ.get("FLOWFT_REAL_DATA")
    path = Path(root or "") / "robomimic" / "lift_ph_low_dim.3demos.hdf5"
    if root is None or not path.is_file():
        pytest.skip("FLOWFT_REAL_DATA does not name a folder with robomimic/lift_ph_low_dim.3demos.hdf5")
    with h5py.File(path) as file:
        settings = json.loads(file["data"].attrs["env_args"])["env_kwargs"]
        env = family.RobosuiteEnv("Lift", settings, made_with="1.4.1")
        demo = file["data/demo_1"]
        rebuilt, rewards, _ = env.observations_at(demo["states"][()])
        for name, values in rebuilt.items():
            np.testing.assert_allclose(values, demo[f"obs/{name}"][()], atol=1e-6)
        np.testing.assert_array_equal(rewards[1:], demo["rewards"][:-1])


def test_two_arms_come_first_robot_first() -> None:
    kwargs = {"robots": ["Panda", "Panda"], "env_configuration": "single-arm-opposed", "controller_configs": OLD_CONTROLLER}
    env = base.make(EnvSpec("robosuite", "TwoArmTransport", kwargs, versions={"robosuite": "1.4.1"}))
    second = tuple((name.replace("robot0", "robot1"), size) for name, size in PARTS)
    assert env.flow_spec.parts == (*PARTS, *second, ("object", 41))
    assert env.flow_spec.action_dim == 14
    both = env.reset(seed=0)[0][-41:]
    parts = env.unwrapped.all_parts()
    np.testing.assert_allclose(both[27:30], parts["gripper0_to_payload"], atol=1e-6)  # 1.5 puts the two flags here
    np.testing.assert_array_equal(both[39:], [*parts["payload_in_target_bin"], *parts["trash_in_trash_bin"]])


def test_rendering_without_mujoco_gl_is_an_error_and_no_abort(lift: base.FlowEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "_USER_GL", None)
    with pytest.raises(EnvError, match="MUJOCO_GL"):
        lift.render()
    with pytest.raises(EnvError, match="MUJOCO_GL"):
        base.make(EnvSpec("robosuite", "Lift", {"render": True}))


def test_absolute_targets_are_commanded_within_the_datas_own_bounds(tmp_path: Path) -> None:
    """Positions in metres and rotations in radians: ±1 is the range of neither."""
    from flowft.data import source

    generator = np.random.default_rng(0)
    kwargs = robosuite_controllers.default_kwargs()
    kwargs["controller_configs"]["body_parts"]["right"]["input_type"] = "absolute"
    with h5py.File(tmp_path / "abs.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_version": "1.5.1", "type": 1, "env_kwargs": kwargs})
        for i in range(3):
            low, high = [-0.15, -0.2, 0.85, 2.8, -1.2, -0.5, -1], [0.1, 0.2, 1.1, 3.3, 1.2, 0.5, 1]
            demo = data.create_group(f"demo_{i}")
            sizes = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
            demo["actions"], demo["rewards"] = generator.uniform(low, high, (9, 7)), np.arange(9) == 8
            for part, size in sizes.items():
                demo[f"obs/{part}"] = generator.normal(size=(9, size))
    dataset = source.load(str(tmp_path / "abs.hdf5"), source.Options(action_bounds="data"))
    assert dataset.env is not None
    env = base.make(dataset.env)
    assert dataset.spec.differences(env.flow_spec) == []
    env.reset(seed=0)
    target = np.array([0.0, 0.1, 0.97, np.pi, 0.0, 0.0, -1.0])
    for _ in range(60):
        observation = env.step(dataset.spec.to_unit(target))[0]
    assert np.abs(observation[:3] - target[:3]).max() < 0.04, "the hand goes where it was told"
    env.close()
