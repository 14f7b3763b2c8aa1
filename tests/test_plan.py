"""A run is put together in one place: what it says before anything is trained, and every refusal with a fix that mends it."""

from __future__ import annotations

import fcntl
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import yaml

from flowft import checkpoint
from flowft.cli import main
from flowft.data.description import Description
from flowft.data.spec import EnvSpec, Spec
from flowft.errors import DataError, EnvError
from flowft.train import plan as planning
from flowft.train.origins import Layer, origins

from .test_cli import TINY, flowft, refused, write_hopper

Capsys = pytest.CaptureFixture[str]
PRETRAIN = ["pretrain", "--recipe", "tiny.yaml", "--name", "new"]
FINETUNE = ["finetune", "--ckpt", "hopper", "--name", "online"]
TRAIN = ["train", "--env", "Hopper-v5", "--recipe", "scratch.yaml", "--name", "alone"]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, recipes and a clone; tests put nothing beside them but what they remove again."""
    folder = tmp_path_factory.mktemp("plans")
    write_hopper(folder / "hopper.hdf5")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    scratch = {"device": "cpu", "max_steps": 40, "critic": {"hidden": [16]}, "eval": {"episodes": 1}}
    (folder / "scratch.yaml").write_text(yaml.safe_dump(scratch))
    flowft("pretrain", "--recipe", "tiny.yaml", cwd=folder)
    return folder


@pytest.fixture
def here(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workshop)
    return workshop


def listed(folder: Path) -> list[str]:
    """Files, and what they hold in bytes; a lock that is not held is nothing."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return sorted(f"{path.relative_to(folder)} {path.stat().st_size}" for path in files)


def told(command: list[str], capsys: Capsys) -> dict[str, Any]:
    """The plan of a command, as JSON."""
    assert main.run([*command, "--dry-run", "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# What a plan says -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [PRETRAIN, FINETUNE, TRAIN], ids=lambda command: command[0])
def test_a_dry_run_says_what_would_happen_and_leaves_nothing_behind(here: Path, capsys: Capsys, command: list[str]) -> None:
    before = listed(here)
    assert main.run([*command, "--dry-run"]) == 0
    text = capsys.readouterr().out
    for line in ("stage        ", "policy       ", "algorithm    ", "environment  gymnasium:Hopper-v5", "writes       "):
        assert line in text
    assert "eval.episodes" in text
    assert ("dataset      " in text.partition("\n\n")[0]) == (command[0] != "train")
    plan = told(command, capsys)
    assert (plan["stage"], plan["name"]) == (command[0], command[-1])
    assert plan["policy"]["observation_dim"] == 11
    assert plan["simulators"] >= 1
    assert listed(here) == before


def test_every_setting_says_where_it_came_from(here: Path, capsys: Capsys) -> None:
    plan = told([*PRETRAIN, "--set", "pretrain.gamma=0.9", "--set", "policy.sigma=1e-1", "--seed", "3"], capsys)
    settings = plan["settings"]
    for name, origin in {
        "pretrain.gamma": "--set", "seed": "--seed", "policy.horizon": "recipe tiny.yaml", "policy.net.hidden": "recipe tiny.yaml",
        "critic.ensemble": "algorithm sac_flow", "pretrain.tau": "default", "policy.net.activation": "default", "reward.shift": "data",
    }.items():  # fmt: skip
        assert settings[name]["from"] == origin, name
    assert settings["pretrain.gamma"]["value"] == 0.9
    assert settings["policy.sigma"] == {"value": 0.1, "from": "--set"}
    assert settings["critic.ensemble"]["value"] == 6
    assert not any(name.startswith(("finetune.", "train.")) for name in settings), "other stages' sections are not this one's"


def test_a_checkpoints_settings_lie_between_the_algorithms_and_the_command_lines(here: Path, capsys: Capsys) -> None:
    settings = told([*FINETUNE, "--set", "finetune.beta=7"], capsys)["settings"]
    for name, origin in {
        "finetune.beta": "--set", "finetune.steps": "checkpoint", "policy.horizon": "checkpoint", "critic.ensemble": "algorithm sac_flow",
        "finetune.radius": "default", "finetune.offline_share": "default", "critic.hidden": "checkpoint",
    }.items():  # fmt: skip
        assert settings[name]["from"] == origin, name
    other = told([*FINETUNE, "--set", "algo=sac_flow_released"], capsys)
    assert (other["algo"], other["settings"]["algo"]["from"]) == ("sac_flow_released", "--set")


def test_from_scratch_has_defaults_of_its_own(here: Path, capsys: Capsys) -> None:
    settings = told(TRAIN, capsys)["settings"]
    assert settings["policy.horizon"] == {"value": 1, "from": "default of flowft train"}
    assert settings["policy.net.gate_hidden"] == {"value": 128, "from": "default of flowft train"}
    assert settings["critic.hidden"] == {"value": [16], "from": "recipe scratch.yaml"}
    assert settings["env"]["from"] == "--env"


def test_a_plan_says_what_is_taken_over_and_where_a_run_stands(here: Path, capsys: Capsys) -> None:
    assert told(FINETUNE, capsys)["takes"] == ["policy", "critic"]
    assert told([*FINETUNE, "--set", "finetune.fresh_critic=true"], capsys)["takes"] == ["policy"]
    assert told([*FINETUNE, "--set", "finetune.keep_optimizers=true"], capsys)["takes"] == ["policy", "critic", "optimizers"]
    stands = told(["pretrain", "--recipe", "tiny.yaml", "--set", "pretrain.updates=30"], capsys)
    assert (stands["name"], stands["continues_at"]) == ("hopper", 20)


def test_a_layer_that_holds_everything_owns_only_what_it_changes() -> None:
    six = {"critic": {"ensemble": 6}}
    below = [Layer("algorithm a", six), Layer("checkpoint", {**six, "seed": 4, "x": "3e-4"}, whole=True)]
    found = origins({**six, "seed": 4, "x": 3e-4}, {"critic": {"ensemble": 2}, "seed": 0, "x": 1.0}, below, "a")
    assert [(name, origin.layer) for name, origin in found.items()] == [
        ("critic.ensemble", "algorithm a"), ("seed", "checkpoint"), ("x", "checkpoint"),
    ]  # fmt: skip


# Refusals ---------------------------------------------------------------------------------------------------------------


def other_run(folder: Path) -> Callable[[], None]:
    """A folder that holds a run with other settings."""
    runs = folder / "runs" / "new"
    runs.mkdir(parents=True)
    (runs / "recipe.yaml").write_text(yaml.safe_dump({"stage": "pretrain", "seed": 8}))
    (runs / "state.pt").write_bytes((folder / "runs" / "hopper" / "state.pt").read_bytes())
    return lambda: [path.unlink() for path in runs.iterdir()] and runs.rmdir()  # type: ignore[func-returns-value]


def in_use(folder: Path) -> Callable[[], None]:
    """A run that another process has open."""
    runs = folder / "runs" / "new"
    runs.mkdir(parents=True)
    handle = (runs / ".lock").open("a+")
    handle.write("process 4711 on elsewhere\n")
    handle.flush()
    fcntl.flock(handle, fcntl.LOCK_EX)
    return lambda: [handle.close(), *(path.unlink() for path in runs.iterdir())] and runs.rmdir()  # type: ignore[func-returns-value]


def without(folder: Path, **changes: Any) -> Callable[[], None]:
    """A checkpoint `odd`, as the clone but for some of its content."""
    content = checkpoint.load(folder / "checkpoints" / "hopper.pt", "policy checkpoint")
    content["recipe"] |= {key: value for key, value in changes.items() if key in content["recipe"]}
    checkpoint.save(folder / "checkpoints" / "odd.pt", "policy checkpoint", content | changes)
    return (folder / "checkpoints" / "odd.pt").unlink


def of_other_data(folder: Path) -> Callable[[], None]:
    write_hopper(folder / "hopper.hdf5", seed=70)

    def back() -> None:
        (folder / "hopper.hdf5").unlink()
        write_hopper(folder / "hopper.hdf5")

    return back


def six_observations(folder: Path) -> Callable[[], None]:
    """Demonstrations of another size."""
    with h5py.File(folder / "six.hdf5", "w") as file:
        file["observations"] = [[float(i + j) for j in range(6)] for i in range(12)]
        file["actions"] = [[0.1 * (i % 7)] * 3 for i in range(12)]
        file["rewards"], file["terminals"] = [1.0] * 12, [False] * 12
        file["timeouts"] = [i % 6 == 5 for i in range(12)]
    return (folder / "six.hdf5").unlink


ODD = ["finetune", "--ckpt", "odd", "--name", "from-odd"]
REFUSALS: dict[str, tuple[list[str], str, Callable[[Path], Callable[[], None]] | None]] = {
    "an algorithm from scratch": ([*PRETRAIN, "--set", "algo=sac_scratch"], "sac_scratch learns from scratch", None),
    "an algorithm of demonstrations": ([*TRAIN, "--set", "algo=qc"], "qc starts from demonstrations", None),
    "a section of another command": ([*PRETRAIN, "--set", "train.steps=3"], "train.steps is a setting of `flowft train`", None),
    "and of another": ([*TRAIN, "--set", "finetune.steps=3"], "finetune.steps is a setting of `flowft finetune`", None),
    "too short a reach": ([*PRETRAIN, "--set", "pretrain.n_step=1"], "pretrain.n_step is 1, less than the chunk's 3", None),
    "too short a reach later": ([*PRETRAIN, "--set", "finetune.n_step=1"], "finetune.n_step is 1, less than the chunk's 3", None),
    "too short a reach online": ([*FINETUNE, "--set", "finetune.n_step=1"], "finetune.n_step is 1, less than the chunk's 3", None),
    "a subset of too few": (
        [*PRETRAIN, "--set", "algo=rlpd", "--set", "critic.ensemble=2", "--set", "finetune.subset=3"],
        "subset is 3, of an ensemble of 2", None,
    ),
    "no rollout to look at": (
        [*TRAIN, "--set", "algo=sac_scratch", "--set", "diagnostics.gradients=true"], "learns nothing through the rollout", None,
    ),
    "no such device": ([*PRETRAIN, "--device", "cuda:7"], "device 'cuda:7' is not there", None),
    "another kind of device": ([*PRETRAIN, "--device", "cuba"], "unknown device 'cuba'", None),
    "a name with a slash": (["pretrain", "--recipe", "tiny.yaml", "--name", "a/b"], "the name 'a/b' cannot be a folder's", None),
    "another environment's sizes": ([*PRETRAIN, "--env", "Walker2d-v5"], "11 observation values against 17", None),
    "an environment that is none": ([*PRETRAIN, "--env", "Hopper-v5", "--set", "env_kwargs={legs: 3}"], "cannot be built with", None),
    "another environment online": ([*FINETUNE, "--env", "Walker2d-v5"], "trained on other observations or actions than Walker2d-v5", None),
    "another run's folder": (PRETRAIN, "holds a run with other settings (", other_run),
    "a run in use": (PRETRAIN, "is in use by process 4711 on elsewhere", in_use),
    "back before it": (["pretrain", "--recipe", "tiny.yaml", "--set", "pretrain.updates=4"], "has had 20 updates, more than the 4", None),
    "no environment known": (ODD, "does not say in which environment to fine-tune", lambda folder: without(folder, env=None)),
    "another kind of policy": ([*FINETUNE, "--set", "algo=rlpd"], "holds a flow policy, pretrained with algo=sac_flow", None),
    "a critic of other shapes": ([*FINETUNE, "--set", "critic.hidden=[8]"], "critic has other shapes", None),
    "no moments to keep": (
        [*FINETUNE, "--set", "algo=flow_bc", "--set", "finetune.keep_optimizers=true"], "holds no optimizer to keep", None,
    ),
    "demonstrations that have changed": (FINETUNE, "has changed since the checkpoint was made from it", of_other_data),
    "other demonstrations": ([*FINETUNE, "--dataset", "six.hdf5"], "sees or does something else than six.hdf5 holds", six_observations),
}  # fmt: skip
# Placeholders that only the user can fill, for fixes that cannot know them.
FILLED = {"--env ENV": "--env Hopper-v5"}


@pytest.mark.parametrize("what", REFUSALS)
def test_every_refusal_comes_before_anything_is_written_and_its_fix_mends_it(here: Path, capsys: Capsys, what: str) -> None:
    command, says, prepare = REFUSALS[what]
    undo = prepare(here) if prepare else None
    try:
        before = listed(here)
        assert main.run(command) in (1, 2)
        out, errors = capsys.readouterr()
        assert (out, "Traceback" in errors) == ("", False)
        said = refused("\n".join(line for line in errors.splitlines() if not line.startswith(("recipe: ", "note: "))))
        assert says in said
        assert listed(here) == before
        fix = said.partition("\nfix: ")[2]
        assert fix.startswith("flowft "), said
        for place, value in FILLED.items():
            fix = fix.replace(place, value)
        words = shlex.split(fix)[1:]
        code = main.run([*words, "--dry-run"] if words[0] in ("pretrain", "finetune", "train") else words)
        assert code == 0, (fix, capsys.readouterr().err)
        assert says not in capsys.readouterr().err
    finally:
        if undo:
            undo()


def test_a_folder_that_cannot_be_written_is_said_before_training(here: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "a-file").write_text("no folder")
    for variable in ("FLOWFT_RUNS", "FLOWFT_CHECKPOINTS"):
        with monkeypatch.context() as patched:
            patched.setenv(variable, str(here / "a-file" / "below"))
            assert main.run(PRETRAIN) == 1
        said = refused(capsys.readouterr().err)
        assert "cannot be written: Not a directory" in said
        assert f"fix: export {variable}=" in said
    (here / "a-file").unlink()
    assert not (here / "runs" / "new").exists()


def test_an_environment_that_only_the_data_name_may_be_missing(here: Path, capsys: Capsys) -> None:
    """Who has no simulator can still clone; who names one must mean one that there is."""
    (here / "elsewhere.yaml").write_text(yaml.safe_dump({**TINY, "env": None, "env_kwargs": {"legs": 3}}))
    plan = told(["pretrain", "--recipe", "elsewhere.yaml", "--name", "new"], capsys)
    assert plan["simulators"] == 0
    assert any("cannot be built here, so the clone is not evaluated" in note for note in plan["notes"])
    assert main.run(["pretrain", "--recipe", "tiny.yaml", "--env", "Hoper-v5", "--name", "new"]) == 1
    assert "pretrain.evaluate=false clones without it" in capsys.readouterr().err
    command = ["pretrain", "--recipe", "tiny.yaml", "--env", "Hoper-v5", "--name", "new", "--set", "pretrain.evaluate=false"]
    assert told(command, capsys)["simulators"] == 0


def test_a_finished_clone_goes_on_to_another_environment(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is evaluated is not what it is: the fix that a wrong --env brings must be taken by the same run."""
    monkeypatch.setenv("FLOWFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FLOWFT_CHECKPOINTS", str(tmp_path / "checkpoints"))
    command = ["pretrain", "--recipe", "tiny.yaml", "--name", "twice"]
    assert main.run([*command, "--env", "Hoper-v5", "--set", "pretrain.evaluate=false"]) == 0
    assert checkpoint.load(tmp_path / "checkpoints" / "twice.pt", "policy checkpoint")["evaluation"] is None
    assert main.run([*command, "--env", "Hopper-v5"]) == 0
    content = checkpoint.load(tmp_path / "checkpoints" / "twice.pt", "policy checkpoint")
    assert (content["env"]["id"], content["evaluation"]["episodes"]) == ("Hopper-v5", 2)


def test_a_clone_whose_evaluation_fails_is_kept(tmp_path: Path, here: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowft.train.evaluate import Evaluator

    def dies(self: Evaluator, policy: Any) -> None:
        raise EnvError("the simulator died")

    monkeypatch.setenv("FLOWFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FLOWFT_CHECKPOINTS", str(tmp_path / "checkpoints"))
    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "__call__", dies)
        assert main.run(["pretrain", "--recipe", "tiny.yaml", "--name", "kept"]) == 1
    content = checkpoint.load(tmp_path / "checkpoints" / "kept.pt", "policy checkpoint")
    assert (content["step"], content["evaluation"]) == (20, None)
    assert main.run(["pretrain", "--recipe", "tiny.yaml", "--name", "kept"]) == 0
    assert checkpoint.load(tmp_path / "checkpoints" / "kept.pt", "policy checkpoint")["evaluation"]["episodes"] == 2


def test_a_plan_ends_its_simulators(here: Path) -> None:
    tree = {**TINY, "eval": {"episodes": 2, "envs": 2}}
    with planning.pretraining(tree, "new") as plan:
        assert plan.simulators is not None
        assert plan.simulators.count == 2
        plan.simulators.reset(1, seed=3)
    with pytest.raises(EnvError, match="have been closed"):
        plan.simulators.reset(0, seed=3)


# One description --------------------------------------------------------------------------------------------------------

SEES = Spec((("eef", 3), ("object", 10)), (-1.0,) * 7, (1.0,) * 7)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (Spec((("eef", 3), ("object", 14)), (-1.0,) * 7, (1.0,) * 7), "object: 10 against 14"),
        (Spec((("object", 10), ("eef", 3)), (-1.0,) * 7, (1.0,) * 7), "order of parts"),
        (Spec((("eef", 3), ("object", 10)), (-2.0,) * 7, (1.0,) * 7), "action bounds"),
        (Spec((("eef", 3), ("object", 10)), (-1.0,) * 6, (1.0,) * 6), "7 action values against 6"),
    ],
)
def test_two_descriptions_say_what_differs(other: Spec, says: str) -> None:
    policy = Description("policy", "can.pt", SEES, horizon=5)
    with pytest.raises(EnvError, match=f"can.pt was trained on other observations or actions than Lift gives: .*{says}"):
        policy.require_fit(Description.of_environment(EnvSpec("robosuite", "Lift"), other), "fix")
    with pytest.raises(DataError, match=f"can.pt sees or does something else than my.hdf5 holds: .*{says}"):
        policy.require_fit(Description("data", "my.hdf5", other), "fix")


def test_rates_that_are_known_are_compared() -> None:
    fast, slow = (Description.of_environment(EnvSpec("robosuite", "Lift", {"control_freq": rate}), SEES) for rate in (20, 10))
    policy = Description("policy", "can.pt", SEES, rate=20.0)
    assert policy.differences(fast) == []
    assert policy.differences(slow) == ["20 actions per second against 10"]
    assert policy.differences(Description.of_environment(EnvSpec("robosuite", "Lift"), SEES)) == []
    assert "7 values in -1 to 1, in chunks of 5, 20 a second" in Description("policy", "can.pt", SEES, 5, True, 20.0).words()


def test_a_checkpoint_describes_itself(here: Path) -> None:
    path = here / "checkpoints" / "hopper.pt"
    found = Description.of_checkpoint(path, checkpoint.load(path, "policy checkpoint"))
    assert (found.horizon, found.normalised, found.spec.observation_dim) == (3, True, 11)
    assert found.to_tree()["parts"] == [["observation", 11]]
