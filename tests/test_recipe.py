"""Recipes: what YAML says becomes typed settings, or an error that names the key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from flowft import recipe
from flowft.cli import options
from flowft.data.source import Options
from flowft.errors import UsageError
from flowft.train.settings import Settings, split


@dataclass(frozen=True)
class Inner:
    width: int = 3
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    rate: float = 3e-4
    steps: int = 10
    clip: bool = False
    mode: Literal["on", "half"] = "half"
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"rate is {self.rate}, not above 0")


def test_yaml_quirks_are_coerced_by_the_declared_type() -> None:
    tree = recipe.from_assignments(["rate=3e-4", "steps=1e3", "mode=on", "clip=true", "limit=", "inner.names=[a, b]", "inner.width=5"])
    assert recipe.build(Config, tree, "") == Config(3e-4, 1000, True, "on", None, Inner(5, ("a", "b")))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("ratee=1", r"unknown setting 'finetune.ratee' \(did you mean 'rate'\?\)"),
        ("inner.widht=1", r"unknown setting 'finetune.inner.widht' \(did you mean 'width'\?\)"),
        ("steps=1.5", "finetune.steps is 1.5, not a number without a fraction"),
        ("steps=many", "finetune.steps is 'many', not a number"),
        ("clip=1", "finetune.clip is 1, not bool"),
        ("mode=no", "finetune.mode is False"),
        ("inner=3", "finetune.inner is 3, not a section"),
        ("inner.names=3", "finetune.inner.names is 3, not a list"),
        ("rate=-1", "rate is -1.0, not above 0"),
    ],
)
def test_a_wrong_setting_names_the_key_and_the_value(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe.build(Config, recipe.from_assignments([assignment]), "finetune")


@pytest.mark.parametrize("text", ["beta", "=3", ".=3"])
def test_an_assignment_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="section.key=value"):
        recipe.from_assignments([text])


def test_later_trees_win_key_by_key_and_inputs_stay_as_they_were() -> None:
    first: dict[str, Any] = {"a": {"x": 1, "y": 2}, "b": [1]}
    merged = recipe.merge(first, {"a": {"y": 3}}, {"b": 4})
    assert merged == {"a": {"x": 1, "y": 3}, "b": 4}
    assert first == {"a": {"x": 1, "y": 2}, "b": [1]}


def test_a_section_is_split_among_its_owners() -> None:
    parts = recipe.split({"loop": Inner, "algo": Config}, {"width": 7, "steps": 20}, "finetune")
    assert parts == {"loop": Inner(width=7), "algo": Config(steps=20)}
    with pytest.raises(UsageError, match="did you mean 'steps'"):
        recipe.split({"loop": Inner, "algo": Config}, {"step": 20}, "finetune")


RECIPE: dict[str, Any] = {
    "policy": {"network": "flow_g", "net": {"gate_hidden": 128}},
    "finetune": {"steps": 10},
    "algos": {"sac_flow": {"finetune": {"beta": 30.0}}, "qc": {"policy": {"network": "mlp", "net": {"hidden": [8]}}}},
}


def test_an_algorithms_entry_is_merged_over_the_rest_and_the_command_line_over_both() -> None:
    given = {"finetune": {"beta": 7.0, "steps": 5}}
    for_sac = recipe.for_algorithm(recipe.assemble(RECIPE, given), "sac_flow")
    assert for_sac == {"policy": RECIPE["policy"], "finetune": {"steps": 5, "beta": 7.0}}
    assert recipe.for_algorithm(RECIPE, "sac_flow")["finetune"] == {"steps": 10, "beta": 30.0}
    assert recipe.for_algorithm(RECIPE, "rlpd") == {key: RECIPE[key] for key in ("policy", "finetune")}
    one = recipe.assemble(RECIPE, recipe.from_assignments(["algos.sac_flow.finetune.beta=1"]))
    assert recipe.for_algorithm(one, "sac_flow")["finetune"]["beta"] == 1
    assert "beta" not in recipe.for_algorithm(one, "qc")["finetune"]
    own = recipe.assemble(RECIPE, recipe.from_assignments(["finetune.beta=1", "algos.sac_flow.finetune.beta=2", "algos.rlpd.seed=3"]))
    assert recipe.for_algorithm(own, "sac_flow")["finetune"]["beta"] == 2
    assert recipe.for_algorithm(own, "rlpd") == {"policy": RECIPE["policy"], "finetune": {"steps": 10, "beta": 1}, "seed": 3}


def test_an_algorithms_network_does_not_inherit_the_settings_of_another() -> None:
    assert recipe.for_algorithm(RECIPE, "qc")["policy"] == {"network": "mlp", "net": {"hidden": [8]}}
    assert recipe.for_algorithm(recipe.assemble(RECIPE, {"policy": {"network": "flow_t"}}), "qc")["policy"] == {"network": "flow_t"}
    wider = recipe.assemble(RECIPE, {"policy": {"net": {"hidden": [9]}}})
    assert recipe.for_algorithm(wider, "qc")["policy"] == {"network": "mlp", "net": {"hidden": [9]}}


def test_what_an_algorithm_is_published_with_lies_under_the_recipe() -> None:
    assert Settings.read({"algo": "rlpd"}).critic.ensemble == 10
    assert Settings.read({"algo": "rlpd", "critic": {"ensemble": 4}}).critic.ensemble == 4
    assert Settings.read({"algo": "qc_fql"}).policy.steps == 10
    assert Settings.read({}).critic.ensemble == 6
    assert Settings.read({"algo": "qc_fql"}).critic.ensemble == 2


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"algo": "rlpd", "finetune": {"beta": 3}}, "finetune.beta is a setting of sac_flow and .*, and this run is with algo=rlpd"),
        ({"algo": "rlpd", "finetune": {"alhpa": 3}}, "unknown setting 'finetune.alhpa' .did you mean 'alpha'"),
        ({"algos": {"rlpd": {"finetune": {"beta": 3}}}, "algo": "rlpd"}, "finetune.beta is a setting of sac_flow"),
        ({"algos": {"rlqd": {}}}, "unknown algo 'rlqd' .did you mean 'rlpd'"),
        ({"algos": ["rlpd"]}, "algos is .'rlpd'., not a section"),
        ({"algo": "sac_flwo"}, "did you mean 'sac_flow'"),
    ],
)
def test_a_key_that_means_nothing_to_the_algorithm_is_refused(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split(Settings.read(tree), "finetune", {})


def test_a_config_survives_the_way_to_yaml_and_back() -> None:
    config = Config(rate=1e-3, inner=Inner(9, ("eef", "object")))
    assert recipe.build(Config, recipe.to_tree(config), "") == config


def test_differences_are_dotted_names() -> None:
    assert recipe.differences({"a": {"x": 1}, "b": 2}, {"a": {"x": 3}, "b": 2, "c": 4}) == ["a.x: 1 -> 3", "c: None -> 4"]


def test_recipes_are_found_by_path_by_name_and_with_a_hint(tmp_path: Path) -> None:
    mine = tmp_path / "recipes" / "group" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("seed: 4\n")
    assert recipe.read(str(mine)) == recipe.read("group/mine", home=tmp_path) == {"seed": 4}
    with pytest.raises(UsageError, match="did you mean 'group/mine'"):
        recipe.read("group/mien", home=tmp_path)


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("scripted/lift", "scripted/lift"),
        ("robomimic/can/ph", "robomimic/can"),
        ("ogbench/cube-single-play", "ogbench/cube-single"),
        ("d4rl/door-human-v1", "d4rl/door-human"),
        ("mine.hdf5", None),
    ],
)
def test_a_dataset_brings_its_recipe_along_and_says_so(dataset: str, name: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert options.recipe_of(dataset) == ([name] if name else [])
    said = capsys.readouterr().err
    assert f"recipe: {name}, as it is this dataset's" in said if name else "none, so the published scale" in said


@pytest.mark.parametrize("content", ["a: [", "- 1\n- 2\n", "text"])
def test_a_file_that_is_no_recipe_is_refused_with_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match="bad.yaml"):
        recipe.read(str(path))


@pytest.mark.parametrize(
    ("text", "says"),
    [("finetune: {beta: 30}\nseed: 3\nfinetune: {steps: 2}\n", "finetune twice, in lines 1 and 3"),
     ("finetune:\n  beta: 30\n  steps: 2\n  beta: 10\n", "beta twice, in lines 2 and 4"),
     ("policy: {steps: 4, steps: 5}\n", "steps twice, in line 1")],
)  # fmt: skip
def test_a_key_twice_in_a_recipe_is_an_error_and_not_the_last_of_the_two(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "pasted.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=says):
        recipe.read(str(path))


def test_keys_of_a_yaml_merge_may_be_overridden_and_a_windows_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes("\ufeffpolicy: &p {steps: 4}\r\ncritic:\r\n  <<: *p\r\n  steps: 5\r\n".encode())
    assert recipe.read(str(path)) == {"policy": {"steps": 4}, "critic": {"steps": 5}}


def test_none_is_a_choice_where_it_is_named_as_one() -> None:
    assert recipe.build(Options, {"success": "none", "demos": "none"}, "data") == Options(success="none", demos=None)
