"""The published networks' parameters (SAC Flow, arXiv 2509.25756) in an npz file, in Flax naming.

`param:…` is the velocity network, `critic:…` (optional) the ensemble; kernels are (in, out), the ensemble comes first.
Everything else is optional: `horizon`, `action_dim`, `K` and `std` (noise of one step) become settings, the widths of
`obs` and `x` bear witness to sizes, the rest is not read. Query and key projections of Flow-T attend to a single key and
are dead: they must be there, in the right shape, and are dropped. The published networks see raw observations and end
in a tanh whose derivative is kept from 0 by 1e-6; their rollout has no drift correction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flowft import recipe
from flowft.convert import Sizes, arrays
from flowft.convert.arrays import Arrays, Entry
from flowft.data.files import open_npz
from flowft.data.source import sha256
from flowft.data.spec import UNNAMED, Spec
from flowft.errors import DataError
from flowft.policies.critic import Critic
from flowft.policies.policy import Config, FlowPolicy
from flowft.train.run import policy_content
from flowft.train.settings import Settings

FORMAT = "sacflow-npz"
AGAIN = "export every parameter of one network again, as param:PATH (and critic:PATH) with Flax's names and kernels (in, out)"
EPSILON = 1e-6  # inside the logarithm of the published tanh correction


class Network(NamedTuple):
    """A network's arrays and what they say about its settings."""

    name: str  # flowft's
    entries: list[Entry]
    settings: Callable[[dict[str, int]], dict[str, Any]]  # from sizes


def convert(path: Path, sizes: Sizes) -> dict[str, Any]:
    """The content of a policy checkpoint; DataError names the array, its shape and the expected one."""
    found = read(path)
    actor = {name: array for name, array in found.items() if name.startswith("param:")}
    ensemble = {name: array for name, array in found.items() if name.startswith("critic:")}
    if not actor:
        names = ", ".join(list(found)[:8]) or "none"
        raise DataError(f"{path} holds no parameters: no array is called param:… (there are: {names})", AGAIN)
    gradients = {f"param:{name.partition(':')[2]}": array for name, array in found.items() if name.startswith(("grad_fm:", "grad_actor:"))}
    named = {**gradients, **actor}  # where the file has gradients, they say which parameters there should be
    network = recognise(path, named, _latent(found))
    q = critic(ensemble) if ensemble else None
    entries = [*network.entries, *(q.entries if q else [])]
    solved = arrays.solve(entries, {**named, **ensemble}, _witnesses(found))
    wrong = arrays.problems(entries, {**actor, **ensemble}, solved)
    if wrong := wrong or [f"the shapes leave {size} for {symbol}" for symbol, size in solved.items() if size < 1]:
        raise DataError(f"{path} does not hold a published {network.name}: {arrays.listed(wrong)}", AGAIN)
    horizon, action_dim = chunk(path, found, solved["latent"], sizes)
    if sizes.observation not in (None, solved["observation"]):
        seen = solved["observation"]
        raise DataError(f"--obs-dim {sizes.observation} does not fit {path}: its network sees {seen} values", f"--obs-dim {seen}")

    tree = {"policy": published(found, network, solved, horizon), **({"critic": q.settings(solved)} if q else {})}
    settings = recipe.build(Settings, tree, "")
    spec = Spec(((UNNAMED, solved["observation"]),), (-1.0,) * action_dim, (1.0,) * action_dim)
    policy = FlowPolicy(spec, settings.policy)
    policy.network.load_state_dict(arrays.parameters(network.entries, actor))
    require_same_velocity(path, found, policy)
    algo = {}
    if q is not None:
        made = Critic(spec.observation_dim, policy.latent_dim, settings.critic)
        made.load_state_dict(arrays.parameters(q.entries, ensemble))
        algo = {"critic": made.state_dict(), "target_critic": made.state_dict()}
    content = policy_content(settings, "convert", 0, policy, algo, None, None, None)
    return {**content, "origin": {"format": FORMAT, "path": str(path), "hash": sha256(path)}}


def read(path: Path) -> Arrays:
    """Every array of the file."""
    if not path.exists():
        raise DataError(f"no file {str(path)!r}", f"ls {path.parent}")
    try:
        with open_npz(path) as found:
            return dict(found)
    except DataError as error:  # its advice is for datasets
        raise DataError(error.what, AGAIN) from error


def published(found: Arrays, network: Network, solved: dict[str, int], horizon: int) -> dict[str, Any]:
    """The published form as settings of the policy; K and σ = std·√K where the file has them."""
    policy: dict[str, Any] = {
        "network": network.name, "net": network.settings(solved), "horizon": horizon, "squash": "tanh", "squash_epsilon": EPSILON,
        "observation_clip": None, "noise": "fixed", "drift_correction": False,
    }  # fmt: skip
    steps, std = _number(found, "K"), _number(found, "std")
    if steps is not None and steps >= 1:
        policy["steps"] = int(steps)
    if std is not None and std > 0:
        policy["sigma"] = std * policy.get("steps", Config.steps) ** 0.5
    return policy


def chunk(path: Path, found: Arrays, latent: int, sizes: Sizes) -> tuple[int, int]:
    """Horizon and action size, h · A = D: as asked, else as the file says, else one step of D values."""
    horizon, action = sizes.horizon, sizes.action
    asked = [text for text, size in ((f"--horizon {horizon}", horizon), (f"--action-dim {action}", action)) if size is not None]
    if not asked:
        in_file = _number(found, "horizon"), _number(found, "action_dim")
        if in_file == (None, None):
            return 1, latent
        horizon, action = (None if size is None else int(size) for size in in_file)
        asked = [f"its {name} {size}" for name, size in (("horizon", horizon), ("action_dim", action)) if size is not None]
    horizon = horizon or latent // (action or latent)
    action = action or latent // horizon
    if horizon < 1 or horizon * action != latent:
        what = f"{' and '.join(asked)} do{'es' * (len(asked) == 1)} not fit {path}: horizon times action size must be {latent}"
        raise DataError(what, f"--horizon 1 --action-dim {latent}, or another product of {latent}")
    return horizon, action


def require_same_velocity(path: Path, found: Arrays, policy: FlowPolicy) -> None:
    """A file without a whole block (the gate, the last decoder layer) is a whole file of another network: its `velocity` tells."""
    named = [found[name] for name in ("obs", "x", "t", "velocity") if name in found and found[name].dtype.kind == "f"]
    if len(named) < 4:
        return
    observation, x, t, expected = (torch.from_numpy(np.array(array, dtype=np.float32)) for array in named)
    batch = len(x) if x.ndim else 0
    if (
        observation.shape != (batch, policy.spec.observation_dim)
        or t.numel() != batch
        or not x.shape == expected.shape == (batch, policy.latent_dim)
    ):
        return  # not inputs of this network
    with torch.no_grad():
        off = float((policy.velocity(observation, x, t) - expected).abs().max())
    if not off <= 0.05 * max(1.0, float(expected.abs().max())):  # bfloat16 may be 0.03 off, what misses a layer is far off
        name = policy.config.network
        raise DataError(
            f"{path} is no whole {name}: its parameters, taken for one, give a velocity {off:.2g} off its own `velocity`", AGAIN
        )


def _latent(found: Arrays) -> int | None:
    """The size of a chunk, where `x` and the file's horizon and action size agree on it."""
    wide, horizon, action = found.get("x"), _number(found, "horizon"), _number(found, "action_dim")
    if wide is None or horizon is None or action is None or wide.ndim != 2 or wide.shape[1] != horizon * action:
        return None
    return int(wide.shape[1])


def _number(found: Arrays, name: str) -> float | None:
    array = found.get(name)
    value = float(array.item()) if array is not None and array.size == 1 and array.dtype.kind in "iuf" else math.nan
    return value if math.isfinite(value) else None


def _witnesses(found: Arrays) -> dict[str, list[int]]:
    """Sizes that inputs stored beside the parameters speak for."""
    return {
        symbol: [found[name].shape[1]]
        for symbol, name in (("observation", "obs"), ("latent", "x"))
        if name in found and found[name].ndim == 2
    }


# The published networks -------------------------------------------------------------------------------------------------


def recognise(path: Path, actor: Arrays, latent: int | None = None) -> Network:
    """Which of the three networks these names belong to. `latent`: what the last layer puts out, where the file says so."""
    roots = {name.removeprefix("param:").partition("/")[0] for name in actor}
    if roots & {"velocity_head", "action_proj"} or any(root.startswith("layer_") for root in roots):
        return flow_t(arrays.count(actor, r"param:layer_(\d+)/"))
    depth = arrays.count(actor, r"param:mlp/Dense_(\d+)/")
    last = {actor[name].shape[-1:] for part in ("kernel", "bias") if (name := f"param:mlp/Dense_{depth - 1}/{part}") in actor}
    if latent is not None and len(last) == 1 and last != {(latent,)}:
        depth += 1  # it does not end there: what is missing is the last layer
    if "gate_net" in roots:
        return flow_g(depth)
    if "mlp" in roots:
        entries = list(perceptron("param:mlp/Dense_{}", "body.{}", depth))
        return Network("mlp", entries, lambda sizes: {"hidden": _widths(sizes, "hidden", depth)})
    what = f"{path} holds no published network: their parameters begin with mlp/, gate_net/ or velocity_head/"
    raise DataError(f"{what} (there are: {', '.join(sorted(roots)[:8])})", AGAIN)


def flow_g(depth: int) -> Network:
    """mlp/Dense_i is the candidate, gate_net/layers_0 and layers_2 the gate."""
    entries = [
        *perceptron("param:mlp/Dense_{}", "candidate.{}", depth),
        *dense("param:gate_net/layers_0", "gate.0", "observation+latent+1", "gate"),
        *dense("param:gate_net/layers_2", "gate.2", "gate", "latent"),
    ]
    return Network("flow_g", entries, lambda sizes: {"hidden": _widths(sizes, "hidden", depth), "gate_hidden": sizes["gate"]})


def flow_t(layers: int) -> Network:
    """Dense_0 and 1 encode the state, Dense_2 to 4 the time; three layer norms in each layer: post-norm."""
    entries = [
        *dense("param:Dense_0", "state_encoder.0", "observation", "state"),
        *dense("param:Dense_1", "state_encoder.2", "state", "width"),
        *dense("param:Dense_2", "time_encoder.0", "1", "time 0"),
        *dense("param:Dense_3", "time_encoder.2", "time 0", "time 1"),
        *dense("param:Dense_4", "time_encoder.4", "time 1", "width"),
        *dense("param:action_proj", "action_encoder", "latent", "width"),
        *dense("param:velocity_head", "head", "width", "latent"),
    ]
    for i in range(layers):
        here, there = f"param:layer_{i}", f"decoder.{i}"
        for theirs, ours in (("self_attn", "self_attention"), ("cross_attn", "cross_attention")):
            entries += dense(f"{here}/{theirs}/v_proj", f"{there}.{ours}.0", "width", "width")
            entries += dense(f"{here}/{theirs}/out_proj", f"{there}.{ours}.1", "width", "width")
            for dead in ("q_proj", "k_proj"):
                entries += dense(f"{here}/{theirs}/{dead}", None, "width", "width")
        entries += dense(f"{here}/Dense_0", f"{there}.feed_forward.0", "width", "inner")
        entries += dense(f"{here}/Dense_1", f"{there}.feed_forward.2", "inner", "width")
        for j in range(3):
            entries += [
                Entry(f"{here}/LayerNorm_{j}/scale", ("width",), f"{there}.norms.{j}.weight"),
                Entry(f"{here}/LayerNorm_{j}/bias", ("width",), f"{there}.norms.{j}.bias"),
            ]
    return Network("flow_t", entries, lambda sizes: _flow_t_settings(sizes, layers))


def _flow_t_settings(sizes: dict[str, int], layers: int) -> dict[str, Any]:
    return {
        "width": sizes["width"], "layers": layers, "norm": "post", "feed_forward": sizes["inner"] / sizes["width"], "tokens": "one",
        "state_hidden": sizes["state"], "time_hidden": [sizes["time 0"], sizes["time 1"]],
    }  # fmt: skip


def critic(ensemble: Arrays) -> Network:
    """Dense_i -> gelu -> LayerNorm_i, then a scalar; the members come first in every shape."""
    norms = r"critic:value_net/LayerNorm_(\d+)/"
    hidden = arrays.count(ensemble, norms) if any(re.match(norms, name) for name in ensemble) else 0
    depth = max(arrays.count(ensemble, r"critic:value_net/Dense_(\d+)/"), hidden + 1)  # a norm after each layer but the last
    widths = ["observation+latent", *(f"critic {i}" for i in range(depth - 1)), "1"]
    entries = []
    for i, (n_in, n_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        here, row = "critic:value_net", ("ensemble", n_out)
        entries += [
            Entry(f"{here}/Dense_{i}/kernel", ("ensemble", n_in, n_out), f"weight.{i}"),
            Entry(f"{here}/Dense_{i}/bias", row, f"bias.{i}", _rows),
        ]
        if i < depth - 1:
            entries += [
                Entry(f"{here}/LayerNorm_{i}/scale", row, f"scale.{i}", _rows),
                Entry(f"{here}/LayerNorm_{i}/bias", row, f"shift.{i}", _rows),
            ]
    return Network("critic", entries, lambda sizes: {"hidden": _widths(sizes, "critic", depth), "ensemble": sizes["ensemble"]})


def perceptron(name: str, target: str, depth: int) -> Iterator[Entry]:
    """`depth` linear layers from (s, x, t) to v; in flowft every second module is an activation."""
    widths = ["observation+latent+1", *(f"hidden {i}" for i in range(depth - 1)), "latent"]
    for i, (n_in, n_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        yield from dense(name.format(i), target.format(2 * i), n_in, n_out)


def dense(name: str, target: str | None, n_in: str, n_out: str) -> Iterator[Entry]:
    """A linear layer: kernel (in, out) becomes weight (out, in)."""
    yield Entry(f"{name}/kernel", (n_in, n_out), target and f"{target}.weight", torch.Tensor.t)
    yield Entry(f"{name}/bias", (n_out,), target and f"{target}.bias")


def _rows(members: torch.Tensor) -> torch.Tensor:
    """(E, n) -> (E, 1, n)."""
    return members.unsqueeze(1)


def _widths(sizes: dict[str, int], name: str, depth: int) -> list[int]:
    return [sizes[f"{name} {i}"] for i in range(depth - 1)]
