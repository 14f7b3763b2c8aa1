"""Pages written from JSON: those of this repository agree with theirs, and the command does for a user's own what it says."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flowft.cli import main
from flowft.report import results

from .test_compare import rows as compared

ROOT = Path(__file__).parent.parent
MARKED = "# Mine\n\nbefore\n\n<!-- table: {} -->\nold\n<!-- end -->\n\nafter\n"
TABLES: dict[str, Any] = {
    "tables": {
        "runs": {
            "columns": [
                {"title": "task", "key": "task", "once": True},
                {"title": "seed", "key": "seed"},
                {"title": "cloned", "rate": "cloned"},
                {"counts": "counts", "steps": [0, 1000], "of": "first", "also": "returns"},
                {"title": "lowest", "lowest": "counts", "start": True},
                {"title": "mean", "mean": "counts", "steps": [1000, 2000]},
                {"title": "cost", "cost": "counts", "steps": [1000, 2000]},
                {"title": "return at {step}", "values": "returns", "steps": [1000]},
                {"title": "length", "key": "length"},
            ],
            "rows": [
                {"task": "a|b", "seed": 0, "name": "base", "cloned": [45, 50], "episodes": 50, "counts": {"0": 30, "1000": 40, "2000": 45}},
                {"task": "a|b", "seed": 1, "base": "base", "episodes": 50, "counts": {"2000": 50, "0": [6, 10], "1000": 20}}
                | {"returns": {"1000": -1234.5}, "length": [206, 53]},
            ],
        }
    }
}


def write(folder: Path, content: Any, marker: str = "mine.json#runs", name: str = "mine.json") -> Path:
    """A page and its JSON."""
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    page = folder / "notes.md"
    page.write_text(MARKED.format(marker))
    return page


def table(page: Path) -> list[list[str]]:
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.replace("\\|", "¦")[1:-1].split("|")] for line in lines]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> tuple[str, str]:
    """What the command says, and what is to be typed."""
    assert main.run(["results", *arguments]) == code
    out, err = capsys.readouterr()
    assert not out
    assert "Traceback" not in err
    what, _, fix = err.partition("\nfix: ")
    assert what.startswith("error: ")
    assert "\n" not in what.strip()
    return what, fix.strip()


# This repository ----------------------------------------------------------------------------------------------------------


def test_pages_pictures_and_json_agree() -> None:
    code = "import sys; from flowft.cli.main import run; sys.exit(run(['results', '--check']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    named = {line.partition(":")[0] for line in done.stdout.splitlines()}
    marked = {
        str(page.relative_to(ROOT)) for page in [ROOT / "README.md", *(ROOT / "recipes").rglob("*.md")] if "<!-- table:" in page.read_text()
    }
    assert named == marked
    assert len(named) > 15


def test_each_table_of_each_json_stands_on_a_page() -> None:
    shown = set()
    for page in results.pages([], ROOT):
        shown |= {(page.parent / marker.file, marker.name) for marker in results.markers(page, page.read_text())}
    for path in (ROOT / "recipes").rglob("*.json"):
        for name in json.loads(path.read_text()).get("tables", {"": None}):
            assert (path, name) in shown, f"{path}#{name}"


def test_a_number_changed_in_a_page_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lift.md", "lift.json"):
        (tmp_path / name).write_text((ROOT / "recipes" / "scripted" / name).read_text())
    page = tmp_path / "lift.md"
    page.write_text(page.read_text().replace("60/100", "61/100"))
    what, fix = refused(capsys, "--check", str(page))
    assert "lift.json#finetuned" in what
    assert "61/100" in page.read_text(), "a check writes nothing"
    assert main.run(shlex.split(fix)[1:]) == 0
    assert page.read_text() == (ROOT / "recipes" / "scripted" / "lift.md").read_text()


def test_the_front_page_shows_what_the_counts_of_can_say() -> None:
    """Worked out by hand from the JSON: means, the wider of Student's t and Wilson, the best rival."""
    algorithms = json.loads((ROOT / "recipes" / "scripted" / "can-compared.json").read_text())["algorithms"]
    counts = {each["label"]: [{row["step"]: row["successes"] for row in run} for run in each["runs"].values()] for each in algorithms}

    def level(label: str, step: int) -> str:
        rates = [run[step] / 50 for run in counts[label]]
        mean = sum(rates) / 3
        spread = 4.302653 * math.sqrt(sum((rate - mean) ** 2 for rate in rates) / 2) / math.sqrt(3)
        z, n = 1.959964, 150
        centre, half = (mean + z * z / 2 / n) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / 4 / n / n)
        low, high = max(0, min(mean - spread, centre - half)), min(1, max(mean + spread, centre + half))
        return f"{100 * mean:.0f} % ({100 * low:.0f}–{100 * high:.0f} %)"

    rivals = {label: sum(run[10000] for run in runs) for label, runs in counts.items() if not label.startswith("sac_flow")}
    best = max(rivals, key=lambda label: rivals[label])
    line = next(line for line in table(ROOT / "recipes" / "README.md") if line[0].startswith("[scripted/can]"))
    tuned = [f"{step:,} steps: {level('sac_flow', step)}" for step in (4000, 10000)]
    assert line[1:5] == [level("sac_flow", 0), *tuned, f"{best}: {level(best, 10000)}"]
    assert all(run[step] >= run[0] for run in counts["sac_flow"] for step in run)
    assert line[5] == "never"


# A user's own page --------------------------------------------------------------------------------------------------------


def test_a_table_is_written_from_the_json_beside_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = write(tmp_path, TABLES)
    assert main.run(["results", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}: 1 table, written\n"
    head, _, first, second = table(page)
    assert head == ["task", "seed", "cloned", "0", "1,000", "lowest", "mean", "cost", "return at 1,000", "length"]
    assert first == ["a¦b", "0", "45/50 (79–96 %)", "30/50", "40", "40/50 (start: 30/50)", "42.5", "", "", ""]
    assert second == ["", "1", "", "6/10", "20, −1,234.5", "20/50 (start: 6/10)", "35.0", "+7.5", "−1,234.5", "206 → 53"]
    text = page.read_text()
    assert text.startswith("# Mine\n\nbefore\n\n<!-- table: mine.json#runs -->\n|")
    assert text.endswith("|\n<!-- end -->\n\nafter\n")
    assert main.run(["results", str(page)]) == 0
    assert (page.read_text(), capsys.readouterr().out) == (text, f"{page}: 1 table, unchanged\n")
    assert main.run(["results", "--check", str(page)]) == 0


def test_the_table_of_a_comparison_is_the_one_that_compare_wrote(tmp_path: Path) -> None:
    from flowft.report import compare

    out = tmp_path / "out"
    compare.write(compared(tmp_path), out, "title", "flowft compare …")
    page = out / "notes.md"
    page.write_text(MARKED.format("table.json") + MARKED.format("table.json#seeds"))
    assert main.run(["results", str(page)]) == 0
    theirs = [line for line in (out / "table.md").read_text().splitlines() if line.startswith("|")]
    ours = [line for line in page.read_text().splitlines() if line.startswith("|")]
    assert ours[: len(theirs)] == theirs
    assert "| good | lift-good-s0 | 20/50 | 40/50 | 50/50 | | |" in ours


def test_a_summary_of_tasks_has_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from flowft.report import compare

    compare.write(compared(tmp_path), tmp_path, "title", "flowft compare …")
    task = {"task": "lift", "table": "table.json", "row": "good", "steps": [1000, 2000]}
    page = write(tmp_path, {"picture": "all.png", "tasks": [task]}, "all.json", "all.json")
    assert main.run(["results", str(page)]) == 0
    assert (tmp_path / "all.png").read_bytes()[:4] == b"\x89PNG"
    assert table(page)[2][1:4] == ["50 % (25–75 %)", "1,000 steps: 82 % (64–100 %)", "2,000 steps: 98 % (93–100 %)"]
    assert table(page)[2][4] == "alone: 30/50 (46–72 %)".replace("30/50", "60 %")
    drawn = (tmp_path / "all.png").stat().st_mtime_ns
    assert main.run(["results", str(page)]) == 0
    assert (tmp_path / "all.png").stat().st_mtime_ns == drawn, "what is right is left alone"
    content = json.loads((tmp_path / "table.json").read_text())
    content["algorithms"][0]["runs"]["lift-good-s0"][0]["successes"] = 21
    (tmp_path / "table.json").write_text(json.dumps(content))
    capsys.readouterr()
    what, _ = refused(capsys, "--check", str(page))
    assert "all.png" in what
    assert main.run(["results", str(page)]) == 0
    assert main.run(["results", "--check", str(page)]) == 0


def test_windows_lines_examples_and_links_stay(tmp_path: Path) -> None:
    page = write(tmp_path, TABLES)
    text = f"```\n{MARKED.format('example.json')}```\n" + MARKED.format("mine.json")
    page.write_bytes(text.replace("\n", "\r\n").encode())
    link = tmp_path / "link.md"
    link.symlink_to(page)
    assert main.run(["results", str(link)]) == 0
    content = page.read_bytes().decode()
    assert link.is_symlink()
    assert content.count("\r\n") == content.count("\n")
    assert content.count("old") == 1, "the example in the block is none of its tables"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"tables": {', "is not JSON"),
        ("[1]", "holds no tables"),
        ('{"tables": {"runs": {"columns": [], "rows": []}}}', "no list of columns"),
        ('{"tables": {"runs": 3}}', "is no mapping"),
        ('{"tables": {"runs": {"columns": [{"title": "x", "key": "s"}], "rows": [{"s": NaN}]}}}', "NaN"),
        ('{"tables": {"runs": {"columns": [{"title": "x", "key": "s"}], "rows": [{"s": 1, "s": 2}]}}}', "'s' stands twice"),
        ('{"tables": {"runs": {"columns": [{"title": "x", "key": "s"}], "rows": [{"seed": 1}]}}}', "no row has 's'"),
        ('{"tables": {"runs": {"columns": [{"title": "x", "kye": "s"}], "rows": [{"s": 1}]}}}', "did you mean 'key'"),
        ('{"tables": {"runs": {"columns": [{"title": "x", "rate": "s"}], "rows": [{"s": [51, 50]}]}}}', "is no count"),
        ('{"tables": {"runs": {"columns": [{"counts": "c", "steps": [5]}], "rows": [{"c": {"5": 3}}]}}}', "of None episodes"),
        ('{"tables": {"runs": {"columns": [{"counts": "c", "steps": [6]}], "rows": [{"episodes": 5, "c": {"5": 3}}]}}}', "at step 6"),
        ('{"tables": {"runs": {"columns": [{"counts": "c"}], "rows": [{"episodes": 5, "c": {"5": 3}}]}}}', "needs steps"),
        (
            '{"tables": {"runs": {"columns": [{"title": "x", "lowest": "c", "after": "soon"}], "rows": [{"episodes": 5, "c": {"5": 3}}]}}}',
            "after",
        ),
    ],
)
def test_a_json_that_makes_no_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str) -> None:
    page = write(tmp_path, content)
    before = page.read_bytes()
    what, _ = refused(capsys, str(page))
    assert said in what
    assert "mine.json" in what
    assert page.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"algorithms": 3}', "no mapping"),
        ('{"algorithms": [{"label": "a", "runs": {}}]}', "no run in it"),
        ('{"algorithms": [{"label": "a", "runs": {"r": [{"step": 0, "successes": 3, "episodes": 2}]}}]}', "no count"),
        ('{"goal": 5, "algorithms": [{"label": "a", "runs": {"r": [{"step": 0, "successes": 1, "episodes": 2}]}}]}', "between 0 and 1"),
        ('{"tasks": []}', "no list of tasks"),
        ('{"tasks": [{"task": "a", "table": "none.json", "steps": [1]}]}', "none.json is not there"),
        ('{"tasks": [{"task": "a", "table": "mine.json#x", "stepz": [1]}]}', "did you mean 'steps'"),
        ('{"picture": "x.exe", "tasks": [{"task": "a", "table": "b.json", "steps": [1]}]}', "x.exe"),
    ],
)
def test_a_comparison_or_summary_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    page = write(tmp_path, content, "mine.json")
    before = page.read_bytes()
    assert said in refused(capsys, str(page))[0]
    assert page.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("# Mine\n", "no place for a table"),
        ("<!-- table: mine.json#runs -->\n| old |\n\nafter\n", "has no end"),
        ("<!-- table: mine.json#runs -->\n<!-- table: mine.json#runs -->\n<!-- end -->\n", "has no end"),
        ("<!-- end -->\n" + MARKED.format("mine.json"), "has not begun"),
        (MARKED.format("mine.json#run"), "no table 'run'"),
        (MARKED.format("mien.json#runs"), "mien.json is not there"),
    ],
)
def test_what_a_page_lacks_is_mended_by_the_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    folder = tmp_path / "my notes"
    folder.mkdir()
    page = write(folder, TABLES)
    page.write_text(text)
    what, fix = refused(capsys, str(page))
    assert said in what
    assert page.read_text() == text
    subprocess.run(["bash", "-c", fix], check=True)
    assert main.run(["results", str(page)]) == 0, page.read_text()


def test_no_page_and_one_bad_page_of_two(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no page with a table" in refused(capsys, code=2)[0]
    good = write(tmp_path, TABLES)
    assert "did you mean 'notes.md'" in refused(capsys, "note.md", code=2)[0]
    before = good.read_bytes()
    (tmp_path / "bad.md").write_text(MARKED.format("other.json"))
    assert "other.json" in refused(capsys, "notes.md", "bad.md")[0]
    assert good.read_bytes() == before, "all pages or none"
    (tmp_path / "bin.md").write_bytes(b"\xff\xfe")
    assert "not text" in refused(capsys, "bin.md", code=2)[0]
    (tmp_path / "README.md").write_text(good.read_text())
    assert main.run(["results"]) == 0
    assert "README.md: 1 table, written" in capsys.readouterr().out
