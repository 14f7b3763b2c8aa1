"""N environments together: the same as one at a time, exact restore, and what happens when a worker dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flowft.data.spec import EnvSpec
from flowft.envs import base
from flowft.envs.vector import Vector
from flowft.errors import EnvError, FlowftError

pytest.importorskip("mujoco")
HOPPER = EnvSpec("gymnasium", "Hopper-v5", max_steps=30)


@pytest.fixture
def workers() -> Iterator[Vector]:
    with Vector(HOPPER, 2, processes=True) as vector:
        yield vector


def _actions(steps: int, lanes: int = 2) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, lanes, 3)).astype(np.float32)


def _gone(pid: int) -> bool:
    """No such process, or a zombie that somebody else has to collect."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def _pids(vector: Vector) -> list[int]:
    return [process.pid or 0 for process, _ in vector._workers]


def test_workers_give_what_one_environment_gives(workers: Vector) -> None:
    singles = [base.make(HOPPER) for _ in range(2)]
    first = workers.reset_all([3, 4])
    assert np.array_equal(first, [env.reset(seed=seed)[0] for env, seed in zip(singles, [3, 4], strict=True)])
    for actions in _actions(10):
        got = workers.step(actions)
        expected = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        assert np.array_equal(got.observations, [e[0] for e in expected])
        assert np.array_equal(got.rewards, np.float32([e[1] for e in expected]))
        assert got.terminated.tolist() == [e[2] for e in expected]
        assert got.truncated.tolist() == [e[3] for e in expected]
    assert workers.spec == singles[0].flow_spec
    assert (workers.max_steps, workers.success_ends) == (30, False)


def test_a_chosen_lane_steps_alone(workers: Vector) -> None:
    workers.reset_all([3, 4])
    before = workers.step(_actions(1)[0])
    only = workers.step(_actions(2)[1][1:], lanes=[1])
    assert only.observations.shape == (1, 11)
    again = workers.restore(0, 3, _actions(1)[:, 0])
    assert np.array_equal(again, before.observations[0])  # lane 0 had not moved: its state is one action old
    with pytest.raises(ValueError, match="lanes"):
        workers.step(_actions(1)[0], lanes=[0, 2])


@pytest.mark.parametrize("processes", [False, True])
def test_restore_is_bitwise_and_the_episode_goes_on_as_it_would_have(processes: bool) -> None:
    actions = _actions(20)
    with Vector(HOPPER, 2, processes) as vector:
        vector.reset_all([11, 12])
        seen = [vector.step(each) for each in actions]
        vector.reset_all([99, 98])  # another history in between
        vector.step(actions[3])
        back = vector.restore_all([11, 12], [actions[:12, 0], actions[:12, 1]])
        assert np.array_equal(back, seen[11].observations)
        after = vector.step(actions[12])
        assert all(np.array_equal(a, b) for a, b in zip(after, seen[12], strict=True))


def test_nothing_resets_by_itself_and_the_last_observation_is_the_last() -> None:
    """The step that ends an episode returns its own last state, never the first of a next one."""
    with Vector(EnvSpec("gymnasium", "Hopper-v5", max_steps=4), 2, processes=False) as vector:
        start = vector.reset_all([1, 2])
        for step in range(4):
            last = vector.step(np.zeros((2, 3)))
            assert last.truncated.tolist() == [step == 3] * 2
        assert not np.array_equal(last.observations, start)
        further = vector.step(np.zeros((2, 3)))
        assert np.abs(further.observations - last.observations).max() < np.abs(further.observations - start).max()
        assert np.array_equal(vector.reset(1, 2), start[1])


def test_observations_are_not_views_of_the_simulator() -> None:
    with Vector(HOPPER, 1) as vector:
        first = vector.reset(0, 5)
        copy = first.copy()
        vector.step(np.ones((1, 3)))
        assert np.array_equal(first, copy)


def test_a_killed_worker_is_named_and_the_others_leave(workers: Vector) -> None:
    workers.reset_all([1, 2])
    pids = _pids(workers)
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(EnvError, match=rf"environment worker 1 \(Hopper-v5, process {pids[1]}\) was killed by SIGKILL") as error:
        for _ in range(3):
            workers.step(_actions(1)[0])
    assert error.value.fix
    assert all(_gone(pid) for pid in pids)
    with pytest.raises(EnvError, match="closed"):
        workers.step(_actions(1)[0])
    workers.close()  # once more does nothing


def test_what_ends_the_whole_group_leaves_the_end_to_the_learner(workers: Vector) -> None:
    workers.reset_all([1, 2])
    for pid in _pids(workers):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    time.sleep(0.3)
    assert len(workers.step(_actions(1)[0]).rewards) == 2


@pytest.mark.parametrize("processes", [False, True])
def test_a_simulator_that_raises_is_an_env_error_that_names_its_lane(processes: bool) -> None:
    with Vector(HOPPER, 2, processes) as vector:
        vector.reset_all([1, 2])
        with pytest.raises(EnvError, match=r"environment .*1 \(Hopper-v5\) failed.*ValueError"):
            vector._call("step", [1], [(np.zeros(7, np.float32),)])  # seven values into three motors
        with pytest.raises(EnvError, match="closed"):
            vector.reset(0, 1)


@pytest.mark.parametrize(("count", "processes"), [(1, True), (2, True), (2, False)])
def test_what_cannot_be_built_is_said_in_the_same_words_everywhere(count: int, processes: bool) -> None:
    with pytest.raises(FlowftError, match=r"no environment 'Hoper-v5' .*did you mean 'Hopper-v5'"):
        Vector(EnvSpec("gymnasium", "Hoper-v5"), count, processes)
    with pytest.raises(EnvError, match="at least one"):
        Vector(HOPPER, 0)


@pytest.mark.parametrize("ending", ["raise SystemExit(3)", "raise KeyboardInterrupt", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_worker_outlives_the_learner(tmp_path: Path, ending: str) -> None:
    script = tmp_path / "learner.py"
    script.write_text(
        "import os, signal\nfrom flowft.data.spec import EnvSpec\nfrom flowft.envs.vector import Vector\n"
        "if __name__ == '__main__':\n    vector = Vector(EnvSpec('gymnasium', 'Hopper-v5'), 2)\n"
        f"    print(*[p.pid for p, _ in vector._workers], flush=True)\n    {ending}\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    pids = [int(word) for word in run.stdout.split()]
    assert len(pids) == 2 and run.returncode != 0
    deadline = time.monotonic() + 20
    while not all(_gone(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(_gone(pid) for pid in pids)
    assert "EnvError" not in run.stderr and "Process flowft-env" not in run.stderr
