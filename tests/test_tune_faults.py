"""Studies whose processes, files, memory or data fail, and what trials have in common."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from tuned_runs import RECIPE, given, tuned, written
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.errors import DataError
from everstep.lab.tuned_keys import Range
from everstep.lab.tuning import tune
from everstep.runs import training
from everstep.runs.recipe_files import load_recipe, load_task, to_yaml

pytest.importorskip("optuna", reason="optuna is not installed")
from everstep.lab.study_journal import JOURNAL, StudyJournal

pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("text"))


def test_a_torn_line_of_a_killed_process_does_not_harm_those_that_write_on(tmp_path: Path) -> None:
    keys = [Range("a", 0, 1)]
    one, other = StudyJournal(tmp_path, False, 5), StudyJournal(tmp_path, False, 5)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code":8,"tri')
    with one.taken(keys, 2, 1) as trial:
        assert trial is not None
        assert len(other.study.trials) == 1
        one.study.tell(trial, 0.5)
    assert StudyJournal(tmp_path, False, 5).study.best_value == 0.5


def test_a_trial_that_ends_as_another_process_looks_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [Range("a", 0, 1)]
    one, other = StudyJournal(tmp_path, False, 5), StudyJournal(tmp_path, False, 5)
    held = ExitStack()
    first = held.enter_context(one.taken(keys, 2, 1))
    assert first is not None
    claimed = other._claimed

    def claimed_late(claims: Any, number: int) -> bool:
        if number == first.number:
            one.study.tell(first, 0.5)
            held.close()
        return claimed(claims, number)

    monkeypatch.setattr(other, "_claimed", claimed_late)
    with other.taken(keys, 2, 1) as second:
        assert second is not None
        assert second.number == 1


def test_trials_are_validated_on_the_same_examples(tmp_path: Path) -> None:
    rows = [f"thing {number} is {('bad', 'good')[number % 2]}\t{number % 2}\n" for number in range(60)]
    (tmp_path / "mine.tsv").write_text("text\tlabel\n" + "".join(rows))
    small = ["model.hidden_size=4", "model.embedding_size=4", "train.max_steps=2", "train.max_epochs=null"]
    keys = [f"data.train={tmp_path / 'mine.tsv'}", *small, "train.threads=1", "train.learning_rate=0.01,0.1"]
    for more, seeds in ([], [1, 1]), ([f"data.valid={tmp_path / 'mine.tsv'}"], [1, 2]):
        out = tmp_path / f"study{len(more)}"
        for _ in range(2):  # also when it goes on
            _, found = tune("classify-own", out, print, keys=[*keys, *more], trials=2)
        runs = [es.load(out / record["run"]) for record in found]
        assert [run.recipe.seed for run in runs] == seeds
        assert len({run.task.digest("valid") for run in runs}) == 1


def test_what_the_data_or_the_memory_refuses_ends_nothing(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tuned(text, tmp_path / "large", "train.batch_size=4,100000", trials=5, unpruned=5)
    for record in found:
        assert record["outcome"] == ("refused" if record["values"]["train.batch_size"] == "100000" else "trained")
    assert {record["outcome"] for record in found} == {"refused", "trained"}
    assert any("train.batch_size=100000 needs" in (record["reason"] or "") for record in found)
    none = ["train.batch_size=90000,100000", "--trials", "1", "--json", "--out", str(tmp_path / "none")]
    shown = CliRunner().invoke(app, ["tune", RECIPE, *given(text, *none)])
    assert shown.exit_code == 2
    assert json.loads(shown.stdout)["best"] is None
    assert "no trial of" in shown.stderr
    copy = tmp_path / "copy.txt"
    copy.write_text(text.read_text())
    train = training.train

    def gone(*given: Any, **more: Any) -> Any:
        copy.unlink()
        return train(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train", gone)
        with pytest.raises(DataError):
            tuned(copy, tmp_path / "gone", trials=1)
    copy.write_text(text.read_text())
    assert [record["outcome"] for record in tuned(copy, tmp_path / "gone", trials=1)] == ["trained"]

    def full(*given: Any, **more: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "train", full)
    (record,) = tuned(text, tmp_path / "full", trials=1)
    assert (record["outcome"], record["reason"]) == ("refused", "the memory of the device does not suffice")


def test_a_trial_whose_folder_was_deleted_keeps_its_place(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    before = tuned(text, out, trials=2)
    shutil.rmtree(out / "trial-0000")
    assert [record["value"] for record in tuned(text, out, trials=2)] == [record["value"] for record in before]


OWN = """
import torch
import everstep as es
from torch import nn
class Mine(es.Cell):
    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.linear = nn.Linear(input_size + hidden_size, hidden_size)
    def initial_state(self, batch, like):
        return like.new_zeros(batch, self.output_size)
    def step(self, x, state):
        h = self.linear(torch.cat([x, state], 1)).tanh()
        return h, h
"""


def test_the_recipe_of_the_best_can_be_trained_elsewhere(text: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.py").write_text(OWN)
    recipe = tmp_path / "mine" / "mine.yaml"
    recipe.write_text(to_yaml(load_recipe(RECIPE, given(text, "train.threads=null"))).replace("LSTM", "own.py:Mine", 1))
    study = ["--out", str(tmp_path / "study"), "--trials", "1", "--workers", "2"]
    shown = CliRunner().invoke(app, ["tune", str(recipe), "model.hidden_size=4..8", *study])
    assert shown.exit_code == 0, shown.output
    trial = tmp_path / "study" / "trial-0000"
    assert f"train {trial / 'config.yaml'} train.max_steps=… --out" in shown.output
    assert shown.output.rstrip().endswith("--trust-code")
    assert load_task(trial / "config.yaml", trust_code=True).code.digests
    cores = max(1, (os.cpu_count() or 1) // 2)
    assert f"threads: {cores}\n" in (trial / "config.yaml").read_text()
    assert "threads: null\n" in (tmp_path / "study" / "best.yaml").read_text()
