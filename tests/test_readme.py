"""Every code block of README.md runs, in order, in one folder.

Long commands are scaled down by the options in SMALL, and by a dataset of three demonstrations where the README's would be
generated; nothing else is changed. `make` lines are run with -n: the suite would otherwise start itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = {
    "flowft pretrain": "--set pretrain.updates=10 --set pretrain.batch_size=16 --set eval.episodes=1 --set max_steps=30 --device cpu",
    "flowft finetune": "--set finetune.steps=30 --set finetune.start_updates=15 --set finetune.start_actor=20 --set finetune.batch_size=16",
    "flowft train": "--set train.steps=60 --set train.random_steps=30 --set train.batch_size=16 --set critic.hidden=[32] --device cpu"
    " --set eval.episodes=1 --set max_steps=30",
    "flowft compare": "--algos sac_flow,rlpd --seeds 0 --steps 30 --set pretrain.updates=10 --set pretrain.batch_size=16 --set max_steps=30"
    " --set eval.episodes=1 --set finetune.start_updates=15 --set finetune.start_actor=20 --set finetune.batch_size=16 --device cpu",
    "flowft eval": "--episodes 1",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def small(line: str) -> str:
    """The line, its comment dropped, with the options of SMALL for that command."""
    line = line.partition("  #")[0].strip()
    more = next((options for start, options in SMALL.items() if line.startswith(start)), "")
    return f"{line} {more}".strip()


def run(command: list[str], cwd: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_runs(tmp_path: Path) -> None:
    run(["flowft", "data", "generate", "scripted/lift", "--episodes", "3"], tmp_path)
    shutil.copy(next((tmp_path / "datasets").rglob("*.hdf5")), tmp_path / "my_demos.hdf5")
    seen = set()
    for block in blocks("bash"):
        for line in filter(None, map(small, block.splitlines())):
            seen.add(" ".join(line.split()[:2]))
            if line.startswith("make "):
                run(["make", "-n", *line.split()[1:]], ROOT)
            else:
                run(["bash", "-euo", "pipefail", "-c", line], tmp_path)
    assert {"make demo", "make test", "flowft pretrain", "flowft finetune", "flowft eval", "flowft plot"} <= seen
    for block in blocks("python"):
        shown = run([sys.executable, "-c", f"{block}\nprint(chunk.shape, chunks.shape)"], tmp_path)
        assert "robot0_eef_pos" in shown
        assert re.search(r"\(\d+, 7\) \(2, \d+, 7\)", shown)


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "recipes").rglob("*.md"))], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_link_and_picture_of_every_page_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    assert links or page.name == "your-own.md"
    for link in links:
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), link
        assert not anchor or anchor in headings(there), link


def test_every_page_and_picture_of_the_recipes_can_be_reached() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        found = {(page.parent / name).resolve() for name in re.findall(r"\]\(([^)#:\s]+)\)", page.read_text())} - reached
        reached |= found
        todo += [path for path in found if path.suffix == ".md"]
    there = {path.resolve() for path in (ROOT / "recipes").rglob("*") if path.suffix in (".md", ".png")}
    assert there <= reached, there - reached


def test_every_file_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text()
    plain = re.sub(r"^```\w+\n.*?^```$", "", text, flags=re.M | re.S)  # without the blocks that name a language
    tree = next(block for block in re.findall(r"^```\n(.*?)^```$", plain, re.M | re.S) if "flowft/cli/" in block)
    for line in tree.splitlines():
        folder = line.split()[0]
        for module in re.findall(r"\b(\w+\.py)\b", line):
            assert (ROOT / folder / module).is_file(), f"{folder}{module}"
