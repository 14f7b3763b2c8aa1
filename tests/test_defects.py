"""What the released code gets wrong. Each of these fails when the defect is put back (numbers as in the changelog)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from flowft.algos.flow_bc import Config as CloneConfig
from flowft.algos.flow_bc import FlowBC
from flowft.algos.sac_flow import Config
from flowft.policies import flow

from .helpers import NETS, agent, batch, episode, policy, replay


@pytest.mark.parametrize(("target_sigma", "falls"), [(0.05, True), (0.4, False)])
def test_1_the_temperature_falls_while_the_entropy_is_above_its_target(target_sigma: float, falls: bool) -> None:
    algo = agent(config=Config(alpha=0.1, target_sigma=target_sigma, alpha_learning_rate=1e-2), sigma=0.1)
    before = float(algo.alpha)
    for _ in range(5):
        algo.update(batch())
    assert (float(algo.alpha) < before) is falls


def test_1_at_its_target_the_temperature_rests() -> None:
    algo = agent(config=Config(alpha=0.1, target_sigma=0.1))
    x0, noise = algo.policy.draw(50_000, torch.Generator().manual_seed(0))
    path = algo.policy.sample(torch.zeros(50_000, 5), x0, noise).path_log_prob
    loss = algo.temperature_loss(path).detach()
    assert abs(float(loss)) < 0.1 * 0.1  # α times a sampling error of the entropy below 0.1 nats


@pytest.mark.parametrize("squash", ["clip", "tanh"])
def test_2_a_cloned_action_comes_out_as_it_went_in(squash: str) -> None:
    cloned = FlowBC(policy("mlp", squash=squash), None, CloneConfig(3e-3), seed=0)
    data = replay(episode(20, action=0.95))
    for _ in range(400):
        cloned.update(data.sample(64, 3, offline=True))
    x0, _ = cloned.policy.draw(20, torch.Generator().manual_seed(0))
    actions = cloned.policy.unit_chunk(data.observation[:20].numpy(), x0)
    assert np.abs(actions - 0.95).mean() < 0.1  # fitting raw actions under a tanh gives 0.74


def test_3_step_noise_is_fresh_at_every_step_element_and_call() -> None:
    for network in NETS:
        algo = agent(network)
        seen: list[torch.Tensor] = []
        sample = algo.policy.sample

        def spy(s: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, sample: Any = sample, seen: list[torch.Tensor] = seen) -> Any:
            seen.append(noise)
            return sample(s, x0, noise)

        algo.policy.sample = spy  # type: ignore[method-assign]
        algo.update(batch())
        algo.update(batch())
        values = torch.cat([noise.flatten() for noise in seen])
        assert len(values.unique()) > 0.999 * len(values)


def test_4_the_policy_uses_the_drift_correction_unless_told_otherwise() -> None:
    with_it, without = policy("mlp", sigma=0.5), policy("mlp", sigma=0.5, drift_correction=False)
    without.load_state_dict(with_it.state_dict())
    x0, noise = with_it.draw(4, torch.Generator().manual_seed(0))
    s = torch.zeros(4, 5)
    first = with_it.sample(s, x0, torch.zeros_like(noise[:1]).expand(1, -1, -1)).latent  # one step from t = 0, no noise
    v = with_it.velocity(s, x0, torch.zeros(4, 1))
    assert torch.allclose(first, x0 + v - 0.5 * 0.25 * x0, atol=1e-5)
    assert not torch.allclose(with_it.sample(s, x0, noise).latent, without.sample(s, x0, noise).latent)


def test_5_one_sigma_for_critic_target_actor_and_behaviour(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[float] = set()
    real = flow.rollout

    def spy(velocity: Any, sigma: Any, x0: torch.Tensor, noise: torch.Tensor, drift_correction: bool = True) -> flow.Rollout:
        used.add(round(float(sigma(x0, x0.new_zeros(len(x0), 1))), 6))
        return real(velocity, sigma, x0, noise, drift_correction)

    monkeypatch.setattr(flow, "rollout", spy)
    algo = agent(sigma=0.07)
    algo.update(batch())
    algo.policy.unit_chunk(np.zeros((1, 5), np.float32), *algo.policy.draw(1, algo.stream))
    assert used == {0.07}


def test_6_padding_does_not_enter_the_regulariser_nor_the_critic() -> None:
    data = replay(episode(4))
    chunk = data.chunks(torch.tensor([3]), 3, offline=True)  # one real step, two of padding
    other = chunk._replace(action=torch.cat([chunk.action[:, :1], -chunk.action[:, 1:]], dim=1))
    distances = []
    for each in (chunk, other):
        algo = agent()
        own = algo.policy.sample(each.observation, torch.zeros(1, 6), torch.zeros(4, 1, 6))
        distances.append(float(algo._behaviour_distance(own, each)))
    assert distances[0] == distances[1]
    cut = replay(episode(4, terminated=False)).chunks(torch.tensor([3]), 3, offline=True)
    assert float(agent().critic_loss(cut)[0].detach()) == 0.0  # cut short by truncation: no target exists


def test_6_beta_means_the_same_at_any_horizon_and_sum_is_dimensions_times_mean() -> None:
    for horizon in (2, 4):
        whole = replay(episode(9, action=0.5)).chunks(torch.tensor([0, 1]), horizon, offline=True)
        values = {}
        for units in ("mean", "sum"):
            algo = agent(config=Config(beta_units=units), horizon=horizon)
            own = algo.policy.sample(whole.observation, torch.zeros(2, 2 * horizon), torch.zeros(4, 2, 2 * horizon))
            own = own._replace(latent=torch.zeros_like(own.latent))
            values[units] = float(algo._behaviour_distance(own, whole))
        assert values["mean"] == pytest.approx(0.25)
        assert values["sum"] == pytest.approx(0.25 * 2 * horizon)


@pytest.mark.parametrize("network", list(NETS))
@pytest.mark.parametrize("noise", ["fixed", "learned"])
def test_7_every_network_starts_and_learns(network: str, noise: str) -> None:
    algo = agent(network, config=Config(alpha=0.01, beta=10.0), noise=noise)
    before = [p.clone() for p in algo.policy.parameters()]
    algo.clone(batch())
    metrics = algo.update(batch())
    assert all(torch.isfinite(value) for value in metrics.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, algo.policy.parameters(), strict=True))


def test_the_critic_target_by_hand() -> None:
    """Σ γ^j r_j + γ^n (1 − terminated)·Q̄: one chunk in the middle, one at a terminal end."""
    data = replay(episode(7))
    chunks = data.chunks(torch.tensor([0, 5]), 3, offline=True)
    algo = agent(config=Config(gamma=0.9))
    with torch.no_grad():
        for p in [*algo.target_critic.parameters(), *algo.critic.parameters()]:
            p.zero_()
        algo.target_critic.bias[-1].fill_(7.0)
    loss, metrics = algo.critic_loss(chunks)
    loss = loss.detach()
    targets = [-1 - 0.9 - 0.81 + 0.9**3 * 7.0, -1 + 0.9 * 0.0]  # the last reward is 1 − 1 = 0
    assert float(metrics["q_target"]) == pytest.approx(np.mean(targets), rel=1e-5)
    assert float(loss) == pytest.approx(2 * np.mean(np.square(targets)), rel=1e-5)


def test_the_actor_reaches_q_and_only_its_own_parameters() -> None:
    algo = agent(config=Config(radius=None, beta=0.0))
    before = [p.clone() for p in algo.critic.parameters()]
    data = batch(64)
    x0, noise = algo.policy.draw(64, torch.Generator().manual_seed(3))

    def value() -> float:
        with torch.no_grad():
            own = algo.policy.sample(data.observation, x0, noise)
            return float(algo.critic(algo.policy.normalizer(data.observation), own.action).amin(0).mean())

    start = value()
    for _ in range(30):
        algo.update_actor(data)
    assert value() > start
    assert all(torch.equal(a, b) for a, b in zip(before, algo.critic.parameters(), strict=True))


def test_the_trust_region_holds() -> None:
    """A critic with a steep wrong slope cannot take the actor further than `radius` from its anchor."""
    free, held = (agent(config=Config(beta=0.0, radius=radius, anchor_rate=0.0)) for radius in (None, 0.05))
    far = []
    for algo in (free, held):
        with torch.no_grad():
            for p in algo.critic.parameters():
                p.mul_(3)
        start = agent().policy
        data = batch(64)
        x0, noise = algo.policy.draw(64, torch.Generator().manual_seed(3))
        for _ in range(300):
            algo.update_actor(data)
        with torch.no_grad():
            moved = algo.policy.sample(data.observation, x0, noise).latent - start.sample(data.observation, x0, noise).latent
        far.append(float(moved.square().mean().sqrt()))
    assert far[1] < 0.1 < far[0]


def test_the_trust_region_of_regularised_pretraining_is_that_of_the_clone() -> None:
    """Not of the untrained policy that cloning started from."""
    algo, data = agent(), batch(64)
    for _ in range(200):
        algo.clone(data)
    pairs = zip(algo.acting.parameters(), algo.policy.parameters(), strict=True)
    assert all(torch.equal(average, actor) for average, actor in pairs)
    assert algo.update(data)["anchor_distance"] == 0


def test_state_of_the_algorithm_is_complete() -> None:
    """N + N updates equal 2N."""
    config = Config(alpha=0.01, beta=10.0)
    whole, halves = agent("flow_g", config), agent("flow_g", config)
    for algo in (whole, halves):
        for _ in range(3):
            algo.update(batch())
    again = agent("flow_g", dataclasses.replace(config), seed=99)
    again.load_state_dict(halves.state_dict())
    for algo in (whole, again):
        for _ in range(3):
            algo.update(batch())
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.parameters(), again.policy.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.critic.parameters(), again.critic.parameters(), strict=True))


def test_kept_optimizers_keep_their_moments_and_take_the_new_rate() -> None:
    before = agent(config=Config(actor_learning_rate=1e-3))
    before.clone(batch())
    after = agent(config=Config(actor_learning_rate=1e-4))
    after.load_pretrained(before.state_dict(), critic=True, optimizers=True)
    (group,) = after.actor_optimizer.param_groups
    assert group["lr"] == 1e-4
    first = group["params"][0]
    assert torch.equal(after.actor_optimizer.state[first]["exp_avg"], next(iter(before.actor_optimizer.state.values()))["exp_avg"])


def test_beta_on_demonstrations_leaves_live_chunks_alone() -> None:
    mixed = batch(8)._replace(offline=torch.tensor([1.0] * 4 + [0.0] * 4))
    pulls = {}
    for which in ("all", "demonstrations"):
        algo = agent(config=Config(beta_on=which))  # type: ignore[arg-type]
        own = algo.policy.sample(mixed.observation, torch.zeros(8, 6), torch.zeros(4, 8, 6))
        own = own._replace(latent=own.latent.detach().requires_grad_())
        (gradient,) = torch.autograd.grad(algo._behaviour_distance(own, mixed), own.latent)
        pulls[which] = gradient
    assert torch.allclose(pulls["all"][:4], pulls["demonstrations"][:4])
    assert pulls["all"][4:].abs().sum() > 0
    assert pulls["demonstrations"][4:].abs().sum() == 0


def test_the_trust_region_keeps_its_least_strength() -> None:
    """An actor that stands still lets λ decay; a floor keeps the brake ready for when it moves again."""
    strengths = []
    for least in (0.0, 200.0):
        region = agent(config=Config(least_strength=least)).trust_region
        assert region is not None
        for _ in range(500):
            region.update(torch.tensor(0.0), torch.tensor(True))
        strengths.append(float(region.strength))
    assert strengths[0] < 1e-4
    assert strengths[1] == pytest.approx(200.0, rel=1e-4)
