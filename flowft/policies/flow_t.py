"""Flow-T, the decoded velocity: v = head(decoder(E_A(x) + E_t(t); memory E_S(s))).

Each flow step sees itself only (the rollout stays Markov) and one state token. Softmax over a single key is 1 whatever
the query, so cross-attention is out(value(memory)), which depends on neither x nor t, and where the chunk is one token
self-attention is the linear map out(value(x)): query and key weights are dead, and are not kept. The whole state branch
(encoder and cross-attention of every layer) is the `context`, computed once per rollout instead of K times.

With a token per chunk step, the steps of a chunk attend to each other; the state branch is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import nn
from torch.nn import functional as F

from flowft.policies.layers import activation, mlp


@dataclass(frozen=True)
class Config:
    width: int = 128  # d; 64 from scratch
    layers: int = 2
    # Post as in the released code; pre-norm, as in the paper's text, fine-tunes worse; from scratch it is better, and set there.
    norm: Literal["pre", "post"] = "post"
    feed_forward: float = 4.0  # width of the feed-forward block, in units of d
    tokens: Literal["one", "steps"] = "one"  # one for the whole chunk, as published, or one per chunk step
    heads: int = 4  # of the attention between chunk steps; with one token any number is the same
    state_hidden: int | None = None  # hidden width of the state encoder; None: d/2
    time_hidden: tuple[int, ...] | None = None  # hidden widths of the time encoder; None: d/4, d/2

    def __post_init__(self) -> None:
        if self.tokens == "steps" and (self.heads < 1 or self.width % self.heads):
            raise ValueError(f"heads is {self.heads}; it must divide the width, {self.width}")


class FlowT(nn.Module):
    """v = head(decoder(E_A(x) + E_t(t); E_S(s)))."""

    config_type = Config

    def __init__(self, observation_dim: int, latent_dim: int, config: Config, horizon: int = 1) -> None:
        """`horizon`: chunk steps h in D = h · action size."""
        super().__init__()
        d = config.width
        self.horizon = horizon if config.tokens == "steps" else None
        token_dim = latent_dim // (self.horizon or 1)
        self.state_encoder = mlp([observation_dim, config.state_hidden or d // 2, d], "silu")
        self.time_encoder = mlp([1, *(config.time_hidden or (d // 4, d // 2)), d], "silu")
        self.action_encoder = nn.Linear(token_dim, d)
        self.decoder = nn.ModuleList(DecoderLayer(d, config) for _ in range(config.layers))
        self.head = nn.Linear(d, token_dim)
        if self.horizon is not None:
            self.position = nn.Parameter(0.02 * torch.randn(self.horizon, d))

    def layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.decoder))

    def context(self, observation: torch.Tensor) -> list[torch.Tensor]:
        """The cross-attention output of every layer, each (B, d): all that the state contributes."""
        memory = self.state_encoder(observation)
        return [layer.cross_attend(memory) for layer in self.layers()]

    def forward(self, context: list[torch.Tensor], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """v (B, D) from the context, x (B, D) and t (B, 1)."""
        if self.horizon is None:
            return self._decode(self.action_encoder(x) + self.time_encoder(t), context)
        steps = x.reshape(*x.shape[:-1], self.horizon, -1)  # (B, h, A)
        tokens = self.action_encoder(steps) + self.time_encoder(t).unsqueeze(-2) + self.position
        return self._decode(tokens, [state.unsqueeze(-2) for state in context]).flatten(-2)

    def _decode(self, token: torch.Tensor, context: list[torch.Tensor]) -> torch.Tensor:
        """The layers and the head, for one token (B, d) or for h of them (B, h, d)."""
        for layer, state in zip(self.layers(), context, strict=True):
            token = layer(token, state)
        velocity: torch.Tensor = self.head(token)
        return velocity


class ValueMap(nn.Sequential):
    """Attention over a single key: out(value(token))."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(width, width), nn.Linear(width, width))


class Attention(nn.Module):
    """Attention of a chunk's steps to each other, all to all."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, h, d) -> (B, h, d)."""
        parts = self.query_key_value(tokens).reshape(*tokens.shape[:-1], 3, self.heads, -1)  # (B, h, 3, heads, d/heads)
        query, key, value = parts.movedim(-3, 0).transpose(-3, -2)  # each (B, heads, h, d/heads)
        seen = F.scaled_dot_product_attention(query, key, value)
        attended: torch.Tensor = self.out(seen.transpose(-3, -2).flatten(-2))
        return attended


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and a feed-forward block, each residual, normalised before or after."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.pre = config.norm == "pre"
        self.self_attention = ValueMap(width) if config.tokens == "one" else Attention(width, config.heads)
        self.cross_attention = ValueMap(width)
        inner = round(config.feed_forward * width)
        self.feed_forward = nn.Sequential(nn.Linear(width, inner), activation("gelu"), nn.Linear(inner, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2 if self.pre else 3))

    def cross_attend(self, memory: torch.Tensor) -> torch.Tensor:
        """What the encoded state (B, d) contributes to this layer, whatever the token."""
        contribution: torch.Tensor = self.cross_attention(memory)
        return contribution

    def forward(self, token: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """A token (B, d) and the state's cross-attention output (B, d) -> (B, d); or (B, h, d) and (B, 1, d)."""
        if self.pre:  # cross-attention needs no norm of its own: its query is dead
            token = token + self.self_attention(self.norms[0](token)) + state
            return token + self.feed_forward(self.norms[1](token))  # type: ignore[no-any-return]
        token = self.norms[0](token + self.self_attention(token))
        token = self.norms[1](token + state)
        return self.norms[2](token + self.feed_forward(token))  # type: ignore[no-any-return]
