"""The environment families: resets that are functions of the seed, success, bounds, and errors that say what was meant."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flowft import registry
from flowft.data.spec import EnvSpec, Spec
from flowft.envs import base
from flowft.errors import EnvError, MissingExtra, UsageError

pytest.importorskip("gymnasium_robotics")
pytest.importorskip("ogbench")

# id, observation parts, actions, the environment's own limit, does success end the episode
FAMILIES = [
    ("Hopper-v5", [("observation", 11)], 3, 1000, False),
    ("HalfCheetah-v5", [("observation", 17)], 6, 1000, False),
    ("AdroitHandDoor-v1", [("observation", 39)], 28, 200, True),
    ("AdroitHandPen-v1", [("observation", 45)], 24, 200, True),
    ("AdroitHandHammer-v1", [("observation", 46)], 26, 200, True),
    ("AdroitHandRelocate-v1", [("observation", 39)], 30, 200, True),
    ("FrankaKitchen-v1", [("observation", 59)], 9, 280, True),
    ("AntMaze_UMaze-v4", [("achieved_goal", 2), ("observation", 27)], 8, 700, True),
    ("AntMaze_Medium-v4", [("achieved_goal", 2), ("observation", 27)], 8, 1000, True),
    ("PointMaze_UMaze-v3", [("observation", 4), ("desired_goal", 2)], 2, 300, True),
    ("FetchPickAndPlace-v4", [("observation", 25), ("desired_goal", 3)], 4, 50, True),
    ("cube-single-play-singletask-v0", [("observation", 28)], 5, 200, True),
    ("puzzle-3x3-play-singletask-task2-v0", [("observation", 55)], 5, 500, True),
    ("pointmaze-teleport-navigate-singletask-v0", [("observation", 2)], 2, 1000, True),
]


def _roll(env: base.FlowEnv, seed: int, steps: int = 25) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = [np.append(env.reset(seed=seed)[0], [0.0, 0.0])]
    for _ in range(steps):
        observation, reward, terminated, _, _ = env.step(rng.uniform(-1, 1, env.flow_spec.action_dim).astype(np.float32))
        rows.append(np.append(observation, [reward, terminated]))
    return np.stack(rows)


@pytest.mark.parametrize(("env_id", "parts", "actions", "limit", "ends"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_a_family_is_what_its_data_were_made_with_and_resets_from_the_seed_alone(
    env_id: str, parts: list[tuple[str, int]], actions: int, limit: int, ends: bool
) -> None:
    env, other = base.make(base.parse(env_id)), base.make(base.parse(env_id))
    try:
        assert env.flow_spec == Spec(tuple(parts), (-1.0,) * actions, (1.0,) * actions)
        assert (env.max_steps, env.success_ends) == (limit, ends)
        global_state = np.random.get_state()[1].tolist()
        episode = _roll(env, 5)
        assert np.random.get_state()[1].tolist() == global_state  # the caller's numpy is left alone
        np.random.seed(77)
        _roll(env, 6)  # another history: solver warm start, contacts, goals, random streams
        assert np.array_equal(_roll(env, 5), episode)
        assert np.array_equal(_roll(other, 5), episode)
        assert not np.array_equal(_roll(env, 7), episode)
    finally:
        env.close()
        other.close()


@pytest.mark.parametrize(
    ("text", "family", "env_id"),
    [
        ("Lift", "robosuite", "Lift"),
        ("robosuite:Lift", "robosuite", "Lift"),
        ("AdroitHandDoor-v1", "robotics", "AdroitHandDoor-v1"),
        ("FrankaKitchen-v1", "robotics", "FrankaKitchen-v1"),
        ("Walker2d-v5", "gymnasium", "Walker2d-v5"),
        ("cube-double-play-singletask-task4-v0", "ogbench", "cube-double-play-singletask-task4-v0"),
        ("gymnasium:Ant-v5", "gymnasium", "Ant-v5"),
    ],
)
def test_the_family_is_told_from_the_id(text: str, family: str, env_id: str) -> None:
    assert base.parse(text) == EnvSpec(family, env_id)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("AdroitHandDor-v1", "did you mean 'AdroitHandDoor-v1'"),
        ("HalfCheeta-v5", "did you mean 'HalfCheetah-v5'"),
        ("cube-single-play-singletsk-v0", "cube-single-play-singletask-v0"),
        ("cube-double-play-v0", "--env cube-double-play-singletask-v0"),
        ("ogbench:nothing-like-it", "for example"),
    ],
)
def test_an_unknown_id_says_what_was_meant(text: str, meant: str) -> None:
    with pytest.raises(EnvError, match=meant):
        base.make(base.parse(text))


def test_an_unknown_family_says_what_was_meant() -> None:
    with pytest.raises(UsageError, match="did you mean 'robosuite'"):
        base.parse("robosute:Lift")


def test_a_wrong_keyword_or_part_is_one_sentence() -> None:
    with pytest.raises(EnvError, match="AdroitHandDoor-v1 cannot be built with .*colour"):
        base.make(EnvSpec("robotics", "AdroitHandDoor-v1", {"colour": "red"}))
    with pytest.raises(EnvError, match="no observation part 'picture'"):
        base.make(EnvSpec("robotics", "FetchReach-v4", observation=("picture",)))


@pytest.mark.parametrize(
    ("env_id", "module"), [("AdroitHandDoor-v1", "gymnasium_robotics"), ("Hopper-v5", "mujoco"), ("cube-single-singletask-v0", "ogbench")]
)
def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, env_id: str, module: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else object())
    with pytest.raises(MissingExtra, match=r'pip install "flowft\[(robotics|ogbench)\]"'):
        base.make(base.parse(env_id))


def test_wanted_parts_come_in_the_wanted_order() -> None:
    env = base.make(EnvSpec("robotics", "FetchReach-v4", observation=("desired_goal", "achieved_goal", "observation")))
    assert env.flow_spec.parts == (("desired_goal", 3), ("achieved_goal", 3), ("observation", 10))
    observation, _ = env.reset(seed=0)
    raw = env.unwrapped._get_obs()  # type: ignore[attr-defined]
    assert np.array_equal(observation[:3], raw["desired_goal"].astype(np.float32))


def _open_door(env: base.FlowEnv) -> tuple[bool, bool]:
    """Put the door beyond 1.35 rad and take a step: terminated, success."""
    env.reset(seed=0)
    simulator = env.unwrapped
    state = simulator.get_env_state()  # type: ignore[attr-defined]
    state["qpos"][simulator.door_hinge_addrs] = 1.5  # type: ignore[attr-defined]
    simulator.set_env_state(state)  # type: ignore[attr-defined]
    _, _, terminated, _, info = env.step(np.zeros(28, np.float32))
    return terminated, info["success"]


def test_door_success_is_the_open_door_and_ends_the_episode_unless_told_otherwise() -> None:
    spec = base.parse("AdroitHandDoor-v1")
    assert _open_door(base.make(spec)) == (True, True)
    assert _open_door(base.make(dataclasses.replace(spec, kwargs={"success_ends": False}))) == (False, True)


def test_cube_success_is_the_cube_at_its_target_with_reward_zero() -> None:
    env = base.make(base.parse("cube-single-play-singletask-v0"))
    env.reset(seed=0)
    still = np.zeros(5, np.float32)
    assert env.step(still)[1:3] == (-1.0, False)
    simulator = env.unwrapped
    simulator.data.joint("object_joint_0").qpos[:3] = simulator.data.mocap_pos[0]  # type: ignore[attr-defined]
    simulator.post_step()  # type: ignore[attr-defined]
    _, reward, terminated, _, info = env.step(np.array([0, 0, 0, 0, -1], np.float32))  # judged by the state before it
    assert (reward, terminated, info["success"]) == (0.0, True, True)


def test_kitchen_asks_for_d4rl_s_four_tasks_and_succeeds_with_the_last() -> None:
    env = base.make(base.parse("FrankaKitchen-v1"))
    env.reset(seed=0)
    kitchen = env.unwrapped
    assert set(kitchen.goal) == {"microwave", "kettle", "bottom burner", "light switch"}  # type: ignore[attr-defined]
    kitchen.episode_task_completions.extend(["microwave", "kettle", "bottom burner"])  # type: ignore[attr-defined]
    assert env.step(np.zeros(9, np.float32))[4]["success"] is False
    kitchen.episode_task_completions.append("light switch")  # type: ignore[attr-defined]
    _, _, terminated, _, info = env.step(np.zeros(9, np.float32))
    assert terminated and info["success"] is True


def test_the_step_limit_truncates_and_is_not_terminal() -> None:
    env = base.make(EnvSpec("robotics", "AdroitHandPen-v1", {"success_ends": False}, max_steps=3))
    env.reset(seed=1)
    ends = [env.step(np.zeros(24, np.float32))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_pictures_without_a_way_to_draw_are_refused_in_words() -> None:
    code = (
        "from flowft.envs import base; from flowft.data.spec import EnvSpec; from flowft.errors import EnvError\n"
        "try: base.make(EnvSpec('gymnasium', 'Hopper-v5', {'render': True}))\nexcept EnvError as error: print(error)"
    )
    bare = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "DISPLAY", "PYOPENGL_PLATFORM")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=bare, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert "MUJOCO_GL is not set" in run.stdout and "fix: export MUJOCO_GL=egl" in run.stdout


@pytest.mark.parametrize("env_id", ["Hopper-v5", "cube-single-play-singletask-v0"])
def test_building_an_environment_says_nothing(env_id: str) -> None:
    code = f"from flowft.envs import base; env = base.make(base.parse({env_id!r})); env.reset(seed=0); env.step(env.action_space.sample())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout + run.stderr == ""


def test_door_observations_and_rewards_are_those_of_the_human_demonstrations() -> None:
    path = Path(os.environ.get("FLOWFT_REAL_DATA", "")) / "d4rl" / "door-human-v1.full.hdf5"
    if not os.environ.get("FLOWFT_REAL_DATA") or not path.exists():
        pytest.skip("FLOWFT_REAL_DATA does not hold d4rl/door-human-v1.full.hdf5")
    h5py = pytest.importorskip("h5py")
    env = base.make(base.parse("AdroitHandDoor-v1"))
    with h5py.File(path) as file:
        for row in range(0, 280, 35):
            env.reset(seed=0)
            state = {key: np.float64(file[f"infos/{key}"][row]) for key in ("qpos", "qvel", "door_body_pos")}
            env.unwrapped.set_env_state(state)  # type: ignore[attr-defined]
            assert np.abs(env.unwrapped._get_obs() - file["observations"][row]).max() < 0.005  # type: ignore[attr-defined]
            observation, reward, *_ = env.step(file["actions"][row])
            assert np.abs(observation - file["observations"][row + 1]).max() < 0.05
            assert reward == pytest.approx(file["rewards"][row], abs=1e-3)


def test_every_family_is_registered() -> None:
    assert {"gymnasium", "robotics", "ogbench", "robosuite"} <= set(registry.names("envs"))


def test_nothing_of_ogbench_s_unseeded_visit_to_the_goal_is_left_after_a_reset() -> None:
    """Its reset first takes two unseeded random actions at the goal: controls, contact forces, warm start, clock."""
    env = base.make(base.parse("cube-single-play-singletask-v0"))
    left = []
    for seed in (5, 6, 5):
        env.reset(seed=seed)
        data = env.unwrapped.data  # type: ignore[attr-defined]
        left.append(np.concatenate([[data.time], data.ctrl, data.cfrc_ext.ravel(), data.qacc_warmstart, data.qacc, data.qpos, data.qvel]))
    assert np.array_equal(left[0], left[2])
    assert not np.array_equal(left[0], left[1])
