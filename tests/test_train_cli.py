"""`flowft train` as a user meets it: from an environment's name to a curve, killed and continued."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from flowft import load_critic
from flowft.errors import CheckpointError

from .test_cli import FLOWFT, flowft, reached, refused, rows, same, weights

TINY: dict[str, Any] = {
    "device": "cpu",
    "max_steps": 40,
    "policy": {"net": {"hidden": [16], "gate_hidden": 8}},
    "critic": {"hidden": [16, 16]},
    "actor": {"hidden": [16]},
    "train": {"steps": 160, "random_steps": 60, "batch_size": 16, "capacity": 1000, "log_every": 20},
    "eval": {"episodes": 2, "every": 80},
}
HOPPER = ["train", "--env", "Hopper-v5", "--recipe", "tiny.yaml"]
LONG = ["--set", "train.steps=900", "--set", "eval.every=300"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and one finished run, hopper-v5; tests must not change them."""
    folder = tmp_path_factory.mktemp("scratch")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    done = flowft(*HOPPER, cwd=folder)
    assert done.stdout.splitlines()[0].startswith("checkpoints/hopper-v5.pt: success 0/2")
    assert done.stdout.splitlines()[1] == "next: flowft plot hopper-v5 --kind return --out hopper-v5.png"
    return folder


# The whole way ----------------------------------------------------------------------------------------------------------


def test_gradients_through_the_rollout_can_be_watched(workshop: Path, tmp_path: Path) -> None:
    measuring = ["--set", "diagnostics.gradients=true", "--set", "diagnostics.every=40"]
    flowft(*HOPPER, "--name", "measured", *measuring, cwd=workshop)
    found = rows(workshop / "runs" / "measured")
    assert [row for row in found if row["kind"] != "gradients"] == rows(workshop / "runs" / "hopper-v5"), "measuring changes nothing"
    assert [row["step"] for row in found if row["kind"] == "gradients"] == [80, 120, 160]
    shown = flowft("plot", "measured", "--kind", "gradients", "--out", str(tmp_path / "g.png"), cwd=workshop).stdout
    assert "| measured (flow_g) | 3 |" in shown
    done = flowft(*HOPPER, "--name", "gaussian", "--set", "algo=sac_scratch", *measuring, cwd=workshop, code=2)
    assert "sac_scratch learns nothing through the rollout" in refused(done.stderr)


def test_from_an_environment_to_a_policy_a_card_and_a_curve(workshop: Path) -> None:
    found = rows(workshop / "runs" / "hopper-v5")
    assert {row["stage"] for row in found} == {"train"}
    assert [row["step"] for row in found if row["kind"] == "eval"] == [0, 80, 160]
    learned = [row for row in found if row["kind"] == "train"]
    assert [row["step"] for row in learned] == [80, 100, 120, 140, 160], "nothing learns during the random steps"
    assert all({"critic_loss", "actor_loss", "entropy", "alpha"} <= set(row) for row in learned), "the actor's too, at every row"
    episodes = [row for row in found if row["kind"] == "episode"]
    assert all(row["length"] <= 40 for row in episodes)

    card = (workshop / "runs" / "hopper-v5" / "README.md").read_text()
    assert "learned from scratch" in card
    assert "no demonstrations. Environment gymnasium:Hopper-v5. 160 online environment steps." in card
    assert "flowft train --env Hopper-v5 --recipe tiny.yaml" in card

    last = [row for row in found if row["kind"] == "eval"][-1]
    shown = json.loads(flowft("eval", "hopper-v5", "--episodes", "2", "--json", cwd=workshop).stdout)
    assert (shown["env"], shown["return"]) == ("gymnasium:Hopper-v5", last["return"]), "the checkpoint is the policy of the last evaluation"

    with pytest.raises(CheckpointError, match=r"algo sac_flow_scratch\) is of another kind"):
        load_critic(workshop / "checkpoints" / "hopper-v5.pt")
    flowft(*HOPPER, "--name", "noisy", "--set", "eval.stochastic=true", "--set", "train.steps=80", cwd=workshop)
    assert "with sampling noise" in (workshop / "runs" / "noisy" / "README.md").read_text()

    drawn = flowft("plot", "hopper-v5", "--out", "a.svg", "--kind", "return", cwd=workshop)
    assert drawn.stdout.splitlines()[0] == f"hopper-v5: {last['return']:.2f} after 160 online steps"
    assert (workshop / "a.svg").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("more", "kind"),
    [(["policy.network=flow_t", "policy.net.width=16", "train.target_entropy=0"], "flow"), (["algo=sac_scratch"], "gaussian")],
    ids=["flow_t", "gaussian"],
)
def test_the_other_actors_start_learn_and_are_evaluated(workshop: Path, more: list[str], kind: str) -> None:
    name = more[0].partition("=")[2]
    options = [word for setting in [*more, "train.steps=80"] for word in ("--set", setting)]
    flowft(*HOPPER, "--name", name, *options, cwd=workshop)
    content = torch.load(workshop / "checkpoints" / f"{name}.pt", weights_only=True)
    assert content["policy_kind"] == kind
    assert content["recipe"]["policy"]["net"].get("norm") == {"flow": "pre", "gaussian": None}[kind], "what does best from scratch"
    assert json.loads(flowft("eval", name, "--episodes", "1", "--json", cwd=workshop).stdout)["episodes"] == 1


def test_an_actor_that_diverges_ends_the_run_and_reaches_no_simulator(workshop: Path) -> None:
    """Its gradients are finite, its weights after the step are of no use: the actor is named, and not the data."""
    name = "far"
    done = flowft(*HOPPER, "--name", name, "--set", "train.actor_learning_rate=1e30", cwd=workshop, code=1)
    said = refused(done.stderr)
    assert "the actor has diverged by step 63: the policy answers a finite observation with 3 action values of 3 that are not" in said
    assert "--set train.actor_learning_rate=0.0001" in said
    assert "data check" not in said
    state = torch.load(workshop / "runs" / name / "state.pt", weights_only=True)
    assert (state["step"], all(torch.isfinite(value).all() for value in state["algo"]["policy"].values())) == (0, True)
    published = workshop / "checkpoints" / f"{name}.pt"
    assert not published.exists(), "no evaluation was made of it"


def test_an_environment_brings_its_recipe_along(tmp_path: Path) -> None:
    small = [word for setting in ("train.steps=12", "train.random_steps=6", "train.batch_size=8", "critic.hidden=[16]", "max_steps=5")
             for word in ("--set", setting)]  # fmt: skip
    done = flowft("train", "--env", "HalfCheetah-v5", *small, "--set", "eval.episodes=1", cwd=tmp_path)
    assert "recipe: scratch/halfcheetah" in done.stderr
    settings = yaml.safe_load((tmp_path / "runs" / "halfcheetah-v5" / "recipe.yaml").read_text())
    assert (settings["threads"], settings["critic"]["hidden"], settings["policy"]["horizon"]) == (1, [16], 1)
    assert (settings["policy"]["squash"], settings["policy"]["noise"]) == ("tanh", "learned")


def test_robosuite_takes_part(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    flowft("train", "--env", "Lift", "--recipe", "tiny.yaml", "--set", "train.steps=70", "--set", "eval.episodes=1", cwd=tmp_path)
    assert weights(tmp_path / "checkpoints" / "lift.pt")


# Killed and continued ---------------------------------------------------------------------------------------------------


def test_the_same_seed_writes_the_same_metrics_and_another_does_not(workshop: Path) -> None:
    for name, seed in (("first", "0"), ("other", "1")):
        flowft(*HOPPER, "--name", name, "--seed", seed, cwd=workshop)
    first, second, other = ((workshop / "runs" / name / "metrics.jsonl").read_bytes() for name in ("hopper-v5", "first", "other"))
    assert first == second
    assert first != other


def test_n_and_n_steps_equal_2n(workshop: Path) -> None:
    """Stopped between two updates of the actor."""
    for steps in ("101", "160"):
        flowft(*HOPPER, "--name", "parts", "--set", f"train.steps={steps}", cwd=workshop)
    learned = [[row for row in rows(workshop / "runs" / name) if row["kind"] != "eval"] for name in ("hopper-v5", "parts")]
    assert learned[0] == learned[1]
    assert weights(workshop / "checkpoints" / "hopper-v5.pt") == weights(workshop / "checkpoints" / "parts.pt")


@pytest.fixture(scope="module")
def uninterrupted(workshop: Path) -> str:
    flowft(*HOPPER, "--name", "uninterrupted", *LONG, cwd=workshop)
    return "uninterrupted"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_continues_to_the_same_end(workshop: Path, uninterrupted: str, number: signal.Signals) -> None:
    name = f"cut-{number.name}"
    command = [*HOPPER, "--name", name, *LONG]
    with subprocess.Popen([FLOWFT, *command], cwd=workshop, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        reached(workshop / "runs" / name / "metrics.jsonl", 320)
        process.send_signal(number)
        process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGTERM else -number)
    assert "continuing at step" in flowft(*command, cwd=workshop).stderr
    same(workshop, uninterrupted, name)


# What a user can get wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["train"], 2, "no environment was named"),
        (["train", "--env", "Hoper-v5"], 1, "Hoper-v5"),
        (["train", "--env", "Hopper-v5", "--set", "train.batchsize=1"], 2, "'train.batchsize' (did you mean 'batch_size'?)"),
        (["train", "--env", "Hopper-v5", "--set", "train.random_steps=0"], 2, "random_steps is 0"),
        (["train", "--env", "Hopper-v5", "--set", "train.alpha=0"], 2, "alpha is 0.0; it must be positive"),
        (["train", "--env", "Hopper-v5", "--set", "finetune.steps=9"], 2, "finetune.steps is a setting of `flowft finetune`"),
        (["train", "--env", "Hopper-v5", "--set", "algo=sac_flow"], 2, "sac_flow starts from demonstrations"),
        (["train", "--env", "Hopper-v5", "--set", "algo=sac_scrach"], 2, "did you mean 'sac_scratch'?"),
        ([*HOPPER, "--seed", "7"], 2, "runs/hopper-v5 holds a run with other settings (seed: 0 -> 7)"),
        (["pretrain", "--dataset", "x.hdf5", "--set", "algo=sac_flow_scratch"], 2, "sac_flow_scratch learns from scratch"),
        (["finetune", "--ckpt", "hopper-v5"], 2, "sac_flow_scratch learns from scratch"),
        (["finetune", "--ckpt", "hopper-v5", "--set", "algo=sac_flow"], 1, "knows no demonstrations to go on with"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_error_and_one_fix(
    workshop: Path, arguments: list[str], code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flowft.cli import main

    monkeypatch.chdir(workshop)
    before = sorted(path.name for path in workshop.rglob("*"))
    assert main.run(arguments) == code
    out, errors = capsys.readouterr()
    assert "Traceback" not in errors
    assert out == ""
    found = [line for line in errors.splitlines() if not line.startswith("recipe: ")]
    assert says in refused("\n".join(found))
    assert sorted(path.name for path in workshop.rglob("*")) == before, "nothing was written"


# Around it --------------------------------------------------------------------------------------------------------------


def test_the_first_steps_are_uniform_and_the_rest_are_the_policys() -> None:
    from flowft.data.replay import Replay, RewardTransform
    from flowft.data.spec import EnvSpec
    from flowft.envs.vector import Vector
    from flowft.train.collect import Collector

    from .helpers import policies

    with Vector(EnvSpec("gymnasium", "HalfCheetah-v5"), 2, processes=False) as vector:
        torch.manual_seed(0)
        still = policies.Config(network="mlp", net={"hidden": [8]}, horizon=1, sigma=1e-3)
        replay = Replay(2000, vector.spec.observation_dim, vector.spec.action_dim, RewardTransform(), 0)
        made = policies.FlowPolicy(vector.spec, still)
        for parameter in made.network.parameters():
            torch.nn.init.zeros_(parameter)  # v = 0: the policy's action is clip(x_0), often at the bounds
        live = Collector(vector, made, replay, 0, random_steps=600)
        live.begin()
        for _ in range(600):
            live.step()
    actions = replay.action[replay.has_action].numpy()
    at_bounds = (np.abs(actions) == 1).any(axis=1)
    assert len(actions) == 1200
    assert not at_bounds[:600].any()
    assert at_bounds[600:].mean() > 0.5
    assert np.abs(np.sort(actions[:600].ravel()) - np.linspace(-1, 1, 3600)).max() < 0.05, "uniform over the whole range"
