"""recipes/your-own.md runs as it is written: own environments and packages that nobody here wrote, demonstrations to fine-tuned policy.

Training is scaled down by the options in SMALL; nothing else is changed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flowft import checkpoint
from flowft.cli.main import run as cli
from flowft.data.spec import EnvSpec
from tests.test_readme import ROOT, run

PAGE = ROOT / "recipes" / "your-own.md"
SMALL = {
    "flowft pretrain": "--set pretrain.updates=5 --set pretrain.batch_size=16 --set eval.episodes=1 --device cpu",
    "flowft finetune": "--set finetune.steps=30 --set finetune.start_updates=15 --set finetune.start_actor=20 --set finetune.batch_size=16",
    "flowft env check": "--episodes 1",
}


def sections() -> dict[str, str]:
    """Heading -> what stands below it, up to the next heading of that level."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def follow(text: str, folder: Path) -> list[str]:
    """Write the files and type the commands; what the commands printed."""
    printed = []
    for language, block in re.findall(r"^```(python|bash)\n(.*?)^```", text, re.M | re.S):
        if language == "python":
            (folder / block.splitlines()[0].removeprefix("# ")).write_text(block)
            continue
        for line in block.splitlines():
            more = next((options for start, options in SMALL.items() if line.startswith(start)), "")
            printed.append(run(["bash", "-euo", "pipefail", "-c", f"{line} {more}"], folder))
    return printed


def environment_of(folder: Path, name: str) -> EnvSpec:
    return EnvSpec.from_tree(checkpoint.load(folder / "checkpoints" / f"{name}.pt", "policy checkpoint")["env"])


def test_an_environment_and_its_demonstrations_in_twenty_lines_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    found = sections()
    checked = follow(found["An environment"], tmp_path)
    assert "near; the environment ends the episode" in checked[0]
    printed = follow(found["Demonstrations"], tmp_path)
    assert "minari/mine/reach-v0 has the same observations and actions" in printed[2]
    spec = environment_of(tmp_path, "reach-finetuned")
    assert (spec.family, spec.id, spec.success) == ("gymnasium", "reach:Reach-v0", "near")
    assert "2 = " in run(["flowft", "eval", "reach-finetuned", "--episodes", "2", "--envs", "2"], tmp_path)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert cli(["env", "check", "--ckpt", "reach-finetuned", "--episodes", "1"]) == 0  # its environment, with its rules
    assert "reach-finetuned has the same observations and actions" in capsys.readouterr().out
    assert cli(["env", "check", "Pendulum-v1", "--set", "environment.success=never", "--ckpt", "reach", "--json"]) == 1
    problem = next(row for row in json.loads(capsys.readouterr().out)["checks"] if not row["ok"])
    assert problem["check"] == "checkpoint" and "4 observation values against 3" in problem["what"]
    for name in ("reach.py", "record.py"):
        code = [
            line for line in (tmp_path / name).read_text().splitlines() if line.strip() and not line.startswith(("#", "import", "from"))
        ]
        assert len(code) <= 20, f"{name}: {len(code)} lines"


@pytest.mark.parametrize(
    ("package", "title", "name", "env_id"),
    [
        ("metaworld", "record_pick_place.py", "pick-place", "metaworld:Meta-World/MT1"),
        ("panda_gym", "record_panda.py", "panda", "panda_gym:PandaReach-v3"),
    ],
)
def test_a_package_that_nobody_here_wrote_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, title: str, name: str, env_id: str
) -> None:
    pytest.importorskip(package)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    found = sections()
    follow(re.findall(r"^```python\n# record\.py\n.*?^```", found["Demonstrations"], re.M | re.S)[0], tmp_path)
    blocks = re.findall(r"^```\w+\n.*?^```", found["Packages that others wrote"], re.M | re.S)
    start = next(i for i, block in enumerate(blocks) if title in block.splitlines()[1])
    follow("\n".join(blocks[start : start + 2]), tmp_path)
    cloned, tuned = environment_of(tmp_path, name), environment_of(tmp_path, f"{name}-finetuned")
    assert cloned == tuned and tuned.id == env_id
    before, after = (checkpoint.load(tmp_path / "checkpoints" / f"{n}.pt", "policy checkpoint") for n in (name, f"{name}-finetuned"))
    assert (before["stage"], after["stage"], after["step"]) == ("pretrain", "finetune", 30)
    assert after["evaluation"]["episodes"] == 1
    assert any(not value.equal(after["policy"][key]) for key, value in before["policy"].items())  # it has learned from its own steps


def test_the_same_seed_gives_the_same_meta_world(tmp_path: Path) -> None:
    """Its reset ignores the seed and its constructor draws the goals from the process's generator."""
    pytest.importorskip("metaworld")
    from flowft.envs import base, repeats

    spec = EnvSpec("gymnasium", "metaworld:Meta-World/MT1", {"env_name": "push-v3"})
    env = base.make(spec)
    findings = list(repeats.check(env, spec))
    assert [finding.check for finding in findings] == ["seeds repeat"] and findings[0].ok
