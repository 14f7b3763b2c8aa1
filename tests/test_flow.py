"""The rollout against independent answers: known marginals, an autograd Jacobian, a numerical likelihood."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal

from flowft.policies import flow
from flowft.policies.squash import Clip, Tanh

from .helpers import SPEC, policy

TARGET_STD = 0.3


def exact_velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[x_1 − x_0 | x_t = x] of the straight-line path from N(0, 1) to N(0, 0.3²)."""
    s2 = TARGET_STD**2
    return x * (t * s2 - (1 - t)) / ((1 - t) ** 2 + t**2 * s2)


def final_std(sigma: float, steps: int, correction: bool) -> float:
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(40_000, 1, generator=g)
    noise = torch.randn(steps, 40_000, 1, generator=g)
    end = flow.rollout(exact_velocity, lambda x, t: torch.tensor(sigma), x0, noise, correction).end
    return float(end.std())


def test_the_noisy_rollout_keeps_the_marginals_of_the_flow() -> None:
    ode = float(flow.integrate(exact_velocity, torch.randn(40_000, 1, generator=torch.Generator().manual_seed(0)), 64).std())
    assert ode == pytest.approx(TARGET_STD, abs=0.015)
    assert final_std(0.5, 64, correction=True) == pytest.approx(TARGET_STD, abs=0.015)
    assert final_std(0.5, 64, correction=False) > 0.42  # without the correction the noise adds up


def test_noise_does_not_depend_on_the_number_of_steps() -> None:
    """Defect 4: σ√Δt per step adds up to σ for every K."""
    stds = []
    for steps in (1, 4, 16):
        x0, noise = torch.zeros(20_000, 1), torch.randn(steps, 20_000, 1, generator=torch.Generator().manual_seed(1))
        stds.append(float(flow.rollout(lambda x, t: 0 * x, lambda x, t: torch.tensor(0.3), x0, noise, False).end.std()))
    assert stds == pytest.approx([0.3, 0.3, 0.3], rel=0.03)


@pytest.mark.parametrize("network", ["flow_g", "flow_t", "mlp"])
@pytest.mark.parametrize("squash", ["clip", "tanh"])
@pytest.mark.parametrize("noise", ["fixed", "learned"])
def test_the_log_density_is_that_of_a_change_of_variables(network: str, squash: str, noise: str) -> None:
    """log p(path) = log N(x_0, ε; 0, I) − log|det ∂(path, squashed)/∂(x_0, ε)|, the Jacobian by autograd."""
    actor = policy(network, horizon=1, steps=3, sigma=0.3, squash=squash, noise=noise).double()
    if actor.noise_head is not None:  # make σ depend on its inputs
        torch.nn.init.normal_(list(actor.noise_head.modules())[-1].weight, std=0.02)
    observation = torch.randn(1, SPEC.observation_dim, dtype=torch.float64)
    z = 0.2 * torch.randn(4 * 2, dtype=torch.float64)

    def path(z: torch.Tensor) -> torch.Tensor:
        parts = z.reshape(4, 1, 2)
        state = actor.normalizer(observation)
        context = actor.network.context(state)
        points = flow.rollout(lambda x, t: actor.network(context, x, t), lambda x, t: actor._sigma(state, x, t), parts[0], parts[1:]).path
        return torch.cat([*points[:-1], actor.squash(points[-1])]).flatten()

    jacobian = torch.autograd.functional.jacobian(path, z)
    expected = Normal(0.0, 1.0).log_prob(z).sum() - torch.linalg.slogdet(jacobian).logabsdet
    sample = actor.sample(observation, z[:2].reshape(1, 2), z[2:].reshape(3, 1, 2))
    assert sample.latent.abs().max() < 1, "the clip must not be active in this test"
    assert sample.log_prob.item() == pytest.approx(expected.item(), rel=1e-9)


def test_the_log_density_knows_sigma() -> None:
    """Defect 8: the released Flow-T leaves out −log σ. Ten times the noise: K·D·log 10 less density, to the digit."""
    for network in ("flow_g", "flow_t", "mlp"):
        drawn = []
        for sigma in (0.01, 0.1):
            actor = policy(network, sigma=sigma)
            x0, noise = actor.draw(5, torch.Generator().manual_seed(0))
            drawn.append(actor.sample(torch.zeros(5, 5), x0, noise).path_log_prob)
        difference = drawn[0] - drawn[1]
        assert torch.allclose(difference, torch.full_like(difference, 4 * 6 * math.log(10)), rtol=1e-5)


def test_entropy_at_noise_is_the_rollouts_entropy() -> None:
    actor = policy("mlp", sigma=0.2)
    x0, noise = actor.draw(20_000, torch.Generator().manual_seed(0))
    entropy = -actor.sample(torch.zeros(20_000, 5), x0, noise).path_log_prob.mean().item()
    assert entropy == pytest.approx(flow.entropy_at_noise(0.2, 6, 4), abs=0.1)


def test_tanh_log_derivative_against_autograd() -> None:
    x = torch.tensor([[-12.0, -1.0, 0.0, 0.3, 2.0]], dtype=torch.float64, requires_grad=True)
    squash = Tanh()
    (slope,) = torch.autograd.grad(squash(x).sum(), x)
    assert squash.log_derivative(x).item() == pytest.approx(slope.log().sum().item(), abs=1e-6)


def test_squash_inverse() -> None:
    actions = torch.tensor([-1.0, -0.5, 0.0, 0.9, 1.0])
    assert torch.equal(Clip()(Clip().inverse(actions)), actions)
    back = Tanh(0.98)(Tanh(0.98).inverse(actions))
    assert torch.allclose(back, actions.clamp(-0.98, 0.98), atol=1e-6)


def test_flow_t_context_is_all_of_the_state_branch() -> None:
    """Nothing of the state may enter past the context, which is computed once per rollout."""
    actor = policy("flow_t")
    x, t = torch.randn(3, 6), torch.rand(3, 1)
    context = actor.network.context(torch.randn(3, 5))
    once = actor.network(context, x, t)
    moved = [c + torch.randn_like(c) for c in context]
    assert not torch.allclose(actor.network(moved, x, t), once)
    assert torch.equal(actor.network(context, x, t), once)


def test_flow_g_starts_open_and_pulls_to_its_candidate() -> None:
    actor = policy("flow_g")
    x, t, s = torch.randn(3, 6), torch.rand(3, 1), torch.randn(3, 5)
    inputs = torch.cat([s, x, t], dim=-1)
    expected = torch.sigmoid(torch.tensor(5.0)) * (actor.network.candidate(inputs) - x)
    assert torch.allclose(actor.network(s, x, t), expected, atol=1e-6)
