"""The rules that hold for every family: success, its end, step limits, reset options; and how they are stored."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from flowft import recipe
from flowft.data.spec import EnvSpec
from flowft.envs import base, rules
from flowft.errors import EnvError, UsageError
from flowft.train.settings import Settings
from tests.own_envs import Toy, own_module, python, steps, toy

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
def test_success_is_what_the_rule_says(rule: str, info: Any, at: int | None) -> None:
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


def test_unknown_success_is_said_once_and_counts_as_failed(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_the_step_limit_is_the_setting_s_else_the_registered_one_s_else_an_inner_one_s(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_reset_options_reach_every_reset() -> None:
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
