"""Every algorithm through the same door: pretrain, fine-tune, save, load, resume, act. A new one is tested by being registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flowft
from flowft import checkpoint, recipe, registry
from flowft.algos import base as algos
from flowft.data.mixture import Config as Share
from flowft.data.mixture import Mixture
from flowft.data.spec import Batch
from flowft.errors import CheckpointError, UsageError
from flowft.policies import policy as policies
from flowft.train import finetune as finetuning
from flowft.train import pretrain as pretraining
from flowft.train.evaluate import Evaluator
from flowft.train.origins import checkpoint_recipe
from flowft.train.settings import Settings, finetune_section

from .helpers import NETS, SPEC, batch, episode, replay, same
from .test_cli import TINY, write_hopper

ALGOS = [name for name in registry.names("algos") if not algos.named(name).from_scratch]
CASES = [(name, "mlp") for name in ALGOS] + [("sac_flow", network) for network in NETS if network != "mlp"]
CASE = pytest.mark.parametrize(("algo", "network"), CASES, ids=["-".join(case) for case in CASES])
SMALL: dict[str, Any] = {
    "critic": {"hidden": [32]}, "actor": {"hidden": [32]},
    "eval": {"episodes": 1, "every": 30},
    "pretrain": {"updates": 6, "batch_size": 16, "log_every": 3, "evaluate": False},
    "finetune": {"steps": 60, "start_updates": 6, "start_actor": 8, "batch_size": 16, "log_every": 10},
}  # fmt: skip


def tree(algo: str, network: str = "mlp") -> recipe.Tree:
    policy = {"network": network, "net": NETS[network], "horizon": 3, "candidates": 4}
    return recipe.assemble(TINY, recipe.merge(SMALL, {"algo": algo, "policy": policy}))


def settings(algo: str, network: str = "mlp") -> Settings:
    return Settings.read(tree(algo, network))


def agent(algo: str, network: str = "mlp", seed: int = 0) -> Any:
    """As the loops build it."""
    made = settings(algo, network)
    found = registry.get("algos", algo)
    torch.manual_seed(0)
    policy = policies.build(found.policy_kind, SPEC, made.networks)
    policy.normalizer.fit(np.full(5, 0.1), np.full(5, 2.0))
    return found(policy, made.critic, finetune_section(made).algo, seed)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conformance")
    write_hopper(folder / "hopper.hdf5")
    return folder


@CASE
def test_pretrain_finetune_save_load_act(workshop: Path, monkeypatch: pytest.MonkeyPatch, algo: str, network: str) -> None:
    monkeypatch.chdir(workshop)
    name = f"{algo}-{network}"
    cloned = pretraining.pretrain(tree(algo, network), name)
    online = finetuning.finetune(cloned, {}, f"{name}-online")
    rows = [json.loads(line) for line in (workshop / "runs" / f"{name}-online" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [0, 30, 60]
    assert [row for row in rows if row["kind"] == "train"]
    assert all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))

    content = checkpoint.load(online, "policy checkpoint")
    assert content["policy_kind"] == registry.get("algos", algo).policy_kind
    assert not same(content["policy"], checkpoint.load(cloned, "policy checkpoint")["policy"]), "fine-tuning moved it"
    policy, again = flowft.load_policy(online), flowft.load_policy(online)
    observations = np.random.default_rng(0).normal(size=(2, policy.spec.observation_dim)).astype(np.float32)
    x0, noise = policy.draw(2, torch.Generator().manual_seed(0))
    chunks = policy.act(observations, x0)
    assert chunks.shape == (2, 3, policy.spec.action_dim)
    assert chunks.dtype == np.float32
    assert np.abs(policy.unit_chunk(observations, x0, noise)).max() <= 1
    assert np.array_equal(chunks, again.act(observations, x0))
    assert policy.act(observations[0]).shape == chunks[0].shape
    assert np.allclose(policy.act(observations[1], x0[1]), chunks[1], atol=1e-5)


@pytest.mark.parametrize(("algo", "evaluations"), [("sac_flow", 1), ("qc", 3), ("flow_bc", 3)])
def test_a_policy_is_evaluated_anew_when_it_has_changed(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, algo: str, evaluations: int
) -> None:
    """While the critic alone learns, an actor stays what it was; best-of-N chooses by the critic, and a clone goes on cloning."""
    monkeypatch.chdir(workshop)
    given: recipe.Tree = {"finetune": {"start_actor": 1000}}
    cloned = pretraining.pretrain(recipe.merge(tree(algo), given), f"waiting-{algo}")
    asked: list[Any] = []
    real = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", lambda self, policy: asked.append(policy) or real(self, policy))
    finetuning.finetune(cloned, given, f"waiting-{algo}-online")
    assert len(asked) == evaluations
    rows = [json.loads(line) for line in (workshop / "runs" / f"waiting-{algo}-online" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "eval"] == [0, 30, 60]


def test_random_steps_come_first_whatever_the_policy(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    seen = {}
    for algo in ("sac_flow", "rlpd"):
        for steps in (0, 60):
            given: recipe.Tree = {"finetune": {"random_steps": steps, "start_updates": 1000, "start_actor": 1000}}
            name = f"random-{algo}-{steps}"
            finetuning.finetune(pretraining.pretrain(recipe.merge(tree(algo), given), name), given, f"{name}-online")
            rows = [json.loads(line) for line in (workshop / "runs" / f"{name}-online" / "metrics.jsonl").read_text().splitlines()]
            seen[algo, steps] = [row for row in rows if row["kind"] == "episode"]
    assert seen["sac_flow", 60] == seen["rlpd", 60] != []
    assert seen["sac_flow", 0] != seen["rlpd", 0]


def test_offline_rlpd_does_nothing_but_clone(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own update has nothing that holds the actor to the data: offline it would leave them for where Q is wrong."""
    monkeypatch.chdir(workshop)
    pretraining.pretrain(recipe.merge(tree("rlpd"), {"pretrain": {"regularised_updates": 6, "log_every": 1}}), "offline")
    rows = [json.loads(line) for line in (workshop / "runs" / "offline" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "cloning_loss" in row] == list(range(1, 13))


@CASE
def test_n_and_n_updates_equal_2n_through_the_saved_state(tmp_path: Path, algo: str, network: str) -> None:
    data = [batch(16) for _ in range(6)]
    whole, half = agent(algo, network), agent(algo, network)
    for algorithm, count in ((whole, 6), (half, 3)):
        for i in range(count):
            algorithm.update(data[i], actor=i % 2 == 0)
    checkpoint.save(tmp_path / "state.pt", "state", half.state_dict())
    again = agent(algo, network, seed=99)
    again.load_state_dict(checkpoint.load(tmp_path / "state.pt", "state"))
    for i in range(3, 6):
        again.update(data[i], actor=i % 2 == 0)
    assert same(whole.state_dict(), again.state_dict())


@CASE
def test_the_same_seed_gives_the_same_metrics_and_another_seed_others(algo: str, network: str) -> None:
    data = batch(16)
    first, second, other = (agent(algo, network, seed) for seed in (1, 1, 2))
    shown = [{key: float(value) for key, value in a.update(data).items()} for a in (first, second, other)]
    assert shown[0] == shown[1]
    assert shown[0] != shown[2]


@CASE
def test_only_the_actor_waits_where_the_actor_is_told_to(algo: str, network: str) -> None:
    made = agent(algo, network)
    if made.critic is None:
        pytest.skip("plain cloning has no critic: whoever asks, it clones")
    judge = {id(p) for p in made.critic.parameters()}
    actor = [p for p in made.policy.parameters() if id(p) not in judge]
    before = [[p.clone() for p in group] for group in (actor, made.critic.parameters())]
    made.update(batch(16), actor=False)
    assert all(torch.equal(a, b) for a, b in zip(before[0], actor, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before[1], made.critic.parameters(), strict=True))
    made.update(batch(16))
    assert not all(torch.equal(a, b) for a, b in zip(before[0], actor, strict=True))


@CASE
def test_an_update_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch, algo: str, network: str) -> None:
    """Reading a number off a tensor is what synchronises; an update may not do it."""
    made, data = agent(algo, network), batch(16)

    def read(*_: object) -> None:
        raise AssertionError("a value was read off the device")

    made.update(data)
    for reader in ("item", "__float__", "__bool__", "__int__", "tolist", "numpy", "cpu", "nonzero"):
        monkeypatch.setattr(torch.Tensor, reader, read)
    made.clone(data)
    made.update(data)


@CASE
def test_a_mixed_replay_batch_and_a_terminal_one_both_give_finite_losses(algo: str, network: str) -> None:
    offline, online = replay(episode(7)), replay(episode(5, terminated=False, seed=1), episode(4, seed=2), seed=1)
    mixed: Batch = Mixture(offline, online, Share()).sample(16, 3, step=0)
    assert 0 < mixed.offline.sum() < 16
    made = agent(algo, network)
    for data in (mixed, replay(episode(2)).sample(8, 3, offline=True)):
        assert all(bool(torch.isfinite(value).all()) for value in made.update(data).values())


def test_another_kind_of_policy_is_refused_with_the_command_that_mends_it(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    path = pretraining.pretrain(tree("flow_bc"), "clone")
    with pytest.raises(UsageError, match="holds a flow policy, pretrained with algo=flow_bc; rlpd trains a gaussian policy") as caught:
        finetuning.finetune(path, {"algo": "rlpd"}, "mixed-up")
    assert caught.value.fix == "flowft pretrain --dataset hopper.hdf5 --set algo=rlpd --name clone-rlpd"
    assert not (workshop / "runs" / "mixed-up").exists()


def test_a_clone_without_a_critic_gets_a_fresh_one_and_is_told(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    path = finetuning.finetune(pretraining.pretrain(tree("flow_bc"), "alone"), {"algo": "sac_flow"}, "of-a-clone")
    assert "alone.pt has no critic; a fresh one starts untrained" in capsys.readouterr().err
    made = checkpoint.load(path, "policy checkpoint")["recipe"]["critic"]
    assert (made["ensemble"], made["hidden"]) == (6, list(settings("sac_flow").critic.hidden))


def test_adams_state_of_another_algorithm_cannot_be_kept(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    path = pretraining.pretrain(tree("flow_bc"), "other-adam")
    with pytest.raises(CheckpointError, match="holds no actor_optimizer, alpha_optimizer, critic_optimizer to keep"):
        finetuning.finetune(path, {"algo": "sac_flow", "finetune": {"keep_optimizers": True}}, "kept-adam")


def test_knobs_of_the_algorithm_that_made_a_checkpoint_stay_behind(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    path = pretraining.pretrain(recipe.merge(tree("sac_flow"), {"finetune": {"beta": 7.0}}), "with-beta")
    finetuning.finetune(path, {"algo": "flow_bc"}, "cloning-on")
    assert "beta" not in checkpoint.load(workshop / "checkpoints" / "cloning-on.pt", "policy checkpoint")["recipe"]["finetune"]


def test_other_rewards_move_the_shift_along_and_are_told(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workshop)
    path = pretraining.pretrain(tree("sac_flow"), "unit-rewards")
    content = checkpoint.load(path, "policy checkpoint")
    checkpoint.save(path, "policy checkpoint", content | {"recipe": recipe.merge(content["recipe"], {"reward": {"shift": -1.0}})})
    assert checkpoint_recipe(content, {})["reward"] == content["recipe"]["reward"]
    scaled = finetuning.finetune(path, {"reward": {"scale": 10.0}, "finetune": {"steps": 30}}, "scaled")
    assert checkpoint.load(scaled, "policy checkpoint")["recipe"]["reward"] == {"scale": 10.0, "shift": 0.0}  # these are no 0/1 rewards
    assert "learned from 1·r -1, now it is 10·r +0" in capsys.readouterr().err
    kept = finetuning.finetune(path, {"reward": {"scale": 10.0, "shift": -10.0}, "finetune": {"steps": 30}}, "scaled-and-shifted")
    assert checkpoint.load(kept, "policy checkpoint")["recipe"]["reward"] == {"scale": 10.0, "shift": -10.0}


def test_a_policy_of_other_demonstrations_says_which_it_goes_on_with(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    path = pretraining.pretrain(tree("flow_bc"), "first-data")
    write_hopper(workshop / "second.hdf5", seed=50)
    online = finetuning.finetune(path, {"dataset": "second.hdf5", "finetune": {"steps": 30}}, "second-data")
    first, second = (checkpoint.load(each, "policy checkpoint")["dataset"] for each in (path, online))
    assert (first["id"], second["id"]) == ("hopper.hdf5", "second.hdf5")
    assert second["notes"][-1] == f"it came from a policy cloned from hopper.hdf5, sha256 {first['hash']}"


@pytest.mark.parametrize(("then", "message"), [
    ({"updates": 4}, "has had 8 updates, more than the 7 asked for"),
    ({"updates": 6}, "went on from cloning after 5 updates; 6 of them are asked for"),
])  # fmt: skip
def test_a_clone_goes_neither_back_nor_back_to_cloning(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, then: recipe.Tree, message: str
) -> None:
    monkeypatch.chdir(workshop)
    given = recipe.merge(tree("sac_flow"), {"pretrain": {"updates": 5, "regularised_updates": 3}})
    path = pretraining.pretrain(given, f"order-{then['updates']}")
    before = path.read_bytes()
    with pytest.raises(UsageError, match=message):
        pretraining.pretrain(recipe.merge(given, {"pretrain": then}), f"order-{then['updates']}")
    assert path.read_bytes() == before
    pretraining.pretrain(recipe.merge(given, {"pretrain": {"regularised_updates": 4}}), f"order-{then['updates']}")


def test_a_random_stream_of_another_kind_of_device_goes_on_from_a_seed_of_its_own() -> None:
    from flowft import device

    stream, other = torch.Generator(), torch.Generator()
    foreign = torch.arange(16, dtype=torch.uint8)  # as long as a CUDA generator's state
    device.set_rng_state(stream, foreign)
    device.set_rng_state(other, foreign)
    assert torch.equal(torch.rand(3, generator=stream), torch.rand(3, generator=other))
    device.set_rng_state(other, foreign + 1)
    assert not torch.equal(torch.rand(3, generator=stream), torch.rand(3, generator=other))


def test_the_average_acts_without_a_trust_region_too() -> None:
    config = {"finetune": {"radius": None}}
    made = Settings.read(recipe.merge(tree("sac_flow"), config))
    found = registry.get("algos", "sac_flow")
    policy = policies.build(found.policy_kind, SPEC, made.networks)
    algo = found(policy, made.critic, finetune_section(made).algo, 0)
    assert algo.acting is not algo.policy
    metrics = algo.update(batch())
    assert "anchor_distance" not in metrics
    actor, anchor = (torch.cat([p.flatten() for p in each.parameters()]).detach() for each in (algo.policy, algo.acting))
    assert 0 < float((actor - anchor).norm()) < 1, "it follows, more slowly"


def test_a_fresh_critic_is_the_seeds(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workshop)
    for algo in ("sac_flow", "qc"):
        path = pretraining.pretrain(tree(algo), f"fresh-{algo}")
        fresh = {"finetune": {"fresh_critic": True, "steps": 30}}
        ends = [checkpoint.load(finetuning.finetune(path, fresh, f"fresh-{algo}-{i}"), "policy checkpoint")["algo"] for i in range(2)]
        assert same(ends[0]["critic"], ends[1]["critic"])
        kept = checkpoint.load(finetuning.finetune(path, {"finetune": {"steps": 30}}, f"kept-{algo}"), "policy checkpoint")["algo"]
        assert not same(kept["critic"], ends[0]["critic"])
