"""The released code's defects, switched on by name: each does what its name says, none of them nothing but SAC Flow."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from flowft import checkpoint, recipe
from flowft.algos.sac_flow import SACFlow
from flowft.algos.sac_flow_released import Config, ReleasedSACFlow
from flowft.cli import main
from flowft.errors import UsageError
from flowft.policies import critic, flow
from flowft.policies import policy as policies
from flowft.policies.flow_released import ReleasedFlowPolicy
from flowft.train import checks
from flowft.train import pretrain as offline
from flowft.train.settings import Settings, finetune_section

from .helpers import NETS, SPEC, agent, batch, episode, replay
from .test_cli import TINY, flowft, rows, write_hopper

EVERY = ("temperature_sign", "raw_cloning", "constant_noise", "unscaled_noise", "two_sigmas", "unmasked_beta", "missing_log_sigma")
PRESETS = ("presets/paper", "presets/released")


def released(*defects: str, network: str = "mlp", seed: int = 0, settings: dict[str, Any] | None = None, **policy: Any) -> ReleasedSACFlow:
    """`settings` of the algorithm; the rest is the policy's."""
    torch.manual_seed(0)
    made = ReleasedFlowPolicy(SPEC, policies.Config(network=network, net=NETS[network], **{"horizon": 3, "steps": 4, **policy}))
    config = recipe.build(Config, {"defects": defects, **(settings or {})}, "finetune")
    return ReleasedSACFlow(made, critic.Config(hidden=(32, 32)), config, seed)


def same(one: SACFlow, other: SACFlow) -> bool:
    pairs = [(one.policy, other.policy), (one.critic, other.critic), (one.target_critic, other.target_critic)]
    equal = [torch.equal(a, b) for x, y in pairs for a, b in zip(x.parameters(), y.parameters(), strict=True)]
    return all(equal) and torch.equal(one.log_alpha, other.log_alpha)


def seen_sigmas(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """σ of every noisy rollout from here on."""
    seen: list[float] = []
    real = flow.rollout

    def spy(velocity: Any, sigma: Any, x0: torch.Tensor, noise: torch.Tensor, drift_correction: bool = True) -> flow.Rollout:
        seen.append(round(float(sigma(x0, x0.new_zeros(len(x0), 1))), 6))
        return real(velocity, sigma, x0, noise, drift_correction)

    monkeypatch.setattr(flow, "rollout", spy)
    return seen


@pytest.mark.parametrize("network", list(NETS))
def test_without_defects_it_is_sac_flow_to_the_bit(network: str) -> None:
    settings = {"alpha": 0.05, "beta": 10.0}
    plain, mine = agent(network, Config(**settings)), released(network=network, settings=settings)
    assert same(plain, mine)
    for algo in (plain, mine):
        torch.manual_seed(1)
        for _ in range(3):
            algo.clone(batch())
        for _ in range(3):
            algo.update(batch())
    assert same(plain, mine)
    observation = np.zeros((2, 5), np.float32)
    chunks = [algo.acting.unit_chunk(observation, *algo.acting.draw(2, algo.stream)) for algo in (plain, mine)]
    assert np.array_equal(*chunks)


@pytest.mark.parametrize(("target_sigma", "rises"), [(0.05, True), (0.4, False)])
def test_1_the_temperature_rises_while_the_entropy_is_above_its_target(target_sigma: float, rises: bool) -> None:
    algo = released("temperature_sign", settings={"alpha": 0.1, "target_sigma": target_sigma, "alpha_learning_rate": 1e-2}, sigma=0.1)
    before = float(algo.alpha)
    for _ in range(5):
        algo.update(batch())
    assert (float(algo.alpha) > before) is rises


def test_1_at_the_published_settings_the_temperature_falls_to_nothing() -> None:
    """The log of the released run has α from 3e-2 to 1e-11 within 85,000 updates: a fall by the learning rate in each."""
    fixed = {"alpha": 0.03, "target_entropy": 0.0}
    algo = released("temperature_sign", "unscaled_noise", "two_sigmas", settings=fixed)
    for _ in range(50):
        algo.update(batch())
    per_update = -math.log(float(algo.alpha) / 0.03) / 50
    assert per_update == pytest.approx(algo.config.alpha_learning_rate, rel=0.05)


@pytest.mark.parametrize(("defects", "comes_out"), [((), 0.95), (("raw_cloning",), math.tanh(0.95))])
def test_2_a_raw_cloned_action_comes_out_squashed(defects: tuple[str, ...], comes_out: float) -> None:
    algo = released(*defects, settings={"actor_learning_rate": 3e-3}, squash="tanh")
    data = replay(episode(20, action=0.95))
    for _ in range(400):
        algo.clone(data.sample(64, 3, offline=True))
    x0, _ = algo.acting.draw(20, torch.Generator().manual_seed(0))
    found = float(algo.acting.unit_chunk(data.observation[:20].numpy(), x0).mean())
    assert found == pytest.approx(comes_out, abs=0.05)


def test_3_the_step_noise_is_one_tensor_at_every_step_and_call() -> None:
    algo = released("constant_noise", network="flow_g")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    sample = algo.policy.sample

    def spy(s: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor) -> Any:
        seen.append((x0, noise))
        return sample(s, x0, noise)

    algo.policy.sample = spy  # type: ignore[method-assign]
    for _ in range(2):
        algo.update(batch())
    seen.append(algo.acting.draw(16, torch.Generator().manual_seed(5)))
    steps = [step for _, noise in seen for step in noise]
    assert len(steps) == 5 * 4  # target, actor, target, actor, acting
    assert all(torch.equal(step, steps[0]) for step in steps)
    assert 0.5 < float(steps[0].std()) < 1.5
    starts = torch.cat([x0.flatten() for x0, _ in seen])
    assert len(starts.unique()) > 0.999 * len(starts), "x_0 is fresh"


@pytest.mark.parametrize("noise", ["fixed", "learned"])
def test_4_each_step_adds_v_dt_and_sigma_whatever_the_number_of_steps(noise: str) -> None:
    for steps in (2, 8):
        policy = released("unscaled_noise", noise=noise, sigma=0.3, steps=steps).policy
        x0, epsilon = policy.draw(4, torch.Generator().manual_seed(0))
        s = torch.randn(4, 5)
        found = policy.sample(s, x0, epsilon)
        x = x0
        for i in range(steps):
            x = x + policy.velocity(s, x, i / steps) / steps + 0.3 * epsilon[i]
        assert torch.allclose(found.latent, x, atol=1e-5)
        density = torch.distributions.Normal(0, 1).log_prob(x0).sum(-1)
        density = density + torch.distributions.Normal(0, 0.3).log_prob(0.3 * epsilon).sum((0, 2))
        assert torch.allclose(found.path_log_prob, density, rtol=1e-4)
        acted = policy.unit_chunk(s.numpy(), x0, epsilon)
        assert np.allclose(acted, found.action.detach().numpy(), atol=1e-6)


def test_5_actor_and_critic_target_have_different_sigmas_and_acting_has_the_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    algo = released("two_sigmas", sigma=0.1, settings={"radius": None})
    seen = seen_sigmas(monkeypatch)
    algo.update_critic(batch())
    algo.update_actor(batch())
    algo.acting.unit_chunk(np.zeros((1, 5), np.float32), *algo.acting.draw(1, algo.stream))
    assert seen == [0.02, 0.05, 0.02]
    averaged = released("two_sigmas", settings={"act_with": "average", "actor_sigma": 0.2, "behaviour_sigma": 0.3})
    seen.clear()
    averaged.acting.unit_chunk(np.zeros((1, 5), np.float32), *averaged.acting.draw(1, averaged.stream))
    averaged.update_actor(batch())
    assert seen == [0.3, 0.2, 0.2]  # the average acts; the actor and its distance to the average are of the actor's σ
    assert averaged.trust_region is not None
    shared = zip(averaged.acting.parameters(), averaged.trust_region.anchor.parameters(), strict=True)
    assert all(a is b for a, b in shared), "what acts is what learns"


def test_6_padding_pulls() -> None:
    chunk = replay(episode(4)).chunks(torch.tensor([3]), 3, offline=True)  # one real step, two of padding
    pulls = {}
    for defects in ((), ("unmasked_beta",)):
        algo = released(*defects)
        own = algo.policy.sample(chunk.observation, torch.zeros(1, 6), torch.zeros(4, 1, 6))
        own = own._replace(latent=own.latent.detach().requires_grad_())
        distance = algo._behaviour_distance(own, chunk)
        (pulls[defects],) = torch.autograd.grad(distance, own.latent)
        if defects:
            assert float(distance.detach()) == pytest.approx(float((own.latent.detach() - chunk.action.flatten(1)).square().mean()))
    assert (pulls[()][0, 2:] == 0).all()
    assert (pulls[("unmasked_beta",)][0, 2:] != 0).all()


@pytest.mark.parametrize("unscaled", [False, True])
def test_8_the_log_density_leaves_out_log_sigma(unscaled: bool) -> None:
    more = ["unscaled_noise"] if unscaled else []
    whole, lacking = (released(*more, *this, noise="learned", settings={"alpha": 0.1}) for this in ([], ["missing_log_sigma"]))
    x0, noise = whole.policy.draw(4, torch.Generator().manual_seed(0))
    s = torch.randn(4, 5)
    a, b = whole.policy.sample(s, x0, noise), lacking.policy.sample(s, x0, noise)
    assert torch.equal(a.latent, b.latent)
    std = 0.1 if unscaled else 0.1 * math.sqrt(1 / 4)  # the head starts at σ = 0.1 everywhere
    assert torch.allclose(b.path_log_prob - a.path_log_prob, torch.tensor(4 * 6 * math.log(std)), rtol=1e-4)
    assert torch.allclose(b.log_prob - a.log_prob, b.path_log_prob - a.path_log_prob, rtol=1e-4)
    assert a.path_log_prob.requires_grad
    assert not b.path_log_prob.requires_grad, "nothing holds the learned σ up"


def test_state_with_every_defect_is_complete() -> None:
    """N + N updates equal 2N, noise included."""
    settings = {"alpha": 0.01, "beta": 10.0}
    whole, halves = (released(*EVERY, settings=settings, squash="tanh") for _ in range(2))
    for algo in (whole, halves):
        for _ in range(3):
            algo.update(batch())
    again = released(*EVERY, settings=settings, squash="tanh", seed=99)
    again.load_state_dict(halves.state_dict())
    for algo in (whole, again):
        for _ in range(3):
            algo.update(batch())
    assert same(whole, again)


def test_a_checkpoint_explores_as_the_policy_that_it_was_made_of(tmp_path: Path) -> None:
    acting = released("constant_noise", "unscaled_noise", "two_sigmas").acting
    trees = {"policy": recipe.to_tree(policies.Config(network="mlp", net=NETS["mlp"], horizon=3)), "critic": {}, "actor": {}}
    content = {"policy_kind": acting.kind, "spec": SPEC.to_tree(), "recipe": trees, "policy": acting.state_dict()}
    checkpoint.save(tmp_path / "x.pt", "policy checkpoint", content)
    loaded = policies.load_policy(tmp_path / "x.pt")
    x0, noise = loaded.draw(2, torch.Generator().manual_seed(3))
    observation = np.ones((2, 5), np.float32)
    assert torch.equal(noise, acting.draw(2, torch.Generator().manual_seed(9))[1])
    assert np.array_equal(loaded.unit_chunk(observation, x0, noise), acting.unit_chunk(observation, x0, noise))
    plain = agent().policy
    plain.load_state_dict({k: v for k, v in acting.state_dict().items() if k != "_extra_state"})
    assert np.array_equal(loaded.unit_chunk(observation, x0), plain.unit_chunk(observation, x0)), "noise-free it is an ordinary flow"
    assert not np.allclose(loaded.unit_chunk(observation, x0, noise), plain.unit_chunk(observation, x0, noise))


@pytest.mark.parametrize(
    ("defects", "policy", "says"),
    [
        (["temperature_sing"], {}, "did you mean 'temperature_sign'"),
        (["temperature_sign"], {}, "temperature_sign changes nothing while alpha is 0.0"),
        (["missing_log_sigma"], {}, "missing_log_sigma changes nothing while alpha is 0.0"),
        (["raw_cloning"], {"squash": "clip"}, "changes nothing under policy.squash=clip"),
        (["two_sigmas"], {"noise": "learned"}, "policy.noise is learned"),
    ],
)
def test_a_defect_that_would_change_nothing_is_refused(defects: list[str], policy: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        released(*defects, **policy)


# Presets ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_has_the_published_scale_and_none_of_our_additions(name: str) -> None:
    settings = Settings.read(recipe.read(name))
    parts = finetune_section(settings)
    loop, algo = parts.loop, parts.algo
    cloning, _ = recipe.split({"loop": offline.Loop, "algo": type(algo)}, settings.pretrain, "pretrain").values()
    assert cloning.updates + cloning.regularised_updates == loop.steps == 1_000_000
    assert (loop.start_updates, loop.updates_per_step, loop.actor_every, loop.n_step) == (5_000, 1.0, 1, None)
    assert cloning.batch_size == loop.batch_size == 256
    assert (settings.policy.steps, settings.policy.horizon, settings.policy.squash) == (4, 5, "tanh")
    assert (algo.gamma, algo.tau, algo.actor_learning_rate, algo.critic_learning_rate) == (0.99, 0.005, 3e-4, 3e-4)
    assert (settings.critic.hidden, settings.critic.ensemble, settings.critic.activation) == ((512,) * 4, 2, "gelu")
    assert (algo.radius, algo.act_with, algo.max_grad_norm, algo.least_strength) == (None, "actor", None, 0.0)
    assert settings.eval.episodes == 50


def test_the_presets_mean_the_same_pull_in_different_units() -> None:
    for stage in ("pretrain", "finetune"):
        paper, code = (getattr(Settings.read(recipe.read(name)), stage) for name in PRESETS)
        assert (paper["beta_units"], code["beta_units"]) == ("sum", "mean")
        assert paper["beta"] * 35 == pytest.approx(code["beta"], rel=0.01)  # D of a single arm: 5 steps of 7 values


# As a user meets it -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, a recipe and a cloned policy."""
    folder = tmp_path_factory.mktemp("released")
    write_hopper(folder / "hopper.hdf5")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    flowft("pretrain", "--recipe", "tiny.yaml", cwd=folder)
    return folder


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_clones_and_fine_tunes_at_the_scale_of_the_recipe_before_it(workshop: Path, name: str) -> None:
    own = name.rpartition("/")[2]
    flowft("pretrain", "--recipe", "tiny.yaml", "--recipe", name, "--name", own, cwd=workshop)
    flowft("finetune", "--ckpt", own, "--name", f"{own}-ft", cwd=workshop)
    found = rows(workshop / "runs" / f"{own}-ft")
    assert max(row["step"] for row in found) == 120
    alphas = [row["alpha"] for row in found if row["kind"] == "train" and "alpha" in row]
    assert (alphas[-1] > alphas[0]) is (own == "paper"), "the paper's temperature follows its target, the code's runs away from it"
    content = checkpoint.load(workshop / "checkpoints" / f"{own}-ft.pt", "policy checkpoint")
    assert content["recipe"]["critic"]["hidden"] == [32]
    assert content["recipe"]["policy"]["net"] == recipe.read(name)["policy"]["net"], "not the settings of the other recipe's network"
    assert content["evaluation"]["stochastic"] is (own == "released")
    card = (workshop / "runs" / f"{own}-ft" / "README.md").read_text()
    assert ("with sampling noise" in card and "--stochastic" in card) is (own == "released")


def test_an_ordinary_checkpoint_goes_on_with_a_defect(workshop: Path) -> None:
    """With all its settings: a defect is compared with a run that differs in nothing else."""
    flowft("pretrain", "--recipe", "tiny.yaml", "--set", "finetune.beta=7", "--name", "ordinary", cwd=workshop)
    more = ["--set", "algo=sac_flow_released", "--set", "finetune.defects=[unmasked_beta, two_sigmas]"]
    flowft("finetune", "--ckpt", "ordinary", "--name", "defect", *more, cwd=workshop)
    flowft("finetune", "--ckpt", "defect", "--name", "further", cwd=workshop)
    kept = checkpoint.load(workshop / "checkpoints" / "further.pt", "policy checkpoint")
    assert kept["recipe"]["finetune"]["defects"] == ["unmasked_beta", "two_sigmas"]
    assert kept["recipe"]["finetune"]["beta"] == 7
    assert kept["policy"]["_extra_state"]["sigma"] == 0.02


def test_evaluation_with_noise_is_a_setting(workshop: Path) -> None:
    more = ["--set", "eval.stochastic=true", "--set", "eval.episodes=4", "--set", "finetune.steps=60"]
    flowft("finetune", "--ckpt", "hopper", "--name", "noisy", *more, cwd=workshop)
    start = rows(workshop / "runs" / "noisy")[0]
    by_hand, noise_free = (
        json.loads(flowft("eval", "hopper", "--episodes", "4", "--json", *flag, cwd=workshop).stdout) for flag in (["--stochastic"], [])
    )
    assert (start["kind"], start["step"], start["return"]) == ("eval", 0, by_hand["return"])
    assert start["return"] != noise_free["return"]


@pytest.mark.parametrize(
    ("defects", "says"),
    [
        ("[temperature_sign]", "error: finetune: temperature_sign changes nothing while alpha is 0.0; set alpha above 0"),
        ("[raw_cloning]", "error: raw_cloning is about a tanh, and changes nothing under policy.squash=clip\nfix: flowft pretrain --set"),
        ("[unmasked]", "error: finetune.defects[0] is 'unmasked' (did you mean 'unmasked_beta'?)"),
        ("unmasked_beta", "error: finetune.defects is 'unmasked_beta', not a list"),
    ],
)
def test_a_defect_that_cannot_be_ends_in_one_error(
    workshop: Path, defects: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    more = ["--set", "algo=sac_flow_released", "--set", f"finetune.defects={defects}", "--name", "idle"]
    assert main.run(["finetune", "--ckpt", "hopper", *more]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert says in errors
    assert "Traceback" not in errors
    assert not (workshop / "runs" / "idle").exists()


@pytest.mark.parametrize("algo", ["sac_flow", "flow_bc"])
def test_a_policy_with_released_noise_does_not_go_on_as_an_ordinary_one(workshop: Path, algo: str) -> None:
    content = checkpoint.load(workshop / "checkpoints" / "hopper.pt", "policy checkpoint")
    ordinary = Settings.read(recipe.merge(content["recipe"], {"algo": algo}))
    checks.require_same_kind(checks.Start(Path("x.pt"), content), ordinary)
    checks.require_same_kind(checks.Start(Path("x.pt"), content), Settings.read({"algo": "sac_flow_released"}))
    with pytest.raises(UsageError, match=f"holds a flow_released policy.*{algo} trains a flow policy"):
        checks.require_same_kind(checks.Start(Path("x.pt"), {**content, "policy_kind": "flow_released"}), ordinary)
