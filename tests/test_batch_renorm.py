"""Batch renormalisation against a slow reading of its paper, and at its limits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from flowft.policies.batch_renorm import EPSILON, LARGEST_D, LARGEST_R, BatchRenorm

Values = npt.NDArray[np.float64]


class Oracle:
    """One feature at a time, in float64, as the paper's algorithm 1 is written."""

    def __init__(self, features: int, momentum: float, warmup: int) -> None:
        self.mean, self.var, self.seen = np.zeros(features), np.ones(features), 0
        self.momentum, self.warmup = momentum, warmup

    def __call__(self, x: Values) -> Values:
        out = np.zeros_like(x)
        for f in range(x.shape[1]):
            mean = sum(x[:, f]) / len(x)
            var = sum((value - mean) ** 2 for value in x[:, f]) / len(x)
            sigma, running = (var + EPSILON) ** 0.5, (self.var[f] + EPSILON) ** 0.5
            r, d = 1.0, 0.0
            if self.seen >= self.warmup:
                r = min(max(sigma / running, 1 / LARGEST_R), LARGEST_R)
                d = min(max((mean - self.mean[f]) / running, -LARGEST_D), LARGEST_D)
            out[:, f] = [(value - mean) / sigma * r + d for value in x[:, f]]
            self.mean[f] = self.momentum * self.mean[f] + (1 - self.momentum) * mean
            self.var[f] = self.momentum * self.var[f] + (1 - self.momentum) * var
        self.seen += 1
        return out


def stream(batches: int, size: int = 12, features: int = 3, seed: int = 0) -> list[Values]:
    """Batches whose level and spread wander far enough that r and d are clipped now and then."""
    g = np.random.default_rng(seed)
    return [g.normal(size=(size, features)) * np.exp(g.normal(0, 1.5, features)) + 6 * g.normal(size=features) for _ in range(batches)]


def test_it_follows_the_oracle_through_warm_up_and_after() -> None:
    layer, oracle = BatchRenorm(3, momentum=0.9, warmup=5).double(), Oracle(3, 0.9, 5)
    for x in stream(30):
        found = layer(torch.from_numpy(x), learn=True)
        assert np.allclose(found.detach().numpy(), oracle(x), atol=1e-10)
        assert np.allclose(layer.mean.numpy().ravel(), oracle.mean)
        assert np.allclose(layer.var.numpy().ravel(), oracle.var)
    x = stream(1, seed=1)[0]
    still = layer(torch.from_numpy(x), learn=False)
    assert np.allclose(still.detach().numpy(), (x - oracle.mean) / np.sqrt(oracle.var + EPSILON), atol=1e-10)
    assert np.allclose(layer.mean.numpy().ravel(), oracle.mean), "looking does not teach"


def test_during_the_warm_up_it_is_batch_normalisation() -> None:
    layer = BatchRenorm(3, warmup=100).double()
    x = torch.from_numpy(stream(1)[0]).requires_grad_()
    reference = torch.nn.functional.batch_norm(x, None, None, training=True, eps=EPSILON)
    found = layer(x, learn=True)
    assert torch.allclose(found, reference)
    weights = torch.randn_like(found)
    (expected,) = torch.autograd.grad((reference * weights).sum(), x)
    (gradient,) = torch.autograd.grad((found * weights).sum(), x)
    assert torch.allclose(gradient, expected)


def test_with_r_and_d_within_bounds_it_is_the_running_normalisation() -> None:
    """r and d put back what the batch statistics took away: the value, not the gradient."""
    layer = BatchRenorm(3, warmup=0).double()
    x = torch.randn(64, 3, dtype=torch.float64) * 1.5 + 0.5
    assert torch.allclose(layer(x, learn=True), x / (1 + EPSILON) ** 0.5)


def test_far_from_the_running_statistics_r_and_d_stop_at_their_bounds() -> None:
    layer = BatchRenorm(1, warmup=0).double()
    x = 1000 + 100 * torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    found = layer(x, learn=True)
    unit = 100 / (100**2 + EPSILON) ** 0.5
    assert found.detach().ravel().tolist() == pytest.approx([-LARGEST_R * unit + LARGEST_D, LARGEST_R * unit + LARGEST_D])


def test_the_gradient_takes_r_and_d_as_constants() -> None:
    layer, oracle = BatchRenorm(3, warmup=0).double(), Oracle(3, 0.99, 0)
    first, second = stream(2, size=6)
    layer(torch.from_numpy(first), learn=True)
    oracle(first)
    x = torch.from_numpy(second).requires_grad_()
    mean, std = second.mean(0), np.sqrt(second.var(0) + EPSILON)
    running = np.sqrt(oracle.var + EPSILON)
    r, d = np.clip(std / running, 1 / LARGEST_R, LARGEST_R), np.clip((mean - oracle.mean) / running, -LARGEST_D, LARGEST_D)
    weights = np.random.default_rng(5).normal(size=second.shape)
    (gradient,) = torch.autograd.grad((layer(x, learn=True) * torch.from_numpy(weights)).sum(), x)

    def value(at: Values) -> float:
        fixed = (at - at.mean(0)) / np.sqrt(at.var(0) + EPSILON) * r + d
        return float((fixed * weights).sum())

    for index in np.ndindex(second.shape):
        step = np.zeros_like(second)
        step[index] = 1e-5
        slope = (value(second + step) - value(second - step)) / 2e-5
        assert float(gradient[index]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_members_keep_statistics_of_their_own() -> None:
    both, alone = BatchRenorm(2, 3, warmup=2), [BatchRenorm(3, warmup=2) for _ in range(2)]
    for i in range(6):
        x = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(i)) * torch.tensor([1.0, 4.0]).view(2, 1, 1)
        found = both(x, learn=True)
        for member, layer in enumerate(alone):
            assert torch.allclose(found[member], layer(x[member], learn=True), atol=1e-5)
    assert both.mean.shape == (2, 1, 3)


def test_train_and_eval_change_nothing_and_the_state_is_complete() -> None:
    layer, again = BatchRenorm(3, warmup=2), BatchRenorm(3, warmup=2)
    x = torch.randn(8, 3)
    for _ in range(4):
        layer(x, learn=True)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x, learn=False), layer.train()(x, learn=False))
    assert torch.equal(layer.eval()(2 * x, learn=True), again.train()(2 * x, learn=True))
    assert int(again.batches) == 5
