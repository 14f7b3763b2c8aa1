"""Names to classes, imported only when asked for. Plug-ins register through entry points.

A new velocity network, kind of policy, algorithm, data source, environment family or foreign checkpoint format is one new
file and one line here; a package of somebody else's adds the same line to its own
`[project.entry-points."flowft.networks"]` (or `.policies`, `.algos`, `.sources`, `.envs`, `.converters`).
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from flowft.errors import UsageError, did_you_mean

BUILT_IN: dict[str, dict[str, str]] = {
    "networks": {
        "mlp": "flowft.policies.mlp:MLPVelocity",
        "flow_g": "flowft.policies.flow_g:FlowG",
        "flow_t": "flowft.policies.flow_t:FlowT",
    },
    # A kind of policy: see flowft/policies/base.py.
    "policies": {
        "flow": "flowft.policies.policy:FlowPolicy",
        "gaussian": "flowft.policies.gaussian:GaussianPolicy",
        "one_step": "flowft.policies.one_step:OneStepPolicy",
        "best_of_n": "flowft.policies.best_of_n:BestOfNPolicy",
        "flow_released": "flowft.policies.flow_released:ReleasedFlowPolicy",
    },
    "algos": {
        "flow_bc": "flowft.algos.flow_bc:FlowBC",
        "sac_flow": "flowft.algos.sac_flow:SACFlow",
        "qc_fql": "flowft.algos.qc_fql:QCFQL",
        "qc": "flowft.algos.qc:QC",
        "rlpd": "flowft.algos.rlpd:RLPD",
        "sac_flow_scratch": "flowft.algos.crossq:SACFlowScratch",
        "sac_scratch": "flowft.algos.crossq:SACScratch",
        "sac_flow_released": "flowft.algos.sac_flow_released:ReleasedSACFlow",
    },
    # A source is a module with `matches`, `locate`, `load` and friends: see flowft/data/source.py.
    "sources": {
        "scripted": "flowft.data.scripted",
        "exported": "flowft.data.exported",
        "robomimic": "flowft.data.robomimic",
        "robosuite": "flowft.data.robosuite_demo",
        "lerobot": "flowft.data.lerobot",
        "zarr": "flowft.data.zarr_buffer",
        "d4rl": "flowft.data.d4rl",
        "minari": "flowft.data.minari_source",
        "ogbench": "flowft.data.ogbench_npz",
        "npz": "flowft.data.npz",
    },
    # A family is a module with `build(env)`: see flowft/envs/base.py.
    "envs": {
        "robosuite": "flowft.envs.robosuite",
        "gymnasium": "flowft.envs.gymnasium_ids",
        "robotics": "flowft.envs.robotics",
        "ogbench": "flowft.envs.ogbench_singletask",
    },
    # A converter is a module with `convert(path, sizes)`: see flowft/convert/__init__.py.
    "converters": {
        "sacflow-npz": "flowft.convert.sacflow_npz",
    },
}


def names(kind: str) -> list[str]:
    """Every registered name of a kind, built-in first."""
    return list(_targets(kind))


def get(kind: str, name: str) -> Any:
    """The class or module registered as `name`; a wrong name says which was meant."""
    targets = _targets(kind)
    if name not in targets:
        raise UsageError(f"unknown {_singular(kind)} {name!r}{did_you_mean(name, targets)}")
    module, _, attribute = targets[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def _singular(kind: str) -> str:
    return kind.removesuffix("ies") + "y" if kind.endswith("ies") else kind.removesuffix("s")


def _targets(kind: str) -> dict[str, str]:
    plug_ins = {point.name: point.value for point in entry_points(group=f"flowft.{kind}")}
    return {**BUILT_IN[kind], **plug_ins}
