"""The flow policy: observation -> normalise -> K flow steps -> squash -> un-normalise -> a chunk of h actions."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from flowft import checkpoint, recipe, registry
from flowft.data.spec import Array, Spec
from flowft.device import resolve
from flowft.errors import CheckpointError
from flowft.policies import actor, critic, flow, squash
from flowft.policies.base import Policy
from flowft.policies.layers import mlp

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


@dataclass(frozen=True)
class Config:
    """The recipe's `policy` section."""

    network: str = "flow_g"  # velocity network: flow_g, flow_t, mlp, or a plug-in's
    net: dict[str, Any] = field(default_factory=dict)  # that network's own settings, e.g. policy.net.hidden=[256,256,256]
    horizon: int = 5  # h: actions per chunk, executed open loop
    steps: int = 4  # K: flow steps
    candidates: int = 32  # N: chunks among which a best_of_n policy chooses; no other kind uses it
    squash: Literal["clip", "tanh"] = "clip"  # recipes/scripted/lift-squash.md has the table that chose it
    atanh_limit: float = 0.98  # tanh only: |a| of cloning targets is clipped here
    squash_epsilon: float = 0.0  # tanh only: log-density with log(1 − tanh²x + this), so that it stays bounded; published: 1e-6
    observation_clip: float | None = 10.0  # normalised observations are clipped to ± this; None: not
    noise: Literal["fixed", "learned"] = "fixed"  # of the noise-augmented rollout
    sigma: float = 0.1  # σ, in units of the squashed action; learned: where it starts
    drift_correction: bool = True  # False: the published code's form, which changes the marginals

    def __post_init__(self) -> None:
        recipe.require(self, "horizon", "steps", "candidates", least=1)
        recipe.require(self, "sigma", above=0)
        recipe.require(self, "squash_epsilon", least=0)
        if not 0 < self.atanh_limit < 1:
            raise ValueError(f"atanh_limit is {self.atanh_limit}; it must be between 0 and 1, where atanh is infinite")
        if self.observation_clip is not None and self.observation_clip <= 0:
            raise ValueError(f"observation_clip is {self.observation_clip}; it must be positive, or null for no clip")


class Sample(NamedTuple):
    """A chunk drawn from the noise-augmented rollout."""

    action: torch.Tensor  # (B, h, A) in [−1, 1]
    log_prob: torch.Tensor  # (B,) log p_c of the path, with the squash term
    path_log_prob: torch.Tensor  # (B,) the same before the squash term: what a target entropy refers to
    latent: torch.Tensor  # (B, D) x_K, before the squash
    path: list[torch.Tensor]  # x_0 … x_K, each (B, D)


class FlowPolicy(Policy):
    """A velocity network with all that it takes to act: normaliser, noise, squash and action bounds."""

    kind = "flow"

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config.horizon, config.observation_clip)
        self.config = config
        self.squash = squash.make(config.squash, config.atanh_limit, config.squash_epsilon)
        network = registry.get("networks", config.network)
        settings = recipe.build(network.config_type, config.net, "policy.net")
        self.network = network(spec.observation_dim, self.latent_dim, settings, horizon=config.horizon)
        self.noise_head: nn.Module | None = None
        if config.noise == "learned":
            self.noise_head = mlp([spec.observation_dim + self.latent_dim + 1, 256, self.latent_dim], "silu")
            _start_at(self.noise_head, config.sigma)

    @classmethod
    def from_settings(cls, spec: Spec, networks: Networks) -> FlowPolicy:
        return cls(spec, networks.policy)

    # The flow on tensors --------------------------------------------------------------------------------------------

    def velocity(self, observation: torch.Tensor, x: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
        """v_θ(t, x, s): (B, D) from raw observations (B, O), x (B, D), t (B, 1), or (B,), or one number for all."""
        time = torch.as_tensor(t, dtype=x.dtype, device=x.device).reshape(-1, 1).expand(len(x), 1)
        v: torch.Tensor = self.network(self.network.context(self.normalizer(observation)), x, time)
        return v

    def integrate(self, observation: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """The noise-free flow from x_0 (B, D) to x_K (B, D)."""
        return flow.integrate(partial(self.network, self.network.context(self.normalizer(observation))), x0, self.config.steps)

    def sample(self, observation: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor) -> Sample:
        """The noise-augmented rollout from x_0 (B, D) with noise ε (K, B, D), differentiable in θ."""
        path = self.noisy_path(observation, x0, noise)
        action = self.squash(path.end)
        log_prob = path.log_prob - self.squash.log_derivative(path.end)
        return Sample(self.chunk(action), log_prob, path.log_prob, path.end, path.path)

    def rollout(
        self,
        observation: torch.Tensor,
        x0: torch.Tensor,
        noise: torch.Tensor,
        std: float | torch.Tensor | None = None,
        drift_correction: bool | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Action (B, D) and log p_c (B, 1) of the same rollout, in the published form where asked.

        K is the length of `noise` (K, B, D). `std`: noise of one step, x + v·Δt + std·ε; None: this policy's σ√Δt.
        `drift_correction`: None is this policy's own setting. `noisy_path` has the points x_0 … x_K on the way.
        ValueError for other shapes, and for a `std` of 0, whose path has no density.
        """
        batch = len(x0)
        wanted = (batch, self.spec.observation_dim), (batch, self.latent_dim), (len(noise), batch, self.latent_dim)
        if (given := (tuple(observation.shape), tuple(x0.shape), tuple(noise.shape))) != wanted:
            wanted_text = f"(B, {self.spec.observation_dim}), (B, {self.latent_dim}), (K, B, {self.latent_dim})"
            raise ValueError(
                f"observation, x0 and noise have shapes {', '.join(map(str, given))}; this policy's rollout takes {wanted_text}"
            )
        if not len(noise):
            raise ValueError("noise has no step; K is its length, at least 1")
        if std is not None and not bool((torch.as_tensor(std) > 0).all()):
            raise ValueError(f"std is {std}; it must be positive (the noise-free flow is `integrate`)")
        path = self.noisy_path(observation, x0, noise, std, drift_correction)
        log_prob = path.log_prob - self.squash.log_derivative(path.end)
        return self.squash(path.end), log_prob.unsqueeze(-1)

    def noisy_path(
        self,
        observation: torch.Tensor,
        x0: torch.Tensor,
        noise: torch.Tensor,
        std: float | torch.Tensor | None = None,
        drift_correction: bool | None = None,
    ) -> flow.Rollout:
        """The noisy path from x_0 (B, D) before the squash; arguments as `rollout` takes them."""
        state = self.normalizer(observation)
        velocity = partial(self.network, self.network.context(state))
        correct = self.config.drift_correction if drift_correction is None else drift_correction
        if std is None:
            return flow.rollout(velocity, partial(self._sigma, state), x0, noise, correct)
        sigma = torch.as_tensor(std, dtype=x0.dtype, device=x0.device) * len(noise) ** 0.5
        return flow.rollout(velocity, lambda x, t: sigma, x0, noise, correct)

    def draw(self, batch: int, stream: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Fresh x_0 (B, D) and ε (K, B, D): new for every call, every element and every step."""
        z = torch.randn(self.config.steps + 1, batch, self.latent_dim, generator=stream, device=stream.device)
        return z[0], z[1:]

    def _sigma(self, state: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.noise_head is None:
            return x.new_full((), self.config.sigma)
        raw = self.noise_head(torch.cat([state, x, t], dim=-1)).tanh()
        log_std: torch.Tensor = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (raw + 1)
        return log_std.exp()

    # Acting ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def unit_chunk(self, observation: Array, x0: torch.Tensor, noise: torch.Tensor | None = None) -> Array:
        """Chunks (B, h, A) in [−1, 1] for observations (B, O): noise-free without `noise`, else the noisy rollout."""
        s = self.on_device(observation)
        if noise is not None:
            return self.sample(s, x0.to(s.device), noise.to(s.device)).action.cpu().numpy()
        return self.chunk(self.squash(self.integrate(s, x0.to(s.device)))).cpu().numpy()


class Networks(NamedTuple):
    """The recipe's sections that describe networks; each kind of policy takes what it needs."""

    policy: Config
    critic: critic.Config
    actor: actor.Config


def build(kind: str, spec: Spec, networks: Networks) -> Policy:
    """An untrained policy of a registered kind."""
    made: Policy = registry.get("policies", kind).from_settings(spec, networks)
    return made


def load_policy(path: str | Path, device: str = "cpu") -> Policy:
    """The policy of a checkpoint, ready to act: `flowft.load_policy("checkpoints/can.pt").act(observation)`."""
    content = checkpoint.load(checkpoint.find(str(path)), "policy checkpoint", resolve(device))
    return from_checkpoint(content).to(resolve(device)).eval()


def from_checkpoint(content: dict[str, Any]) -> Policy:
    """Build the policy that a loaded checkpoint holds. Old checkpoints name no kind: theirs are flows."""
    tree = content["recipe"]
    configs = (recipe.build(part.Config, tree.get(name, {}), name) for name, part in (("critic", critic), ("actor", actor)))
    networks = Networks(recipe.build(Config, tree["policy"], "policy"), *configs)
    policy = build(content.get("policy_kind", "flow"), Spec.from_tree(content["spec"]), networks)
    try:
        policy.load_state_dict(content["policy"])
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint's weights do not fit its own settings: {' '.join(str(error).split())[:200]}") from error
    return policy


def _start_at(head: nn.Module, sigma: float) -> None:
    """Make a noise head put out σ everywhere at first."""
    last = list(head.modules())[-1]
    assert isinstance(last, nn.Linear)
    raw = 2 * (np.log(sigma) - LOG_STD_MIN) / (LOG_STD_MAX - LOG_STD_MIN) - 1
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, float(np.arctanh(np.clip(raw, -0.999, 0.999))))
