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
    squash: Literal["clip", "tanh"] = "clip"  # recipes/README.md has the table that chose it
    atanh_limit: float = 0.98  # tanh only: |a| of cloning targets is clipped here
    observation_clip: float | None = 10.0  # normalised observations are clipped to ± this; None: not
    noise: Literal["fixed", "learned"] = "fixed"  # of the noise-augmented rollout
    sigma: float = 0.1  # σ, in units of the squashed action; learned: where it starts
    drift_correction: bool = True  # False: the published code's form, which changes the marginals

    def __post_init__(self) -> None:
        for name in ("horizon", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.sigma <= 0:
            raise ValueError(f"sigma is {self.sigma}; it must be positive")
        if self.observation_clip is not None and self.observation_clip <= 0:
            raise ValueError(f"observation_clip is {self.observation_clip}; it must be positive, or null for no clip")


class Sample(NamedTuple):
    """A chunk drawn from the noise-augmented rollout."""

    action: torch.Tensor  # (B, h, A) in [−1, 1]
    log_prob: torch.Tensor  # (B,) log p_c of the path, with the squash term
    path_log_prob: torch.Tensor  # (B,) the same before the squash term: what a target entropy refers to
    latent: torch.Tensor  # (B, D) x_K, before the squash


class FlowPolicy(Policy):
    """A velocity network with all that it takes to act: normaliser, noise, squash and action bounds."""

    kind = "flow"

    def __init__(self, spec: Spec, config: Config) -> None:
        super().__init__(spec, config.horizon, config.observation_clip)
        self.config = config
        self.squash = squash.make(config.squash, config.atanh_limit)
        network = registry.get("networks", config.network)
        settings = recipe.build(network.config_type, config.net, "policy.net")
        self.network = network(spec.observation_dim, self.latent_dim, settings)
        self.noise_head: nn.Module | None = None
        if config.noise == "learned":
            self.noise_head = mlp([spec.observation_dim + self.latent_dim + 1, 256, self.latent_dim], "silu")
            _start_at(self.noise_head, config.sigma)

    @classmethod
    def from_settings(cls, spec: Spec, networks: Networks) -> FlowPolicy:
        return cls(spec, networks.policy)

    # The flow on tensors --------------------------------------------------------------------------------------------

    def velocity(self, observation: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """v_θ(t, x, s): (B, D) from raw observations (B, O), x (B, D), t (B, 1)."""
        v: torch.Tensor = self.network(self.network.context(self.normalizer(observation)), x, t)
        return v

    def integrate(self, observation: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
        """The noise-free flow from x_0 (B, D) to x_K (B, D)."""
        return flow.integrate(partial(self.network, self.network.context(self.normalizer(observation))), x0, self.config.steps)

    def sample(self, observation: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor) -> Sample:
        """The noise-augmented rollout from x_0 (B, D) with noise ε (K, B, D), differentiable in θ."""
        state = self.normalizer(observation)
        velocity = partial(self.network, self.network.context(state))
        path = flow.rollout(velocity, partial(self._sigma, state), x0, noise, self.config.drift_correction)
        action = self.squash(path.end)
        log_prob = path.log_prob - self.squash.log_derivative(path.end)
        return Sample(self.chunk(action), log_prob, path.log_prob, path.end)

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
