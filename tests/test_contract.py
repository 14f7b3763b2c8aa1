"""What every algorithm promises (flowft/algos/base.py), built in or a plug-in: no loop has to ask which one it has."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowft import checkpoint, recipe, registry
from flowft.algos import base as algos
from flowft.algos.base import Algorithm, ThroughRollout
from flowft.cli import main
from flowft.errors import UsageError
from flowft.policies import policy as policies
from flowft.train.loops import Finetune, Scratch
from flowft.train.settings import Settings, finetune_section, pretrain_section, train_section

from .helpers import NETS, SPEC, batch, same
from .test_cli import TINY, write_hopper

PLUG_IN = "advantage_weighted"
SOURCE = '''
"""A whole algorithm of somebody else's: flow matching weighted by exp(advantage), with the critic of an actor-critic."""

from dataclasses import dataclass

import torch

from flowft.algos import actor_critic
from flowft.algos.actor_critic import ActorCritic
from flowft.algos.flow_bc import flow_matching_loss, noise_and_time
from flowft.algos.optim import step


@dataclass(frozen=True)
class Config(actor_critic.Config):
    sharpness: float = 3.0  # of the weights


class AdvantageWeighted(ActorCritic):
    config_type = Config
    policy_kind = "flow"
    defaults = {"critic": {"ensemble": 3}}

    def critic_loss(self, batch):
        with torch.no_grad():
            after = self.policy.sample(batch.next_observation, *self.policy.draw(len(batch.next_observation), self.stream))
            value = self.target_critic(self.policy.normalizer(batch.next_observation), after.action).amin(dim=0)
        return self.temporal_difference(batch, self.q(batch), value)

    def update_actor(self, batch, allowed=None):
        with torch.no_grad():
            q = self.q(batch).amin(dim=0)
            weight = (self.config.sharpness * (q - q.mean())).exp().clamp(max=10.0)
        weighted = batch._replace(valid=batch.valid * weight.unsqueeze(-1))
        loss = flow_matching_loss(self.policy, weighted, *noise_and_time(self.policy, len(q), self.stream))
        return {"flow_matching_loss": loss.detach(), "actor_grad_norm": step(self.actor_optimizer, loss, allowed=allowed)}
'''
EVERY = [*registry.names("algos"), PLUG_IN]
CASE = pytest.mark.parametrize("name", EVERY)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installed package that registers the plug-in, and one that registers something else as an algorithm."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "their_algorithms.py").write_text(SOURCE)
    info = folder / "their_algorithms-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-algorithms\nVersion: 1.0\n")
    lines = f"{PLUG_IN} = their_algorithms:AdvantageWeighted\nno_algorithm = their_algorithms:Config\n"
    (info / "entry_points.txt").write_text(f"[flowft.algos]\n{lines}")
    return folder


@pytest.fixture(autouse=True)
def installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(package))


def made(name: str, seed: int = 0, **knobs: Any) -> Algorithm:
    """As a plan builds it, with small networks."""
    found = algos.named(name)
    policy_section = {"network": "mlp", "net": NETS["mlp"], "horizon": 3, "candidates": 4}
    sizes = {"policy": policy_section, "critic": {"hidden": [16]}, "actor": {"hidden": [16]}}
    stage = "train" if found.from_scratch else "finetune"
    settings = Settings.read(recipe.merge({"algo": name}, sizes, {stage: knobs}))
    config = (train_section if found.from_scratch else finetune_section)(settings).algo
    torch.manual_seed(seed)
    policy = policies.build(found.policy_kind, SPEC, settings.networks)
    policy.normalizer.fit(np.full(5, 0.1), np.full(5, 2.0))
    return found(policy, settings.critic, config, seed)


def steps(algo: Algorithm) -> dict[str, Callable[..., Any]]:
    """What a loop calls."""
    online = {"update": algo.update, "update without the actor": lambda data: algo.update(data, actor=False)}
    return online if algo.from_scratch else {"clone": algo.clone, "regularise": algo.regularise, **online}


def learned(algo: Algorithm) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in algo.state_dict().items() if key != "rng"}


def other(algo: Algorithm) -> Algorithm:
    """Another one of the same settings, with other weights and another stream."""
    torch.manual_seed(99)
    policy = copy.deepcopy(algo.policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(std=0.1)
    critic = Settings.read({"algo": next(n for n in EVERY if algos.named(n) is type(algo)), "critic": {"hidden": [16]}}).critic
    return type(algo)(policy, critic, algo.config, 99)


@CASE
def test_the_facts_that_the_loops_ask_for_are_there(name: str) -> None:
    found = algos.named(name)
    assert dataclasses.is_dataclass(found.config_type)
    assert issubclass(found.config_type, algos.Config)
    assert found.policy_kind in registry.names("policies")
    Settings.read({"algo": name})  # its defaults are settings that there are
    algo = made(name)
    assert algo.acting.kind == registry.get("policies", found.policy_kind).kind
    assert algo.acting.spec == algo.policy.spec
    assert not isinstance(algo, ThroughRollout) or algo.actor_loss(batch())[0].requires_grad
    for part in ("actor", "critic"):
        for setting, value in algo.config.slower(part).items():  # type: ignore[arg-type]
            now = getattr(algo.config, setting)
            assert now is None or value < now


@CASE
def test_every_step_gives_finite_losses_and_changes_what_it_should(name: str) -> None:
    for kind in steps(made(name)):
        algo = made(name)
        before = learned(algo)
        metrics = steps(algo)[kind](batch())
        assert all(bool(torch.isfinite(value).all()) and not value.requires_grad for value in metrics.values()), kind
        changed = {key for key, value in learned(algo).items() if not same(value, before[key])}
        assert changed, kind
        if kind == "update without the actor" and algo.critic is not None:
            assert not {"actor_optimizer", "log_alpha"} & changed
        if algo.every_update_acts:
            assert "policy" in changed


@CASE
def test_saved_and_loaded_it_goes_on_with_the_same_numbers(name: str, tmp_path: Path) -> None:
    algo = made(name)
    calls = list(steps(algo))
    data = [batch(8 + i) for i in range(2 * len(calls))]
    for kind, each in zip(calls, data, strict=False):
        steps(algo)[kind](each)
    checkpoint.save(tmp_path / "state.pt", "state", algo.state_dict())
    again = other(algo)
    again.load_state_dict({k: v for k, v in checkpoint.load(tmp_path / "state.pt", "state").items() if k not in ("format", "kind")})
    assert same(again.state_dict(), algo.state_dict())
    for kind, each in zip(itertools.cycle(calls), data[len(calls) :], strict=False):
        mine, theirs = steps(algo)[kind](each), steps(again)[kind](each)
        assert same(mine, theirs), kind
    assert same(again.state_dict(), algo.state_dict())


@CASE
@pytest.mark.parametrize("column", ["observation", "action", "reward"])
def test_a_loss_that_is_not_finite_changes_nothing(name: str, column: str) -> None:
    clean = batch()
    spoilt = getattr(clean, column).clone()
    spoilt.flatten()[0] = float("nan")
    poisoned = clean._replace(**{column: spoilt})
    if column != "action":
        poisoned = poisoned._replace(next_observation=poisoned.next_observation * float("nan"))
    for kind in steps(made(name)):
        algo = made(name)
        algo.update(clean)
        before = learned(algo)
        metrics = steps(algo)[kind](poisoned)
        bad = [key for key, value in metrics.items() if key.endswith(("_loss", "_grad_norm")) and not torch.isfinite(value).all()]
        after = learned(algo)
        untouched = {key for key in before if same(before[key], after[key])}
        if column == "reward" and algo.critic is None:
            continue  # plain cloning looks at no reward
        assert bad, kind
        if column == "reward":  # cloning's actor may go on, the critic may not
            assert {key for key in before if "critic" in key} <= untouched | ({"policy"} if algo.every_update_acts else set()), kind
        else:
            assert untouched == set(before), (kind, set(before) - untouched)


@CASE
def test_what_is_taken_over_is_what_the_stage_before_made(name: str) -> None:
    if algos.named(name).from_scratch:
        pytest.skip("it has no stage before it")
    first = made(name)
    for _ in range(3):
        first.clone(batch())
    state = first.state_dict()
    for critic, optimizers in itertools.product((False, True), repeat=2):
        second = other(first)
        second.policy.load_state_dict(first.policy.state_dict())
        second.load_pretrained(state, critic=critic and first.critic is not None, optimizers=optimizers)
        taken = second.state_dict()
        if first.critic is not None:
            assert same(taken["critic"], state["critic"]) == critic
            assert same(taken["target_critic"], state["target_critic"]) == critic
        moments = [key for key in state if key.endswith("optimizer") and key != "alpha_optimizer" and (critic or key != "critic_optimizer")]
        for key in moments:
            assert same(taken[key]["state"], state[key]["state"]) == optimizers, key


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contract")
    write_hopper(folder / "hopper.hdf5")
    return folder


@CASE
def test_what_acts_is_what_is_published(name: str, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the stages, as a user has it: the checkpoint's policy is the acting one of the state that was saved with it."""
    from flowft.train import finetune, pretrain, scratch

    monkeypatch.chdir(workshop)
    found = algos.named(name)
    sizes = {"actor": {"hidden": [16]}, "policy": {"candidates": 4}}
    small: recipe.Tree = recipe.merge(TINY, sizes, {"algo": name, "eval": {"episodes": 1, "every": 0}})
    if found.from_scratch:
        tree = {key: value for key, value in small.items() if key not in ("dataset", "pretrain", "finetune")}
        path = scratch.train({**tree, "train": {"steps": 40, "random_steps": 15, "batch_size": 16}}, f"alone-{name}")
        stages = [path]
    else:
        small["finetune"] |= {"steps": 40, "start_updates": 10, "start_actor": 12}
        small["pretrain"] |= {"evaluate": False, "regularised_updates": 3}
        cloned = pretrain.pretrain(small, f"clone-{name}")
        stages = [cloned, finetune.finetune(cloned, {}, f"online-{name}")]
    for path in stages:
        content = checkpoint.load(path, "policy checkpoint")
        settings = recipe.build(Settings, content["recipe"], "")
        section = {"pretrain": pretrain_section, "finetune": finetune_section, "train": train_section}[content["stage"]](settings)
        policy = policies.build(found.policy_kind, policies.from_checkpoint(content).spec, settings.networks)
        algo = found(policy, settings.critic, section.algo, settings.seed)
        algo.load_state_dict(content["algo"])
        assert same(dict(algo.acting.state_dict()), content["policy"])
        saved = checkpoint.load(workshop / "runs" / path.stem / "state.pt", "run state")
        assert same(saved["algo"], content["algo"]), "and the state beside it is of the same moment"


def test_a_plug_in_goes_the_whole_way_through_the_command_line(workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(workshop)
    import yaml

    tiny = recipe.merge(TINY, {"algo": PLUG_IN, "finetune": {"steps": 40, "sharpness": 1.0}, "eval": {"episodes": 1, "every": 0}})
    (workshop / "theirs.yaml").write_text(yaml.safe_dump(tiny))
    assert main.run(["pretrain", "--recipe", "theirs.yaml", "--name", "theirs"]) == 0
    assert main.run(["finetune", "--ckpt", "theirs"]) == 0
    content = checkpoint.load(workshop / "checkpoints" / "theirs-finetuned.pt", "policy checkpoint")
    assert (content["recipe"]["algo"], content["recipe"]["critic"]["ensemble"]) == (PLUG_IN, 3)
    assert main.run(["pretrain", "--recipe", "theirs.yaml", "--set", "pretrain.sharpnes=1", "--name", "x"]) == 2
    assert "did you mean 'sharpness'?" in capsys.readouterr().err


def test_a_plug_in_that_is_no_algorithm_is_said(capsys: Any) -> None:
    with pytest.raises(UsageError, match="the plug-in algo 'no_algorithm' is .*Config.* does not derive from flowft.algos.base.Algorithm"):
        algos.named("no_algorithm")
    with pytest.raises(UsageError, match="did you mean 'sac_flow'"):
        algos.named("sac_flo")


def test_the_online_loops_share_what_they_promise() -> None:
    for loop in (Finetune(), Scratch()):
        assert loop.start_updates >= 0
        assert loop.start_actor >= 0
        assert loop.FREE[0].endswith(".steps")
