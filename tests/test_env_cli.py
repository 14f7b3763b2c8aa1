"""`flowft env`: what a user learns of an environment before a run relies on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from flowft.cli.main import run

MODULE = '''
import gymnasium
import numpy as np

count = 0

class Sound(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-5, 5, (3,))
    action_space = gymnasium.spaces.Box(-2, 2, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 3)
        self.n = 0
        return self.x, {}

    def step(self, action):
        self.x = np.clip(self.x + np.append(action, 0.0), -5, 5)
        self.n += 1
        return self.x, float(self.n == 12), self.n == 12, False, {"success": self.n == 12}

class Forgetful(Sound):
    """The clock of the episode before is not put back, nor what the process counts."""
    clock = 0
    def step(self, action):
        Forgetful.clock += 1
        observation, *rest = super().step(action)
        return np.clip(observation + 1e-3 * Forgetful.clock, -5, 5), *rest

class Worker(Sound):
    """It looks at the process it lives in."""
    def reset(self, *, seed=None, options=None):
        import os, multiprocessing
        observation, info = super().reset(seed=seed)
        self.x = observation + 0.01 * (multiprocessing.parent_process() is not None)
        return self.x, info

class Diverging(Sound):
    def step(self, action):
        observation, *rest = super().step(action)
        return observation * (np.nan if self.n == 7 else 1), *rest

class NanReward(Sound):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, np.inf if self.n == 4 else reward, *rest

class Wide(Sound):
    observation_space = gymnasium.spaces.Box(-0.1, 0.1, (3,))

class Deaf(Sound):
    def step(self, action):
        return super().step(0 * action)

class Mute(Sound):
    def step(self, action):
        *rest, info = super().step(action)
        return *rest, {"task": {"done": True}, "is_done": True}

class Fixed(Sound):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=0)
        return super().reset(seed=0)

class Solved(Sound):
    def step(self, action):
        *rest, _ = super().step(action)
        return *rest, {"success": True}

class OldApi(Sound):
    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info

class Broken(Sound):
    def reset(self, *, seed=None, options=None):
        raise OSError("the licence server is away")

class Shape(Sound):
    observation_space = gymnasium.spaces.Box(-5, 5, (4,))

for kind in list(globals().values()):
    if isinstance(kind, type) and issubclass(kind, gymnasium.Env):
        gymnasium.register(f"{kind.__name__}-v0", f"oddities:{kind.__name__}", max_episode_steps=30)
'''


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `flowft env check oddities:NAME-v0 …` in a folder that holds the module: exit code, stdout, stderr."""
    (tmp_path / "oddities.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)

    def call(name: str, *more: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(["env", "check", f"oddities:{name}-v0", *more])
        return code, *capfd.readouterr()

    return call


def test_a_sound_environment_has_one_line_a_check(check: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = check("Sound", "--episodes", "4")
    assert code == 0, out
    lines = out.splitlines()
    assert lines[0] == "gymnasium:oddities:Sound-v0"
    assert [line.split()[0] for line in lines[1:]] == ["ok"] * (len(lines) - 1)
    assert "3 observation values (observation 3), 2 actions in [-2, 2]" in out
    assert "again, in another copy, in worker processes" in out
    assert "sparse (0, 1 seen); return 1 to 1" in out
    assert "success; the environment ends the episode; seen in 4 of 4 episodes" in out
    assert "after 12 steps: 4 terminated, 0 cut; the limit is 30 steps" in out
    assert "steps/s" in out and "ms a reset" in out


@pytest.mark.parametrize(
    ("name", "check_name", "what", "fix"),
    [
        ("Forgetful", "seeds repeat", "after other episodes it is", "self.np_random"),
        ("Worker", "seeds repeat", "in a worker process it is 0.01 off at step 0", "self.np_random"),
        ("Diverging", "finite", "observation[0] is nan at step 7 of the episode with seed 0", "terminated"),
        ("NanReward", "finite", "the reward is inf at step 4 of the episode with seed 0", "terminated"),
        ("Deaf", "actions", "the lowest and the highest actions lead to the same observations", "step"),
        ("Mute", "success", "neither success nor is_success (it holds: task, is_done)", "--set environment.success=is_done"),
        ("Solved", "success", "every episode is a success after one random action", "--set environment.success="),
        ("OldApi", "runs", "ValueError: not enough values to unpack", "step returns observation, reward, terminated, truncated, info"),
        ("Broken", "runs", "OSError: the licence server is away", "reset(seed="),
        ("Shape", "runs", "gave 3 values as 'observation'; its observation_space has 4", None),
    ],
)
def test_a_defect_is_a_problem_with_its_fix(
    check: Callable[..., tuple[int, str, str]], name: str, check_name: str, what: str, fix: str | None
) -> None:
    code, out, err = check(name, "--json")
    report = json.loads(out)
    problems = [row for row in report["checks"] if not row["ok"]]
    assert code == 1 and report["problems"] == len(problems) == 1, out
    assert problems[0]["check"] == check_name and what in problems[0]["what"]
    assert fix is None or fix in problems[0]["fix"]
    assert "1 problem" in err


@pytest.mark.parametrize(
    ("name", "words"), [("Wide", "leave the declared observation_space"), ("Fixed", "starts from the same observation")]
)
def test_what_is_no_defect_but_worth_knowing_is_a_note(check: Callable[..., tuple[int, str, str]], name: str, words: str) -> None:
    code, out, _ = check(name)
    assert code == 0
    assert next(line for line in out.splitlines() if words in line).startswith("note ")


def test_the_offered_success_key_mends_it(check: Callable[..., tuple[int, str, str]]) -> None:
    assert check("Mute")[0] == 1
    assert "every episode is a success after one random action" in check("Mute", "--set", "environment.success=task.done")[1]
    code, out, _ = check("Mute", "--set", "environment.success=reward>=1", "--set", "environment.success_ends=true")
    assert code == 0 and "reward>=1; it ends the episode; seen in 3 of 3" in out
    assert "there is none: the return is the measure" in check("Mute", "--set", "environment.success=never")[1]


def test_what_cannot_be_built_is_the_one_finding(check: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = check("Nothing")
    assert code == 1 and "registers no environment 'Nothing-v0'" in out and "fix: --env oddities:" in out
    assert run(["env", "check"]) == 2
    assert run(["env", "check", "Hopper-v5", "--env", "Hopper-v5"]) == 2


def test_a_data_set_of_other_observations_or_ends_is_told(
    check: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    _minari("toy/same-v0", 3, 40)
    _minari("toy/other-v0", 5, 10)
    code, out, _ = check("Sound", "--dataset", "minari/toy/same-v0")
    assert code == 1
    assert "minari/toy/same-v0 has the same observations and actions" in out
    assert "the longest demonstration has 40 steps; an episode is cut after 30" in out and "fix: --set max_steps=40" in out
    code, out, _ = check("Sound", "--dataset", "minari/toy/same-v0", "--set", "max_steps=40")
    assert code == 0 and "note     dataset" in out and "environment.success_ends=true" in out
    code, out, _ = check("Sound", "--dataset", "minari/toy/other-v0")
    assert code == 1 and "5 observation values against 3" in out and "--env with the environment that" in out


def _minari(name: str, size: int, length: int) -> None:
    import minari
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)
    flags = [False] * (length - 1) + [True]
    buffers = [
        EpisodeBuffer(
            id=i, observations=rng.normal(size=(length + 1, size)), actions=rng.uniform(-2, 2, (length, 2)).astype(np.float32),
            rewards=[float(f) for f in flags], terminations=flags, truncations=[False] * length, infos={"success": flags},
        )
        for i in range(2)
    ]  # fmt: skip
    about: dict[str, Any] = dict.fromkeys(("algorithm_name", "author", "author_email", "code_permalink", "description"), "none")
    space = Box(-np.inf, np.inf, (size,), np.float64)
    minari.create_dataset_from_buffers(name, buffers, observation_space=space, action_space=Box(-2, 2, (2,)), **about)


def test_the_families_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["env", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "Hopper-v5" in found["gymnasium"] and "FetchReach-v4" in found["robotics"] and "Lift" in found["robosuite"]
    assert not {"FetchReach-v4", "Hopper-v2"} & set(found["gymnasium"])
    assert run(["env", "list", "ogbench"]) == 0
    assert "ogbench:cube-single-singletask-v0" in capsys.readouterr().out.splitlines()
    assert run(["env", "list", "robosuit"]) == 2
    assert "did you mean 'robosuite'" in capsys.readouterr().err
    assert "Pendulum-v1" in gymnasium.registry
