"""Wrong use that is told at once: before any training, and in words instead of a failure deep inside."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import learn_toy as toy
import pytest
import torch

import everstep as es
from everstep.cli.train_verb import start
from everstep.errors import ConfigError, DataError, RunError
from everstep.runs.recipe_files import load_task
from everstep.tasks.classification import Classification

TINY = ["model.embedding_size=4", "model.hidden_size=4", "train.max_steps=2", "data.min_count=1"]


def quietly(_: str) -> None:
    pass


def texts(folder: Path, name: str = "texts.tsv") -> Path:
    rows = [f"{'good' if i % 2 else 'bad'} film {i}\t{'yes' if i % 2 else 'no'}\n" for i in range(40)]
    (folder / name).write_text("text\tlabel\n" + "".join(rows))
    return folder / name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    folder = tmp_path_factory.mktemp("misuse")
    (folder / "letters.txt").write_text("to be or not to be\n" * 40)
    overrides = [f"data.train={folder / 'letters.txt'}", *TINY]
    return es.train("text-words", folder / "run", quietly, overrides=overrides)


@pytest.mark.parametrize("name", ["acuracy", "valid.f1"])
def test_a_measure_to_select_by_that_there_is_not_is_refused_before_training(name: str, tmp_path: Path) -> None:
    given = [f"data.train={texts(tmp_path)}", *TINY, f"train.select={name}"]
    told: list[str] = []
    shown = name.removeprefix("valid.")
    with pytest.raises(ConfigError, match=rf"select: expected a measure .*\(loss, accuracy, macro_f1\); got {shown}"):
        es.train("classify-own", tmp_path / "run", told.append, overrides=given)
    assert not (tmp_path / "run").exists()
    assert not any("step " in line for line in told)


def test_the_try_of_a_measure_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [f"data.train={texts(tmp_path)}", *TINY, "train.select=accuracy", "train.select_best=highest"]
    validations: list[bool] = []
    weights: list[bytes] = []
    validate = Classification.validate

    def counted(self: Any, model: Any) -> Any:
        validations.append(model.training)
        torch.rand(3)
        return validate(self, model)

    monkeypatch.setattr(Classification, "validate", counted)
    known: frozenset[str]
    for known in (frozenset({"accuracy"}), frozenset()):  # told by the job, and found by a try
        monkeypatch.setattr(Classification, "scores", known)
        out = tmp_path / f"run-{len(known)}"
        es.train("classify-own", out, quietly, overrides=given)
        weights.append((out / "model.safetensors").read_bytes())
    assert validations == [False] * 3  # the first run's one, the try, the second run's one
    assert weights[0] == weights[1]


def test_whether_the_lowest_or_the_highest_is_best_is_asked_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classification, "scores", frozenset())
    given = [f"data.train={texts(tmp_path)}", *TINY, "train.select=accuracy"]
    with pytest.raises(ConfigError, match=r"select_best: expected lowest or highest"):
        es.train("classify-own", tmp_path / "run", quietly, overrides=given)
    assert not (tmp_path / "run").exists()


def test_a_run_is_scored_on_other_data_where_that_of_its_training_is_gone(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    es.train("classify-own", here / "run", quietly, overrides=[f"data.train={texts(here)}", *TINY])
    shutil.move(here / "run", tmp_path / "moved")
    shutil.rmtree(here)
    moved = es.load(tmp_path / "moved")
    assert 0 <= moved.evaluate(data=[str(texts(tmp_path, "other.tsv"))])["accuracy"] <= 1
    with pytest.raises(DataError, match=r"--data: .*none\.tsv"):
        moved.evaluate(data=[str(tmp_path / "none.tsv")])
    with pytest.raises(DataError, match=r"texts\.tsv"):  # the data of its own that are gone
        moved.evaluate()


def test_a_folder_within_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot make a run there \(Not a directory\)"):
        start(load_task("classify-own", [f"data.train={texts(tmp_path)}", *TINY]), tmp_path / "file" / "run")


@pytest.mark.parametrize("overrides", ["train.max_steps=2", {"train.max_steps": 2}])
def test_overrides_are_a_list(overrides: Any, tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match=r"overrides: expected a list, such as \['train\.max_steps=2'\]; got (str|dict)"
    ):
        es.train("classify-own", tmp_path / "run", quietly, overrides=overrides)


@pytest.mark.parametrize("prompt", [3, None, b"to be", ["to"]])
def test_a_prompt_is_a_text(prompt: Any, run: es.Run) -> None:
    with pytest.raises(TypeError, match=rf"generate: prompt should be a text, but is {type(prompt).__name__}"):
        run.generate(prompt=prompt)


@pytest.mark.parametrize("settings", [None, {"max_steps": 2}])
def test_settings_are_fit_settings(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"fit: settings should be a FitSettings.*, but is (NoneType|dict)"):
        es.fit(toy.Toy(), toy.objective, toy.Lanes(), settings, out=tmp_path)
