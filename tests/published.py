"""The published networks (SAC Flow, arXiv 2509.25756) in plain numpy and float64, and random files of any size in their naming."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Parameters = Mapping[str, npt.NDArray[Any]]


class Sizes(NamedTuple):
    """Of one random file."""

    observation: int
    action: int
    horizon: int
    hidden: tuple[int, ...]  # of mlp and flow_g
    gate: int
    width: int  # of flow_t, with its encoders and feed-forward block
    state: int
    time: tuple[int, int]
    inner: int
    layers: int
    critic: tuple[int, ...]
    ensemble: int
    steps: int
    batch: int
    std: float

    @property
    def latent(self) -> int:
        return self.horizon * self.action


def some_sizes(g: np.random.Generator) -> Sizes:
    def several(least: int, most: int) -> tuple[int, ...]:
        return tuple(int(v) for v in g.integers(2, 20, g.integers(least, most + 1)))

    one = lambda low, high: int(g.integers(low, high + 1))  # noqa: E731
    return Sizes(
        one(1, 12), one(1, 5), one(1, 4), several(0, 4), one(1, 9), one(2, 24), one(1, 9), (one(1, 9), one(1, 9)), one(1, 50), one(1, 3),
        several(1, 4), one(1, 4), one(1, 6), one(1, 5), float(g.uniform(0.01, 0.4)),
    )  # fmt: skip


def random_file(network: str, sizes: Sizes, g: np.random.Generator, metadata: bool = True, critic: bool = True) -> dict[str, Any]:
    """Arrays of a file in the published naming, float32, with inputs; `metadata`: horizon, action_dim, K, std."""
    out: dict[str, Any] = {}

    def dense(name: str, n_in: int, n_out: int, *members: int) -> None:
        out[f"{name}/kernel"] = g.normal(0, n_in**-0.5, (*members, n_in, n_out))
        out[f"{name}/bias"] = g.normal(0, 0.2, (*members, n_out))

    def norm(name: str, width: int, *members: int) -> None:
        out[f"{name}/scale"] = g.normal(1, 0.2, (*members, width))
        out[f"{name}/bias"] = g.normal(0, 0.2, (*members, width))

    s, d = sizes, sizes.latent
    if network == "flow_t":
        for name, n_in, n_out in (
            ("Dense_0", s.observation, s.state), ("Dense_1", s.state, s.width), ("Dense_2", 1, s.time[0]), ("Dense_3", *s.time),
            ("Dense_4", s.time[1], s.width), ("action_proj", d, s.width), ("velocity_head", s.width, d),
        ):  # fmt: skip
            dense(f"param:{name}", n_in, n_out)
        for i in range(s.layers):
            for attention in ("self_attn", "cross_attn"):
                for part in "qkv":
                    dense(f"param:layer_{i}/{attention}/{part}_proj", s.width, s.width)
                dense(f"param:layer_{i}/{attention}/out_proj", s.width, s.width)
            dense(f"param:layer_{i}/Dense_0", s.width, s.inner)
            dense(f"param:layer_{i}/Dense_1", s.inner, s.width)
            for j in range(3):
                norm(f"param:layer_{i}/LayerNorm_{j}", s.width)
    else:
        widths = [s.observation + d + 1, *s.hidden, d]
        for i in range(len(widths) - 1):
            dense(f"param:mlp/Dense_{i}", widths[i], widths[i + 1])
        if network == "flow_g":
            dense("param:gate_net/layers_0", widths[0], s.gate)
            dense("param:gate_net/layers_2", s.gate, d)
    if critic:
        widths = [s.observation + d, *s.critic, 1]
        for i in range(len(widths) - 1):
            dense(f"critic:value_net/Dense_{i}", widths[i], widths[i + 1], s.ensemble)
        for i, width in enumerate(s.critic):
            norm(f"critic:value_net/LayerNorm_{i}", width, s.ensemble)
    if metadata:
        out |= {"horizon": np.int32(s.horizon), "action_dim": np.int32(s.action), "K": np.int32(s.steps), "std": s.std}
    out |= {
        "obs": g.normal(0, 3, (s.batch, s.observation)), "x": g.normal(size=(s.batch, d)), "t": g.uniform(size=(s.batch, 1)),
        "x0": g.normal(size=(s.batch, d)), "x1": g.uniform(-0.9, 0.9, (s.batch, d)), "eps": g.normal(size=(s.steps, s.batch, d)),
    }  # fmt: skip
    return {name: np.float32(value) if np.asarray(value).dtype == np.float64 else value for name, value in out.items()}


# The networks -----------------------------------------------------------------------------------------------------------


def double(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.asarray(value, dtype=np.float64) for name, value in arrays.items()}


def dense(p: Parameters, name: str, x: Numbers) -> Numbers:
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def norm(p: Parameters, name: str, x: Numbers) -> Numbers:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p[f"{name}/scale"] + p[f"{name}/bias"]


def gelu(x: Numbers) -> Numbers:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: Numbers) -> Numbers:
    return 1 / (1 + np.exp(-x))


def swish(x: Numbers) -> Numbers:
    return x * sigmoid(x)


def velocity(p: Parameters, s: Numbers, x: Numbers, t: Numbers) -> Numbers:
    if "param:velocity_head/kernel" in p:
        return flow_t(p, s, x, t)
    inputs = np.concatenate([s, x, t], axis=-1)
    h, depth = inputs, sum(name.startswith("param:mlp/") for name in p) // 2
    for i in range(depth):
        h = dense(p, f"param:mlp/Dense_{i}", h)
        h = gelu(h) if i < depth - 1 else h
    if "param:gate_net/layers_0/kernel" not in p:
        return h
    gate = sigmoid(dense(p, "param:gate_net/layers_2", swish(dense(p, "param:gate_net/layers_0", inputs))))
    return gate * (h - x)


def flow_t(p: Parameters, s: Numbers, x: Numbers, t: Numbers) -> Numbers:
    """Post-norm, with real attention over one key: a softmax of one score, which is 1."""
    memory = dense(p, "param:Dense_1", swish(dense(p, "param:Dense_0", s)))
    time = dense(p, "param:Dense_4", swish(dense(p, "param:Dense_3", swish(dense(p, "param:Dense_2", t)))))
    h = dense(p, "param:action_proj", x) + time
    i = 0
    while f"param:layer_{i}/Dense_0/kernel" in p:
        layer = f"param:layer_{i}"
        h = norm(p, f"{layer}/LayerNorm_0", h + attend(p, f"{layer}/self_attn", h, h))
        h = norm(p, f"{layer}/LayerNorm_1", h + attend(p, f"{layer}/cross_attn", h, memory))
        h = norm(p, f"{layer}/LayerNorm_2", h + dense(p, f"{layer}/Dense_1", gelu(dense(p, f"{layer}/Dense_0", h))))
        i += 1
    return dense(p, "param:velocity_head", h)


def attend(p: Parameters, name: str, queries: Numbers, keys: Numbers) -> Numbers:
    scores = (dense(p, f"{name}/q_proj", queries) * dense(p, f"{name}/k_proj", keys)).sum(-1, keepdims=True)  # (B, one key)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    return dense(p, f"{name}/out_proj", weights * dense(p, f"{name}/v_proj", keys))


def trajectory(p: Parameters, s: Numbers, x0: Numbers, eps: Numbers, std: float) -> Numbers:
    """x_0 … x_K of x + v·Δt + std·ε."""
    steps, points = len(eps), [x0]
    for i, noise in enumerate(eps):
        x = points[-1]
        points.append(x + velocity(p, s, x, np.full((len(x), 1), i / steps)) / steps + std * noise)
    return np.array(points)


def log_prob(points: Numbers, eps: Numbers, std: float) -> Numbers:
    """(B, 1)."""
    half = 0.5 * np.log(2 * np.pi)
    start = (-0.5 * points[0] ** 2 - half).sum(-1)
    moves = (-0.5 * eps**2 - np.log(std) - half).sum((0, -1))
    return (start + moves - np.log(1 - np.tanh(points[-1]) ** 2 + 1e-6).sum(-1))[:, None]


def q_values(p: Parameters, s: Numbers, a: Numbers) -> Numbers:
    """(E, B)."""
    depth = sum(name.startswith("critic:value_net/Dense_") for name in p) // 2
    members = []
    for member in range(len(p["critic:value_net/Dense_0/kernel"])):
        own = {name: value[member] for name, value in p.items() if name.startswith("critic:")}
        h = np.concatenate([s, a], axis=-1)
        for i in range(depth - 1):
            h = norm(own, f"critic:value_net/LayerNorm_{i}", gelu(dense(own, f"critic:value_net/Dense_{i}", h)))
        members.append(dense(own, f"critic:value_net/Dense_{depth - 1}", h)[:, 0])
    return np.array(members)


def flow_matching_loss(p: Parameters, z: Parameters) -> float:
    x = (1 - z["t"]) * z["x0"] + z["t"] * z["x1"]
    return float(((z["x1"] - z["x0"] - velocity(p, z["obs"], x, z["t"])) ** 2).mean())


def actor_loss(p: Parameters, z: Parameters, std: float, alpha: float, beta: float) -> float:
    """Mean over the ensemble, distance as a mean over dimensions."""
    points = trajectory(p, z["obs"], z["x0"], z["eps"], std)
    action = np.tanh(points[-1])
    q = q_values(p, z["obs"], action).mean(0)
    return float((alpha * log_prob(points, z["eps"], std)[:, 0] - q).mean() + beta * ((action - z["x1"]) ** 2).mean())
