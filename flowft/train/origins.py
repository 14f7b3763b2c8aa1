"""Which settings a run has, and from which layer each came: default, algorithm, recipe, checkpoint, command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flowft import recipe
from flowft.algos import base as algos
from flowft.train.settings import defaults_of, without_knobs

# What is different from scratch: the published scale (arXiv 2509.25756). A recipe holds what differs from this.
SCRATCH: recipe.Tree = {
    "algo": "sac_flow_scratch",
    "policy": {"network": "flow_g", "horizon": 1, "squash": "tanh", "noise": "learned", "observation_clip": None},
    "critic": {"hidden": [1024, 1024], "ensemble": 2, "activation": "relu"},
    "actor": {"hidden": [256, 256], "activation": "relu"},
    "eval": {"episodes": 10, "every": 50_000},
}
SCRATCH_NETS: dict[str, recipe.Tree] = {
    "flow_g": {"hidden": [256, 256], "activation": "silu", "gate_hidden": 128},
    "flow_t": {"width": 64, "norm": "pre"},  # ahead of post-norm on both seeds (recipes/scratch/halfcheetah.md)
    "mlp": {"hidden": [256, 256], "activation": "silu"},
}


class Layer(NamedTuple):
    """A tree of settings with its name. `whole`: it holds every setting, so only those that differ from the layers below are its own."""

    name: str
    tree: Mapping[str, Any]
    whole: bool = False


class Origin(NamedTuple):
    """A setting's value and the layer that it came from."""

    value: Any
    layer: str


def scratch_layers(tree: Mapping[str, Any]) -> tuple[Layer, ...]:
    """What is different from scratch; each network brings its own sizes."""
    network = recipe.section(tree, "policy").get("network", SCRATCH["policy"]["network"])
    return (Layer("default of flowft train", recipe.merge(SCRATCH, {"policy": {"net": SCRATCH_NETS.get(network, {})}})),)


def checkpoint_recipe(content: Mapping[str, Any], tree: Mapping[str, Any]) -> recipe.Tree:
    """A checkpoint's recipe below `tree`; where another algorithm goes on, without the knobs of the one that made it.

    A variant of the same algorithm (its config a subclass) keeps them: they mean the same to it.
    """
    before: recipe.Tree = content["recipe"]
    made, goes_on = before["algo"], tree.get("algo", before["algo"])
    if not issubclass(algos.named(goes_on).config_type, algos.named(made).config_type):
        before = {**before, "train": {}}
        before |= {section: without_knobs(before, section, made) for section in ("pretrain", "finetune")}
    if "critic" not in content["algo"]:  # none to go on with: the new one is as the algorithm would have it
        before = recipe.merge(before, {"critic": defaults_of(goes_on).get("critic", {})})
    anew = tree.get("reward") or {}
    other = tree.get("dataset") not in (None, before.get("dataset"))
    if "shift" not in anew and ("scale" in anew or other):  # the shift follows from scale and dataset, unless it is given
        before = recipe.merge(before, {"reward": {"shift": None}})
    return before


def origins(effective: Mapping[str, Any], defaults: Mapping[str, Any], layers: Sequence[Layer], algo: str) -> dict[str, Origin]:
    """Dotted name -> value and layer, for every setting of `effective`.

    A value that no layer explains was decided by the data (`reward.shift`).
    """
    below = dict(_leaves(defaults))
    found: dict[str, Origin] = {}
    own = [(layer, dict(_leaves(recipe.for_algorithm(layer.tree, algo)))) for layer in layers]
    for name, value in _leaves(effective):
        current, layer = below.get(name), "default"
        for candidate, leaves in own:
            if name in leaves and not (candidate.whole and _same(leaves[name], current)):
                current, layer = leaves[name], candidate.name
        found[name] = Origin(value, layer if _same(current, value) else "data")
    return found


def _same(one: Any, other: Any) -> bool:
    """Equal, however YAML wrote it (3e-4 is text there, a tuple is a list)."""
    if isinstance(one, str) != isinstance(other, str):
        try:
            return float(one) == float(other)
        except (TypeError, ValueError):
            return str(one) == str(other)
    return bool((list(one) if isinstance(one, tuple) else one) == (list(other) if isinstance(other, tuple) else other))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of each setting; an empty section counts as one."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
