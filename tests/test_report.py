"""Intervals against known values, and plots that say what the run folders hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from flowft.errors import FlowftError, UsageError
from flowft.report import plots, stats


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(45, 50, 0.7864, 0.9565), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (1, 2, 0.0945, 0.9055), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_matches_published_values(successes: int, episodes: int, low: float, high: float) -> None:
    assert stats.wilson(successes, episodes) == pytest.approx((low, high), abs=5e-5)


def test_wilson_knows_nothing_without_episodes_and_refuses_impossible_counts() -> None:
    assert stats.wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="6 successes in 5 episodes"):
        stats.wilson(6, 5)


@pytest.mark.parametrize("episodes", [1, 2, 7, 50, 1000])
def test_wilson_contains_the_rate_and_mirrors(episodes: int) -> None:
    for successes in range(0, episodes + 1, max(1, episodes // 7)):
        low, high = stats.wilson(successes, episodes)
        assert 0 <= low <= successes / episodes <= high <= 1
        mirrored_low, mirrored_high = stats.wilson(episodes - successes, episodes)
        assert (mirrored_low, mirrored_high) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(
    ("freedom", "confidence", "quantile"),
    [(1, 0.95, 12.7062), (2, 0.95, 4.30265), (4, 0.99, 4.60409), (9, 0.90, 1.83311), (30, 0.95, 2.04227)],
)
def test_student_quantiles_match_the_tables(freedom: int, confidence: float, quantile: float) -> None:
    assert stats.student_quantile(freedom, confidence) == pytest.approx(quantile, rel=1e-5)


def test_mean_and_paired_difference() -> None:
    mean = stats.mean_interval([1.0, 2.0, 3.0])  # sd 1, t(2) = 4.30265, half width 2.48414
    assert mean == pytest.approx((2.0, -0.484138, 4.484138), abs=1e-5)
    assert stats.mean_interval([0.5])[1:] == (float("-inf"), float("inf"))
    assert stats.paired_difference([0.1, 0.5, 0.9], [0.3, 0.7, 1.1]) == pytest.approx((0.2, 0.2, 0.2))
    with pytest.raises(ValueError, match="2 values before, 3 after"):
        stats.paired_difference([1, 2], [1, 2, 3])


def test_seeds_that_agree_are_no_certainty() -> None:
    assert stats.success_interval([(45, 50)]) == (0.9, *stats.wilson(45, 50))
    assert stats.success_interval([(50, 50), (50, 50)]) == (1.0, stats.wilson(100, 100)[0], 1.0)
    apart = stats.success_interval([(20, 50), (30, 50), (25, 50)])
    assert apart == stats.mean_interval([0.4, 0.6, 0.5])
    assert stats.success_interval([(10, 50), (40, 50)])[1:] == (0.0, 1.0), "two seeds far apart: nothing is known"


def test_bootstrap_repeats_and_contains_the_mean() -> None:
    values = [0.0, 0.0, 1.0, 5.0, 9.0]
    first = stats.bootstrap_interval(values)
    assert first == stats.bootstrap_interval(values)
    assert min(values) <= first.low < first.mean == 3.0 < first.high <= max(values)


def test_percent_prints_count_rate_and_interval() -> None:
    assert stats.percent(45, 50) == "45/50 = 90 % (79–96 %)"
    assert stats.percent(0, 0) == "0/0"


def write_run(folder: Path, seed: int, successes: list[int], extra: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"seed": seed, "finetune": {"beta": 100}}))
    rows = [{"kind": "eval", "stage": "pretrain", "step": 9000, "successes": 50, "episodes": 50, "return": 0.0, "length": 1}]
    rows += [
        {
            "kind": "eval",
            "stage": "finetune",
            "step": 1000 * i,
            "successes": k,
            "episodes": 50,
            "return": -float(i * (1 + seed)),
            "length": 80,
        }
        for i, k in enumerate(successes)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + extra)
    return folder


def test_one_run_is_drawn_with_wilson_band_and_its_starting_level(tmp_path: Path) -> None:
    run = plots.read_run(write_run(tmp_path / "lift", 0, [25, 45, 50], extra='{"kind": "eval", "st'))  # killed while writing
    (curve,) = plots.draw([run], tmp_path / "deep" / "lift.png")
    assert (tmp_path / "deep" / "lift.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["lift.png"]
    assert curve.steps == (0, 1000, 2000)
    assert curve.middle == (0.5, 0.9, 1.0)
    assert curve.start == 0.5
    assert (curve.low[1], curve.high[1]) == stats.wilson(45, 50)


def test_seeds_of_one_recipe_become_one_curve_and_another_recipe_stays_apart(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"lift-s{seed}", seed, counts) for seed, counts in enumerate([[20, 40], [30, 50], [25, 45, 50]])]
    other = write_run(tmp_path / "free", 0, [25, 0])
    (other / "recipe.yaml").write_text(yaml.safe_dump({"seed": 0, "finetune": {"beta": 1}}))
    seeds, alone = plots.curves([plots.read_run(folder) for folder in [*folders, other]])
    assert seeds.label == "lift (mean of 3 seeds)"
    assert seeds.steps == (0, 1000), "only steps that all seeds have"
    assert seeds.middle == pytest.approx((0.5, 0.9))
    assert seeds.low[1] == pytest.approx(0.9 - 4.30265 * 0.1 / 3**0.5, abs=1e-5)
    assert seeds.high[1] == 1.0, "a success rate stops at one"
    assert (alone.label, alone.middle) == ("free", (0.5, 0.0))


def test_a_step_evaluated_twice_counts_once_with_its_later_value(tmp_path: Path) -> None:
    again = json.dumps({"kind": "eval", "stage": "finetune", "step": 1000, "successes": 10, "episodes": 50, "return": 0.0, "length": 1})
    run = plots.read_run(write_run(tmp_path / "resumed", 0, [25, 45, 50], extra=again + "\n"))
    assert plots.curves([run])[0].middle == (0.5, 0.2, 1.0)


def test_a_run_from_scratch_has_no_cloned_policy_to_start_from(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "hopper", 0, [0, 0, 0])
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"stage": "finetune"', '"stage": "train"'))
    (curve,) = plots.draw([plots.read_run(folder)], tmp_path / "return.svg", kind="return")
    assert (curve.steps, curve.middle, curve.start) == ((0, 1000, 2000), (0.0, -1.0, -2.0), None)


def test_return_has_the_return_on_its_axis(tmp_path: Path) -> None:
    run = plots.read_run(write_run(tmp_path / "lift", 0, [25, 45]))
    assert plots.draw([run], tmp_path / "return.svg", kind="return")[0].middle == (0.0, -1.0)


def test_returns_of_two_seeds_are_drawn_as_they_are_and_those_of_three_with_a_band(tmp_path: Path) -> None:
    def picture(seeds: int) -> str:
        runs = [plots.read_run(write_run(tmp_path / f"lift-{seeds}-s{seed}", seed, [25, 45])) for seed in range(seeds)]
        plots.draw(runs, tmp_path / "return.svg", kind="return")
        return (tmp_path / "return.svg").read_text()

    assert "PolyCollection" not in picture(2), "t with one degree of freedom is six times as wide as the seeds are apart"
    assert "PolyCollection" in picture(3)


@pytest.mark.parametrize("content", [None, "", '{"kind": "train", "step": 1}\n'])
def test_a_folder_without_evaluations_says_so(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UsageError, match="not a run|no evaluation"):
        plots.read_run(tmp_path)


def test_damage_in_the_middle_of_a_metrics_file_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "lift", 0, [25], extra="garbage\n{}\n")
    with pytest.raises(FlowftError, match="line 3 is not JSON"):
        plots.read_run(folder)


def test_an_unknown_picture_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    run = plots.read_run(write_run(tmp_path / "lift", 0, [25]))
    with pytest.raises(UsageError, match="bmp"):
        plots.draw([run], tmp_path / "a.bmp")
    assert not (tmp_path / "a.bmp").exists()
