"""The job of control: worlds, advantages, what a policy learns, answers, draws and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gymnasium")

from job_laws import JobLaws
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.errors import ConfigError, DataError
from everstep.networks.policy import AdvantageSection, Policy, PolicySection, advantages, episode_losses
from everstep.runs.recipe_files import load_task
from everstep.runs.worlds import Worlds, WorldSection

SMALL = ("data.updates=4", "data.validated=2", "data.scored=3", "train.batch_size=2", "model.hidden_size=4")
WORLD = '''
"""A corridor: a sign at its begin says which way to turn at its end."""

import numpy as np
from gymnasium.spaces import Box, Discrete


class Corridor:
    length = 4

    def __init__(self):
        self.observation_space, self.action_space = Box(-1, 1, (2,)), Discrete(3)

    def reset(self, seed=None, options=None):
        self.sign = int(np.random.default_rng(seed).integers(2))
        self.place = 0
        return self.seen(), {}

    def seen(self):
        return np.array([2 * self.sign - 1 if self.place == 0 else 0, self.place == self.length], np.float32)

    def step(self, action):
        if self.place < self.length:
            self.place += action == 2
            return self.seen(), -0.02, False, False, {}
        return self.seen(), (1.0 if action == self.sign else -1.0 if action < 2 else -0.02), action < 2, False, {}
'''


def quietly(line: str) -> None:
    del line


class TestLaws(JobLaws):
    job = "control"
    settings = (*SMALL, "data.hidden=[1,3]")
    asked = (["0.1 0.2", "0.0, 0.1"], ["", "0.3 -0.1"])

    @classmethod
    def recipe(cls, folder: Path) -> str:
        return "control-own"


def recipe(folder: Path, world: str = WORLD, more: str = "") -> Path:
    (folder / "worlds.py").write_text(world)
    path = folder / "recipe.yaml"
    path.write_text(
        f"task: control\nseed: 1\ndata:\n  environment: worlds.py:Corridor\n  max_steps: 20\n  updates: 25\n{more}"
        "train:\n  max_epochs: 16\n  patience: 4\n  learning_rate: 0.02\n  threads: 1\n  select: return\n"
    )
    return path


@pytest.mark.parametrize("trace", [0.0, 0.7, 1.0])
def test_advantages_are_their_definition(trace: float) -> None:
    torch.manual_seed(0)
    gamma, lengths, cut = 0.9, torch.tensor([5, 3, 1]), torch.tensor([True, False, True])
    rewards, values = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    rewards = rewards * (torch.arange(5) < lengths[:, None])
    found = advantages(rewards, values, lengths, cut, gamma, trace)
    for row, length in enumerate(lengths.tolist()):
        for t in range(5):
            want = 0.0
            for k in range(t, length):
                ahead = values[row, k + 1] if k + 1 < length or cut[row] else 0
                want += (gamma * trace) ** (k - t) * (rewards[row, k] + gamma * ahead - values[row, k])
            assert float(found[row, t]) == pytest.approx(float(want))
    if trace == 1.0:  # the return, and what is expected after the cut, less what was expected
        whole = sum(gamma**k * rewards[0, k] for k in range(5)) + gamma**5 * values[0, 5]
        assert float(found[0, 0]) == pytest.approx(float(whole - values[0, 0]))


def test_episodes_depend_on_their_seed_and_the_policy_alone() -> None:
    worlds = Worlds(WorldSection(hidden=(1, 3), max_steps=30), None)  # type: ignore[arg-type]
    torch.manual_seed(0)
    policy = Policy(*worlds.spaces, PolicySection(hidden_size=4))
    first, every = worlds.play(policy, (0, 1), 5)
    again, _ = worlds.play(policy, (0, 1), 5)
    other, _ = worlds.play(policy, (0, 2), 5)
    assert torch.equal(first.observations, again.observations)
    assert not torch.equal(first.observations[:, 0], other.observations[:, 0])
    assert first.observations.shape == (5, int(first.lengths.max()) + 1, 2)
    assert every.shape[2] == 4
    assert np.array_equal(every[..., [0, 2]], first.observations.numpy())
    assert first.rewards.sum(1).tolist() == first.lengths.tolist()  # CartPole's reward is 1 a step
    assert not first.cut[first.lengths < 30].any()
    assert first.count == first.rows == 5


def test_a_cut_episode_is_told_from_one_that_ended() -> None:
    worlds = Worlds(WorldSection(max_steps=5), None)  # type: ignore[arg-type]
    batch, _ = worlds.play(None, (0,), 6)
    assert batch.lengths.tolist() == [5] * 6  # no pole falls that soon
    assert batch.cut.all()
    longer, _ = Worlds(WorldSection(), None).play(None, (0,), 6)  # type: ignore[arg-type]
    assert not longer.cut.any()


def test_the_policy_acts_as_it_learns() -> None:
    """Step by step, as it plays, it has the same probabilities as over the whole episode, as it is trained."""
    worlds = Worlds(WorldSection(hidden=(1, 3)), None)  # type: ignore[arg-type]
    torch.manual_seed(0)
    policy = Policy(*worlds.spaces, PolicySection(hidden_size=5, layers=2, cell="LSTM"), scaling=worlds.scaling())
    batch, _ = worlds.play(policy, (0,), 4)
    whole, values = policy(batch.observations, batch.lengths + 1)
    state = policy.initial_state(4)
    for t in range(int(batch.lengths.min())):
        log_p, value, state = policy.advance(batch.observations[:, t], state)
        torch.testing.assert_close(log_p, whole[:, t])
        torch.testing.assert_close(value, values[:, t])
    (loss,) = episode_losses(policy, batch, AdvantageSection())
    assert loss.reported.tolist() == [-float(length) for length in batch.lengths]
    loss.total.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())


def test_only_a_policy_with_memory_learns_a_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    run = es.train(recipe(tmp_path), tmp_path / "run", told.append)
    found = run.evaluate("test")
    assert found["return"] > 0.85
    assert found["loss"] == -found["return"]
    assert "world: worlds.py:Corridor" in told
    blind = es.train(recipe(tmp_path), tmp_path / "blind", quietly, overrides=[
        "model.memory=false", "train.max_epochs=4"])  # fmt: skip
    assert blind.evaluate("test")["return"] < 0.5
    assert all(one["return"] < 0.5 for one in run.task.rivals("test"))  # one may stay where the sign is bad: 0.33
    for sign, action in (("-1", 0), ("1", 1)):
        lines = [f"{sign} 0", "0 0", "0 0", "0 0", "0 1"]
        *_, last = run.predict(lines)
        assert last.record["action"] == action
    drawn = CliRunner().invoke(app, ["look", "run", "--out", "pictures", "--trust-code"])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "pictures" / "episode.png").stat().st_size > 5000
    refused = CliRunner().invoke(app, ["predict", "run", "--trust-code"], input="0 0\n0 0 0\n")
    assert refused.exit_code != 0
    assert refused.stdout.count("\t") == 1
    assert "line 2: expected 2 numbers" in refused.output


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.environment=CartPoll-v1"], "CartPoll-v1.*cannot be made"),
        (["data.environment=Pendulum-v1"], "expected one of several actions"),
        (["data.environment=Blackjack-v1"], "expected observations that are numbers"),
        (["data.hidden=[4]"], "expected numbers below 4"),
        (["data.hidden=[0,1,2,3]"], "got all of them"),
        (["model.dropout=0.5"], "draws no masks"),
        (["objective.discount=1.5"], "discount"),
    ],
)
def test_what_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_task("control-own", settings).prepare()


@pytest.mark.parametrize(
    ("changed", "words"),
    [("-0.02, False", "float('nan'), False"), ("2 * self.sign - 1 if", "float('nan') if")],
)
def test_numbers_that_are_none_are_told(tmp_path: Path, changed: str, words: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"worlds.py:Corridor: an? (reward|observation) is no finite number"):
        load_task(recipe(tmp_path, WORLD.replace(changed, words)), []).prepare()


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ("-0.02, False, False, {}", '-0.02, False, {"cut": 0}', DataError, "expected step to give five values.*got 4"),
        ("Box(-1, 1, (2,))", "Box(-1, 1, (3,))", DataError, "expected observations of 3 numbers.*got one of 2"),
        ("self.action_space =", "self.actions =", ConfigError, "expected .*Corridor to have an action_space"),
    ],
)
def test_worlds_of_another_form_are_told(
    tmp_path: Path, old: str, new: str, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        load_task(recipe(tmp_path, WORLD.replace(old, new)), []).prepare()


def test_actions_have_the_numbers_of_their_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world = WORLD.replace("Discrete(3)", "Discrete(3, start=5)").replace("action ==", "action - 5 ==")
    path = recipe(tmp_path, world.replace("action < 2", "action < 7"))
    task, again = load_task(path, []), load_task(path, [])
    task.prepare()
    task.save(tmp_path)
    again.open(tmp_path)
    (found,) = again.predict(task.model(), ["0 0"])
    assert found.record["action"] in (5, 6, 7)
    assert found.text.startswith(f"{found.record['action']}\t")


def test_a_choice_as_observation_is_one_number_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world = WORLD.replace("Box(-1, 1, (2,))", "Discrete(3)")
    start = world.index("        return np.array(")
    world = world[:start] + "        return (self.place == 0) * self.sign + 2 * (self.place == self.length)\n" + world[
        world.index("\n    def step"):]  # fmt: skip
    task = load_task(recipe(tmp_path, world), [])
    task.prepare()
    assert task.spaces == (3, 3)


def test_a_world_without_an_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("everstep.runs.worlds.ENDLESS", 50)
    path = recipe(tmp_path, WORLD.replace("action < 2, False", "False, False"))
    with pytest.raises(DataError, match=r"has not ended after 50 actions; set data\.max_steps"):
        load_task(path, ["data.max_steps=null"]).prepare()
    load_task(path, ["data.max_steps=60"]).prepare()


def test_a_world_that_takes_no_seed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world = WORLD.replace("def reset(self, seed=None, options=None):", "def reset(self):").replace(
        "rng(seed)", "rng(0)"
    )
    with pytest.raises(ConfigError, match=r"expected reset\(seed=…\) of worlds.py:Corridor"):
        load_task(recipe(tmp_path, world), []).prepare()
    taking = WORLD.replace("seed=None, options=None", "**how").replace("rng(seed)", "rng(how['seed'])")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    load_task(recipe(tmp_path / "other", taking), []).prepare()
