"""Converted parameters compute what the published networks compute: the JAX reference files, and other sizes against numpy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flowft
from flowft import checkpoint, recipe
from flowft.algos.flow_bc import flow_matching_loss
from flowft.algos.sac_flow import Config, SACFlow
from flowft.convert import Sizes, sacflow_npz
from flowft.data.spec import Batch
from flowft.policies import critic as critics
from flowft.policies.policy import FlowPolicy

from . import published

REFERENCE = sorted((Path(__file__).parent / "data" / "sacflow").glob("*.npz"))
TOLERANCE = 1e-5  # of float32, relative to the largest value of an array
OTHER_SIZES = [(network, seed) for network in ("flow_g", "flow_t", "mlp") for seed in range(6)]


def load(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def converted(path: Path, out: Path, **sizes: int) -> FlowPolicy:
    checkpoint.save(out, "policy checkpoint", sacflow_npz.convert(path, Sizes(**sizes)))
    return flowft.load_policy(out)


def close(found: torch.Tensor, expected: Any, tolerance: float = TOLERANCE) -> None:
    """Same shape, and no value off by more than `tolerance` times the largest one."""
    there = np.asarray(expected, dtype=np.float64)
    assert tuple(found.shape) == there.shape
    here = found.detach().double().numpy()
    assert np.abs(here - there).max() <= tolerance * max(np.abs(there).max(), 1e-6), np.abs(here - there).max() / np.abs(there).max()


def tensors(z: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    names = ("obs", "x", "t", "x0", "x1", "eps")
    return {name: torch.from_numpy(np.asarray(z[name])).to(dtype) for name in names}


def batch(policy: FlowPolicy, observation: torch.Tensor, flat: torch.Tensor) -> Batch:
    """Whole chunks `flat` (B, D); nothing of rewards matters to the actor's losses."""
    n, h = len(observation), policy.config.horizon
    ones, zeros = torch.ones(n, dtype=flat.dtype), torch.zeros(n, h, dtype=flat.dtype)
    return Batch(observation, policy.chunk(flat), torch.ones_like(zeros), zeros, ones * h, observation, ones * 0, ones, ones)


def agent(policy: FlowPolicy, path: Path, x0: torch.Tensor, noise: torch.Tensor, alpha: float, beta: float) -> SACFlow:
    """SAC Flow with the published actor loss: mean of the ensemble, no trust region, given noise."""
    content = checkpoint.load(path, "policy checkpoint")
    settings = recipe.build(critics.Config, content["recipe"]["critic"], "critic")
    made = SACFlow(policy, settings, Config(pessimism="mean", beta=beta, radius=None, alpha=alpha), seed=0)
    made.load_pretrained(content["algo"], critic=True, optimizers=False)
    policy.draw = lambda batch, stream: (x0, noise)  # type: ignore[method-assign]
    return made


def published_gradients(z: Mapping[str, Any], prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The file's gradients under flowft's names, and those of parameters that flowft does not keep."""
    actor = {name: array for name, array in z.items() if name.startswith("param:")}
    live, dead = {}, {}
    for entry in sacflow_npz.recognise(Path(), actor).entries:
        gradient = z[entry.name.replace("param:", prefix)]
        if entry.target is None:
            dead[entry.name] = gradient
        else:
            live[entry.target] = entry.change(torch.from_numpy(gradient))
    return live, dead


def compare_gradients(policy: FlowPolicy, loss: torch.Tensor, z: Mapping[str, Any], prefix: str) -> None:
    policy.zero_grad()
    loss.backward()
    live, dead = published_gradients(z, prefix)
    parameters = dict(policy.network.named_parameters())
    assert set(parameters) == set(live), "every parameter has its gradient in the file"
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        close(parameter.grad, live[name], 1e-4 if name.startswith("time_encoder") else 2 * TOLERANCE)
    assert all(np.abs(gradient).max() < 1e-6 for gradient in dead.values())


# The reference files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_outputs_agree_with_the_published_networks(path: Path, tmp_path: Path) -> None:
    z = load(path)
    policy, q = converted(path, tmp_path / "a.pt"), flowft.load_critic(tmp_path / "a.pt")
    given = tensors(z)
    close(policy.velocity(given["obs"], given["x"], given["t"]), z["velocity"])
    action, log_prob = policy.rollout(given["obs"], given["x0"], given["eps"], std=float(z["std"]), drift_correction=False)
    close(action, z["action"])
    close(log_prob, z["log_prob"])
    path_taken = policy.noisy_path(given["obs"], given["x0"], given["eps"], float(z["std"]), drift_correction=False)
    close(torch.stack(path_taken.path), z["trajectory"])
    close(policy.squash(policy.integrate(given["obs"], given["x0"])), z["action_noise_free"])
    close(q(given["obs"], given["x1"]), z["q"])
    close(q(given["obs"], action), z["q_of_action"])


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_losses_and_every_gradient_agree_with_the_published_networks(path: Path, tmp_path: Path) -> None:
    """flowft's own losses. The published one clones raw actions, so what flowft takes for the action is tanh of them."""
    z = load(path)
    policy = converted(path, tmp_path / "a.pt")
    given = tensors(z)
    loss = flow_matching_loss(policy, batch(policy, given["obs"], given["x1"].tanh()), given["x0"], given["t"])
    close(loss, z["fm_loss"])
    compare_gradients(policy, loss, z, "grad_fm:")
    algo = agent(policy, tmp_path / "a.pt", given["x0"], given["eps"], float(z["alpha"]), float(z["beta"]))
    loss, _, _ = algo.actor_loss(batch(policy, given["obs"], given["x1"]))
    close(loss, z["actor_loss"])
    compare_gradients(policy, loss, z, "grad_actor:")


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.stem)
def test_the_checkpoint_itself_is_in_the_published_form(path: Path, tmp_path: Path) -> None:
    """What fine-tuning starts from: `sample`, with the checkpoint's own σ, K and drift, is the published rollout."""
    z = load(path)
    policy, given = converted(path, tmp_path / "a.pt"), tensors(z)
    assert (policy.config.horizon, policy.spec.action_dim, policy.config.steps) == (z["horizon"], z["action_dim"], z["K"])
    sample = policy.sample(given["obs"], given["x0"], given["eps"])
    close(sample.action.flatten(1), z["action"])
    close(sample.log_prob, z["log_prob"][:, 0])


# Other sizes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def other(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any], published.Sizes]:
    """A random file of the network and seed in `request.param`, its arrays and sizes."""
    network, seed = request.param
    g = np.random.default_rng([seed, len(network)])
    sizes = published.some_sizes(g)
    z = published.random_file(network, sizes, g)
    np.savez(tmp_path / "random.npz", **z)
    return tmp_path / "random.npz", z, sizes


@pytest.mark.parametrize("other", OTHER_SIZES, indirect=True, ids=str)
def test_other_sizes_agree_with_numpy(other: tuple[Path, dict[str, Any], published.Sizes], tmp_path: Path) -> None:
    path, z, sizes = other
    exact, std = published.double(z), float(z["std"])
    points = published.trajectory(exact, exact["obs"], exact["x0"], exact["eps"], std)
    policy, q = converted(path, tmp_path / "a.pt"), flowft.load_critic(tmp_path / "a.pt")
    assert policy.spec.observation_dim == sizes.observation
    assert (policy.config.horizon, policy.spec.action_dim, policy.config.steps) == (sizes.horizon, sizes.action, sizes.steps)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
        policy, q, given = policy.to(dtype), q.to(dtype), tensors(z, dtype)
        close(
            policy.velocity(given["obs"], given["x"], given["t"]),
            published.velocity(exact, exact["obs"], exact["x"], exact["t"]),
            tolerance,
        )
        action, log_prob = policy.rollout(given["obs"], given["x0"], given["eps"], std=std, drift_correction=False)
        close(action, np.tanh(points[-1]), tolerance)
        close(log_prob, published.log_prob(points, exact["eps"], std), tolerance)
        close(q(given["obs"], given["x1"]), published.q_values(exact, exact["obs"], exact["x1"]), tolerance)


@pytest.mark.parametrize("other", OTHER_SIZES, indirect=True, ids=str)
def test_gradients_of_other_sizes_agree_with_finite_differences(
    other: tuple[Path, dict[str, Any], published.Sizes], tmp_path: Path
) -> None:
    """Along a random direction of each array: ⟨∇loss, direction⟩ against numpy's central difference."""
    path, z, _ = other
    policy = converted(path, tmp_path / "a.pt").double()
    given, exact, std = tensors(z, torch.float64), published.double(z), float(z["std"])
    algo = agent(policy, tmp_path / "a.pt", given["x0"], given["eps"], alpha=0.3, beta=7.0)
    algo.critic.double()
    cloning = flow_matching_loss(policy, batch(policy, given["obs"], given["x1"].tanh()), given["x0"], given["t"])
    acting, _, _ = algo.actor_loss(batch(policy, given["obs"], given["x1"]))
    sigma = std * len(given["eps"]) ** 0.5
    assert policy.config.sigma == pytest.approx(sigma)
    losses = [
        (cloning, lambda p: published.flow_matching_loss(p, exact)),
        (acting, lambda p: published.actor_loss(p, exact, std, 0.3, 7.0)),
    ]
    entries = sacflow_npz.recognise(path, {name: array for name, array in z.items() if name.startswith("param:")}).entries
    g = np.random.default_rng(0)
    for loss, numpy_loss in losses:
        assert loss.item() == pytest.approx(numpy_loss(exact), rel=1e-6)
        parameters = dict(policy.network.named_parameters())
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()), retain_graph=True), strict=True))
        for entry in entries:
            direction = g.normal(size=exact[entry.name].shape)
            step = 1e-5
            up, down = (numpy_loss({**exact, entry.name: exact[entry.name] + sign * step * direction}) for sign in (1, -1))
            slope = 0.0 if entry.target is None else float((gradients[entry.target] * entry.change(torch.from_numpy(direction))).sum())
            assert (up - down) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-6), entry.name


# What a caller may write ------------------------------------------------------------------------------------------------


def test_time_may_be_a_number_a_vector_or_a_column(tmp_path: Path) -> None:
    policy, given = converted(REFERENCE[0], tmp_path / "a.pt"), tensors(load(REFERENCE[0]))
    column = policy.velocity(given["obs"], given["x"], torch.full((16, 1), 0.25))
    for t in (0.25, torch.tensor(0.25), torch.full((16,), 0.25)):
        assert torch.equal(policy.velocity(given["obs"], given["x"], t), column)


def test_rollout_without_std_is_the_policys_own(tmp_path: Path) -> None:
    policy, given = converted(REFERENCE[0], tmp_path / "a.pt"), tensors(load(REFERENCE[0]))
    own, named = (policy.rollout(given["obs"], given["x0"], given["eps"], **how) for how in ({}, {"std": 0.05, "drift_correction": False}))
    assert torch.allclose(own[0], named[0], atol=1e-6)
    assert torch.allclose(own[1], named[1], rtol=1e-6)
    for wrong in (
        {"observation": given["obs"][0], "x0": given["x0"][0], "noise": given["eps"][:, 0]},
        {"observation": given["obs"], "x0": given["x0"], "noise": given["eps"][:, :1]},
    ):
        with pytest.raises(ValueError, match="this policy's rollout takes"):
            policy.rollout(**wrong)
    for nothing in (0.0, float("nan"), torch.tensor(0.0), np.float32(0)):
        with pytest.raises(ValueError, match="it must be positive"):
            policy.rollout(given["obs"], given["x0"], given["eps"], std=nothing)
    with pytest.raises(ValueError, match="noise has no step"):
        policy.rollout(given["obs"], given["x0"], given["eps"][:0])
    corrected, _ = policy.rollout(given["obs"], given["x0"], given["eps"], std=0.5, drift_correction=True)
    plain, _ = policy.rollout(given["obs"], given["x0"], given["eps"], std=0.5, drift_correction=False)
    assert not torch.allclose(corrected, plain, atol=1e-2)
    each = torch.full((16, 1), 0.05)
    assert torch.allclose(policy.rollout(given["obs"], given["x0"], given["eps"], std=each)[1], own[1], rtol=1e-6)


def test_observations_are_seen_raw_however_large(tmp_path: Path) -> None:
    policy, given = converted(REFERENCE[0], tmp_path / "a.pt"), tensors(load(REFERENCE[0]))
    far = [policy.velocity(scale * given["obs"], given["x"], given["t"]) for scale in (20.0, 40.0)]
    assert not torch.allclose(far[0], far[1], atol=1e-3)
    assert torch.equal(policy.normalizer(1e6 * given["obs"]), 1e6 * given["obs"])
