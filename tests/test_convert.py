"""`flowft convert` as a user meets it: what it takes from the file, what it refuses and how, what comes after."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml

import flowft
from flowft import checkpoint, recipe
from flowft.algos.sac_flow import Config, SACFlow
from flowft.cli import main
from flowft.convert import Sizes, sacflow_npz
from flowft.errors import CheckpointError, DataError
from flowft.policies import flow
from flowft.policies.policy import FlowPolicy
from flowft.train.settings import Settings, finetune_section

from . import published
from .helpers import SPEC, agent, batch, policy
from .test_cli import TINY, refused, rows, write_hopper
from .test_cli import flowft as command

SIZES = published.Sizes(
    observation=11, action=3, horizon=2, hidden=(8, 9), gate=7, width=12, state=5, time=(3, 4), inner=20, layers=2, critic=(10, 13),
    ensemble=3, steps=3, batch=4, std=0.1,
)  # fmt: skip


def write(path: Path, network: str = "flow_g", change: Any = None, **how: bool) -> dict[str, Any]:
    """A sound file of SIZES, after `change(arrays)`."""
    arrays = published.random_file(network, SIZES, np.random.default_rng(0), **how)
    if change is not None:
        change(arrays)
    np.savez(path, **arrays)
    return arrays


def refuses(path: Path, **sizes: int) -> str:
    with pytest.raises(DataError) as caught:
        sacflow_npz.convert(path, Sizes(**sizes))
    assert "\n" not in caught.value.what
    assert caught.value.fix
    return caught.value.what


# What is taken from the file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["flow_g", "flow_t", "mlp"])
def test_the_command_line(network: str, tmp_path: Path) -> None:
    write(tmp_path / "theirs.npz", network)
    done = command("convert", "--from", "sacflow-npz", "theirs.npz", "--out", "deep/ours.pt", cwd=tmp_path)
    first, second = done.stdout.splitlines()
    assert first == f"deep/ours.pt: {network}, 11 observation values, chunks of 2 x 3, 3 flow steps, step noise 0.1, a critic of 3"
    assert second == "next: flowft finetune --ckpt deep/ours.pt --dataset ID|PATH --env ENV"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["ours.pt"], "nothing else was written"
    policy = flowft.load_policy(tmp_path / "deep" / "ours.pt")
    assert policy.act(np.zeros(11)).shape == (2, 3)
    content = checkpoint.load(tmp_path / "deep" / "ours.pt", "policy checkpoint")
    settings = content["recipe"]["policy"]
    assert (settings["squash"], settings["observation_clip"], settings["drift_correction"]) == ("tanh", None, False)
    assert (settings["noise"], settings["squash_epsilon"]) == ("fixed", 1e-6)


def test_without_metadata_the_chunk_is_one_step_until_somebody_says_more(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    arrays = {name: array for name, array in write(path, metadata=False).items() if name.startswith(("param:", "critic:"))}
    np.savez(path, **arrays)
    for given, expected in (
        ({}, (1, 6)), ({"horizon": 2}, (2, 3)), ({"action": 2}, (3, 2)), ({"horizon": 3, "action": 2, "observation": 11}, (3, 2))
    ):  # fmt: skip
        content = sacflow_npz.convert(path, Sizes(**given))
        assert (content["recipe"]["policy"]["horizon"], len(content["spec"]["action_low"])) == expected
    assert content["recipe"]["policy"]["steps"] == 4


@pytest.mark.parametrize("name", ["K", "std", "horizon"])
def test_metadata_that_are_no_number_count_for_none(name: str, tmp_path: Path) -> None:
    write(tmp_path / "a.npz", change=lambda a: a.update({name: np.float32(np.nan if name == "horizon" else np.inf)}))
    made = sacflow_npz.convert(tmp_path / "a.npz", Sizes())["recipe"]["policy"]
    assert (made["steps"], made["horizon"]) == (4 if name == "K" else 3, 2)
    assert np.isfinite(made["sigma"])


def test_what_is_asked_wins_over_the_files_own_horizon(tmp_path: Path) -> None:
    write(tmp_path / "a.npz")
    content = sacflow_npz.convert(tmp_path / "a.npz", Sizes(horizon=6))
    assert (content["recipe"]["policy"]["horizon"], len(content["spec"]["action_low"])) == (6, 1)


# What is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["flow_g", "flow_t", "mlp"])
def test_every_missing_array_is_named_with_its_shape(network: str, tmp_path: Path) -> None:
    whole = write(tmp_path / "a.npz", network)
    for name in [name for name in whole if name.startswith(("param:", "critic:"))]:
        np.savez(tmp_path / "a.npz", **{key: array for key, array in whole.items() if key != name})
        assert f"{name} is missing, expected shape {whole[name].shape}" in refuses(tmp_path / "a.npz"), name


@pytest.mark.parametrize("network", ["flow_g", "flow_t", "mlp"])
def test_every_array_of_another_shape_is_named_with_both(network: str, tmp_path: Path) -> None:
    whole = write(tmp_path / "a.npz", network)
    for name in [name for name in whole if name.startswith(("param:", "critic:"))]:
        for wrong in (np.concatenate([whole[name], whole[name]], axis=-1), whole[name][..., None]):
            np.savez(tmp_path / "a.npz", **{**whole, name: wrong})
            said = refuses(tmp_path / "a.npz")
            assert f"{name} has shape {wrong.shape}, expected {whole[name].shape}" in said
            assert said.count("expected") == 1, f"nothing but {name} is wrong: {said}"


def without(network: str, path: Path, *blocks: str) -> str:
    """What is said of a published file that lacks every array whose name begins with one of `blocks`."""
    whole = np.load(Path(__file__).parent / "data" / "sacflow" / f"{network}.npz")
    kept = {name: whole[name] for name in whole.files if not name.startswith(blocks)}
    assert len(kept) < len(whole.files)
    np.savez(path, **kept)
    return refuses(path)


@pytest.mark.parametrize("network", ["flow_mlp", "flow_g"])
@pytest.mark.parametrize("gradients", [(), ("grad_",)], ids=["as it is", "without gradients"])
def test_a_missing_last_layer_is_named(network: str, gradients: tuple[str, ...], tmp_path: Path) -> None:
    whole = np.load(Path(__file__).parent / "data" / "sacflow" / f"{network}.npz")
    last = max(name for name in whole.files if name.startswith("param:mlp/Dense_")).rpartition("/")[0]
    said = without(network, tmp_path / "a.npz", last, *gradients)
    assert f"{last}/kernel is missing, expected shape {whole[f'{last}/kernel'].shape}; {last}/bias is missing" in said
    assert said.count("expected") == 2, said


def test_a_critic_without_its_last_layer_is_told_so(tmp_path: Path) -> None:
    whole = np.load(Path(__file__).parent / "data" / "sacflow" / "flow_g.npz")
    last = max(name for name in whole.files if name.startswith("critic:value_net/Dense_")).rpartition("/")[0]
    said = without("flow_g", tmp_path / "a.npz", last)
    assert f"{last}/kernel is missing, expected shape {whole[f'{last}/kernel'].shape}; {last}/bias is missing" in said
    assert said.count("expected") == 2, said


@pytest.mark.parametrize(("network", "block", "taken_for"), [("flow_g", "param:gate_net/", "mlp"), ("flow_t", "param:layer_1/", "flow_t")])
def test_a_file_without_a_whole_block_does_not_pass_for_another_network(network: str, block: str, taken_for: str, tmp_path: Path) -> None:
    """The gradients beside the parameters name what is missing; without them, the velocity tells that something is."""
    said = without(network, tmp_path / "a.npz", block)
    assert f"does not hold a published {network}: {block}" in said
    assert "is missing, expected shape (" in said
    assert "?" not in said
    said = without(network, tmp_path / "a.npz", block, "grad_")
    assert f"is no whole {taken_for}: its parameters, taken for one, give a velocity" in said


def test_a_velocity_of_half_precision_is_the_networks_own(tmp_path: Path) -> None:
    whole = np.load(Path(__file__).parent / "data" / "sacflow" / "flow_t.npz")
    rounded = whole["velocity"] * (1 + 2e-2 * np.random.default_rng(0).uniform(-1, 1, whole["velocity"].shape).astype(np.float32))
    np.savez(tmp_path / "a.npz", **{name: whole[name] for name in whole.files if name != "velocity"}, velocity=rounded)
    command("convert", "--from", "sacflow-npz", "a.npz", "--out", "a.pt", cwd=tmp_path)


def test_a_transposed_kernel_is_named(tmp_path: Path) -> None:
    def transpose(arrays: dict[str, Any]) -> None:
        arrays["param:mlp/Dense_0/kernel"] = arrays["param:mlp/Dense_0/kernel"].T

    write(tmp_path / "a.npz", change=transpose)
    assert "param:mlp/Dense_0/kernel has shape (8, 18), expected (18, 8)" in refuses(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.update({"param:mlp/Dense_1/kernle": np.zeros(2)}), "param:mlp/Dense_1/kernle is unknown"),
        (lambda a: a.update({"param:mlp/Dense_9999999999/bias": np.zeros(2)}), "param:mlp/Dense_9999999999/bias is unknown"),
        (lambda a: [a.pop(f"param:mlp/Dense_1/{part}") for part in ("kernel", "bias")], "param:mlp/Dense_1/kernel is missing"),
        (lambda a: a.update({"param:log_std/bias": np.zeros(2)}), "param:log_std/bias is unknown"),
        (lambda a: a.update({"critic:value_net/extra": np.zeros(2)}), "critic:value_net/extra is unknown"),
        (lambda a: a["param:mlp/Dense_1/bias"].fill(np.nan), "param:mlp/Dense_1/bias holds values that are not finite"),
        (lambda a: a.update({"param:mlp/Dense_1/bias": np.zeros(9, int)}), "param:mlp/Dense_1/bias holds int64, expected float32"),
        (lambda a: [a.pop(k) for k in list(a) if k.startswith("param:")], "holds no parameters"),
        (lambda a: [a.update({k.replace("param:", "param:x/"): a.pop(k)}) for k in list(a) if "param:" in k], "(there are: x)"),
        (lambda a: a.update(horizon=np.int32(4)), "its horizon 4 and its action_dim 3 do not fit"),
    ],
)  # fmt: skip
def test_wrong_content_is_refused(change: Any, says: str, tmp_path: Path) -> None:
    write(tmp_path / "a.npz", change=change)
    assert says in refuses(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"observation": 12}, "--obs-dim 12 does not fit"),
        ({"horizon": 4}, "--horizon 4 does not fit"),
        ({"horizon": 7}, "--horizon 7 does not fit"),
        ({"action": 4}, "--action-dim 4 does not fit"),
        ({"horizon": 2, "action": 2}, "--horizon 2 and --action-dim 2 do not fit"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_value(sizes: dict[str, int], says: str, tmp_path: Path) -> None:
    write(tmp_path / "a.npz")
    assert says in refuses(tmp_path / "a.npz", **sizes)


def test_files_that_are_no_npz_or_damaged_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    assert "no file" in refuses(path)
    assert "folder" in refuses(tmp_path)
    np.savez(path, **{"param:mlp/Dense_0/kernel": np.array([{}], dtype=object)})
    refused = refuses(path)
    assert "a.npz is not a whole npz file" in refused, "Python objects are never unpickled"
    assert "pickle" not in refused, "nor is anybody told to"
    np.save(tmp_path / "b.npy", np.zeros(3))
    for content in (b"", b"hello", (tmp_path / "b.npy").read_bytes()):
        path.write_bytes(content)
        assert "a.npz is not a whole npz file" in refuses(path)
    np.savez_compressed(path, **write(tmp_path / "whole.npz"))
    whole = path.read_bytes()
    for cut in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:cut])
        assert "a.npz is not a whole npz file" in refuses(path)
    g = np.random.default_rng(0)
    for place in g.integers(0, len(whole), 300):  # one byte changed: refused in one sentence, or harmless
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            sacflow_npz.convert(path, Sizes())
        except DataError as error:
            assert "\n" not in error.what


def test_a_refusal_on_the_command_line_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.npz")
    Path("file").touch()
    how = ["convert", "--from", "sacflow-npz"]
    for arguments, code, says in (
        ([*how, "b.npz", "--out", "b.pt"], 1, "no file 'b.npz'"),
        ([*how, "a.npz", "--out", "b.pt", "--obs-dim", "10"], 1, "--obs-dim 10 does not fit a.npz: its network sees 11 values"),
        ([*how, "a.npz", "--out", "b.pt", "--horizon", "0"], 2, "'--horizon'"),
        ([*how, "a.npz", "--out", "file/b.pt"], 1, "cannot write file/b.pt"),
        (["convert", "--from", "sacflow", "a.npz", "--out", "b.pt"], 2, "sacflow-npz"),
        ([*how, "a.npz"], 2, "--out"),
    ):
        assert main.run(arguments) == code
        out, errors = capsys.readouterr()
        assert out == ""
        assert says in errors
        assert errors.startswith("error: ")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.npz", "file"]


# What comes after -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hopper's demonstrations, a converted Flow-G for it, and the same without critic."""
    folder = tmp_path_factory.mktemp("converted")
    write_hopper(folder / "hopper.hdf5")
    settings = {key: TINY[key] for key in ("max_steps", "eval", "finetune")}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    for name, critic in (("whole", True), ("bare", False)):
        write(folder / f"{name}.npz", critic=critic)
        command("convert", "--from", "sacflow-npz", f"{name}.npz", "--out", f"checkpoints/{name}.pt", cwd=folder)
    return folder


def test_a_converted_checkpoint_is_fine_tuned_with_a_dataset_and_an_environment(workshop: Path) -> None:
    how = ["--recipe", "tiny.yaml", "--device", "cpu"]
    done = command("finetune", "--ckpt", "whole", "--dataset", "hopper.hdf5", "--env", "Hopper-v5", *how, cwd=workshop)
    assert done.stdout.splitlines()[-1] == "next: flowft plot whole-finetuned --out whole-finetuned.png"
    assert "critic" not in done.stderr
    assert [row["step"] for row in rows(workshop / "runs" / "whole-finetuned") if row["kind"] == "eval"] == [0, 60, 120]
    before, after = (checkpoint.load(workshop / "checkpoints" / name, "policy checkpoint") for name in ("whole.pt", "whole-finetuned.pt"))
    assert before["spec"]["parts"] == [["unnamed", 11]]
    assert after["spec"]["parts"] == [["observation", 11]], "names are the dataset's"
    assert after["dataset"]["id"] == "hopper.hdf5"
    assert after["recipe"]["policy"] == before["recipe"]["policy"]
    command("finetune", "--ckpt", "whole-finetuned", "--set", "finetune.steps=60", cwd=workshop)  # needs nothing else any more
    card = (workshop / "runs" / "whole-finetuned" / "README.md").read_text()
    assert "of hopper.hdf5" in card


def test_the_critic_comes_along_and_where_there_is_none_it_says_so(workshop: Path) -> None:
    how = [
        "--dataset",
        "hopper.hdf5",
        "--env",
        "Hopper-v5",
        "--recipe",
        "tiny.yaml",
        "--set",
        "finetune.start_updates=1000",
        "--device",
        "cpu",
    ]
    found = {}
    for name in ("whole", "bare"):
        done = command("finetune", "--ckpt", name, "--name", f"{name}-still", *how, cwd=workshop)
        assert ("note: checkpoints/bare.pt has no critic; a fresh one starts untrained" in done.stderr) is (name == "bare")
        found[name] = checkpoint.load(workshop / "checkpoints" / f"{name}-still.pt", "policy checkpoint")["algo"]["critic"]
    theirs = checkpoint.load(workshop / "checkpoints" / "whole.pt", "policy checkpoint")["algo"]["critic"]
    assert all(torch.equal(found["whole"][key], theirs[key]) for key in theirs), "no update was made: it is the converted critic"
    assert set(found["bare"]) != set(theirs)  # fresh, at flowft's own default depth
    with pytest.raises(CheckpointError, match="bare.pt has no critic"):
        flowft.load_critic(workshop / "checkpoints" / "bare.pt")


def test_a_converted_checkpoint_is_evaluated_where_its_sizes_fit(workshop: Path) -> None:
    done = command("eval", "whole", "--env", "Hopper-v5", "--episodes", "1", "--json", cwd=workshop)
    assert json.loads(done.stdout)["env"] == "gymnasium:Hopper-v5"
    assert "names no environment" in refused(command("eval", "whole", cwd=workshop, code=2).stderr)
    wrong = command("eval", "whole", "--env", "Walker2d-v5", "--episodes", "1", cwd=workshop, code=1)
    assert "11 observation values against 17; 3 action values against 6" in refused(wrong.stderr)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--env", "Hopper-v5"], "whole.pt knows no demonstrations to go on with"),
        (["--dataset", "hopper.hdf5"], "does not say in which environment to fine-tune"),
        (["--dataset", "other.hdf5", "--env", "Hopper-v5"], "11 observation values against 10"),
        (["--dataset", "hopper.hdf5", "--env", "Walker2d-v5"], "11 observation values against 17"),
        (["--dataset", "hopper.hdf5", "--env", "Hopper-v5", "--set", "finetune.keep_optimizers=true"], "holds no actor_optimizer"),
    ],
)
def test_what_is_lacking_is_said(
    workshop: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(workshop / "hopper.hdf5") as source, h5py.File(workshop / "other.hdf5", "w") as target:
        for key in source:
            target[key] = source[key][:, :10] if key == "observations" else source[key][:]
    monkeypatch.chdir(workshop)
    assert main.run(["finetune", "--ckpt", "whole", "--name", "never", "--recipe", "tiny.yaml", *arguments]) == 1
    assert says in refused(capsys.readouterr().err)
    assert not (workshop / "checkpoints" / "never.pt").exists()


# Variants are settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "assignments",
    [
        {"policy.network": "flow_t", "policy.net.norm": "pre"},
        {"policy.network": "flow_t", "policy.net.norm": "post"},
        {"policy.network": "flow_t", "policy.net.tokens": "steps"},
        {"policy.network": "flow_g", "policy.net.candidate_bound": "none"},
        {"policy.network": "flow_g", "policy.net.candidate_bound": "50"},
        {"policy.noise": "learned", "policy.drift_correction": "false"},
        {"finetune.target_entropy": "-12.5", "finetune.beta_units": "sum"},
        {"finetune.target_entropy": "none", "finetune.target_sigma": "0.05"},
    ],
    ids=lambda settings: " ".join(f"{key}={value}" for key, value in settings.items()),
)
def test_every_variant_has_a_setting_that_trains(assignments: dict[str, str]) -> None:
    small = ["critic.hidden=[16]", "policy.horizon=3", "finetune.alpha=0.1"]
    settings = Settings.read(recipe.from_assignments([*small, *(f"{key}={value}" for key, value in assignments.items())]))
    algo = SACFlow(FlowPolicy(SPEC, settings.policy), settings.critic, finetune_section(settings).algo, seed=0)
    before = [parameter.clone() for parameter in algo.policy.parameters()]
    metrics = algo.update(batch())
    assert all(bool(value.isfinite().all()) for value in metrics.values())
    assert any(not bool((a == b).all()) for a, b in zip(before, algo.policy.parameters(), strict=True))


def test_the_target_entropy_is_a_noise_level_or_a_number() -> None:
    at_noise = flow.entropy_at_noise(0.2, 6, 4)
    assert agent(config=Config(target_sigma=0.2)).target_entropy == at_noise
    assert agent(config=Config(target_sigma=0.2, target_entropy=-3.5)).target_entropy == -3.5
    assert agent(config=Config(target_entropy=0.0)).target_entropy == 0.0


def test_the_candidate_bound_bounds() -> None:
    free, bound = (policy("flow_g", net={"hidden": [8], "gate_hidden": 4, "candidate_bound": b}) for b in (None, 50.0))
    bound.load_state_dict(free.state_dict())
    far = 1e6 * torch.ones(1, 5)
    free.normalizer.clip = bound.normalizer.clip = None
    x, t = torch.zeros(1, 6), torch.zeros(1, 1)
    assert free.velocity(far, x, t).abs().max() > 1e3
    assert bound.velocity(far, x, t).abs().max() <= 50.0


def test_an_npz_of_somebody_else_is_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", states=np.zeros((3, 2)))
    assert "no array is called param:… (there are: states)" in refuses(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w"):
        pass
    assert "(there are: none)" in refuses(tmp_path / "b.npz")
