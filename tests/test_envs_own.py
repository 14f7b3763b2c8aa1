"""Environments of the user's own: any Gymnasium id, spaces of any shape, and the rules that hold for every family."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Text, Tuple

from flowft import recipe
from flowft.data.spec import EnvSpec
from flowft.envs import base, rules
from flowft.errors import EnvError, FlowftError, UsageError
from flowft.train.settings import Settings

MODULE = """
    import gymnasium
    import numpy as np
    print("hello from the module")

    class Line(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-10, 10, (3,), np.float64)
        action_space = gymnasium.spaces.Box(-2, 2, (1,))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.x = self.np_random.normal(size=3)
            return self.x, {}

        def step(self, action):
            assert self.action_space.contains(action), action
            self.x = self.x + action
            return self.x, -abs(float(self.x[0])), False, False, {"metrics": {"solved": bool(self.x[0] > 1)}}

    gymnasium.register("Line-v0", "%s:Line", max_episode_steps=40)
"""


class Toy(gymnasium.Env[Any, Any]):
    """What a test asks for: spaces, and functions of the step's number."""

    def __init__(
        self, space: Any = None, actions: Any = None, info: Callable[[int], dict[str, Any]] = lambda n: {}, ends: int = 0, **more: Any
    ) -> None:
        self.observation_space = space or Box(-1, 1, (2,))
        self.action_space = actions or Box(-1, 1, (2,))
        self.info, self.ends, self.more = info, ends, more
        self.n, self.options, self.received = 0, None, None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.n, self.options = 0, options
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.n, self.received = self.n + 1, action
        reward = self.more.get("reward", lambda n: float(n))(self.n)
        return self.observe(), reward, bool(self.ends) and self.n >= self.ends, False, self.info(self.n)

    def observe(self) -> Any:
        return self.more["observe"](self) if "observe" in self.more else self.observation_space.sample()


@pytest.fixture
def toy() -> Iterator[Callable[..., EnvSpec]]:
    """Registers an environment and gives its EnvSpec; `limit` is its registered step limit."""
    made: list[str] = []

    def register(limit: int | None = 20, spec: dict[str, Any] | None = None, **kwargs: Any) -> EnvSpec:
        name = f"Toy{len(made)}-v0"
        gymnasium.register(name, lambda: Toy(**kwargs), max_episode_steps=limit)
        made.append(name)
        return EnvSpec("gymnasium", name, **(spec or {}))

    yield register
    for name in made:
        del gymnasium.registry[name]


def steps(env: base.FlowEnv, count: int) -> list[tuple[bool, bool, bool]]:
    """(success, terminated, truncated) of so many steps after a reset."""
    env.reset(seed=0)
    rows = [env.step(np.zeros(env.flow_spec.action_dim, np.float32)) for _ in range(count)]
    return [(row[4]["success"], row[2], row[3]) for row in rows]


def own_module(folder: Path, name: str, code: str = MODULE) -> None:
    code = textwrap.dedent(code)
    (folder / f"{name}.py").write_text(code % name if "%s" in code else code)


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a fresh interpreter with nothing of `folder` on its path, as a console script has it."""
    program = f"import sys; sys.path = [p for p in sys.path if p not in ('', {str(folder)!r})]\n{code}"
    return subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


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


def test_an_id_that_is_registered_is_what_it_is_registered_as(toy: Callable[..., EnvSpec]) -> None:
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


def test_observations_are_taken_apart_by_name(toy: Callable[..., EnvSpec], capsys: pytest.CaptureFixture[str]) -> None:
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
def test_what_a_flow_policy_cannot_see_or_do_is_said(toy: Callable[..., EnvSpec], kwargs: dict[str, Any], what: str) -> None:
    with pytest.raises(EnvError, match=what) as caught:
        base.make(toy(**kwargs))
    assert caught.value.fix


def test_unbounded_actions_take_the_bounds_that_are_set_and_keep_their_shape(toy: Callable[..., EnvSpec]) -> None:
    spec = toy(actions=Box(-np.inf, np.inf, (2, 2), np.float64), spec={"action_bounds": ((-3.0, 5.0),)})
    env = base.make(spec)
    assert (env.flow_spec.action_low, env.flow_spec.action_high) == ((-3.0,) * 4, (5.0,) * 4)
    env.reset(seed=0)
    env.step(np.array([-1, 0, 1, 7], np.float32))
    received = env.unwrapped.received  # type: ignore[attr-defined]
    assert received.dtype == np.float64 and received.tolist() == [[-3, 1], [5, 5]]
    with pytest.raises(EnvError, match="action_bounds has 3 pairs; Toy0-v0 takes 4 actions"):
        base.make(dataclasses.replace(spec, action_bounds=((-1.0, 1.0),) * 3))


@pytest.mark.parametrize(
    ("observe", "what"),
    [
        (lambda env: np.zeros(3), "gave 3 values as 'observation'; its observation_space has 2"),
        (lambda env: "here", "gave 'here' as 'observation', which is not numbers"),
    ],
)
def test_an_observation_other_than_its_space_is_said(toy: Callable[..., EnvSpec], observe: Any, what: str) -> None:
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


# Rules ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "info", "at"),
    [
        ("", lambda n: {"success": n >= 3}, 3),
        ("", lambda n: {"is_success": np.float32(n >= 2)}, 2),
        ("", lambda n: {"is_success": np.array([n >= 2])}, 2),
        ("solved", lambda n: {"solved": int(n > 4), "success": True}, 5),
        ("solved", lambda n: {"solved": np.nan if n < 3 else 1.0}, 3),
        ("solved", lambda n: {"solved": None if n < 3 else True}, 3),
        ("metrics.solved", lambda n: {"metrics": {"solved": n > 1}}, 2),
        ("metrics/solved", lambda n: {"metrics/solved": n > 1}, 2),
        ("late", lambda n: {"late": True} if n >= 4 else {}, 4),
        ("reward>=3", lambda n: {}, 3),
        ("reward > 3", lambda n: {}, 4),
        ("return>=10", lambda n: {}, 4),
        ("terminated", lambda n: {}, 6),
        ("never", lambda n: {"success": True}, None),
        ("none", lambda n: {"success": True}, None),
    ],
)
def test_success_is_what_the_rule_says(toy: Callable[..., EnvSpec], rule: str, info: Any, at: int | None) -> None:
    spec = toy(info=info, ends=6, spec={"success": rule})
    seen = [success for success, _, _ in steps(base.make(spec), 6)]
    assert (seen.index(True) + 1 if True in seen else None) == at
    ends = steps(base.make(dataclasses.replace(spec, success_ends=True)), at or 6)
    assert ends[-1][1] and not any(terminated for _, terminated, _ in ends[:-1])


@pytest.mark.parametrize("rule", ["reward>=much", "return>nan", "a b", "solved==1", "length>3"])
def test_a_rule_that_is_none_says_what_there_is(rule: str) -> None:
    with pytest.raises(UsageError, match="environment.success is .*fix: --set|environment.success") as caught:
        Settings.read({"environment": {"success": rule}})
    assert "--set" in str(caught.value.fix)


def test_unknown_success_is_said_once_and_counts_as_failed(toy: Callable[..., EnvSpec], capsys: pytest.CaptureFixture[str]) -> None:
    spec = toy(limit=3, info=lambda n: {"solved_it": True})
    for _ in range(2):
        assert not any(success for success, _, _ in steps(base.make(spec), 3))
    said = capsys.readouterr().err
    assert said.count("neither 'success' nor 'is_success' is in the info") == 1
    assert "(solved_it)" in said and "--set environment.success=KEY" in said
    steps(base.make(dataclasses.replace(spec, success="solvd")), 3)
    assert "'solvd' has not been in the info" in capsys.readouterr().err
    with pytest.raises(EnvError, match="success must be one truth value"):
        steps(base.make(toy(info=lambda n: {"success": [True, False]})), 1)


def test_the_step_limit_is_the_setting_s_else_the_registered_one_s_else_an_inner_one_s(
    toy: Callable[..., EnvSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = toy(limit=5)
    assert steps(base.make(spec), 5)[-1] == (False, False, True)
    assert steps(base.make(dataclasses.replace(spec, max_steps=8)), 8)[4:] == [(False, False, False)] * 3 + [(False, False, True)]
    gymnasium.register("Inner-v0", lambda: gymnasium.wrappers.TimeLimit(Toy(), 7))
    try:
        assert base.make(EnvSpec("gymnasium", "Inner-v0")).max_steps == 7
    finally:
        del gymnasium.registry["Inner-v0"]
    capsys.readouterr()
    assert base.make(toy(limit=None)).max_steps == 1000
    assert "has no step limit: episodes are cut after 1000 steps" in capsys.readouterr().err


def test_reset_options_reach_every_reset(toy: Callable[..., EnvSpec]) -> None:
    env = base.make(toy(spec={"reset_options": {"goal": [1, 2]}}))
    for seed in (0, 1):
        env.reset(seed=seed)
        assert env.unwrapped.options == {"goal": [1, 2]}  # type: ignore[attr-defined]
    env.reset(seed=0, options={"goal": 3, "more": 4})
    assert env.unwrapped.options == {"goal": 3, "more": 4}  # type: ignore[attr-defined]


def test_robosuite_with_dense_rewards_under_the_same_rules() -> None:
    pytest.importorskip("robosuite")
    spec = EnvSpec("robosuite", "Lift", {"reward_shaping": True}, max_steps=4, success="reward>0", success_ends=False)
    assert steps(base.make(spec), 4) == [(True, False, False)] * 3 + [(True, False, True)]
    old = EnvSpec("robosuite", "Lift", {"reward_shaping": True, "success_ends": False}, max_steps=4, success="reward>0")
    assert steps(base.make(old), 2) == [(True, False, False)] * 2
    assert steps(base.make(dataclasses.replace(old, kwargs={"reward_shaping": True})), 1) == [(True, True, False)]
    with pytest.raises(EnvError, match="robosuite's resets take no options"):
        base.make(dataclasses.replace(spec, reset_options={"a": 1}))
    absolute = base.make(dataclasses.replace(spec, action_bounds=((-2.0, 2.0),)))
    assert absolute.flow_spec.action_high == (2.0,) * 7


# Trees ----------------------------------------------------------------------------------------------------------------


def test_an_env_spec_without_rules_is_stored_as_it_always_was() -> None:
    plain = EnvSpec("robosuite", "Lift", {"a": 1}, 300, ("object",), {"robosuite": "1.5.1"})
    assert list(plain.to_tree()) == ["family", "id", "kwargs", "max_steps", "observation", "versions"]
    assert EnvSpec.from_tree(plain.to_tree()) == plain
    ruled = dataclasses.replace(plain, success="solved", success_ends=False, reset_options={"a": [1]}, action_bounds=((-1.0, 2.0),))
    tree = ruled.to_tree()
    assert EnvSpec.from_tree(json.loads(json.dumps(tree))) == ruled
    assert (tree["success_ends"], tree["action_bounds"]) == (False, [[-1.0, 2.0]])


def test_the_recipe_s_section_is_absent_unless_it_is_set() -> None:
    now = recipe.to_tree(Settings.read({}))
    before = {key: value for key, value in now.items() if key != "environment"}
    assert recipe.differences(before, now) == []  # a run folder of before goes on
    settings = Settings.read({"environment": {"success": "none", "success_ends": False, "action_bounds": [[-1, 1]]}})
    assert settings.environment == rules.Config("none", False, {}, ((-1.0, 1.0),))
    applied = settings.environment.applied(EnvSpec("gymnasium", "X-v0", success="old", reset_options={"kept": 1}))
    assert (applied.success, applied.success_ends, applied.reset_options) == ("none", False, {"kept": 1})
    with pytest.raises(UsageError, match="unknown setting 'environment.sucess'.*did you mean 'success'"):
        Settings.read({"environment": {"sucess": "a"}})
    with pytest.raises(UsageError, match="the first must be less than the second"):
        Settings.read({"environment": {"action_bounds": [[1, 1]]}})


def test_lanes_in_worker_processes_live_under_the_rules(tmp_path: Path) -> None:
    own_module(tmp_path, "ruled")
    code = """
import numpy as np
from flowft.data.spec import EnvSpec
from flowft.envs.vector import Vector
if __name__ == "__main__":
    with Vector(EnvSpec("gymnasium", "ruled:Line-v0", success="return>-1000", success_ends=True), 2) as vector:
        vector.reset_all([1, 2])
        assert vector.step(np.zeros((2, 1))).terminated.all() and vector.max_steps == 40 and vector.success_ends
"""
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr


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
