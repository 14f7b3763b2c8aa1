"""The baselines' losses against plain loops over chunks, members and candidates, written out from the papers' equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flowft.algos import qc, qc_fql, rlpd
from flowft.data.spec import Batch
from flowft.errors import UsageError
from flowft.policies import actor, critic
from flowft.policies import policy as policies
from flowft.policies.best_of_n import BestOfNPolicy
from flowft.policies.gaussian import GaussianPolicy
from flowft.policies.one_step import OneStepPolicy

from .helpers import NETS, SPEC, batch, episode, replay

JUDGE = critic.Config(hidden=(16, 16), ensemble=3)
ACTOR = actor.Config(hidden=(16, 16))
FLOW = policies.Config(network="mlp", net=NETS["mlp"], horizon=3, steps=4, candidates=5)


def networks(**settings: Any) -> policies.Networks:
    return policies.Networks(policies.Config(**{**vars(FLOW), **settings}), JUDGE, ACTOR)


def fql(config: qc_fql.Config | None = None, **settings: Any) -> qc_fql.QCFQL:
    torch.manual_seed(0)
    return qc_fql.QCFQL(OneStepPolicy.from_settings(SPEC, networks(**settings)), JUDGE, config or qc_fql.Config(), 0)


def chooser(config: qc.Config | None = None) -> qc.QC:
    torch.manual_seed(0)
    return qc.QC(BestOfNPolicy.from_settings(SPEC, networks()), JUDGE, config or qc.Config(), 0)


def soft(config: rlpd.Config | None = None) -> rlpd.RLPD:
    torch.manual_seed(0)
    return rlpd.RLPD(GaussianPolicy.from_settings(SPEC, networks()), JUDGE, config or rlpd.Config(), 0)


def chunks() -> Batch:
    """Whole chunks, one that ends in a terminal state, one cut short by it, and one cut short by truncation."""
    data = replay(episode(7), episode(5, terminated=False, seed=1))
    return data.chunks(torch.tensor([0, 2, 4, 6, 8, 11]), 3, offline=True)


def td_by_hand(judge: critic.Critic, data: Batch, values: torch.Tensor, gamma: float) -> float:
    """The critic's loss, chunk by chunk and member by member."""
    total, count = 0.0, 0
    for i in range(len(data.observation)):
        n = int(data.length[i])
        ends = bool(data.terminated[i])
        if n < 3 and not ends:
            continue  # cut short by truncation
        target = sum(gamma**j * float(data.reward[i, j]) for j in range(n)) + (0.0 if ends else gamma**n * float(values[i]))
        q = judge(data.observation[i : i + 1], data.action[i : i + 1])[:, 0]
        total += sum((float(value) - target) ** 2 for value in q)
        count += 1
    return total / count


def test_the_batch_of_these_tests_has_every_kind_of_end() -> None:
    data = chunks()
    assert data.complete.tolist() == [1, 1, 1, 1, 1, 0]
    assert data.terminated.tolist() == [0, 0, 1, 1, 0, 0]
    assert data.length.tolist() == [3, 3, 3, 1, 3, 2]


# QC-FQL -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pessimism", ["mean", "min"])
@torch.no_grad()
def test_fql_critic_loss(pessimism: Any) -> None:
    algo, data = fql(qc_fql.Config(gamma=0.9, pessimism=pessimism)), chunks()
    algo.stream.manual_seed(7)
    loss = float(algo.critic_loss(data)[0])
    z = torch.randn(6, 6, generator=torch.Generator().manual_seed(7))
    following = algo.policy.actor(torch.cat([data.next_observation, z], dim=1)).clamp(-1, 1).reshape(6, 3, 2)
    q = algo.target_critic(data.next_observation, following)
    values = q.mean(0) if pessimism == "mean" else q.min(0).values
    assert loss == pytest.approx(td_by_hand(algo.critic, data, values, 0.9), rel=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@torch.no_grad()
def test_fql_actor_loss(normalize: bool) -> None:
    algo, data = fql(qc_fql.Config(alpha=5.0, normalize_q=normalize)), chunks()
    algo.stream.manual_seed(7)
    loss = float(algo.actor_loss(data)[0])
    stream = torch.Generator().manual_seed(7)
    x0, t, z = torch.randn(6, 6, generator=stream), torch.rand(6, 1, generator=stream), torch.randn(6, 6, generator=stream)
    matching, real, distance, values = 0.0, 0, 0.0, []
    for i in range(6):
        s, x1 = data.observation[i : i + 1], data.action[i].flatten()
        v = algo.policy.flow.velocity(s, ((1 - t[i]) * x0[i] + t[i] * x1)[None], t[i : i + 1])[0]
        for j in range(3):
            if data.valid[i, j]:
                matching += float((v - (x1 - x0[i])).reshape(3, 2)[j].square().sum())
                real += 2
        x = z[i : i + 1]
        for k in range(4):
            x = x + algo.policy.flow.velocity(s, x, torch.full((1, 1), k / 4)) / 4
        mu = algo.policy.actor(torch.cat([s, z[i : i + 1]], dim=1))
        distance += float((mu - x.clamp(-1, 1)).square().mean()) / 6
        values.append(float(algo.critic(s, mu.clamp(-1, 1).reshape(1, 3, 2)).mean()))
    q = float(np.mean(values))
    expected = matching / real + 5.0 * distance - q / (float(np.mean(np.abs(values))) if normalize else 1)
    assert loss == pytest.approx(expected, rel=1e-4)


def test_fql_no_gradient_reaches_the_flow_through_its_student() -> None:
    algo, data = fql(), batch()
    z, _ = algo.policy.draw(16, algo.stream)
    algo.distillation_distance(data.observation, z, algo.policy.latent(data.observation, z)).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in algo.policy.flow.parameters())
    assert all(p.grad is not None for p in algo.policy.actor.parameters())


def test_fql_the_student_learns_the_flow_and_follows_q() -> None:
    """A large α makes the one-step actor the flow's image; without it the actor climbs Q."""
    ends = {}
    for alpha in (100.0, 0.0):
        algo = fql(qc_fql.Config(alpha=alpha, actor_learning_rate=3e-3))
        data = batch(64)
        z = torch.randn(64, 6, generator=torch.Generator().manual_seed(3))
        for _ in range(150):
            loss, _ = algo.actor_loss(data)
            qc_fql.step(algo.actor_optimizer, loss)
        with torch.no_grad():
            latent = algo.policy.latent(data.observation, z)
            q = algo.critic(data.observation, algo.policy.action(latent)).mean()
            ends[alpha] = float(algo.distillation_distance(data.observation, z, latent)), float(q)
    assert ends[100.0][0] < 0.1  # 0.52 before
    assert ends[0.0][0] > 0.5
    assert ends[0.0][1] > ends[100.0][1] + 1.0


def test_fql_is_qc_fql_with_chunks_of_one() -> None:
    algo = fql(horizon=1)
    algo.update(replay(episode(7)).sample(16, 1, offline=True))
    assert algo.policy.act(np.zeros(5)).shape == (1, 2)


# QC -----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_best_of_n_is_the_one_with_the_highest_mean_q() -> None:
    policy, s = chooser().policy, torch.randn(4, 5)
    x0, _ = policy.draw(4, torch.Generator().manual_seed(0))
    assert x0.shape == (4, policy.start_dim) == (4, 30)
    best, chosen = policy.best(s, x0), []
    for i in range(4):
        ends = [policy.flow.integrate(s[i : i + 1], start[None]).clamp(-1, 1).reshape(1, 3, 2) for start in x0[i].reshape(5, 6)]
        q = [float(policy.critic(s[i : i + 1], end).mean()) for end in ends]
        chosen.append(int(np.argmax(q)))
        assert torch.allclose(best[i], ends[chosen[-1]][0], atol=1e-6)
    assert len(set(chosen)) > 1, "the choice depends on the state"
    assert np.allclose(policy.act(s.numpy(), x0.numpy()), best.numpy(), atol=1e-6)


@pytest.mark.parametrize("pessimism", ["mean", "min"])
@torch.no_grad()
def test_qc_critic_loss(pessimism: Any) -> None:
    algo, data = chooser(qc.Config(gamma=0.9, pessimism=pessimism)), chunks()
    for p in algo.target_critic.parameters():
        p.add_(0.1)  # Q chooses, its average judges
    algo.stream.manual_seed(7)
    loss = float(algo.critic_loss(data)[0])
    x0 = torch.randn(6, 30, generator=torch.Generator().manual_seed(7))
    q = algo.target_critic(data.next_observation, algo.policy.best(data.next_observation, x0))
    values = q.mean(0) if pessimism == "mean" else q.min(0).values
    assert loss == pytest.approx(td_by_hand(algo.critic, data, values, 0.9), rel=1e-5)


def test_qc_the_flow_learns_by_flow_matching_alone() -> None:
    """Another critic changes what is chosen, and nothing of what the flow learns."""
    flows = []
    for factor in (1.0, 100.0):
        algo = chooser()
        with torch.no_grad():
            for p in algo.critic.parameters():
                p.mul_(factor)
        algo.update(batch())
        flows.append([p.clone() for p in algo.policy.flow.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*flows, strict=True))


# RLPD ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entropy", [False, True])
@torch.no_grad()
def test_rlpd_critic_loss(entropy: bool) -> None:
    algo, data = soft(rlpd.Config(gamma=0.9, alpha=0.3, entropy_in_target=entropy)), chunks()
    for p in algo.target_critic.parameters():
        p.add_(0.05 * torch.randn_like(p))
    algo.stream.manual_seed(7)
    loss = float(algo.critic_loss(data)[0])
    stream = torch.Generator().manual_seed(7)
    after = algo.policy.sample(data.next_observation, torch.zeros(6, 0), torch.randn(1, 6, 6, generator=stream))
    members = torch.randperm(3, generator=stream)[:2].tolist()
    q = algo.target_critic(data.next_observation, after.action)
    values = torch.stack([q[i] for i in members]).min(0).values - (0.3 * after.log_prob if entropy else 0.0)
    assert loss == pytest.approx(td_by_hand(algo.critic, data, values, 0.9), rel=1e-5)


def test_rlpd_the_subset_is_drawn_anew_and_never_holds_a_member_twice() -> None:
    algo = soft()
    drawn: list[list[int]] = []
    real = torch.randperm

    def spy(n: int, **given: Any) -> torch.Tensor:
        drawn.append(real(n, **given).tolist())
        return torch.tensor(drawn[-1])

    torch.randperm = spy  # type: ignore[assignment]
    try:
        for _ in range(30):
            algo.update_critic(batch())
    finally:
        torch.randperm = real
    assert len({tuple(sorted(d[:2])) for d in drawn}) == 3
    assert all(len(set(d)) == 3 for d in drawn)


@torch.no_grad()
def test_rlpd_actor_loss() -> None:
    algo, data = soft(rlpd.Config(alpha=0.3)), chunks()
    algo.stream.manual_seed(7)
    loss = float(algo.actor_loss(data)[0])
    noise = torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(7))
    own = algo.policy.sample(data.observation, torch.zeros(6, 0), noise)
    q = algo.critic(data.observation, own.action)
    expected = np.mean([0.3 * float(own.log_prob[i]) - float(q[:, i].mean()) for i in range(6)])
    assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("target", "falls"), [(-100.0, True), (100.0, False)])
def test_rlpd_the_temperature_falls_while_the_entropy_is_above_its_target(target: float, falls: bool) -> None:
    algo = soft(rlpd.Config(target_entropy=target, alpha_learning_rate=1e-2))
    before = float(algo.alpha)
    for _ in range(5):
        algo.update(batch())
    assert (float(algo.alpha) < before) is falls
    assert soft().target_entropy == -3  # half a nat per value of a chunk of 3 × 2


def test_rlpd_clones_by_maximum_likelihood_or_not_at_all() -> None:
    data = replay(episode(20, action=0.6))
    cloned = soft(rlpd.Config(actor_learning_rate=3e-3))
    for _ in range(300):
        cloned.clone(data.sample(32, 3, offline=True))
    assert np.abs(cloned.policy.act(data.observation[:10].numpy()) - 0.6).mean() < 0.05
    left = soft(rlpd.Config(clone_actor=False))
    before = [p.clone() for p in [*left.policy.parameters(), *left.critic.parameters()]]
    assert left.clone(data.sample(32, 3, offline=True)) == {}
    assert all(torch.equal(a, b) for a, b in zip(before, [*left.policy.parameters(), *left.critic.parameters()], strict=True))


def test_rlpd_cloning_does_not_count_padding() -> None:
    data = replay(episode(4)).chunks(torch.tensor([3]), 3, offline=True)  # one real step, two of padding
    other = data._replace(action=torch.cat([data.action[:, :1], -data.action[:, 1:]], dim=1))
    assert float(soft().cloning_loss(data).detach()) == float(soft().cloning_loss(other).detach())


def test_a_subset_larger_than_the_ensemble_is_refused() -> None:
    with pytest.raises(UsageError, match="subset is 4, of an ensemble of 3"):
        soft(rlpd.Config(subset=4))
