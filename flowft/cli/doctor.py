"""`flowft doctor`: what this machine has, what works, and what to install for what does not.

Everything that could abort or hang (an import of somebody else's package, a first OpenGL context) is tried in a
process of its own with a time limit.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import click

TIME_LIMIT = 60  # seconds for one import; robosuite's first one compiles with numba

# extra -> (distribution, the import that shows it usable). For robomimic and d4rl, the parts that anybody would use.
EXTRAS: dict[str, tuple[str, str]] = {
    "robosuite": ("robosuite", "robosuite"),
    "ogbench": ("ogbench", "ogbench"),
    "robotics": ("gymnasium-robotics", "gymnasium_robotics"),
    "metaworld": ("metaworld", "metaworld"),
    "panda": ("panda-gym", "panda_gym"),
    "robomimic": ("robomimic", "robomimic.utils.file_utils"),
    "d4rl": ("d4rl", "d4rl"),
    "plot": ("matplotlib", "matplotlib.figure"),
    "video": ("imageio", "imageio.v2, imageio_ffmpeg"),
    "wandb": ("wandb", "wandb"),
    "lerobot": ("pyarrow", "pyarrow.parquet"),
    "zarr": ("zarr", "zarr"),
    "hub": ("huggingface_hub", "huggingface_hub"),
}
# Their newest releases need mujoco_py or an old torchvision; flowft reads their files and builds their tasks without them.
NOT_NEEDED = {"robomimic", "d4rl"}

CORE = ("torch", "numpy", "gymnasium", "minari", "h5py", "mujoco", "robosuite", "ogbench", "gymnasium-robotics", "dm_control")

RENDER = (
    "import mujoco; m = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size=\"1\"/></worldbody></mujoco>');"
    "r = mujoco.Renderer(m, 32, 32); d = mujoco.MjData(m); mujoco.mj_forward(m, d); r.update_scene(d); r.render()"
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(as_json: bool) -> None:
    """Show versions, devices, simulators, rendering and folders."""
    facts = examine()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"flowft {facts['flowft']}, Python {facts['python']}, {facts['platform']}, {facts['cores']} cores")
    for device in facts["devices"]:
        click.echo(f"device   {device}")
    click.echo("versions " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version))
    for name, extra in facts["extras"].items():
        click.echo(f"[{name}]".ljust(13) + _extra_line(name, extra))
    drawing = facts["rendering"]
    click.echo("rendering    " + (f"works with MUJOCO_GL={drawing['works_with']}" if drawing["works_with"] else drawing["fix"]))
    for name, folder in facts["folders"].items():
        there = f"{folder['files']} files" if folder["exists"] else "not there yet"
        click.echo(f"{name.ljust(13)}{folder['path']} ({there}, {folder['free_gb']} GB free)")


def examine() -> dict[str, Any]:
    """All facts as plain values; the probes run side by side."""
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        drawing = pool.submit(rendering)
        extras = dict(zip(EXTRAS, pool.map(_extra, EXTRAS), strict=True))
    from flowft import __version__, checkpoint
    from flowft.data import source
    from flowft.train import runlog

    return {
        "flowft": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "devices": _devices(),
        "versions": {name: _version(name) for name in CORE},
        "extras": extras,
        "rendering": drawing.result(),
        "folders": {"datasets": _folder(source.folder()), "checkpoints": _folder(checkpoint.folder()), "runs": _folder(runlog.folder(""))},
    }


def _devices() -> list[str]:
    import torch

    cuda = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return [f"cpu ({torch.get_num_threads()} threads)", *cuda]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _extra(name: str) -> dict[str, Any]:
    """{"version": str | None, "usable": bool, "reason": str | None} of one extra."""
    distribution, module = EXTRAS[name]
    version = _version(distribution)
    if version is None:
        return {"version": None, "usable": False, "reason": f'not installed: pip install "flowft[{name}]"'}
    reason = _try_python(f"import {module}")
    return {"version": version, "usable": reason is None, "reason": reason}


def _extra_line(name: str, extra: dict[str, Any]) -> str:
    if extra["usable"]:
        return f"{extra['version']} works"
    found = f"{extra['version']} is installed but cannot be used: {extra['reason']}" if extra["version"] else str(extra["reason"])
    return found + (" (flowft needs it for nothing: files and tasks work without)" if name in NOT_NEEDED else "")


def rendering() -> dict[str, Any]:
    """The first value of MUJOCO_GL that draws an image without a screen."""
    if _version("mujoco") is None:
        return {"works_with": None, "fix": 'no mujoco: pip install "flowft[robosuite]"'}
    wanted = os.environ.get("MUJOCO_GL")
    for backend in [wanted] if wanted else ["egl", "osmesa"]:
        if _try_python(RENDER, {"MUJOCO_GL": backend}) is None:
            return {"works_with": backend, "fix": None}
    fix = "no offscreen OpenGL (only --video needs it): apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri, then MUJOCO_GL=egl"
    return {"works_with": None, "fix": fix}


def _try_python(code: str, environment: dict[str, str] | None = None) -> str | None:
    """None when `code` runs to its end in a fresh interpreter; otherwise why it did not, in one line."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=TIME_LIMIT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"no answer within {TIME_LIMIT} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"the process ended with code {done.returncode}"


def _folder(path: Path) -> dict[str, Any]:
    existing = next(p for p in [path.absolute(), *path.absolute().parents] if p.exists())
    files = sum(1 for p in path.rglob("*") if p.is_file()) if path.is_dir() else 0
    return {"path": str(path), "exists": path.is_dir(), "files": files, "free_gb": round(shutil.disk_usage(existing).free / 1e9, 1)}
