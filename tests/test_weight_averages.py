"""`everstep average`: a run of the mean of the last checkpoints of another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.errors import CheckpointError, ConfigError, RunError
from everstep.learn import checkpoint
from everstep.runs.card import read_environment
from everstep.runs.pictures import draw_learning
from everstep.runs.training import resume
from everstep.runs.weight_averages import average
from everstep.storage.run_lock import RunLock

STEPS = ["train.max_steps=4", "train.max_epochs=null", "train.max_minutes=null", "train.checkpoint_every=1"]
SMALL = [*STEPS, "train.keep_last=3", "train.threads=1", "train.batch_size=4", "model.hidden_size=6"]
TEXT = ["data.valid=null", "data.test=null", "model.embedding_size=4", "objective.k1=8"]


def quietly(line: str) -> None:
    del line


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERSTEP_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("EVERSTEP_COMPILER", "none")
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    """A language model of 4 steps, of which the last 3 checkpoints are kept."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "play.txt").write_text("What say you to that? I say nothing, and so it goes.\n" * 20)
    settings = [f"data.train={folder / 'play.txt'}", *TEXT, *SMALL, "train.learning_rate=0.1"]
    return es.train("text-chars", folder / "run", quietly, overrides=settings)


def copied(run: es.Run, folder: Path) -> Path:
    return Path(shutil.copytree(run.path, folder / "run"))


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))


def test_the_weights_are_the_mean_of_the_last_checkpoints(run: es.Run, tmp_path: Path) -> None:
    said: list[str] = []
    found = average(run.path, 2, tmp_path / "mean", log=said.append)
    held = [load_file(folder / "model.safetensors") for folder in checkpoints(run.path)[-2:]]
    for name, tensor in load_file(tmp_path / "mean" / "model.safetensors").items():
        assert not torch.equal(held[0][name], held[1][name])
        torch.testing.assert_close(tensor, (held[0][name] + held[1][name]) / 2)
    again = es.load(tmp_path / "mean")
    assert again.evaluate("valid")["loss"] == pytest.approx(found.evaluate("valid")["loss"])
    assert said[0].startswith("valid, loss: ")
    assert f"{run.task.validate(run.model):.4f} with the run's weights" in said[0]
    assert f"{found.task.validate(found.model):.4f} with the average" in said[0]
    assert read_environment(tmp_path / "mean")["average_of"]["steps"] == [3, 4]
    card = (tmp_path / "mean" / "README.md").read_text()
    assert f"- weights: the mean of the checkpoints of {run.path} at the steps 3, 4" in card
    assert len(again.generate("What", length=5, seed=1)) == 9


def test_one_can_train_on_from_an_average(run: es.Run, tmp_path: Path) -> None:
    mean = average(run.path, 3, tmp_path / "mean", log=quietly)
    settings = [f"data.train={run.recipe.data.train}", *TEXT, *SMALL]  # type: ignore[attr-defined]
    es.train("text-chars", tmp_path / "on", quietly, overrides=settings, start_from=mean.path)
    with pytest.raises(RunError, match=r"the checkpoints to go on from are gone"):
        resume(mean.path, quietly)


def test_an_average_has_pictures_but_no_curves(run: es.Run, tmp_path: Path) -> None:
    mean = average(run.path, 2, tmp_path / "mean", log=quietly)
    names = [path.name for path, _ in draw_learning(mean, tmp_path)]
    assert names == ["surprise.png", "surprise.html"]
    assert [path.name for path, _ in draw_learning(run, tmp_path)] == ["curves.png", *names]


def test_an_average_of_the_working_folder_is_beside_it(
    run: es.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(run, tmp_path)
    monkeypatch.chdir(path)
    assert average(".", 2, log=quietly).path == tmp_path / "run-average-2"
    monkeypatch.chdir(path / "checkpoints")
    assert average("..", 3, log=quietly).path == tmp_path / "run-average-3"


def test_averages_of_the_training_are_averaged(tmp_path: Path) -> None:
    """With an exponential average, validation saw that: checkpoints hold it apart from the raw weights."""
    (tmp_path / "play.txt").write_text("What say you to that? I say nothing, and so it goes.\n" * 20)
    settings = [f"data.train={tmp_path / 'play.txt'}", *TEXT, *SMALL, "train.averaging=ema", "train.learning_rate=0.1"]
    run = es.train("text-chars", tmp_path / "run", quietly, overrides=settings)
    mean = average(run.path, 2, log=quietly)
    assert mean.path == tmp_path / "run-average-2"
    held = [load_file(folder / "average.safetensors") for folder in checkpoints(run.path)[-2:]]
    for name, tensor in held[0].items():
        torch.testing.assert_close(dict(mean.model.named_parameters())[name].detach(), (tensor + held[1][name]) / 2)


def test_too_few_checkpoints_are_said(run: es.Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"expected 4 checkpoints, but .* has 3 \(train\.keep_last=3\)"):
        average(run.path, 4, tmp_path / "mean", log=quietly)
    assert not (tmp_path / "mean").exists()
    with pytest.raises(ConfigError, match=r"expected at least 2 checkpoints"):
        average(run.path, 1, tmp_path / "mean", log=quietly)


def spoiled(folder: Path, tensors: dict[str, Tensor]) -> None:
    held = checkpoint.load(folder)
    shutil.rmtree(folder)
    checkpoint.save(folder, replace(held, tensors={**held.tensors, "model": tensors}))


def test_weights_that_cannot_be_averaged_are_said(run: es.Run, tmp_path: Path) -> None:
    path = copied(run, tmp_path)
    last = checkpoints(path)[-1]
    tensors = checkpoint.load(last).tensors["model"]
    name, tensor = next(iter(tensors.items()))
    spoiled(last, {**tensors, name: torch.full_like(tensor, torch.nan)})
    with pytest.raises(RunError, match=rf"average: checkpoint .*{last.name}: {name} is not finite"):
        average(path, 2, log=quietly)
    spoiled(last, {**tensors, name: tensor[:1]})
    with pytest.raises(RunError, match=rf"'{name}' of checkpoint .* in the model"):
        average(path, 2, log=quietly)
    spoiled(last, {other: tensor for other, tensor in tensors.items() if other != name})
    with pytest.raises(RunError, match=rf"lacks '{name}': it is of another model"):
        average(path, 2, log=quietly)
    (last / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"0 bytes"):
        average(path, 2, log=quietly)
    with RunLock(path), pytest.raises(RunError, match=r"is being trained by another process"):
        average(path, 2, log=quietly)
    assert not path.with_name("run-average-2").exists()


def test_checkpoints_of_another_run_are_refused(run: es.Run, tmp_path: Path) -> None:
    path = copied(run, tmp_path)
    last = checkpoints(path)[-1]
    held = checkpoint.load(last)
    shutil.rmtree(last)
    checkpoint.save(last, replace(held, data={**held.data, "identity": {**held.data["identity"], "run": "other"}}))
    with pytest.raises(RunError, match=r"is of another run than"):
        average(path, 2, log=quietly)


def test_data_that_is_gone_is_said(run: es.Run, tmp_path: Path) -> None:
    path = copied(run, tmp_path)
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("play.txt", "gone.txt"))
    said: list[str] = []
    average(path, 2, tmp_path / "mean", log=said.append)
    assert said[0].startswith("note: the average was not compared with the run's own weights: ")
    assert said[1].startswith("note: valid was not scored: ")
    assert "It was scored on no held-out data" in (tmp_path / "mean" / "README.md").read_text()


def test_the_command(run: es.Run, tmp_path: Path) -> None:
    def cli(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["average", *map(str, words)])
        return done.exit_code, done.output

    code, output = cli(run.path, "--last", 3, "--out", tmp_path / "mean")
    assert code == 0
    assert f"The average is in {tmp_path / 'mean'}" in output
    assert cli(run.path, "--last", 3, "--out", tmp_path / "mean")[1].count("exists and is never overwritten") == 1
    assert "expected a whole number ≥ 2" in cli(run.path, "--last", 1)[1]
    assert "does not exist" in cli(tmp_path / "nowhere")[1]


def test_code_of_the_run_is_not_executed_without_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "play.txt").write_text("What say you to that? I say nothing.\n" * 20)
    (tmp_path / "mine.py").write_text("import everstep as es\n\n\nclass Mine(es.MinimalRNN):\n    pass\n")
    settings = ["data.train=play.txt", *TEXT, *SMALL, "model.cell=mine.py:Mine"]
    es.train("text-chars", "run", quietly, overrides=settings)
    with pytest.raises(RunError, match=r"--trust-code|trust_code"):
        average("run", 2, log=quietly)
    assert average("run", 2, trust_code=True, log=quietly).path == Path("run-average-2")
    with pytest.raises(RunError, match=r"--trust-code|trust_code"):
        es.load("run-average-2")
