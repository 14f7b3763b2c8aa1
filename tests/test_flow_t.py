"""Flow-T's shortcuts are exact: the fast forms against general attention (all K flow steps as one masked sequence)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from flowft.policies.flow_t import Attention, Config, DecoderLayer, FlowT, ValueMap

from .helpers import policy

OBSERVATION, HORIZON, ACTION = 5, 3, 2
LATENT = HORIZON * ACTION
K, BATCH, HEADS = 4, 6, 4


class General(nn.Module):
    """The decoder as drawn: softmax attention with query, key, value and out, over K flow steps and one state token.

    It shares encoders, norms, feed-forward blocks and head with `fast`, and copies its attention weights; queries and
    keys that `fast` does not have are random.
    """

    def __init__(self, fast: FlowT, width: int) -> None:
        super().__init__()
        self.fast = fast
        self.self_attention = nn.ModuleList(attention(layer.self_attention, width) for layer in fast.layers())
        self.cross_attention = nn.ModuleList(attention(layer.cross_attention, width) for layer in fast.layers())

    def forward(self, observation: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """v (B, K, D) at all flow steps x (B, K, D), t (B, K, 1) at once; tokens of other flow steps are masked."""
        per_step = self.fast.horizon or 1
        tokens = self.fast.action_encoder(x.reshape(len(x), K * per_step, -1))
        tokens = tokens + self.fast.time_encoder(t).repeat_interleave(per_step, dim=1)
        if per_step > 1:
            tokens = tokens + self.fast.position.repeat(K, 1)
        flow_step = torch.arange(K).repeat_interleave(per_step)
        hidden = flow_step[:, None] != flow_step[None, :]  # True: may not be seen
        memory = self.fast.state_encoder(observation).unsqueeze(1)
        for layer, own, cross in zip(self.fast.layers(), self.self_attention, self.cross_attention, strict=True):
            tokens = decode(layer, own, cross, tokens, memory, hidden)
        return self.fast.head(tokens).reshape(len(x), K, LATENT)


def attention(of: nn.Module, width: int) -> nn.MultiheadAttention:
    """General attention whose values and output are those of `of`."""
    made = nn.MultiheadAttention(width, HEADS, batch_first=True)
    with torch.no_grad():
        nn.init.normal_(made.in_proj_weight)
        nn.init.normal_(made.in_proj_bias)
        if isinstance(of, Attention):
            made.in_proj_weight.copy_(of.query_key_value.weight)
            made.in_proj_bias.copy_(of.query_key_value.bias)
            out = of.out
        else:
            assert isinstance(of, ValueMap)
            made.in_proj_weight[2 * width :] = of[0].weight
            made.in_proj_bias[2 * width :] = of[0].bias
            out = of[1]
        made.out_proj.weight.copy_(out.weight)
        made.out_proj.bias.copy_(out.bias)
    return made


def decode(
    layer: DecoderLayer, own: nn.Module, cross: nn.Module, tokens: torch.Tensor, memory: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    if layer.pre:
        inner = layer.norms[0](tokens)
        tokens = tokens + own(inner, inner, inner, attn_mask=hidden)[0]
        tokens = tokens + cross(tokens, memory, memory)[0]
        return tokens + layer.feed_forward(layer.norms[1](tokens))
    tokens = layer.norms[0](tokens + own(tokens, tokens, tokens, attn_mask=hidden)[0])
    tokens = layer.norms[1](tokens + cross(tokens, memory, memory)[0])
    return layer.norms[2](tokens + layer.feed_forward(tokens))


def pair(norm: str, tokens: str) -> tuple[FlowT, General]:
    torch.manual_seed(0)
    config = Config(width=16, layers=2, norm=norm, tokens=tokens, heads=HEADS)  # type: ignore[arg-type]
    fast = FlowT(OBSERVATION, LATENT, config, horizon=HORIZON).double()
    for norm_layer in (module for module in fast.modules() if isinstance(module, nn.LayerNorm)):
        nn.init.normal_(norm_layer.weight, 1, 0.2)
        nn.init.normal_(norm_layer.bias, 0, 0.2)
    return fast, General(fast, 16).double()


def points() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    s, x, up = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((BATCH, OBSERVATION), (BATCH, K, LATENT), (K, LATENT)))
    return s, x, torch.rand(BATCH, K, 1, generator=g, dtype=torch.float64), up


def step_by_step(fast: FlowT, s: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    context = fast.context(s)
    return torch.stack([fast(context, x[:, i], t[:, i]) for i in range(K)], dim=1)


@pytest.mark.parametrize("tokens", ["one", "steps"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_fast_form_is_the_general_one_forward_and_gradient(norm: str, tokens: str) -> None:
    fast, general = pair(norm, tokens)
    s, x, t, up = points()
    s.requires_grad_()
    x.requires_grad_()
    quick, slow = step_by_step(fast, s, x, t), general(s, x, t)
    assert torch.allclose(quick, slow, atol=1e-11)

    shared = dict(fast.named_parameters())
    found = dict(zip(shared, torch.autograd.grad((quick * up).sum(), list(shared.values()), retain_graph=True), strict=True))
    inputs = torch.autograd.grad((quick * up).sum(), [s, x])
    (slow * up).sum().backward()
    assert torch.allclose(inputs[0], s.grad, atol=1e-10)
    assert torch.allclose(inputs[1], x.grad, atol=1e-10)
    for name, parameter in shared.items():
        if "attention" not in name:
            assert torch.allclose(found[name], parameter.grad, atol=1e-10), name
    for i, (own, cross) in enumerate(zip(general.self_attention, general.cross_attention, strict=True)):
        for kind, module in (("self_attention", own), ("cross_attention", cross)):
            same_gradients(f"decoder.{i}.{kind}", found, module)


def same_gradients(prefix: str, found: dict[str, torch.Tensor], general: nn.MultiheadAttention) -> None:
    """Values and outputs have the same gradient; queries and keys that `fast` lacks have none."""
    weight, bias = general.in_proj_weight.grad, general.in_proj_bias.grad
    if f"{prefix}.query_key_value.weight" in found:
        assert weight[:32].abs().max() > 1e-6, "between chunk steps, queries and keys are alive"
        expected = {"query_key_value.weight": weight, "query_key_value.bias": bias, "out.weight": general.out_proj.weight.grad}
        expected["out.bias"] = general.out_proj.bias.grad
    else:
        assert weight[:32].abs().max() < 1e-12
        assert bias[:32].abs().max() < 1e-12
        expected = {"0.weight": weight[32:], "0.bias": bias[32:], "1.weight": general.out_proj.weight.grad}
        expected["1.bias"] = general.out_proj.bias.grad
    for name, gradient in expected.items():
        assert torch.allclose(found[f"{prefix}.{name}"], gradient, atol=1e-10), f"{prefix}.{name}"


@pytest.mark.parametrize("tokens", ["one", "steps"])
def test_the_state_branch_is_computed_once_per_rollout(tokens: str) -> None:
    actor = policy("flow_t", net={"width": 32, "tokens": tokens})
    calls: dict[str, int] = {"state": 0, "cross": 0, "self": 0}

    def count(name: str) -> Any:
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    actor.network.state_encoder.register_forward_hook(count("state"))
    for layer in actor.network.layers():
        layer.cross_attention.register_forward_hook(count("cross"))
        layer.self_attention.register_forward_hook(count("self"))
    x0, noise = actor.draw(2, torch.Generator().manual_seed(0))
    observation = torch.zeros(2, 5)
    for forward in (lambda: actor.sample(observation, x0, noise), lambda: actor.integrate(observation, x0)):
        calls.update(state=0, cross=0, self=0)
        forward()
        assert calls == {"state": 1, "cross": 2, "self": 2 * 4}, "2 layers, 4 flow steps"


def test_one_token_keeps_no_query_or_key() -> None:
    d = 32
    parameters = sum(p.numel() for layer in policy("flow_t").network.layers() for p in layer.self_attention.parameters())
    assert parameters == 2 * 2 * (d * d + d), "2 layers of value and out"


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_chunk_steps_see_each_other_and_know_their_place(norm: str) -> None:
    fast, _ = pair(norm, "steps")
    s, x, t, _ = points()
    context = fast.context(s)
    base = fast(context, x[:, 0], t[:, 0]).reshape(BATCH, HORIZON, ACTION)
    moved = x[:, 0].clone()
    moved[:, :ACTION] += 1  # the first step's action
    after = fast(context, moved, t[:, 0]).reshape(BATCH, HORIZON, ACTION)
    assert ((after - base).abs().amax(dim=(0, 2)) > 1e-4).all(), "every step has noticed"
    flipped = x[:, 0].reshape(BATCH, HORIZON, ACTION).flip(1)
    turned = fast(context, flipped.flatten(1), t[:, 0]).reshape(BATCH, HORIZON, ACTION).flip(1)
    assert not torch.allclose(turned, base, atol=1e-4)
    nn.init.zeros_(fast.position)
    base, turned = (fast(context, chunk.flatten(1), t[:, 0]).reshape(BATCH, HORIZON, ACTION) for chunk in (x[:, 0], flipped))
    assert torch.allclose(turned.flip(1), base, atol=1e-10), "without positions order means nothing"


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads is 3; it must divide the width, 16"):
        Config(width=16, heads=3, tokens="steps")
    Config(width=16, heads=3)  # of no consequence with one token
