"""A loss or gradient that is not finite changes nothing, is written down, and ends a run that does not recover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from flowft import registry
from flowft.algos import optim
from flowft.algos.flow_bc import Config as CloneConfig
from flowft.algos.flow_bc import FlowBC
from flowft.algos.sac_flow import Config
from flowft.data.replay import Replay, RewardTransform
from flowft.data.spec import Batch, EnvSpec
from flowft.envs.vector import Vector
from flowft.errors import NonFiniteAction, TrainingError, UsageError
from flowft.policies import critic as critics
from flowft.policies import policy as policies
from flowft.policies.actor import Config as Actor
from flowft.policies.policy import FlowPolicy, Networks
from flowft.recipe import build
from flowft.train import nonfinite
from flowft.train.collect import Collector
from flowft.train.evaluate import Config as EvalConfig
from flowft.train.evaluate import evaluate
from flowft.train.runlog import RunFolder

from .helpers import SPEC, agent, batch, policy
from .test_cli import TINY, flowft, refused, rows, write_hopper
from .test_diagnostics import same

EVERYTHING = Config(alpha=0.1, max_grad_norm=5.0)  # temperature, trust region and clipping on


def poisoned(column: str, value: float = float("nan")) -> Batch:
    """A batch with one bad number in it."""
    clean = batch()
    spoilt = getattr(clean, column).clone()
    spoilt.flatten()[0] = value
    return clean._replace(**{column: spoilt})


def learned(algo: Any) -> dict[str, Any]:
    """The whole state but for the random stream, which goes on."""
    return {key: value for key, value in copied(algo.state_dict()).items() if key != "rng"}


def copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, (list, tuple)) else value


# One update -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value"),
    [(column, float("nan")) for column in ("observation", "action", "reward", "next_observation")]
    + [(column, float("inf")) for column in ("action", "reward")],  # the normaliser clips infinite observations
)
def test_a_poisoned_batch_changes_nothing(column: str, value: float) -> None:
    algo = agent("flow_g", EVERYTHING)
    algo.clone(batch())
    for _ in range(3):
        algo.update(batch())
    before = learned(algo)
    metrics = algo.update(poisoned(column, value))
    assert not torch.isfinite(metrics["critic_grad_norm"])
    same(before, learned(algo))
    assert all(torch.isfinite(v) for v in algo.update(batch()).values()), "and the next batch is learned from"
    assert not torch.equal(before["critic"]["weight.0"], algo.critic.weight[0])


def test_a_poisoned_actor_loss_leaves_actor_anchor_lambda_and_temperature() -> None:
    """The critic's own loss is finite here: its step is made."""
    algo = agent("mlp", EVERYTHING)
    for _ in range(3):
        algo.update(batch())
    before = learned(algo)
    object.__setattr__(algo.config, "beta", float("inf"))
    try:
        metrics = algo.update(batch())
    finally:
        object.__setattr__(algo.config, "beta", 300.0)
    assert torch.isfinite(metrics["critic_grad_norm"])
    assert not torch.isfinite(metrics["actor_grad_norm"])
    after = learned(algo)
    for part in ("policy", "actor_optimizer", "alpha_optimizer", "log_alpha", "trust_region"):
        same(before[part], after[part])
    assert not torch.equal(before["critic"]["weight.0"], after["critic"]["weight.0"])
    assert not torch.equal(before["target_critic"]["weight.0"], after["target_critic"]["weight.0"])


@pytest.mark.parametrize("poison", ["action", "observation"])
def test_cloning_refuses_too(poison: str) -> None:
    for algo in (agent("flow_t", EVERYTHING), FlowBC(policy(), None, CloneConfig(), seed=0)):
        algo.clone(batch())
        before = learned(algo)
        metrics = algo.clone(poisoned(poison))
        assert not torch.isfinite(metrics["actor_grad_norm"])
        same(before, learned(algo))


def test_a_finite_loss_with_a_gradient_that_is_not_is_refused() -> None:
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    optimizer = optim.adam([x], 0.1)
    norm = optim.step(optimizer, x.sqrt().sum())  # 1/(2·√0)
    assert not torch.isfinite(norm)
    assert x.tolist() == [0.0, 1.0]
    assert float(optim.step(optimizer, (3 * x).sum())) == pytest.approx(3 * 2**0.5)
    assert float(optimizer.state[x]["step"]) == 1, "the refused step is not counted: Adam's bias correction"
    assert x.tolist() == pytest.approx([-0.1, 0.9])


def test_an_infinite_loss_with_a_finite_gradient_is_refused() -> None:
    x = torch.tensor([1.0], requires_grad=True)
    assert not torch.isfinite(optim.step(optim.adam([x], 0.1), x.sum() + float("inf")))
    assert x.tolist() == [1.0]


def test_clipping_scales_the_gradient_and_reports_it_unclipped() -> None:
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    norm = optim.step(optim.adam([x], 0.1), (x * x).sum(), max_grad_norm=1.0)
    assert float(norm) == pytest.approx(10.0)
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-5)


def test_a_norm_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="max_grad_norm is 0.0; it must be positive"):
        build(Config, {"max_grad_norm": 0}, "finetune")


def test_no_update_asks_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way from a tensor to Python would make a GPU's host wait, and break the capture of a CUDA graph."""
    algo = agent("flow_g", EVERYTHING)
    data = batch()
    algo.update(data)  # Adam's state is made here

    def asked(self: torch.Tensor, *_: Any) -> Any:
        raise AssertionError("the host waits for a tensor")

    for way in ("__bool__", "__float__", "__int__", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, way, asked)
    algo.update(data)


def test_no_nan_is_acted_on_and_bad_observations_are_not_the_policys_fault() -> None:
    made = policy("mlp")
    good = np.zeros((1, 5), np.float32)
    assert np.isfinite(made.act(good)).all()
    assert np.isnan(made.act(good * np.nan)).all(), "answered as it was asked"
    with torch.no_grad():
        next(made.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteAction, match="answers a finite observation with 6 action values of 6") as caught:
        made.act(good)
    assert caught.value.fix


# What the loop makes of it ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FLOWFT_RUNS", str(tmp_path))
    with RunFolder("run", "finetune", {"dataset": "my demos.hdf5"}, (), None) as made:
        yield made


def update(critic: float, actor: float | None = None) -> dict[str, torch.Tensor]:
    values = {"critic_loss": critic, "q": 1.0} | ({} if actor is None else {"actor_loss": actor})
    return {key: torch.tensor(value) for key, value in values.items()}


def test_the_row_says_what_was_in_the_batch(folder: RunFolder) -> None:
    watch = nonfinite.Watch(folder, 5, torch.device("cpu"), Config())
    data = poisoned("reward")
    watch.see(7, batch(), update(1.0))
    watch.see(8, data, update(float("nan")))
    (row,) = rows(folder.path)
    assert (row["kind"], row["step"], row["what"], row["in_a_row"]) == ("nonfinite", 8, "critic_loss nan", 1)
    assert (row["reward_nonfinite"], row["observation_nonfinite"]) == (1, 0)
    finite = data.reward[torch.isfinite(data.reward)]
    assert row["reward_mean"] == pytest.approx(float(finite.mean()))
    assert (row["action_min"], row["action_max"]) == (float(data.action.min()), float(data.action.max()))
    assert nonfinite.statistics(data._replace(reward=data.reward * float("nan")))["reward_min"] is None


def test_only_several_in_a_row_end_the_run(folder: RunFolder) -> None:
    watch = nonfinite.Watch(folder, 3, torch.device("cpu"), Config())
    bad, good = float("inf"), 1.0
    for value in (bad, bad, good, bad, bad):
        watch.see(1, batch(), update(value))
    assert watch.verdict is None
    watch.see(2, batch(), update(bad))
    assert watch.verdict is not None
    assert "not finite for 3 updates in a row, last at step 2: critic_loss inf" in watch.verdict.what
    assert watch.verdict.fix == "--name run-2 --set finetune.critic_learning_rate=3e-05 --set finetune.max_grad_norm=10"
    assert (watch.verdict.exit_code, watch.in_a_row) == (1, {})


def test_updates_without_an_actor_do_not_hide_that_it_is_stuck(folder: RunFolder) -> None:
    watch = nonfinite.Watch(folder, 3, torch.device("cpu"), Config(actor_learning_rate=1e-2, max_grad_norm=1.0))
    for _ in range(3):
        watch.see(1, batch(), update(1.0))
        watch.see(2, batch(), update(1.0, actor=float("nan")))
    assert watch.verdict is not None
    assert watch.verdict.fix == "--name run-2 --set finetune.actor_learning_rate=0.0001 --set finetune.max_grad_norm=0.1"


def test_bad_data_are_named_as_the_cause(folder: RunFolder) -> None:
    watch = nonfinite.Watch(folder, 1, torch.device("cpu"), Config())
    watch.see(3, poisoned("next_observation"), update(float("nan")))
    assert watch.verdict is not None
    assert "its batch holds non-finite values: 1 of next_observation" in watch.verdict.what
    assert watch.verdict.fix == "flowft data check 'my demos.hdf5'"


def test_a_device_is_asked_once_in_many_updates_and_none_is_missed(folder: RunFolder) -> None:
    watch = nonfinite.Watch(folder, 100, torch.device("cpu"), Config())
    watch.every = 4
    for step in range(1, 7):
        watch.see(step, poisoned("reward") if step in (2, 6) else batch(), update(float("nan") if step in (2, 6) else 1.0))
        assert len(rows(folder.path)) == (1 if step >= 4 else 0)
    watch.look()
    assert [(row["step"], row["reward_nonfinite"]) for row in rows(folder.path)] == [(2, 1), (6, 1)]


# As a user meets it -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("workshop")
    write_hopper(made / "hopper.hdf5")
    (made / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    flowft("pretrain", "--recipe", "tiny.yaml", "--set", "pretrain.evaluate=false", cwd=made)
    return made


def test_a_critic_that_overflows_ends_the_run_with_a_saved_state(workshop: Path) -> None:
    command = ["finetune", "--ckpt", "hopper", "--name", "wild", "--set", "finetune.critic_learning_rate=1e30"]
    done = flowft(*command, cwd=workshop, code=1)
    said = refused(done.stderr)
    assert "not finite for 5 updates in a row, last at step" in said
    assert "critic_loss" in said
    assert "--name wild-2 --set finetune.critic_learning_rate=0.0001 --set finetune.max_grad_norm=10" in said
    assert done.stderr.count("note: step") == 1, "said once for the five of them"
    assert done.stdout == ""
    found = [row for row in rows(workshop / "runs" / "wild") if row["kind"] == "nonfinite"]
    assert [row["in_a_row"] for row in found] == [1, 2, 3, 4, 5]
    assert {f"{c}_{s}" for c in nonfinite.COLUMNS for s in ("min", "max", "mean", "nonfinite")} <= set(found[0])
    assert "the critic has diverged by step" in said
    state = torch.load(workshop / "runs" / "wild" / "state.pt", weights_only=True)
    assert (state["step"], sound(state)) == (0, True), "the last sound one"

    again = flowft(*command, cwd=workshop, code=1)
    assert "continuing at step 0" in again.stderr
    assert [row for row in rows(workshop / "runs" / "wild") if row["kind"] == "nonfinite"] == found, "and it came to the same"

    flowft("finetune", "--ckpt", "hopper", "--name", "tame", "--set", "finetune.critic_learning_rate=0.0001", cwd=workshop)


def test_pretraining_ends_the_same_way(workshop: Path) -> None:
    wild = ["--set", "pretrain.critic_learning_rate=1e30", "--set", "diagnostics.nonfinite_limit=3"]
    done = flowft("pretrain", "--recipe", "tiny.yaml", "--name", "wild-clone", *wild, cwd=workshop, code=1)
    said = refused(done.stderr)
    assert "not finite for 3 updates in a row" in said
    assert "fix: flowft pretrain" in said and "--name wild-clone-2 --set pretrain.critic_learning_rate=0.0001" in said
    assert not (workshop / "checkpoints" / "wild-clone.pt").exists()
    assert (workshop / "runs" / "wild-clone" / "state.pt").exists()


FINETUNE = ["finetune", "--ckpt", "hopper", "--set", "finetune.radius=null", "--set", "finetune.act_with=actor"]
PRETRAIN = ["pretrain", "--recipe", "tiny.yaml", "--set", "pretrain.updates=1", "--set", "pretrain.evaluate=false"]
AT_ONCE = ["--set", "finetune.updates_per_step=12", "--set", "finetune.actor_every=1"]  # the verdict falls before another action


@pytest.mark.parametrize(
    ("words", "part", "setting"),
    [
        (PRETRAIN, "actor", "pretrain.actor_learning_rate"),
        (PRETRAIN, "critic", "pretrain.critic_learning_rate"),
        (FINETUNE, "actor", "finetune.actor_learning_rate"),
        ([*FINETUNE, *AT_ONCE], "actor", "finetune.actor_learning_rate"),
    ],
    ids=["clone", "its critic", "actor", "actor, refused at once"],
)
def test_what_has_diverged_is_named_and_neither_saved_nor_published(words: list[str], part: str, setting: str, workshop: Path) -> None:
    """The last gradient may be finite, and the weights after it of no use to anybody."""
    name = f"far-{words[0]}-{part}-{len(words)}"
    said = refused(flowft(*words, "--set", f"{setting}=1e30", "--name", name, cwd=workshop, code=1).stderr)
    assert f"the {part} has diverged by step" in said
    assert f"--name {name}-2 --set {setting}=0.0001" in said
    assert "the last sound state is saved" in said
    assert ("not finite for 5 updates in a row" in said) == (AT_ONCE[1] in words)
    state = torch.load(workshop / "runs" / name / "state.pt", weights_only=True)
    assert (state["step"], sound(state)) == (0, True)
    published = workshop / "checkpoints" / f"{name}.pt"
    assert not published.exists() or sound(torch.load(published, weights_only=True))


def sound(content: dict[str, Any]) -> bool:
    """Whether every weight in a checkpoint or state is one that a network can have."""
    found = [value for part in ("policy", "critic") for value in content["algo"][part].values()]
    return len(found) > 6 and all(bool((value.abs() < nonfinite.LARGEST).all()) for value in found)


@pytest.mark.parametrize(
    ("found", "part"),
    [
        ({"critic_loss": float("inf"), "q": float("nan"), "q_target": 1.0}, "critic"),
        ({"critic_loss": float("inf"), "q": 1e25, "q_target": 1e23}, "critic"),
        ({"critic_loss": float("inf"), "q": 3.0, "q_target": float("inf")}, "actor"),
        ({"critic_loss": float("inf"), "q": -3.0, "q_target": 1e25}, "actor"),
        ({"critic_loss": float("inf"), "q": 3.0, "q_target": float("nan"), "alpha": float("inf")}, "alpha"),
        ({"critic_loss": 1.0, "actor_loss": float("nan")}, "actor"),
        ({"critic_loss": 1.0, "actor_loss": 1.0, "alpha_grad_norm": float("nan"), "alpha": 0.1}, "alpha"),
    ],
)
def test_the_part_whose_doing_it_is_gets_the_advice(found: dict[str, float], part: str, folder: RunFolder) -> None:
    """A critic cannot help a target that its actor or the temperature has spoilt."""
    watch = nonfinite.Watch(folder, 1, torch.device("cpu"), Config())
    watch.see(4, batch(), {name: torch.tensor(value) for name, value in found.items()})
    assert watch.verdict is not None
    assert str(watch.verdict.fix).startswith(f"--name run-2 --set finetune.{part}_learning_rate=")


@pytest.mark.parametrize("kind", ["sac_flow", "rlpd", "sac_flow_scratch"])
def test_a_temperature_that_cannot_be_learned_is_told(kind: str) -> None:
    algo = registry.get("algos", kind)
    networks = Networks(policies.Config("mlp", {"hidden": [16]}, horizon=3), critics.Config((16,)), Actor((16,)))
    made = policies.build(algo.policy_kind, SPEC, networks)
    learner = algo(made, critics.Config((16,)), build(algo.config_type, {"alpha": 0.1}, ""), 0)
    learner.target_entropy = float("nan")
    before = learner.log_alpha.detach().clone()
    found = learner.update(batch())
    assert not found["alpha_grad_norm"].isfinite()
    assert found["actor_grad_norm"].isfinite()
    assert torch.equal(learner.log_alpha, before)


def test_a_single_bad_weight_is_found_wherever_it_is(folder: RunFolder) -> None:
    watch = nonfinite.Watch(folder, 5, torch.device("cpu"), Config())
    seen = np.zeros((1, 5), np.float32)
    watch.require_sound(1, agent(), seen)
    for part, network in (("actor", "policy"), ("critic", "critic")):
        for place in range(len(list(getattr(agent(), network).parameters()))):
            for value in (float("nan"), float("-inf"), 1e5):
                algo = agent()
                with torch.no_grad():
                    list(getattr(algo, network).parameters())[place].view(-1)[0] = value
                with pytest.raises(TrainingError, match=f"the {part} has diverged by step 1: its largest weight is"):
                    watch.require_sound(1, algo, seen)


def test_what_waits_on_a_device_is_written_down_when_the_run_ends(folder: RunFolder) -> None:
    watch = nonfinite.Watch(folder, 5, torch.device("cpu"), Config())
    watch.every = 50
    watch.see(8, poisoned("reward"), update(float("nan")))
    error = watch.diverged(9, "actor", "it is gone")
    assert [row["step"] for row in rows(folder.path)] == [8]
    assert "the actor has diverged by step 9: it is gone" in error.what


def test_no_simulator_is_stepped_with_what_is_no_number() -> None:
    """Neither by training nor by an evaluation."""
    vector = Vector(EnvSpec("gymnasium", "Hopper-v5", max_steps=15), 1, processes=False)
    made = FlowPolicy(vector.spec, policies.Config(network="mlp", net={"hidden": [16]}, horizon=3))
    with torch.no_grad():
        next(made.network.parameters()).fill_(float("nan"))
    ring = Replay(100, vector.spec.observation_dim, vector.spec.action_dim, RewardTransform(), 0)
    live = Collector(vector, made, ring, 0)
    live.begin()
    with pytest.raises(NonFiniteAction):
        live.step()
    assert (len(ring), live.taken) == (0, 0)
    with pytest.raises(NonFiniteAction):
        evaluate(made, EnvSpec("gymnasium", "Hopper-v5", max_steps=15), EvalConfig(episodes=1))
