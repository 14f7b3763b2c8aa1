"""Learning from scratch: the losses of CrossQ by hand, for a flow and for a Gaussian."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowft.algos.crossq import Config, CrossQ, SACFlowScratch, SACScratch
from flowft.data.spec import Batch
from flowft.policies import actor, critic, flow
from flowft.policies.gaussian import GaussianPolicy

from .helpers import NETS, SPEC, batch, episode, policy, replay

KINDS = [*NETS, "gaussian"]


def agent(kind: str = "flow_g", horizon: int = 1, seed: int = 0, **settings: Any) -> CrossQ:
    nets = critic.Config(hidden=(32, 32), activation="relu")
    config = Config(**settings)
    if kind == "gaussian":
        torch.manual_seed(0)
        return SACScratch(GaussianPolicy(SPEC, horizon, actor.Config(hidden=(32,)), observation_clip=None), nets, config, seed)
    made = policy(kind, horizon=horizon, squash="tanh", noise="learned", observation_clip=None)
    return SACFlowScratch(made, nets, config, seed)


class Spy(torch.nn.Module):
    """Stands in for the critic: known values, and a record of what it was asked."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.values, self.asked = values.requires_grad_(), []

    asked: list[tuple[torch.Tensor, torch.Tensor, bool]]

    def forward(self, state: torch.Tensor, chunk: torch.Tensor, learn: bool) -> torch.Tensor:
        self.asked.append((state, chunk, learn))
        return self.values


def transitions() -> Batch:
    """One step in the middle of an episode, one cut off by truncation, one into a terminal state: (3, h = 1)."""
    middle = replay(episode(4)).chunks(torch.tensor([0]), 1, offline=False)
    cut = replay(episode(4, terminated=False, seed=1)).chunks(torch.tensor([3]), 1, offline=False)
    last = replay(episode(4, seed=2)).chunks(torch.tensor([3]), 1, offline=False)
    return Batch(*(torch.cat(columns) for columns in zip(middle, cut, last, strict=True)))


@pytest.mark.parametrize("kind", ["flow_g", "gaussian"])
@pytest.mark.parametrize("bonus", ["excess", "whole"])
def test_the_target_by_hand_without_a_target_network(kind: str, bonus: Any) -> None:
    algo, data = agent(kind, gamma=0.9, alpha=0.5, bonus=bonus), transitions()
    values = torch.tensor([[1.0, 2, 3, 10, 20, 30], [4, 5, 6, 11, 19, 40]])  # (member, Q(s, a) then Q(s', a'))
    spy = algo.critic = Spy(values)  # type: ignore[assignment]
    after: list[Any] = []
    sample = algo._sample
    algo._sample = lambda s: after.append((s, sample(s))) or after[-1][1]  # type: ignore[method-assign, func-returns-value]
    loss, metrics = algo.critic_loss(data)

    ((states, actions, learn),) = spy.asked  # one pass over both
    assert learn
    assert torch.equal(states, torch.cat([data.observation, data.next_observation]))
    ((seen, drawn),) = after
    assert torch.equal(seen, data.next_observation)
    assert torch.equal(actions, torch.cat([data.action, drawn.action]))

    zero = algo.target_entropy if bonus == "excess" else 0.0
    soft = torch.tensor([10.0, 19, 30]) - 0.5 * (drawn.log_prob.detach() + zero)
    y = torch.tensor([-1.0, -1, 0]) + 0.9 * torch.tensor([1.0, 1, 0]) * soft  # truncation bootstraps, termination does not
    assert float(metrics["q_target"]) == pytest.approx(float(y.mean()), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(float((values[:, :3].detach() - y).square().sum() / 3), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, spy.values)
    assert torch.allclose(gradient[:, :3], 2 * (values[:, :3].detach() - y) / 3, rtol=1e-5)
    assert torch.equal(gradient[:, 3:], torch.zeros(2, 3)), "the next value is a constant"
    assert not [key for key in algo.state_dict() if "target" in key]


def test_both_halves_of_the_pass_share_their_statistics() -> None:
    algo, data = agent(), transitions()
    first = algo.critic.norm[0]
    joint = torch.cat([data.observation, data.next_observation])
    algo.critic_loss(data)
    assert torch.allclose(first.mean[0, 0, :5], 0.01 * joint.mean(0), atol=1e-6)
    assert int(first.batches) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_actor_climbs_q_and_leaves_the_critic_as_it_is(kind: str) -> None:
    algo, data = agent(kind, alpha=1e-6, alpha_learning_rate=0.0, actor_learning_rate=3e-3), batch(64, 1)
    for _ in range(5):
        algo.update(data, actor=False)
    before = {key: value.clone() for key, value in algo.critic.state_dict().items()}
    x0, noise = algo.policy.draw(64, torch.Generator().manual_seed(3))

    def value() -> float:
        with torch.no_grad():
            own = algo.policy.sample(data.observation, x0, noise)  # type: ignore[operator]
            return float(algo.critic(data.observation, own.action, learn=False).amin(0).mean())

    start = value()
    for _ in range(40):
        algo.update_actor(data)
    assert value() > start + 0.01
    assert all(torch.equal(before[key], now) for key, now in algo.critic.state_dict().items())


@pytest.mark.parametrize("kind", ["flow_g", "gaussian"])
@pytest.mark.parametrize(("target_sigma", "falls"), [(0.005, True), (20.0, False)])
def test_the_temperature_falls_while_the_entropy_is_above_its_target(kind: str, target_sigma: float, falls: bool) -> None:
    algo = agent(kind, alpha=0.1, alpha_learning_rate=1e-2, target_sigma=target_sigma)
    for _ in range(5):
        algo.update_actor(batch(64, 1))
    assert (float(algo.alpha) < 0.1) is falls


@pytest.mark.parametrize("kind", ["flow_g", "gaussian"])
@pytest.mark.parametrize(("target_entropy", "falls"), [(-1000.0, True), (1000.0, False)])
def test_the_target_entropy_may_be_a_number_and_wins(kind: str, target_entropy: float, falls: bool) -> None:
    algo = agent(kind, alpha=0.1, alpha_learning_rate=1e-2, target_entropy=target_entropy, target_sigma=0.1)
    assert algo.target_entropy == target_entropy
    for _ in range(5):
        algo.update_actor(batch(64, 1))
    assert (float(algo.alpha) < 0.1) is falls


@pytest.mark.parametrize("kind", ["flow_g", "gaussian"])
def test_the_entropy_counts_the_squash(kind: str) -> None:
    """Deep in the tanh's tails actions hardly differ: there the entropy is low, whatever the noise before the squash."""
    algo = agent(kind, alpha=0.1)
    own = algo._sample(batch(64, 1).observation)
    spread = float((own.path_log_prob - own.log_prob).abs().mean().detach())
    assert spread > 1e-3
    seen: list[torch.Tensor] = []
    loss = algo.temperature_loss
    algo.temperature_loss = lambda log_prob: seen.append(log_prob) or loss(log_prob)  # type: ignore[method-assign, func-returns-value]
    metrics = algo.update_actor(batch(64, 1))
    assert float(metrics["entropy"]) == pytest.approx(-float(seen[0].mean().detach()))
    by_hand = 0.1 * (-float(seen[0].mean().detach()) - algo.target_entropy)
    assert float(loss(seen[0]).detach()) == pytest.approx(by_hand, abs=2e-2)


def test_a_target_is_the_entropy_of_that_noise() -> None:
    algo = agent("gaussian", horizon=2, target_sigma=0.3)
    normal = torch.distributions.Normal(torch.zeros(4), 0.3)
    assert algo.target_entropy == pytest.approx(float(normal.entropy().sum()), rel=1e-5)
    assert agent("gaussian", horizon=2).target_entropy == pytest.approx(-4.0, abs=0.01), "SAC's −1 per action value"
    assert agent("flow_g", target_sigma=0.3).target_entropy == flow.entropy_at_noise(0.3, 2, 4)
    for horizon in (1, 3):
        assert agent("flow_g", horizon=horizon).target_entropy == pytest.approx(0.0, abs=0.1), "as published"


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_complete(kind: str) -> None:
    """N + N updates equal 2N, running statistics and temperature included."""
    settings = {"renorm_warmup": 4}
    whole, halves, again = (agent(kind, seed=seed, **settings) for seed in (0, 0, 9))
    data = batch(32, 1)
    for algo in (whole, halves):
        for i in range(3):
            algo.update(data, actor=i % 2 == 0)
    again.load_state_dict(halves.state_dict())
    for algo in (whole, again):
        for i in range(3):
            algo.update(data, actor=i % 2 == 0)
    for name in ("policy", "critic"):
        one, other = getattr(whole, name).state_dict(), getattr(again, name).state_dict()
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert torch.equal(whole.alpha, again.alpha)


@pytest.mark.parametrize("kind", KINDS)
def test_no_loss_waits_for_the_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    algo, data = agent(kind), batch(8, 1)

    def waits(*_: object, **__: object) -> None:
        raise AssertionError("a host synchronisation")

    for name in ("item", "__bool__", "__float__", "__int__", "tolist", "numpy", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, waits)
    algo.critic_loss(data)[0].backward()
    loss, own, _ = algo.actor_loss(data)
    loss.backward()
    algo.temperature_loss(own.log_prob).backward()


def test_it_finds_the_rewarded_action() -> None:
    """One-step episodes whose reward is −(a − 0.5)²: both kinds of policy end near 0.5."""
    g = torch.Generator().manual_seed(0)
    size = 256
    for kind in ("flow_g", "gaussian"):
        algo = agent(kind, actor_learning_rate=3e-3, critic_learning_rate=3e-3, alpha=0.01, alpha_learning_rate=0.0)
        for i in range(400):
            action = 2 * torch.rand(size, 1, 2, generator=g) - 1
            reward = -(action - 0.5).square().sum(dim=(1, 2)).unsqueeze(1)
            one = torch.ones(size)
            states = torch.randn(size, 5, generator=g)
            algo.update(Batch(states, action, one[:, None], reward, one, states, one, one, 0 * one), actor=i % 3 == 0)
        x0, noise = algo.policy.draw(200, g)
        reached = torch.as_tensor(algo.policy.unit_chunk(torch.randn(200, 5, generator=g).numpy(), x0))
        assert float((reached - 0.5).abs().mean()) < 0.15, kind
