"""The command line as a user meets it: in processes of its own, on real simulators, killed and continued."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
import yaml

FLOWFT = str(Path(sys.executable).with_name("flowft"))
TINY: dict[str, Any] = {
    "dataset": "hopper.hdf5",
    "env": "Hopper-v5",
    "device": "cpu",
    "max_steps": 40,
    "data": {"match": "off"},  # tests/test_match.py is about that
    "policy": {"network": "mlp", "net": {"hidden": [32]}, "horizon": 3},
    "critic": {"hidden": [32]},
    "eval": {"episodes": 2, "every": 60},
    "pretrain": {"updates": 20, "batch_size": 16, "log_every": 5},
    "finetune": {"steps": 120, "start_updates": 10, "start_actor": 20, "batch_size": 16, "log_every": 20},
}


def flowft(*arguments: str, cwd: Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `flowft …` without a terminal; no exit may come with a traceback."""
    done = subprocess.run(
        [FLOWFT, *arguments], cwd=cwd, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def refused(text: str) -> str:
    """Check that stderr holds one `error:` line, and a `fix:` line or an error that says what was meant or allowed. Returns both."""
    lines = [line for line in text.splitlines() if line.startswith(("error: ", "fix: "))]
    assert [line.partition(":")[0] for line in lines] in (["error"], ["error", "fix"]), text
    assert len(lines) == 2 or any(hint in lines[0] for hint in ("did you mean", "there are", "not a number", "must be")), text
    return "\n".join(lines)


def write_hopper(path: Path, episodes: int = 8, seed: int = 0) -> None:
    """Random play of a real simulator, in D4RL's layout."""
    env = gymnasium.make("Hopper-v5", max_episode_steps=60)
    env.action_space.seed(seed)
    rows: dict[str, list[Any]] = {key: [] for key in ("observations", "actions", "rewards", "terminals", "timeouts")}
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        ended = False
        while not ended:
            action = env.action_space.sample()
            following, reward, terminated, truncated, _ = env.step(action)
            for key, value in zip(rows, (observation, action, reward, terminated, truncated), strict=True):
                rows[key].append(value)
            observation, ended = following, terminated or truncated
    with h5py.File(path, "w") as file:
        for key, values in rows.items():
            file[key] = np.asarray(values)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, a recipe and a cloned policy; tests must not change them."""
    folder = tmp_path_factory.mktemp("workshop")
    write_hopper(folder / "hopper.hdf5")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    done = flowft("pretrain", "--recipe", "tiny.yaml", cwd=folder)
    assert done.stdout.splitlines()[0].startswith("checkpoints/hopper.pt: ")
    assert done.stdout.splitlines()[1] == "next: flowft finetune --ckpt hopper"
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def weights(path: Path) -> dict[str, Any]:
    import torch

    return {key: value.tolist() for key, value in torch.load(path, weights_only=True)["policy"].items()}


# The whole way ----------------------------------------------------------------------------------------------------------


def test_fine_tuning_needs_nothing_but_the_checkpoint(workshop: Path) -> None:
    done = flowft("finetune", "--ckpt", "hopper", "--name", "online", cwd=workshop)
    assert done.stdout.splitlines()[-1] == "next: flowft plot online --out online.png"
    found = rows(workshop / "runs" / "online")
    assert [row["step"] for row in found if row["kind"] == "eval"] == [0, 60, 120]
    assert max(row["step"] for row in found) == 120
    assert weights(workshop / "checkpoints" / "online.pt") != weights(workshop / "checkpoints" / "hopper.pt")
    card = (workshop / "runs" / "online" / "README.md").read_text()
    assert "fine-tuned online" in card
    assert "flowft finetune --ckpt hopper --name online" in card
    assert "- finetune.steps: 120" in card

    flowft("plot", "online", "--out", "a.png", "--kind", "return", cwd=workshop)
    assert (workshop / "a.png").stat().st_size > 10_000


def test_eval_repeats_itself_and_speaks_json(workshop: Path) -> None:
    first, second, fewer = (
        json.loads(flowft("eval", "hopper", "--episodes", n, "--json", *more, cwd=workshop).stdout)
        for n, more in [("4", []), ("4", ["--envs", "2"]), ("2", [])]
    )
    assert first["each"] == second["each"], "the number of workers changes nothing"
    named = json.loads(flowft("eval", "hopper", "--episodes", "4", "--env", "Hopper-v5", "--json", cwd=workshop).stdout)
    assert named["each"] == first["each"], "the checkpoint's own environment by its name: with its step limit"
    assert first["each"]["return"][:2] == fewer["each"]["return"], "an episode does not depend on how many follow"
    assert len(set(first["each"]["return"])) > 1, "episodes have seeds of their own"
    assert (first["successes"], first["episodes"], first["success_low"]) == (0, 4, 0.0)
    assert first["success_high"] == pytest.approx(0.4899, abs=1e-4)
    other, noisy = (
        json.loads(flowft("eval", "--ckpt", "hopper.pt", "--episodes", "4", "--json", *more, cwd=workshop).stdout)["each"]["return"]
        for more in (["--seed", "1"], ["--stochastic"])
    )
    assert other != first["each"]["return"] != noisy
    text = flowft("eval", "hopper", "--episodes", "2", cwd=workshop).stdout
    assert "success 0/2 = 0 % (0–66 %)" in text


def test_the_same_seed_writes_the_same_metrics_and_another_does_not(workshop: Path) -> None:
    runs = {name: flowft("finetune", "--ckpt", "hopper", "--name", name, "--seed", seed, cwd=workshop) for name, seed in
            [("first", "5"), ("second", "5"), ("third", "6")]}  # fmt: skip
    first, second, third = ((workshop / "runs" / name / "metrics.jsonl").read_bytes() for name in runs)
    assert first == second
    assert first != third


# Killed and continued ---------------------------------------------------------------------------------------------------


def test_n_and_n_steps_equal_2n(workshop: Path) -> None:
    flowft("finetune", "--ckpt", "hopper", "--name", "whole", cwd=workshop)
    flowft("finetune", "--ckpt", "hopper", "--name", "halves", "--set", "finetune.steps=60", cwd=workshop)
    assert max(row["step"] for row in rows(workshop / "runs" / "halves")) == 60
    flowft("finetune", "--ckpt", "hopper", "--name", "halves", cwd=workshop)
    same(workshop, "whole", "halves")


def same(workshop: Path, one: str, other: str) -> None:
    assert (workshop / "runs" / one / "metrics.jsonl").read_bytes() == (workshop / "runs" / other / "metrics.jsonl").read_bytes()
    assert weights(workshop / "checkpoints" / f"{one}.pt") == weights(workshop / "checkpoints" / f"{other}.pt")


LONG = ["--set", "finetune.steps=900", "--set", "eval.every=300"]


@pytest.fixture(scope="module")
def uninterrupted(workshop: Path) -> str:
    flowft("finetune", "--ckpt", "hopper", "--name", "uninterrupted", *LONG, cwd=workshop)
    return "uninterrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_continues_to_the_same_end(workshop: Path, uninterrupted: str, number: signal.Signals) -> None:
    name = f"cut-{number.name}"
    command = ["finetune", "--ckpt", "hopper", "--name", name, *LONG]
    with subprocess.Popen([FLOWFT, *command], cwd=workshop, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        reached(workshop / "runs" / name / "metrics.jsonl", 320)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, errors
        assert "the same command continues" in errors
        assert " ".join(["flowft", *command]) in errors
    seen = json.loads(flowft("eval", name, "--episodes", "1", "--json", cwd=workshop).stdout)  # the policy of the last evaluation
    assert seen["checkpoint"] == f"checkpoints/{name}.pt"
    assert "continuing at step" in flowft(*command, cwd=workshop).stderr
    same(workshop, uninterrupted, name)


def reached(metrics: Path, step: int) -> None:
    """Wait until the run has written a row of that step."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if metrics.exists() and any(f'"step": {s},' in metrics.read_text() for s in range(step, step + 200)):
            return
        time.sleep(0.02)
    raise AssertionError(f"{metrics} never reached step {step}")


def test_another_network_does_not_inherit_the_settings_of_the_recipes(workshop: Path) -> None:
    more = ["--set", "policy.network=flow_t", "--set", "policy.net.width=16", "--set", "pretrain.evaluate=false"]
    flowft("pretrain", "--recipe", "tiny.yaml", "--name", "other", *more, cwd=workshop)
    assert any(key.startswith("network.decoder") for key in weights(workshop / "checkpoints" / "other.pt"))


# What a user can get wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["pretrian"], 2, "unknown command 'pretrian' (did you mean 'pretrain'?)"),
        (["pretrain"], 2, "no dataset was named"),
        (["pretrain", "--dataset", "nowhere.hdf5"], 1, "no file 'nowhere.hdf5'"),
        (["pretrain", "--dataset", "robomimc/lift"], 1, "did you mean 'robomimic'?"),
        (["pretrain", "--datset", "x"], 2, "--datset"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "finetun.beta=1"], 2, "unknown setting 'finetun' (did you mean 'finetune'?)"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "pretrain.updats=1"], 2, "'pretrain.updats' (did you mean 'updates'?)"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "policy.net.hiden=[1]"], 2, "'policy.net.hiden' (did you mean 'hidden'?)"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "policy.network=flow_x"], 2, "unknown network 'flow_x'"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "policy.horizon=many"], 2, "policy.horizon is 'many', not a number"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "beta"], 2, "not of the form section.key=value"),
        (["pretrain", "--recipe", "robomimic/lfit"], 2, "did you mean 'robomimic/lift'?"),
        (["pretrain", "--recipe", "tiny.yaml", "--device", "cuda:99"], 2, "device 'cuda:99' is not there"),
        (["pretrain", "--recipe", "tiny.yaml", "--seed", "1"], 2, "runs/hopper holds a run with other settings (seed: 0 -> 1)"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "policy.net.hidden=[64"], 2, "'[64' is not YAML"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "policy=mlp"], 2, "policy is 'mlp', not a section of settings"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "algos=rlpd"], 2, "algos is 'rlpd', not a section of settings"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "finetune.log_every=0"], 2, "log_every is 0; it must be at least 1"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "finetune.target_sigma=0"], 2, "target_sigma is 0.0; it must be positive"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "critic.ensemble=0"], 2, "ensemble is 0; it must be at least 1"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "policy.atanh_limit=1"], 2, "atanh_limit is 1.0; it must be between"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "seed=-1"], 2, "seed is -1; it must be at least 0"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "finetune.tau=-1"], 2, "tau is -1.0; it must be in [0, 1]"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "pretrain.gamma=0"], 2, "gamma is 0.0; it must be in (0, 1]"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "eval.every=-5"], 2, "every is -5; it must be at least 0"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "pretrain.actor_learning_rate=-1"], 2, "learning_rate is -1.0; it must be at"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "finetune.target_entropy=nan"], 2, "target_entropy is 'nan', not a number"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "finetune.beta=.inf"], 2, "finetune.beta is inf, not a number"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "pretrain.n_step=1"], 2, "pretrain.n_step is 1, less than the chunk's 3 steps"),
        (["pretrain", "--recipe", "tiny.yaml", "--set", "train.steps=1"], 2, "train.steps is a setting of `flowft train`"),
        (["finetune", "--ckpt", "hopper", "--set", "finetune.n_step=2", "--name", "n"], 2, "finetune.n_step is 2, less than"),
        (["finetune"], 2, "Missing option '--ckpt'"),
        (["finetune", "--ckpt", "hoper"], 1, "no checkpoint 'hoper'"),
        (["finetune", "--ckpt", "hopper.hdf5"], 1, "hopper.hdf5 is not a flowft checkpoint"),
        (["finetune", "--ckpt", "hopper", "--env", "Walker2d-v5", "--name", "w"], 1, "11 observation values against 17"),
        (["finetune", "--ckpt", "hopper", "--env", "Hoper-v5", "--name", "h"], 1, "Hoper-v5"),
        (["eval"], 2, "eval takes one checkpoint"),
        (["eval", "hopper", "--env", "Walker2d-v5"], 1, "11 observation values against 17"),
        (["plot", "onlin", "--out", "a.png"], 2, "no run 'onlin'"),
        (["plot", "hopper", "--out", "a.png"], 2, "holds no evaluation of an online run yet"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_in_one_error_and_one_fix(
    workshop: Path, arguments: list[str], code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flowft.cli import main

    monkeypatch.chdir(workshop)
    before = sorted(workshop.rglob("*.pt"))
    assert main.run(arguments) == code
    out, errors = capsys.readouterr()
    assert "Traceback" not in errors
    assert out == ""
    assert says in refused(errors)
    assert sorted(workshop.rglob("*.pt")) == before, "nothing was written"
    assert not [path for path in workshop.rglob("*") if path.name.endswith((".tmp", ".part"))]


def test_a_mistake_ends_a_process_without_traceback(workshop: Path) -> None:
    done = flowft("finetune", "--ckpt", "hoper", cwd=workshop, code=1)
    assert re.search(r"no checkpoint 'hoper' .*\(there: .*\bhopper\.pt\b", refused(done.stderr))
    assert done.stdout == ""


def test_a_bug_keeps_its_traceback_and_says_that_it_is_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from flowft.cli import main, plot

    monkeypatch.setattr(plot, "folder", lambda run: 1 / 0)
    assert main.run(["plot", "x", "--out", "a.png"]) == main.BUG
    shown = capsys.readouterr().err
    assert "ZeroDivisionError" in shown
    assert "this is a bug in flowft" in shown


# Around it --------------------------------------------------------------------------------------------------------------


def test_doctor_reports_every_extra_with_a_reason(tmp_path: Path) -> None:
    facts = json.loads(flowft("doctor", "--json", cwd=tmp_path).stdout)
    simulators = {"robosuite", "ogbench", "robotics", "metaworld", "panda"}
    others = {"robomimic", "d4rl", "plot", "video", "wandb", "hub", "lerobot", "zarr"}
    assert set(facts["extras"]) == simulators | others
    for name, extra in facts["extras"].items():
        assert extra["usable"] is (extra["reason"] is None), name
        assert extra["version"] or f"flowft[{name}]" in extra["reason"]
    assert facts["versions"]["torch"]
    assert not facts["folders"]["runs"]["exists"]
    assert list(tmp_path.iterdir()) == [], "looking changes nothing"


def test_doctor_tells_a_package_that_is_installed_from_one_that_works(tmp_path: Path) -> None:
    """An installed d4rl whose import fails, as the released one does."""
    info = tmp_path / "d4rl-1.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: d4rl\nVersion: 1.1\n")
    (tmp_path / "d4rl.py").write_text('raise Exception("You appear to be missing MuJoCo")\n')
    facts = json.loads(flowft("doctor", "--json", cwd=tmp_path, PYTHONPATH=str(tmp_path)).stdout)
    assert facts["extras"]["d4rl"] == {"version": "1.1", "usable": False, "reason": "Exception: You appear to be missing MuJoCo"}


def test_completion_knows_the_verbs(tmp_path: Path) -> None:
    offered = flowft(cwd=tmp_path, _FLOWFT_COMPLETE="bash_complete", COMP_WORDS="flowft p", COMP_CWORD="1").stdout
    assert sorted(line.split(",")[1] for line in offered.splitlines()) == ["plot", "pretrain"]
    assert "complete" in flowft(cwd=tmp_path, _FLOWFT_COMPLETE="bash_source").stdout


def test_the_whole_way_on_robosuite_lift(tmp_path: Path) -> None:
    """Demonstrations made in the simulator, a clone, some online steps, an evaluation and a film."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({k: v for k, v in TINY.items() if k not in ("dataset", "env")}))
    flowft("data", "generate", "scripted/lift", "--episodes", "3", cwd=tmp_path)
    flowft("pretrain", "--dataset", "scripted/lift", "--recipe", "tiny.yaml", cwd=tmp_path)
    flowft("finetune", "--ckpt", "lift", "--name", "online", "--set", "finetune.steps=60", "--set", "eval.every=0", cwd=tmp_path)
    result = json.loads(flowft("eval", "online", "--episodes", "2", "--json", cwd=tmp_path).stdout)
    assert (result["env"], result["episodes"]) == ("robosuite:Lift", 2)
    assert 1 <= min(result["each"]["length"]) <= max(result["each"]["length"]) <= 40
    assert [row["step"] for row in rows(tmp_path / "runs" / "online") if row["kind"] == "eval"] == [0, 60]
    facts = json.loads(flowft("doctor", "--json", cwd=tmp_path).stdout)
    if facts["rendering"]["works_with"]:
        flowft("eval", "online", "--episodes", "1", "--video", "films", cwd=tmp_path)
        assert (tmp_path / "films" / "episode_000.mp4").stat().st_size > 1000
    else:
        assert "offscreen" in refused(flowft("eval", "online", "--episodes", "1", "--video", "films", cwd=tmp_path, code=1).stderr)
