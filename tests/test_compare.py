"""A comparison as a user meets it: run, killed, continued, reported; and its table against counts worked out by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowft import recipe
from flowft.cli import main
from flowft.errors import UsageError
from flowft.report import compare as report
from flowft.report import plots, stats
from flowft.train import compare as comparison

from .test_cli import FLOWFT, TINY, reached, refused, write_hopper
from .test_report import write_run

SHORT: dict[str, Any] = recipe.merge(
    TINY,
    {"policy": {"candidates": 4}, "actor": {"hidden": [32]}, "eval": {"episodes": 1, "every": 30}, "pretrain": {"updates": 5}},
    {"finetune": {"steps": 60, "start_updates": 6, "start_actor": 8}, "algos": {"rlpd": {"critic": {"ensemble": 3}}}},
)
ASKED = ["compare", "--dataset", "hopper.hdf5", "--recipe", "short.yaml", "--out", "out"]
ALGOS = ["--algos", "sac_flow,rlpd", "--variant", "free=sac_flow finetune.radius=null finetune.beta=1"]


# The table ----------------------------------------------------------------------------------------------------------------


def rows(tmp_path: Path) -> list[report.Row]:
    good = [
        write_run(tmp_path / f"lift-good-s{seed}", seed, counts) for seed, counts in enumerate([[20, 40, 50], [30, 38, 49], [25, 45, 48]])
    ]
    alone = write_run(tmp_path / "lift-alone-s0", 0, [25, 10, 30, 45, 40])
    return report.gather({"good": good, "alone": [alone, tmp_path / "lift-alone-s1"], "later": [tmp_path / "lift-later-s0"]})


def test_levels_have_the_interval_that_their_seeds_allow(tmp_path: Path) -> None:
    good, alone, later = rows(tmp_path)
    level = good.level(1000)
    assert level[1:4] == stats.success_interval([(40, 50), (38, 50), (45, 50)])
    assert (level.successes, level.episodes, level.seeds) == (123, 150, 3)
    assert alone.level(1000)[1:] == (0.2, *stats.wilson(10, 50), 10, 50, 1)
    assert (good.steps_to(0.9), alone.steps_to(0.9), alone.steps_to(0.95)) == (2000, 3000, None)
    worst = good.lowest()
    assert worst is not None
    assert (worst["successes"], worst["step"], worst["run"], worst["start"]) == (38, 1000, "lift-good-s1", 0.6)
    assert alone.missing == ("lift-alone-s1",)
    assert later.runs == ()


def test_of_equal_lows_the_deeper_fall_is_shown(tmp_path: Path) -> None:
    counts = [[20, 10, 40], [35, 10, 40], [30, 30, 10]]
    (row,) = report.gather({"a": [write_run(tmp_path / f"a-s{seed}", seed, each) for seed, each in enumerate(counts)]})
    worst = row.lowest()
    assert worst is not None
    assert (worst["successes"], worst["run"], worst["start"]) == (10, "a-s1", 0.7)


def test_the_table_the_json_and_the_plot_say_the_same(tmp_path: Path) -> None:
    found = rows(tmp_path)
    report.write(found, tmp_path / "deep" / "out", "title", "flowft compare …")
    text = (tmp_path / "deep" / "out" / "table.md").read_text()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert lines[0][:4] == ["algorithm", "seeds", "start", "1,000 steps"]
    assert [line[0] for line in lines[2:]] == ["good", "alone", "later"]
    assert lines[2][1:4] == ["3", "50 % (25–75 %)", "82 % (64–100 %)"]
    assert lines[3][2:4] == ["25/50 (37–63 %)", "10/50 (11–33 %)"]
    assert lines[3][-2:] == ["10/50 at 1,000 (start: 50 %)", "3,000"]
    assert lines[2][5:7] == ["–", "–"], "the seeds of this row have not been there yet"
    assert set(lines[4][2:]) == {"–"}
    assert "Not evaluated yet: lift-alone-s1, lift-later-s0." in text
    assert "50 episodes without exploration noise per evaluation" in text
    noisy = [dataclasses.replace(run, recipe={"eval": {"stochastic": True}}) for run in found[0].runs]
    assert "50 episodes with exploration noise" in report._notes([report.Row("noisy", tuple(noisy), ())], 0.9)
    found_json = json.loads((tmp_path / "deep" / "out" / "table.json").read_text())
    assert [entry["label"] for entry in found_json["algorithms"]] == ["good", "alone", "later"]
    assert found_json["algorithms"][0]["runs"]["lift-good-s2"][1] == {"step": 1000, "successes": 45, "episodes": 50}
    assert [curve.label for curve in report.curves(found)] == ["good (mean of 3 seeds)", "alone"]
    assert report.curves(found)[0].each == ((0.4, 0.8, 1.0), (0.6, 0.76, 0.98), (0.5, 0.9, 0.96))
    assert report.curves(found)[1].middle == (0.5, 0.2, 0.6, 0.9, 0.8)
    assert (tmp_path / "deep" / "out" / "success.png").read_bytes()[:4] == b"\x89PNG"


def test_columns_are_spread_over_the_furthest_run(tmp_path: Path) -> None:
    long = report.gather({"a": [write_run(tmp_path / "a-s0", 0, [1] * 16)], "b": [write_run(tmp_path / "b-s0", 0, [1] * 3)]})
    assert report.columns(long) == [4000, 8000, 11000, 15000]
    short = report.gather({"a": [write_run(tmp_path / "c-s0", 0, [1, 2])]})
    assert report.columns(short) == [1000]
    few = report.gather({"a": [write_run(tmp_path / "d-s0", 0, [1, 2, 3, 4])]})
    assert report.columns(few) == [1000, 2000, 3000], "few enough to show them all"


def test_columns_are_steps_that_the_furthest_runs_share(tmp_path: Path) -> None:
    often, seldom = write_run(tmp_path / "often", 0, [1] * 11), write_run(tmp_path / "seldom", 0, [1] * 11)
    every_other = [row for row in map(json.loads, (seldom / "metrics.jsonl").read_text().splitlines()) if row["step"] % 2000 == 0]
    (seldom / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in every_other))
    assert report.columns(report.gather({"often": [often]})) == [2000, 5000, 8000, 10000]
    assert report.columns(report.gather({"often": [often], "seldom": [seldom]})) == [2000, 4000, 8000, 10000]


def test_without_any_run_there_is_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run of this comparison"):
        report.gather({"a": [tmp_path / "none"]})


# What is compared -----------------------------------------------------------------------------------------------------------


def test_entries_are_algorithms_and_variants() -> None:
    found = comparison.entries("sac_flow,qc", ["mlp=sac_flow policy.network=mlp policy.net.hidden=[64,64] finetune.beta=3"])
    assert [entry.label for entry in found] == ["sac_flow", "qc", "mlp"]
    assert found[2].given == {"algo": "sac_flow", "policy": {"network": "mlp", "net": {"hidden": [64, 64]}}, "finetune": {"beta": 3}}


@pytest.mark.parametrize(
    ("algos", "variants", "message"),
    [
        (None, [], "to compare are none"),
        ("qc,qc", [], "to compare are qc, qc"),
        ("qc", ["qc=sac_flow"], "to compare are qc, qc"),
        ("qcc", [], "unknown algo 'qcc' .did you mean 'qc'"),
        (None, ["a=sac_flwo"], "did you mean 'sac_flow'"),
        (None, ["sac_flow policy.network=mlp"], "not of the form NAME=ALGO KEY=VALUE"),
        (None, ["a/b=sac_flow"], "not of the form"),
        (None, ["a=sac_flow algo=qc"], "names two algorithms"),
        (None, ["a=sac_flow algo.x=qc"], "names two algorithms"),
        (None, ["a=sac_flow seed=4"], "sets seed, which all rows share"),
        (None, ["a=sac_flow dataset=scripted/can"], "sets dataset, which all rows share"),
        (None, ["a=sac_flow policy.network='mlp"], "not of the form NAME=ALGO KEY=VALUE"),  # half a quote
        (None, ["a=sac_flow beta"], "not of the form section.key=value"),
    ],
)
def test_a_wrong_entry_is_refused(algos: str | None, variants: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        comparison.entries(algos, variants)


@pytest.mark.parametrize(
    ("algos", "variants", "given", "message"),
    [
        ("sac_flow,qc", [], {"finetune": {"beta": 3}}, "finetune.beta is a setting of sac_flow"),
        ("sac_flow,sac_scratch", [], {}, "sac_scratch learns from scratch"),
        ("sac_flow,qc_fql", [], {"diagnostics": {"gradients": True}}, "qc_fql learns nothing through the rollout"),
        ("sac_flow", ["m=sac_flow policy.network=mpl"], {}, "unknown network 'mpl'"),
        ("sac_flow", ["n=sac_flow policy.net.hiden=[3]"], {}, "did you mean 'hidden'"),
        ("sac_flow", ["r=rlpd finetune.subset=20"], {}, "subset"),
        ("sac_flow", ["b=qc_fql finetune.n_step=1"], {}, "finetune.n_step is 1, less than the chunk's 3 steps"),
    ],
)
def test_every_part_is_checked_before_the_first_one_starts(algos: str, variants: list[str], given: recipe.Tree, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        comparison.parts(TINY, given, comparison.entries(algos, variants), [0], "x")


# Through the command line ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    write_hopper(folder / "hopper.hdf5")
    (folder / "short.yaml").write_text(yaml.safe_dump(SHORT))
    return folder


def metrics(workshop: Path, name: str) -> bytes:
    return (workshop / "runs" / name / "metrics.jsonl").read_bytes()


def test_a_killed_comparison_goes_on_and_each_part_is_what_its_own_commands_give(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*ASKED, *ALGOS]
    with subprocess.Popen([FLOWFT, *command], cwd=workshop, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        reached(workshop / "runs" / "hopper-rlpd-s0-online" / "metrics.jsonl", 20)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "hopper-free-s0" not in os.listdir(workshop / "runs")
    early = json.loads((workshop / "out" / "table.json").read_text())  # of the part that was done
    assert [len(entry["runs"]) for entry in early["algorithms"]] == [1, 0, 0]

    monkeypatch.chdir(workshop)
    assert main.run([*command, "--seeds", "0,1"]) == 0
    out, errors = capsys.readouterr()
    assert "hopper-sac_flow-s0-online.pt is done" in errors
    table = json.loads((workshop / "out" / "table.json").read_text())
    assert {entry["label"]: sorted(entry["runs"]) for entry in table["algorithms"]} == {
        label: [f"hopper-{label}-s0-online", f"hopper-{label}-s1-online"] for label in ("sac_flow", "rlpd", "free")
    }
    assert all([level["step"] for level in entry["levels"]] == [0, 30, 60] for entry in table["algorithms"])
    assert out.splitlines()[0].startswith("| algorithm | seeds | start | 30 steps | 60 steps |")
    assert out.splitlines()[-1] == "out/table.md"
    assert "- algo: rlpd" in (workshop / "runs" / "hopper-rlpd-s1-online" / "README.md").read_text()

    by_hand = ["--recipe", "short.yaml", "--set", "algo=rlpd", "--set", "pretrain.evaluate=false"]
    assert main.run(["pretrain", *by_hand, "--name", "hand"]) == 0
    assert main.run(["finetune", "--ckpt", "hand", "--name", "hand-online"]) == 0
    assert metrics(workshop, "hand-online") == metrics(workshop, "hopper-rlpd-s0-online")
    free = yaml.safe_load((workshop / "runs" / "hopper-free-s0-online" / "recipe.yaml").read_text())
    assert free["finetune"]["beta"] == 1
    assert free["finetune"]["radius"] is None

    before = {path: path.stat().st_mtime_ns for path in workshop.rglob("*.pt")}
    capsys.readouterr()
    assert main.run([*command, "--seeds", "0,1", "--report-only", "--goal", "0"]) == 0
    assert {path: path.stat().st_mtime_ns for path in workshop.rglob("*.pt")} == before
    assert "steps to 0 %" in capsys.readouterr().out


def test_a_part_of_other_settings_does_not_pass_for_this_one(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    first = [*ASKED[:-1], "other", "--algos", "flow_bc", "--name", "x"]
    assert main.run(first) == 0
    capsys.readouterr()
    assert main.run([*first, "--set", "finetune.batch_size=8"]) == 2
    refusal = refused("\n".join(line for line in capsys.readouterr().err.splitlines() if not line.startswith("==")))
    assert "x-flow_bc-s0-online.pt was made with other settings (finetune.batch_size: 16 -> 8)" in refusal
    assert main.run([*first, "--set", "reward.scale=10"]) == 2  # whatever the shift: the dataset decides that
    assert "reward.scale: 1.0 -> 10.0" in capsys.readouterr().err
    assert main.run([*first, "--steps", "90"]) == 0  # going further is no other setting
    table = json.loads((workshop / "other" / "table.json").read_text())
    assert [level["step"] for level in table["algorithms"][0]["levels"]] == [0, 30, 60, 90]
    assert main.run([*first, "--steps", "90", "--set", "pretrain.updates=9"]) == 2  # a longer clone is another run's
    (workshop / "checkpoints" / "x-flow_bc-s0-online.pt").unlink()
    capsys.readouterr()
    assert main.run([*first, "--set", "pretrain.updates=4"]) == 2  # and so is a shorter one
    assert "x-flow_bc-s0.pt was made with 5 updates, more than the 4 asked for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--algos", "sac_flow,qq"], "unknown algo 'qq'"),
        (["--algos", "qc", "--seeds", "0,a"], "--seeds '0,a' is not a list of different numbers"),
        (["--algos", "qc", "--seeds", "-1"], "--seeds '-1' is not a list of different numbers"),
        (["--algos", "qc", "--seeds", "1,1"], "not a list of different numbers"),
        (["--algos", "qc", "--set", "finetune.bta=1"], "unknown setting 'finetune.bta'"),
        (["--algos", "qc", "--report-only", "--name", "nobody"], "no run of this comparison has been evaluated yet"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_before_anything_is_written(
    workshop: Path, more: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    before = sorted(workshop.rglob("*"))
    assert main.run([*ASKED[:-1], "nothing", *more]) == 2
    out, errors = capsys.readouterr()
    assert says in refused(errors)
    assert out == ""
    assert sorted(workshop.rglob("*")) == before


def test_help_of_compare_shows_the_syntax_of_a_variant() -> None:
    shown = subprocess.run([sys.executable, "-m", "flowft", "compare", "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "--variant 'free=sac_flow finetune.radius=null" in shown.stdout


def test_curves_of_one_seed_keep_their_wilson_band(tmp_path: Path) -> None:
    (row,) = report.gather({"a": [write_run(tmp_path / "a-s0", 0, [25, 45])]})
    (curve,) = report.curves([row])
    assert (curve.low[1], curve.high[1]) == stats.wilson(45, 50)
    assert isinstance(curve, plots.Curve)
