"""The job `classification`: what it learns, says, counts, draws and refuses."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_laws import JobLaws
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data.text.words import words
from everstep.errors import ConfigError, DataError
from everstep.learn.progress import Units
from everstep.look.confusion import draw_confusion
from everstep.measures import class_measures
from everstep.networks import class_pictures
from everstep.networks.answers import OneOf
from everstep.networks.classifying import ClassSection, class_losses, measured_classes, to_learn, to_score
from everstep.networks.sequence_classifier import ClassifierSection, SequenceClassifier
from everstep.runs.recipe_files import load_task

SMALL = (
    "model.embedding_size=8",
    "model.hidden_size=8",
    "train.batch_size=8",
    "train.max_epochs=1",
    "train.learning_rate=0.01",
)


def quietly(line: str) -> None:
    del line


def recipe(folder: Path, train: str | Path, extra: str = "") -> Path:
    """A recipe of few keys."""
    path = folder / "recipe.yaml"
    path.write_text(f"task: classification\ndata:\n  train: {train}\n{extra}train:\n  max_epochs: 1\n  threads: 1\n")
    return path


def texts(folder: Path, rows: list[tuple[str, str]], name: str = "texts.tsv") -> Path:
    """A file of texts with their classes."""
    path = folder / name
    path.write_text("".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows]))
    return path


ROWS = [(f"{word} thing number{number % 7}", label) for number in range(20) for word, label in
        (("good", "pos"), ("bad", "neg"), ("so so", "none of both"))]  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return recipe(tmp_path, texts(tmp_path, ROWS))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    """A classifier of three classes that has learned them."""
    folder = tmp_path_factory.mktemp("classes")
    texts(folder, ROWS[:9], "test.tsv")
    path = recipe(folder, texts(folder, ROWS))
    settings = (*SMALL[:3], "train.max_epochs=6", "train.learning_rate=0.05", f"data.test={folder}/test.tsv")
    return es.train(path, folder / "run", quietly, overrides=settings)


# ------------------------------------------------------------------------------------------------------------ learning


@pytest.mark.parametrize("read_out", ["last", "mean", "max", "sum", "attention"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_one_batch_is_learned_by_heart(read_out: Any, bidirectional: bool) -> None:
    section = ClassifierSection(embedding_size=8, hidden_size=8, read_out=read_out, bidirectional=bidirectional)
    model = SequenceClassifier(20, OneOf("abc"), section)
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 20, length) for length in (1, 2, 5, 9, 9, 12)]
    labels = np.array([0, 1, 2, 0, 1, 2])
    (batch,) = [to_score(sequences, labels).batch(0, 0)]
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        (loss,) = class_losses(model, batch, None)
        optimizer.zero_grad()
        loss.total.mean().backward()
        optimizer.step()
    measured = measured_classes(model, to_score(sequences, labels))
    assert measured.accuracy == 1
    assert measured.nats is not None
    assert measured.nats < 0.1


def test_it_beats_the_majority_and_what_training_says_is_what_eval_says(run: es.Run) -> None:
    scores = run.evaluate("valid")
    (majority,) = [rival for rival in run.rivals("valid") if rival["name"] == "majority class"]
    assert majority["accuracy"] == pytest.approx(1 / 3)
    assert scores["accuracy"] == 1
    written = json.loads((run.path / "scores.json").read_text())
    assert {**written["test"], "rivals": 0} == {**run.evaluate("test"), "rivals": 0}


@pytest.mark.parametrize("unit", ["words", "chars", "bytes", "bpe"])
def test_every_unit_is_read(unit: str, small: Path, tmp_path: Path) -> None:
    size = [] if unit != "bpe" else ["data.max_size=300"]
    found = es.train(small, tmp_path / "run", quietly, overrides=[*SMALL, f"data.unit={unit}", *size])
    assert [len(p.record["probabilities"]) for p in found.predict(["good", "", "日本語 ☃"])] == [3, 3, 3]
    assert es.load(tmp_path / "run").evaluate("valid")["count"] == 6


@pytest.mark.parametrize("cell", ["GRU", "RNN", "MLSTM", "{type: IndRNN}"])
def test_any_cell_reads(cell: str, small: Path, tmp_path: Path) -> None:
    found = es.train(small, tmp_path / "run", quietly, overrides=[*SMALL, f"model.cell={cell}"])
    assert sum(math.isfinite(p.record["probability"]) for p in found.predict(["good", "bad"])) == 2


def test_class_weights_by_hand() -> None:
    section = ClassSection(class_weights="balanced")
    weights = section.weights(np.array([0, 0, 0, 1, 3, 3]), 4)
    assert weights is not None
    assert weights.tolist() == [0.5, 1.5, 0.0, 0.75]  # 6 / (4 · n_k); a class that does not occur has none
    assert ClassSection().weights(np.array([0, 1]), 2) is None
    model = SequenceClassifier(5, OneOf("abcd"), ClassifierSection(embedding_size=3, hidden_size=3)).eval()
    batch = to_score([np.array([1, 2]), np.array([3])], np.array([1, 3])).batch(0, 0)
    (loss,) = class_losses(model, batch, weights)
    (plain,) = class_losses(model, batch, None)
    torch.testing.assert_close(loss.total, plain.total * weights[batch.labels])
    torch.testing.assert_close(loss.reported, plain.total.detach())
    torch.testing.assert_close(loss.reported, -model(batch.inputs, batch.lengths)[range(2), batch.labels])


def test_the_job_learns_by_class_weights_and_scores_without(tmp_path: Path) -> None:
    path = recipe(tmp_path, texts(tmp_path, ROWS[:-5]))
    task = load_task(path, ["objective.class_weights=balanced", "objective.label_smoothing=0"])
    task.prepare()
    model = task.model()
    batch = task.batches("train", model, "score").batch(0, 0)
    weights = ClassSection(class_weights="balanced").weights(task.texts.examples("train").ids(task.classes), 3)
    for training, scale in ((True, weights[batch.labels]), (False, 1.0)):
        (loss,) = task.objective(model.train(training), batch, ())
        torch.testing.assert_close(loss.total, loss.reported * scale)


def test_label_smoothing_moves_mass_and_reports_nats() -> None:
    section = ClassifierSection(embedding_size=3, hidden_size=3)
    model = SequenceClassifier(5, OneOf("abcd", label_smoothing=0.2), section).eval()
    batch = to_score([np.array([1, 2]), np.array([3])], np.array([1, 3])).batch(0, 0)
    (loss,) = class_losses(model, batch, None)
    log_p = model(batch.inputs, batch.lengths)
    wanted = torch.full_like(log_p, 0.05)
    wanted[range(2), batch.labels] += 0.8
    torch.testing.assert_close(loss.total, -(wanted * log_p).sum(1))
    torch.testing.assert_close(loss.reported, -log_p[range(2), batch.labels])


# ------------------------------------------------------------------------------------------------------------- figures


def test_figures_equal_those_computed_by_hand(run: es.Run) -> None:
    scores = run.evaluate("test")
    predicted = list(run.predict([text for text, _ in ROWS[:9]]))
    labels = [label for _, label in ROWS[:9]]
    nats = [-math.log(p.record["probabilities"][label]) for p, label in zip(predicted, labels, strict=True)]
    assert scores["loss"] == pytest.approx(sum(nats) / 9, rel=1e-5)
    assert scores["accuracy"] == sum(p.record["label"] == label for p, label in zip(predicted, labels, strict=True)) / 9
    assert scores["count"] == 9
    assert {name: figures["support"] for name, figures in scores["classes"].items()} == {
        "neg": 3,
        "none of both": 3,
        "pos": 3,
    }


def test_figures_do_not_depend_on_how_texts_are_put_together() -> None:
    model = SequenceClassifier(20, OneOf("abc"), ClassifierSection(embedding_size=8, hidden_size=8))
    random = np.random.default_rng(1)
    sequences = [random.integers(0, 20, length) for length in random.integers(0, 30, 600)]
    labels = random.integers(0, 3, 600)
    measured = measured_classes(model, to_score(sequences, labels))
    with torch.no_grad():
        rows = [model(torch.from_numpy(ids)[None], torch.tensor([len(ids)]))[0] for ids in sequences if len(ids)]
    alone = torch.stack(rows).double().numpy()
    kept = np.array([len(ids) > 0 for ids in sequences])
    some = measured_classes(model, to_score([ids for ids in sequences if len(ids)], labels[kept]))
    truth = labels[kept]
    wanted = class_measures(truth, alone.argmax(1), 3, -alone[np.arange(len(truth)), truth])
    assert some.accuracy == wanted.accuracy
    assert some.nats == pytest.approx(wanted.nats, rel=1e-5)
    assert measured.count == 600


def test_predictions_do_not_depend_on_their_neighbours_and_keep_their_order(run: es.Run) -> None:
    lines = [f"{text} {'long ' * (number % 40)}" for number, (text, _) in enumerate(ROWS)] * 25
    assert len(lines) > 1024
    together = [p.record["probability"] for p in run.predict(lines)]
    assert [p.record["text"] for p in run.predict(iter(line + "\n" for line in lines))] == lines
    alone = [next(run.predict([line])).record["probability"] for line in lines[:60]]
    assert together[:60] == pytest.approx(alone, abs=1e-5)
    assert together[60:120] == pytest.approx(alone, abs=1e-5)


def test_long_texts_are_batches_of_few_rows() -> None:
    lengths = [50_000, *[10] * 100]
    batches = to_learn([np.ones(length, np.int64) for length in lengths], np.zeros(101, np.int64), 32, 1)
    drawn = [batches.batch(0, index) for index in range(len(batches))]
    assert max(batch.inputs.numel() for batch in drawn) == 50_000
    assert sorted(place for batch in drawn for place in batch.places.tolist()) == list(range(101))
    usual = to_learn([np.ones(10, np.int64)] * 100, np.zeros(100, np.int64), 32, 1)
    assert len(usual) == 4


# -------------------------------------------------------------------------------------------------------- command line


def cli(*words: str, given: str | None = None) -> Any:
    return CliRunner().invoke(app, list(words), input=given)


def test_predict_on_the_command_line(run: es.Run) -> None:
    done = cli("predict", str(run.path), given="good thing\n\nbad thing\n")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows][::2] == ["pos", "neg"]
    assert len(rows) == 3  # a line for the empty one
    done = cli("predict", str(run.path), "--json", given="good thing")
    record = json.loads(done.stdout)
    assert record["text"] == "good thing"
    assert record["label"] == "pos"
    assert list(record["probabilities"]) == ["neg", "none of both", "pos"]
    assert sum(record["probabilities"].values()) == pytest.approx(1)


def test_eval_on_other_data_with_rivals(run: es.Run, tmp_path: Path) -> None:
    other = texts(tmp_path, [("good thing", "pos"), ("bad thing", "neg")] * 3)
    found = json.loads(cli("eval", str(run.path), "--data", str(other), "--rivals", "--json").stdout)
    assert found["count"] == 6
    assert found["accuracy"] == 1
    assert [rival["name"] for rival in found["rivals"]][:2] == ["majority class", "bag of words"]
    shown = cli("eval", str(run.path), "--data", str(other)).stdout
    assert "none of both" in shown
    refused = cli("eval", str(run.path), "--data", str(texts(tmp_path, [("good", "fair")])))
    assert refused.exit_code == 2
    assert "line 2: the class 'fair' is not among the 3 known classes" in refused.stderr


def test_bundled_data_can_be_named_from_anywhere(run: es.Run) -> None:
    with pytest.raises(DataError, match=r"reviews\.pairs\.tsv\.xz, line 2: the class 'positive' .* is not among"):
        run.evaluate(data=["everstep:reviews.pairs"])


def test_the_card_holds_its_rivals(run: es.Run) -> None:
    card = (run.path / "README.md").read_text()
    assert "| on test | accuracy | macro f1 | loss |" in card
    assert "| **this run** | 1.0000 |" in card
    assert "| majority class | 0.3333 |" in card
    names = [rival["name"] for rival in json.loads((run.path / "scores.json").read_text())["test"]["rivals"]]
    assert names[:3] == ["majority class", "bag of words", "bag of n-grams"]


def test_without_scikit_learn_it_trains_and_says_so(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    said: list[str] = []
    found = es.train(small, tmp_path / "run", said.append, overrides=SMALL)
    assert said[-1].startswith("rivals on valid, accuracy: the rivals of a classifier need scikit-learn")
    assert "Simpler models were not held against it: " in (tmp_path / "run" / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"pip install 'everstep\[classification\]'"):
        found.rivals()
    monkeypatch.setattr(type(found), "evaluate", lambda *given, **how: pytest.fail("scored before it was refused"))
    done = CliRunner().invoke(app, ["eval", str(found.path), "--rivals", "--json"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "need scikit-learn" in done.stderr
    assert "pip install 'everstep[classification]'" in done.stderr


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_are_drawn(run: es.Run, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("good thing\nbad thing, not good\n")
    done = cli("look", str(run.path), "--out", str(tmp_path / "drawn"), "--text", str(text))
    assert done.exit_code == 0, done.output
    drawn = {path.name for path in (tmp_path / "drawn").glob("*.png")}
    ours = {"confusion.png", "reliability.png", "words.png", "words-gradient.png"}
    assert {"curves.png", "rivals.png", *ours, "units.png", "gates.png"} <= drawn
    assert "No mistake in 9 texts." in (tmp_path / "drawn" / "README.md").read_text()


# ----------------------------------------------------------------------------------------------------------- going on


class TestLaws(JobLaws):
    job = "classification"
    settings = (*SMALL[:3], "model.dropout=0.2")
    asked = (["a good thing"], ["x"], [""], ["long " * 40])

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        return recipe(folder, texts(folder, ROWS))


# ------------------------------------------------------------------------------------------------------ what is unusual


def test_two_texts_are_enough_without_validation(tmp_path: Path) -> None:
    path = recipe(tmp_path, texts(tmp_path, [("good", "a b"), ("bad", "A b")]))
    with pytest.raises(DataError, match=r"give data\.valid, or train without validation: data\.valid_fraction=0"):
        es.train(path, tmp_path / "none", quietly, overrides=SMALL)
    said: list[str] = []
    found = es.train(path, tmp_path / "run", said.append, overrides=[*SMALL, "data.valid_fraction=0"])
    assert any("differ by case" in line for line in said)
    assert [p.text.split("\t")[0] in ("a b", "A b") for p in found.predict(["good", ""])] == [True, True]
    assert "It was scored on no held-out data" in (tmp_path / "run" / "README.md").read_text()


def test_ten_thousand_classes_are_learned_and_predicted(tmp_path: Path) -> None:
    rows = [(f"word{number}", f"class {number}") for number in range(10_000)]
    path = recipe(tmp_path, texts(tmp_path, [*rows, *rows[:20]]))
    settings = [*SMALL, "train.max_steps=2", "train.max_epochs=null"]
    found = es.train(path, tmp_path / "run", quietly, overrides=settings)
    assert len(next(found.predict(["word7"])).record["probabilities"]) == 10_000
    card = (tmp_path / "run" / "README.md").read_text()
    assert "10,000 classes: class 0, class 1, class 10, class 100, class 1000, class 1001" in card
    assert len(card) < 4000
    shown = cli("eval", str(tmp_path / "run"), "--split", "valid").stdout
    assert "… and 9,950 more; --json gives all" in shown


def test_a_class_that_training_never_saw_is_refused_before_work(tmp_path: Path) -> None:
    valid = texts(tmp_path, [("good", "Pos")], "valid.tsv")
    path = recipe(tmp_path, texts(tmp_path, ROWS), f"  valid: {valid}\n")
    with pytest.raises(DataError, match=r"valid\.tsv, line 2: the class 'Pos' is not among .* the nearest is 'pos'"):
        es.train(path, tmp_path / "run", quietly)
    assert not (tmp_path / "run").exists()


def test_labels_are_grouped_and_the_rest_left_out(tmp_path: Path) -> None:
    rows = [(f"text {number}", str(number % 5)) for number in range(40)]
    grouping = "  classes: {low: [0, 1], high: ['3', '4']}\n"
    said: list[str] = []
    found = es.train(recipe(tmp_path, texts(tmp_path, rows), grouping), tmp_path / "run", said.append, overrides=SMALL)
    assert found.task.classes == ("high", "low")
    assert "train: 28 texts" in "\n".join(said)
    other = recipe(tmp_path, texts(tmp_path, rows), "  classes: {low: 0, high: 7}\n")
    with pytest.raises(DataError, match="leaves fewer than 2 classes; the labels are 0, 1, 2, 3, 4"):
        es.train(other, tmp_path / "other", quietly)


def test_phrases_of_trees_are_examples_of_training_alone(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(
            "(3 (2 The) (3 (3 (4 good) (2 food)) (2 .)))\n(1 (2 The) (1 (0 bad) (2 food)))\n"
        )
    extra = f"  test: {tmp_path}/test.txt\n  format: trees\n  phrases: true\n  valid_fraction: 0\n"
    task: Any = load_task(
        recipe(tmp_path, tmp_path / "train.txt", extra + "  classes: {n: ['0', '1'], p: ['3', '4']}\n")
    )
    task.prepare()
    train = task.texts.examples("train")
    assert sorted(zip(train.texts, train.labels, strict=True)) == [
        ("The bad food", "n"),
        ("The good food .", "p"),
        ("bad", "n"),
        ("bad food", "n"),
        ("good", "p"),
        ("good food", "p"),
        ("good food .", "p"),
    ]
    assert task.texts.examples("test").texts == ["The good food .", "The bad food"]


def test_units_of_the_progress_line() -> None:
    task = load_task("classify-minute")
    assert Units(task.unit, task.loss_unit, task.scores).scores >= {"accuracy", "macro_f1"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It isn't bad, (at all)!", ["It", "isn't", "bad", ",", "(", "at", "all", ")", "!"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs belong to their letters
        ("nai\u0308ve, e\u0301", ["nai\u0308ve", ",", "e\u0301"]),
        ("\u2764\ufe0f!", ["\u2764\ufe0f", "!"]),
        ("  ", []),
    ],
)
def test_words_and_marks(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_the_most_mistaken_of_many_classes_are_drawn(tmp_path: Path) -> None:
    targets = np.arange(10_000)
    guesses = targets.copy()
    guesses[[3, 5]] = 9_999, 3
    measured = class_measures(targets, guesses, 10_000)
    told = draw_confusion(measured, [f"class {number}" for number in range(10_000)], tmp_path / "confusion.png")
    assert told == (
        "100.0% of 10,000 texts on the diagonal, where they belong. The most frequent mistake: 1 of 1 text of "
        "class class 3 taken for class 9999. Shown are the 30 of 10,000 classes with most mistakes."
    )
    assert measured.confusion([3, 5, 9_999]).tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1]]


def test_the_words_that_decide_are_those_whose_loss_is_felt(run: es.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(class_pictures, "draw_confusion", lambda *given: "")
    monkeypatch.setattr(class_pictures, "draw_reliability", lambda *given: "")
    monkeypatch.setattr(class_pictures, "draw_relevance", lambda rows, path, what: drawn.extend(rows) or "")
    list(run.task.pictures(run.model, Path("nowhere"), "thing good number3"))
    (title, pieces, values), (_, _, slopes) = drawn
    whole, *without = run.predict(["thing good number3", "good number3", "thing number3", "thing good"])
    first, second = sorted(whole.record["probabilities"], key=whole.record["probabilities"].get)[:0:-1][:2]

    def lead(found: Any) -> float:
        p = found.record["probabilities"]
        return math.log(p[first]) - math.log(p[second])

    assert title == f"pos {whole.record['probability']:.4f}"
    assert pieces == ["thing ", "good ", "number3 "]
    assert values == pytest.approx([lead(whole) - lead(found) for found in without], abs=1e-4)
    assert max(values) == values[1]
    explained = next(run.predict(["thing good number3"], explain=True)).record["explanation"]
    assert explained == {"pieces": ["thing", "good", "number3"], "gradient": pytest.approx(slopes)}


# --------------------------------------------------------------------------------------------------------------- folds


def test_a_fold_is_the_test_and_texts_that_repeat_are_told(tmp_path: Path) -> None:
    rows = [*ROWS, ("same words", "pos"), ("same words", "pos"), *[("same words", "neg")] * 8]
    path = recipe(tmp_path, texts(tmp_path, rows), "  valid_fraction: 0.2\n  folds: 5\n  fold: 2\n")
    task = load_task(path)
    task.prepare()
    said: list[str] = []
    task.ready(said.append)
    sizes = [len(task.texts.examples(split)) for split in ("train", "valid", "test")]
    assert (task.splits(), sizes) == (("train", "valid", "test"), [45, 11, 14])
    seen = {*task.texts.examples("train").texts}
    repeated = sum(text in seen for text in task.texts.examples("test").texts)
    assert repeated >= 2
    assert f"note: {repeated} of the 14 texts of test are texts of train too ({repeated / 14:.1%}): " in "".join(said)
    again = load_task(path, ["seed=7"])
    assert again.texts.examples("test").texts == task.texts.examples("test").texts
    assert again.texts.examples("train").texts != task.texts.examples("train").texts
    named = load_task(path, [f"data.test={tmp_path}/texts.tsv"])
    assert len(named.texts.examples("test")) == len(rows)
    assert len(named.texts.examples("train")) == 45
    with pytest.raises(ConfigError, match=r"data\.fold: expected at most folds \(5\); got 6"):
        load_task(path, ["data.fold=6"])
    with pytest.raises(ConfigError, match=r"data\.fold: expected at most folds \(null, which is none\); got 2"):
        load_task(path, ["data.folds=null"])
