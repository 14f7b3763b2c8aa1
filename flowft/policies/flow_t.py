"""Flow-T, the decoded velocity: v = head(decoder(E_A(x) + E_t(t); memory E_S(s))).

Each flow step is one token that sees itself only (the rollout stays Markov) and one state token. Softmax over a single
key is 1 whatever the query, so self-attention is the linear map out(value(x)), cross-attention is out(value(memory)),
which depends on neither x nor t, and query and key weights are dead: they are not kept. The whole state branch (encoder
and cross-attention of every layer) is the `context`, computed once per rollout instead of K times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn

from flowft.policies.layers import activation


@dataclass(frozen=True)
class Config:
    width: int = 128  # d; 64 from scratch
    layers: int = 2
    norm: Literal["pre", "post"] = "pre"  # the paper's text has pre-norm, its code post-norm
    feed_forward: int = 4  # width of the feed-forward block, in units of d


class FlowT(nn.Module):
    """v = head(decoder(E_A(x) + E_t(t); E_S(s)))."""

    config_type = Config

    def __init__(self, observation_dim: int, latent_dim: int, config: Config) -> None:
        super().__init__()
        d = config.width
        self.state_encoder = nn.Sequential(nn.Linear(observation_dim, d // 2), nn.SiLU(), nn.Linear(d // 2, d))
        self.time_encoder = nn.Sequential(nn.Linear(1, d // 4), nn.SiLU(), nn.Linear(d // 4, d // 2), nn.SiLU(), nn.Linear(d // 2, d))
        self.action_encoder = nn.Linear(latent_dim, d)
        self.decoder = nn.ModuleList(DecoderLayer(d, config) for _ in range(config.layers))
        self.head = nn.Linear(d, latent_dim)

    def layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.decoder))

    def context(self, observation: torch.Tensor) -> list[torch.Tensor]:
        """The cross-attention output of every layer, each (B, d): all that the state contributes."""
        memory = self.state_encoder(observation)
        return [layer.cross_attend(memory) for layer in self.layers()]

    def forward(self, context: list[torch.Tensor], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """v (B, D) from the context, x (B, D) and t (B, 1)."""
        token = self.action_encoder(x) + self.time_encoder(t)
        for layer, state in zip(self.layers(), context, strict=True):
            token = layer(token, state)
        velocity: torch.Tensor = self.head(token)
        return velocity


class ValueMap(nn.Sequential):
    """Attention over a single key: out(value(token))."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, width), nn.Linear(width, width))


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and a feed-forward block, each residual, normalised before or after."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.self_attention = ValueMap(width)
        self.cross_attention = ValueMap(width)
        inner = config.feed_forward * width
        self.feed_forward = nn.Sequential(nn.Linear(width, inner), activation("gelu"), nn.Linear(inner, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2 if self.pre else 3))

    def cross_attend(self, memory: torch.Tensor) -> torch.Tensor:
        """What the encoded state (B, d) contributes to this layer, whatever the token."""
        contribution: torch.Tensor = self.cross_attention(memory)
        return contribution

    def forward(self, token: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(B, d) and the state's cross-attention output (B, d) -> (B, d)."""
        if self.pre:  # cross-attention needs no norm of its own: its query is dead
            token = token + self.self_attention(self.norms[0](token)) + state
            return token + self.feed_forward(self.norms[1](token))  # type: ignore[no-any-return]
        token = self.norms[0](token + self.self_attention(token))
        token = self.norms[1](token + state)
        return self.norms[2](token + self.feed_forward(token))  # type: ignore[no-any-return]
