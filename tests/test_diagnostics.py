"""Gradients through the rollout: right numbers, nothing changed by measuring, and a picture of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from flowft import registry
from flowft.algos import base as algos
from flowft.algos import diagnostics
from flowft.algos.base import ThroughRollout
from flowft.algos.sac_flow import Config
from flowft.errors import UsageError
from flowft.report import gradients

from .helpers import NETS, agent, batch
from .test_cli import TINY, flowft, refused, rows, write_hopper


class Linear(nn.Module):
    """v = A·x: a rollout whose step Jacobians are known, I + Δt·(A − (σ²/2)(I − t·A)/(1 − t))."""

    def __init__(self, a: torch.Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(a)

    def context(self, observation: torch.Tensor) -> torch.Tensor:
        return observation

    def forward(self, context: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x @ self.a.T


def test_jacobians_and_gradients_of_a_linear_rollout_by_hand() -> None:
    sigma, steps = 0.3, 4
    algo = agent(config=Config(beta=1.0, radius=None), sigma=sigma, steps=steps)
    a = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    algo.policy.network = Linear(a)
    with torch.no_grad():
        for p in algo.critic.parameters():
            p.zero_()  # what remains of L is ‖x_K − a_D‖², whose gradient is 2(x_K − a_D) over the number of real values
    data = batch()
    row = diagnostics.gradients(algo, data, elements=3)

    one = torch.eye(6)
    jacobians = [one + (a - 0.5 * sigma**2 * (one - i / steps * a) / (1 - i / steps)) / steps for i in range(steps)]
    for i, jacobian in enumerate(jacobians):
        assert row[f"jacobian_{i}"] == pytest.approx(float(torch.linalg.svdvals(jacobian)[0]), rel=1e-4)
    whole = jacobians[3] @ jacobians[2] @ jacobians[1] @ jacobians[0]
    assert row["jacobian_rollout"] == pytest.approx(float(torch.linalg.svdvals(whole)[0]), rel=1e-4)

    x0, noise = algo.policy.draw(16, torch.Generator().manual_seed(diagnostics.SEED))
    end = algo.policy.chunk(algo.policy.sample(data.observation, x0, noise).latent.detach())
    g = 16 * (2 * (end - data.action) * data.valid.unsqueeze(-1) / (2 * data.valid.sum())).flatten(1)  # (B, D) at x_K
    for i in range(steps, -1, -1):
        assert row[f"grad_x{i}"] == pytest.approx(float(g.norm(dim=1).mean()), rel=1e-4)
        g = g @ jacobians[i - 1] if i else g


@pytest.mark.parametrize("network", list(NETS))
@pytest.mark.parametrize(("steps", "noise"), [(1, "fixed"), (3, "learned")])
def test_every_network_any_number_of_steps(network: str, steps: int, noise: str) -> None:
    algo = agent(network, Config(alpha=0.1), steps=steps, noise=noise)
    row = diagnostics.gradients(algo, batch(), elements=4)
    names = [f"grad_x{i}" for i in range(steps + 1)] + [f"jacobian_{i}" for i in range(steps)]
    assert set(row) == {*names, "jacobian_rollout", "actor_grad_norm"}
    assert all(math.isfinite(value) and value > 0 for value in row.values())
    if steps == 1:
        assert row["jacobian_0"] == row["jacobian_rollout"]


def test_the_actors_norm_is_that_of_its_update() -> None:
    """Same draws, same loss: the norm that the update reports, before the clipping that it then does."""
    algo = agent(config=Config(max_grad_norm=1e-3))
    data = batch()
    before = diagnostics.gradients(algo, data, elements=2)["actor_grad_norm"]
    algo.stream.manual_seed(diagnostics.SEED)
    assert float(algo.update_actor(data)["actor_grad_norm"]) == pytest.approx(before, rel=1e-5)
    assert before > 1e-2


@pytest.mark.parametrize("network", list(NETS))
def test_measuring_leaves_training_as_it_is(network: str) -> None:
    plain, measured = agent(network, Config(alpha=0.01)), agent(network, Config(alpha=0.01))
    for _ in range(3):
        for algo in (plain, measured):
            algo.update(batch())
        first, second = (diagnostics.gradients(measured, batch(), elements=2) for _ in range(2))
        assert first == second, "fixed draws"
    same(plain.state_dict(), measured.state_dict())
    parameters = zip(
        [*plain.policy.parameters(), *plain.critic.parameters()],
        [*measured.policy.parameters(), *measured.critic.parameters()],
        strict=True,
    )
    for a, b in parameters:
        same(a.grad, b.grad)


def same(one: object, other: object) -> None:
    """Nested states, equal to the bit."""
    if isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        assert isinstance(other, list)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one == other


def test_an_exploding_step_is_reported_and_not_a_crash() -> None:
    algo = agent()
    with torch.no_grad():
        next(iter(algo.policy.network.parameters())).fill_(float("nan"))
    assert math.isnan(diagnostics.gradients(algo, batch(), elements=2)["jacobian_0"])


# As a user meets it -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workshop")
    write_hopper(folder / "hopper.hdf5")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    flowft("pretrain", "--recipe", "tiny.yaml", "--set", "pretrain.evaluate=false", cwd=folder)
    return folder


def test_runs_with_measurements_learn_the_same_and_can_be_drawn(workshop: Path) -> None:
    measuring = ["--set", "diagnostics.gradients=true", "--set", "diagnostics.every=40"]
    flowft("finetune", "--ckpt", "hopper", "--name", "plain", cwd=workshop)
    flowft("finetune", "--ckpt", "hopper", "--name", "measured", *measuring, cwd=workshop)
    plain, measured = rows(workshop / "runs" / "plain"), rows(workshop / "runs" / "measured")
    assert plain == [row for row in measured if row["kind"] != "gradients"]
    found = [row for row in measured if row["kind"] == "gradients"]
    assert [row["step"] for row in found] == [40, 80, 120]
    assert {"grad_x0", "grad_x4", "jacobian_0", "jacobian_3", "jacobian_rollout", "actor_grad_norm"} <= set(found[0])

    network = ["--set", "policy.network=flow_t", "--set", "policy.net.width=16", "--set", "pretrain.evaluate=false"]
    flowft("pretrain", "--recipe", "tiny.yaml", "--name", "other", *network, cwd=workshop)
    flowft("finetune", "--ckpt", "other", "--name", "transformer", *measuring, cwd=workshop)
    shown = flowft("plot", "measured", "transformer", "--kind", "gradients", "--out", "g.png", cwd=workshop).stdout.splitlines()
    assert shown[0].startswith("| run | rows |")
    assert [line.split(" | ")[:2] for line in shown[2:4]] == [["| measured (mlp)", "3"], ["| transformer (flow_t)", "3"]]
    assert shown[4:] == ["g.png"]
    assert (workshop / "g.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    done = flowft("plot", "measured", "plain", "--kind", "gradients", "--out", "no.png", cwd=workshop, code=2)
    assert "holds no measurements of gradients" in refused(done.stderr)
    assert "--set diagnostics.gradients=true" in done.stderr
    assert not (workshop / "no.png").exists()


def test_measuring_may_be_switched_on_when_a_run_is_continued(workshop: Path) -> None:
    flowft("finetune", "--ckpt", "hopper", "--name", "later", "--set", "finetune.steps=60", cwd=workshop)
    flowft(
        "finetune",
        "--ckpt",
        "hopper",
        "--name",
        "later",
        "--set",
        "diagnostics.gradients=true",
        "--set",
        "diagnostics.every=60",
        cwd=workshop,
    )
    assert [row["step"] for row in rows(workshop / "runs" / "later") if row["kind"] == "gradients"] == [120]


def test_an_algorithm_without_an_actors_loss_is_refused(workshop: Path) -> None:
    done = flowft(
        "finetune", "--ckpt", "hopper", "--name", "bc", "--set", "algo=flow_bc", "--set", "diagnostics.gradients=true", cwd=workshop, code=2
    )
    assert "flow_bc learns nothing through the rollout" in refused(done.stderr)


# The report -------------------------------------------------------------------------------------------------------------


def write_rows(folder: Path, values: list[list[float]]) -> Path:
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"policy": {"network": "mlp"}}))
    made = [
        {"kind": "gradients", "step": 10 * n, **{f"grad_x{i}": v for i, v in enumerate(row)}, "jacobian_0": 2.0, "jacobian_1": 1.0,
         "jacobian_rollout": 2.0, "actor_grad_norm": float(n)} for n, row in enumerate(values, start=1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder


def test_growth_is_the_first_gradient_over_the_last(tmp_path: Path) -> None:
    run = gradients.read_run(write_rows(tmp_path / "a", [[8.0, 4.0, 2.0], [9.0, 2.0, 1.0], [float("nan"), 1.0, 1.0]]))
    assert run.growth[:2].tolist() == [4.0, 9.0]
    assert run.label == "a (mlp)"
    line = gradients.table([run]).splitlines()[2]
    assert line == "| a (mlp) | 3 | 6.5 (4–9), 1 not finite | 2 (1–3) | 2 (2–2) | 2 (2–2) |"
    gradients.draw([run], tmp_path / "a.svg")
    assert "a (mlp)" in (tmp_path / "a.svg").read_text(), "the legend (matplotlib repeats an outlined text as a comment)"


def test_a_gradients_picture_of_an_unknown_format_is_refused(tmp_path: Path) -> None:
    run = gradients.read_run(write_rows(tmp_path / "a", [[1.0, 1.0, 1.0]]))
    with pytest.raises(UsageError, match="bmp"):
        gradients.draw([run], tmp_path / "a.bmp")
    assert not (tmp_path / "a.bmp").exists()


def test_only_what_trains_through_the_rollout_says_so() -> None:
    """An `actor_loss` of another kind (a one-step actor's, a Gaussian's) has no flow steps to look at."""
    found = [name for name in registry.names("algos") if issubclass(algos.named(name), ThroughRollout)]
    assert sorted(found) == ["sac_flow", "sac_flow_released", "sac_flow_scratch"]
