"""The Gaussian policy against torch's own distributions, and its way through the common door."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from flowft.errors import UsageError
from flowft.policies import actor, critic
from flowft.policies import policy as policies
from flowft.policies.gaussian import GaussianPolicy

from .helpers import NETS, SPEC


def gaussian() -> GaussianPolicy:
    torch.manual_seed(0)
    return GaussianPolicy(SPEC, 3, actor.Config(hidden=(32, 32)))


def reference(policy: GaussianPolicy, observation: torch.Tensor) -> TransformedDistribution:
    mean, log_std = policy.moments(observation)
    return TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(cache_size=1)])


def test_the_density_of_a_sample_is_that_of_the_squashed_normal() -> None:
    policy, observation = gaussian().double(), torch.randn(64, 5, dtype=torch.float64)
    x0, noise = policy.draw(64, torch.Generator().manual_seed(0))
    sample = policy.sample(observation, x0, noise.double())
    expected = reference(policy, observation).log_prob(sample.action.flatten(1)).sum(-1)
    assert torch.allclose(sample.log_prob, expected, atol=1e-8)
    mean, log_std = policy.moments(observation)
    assert torch.allclose(sample.path_log_prob, Independent(Normal(mean, log_std.exp()), 1).log_prob(sample.latent))


def test_the_density_of_stored_chunks_is_the_same_density() -> None:
    policy, observation = gaussian(), torch.randn(16, 5)
    stored = torch.rand(16, 3, 2) * 1.9 - 0.95
    expected = reference(policy, observation).log_prob(stored.flatten(1))
    assert torch.allclose(policy.log_prob(observation, stored).flatten(1), expected, atol=1e-4)
    assert policy.log_prob(observation, torch.ones(16, 3, 2)).isfinite().all()


def test_far_out_the_density_stays_finite_and_the_deviation_bounded() -> None:
    policy = gaussian()
    with torch.no_grad():
        list(policy.network.parameters())[-1].fill_(30.0)
    x0, noise = policy.draw(8, torch.Generator().manual_seed(0))
    sample = policy.sample(torch.zeros(8, 5), x0, noise)
    assert sample.log_prob.isfinite().all()
    assert policy.moments(torch.zeros(8, 5))[1].max() <= policies.LOG_STD_MAX


def test_it_acts_with_its_mean_and_explores_with_noise() -> None:
    policy = gaussian()
    policy.normalizer.fit(np.ones(5), np.full(5, 2.0))
    observation = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    x0, noise = policy.draw(4, torch.Generator().manual_seed(0))
    assert x0.shape == (4, policy.start_dim)
    mean = policy.unit_chunk(observation, x0)
    expected = policy.network(torch.from_numpy((observation - 1) / 2))[:, :6].tanh().reshape(4, 3, 2).detach().numpy()
    assert np.allclose(mean, expected, atol=1e-6)
    assert np.array_equal(policy.act(observation), mean)  # bounds of ±1: units are the environment's
    assert policy.act({"position": observation[0, :2], "object": observation[0, 2:]}) == pytest.approx(mean[0])
    assert not np.allclose(policy.unit_chunk(observation, x0, noise), mean)


def test_gradients_reach_both_moments() -> None:
    policy = gaussian()
    x0, noise = policy.draw(8, torch.Generator().manual_seed(0))
    sample = policy.sample(torch.randn(8, 5), x0, noise)
    (slope,) = torch.autograd.grad(sample.action.sum() + sample.log_prob.sum(), list(policy.network.parameters())[-1:])
    assert (slope != 0).all()


@pytest.mark.parametrize("kind", ["flow", "gaussian"])
def test_a_checkpoint_knows_its_kind(kind: str) -> None:
    trees = {"policy": {"network": "mlp", "net": NETS["mlp"], "horizon": 3}, "critic": {"hidden": [8]}, "actor": {"hidden": [8]}}
    networks = policies.Networks(
        policies.Config(network="mlp", net=NETS["mlp"], horizon=3), critic.Config(hidden=(8,)), actor.Config(hidden=(8,))
    )
    made = policies.build(kind, SPEC, networks)
    content = {"policy_kind": kind, "spec": SPEC.to_tree(), "recipe": trees, "policy": made.state_dict()}
    assert type(policies.from_checkpoint(content)) is type(made)
    if kind == "flow":  # written before there were other kinds
        del content["policy_kind"], trees["actor"]
        assert policies.from_checkpoint(content).kind == "flow"


def test_an_unknown_kind_says_which_there_are() -> None:
    with pytest.raises(UsageError, match="unknown policy 'gausian' .*did you mean 'gaussian'"):
        policies.build("gausian", SPEC, policies.Networks(policies.Config(), critic.Config(), actor.Config()))
