"""`flowft data export`: written in three layouts and read back equal; and what a run collected online."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from flowft import checkpoint
from flowft.cli.main import run
from flowft.data import replayed, source
from flowft.data.export import write
from flowft.data.replay import Replay, RewardTransform
from flowft.data.source import Options
from flowft.data.spec import Dataset, EnvSpec, Episode, Spec
from tests import lerobot_folders

LIFT = EnvSpec("robosuite", "Lift", {"control_freq": 25}, 300, ("robot0_eef_pos", "object"), {"robosuite": "1.5.1"})
ALONE = ["--set", "data.match=off"]  # these numbers are of no simulator
FORMATS = [("robomimic", "out.hdf5"), ("lerobot", "out"), ("minari", "out-v0")]


def demonstrations(last_state: bool = True, shaped: bool = False, degrees: bool = False, env: EnvSpec | None = LIFT) -> Dataset:
    """Three episodes; the second is no success. `shaped`: rewards that do not tell success, one episode ends in a fall."""
    generator = np.random.default_rng(0)
    parts = ("robot0_eef_pos", 3), ("object", 2)  # not in the order of their names
    spec = Spec(parts, (-90.0, -10.0) if degrees else (-1.0, -1.0), (90.0, 20.0) if degrees else (1.0, 1.0))
    episodes = []
    for i, steps in enumerate((5, 4, 6)):
        states = {name: generator.normal(size=(steps + last_state, size)).astype(np.float32) for name, size in parts}
        rewards = generator.normal(size=steps) if shaped else (np.arange(steps) == steps - 1) * (i != 1)
        low, high = spec.action_low, spec.action_high
        actions = generator.uniform(low, high, (steps, 2)).astype(np.float32)
        ends, success = (i == 1, None) if shaped else (i != 1, i != 1)
        episodes.append(Episode(f"demo_{i}", states, actions, rewards.astype(np.float32), ends, success))
    return Dataset("made/here", "test", "made here", "nowhere", "0", spec, env, episodes, rate=None)


def equal(found: Dataset, wanted: Dataset, last_state: bool = True) -> None:
    assert found.spec == wanted.spec and len(found.episodes) == len(wanted.episodes)
    for ours, theirs in zip(found.episodes, wanted.episodes, strict=True):
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        np.testing.assert_array_equal(np.float32(ours.rewards), np.float32(theirs.rewards))
        assert (ours.terminated, ours.success) == (theirs.terminated, theirs.success)
        assert list(ours.observations) == list(theirs.observations)
        for part, values in theirs.observations.items():
            np.testing.assert_array_equal(ours.observations[part], values if last_state else values[: len(theirs)])


@pytest.mark.parametrize(("to", "name"), FORMATS)
@pytest.mark.parametrize("shaped", [False, True])
@pytest.mark.parametrize("degrees", [False, True])
def test_read_back_it_is_equal(tmp_path: Path, to: str, name: str, shaped: bool, degrees: bool) -> None:
    dataset = demonstrations(shaped=shaped, degrees=degrees)
    write(dataset, to, tmp_path / name)
    found = source.load(str(tmp_path / name))
    equal(found, dataset, last_state=to != "lerobot")
    assert found.env == dataset.env
    assert source.load(str(tmp_path / name), Options(observation=("object",))).spec.parts == (("object", 2),)


@pytest.mark.parametrize(("to", "name"), FORMATS[:2])
def test_last_states_that_are_unknown_stay_unknown(tmp_path: Path, to: str, name: str) -> None:
    dataset = demonstrations(last_state=False)
    write(dataset, to, tmp_path / name)
    equal(source.load(str(tmp_path / name)), dataset)


def test_minari_has_a_last_state_always(tmp_path: Path) -> None:
    dataset = demonstrations(last_state=False)
    said = write(dataset, "minari", tmp_path / "out-v0")
    found = source.load(str(tmp_path / "out-v0"))
    assert [len(e) for e in found.episodes] == [5, 3, 6]  # nobody knows where the last action of the cut one led
    assert "last action of 1 episodes is left out" in said[0] and "last state of 2 terminal episodes is repeated" in said[1]
    np.testing.assert_array_equal(found.episodes[1].actions, dataset.episodes[1].actions[:3])


@pytest.mark.parametrize(("to", "name"), FORMATS)
def test_nested_parts_and_no_environment(tmp_path: Path, to: str, name: str) -> None:
    made = demonstrations(env=None)
    names = {"robot0_eef_pos": "policy/joint", "object": "policy/cube"}
    episodes = [replace(e, observations={names[k]: v for k, v in e.observations.items()}) for e in made.episodes]
    dataset = replace(made, episodes=episodes, spec=replace(made.spec, parts=tuple((names[n], size) for n, size in made.spec.parts)))
    write(dataset, to, tmp_path / name)
    found = source.load(str(tmp_path / name))
    equal(found, dataset, last_state=to != "lerobot")
    assert found.env is None and any("--env" in note for note in found.notes)


def test_what_other_programs_look_for_is_there(tmp_path: Path) -> None:
    write(demonstrations(), "robomimic", tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5") as file:
        arguments = json.loads(file["data"].attrs["env_args"])
        assert (arguments["env_name"], arguments["type"], arguments["env_version"]) == ("Lift", 1, "1.5.1")
        assert file["data"].attrs["total"] == 15 and file["data/demo_0"].attrs["num_samples"] == 5
        assert file["data/demo_0/dones"][()].tolist() == [0, 0, 0, 0, 1] and "next_obs/object" in file["data/demo_1"]
    write(demonstrations(), "lerobot", tmp_path / "b")
    info = json.loads((tmp_path / "b/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"]) == ("v3.0", 25, 15)
    assert info["features"]["observation.state"]["names"][:4] == ["robot0_eef_pos.0", "robot0_eef_pos.1", "robot0_eef_pos.2", "object.0"]
    steps = parquet.read_table(tmp_path / "b" / info["data_path"].format(chunk_index=0, file_index=0))
    assert steps.column("index").to_pylist() == list(range(15)) and set(steps.column_names) == set(info["features"])
    stats = json.loads((tmp_path / "b/meta/stats.json").read_text())
    assert len(stats["action"]["mean"]) == 2 and stats["action"]["count"] == [15]
    rows = parquet.read_table(tmp_path / "b/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in rows] == [(0, 5), (5, 9), (9, 15)]


def test_minari_itself_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write(demonstrations(), "minari", tmp_path / "mine/lift-v1")
    dataset = minari.load_dataset("mine/lift-v1")
    assert dataset.total_episodes == 3 and dataset.total_steps == 15
    assert dataset[0].observations["object"].shape == (6, 2)
    assert source.load("minari/mine/lift-v1").steps == 15


# As the user drives it


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    write(demonstrations(), "robomimic", tmp_path / "demos.hdf5")
    return tmp_path / "demos.hdf5"


@pytest.mark.parametrize(("to", "name"), FORMATS)
def test_the_command_line(demos: Path, tmp_path: Path, to: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "with space" / name
    assert run(["data", "export", str(demos), "--to", to, str(out), "--set", "data.limit=2"]) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(out) and "2 episodes, 9 steps" in told.err
    assert run(["data", "check", str(out), *ALONE]) == 0
    assert run(["data", "export", str(demos), "--to", to, str(out)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert run(["data", "export", str(demos), "--to", to, str(out), "--force"]) == 0
    assert len(source.load(str(out)).episodes) == 3
    assert [path.name for path in out.parent.iterdir()] == [name]  # nothing half-written is left


@pytest.mark.parametrize(("to", "name"), FORMATS)
def test_a_path_from_here(demos: Path, tmp_path: Path, to: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["data", "export", "demos.hdf5", "--to", to, name]) == 0 and run(["data", "check", name, *ALONE]) == 0


def test_a_lerobot_folder_as_robomimic(tmp_path: Path) -> None:
    folder = lerobot_folders.write(tmp_path / "arm", outcome=False)
    assert run(["data", "export", str(folder), "--to", "robomimic", str(tmp_path / "arm.hdf5")]) == 0
    with h5py.File(tmp_path / "arm.hdf5") as file:
        np.testing.assert_array_equal(file["data/demo_1/actions"][()], lerobot_folders.actions(1, 4))
    found, before = source.load(str(tmp_path / "arm.hdf5")), source.load(str(folder))
    equal(found, before)
    assert found.rate == 30 and run(["data", "export", str(tmp_path / "arm.hdf5"), "--to", "lerobot", str(tmp_path / "again")]) == 0
    again = source.load(str(tmp_path / "again"))
    equal(again, before)
    assert again.rate == 30


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [(["OUT"], "a dataset and a path", 2), (["DEMOS", "OUT", "--to", "robomimic", "--fps", "10"], "--fps is for --to lerobot", 2),
     (["DEMOS", "OUT", "--set", "seed=1"], "no setting of how data are read", 2), (["nothing.hdf5", "OUT"], "no file 'nothing.hdf5'", 1),
     (["--run", "none", "OUT"], "no run 'none'", 2)],
)  # fmt: skip
def test_mistakes(demos: Path, tmp_path: Path, arguments: list[str], words: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    named = {"OUT": str(tmp_path / "out"), "DEMOS": str(demos)}
    assert run(["data", "export", "--to", "lerobot", *(named.get(word, word) for word in arguments)]) == code
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


# What a run collected


def filled(capacity: int, reward: RewardTransform, episodes: list[Episode], spec: Spec) -> Replay:
    """A replay into which two environments wrote in turn, the first episode still going on."""
    replay = Replay(capacity, spec.observation_dim, spec.action_dim, reward, 0)
    lanes = [
        (episode, torch.from_numpy(spec.flatten(episode.observations)), torch.from_numpy(spec.to_unit(episode.actions)))
        for episode in episodes
    ]
    rows = [replay.add_state(states[0]) for _, states, _ in lanes]
    for t in range(max(len(episode) for episode in episodes)):
        for lane, (episode, states, actions) in enumerate(lanes):
            if t < len(episode):
                ends = episode.terminated and t == len(episode) - 1
                rows[lane] = replay.add_step(rows[lane], actions[t], float(episode.rewards[t]), ends, states[t + 1])
    return replay


@pytest.mark.parametrize("reward", [RewardTransform(1.0, -1.0), RewardTransform(0.1, -0.1), RewardTransform(3.0, 0.0)])
def test_a_replay_is_put_in_sequence_again(reward: RewardTransform) -> None:
    dataset = demonstrations(degrees=True)
    state = filled(100, reward, list(dataset.episodes), dataset.spec).state_dict()
    found = replayed.episodes(state, dataset.spec, reward)
    for ours, theirs in zip(found, dataset.episodes, strict=True):
        np.testing.assert_allclose(ours.actions, theirs.actions, atol=1e-4)
        np.testing.assert_array_equal(ours.rewards, theirs.rewards)
        assert (ours.terminated, ours.success) == (theirs.terminated, theirs.success)
        for part, values in theirs.observations.items():
            np.testing.assert_array_equal(ours.observations[part], values)


def test_a_ring_that_went_round_keeps_what_is_left() -> None:
    dataset = demonstrations()
    state = filled(12, RewardTransform(), list(dataset.episodes), dataset.spec).state_dict()
    found = replayed.episodes(state, dataset.spec, RewardTransform())
    assert sum(len(episode) for episode in found) == int(state["steps"])
    for ours in found:  # each is the end of the episode whose beginning was overwritten
        assert any(np.array_equal(ours.actions, theirs.actions[-len(ours) :]) for theirs in dataset.episodes)


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """A run's folder and checkpoint, as fine-tuning leaves them."""
    monkeypatch.setenv("FLOWFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FLOWFT_CHECKPOINTS", str(tmp_path / "checkpoints"))
    dataset, reward = demonstrations(), RewardTransform(1.0, -1.0)
    state = {"step": 15, "online": filled(100, reward, list(dataset.episodes), dataset.spec).state_dict()}
    checkpoint.save(tmp_path / "runs/lift/state.pt", "run state", state)
    (tmp_path / "runs/lift/recipe.yaml").write_text("stage: finetune\nreward: {scale: 1.0, shift: -1.0}\n")
    env = dataset.env.to_tree() if dataset.env else None
    checkpoint.save(tmp_path / "checkpoints/lift.pt", "policy checkpoint", {"spec": dataset.spec.to_tree(), "env": env})
    return dataset


@pytest.mark.parametrize(("to", "name"), FORMATS)
def test_what_a_run_collected(finished: Dataset, tmp_path: Path, to: str, name: str) -> None:
    assert run(["data", "export", "--run", "lift", "--to", to, str(tmp_path / name)]) == 0
    found = source.load(str(tmp_path / name))
    equal(found, finished, last_state=to != "lerobot")
    assert found.env == LIFT


def test_a_run_without_its_parts(finished: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "export", "--run", "lift", "--to", "lerobot", str(tmp_path / "out")]
    (tmp_path / "checkpoints/lift.pt").rename(tmp_path / "away.pt")
    assert run(command) == 1 and "says the sizes and bounds" in capsys.readouterr().err
    (tmp_path / "runs/lift/state.pt").unlink()
    assert run(command) == 1 and "has no state.pt" in capsys.readouterr().err
    (tmp_path / "runs/lift/recipe.yaml").write_text("stage: pretrain\n")
    assert run(command) == 1 and "collected nothing" in capsys.readouterr().err
