"""Environments of the user's own: any Gymnasium id, spaces of any shape, seeds that repeat."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Text, Tuple

from flowft.data.spec import EnvSpec
from flowft.envs import base
from flowft.errors import EnvError, FlowftError, UsageError
from tests.own_envs import MODULE, Toy, own_module, python, toy

# Ids ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "family", "env_id"),
    [
        ("my_module:MyEnv-v0", "gymnasium", "my_module:MyEnv-v0"),
        ("gymnasium:my_module:MyEnv-v0", "gymnasium", "my_module:MyEnv-v0"),
        ("my.package:space/My-Env-v3", "gymnasium", "my.package:space/My-Env-v3"),
        ("Space/MyEnv", "gymnasium", "Space/MyEnv"),
        ("Pendulum-v1", "gymnasium", "Pendulum-v1"),
        ("MyEnv-v0", "gymnasium", "MyEnv-v0"),
        ("robosuite:Lift", "robosuite", "Lift"),
    ],
)
def test_an_id_names_its_family(text: str, family: str, env_id: str) -> None:
    assert base.parse(text) == EnvSpec(family, env_id)


def test_an_id_that_is_registered_is_what_it_is_registered_as() -> None:
    gymnasium.register("handmade-reach-v0", lambda: Toy())
    try:
        assert base.parse("handmade-reach-v0").family == "gymnasium"  # by its form it would be OGBench's
    finally:
        del gymnasium.registry["handmade-reach-v0"]


def test_a_module_in_the_working_folder_is_found_and_in_worker_processes_too(tmp_path: Path) -> None:
    own_module(tmp_path, "lines")
    code = """
from dataclasses import replace
from flowft.envs import base
spec = replace(base.parse("lines:Line-v0"), success="metrics.solved")
if __name__ == "__main__":
    env = base.make(spec)
    print(env.flow_spec.parts, env.flow_spec.action_low, env.max_steps, env.reset(seed=3)[0].tolist())
    assert not any(p == sys.path[0] and "lines" in p for p in sys.path)
    from flowft.cli import main
    sys.exit(main.run(["env", "check", "lines:Line-v0", "--set", "environment.success=metrics.solved", "--json"]))
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "hello from the module" in done.stderr
    first, _, report = done.stdout.partition("\n")  # stdout is the report's: the module's own words are not in it
    assert first.startswith("(('observation', 3),) (-2.0,) 40 [")
    assert "in worker processes" in json.loads(report)["checks"][1]["what"]


@pytest.mark.parametrize(
    ("code", "text", "what", "fix"),
    [
        (None, "nosuchmodule:X-v0", "there is no module 'nosuchmodule'", "PYTHONPATH"),
        ("import nosuchpackage", "{m}:X-v0", "No module named 'nosuchpackage'", "pip install nosuchpackage"),
        ("raise RuntimeError('no licence')", "{m}:X-v0", "RuntimeError: no licence ({f}/{m}.py, line 1)", 'python -c "import {m}"'),
        ("import sys; sys.exit(3)", "{m}:X-v0", "SystemExit: 3", "import {m}"),
        ("def f(:", "{m}:X-v0", "SyntaxError", "import {m}"),
        ("x = 1", "{m}:X-v0", "the module {m} registers no environment", "gymnasium.register"),
        (MODULE, "{m}:Lin-v0", "registers no environment 'Lin-v0' (did you mean 'Line-v0'?)", "--env {m}:Line-v0"),
        (MODULE, "./{m}.py:Line-v0", "is not the name of a module", "--env {m}:Line-v0"),
        (None, "NoSuchThingAtAll-v7", "no environment 'NoSuchThingAtAll-v7' is registered", "--env MODULE:NoSuchThingAtAll-v7"),
    ],
)
def test_a_module_that_does_not_help_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, code: str | None, text: str, what: str, fix: str
) -> None:
    name = f"own_{abs(hash(request.node.name)) % 10**8}"
    if code is not None:
        own_module(tmp_path, name, code)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with pytest.raises(FlowftError) as caught:
        base.make(base.parse(text.format(m=name)))
    assert what.format(m=name, f=tmp_path) in caught.value.what
    assert fix.format(m=name) in str(caught.value.fix)
    assert sys.path == before and "\n" not in caught.value.what


def test_a_name_near_a_family_s_is_a_slip_unless_there_is_such_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="did you mean 'robosuite'"):
        base.parse("robosute:Lift")
    own_module(tmp_path, "robosuites")
    monkeypatch.chdir(tmp_path)
    assert base.parse("robosuites:Line-v0").family == "gymnasium"
    with pytest.raises(UsageError, match="names no environment"):
        base.parse("robosuites:")


# Spaces ---------------------------------------------------------------------------------------------------------------


def test_observations_are_taken_apart_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    space = Dict(
        arm=Dict(pos=Box(-1, 1, (2, 3), np.float64), mode=Discrete(4), on=MultiBinary(2)),
        pair=Tuple((Box(-1, 1, ()), Box(0, 9, (2,), np.int64))),
        camera=Box(0, 255, (64, 48, 3), np.uint8),
        task=Text(5),
    )
    spec = toy(space=space)
    env = base.make(spec)
    assert set(env.flow_spec.parts) == {("arm/pos", 6), ("arm/mode", 1), ("arm/on", 2), ("pair/0", 1), ("pair/1", 2)}
    said = capsys.readouterr().err
    assert "camera is a picture of shape (64, 48, 3)" in said and "task is of the space Text" in said
    wanted = base.make(dataclasses.replace(spec, observation=("pair/1", "arm/pos")))
    assert wanted.flow_spec.parts == (("pair/1", 2), ("arm/pos", 6))
    observation, _ = wanted.reset(seed=4)
    space.seed(4)
    raw = space.sample()
    assert observation.dtype == np.float32
    assert np.array_equal(observation, np.concatenate([raw["pair"][1], raw["arm"]["pos"].ravel()]).astype(np.float32))
    with pytest.raises(EnvError, match="'camera' .* is a picture"):
        base.make(dataclasses.replace(spec, observation=("camera",)))
    with pytest.raises(EnvError, match="no observation part 'arm/poz'.*did you mean 'arm/pos'"):
        base.make(dataclasses.replace(spec, observation=("arm/poz",)))


@pytest.mark.parametrize(
    ("kwargs", "what"),
    [
        ({"space": Box(0, 255, (64, 64, 3), np.uint8)}, "observes nothing that is a vector of numbers: it is a picture"),
        ({"space": Text(5)}, "it is of the space Text"),
        ({"space": Discrete(16)}, r"it is of the space Discrete\(16\)"),
        ({"space": Dict(a=Text(3))}, "a is of the space Text"),
        ({"actions": Discrete(4)}, r"takes actions of the space Discrete\(4\)"),
        ({"actions": Dict(a=Box(-1, 1, (1,)))}, "takes actions of the space Dict"),
        ({"actions": Box(0, 5, (2,), np.int64)}, "takes actions of the space Box"),
        ({"actions": Box(-np.inf, np.inf, (2,))}, r"action 0 of 2 has no bounds \(-inf to inf\)"),
        ({"actions": Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32))}, "action 1 of 2 has no bounds"),
    ],
)
def test_what_a_flow_policy_cannot_see_or_do_is_said(kwargs: dict[str, Any], what: str) -> None:
    with pytest.raises(EnvError, match=what) as caught:
        base.make(toy(**kwargs))
    assert caught.value.fix


def test_unbounded_actions_take_the_bounds_that_are_set_and_keep_their_shape() -> None:
    spec = toy(actions=Box(-np.inf, np.inf, (2, 2), np.float64), spec={"action_bounds": ((-3.0, 5.0),)})
    env = base.make(spec)
    assert (env.flow_spec.action_low, env.flow_spec.action_high) == ((-3.0,) * 4, (5.0,) * 4)
    env.reset(seed=0)
    env.step(np.array([-1, 0, 1, 7], np.float32))
    received = env.unwrapped.received  # type: ignore[attr-defined]
    assert received.dtype == np.float64 and received.tolist() == [[-3, 1], [5, 5]]
    with pytest.raises(EnvError, match=f"action_bounds has 3 pairs; {spec.id} takes 4 actions"):
        base.make(dataclasses.replace(spec, action_bounds=((-1.0, 1.0),) * 3))


@pytest.mark.parametrize(
    ("observe", "what"),
    [
        (lambda env: np.zeros(3), "gave 3 values as 'observation'; its observation_space has 2"),
        (lambda env: "here", "gave 'here' as 'observation', which is not numbers"),
    ],
)
def test_an_observation_other_than_its_space_is_said(observe: Any, what: str) -> None:
    with pytest.raises(EnvError, match=what):
        base.make(toy(observe=observe)).reset(seed=0)
    with pytest.raises(EnvError, match="without 'a'"):
        base.make(toy(space=Dict(a=Box(-1, 1, (2,))), observe=lambda env: {"b": 1})).reset(seed=0)


# Seeds ----------------------------------------------------------------------------------------------------------------


def _draw(env: Toy) -> Any:
    import random

    torch = sys.modules.get("torch")
    third = float(torch.rand(1)) if torch is not None else 0.0
    return np.array([np.random.rand(), random.random(), third, env.np_random.random()])


class Careless(Toy):
    """Draws from everything that is global, in reset and in step; seeds nothing."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return _draw(self), {}


def test_an_environment_that_seeds_nothing_repeats_itself_and_leaves_no_trace() -> None:
    import random

    import torch

    gymnasium.register("Careless-v0", lambda: Careless(space=Box(0, 1, (4,)), observe=_draw), max_episode_steps=50)
    try:
        env, other = base.make(EnvSpec("gymnasium", "Careless-v0")), base.make(EnvSpec("gymnasium", "Careless-v0"))

        def roll(which: base.FlowEnv, seed: int) -> list[list[float]]:
            rows = [which.reset(seed=seed)[0].tolist()]
            for _ in range(4):
                rows.append(which.step(np.zeros(2, np.float32))[0].tolist())
                other.step(np.zeros(2, np.float32)) if which is env else None  # a second one in between
            return rows

        other.reset(seed=9)
        before = (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist())
        first = roll(env, 1)
        assert (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state().tolist()) == before
        assert len({str(row) for row in first}) == 5
        assert roll(env, 2) != first
        np.random.seed(1), random.seed(1), torch.manual_seed(1)
        assert roll(env, 1) == first
        assert roll(other, 1) == first
    finally:
        del gymnasium.registry["Careless-v0"]


@pytest.mark.parametrize("lanes", [1, 2])
def test_what_the_user_s_code_raises_comes_with_its_place(tmp_path: Path, lanes: int) -> None:
    broken = MODULE.replace("self.x = self.x + action", "self.x = self.x + self.motor(action)")
    own_module(tmp_path, "brokenlines", broken)
    code = f"""
import numpy as np
from flowft.envs import base
from flowft.envs.vector import Vector
if __name__ == "__main__":
    with Vector(base.parse("brokenlines:Line-v0"), {lanes}) as vector:
        vector.reset_all(range({lanes}))
        try: vector.step(np.zeros(({lanes}, 1)))
        except Exception as error: print(error)
"""
    line = next(i for i, text in enumerate(broken.splitlines()[1:], start=1) if "self.motor" in text)
    done = python(code, tmp_path)
    assert "AttributeError: 'Line' object has no attribute 'motor'" in done.stdout, done.stderr
    assert f"brokenlines.py, line {line + 1})" in done.stdout or f"brokenlines.py, line {line})" in done.stdout
    assert "0 (brokenlines:Line-v0) failed" in done.stdout


def test_a_constructor_that_fails_is_one_sentence_with_the_command_that_shows_it_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_module(tmp_path, "stubborn")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvError, match=r"stubborn:Line-v0 cannot be built with {'legs': 3}: Line\(\) takes no arguments") as caught:
        base.make(EnvSpec("gymnasium", "stubborn:Line-v0", {"legs": 3}))
    assert caught.value.fix is not None
    shown = subprocess.run(
        ["bash", "-c", caught.value.fix.replace("python", sys.executable, 1)], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 1 and "takes no arguments" in shown.stderr and "Traceback" in shown.stderr
