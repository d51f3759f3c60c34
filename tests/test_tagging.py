"""The job `tagging`: what it learns, says, counts, draws and refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_laws import JobLaws
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data.readers.tagged import read_tagged
from everstep.data.tagged_batches import TaggedBatches
from everstep.errors import ConfigError, DataError, RunError
from everstep.measures import conlleval
from everstep.networks.sequence_tagger import SequenceTagger, TaggerSection, tag_losses
from everstep.networks.tag_columns import TagColumn
from everstep.networks.tag_decoding import column_figures, decoded
from everstep.networks.word_reader import Characters, WordReader
from everstep.runs.recipe_files import load_task
from everstep.runs.tagged_data import TaggedTexts

SMALL = (
    "model.embedding_size=8",
    "model.character_units=4",
    "model.character_size=4",
    "model.hidden_size=8",
    "model.feature_size=2",
    "train.batch_size=8",
    "train.threads=1",
)
QUICK = (*SMALL, "train.max_steps=2", "train.max_epochs=null", "data.test=null")


def quietly(line: str) -> None:
    del line


def recipe(folder: Path, train: str, data: str = "", name: str = "train.conll") -> Path:
    """A recipe of few keys over sentences."""
    (folder / name).write_text(train)
    path = folder / "recipe.yaml"
    path.write_text(f"task: tagging\ndata:\n  train: {folder / name}\n{data}train:\n  max_epochs: 1\n")
    return path


NAMES = ("Anna", "Ben", "Clara", "David", "Eva")
PLACES = ("Oslo", "Bergen", "Paris", "New York", "Rome")
ROWS = [
    f"{name}\tNOUN\tB-PER\nsaw\tVERB\tO\n"
    + "".join(f"{word}\tNOUN\t{'I' if number else 'B'}-LOC\n" for number, word in enumerate(place.split()))
    + ".\tPUNCT\tO\n"
    for name in NAMES
    for place in PLACES
]
TEXT = "\n".join(ROWS)
BOTH = "  tag_column: [1, 2]\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    """A tagger of two columns that has learned both."""
    folder = tmp_path_factory.mktemp("tags")
    (folder / "test.conll").write_text(TEXT[: len(TEXT) // 2].rpartition("\n\n")[0] + "\n")
    path = recipe(folder, TEXT, BOTH + f"  test: {folder}/test.conll\n")
    settings = (*SMALL, "train.max_epochs=20", "train.learning_rate=0.03")
    return es.train(path, folder / "run", quietly, overrides=settings)


@pytest.fixture(scope="module")
def spans_run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    """A tagger of spans that has learned next to nothing."""
    folder = tmp_path_factory.mktemp("spans")
    return es.train(recipe(folder, TEXT), folder / "run", quietly, overrides=QUICK)


# ------------------------------------------------------------------------------------------------------------ learning


@pytest.mark.parametrize(
    ("head", "characters", "bidirectional"),
    [("crf", "recurrent", True), ("softmax", "convolution", True), ("crf", "none", False)],
)
def test_one_batch_is_learned_by_heart(head: Any, characters: Any, bidirectional: bool, tmp_path: Path) -> None:
    task: Any = load_task(recipe(tmp_path, TEXT, BOTH + "  valid_fraction: 0\n"), SMALL)
    task.prepare()
    section = task.recipe.model.replace(head=head, characters=characters, bidirectional=bidirectional, affixes=(2,))
    task.recipe = task.recipe.replace(model=section)
    task.learned = task.texts.learned((2,))
    model = task.model()
    coded = task.learned.coded(task.texts.examples("train").sentences)
    batch = TaggedBatches(coded, 32, shuffle=False).batch(0, 0)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(40):
        (loss,) = tag_losses(model, batch)
        optimizer.zero_grad()
        (loss.total.sum() / batch.count).backward()
        optimizer.step()
    figures = task.metrics(model, "train")
    assert figures["accuracy"] == 1
    assert figures["columns"]["2"]["f1"] == 1
    assert figures["loss"] < 0.1


def test_both_columns_are_learned_and_what_training_says_is_what_eval_says(run: es.Run) -> None:
    scores = run.evaluate("test")
    assert scores["accuracy"] == 1
    assert scores["columns"]["2"]["f1"] == scores["columns"]["2"]["strict_f1"] == 1
    assert "f1" not in scores["columns"]["1"]
    written = json.loads((run.path / "scores.json").read_text())["test"]
    assert {**written, "rivals": 0} == {**scores, "rivals": 0}
    assert {"task", "split", "loss", "accuracy"} <= set(scores)


def test_a_small_real_set_is_learned_better_than_by_words_alone(tmp_path: Path) -> None:
    data = ["data.valid=everstep:orders.valid", "data.test=everstep:orders.test"]
    sizes = [*SMALL[:3], "model.hidden_size=16", "model.embedding_size=16"]
    settings = [*data, *sizes, "train.max_epochs=2", "train.threads=1"]
    found = es.train("tag-own", tmp_path / "run", quietly, overrides=settings)
    scores = found.evaluate("test")
    (rival,) = found.rivals("test")
    assert rival["name"] == "most frequent tag of a word"
    assert scores["f1"] > 0.75 > 0.7 > rival["f1"] > 0.2
    assert scores["accuracy"] > rival["accuracy"] > 0.7


def test_a_step_learns_from_as_many_words_whatever_their_sentences(tmp_path: Path) -> None:
    text = "a\tX\n\n" * 30 + ("b\tY\n" * 9 + "\n") * 30
    task = load_task(recipe(tmp_path, text), ["train.batch_size=4", "data.valid_fraction=0"])
    task.prepare()
    batches = task.batches("train", None, "learn")
    counts = [batches.batch(0, index).count for index in range(len(batches))]
    assert len(counts) == 15
    assert all(11 < count < 29 for count in counts)  # four sentences have 4 words, or 36


@pytest.mark.parametrize("cell", ["GRU", "{type: IndRNN}"])
def test_any_cell_reads(cell: str, tmp_path: Path) -> None:
    found = es.train(recipe(tmp_path, TEXT), tmp_path / "run", quietly, overrides=[*QUICK, f"model.cell={cell}"])
    assert [p.text.count("\n") for p in found.predict(["Anna\tNOUN", "saw\tVERB"])] == [1]


def test_words_are_read_as_unknown_while_it_learns() -> None:
    section = TaggerSection(embedding_size=4, characters="none", feature_size=0, unknown_rate=0.5)
    reader = WordReader(section, 3, 1, (), [0, 1, 9])
    batch = batch_of([["a"] * 4000, ["b"] * 4000])
    unknown = reader.embedding(torch.tensor(0))
    shares = (reader.train()(batch) == unknown).all(2).double().mean(1).tolist()
    assert sorted(shares) == pytest.approx([0.5 / 9.5, 0.5 / 1.5], abs=0.03)
    assert torch.equal(reader.eval()(batch), reader.embedding(batch.words))


def batch_of(sentences: list[list[str]]) -> Any:
    from everstep.data.word_features import WordVocabulary

    words = WordVocabulary.of([["a"], ["b", "b"]])
    count = sum(map(len, sentences))
    return TaggedBatches(words.coded(sentences, [], np.zeros((count, 1), np.int64)), 9, shuffle=False).batch(0, 0)


@pytest.mark.parametrize("how", ["recurrent", "convolution"])
def test_characters_of_a_word_do_not_depend_on_other_words(how: Any) -> None:
    read = Characters(9, 4, 3, how)
    spelled = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0], [8, 0, 0, 0, 0]])
    lengths = torch.tensor([5, 2, 1])
    together = read(spelled, lengths)
    for row in range(3):
        alone = read(spelled[row : row + 1, : lengths[row]], lengths[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


# ------------------------------------------------------------------------------------------------------------- figures


def test_a_sentence_with_an_unseen_tag_has_no_loss_and_counts_as_a_mistake(spans_run: es.Run, tmp_path: Path) -> None:
    known, unseen = tmp_path / "known.conll", tmp_path / "unseen.conll"
    known.write_text(ROWS[0])
    unseen.write_text(ROWS[0] + "\nMars\tNOUN\tB-PLANET\nsaw\tVERB\tO\n")
    scores = spans_run.evaluate(data=[str(unseen)])
    assert scores["unseen_tags"] == 1
    assert scores["loss"] == pytest.approx(spans_run.evaluate(data=[str(known)])["loss"], rel=1e-5)
    assert scores["types"]["PLANET"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "spans": 1}


def test_unseen_tags_and_broken_transitions_are_noted_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "valid.conll").write_text("Ann NOUN B-X\nsaw VERB I-LOC\n")
    said: list[str] = []
    path = recipe(tmp_path, TEXT, f"  valid: {tmp_path}/valid.conll\n")
    es.train(path, tmp_path / "run", said.append, overrides=QUICK)
    notes = [line for line in said if line.startswith("note: ")]
    assert any("1 invalid transitions" in line and "line 2: I-LOC after B-X is no transition" in line for line in notes)
    assert any("1 unseen tags" in line and "line 1: training never saw the tag 'B-X'" in line for line in notes)


def test_figures_by_hand() -> None:
    column = TagColumn.of("ner", [["B-X", "I-X", "O"]], "auto", "iobes")
    targets, guesses = [["B-X", "I-X", "O"], ["O"]], [["B-X", "I-X", "B-X"], ["O"]]
    found = column_figures(targets, guesses, [[True, True, False], [True]], column)
    assert (found["accuracy"], found["known_accuracy"], found["unknown_accuracy"]) == (0.75, 1.0, 0.0)
    assert (found["precision"], found["recall"], found["f1"]) == (0.5, 1.0, pytest.approx(2 / 3))
    assert column_figures([["O"]], [["O"]], [[True]], column)["unknown_accuracy"] is None


def test_predictions_scored_as_conlleval_does_are_what_eval_says(spans_run: es.Run, tmp_path: Path) -> None:
    lines = [line for row in ROWS for line in [*row.splitlines(), ""]]
    tagged = [found.text for found in spans_run.predict(lines)]
    rows = [[line.split("\t") for line in text.splitlines() if line] for text in tagged]
    targets, guesses = ([[fields[place] for fields in sentence] for sentence in rows] for place in (2, 3))
    (tmp_path / "all.conll").write_text(TEXT)
    scores = spans_run.evaluate(data=[str(tmp_path / "all.conll")])
    printed = conlleval(targets, guesses)
    assert f"accuracy: {100 * scores['accuracy']:6.2f}%; precision: {100 * scores['precision']:6.2f}%" in printed


# ----------------------------------------------------------------------------------------------------------- predicting


def test_predictions_do_not_depend_on_their_neighbours(run: es.Run) -> None:
    sentences = [[*row.splitlines(), ""] for row in ROWS] + [["word\tX\tO"] * 300 + [""]]
    together = list(run.predict([line for some in sentences for line in some], probabilities=True))
    for found, some in zip(together, sentences, strict=True):
        (alone,) = run.predict(some, probabilities=True)
        assert alone.record["tags"] == found.record["tags"]
        assert alone.record["log_p"] == pytest.approx(found.record["log_p"], abs=1e-3)
        assert alone.text.count("\n") == len(some) - 1


def test_columns_comments_and_blank_lines_are_kept(run: es.Run) -> None:
    given = "# first\nAnna\tNOUN\tO\nsaw\tVERB\tO\n\n\n# second\nBen\tNOUN\tO"
    done = cli("predict", str(run.path), given=given)
    assert done.stdout == (
        "# first\nAnna\tNOUN\tO\tNOUN\tB-PER\nsaw\tVERB\tO\tVERB\tO\n\n\n# second\nBen\tNOUN\tO\tNOUN\tB-PER\n"
    )
    words = cli("predict", str(run.path), given="Anna\nsaw\nRome\n").stdout
    assert words == "Anna\tNOUN\tB-PER\nsaw\tVERB\tO\nRome\tNOUN\tB-LOC\n"


def cli(*words: str, given: str | None = None) -> Any:
    return CliRunner().invoke(app, list(words), input=given)


def test_json_probabilities_and_n_best_on_the_command_line(run: es.Run) -> None:
    given = "Anna\nsaw\nNew\nYork\n.\n"
    done = cli("predict", str(run.path), "--json", "--probabilities", "--n-best", "3", given=given)
    record = json.loads(done.stdout)
    assert record["tokens"] == ["Anna", "saw", "New", "York", "."]
    assert record["tags"] == ["NOUN", "VERB", "NOUN", "NOUN", "PUNCT"]
    of = record["columns"]["2"]
    assert of["spans"] == [
        {"start": 0, "stop": 1, "type": "PER", "text": "Anna"},
        {"start": 2, "stop": 4, "type": "LOC", "text": "New York"},
    ]
    assert all(sum(p.values()) == pytest.approx(1, abs=1e-4) for p in of["probabilities"])
    assert of["n_best"][0]["tags"] == of["tags"]
    log_p = [best["log_p"] for best in of["n_best"]]
    assert log_p == sorted(log_p, reverse=True)
    assert sum(map(math.exp, log_p)) <= 1.0001
    shown = cli("predict", str(run.path), "--probabilities", given="Anna\n").stdout.split("\t")
    assert [shown[1], shown[3]] == ["NOUN", "B-PER"]
    assert 0.5 < float(shown[2]) <= 1
    ranked = cli("predict", str(run.path), "--n-best", "2", given=given).stdout
    assert [line[:14] for line in ranked.splitlines() if line.startswith("#")] == ["# rank 1, log ", "# rank 2, log "]
    again = [s.words for s in read_tagged_text(ranked)]
    assert again == [["Anna", "saw", "New", "York", "."]] * 2
    assert cli("predict", str(run.path), "--n-best", "0", given=given).exit_code == 2


def read_tagged_text(text: str) -> list[Any]:
    from everstep.data.readers.tagged_columns import TagColumns, read_columns

    return [one for one in read_columns(text.splitlines(), TagColumns(0, (-1,)), "here") if one.words]


def test_plain_text_and_json_lines_are_tagged_too(run: es.Run) -> None:
    done = cli("predict", str(run.path), "--format", "text", given="Anna saw Rome.\n\nBen.")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [
        "Anna",
        "saw",
        "Rome",
        ".",
        "",
        "",
        "Ben",
        ".",
        "",
    ]
    done = cli("predict", str(run.path), "--format", "jsonl", given='{"tokens": ["Anna"], "id": 1}\n{"tokens": []}\n')
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"tokens": ["Anna"], "id": 1, "1": ["NOUN"], "2": ["B-PER"]},
        {"tokens": [], "1": [], "2": []},
    ]
    refused = cli("predict", str(run.path), "--format", "xml", given="a")
    assert "expected a format among columns, conllu, jsonl, text (--format); got 'xml'" in refused.stderr


def test_json_lines_in_json_lines_out(tmp_path: Path) -> None:
    lines = [{"tokens": ["Anna", "saw"], "tags": ["B-PER", "O"]}, {"tokens": ["Rome"], "tags": ["B-LOC"]}] * 8
    text = "".join(json.dumps(line) + "\n" for line in lines)
    found = es.train(recipe(tmp_path, text, name="t.jsonl"), tmp_path / "run", quietly, overrides=QUICK)
    one, empty, other = found.predict(
        ['{"tokens": ["Anna"], "id": 1}', '{"tokens": [], "id": 2}', json.dumps(lines[0])]
    )
    assert set(json.loads(one.text)) == {"tokens", "id", "tags"}
    assert json.loads(empty.text) == {"tokens": [], "id": 2, "tags": []}
    assert json.loads(other.text)["tags"] == ["B-PER", "O"]  # those that came stay
    assert len(json.loads(other.text)["predicted"]) == 2
    (ranked,) = found.predict([json.dumps(lines[1])], n_best=2)
    assert [json.loads(line)["rank"] for line in ranked.text.splitlines()] == [1, 2]
    with pytest.raises(DataError, match=r"line 1: is no JSON .*--format, one of columns, conllu, jsonl, text"):
        list(found.predict(["Anna saw Rome."]))
    assert len(list(found.predict(["Anna saw Rome."], format="text"))) == 1


def test_bad_lines_are_told_after_the_answers_before_them(run: es.Run) -> None:
    done = cli("predict", str(run.path), given="Anna\tX\n\nsaw\n\n")
    assert done.stdout.startswith("Anna\tX\tNOUN\tB-PER\n")
    assert done.exit_code == 2
    assert "the lines to tag, line 3: expected 2 columns separated by tabs, as in line 1, got 1 column" in done.stderr


def test_features_have_to_be_there(tmp_path: Path) -> None:
    path = recipe(tmp_path, TEXT, "  feature_columns: [1]\n")
    found = es.train(path, tmp_path / "run", quietly, overrides=QUICK)
    assert found.model.reader.output_size == 8 + 8 + 2 * 2
    assert len(list(found.predict(["Anna\tNOUN", "saw\tOTHER"]))) == 1
    with pytest.raises(DataError, match="line 1: expected a column 1 "):
        list(found.predict(["Anna", "saw"]))
    with pytest.raises(DataError, match="plain text lacks the columns that this model reads beside words: 1"):
        list(found.predict(["Anna saw"], format="text"))
    with pytest.raises(
        DataError, match=r"line 2: expected one word a line.*got 'Anna saw', and training never saw 'saw'"
    ):
        list(found.predict(["", "Anna saw"]))
    assert [one.text.split()[:2] for one in found.predict(["Anna saw"], format="columns")] == [["Anna", "saw"]]
    with pytest.raises(DataError, match=r"line 2: expected 3 columns .* name it: --format, one of columns"):
        list(found.predict(["Anna saw Rome", "He did"]))


def test_a_sentence_of_five_thousand_words_and_no_words_at_all(spans_run: es.Run) -> None:
    (found,) = spans_run.predict(["word\tX"] * 5000, probabilities=True)
    assert len(found.record["tags"]) == 5000
    assert [p.text for p in spans_run.predict([])] == []
    assert [(p.text, p.record) for p in spans_run.predict(["", ""])] == [("\n", {})]


def test_only_jobs_that_say_so_are_asked_for_more(tmp_path: Path) -> None:
    rows = "".join(f"{word}\t{label}\n" for word, label in [("text", "label"), *[("good", "a"), ("bad", "b")] * 6])
    (tmp_path / "t.tsv").write_text(rows)
    settings = [f"data.train={tmp_path / 't.tsv'}", "data.min_count=1", "train.max_steps=1", *SMALL[:1], SMALL[3]]
    found = es.train("classify-own", tmp_path / "run", quietly, overrides=settings)
    with pytest.raises(RunError, match=r"cannot predict with n_best; it understands explain"):
        found.predict(["good"], n_best=2)
    assert cli("predict", str(found.path), "--format", "text", given="good\n").exit_code == 2


# ---------------------------------------------------------------------------------------------------------- its folder


def test_a_run_comes_back_as_it_was(run: es.Run) -> None:
    again = es.load(run.path)
    lines = [*ROWS[3].splitlines(), ""]
    assert [p.record for p in again.predict(lines)] == [p.record for p in run.predict(lines)]
    (run.path / "vocabulary.json").write_text((run.path / "vocabulary.json").read_text() + " ")
    with pytest.raises(RunError, match=r"vocabulary\.json is not the one that the run was begun with"):
        es.load(run.path)
    path = run.path / "vocabulary.json"
    path.write_text(path.read_text()[:-1])


def test_vectors_are_read_once_said_and_learned_or_not(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("anna 1 1 1 1 1 1 1 1\nzurich 2 2 2 2 2 2 2 2\n")
    said: list[str] = []
    settings = [*QUICK, f"model.vectors={tmp_path / 'v.txt'}", "model.vectors_learned=false"]
    found = es.train(recipe(tmp_path, TEXT), tmp_path / "run", said.append, overrides=settings)
    assert any("vectors: 2 of 8 numbers; 1 of " in line for line in said)
    (tmp_path / "v.txt").unlink()
    again = es.load(tmp_path / "run")
    words = again.task.learned.words
    for run in (found, again):
        rows = run.model.reader.embedding.weight
        assert rows[words.number("zurich")].tolist() == [2] * 8  # training never saw it, and it has a number
        assert rows[words.number("Anna")].tolist() == [1] * 8
    settings[-2] = f"model.vectors={tmp_path / 'nowhere.txt'}"
    with pytest.raises(DataError, match=r"nowhere\.txt: no file matches"):
        es.train(tmp_path / "recipe.yaml", tmp_path / "other", quietly, overrides=settings)


class TestLaws(JobLaws):
    job = "tagging"
    settings = (*SMALL, "model.dropout=0.2")
    asked = [[*row.splitlines(), ""] for row in ROWS[:2]] + [["word\tX\tO"] * 20 + [""]]

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        return recipe(folder, TEXT, BOTH)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_are_drawn(run: es.Run, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("Anna saw Zanzibar.\nBen saw <b> & Rome.\n")
    drawn = dict(run.task.pictures(run.model, tmp_path / "own", text.read_text()))
    assert {path.name for path in drawn} == {"confusion.png", "tags.png", "tags.html", "characters.png"}
    page = (tmp_path / "own" / "tags.html").read_text()
    assert 'title="NOUN">Zanzibar</span>' in page
    assert "&lt;" in page
    held_out = dict(run.task.pictures(run.model, tmp_path / "drawn", None))
    told = held_out[tmp_path / "drawn" / "confusion.png"]
    assert "on the diagonal" in told or "No mistake in" in told
    assert run.passage("Anna saw Rome .").labels == ["Anna ", "saw ", "Rome ", ". "]
    assert len(run.passage().labels) >= 4


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.affixes=[0]", r"model\.affixes: expected lengths of endings"),
        ("model.affixes=[2, 2]", r"model\.affixes: expected each length once"),
        ("data.tag_column=[]", r"data\.tag_column: expected a column or more"),
        ("data.separator=''", r"data\.separator: expected one character or more"),
        ("model.head=svm", r"model\.head"),
        ("model.residual=true", r"model\.residual: expected false beside bidirectional"),
        ("model.cell=LTSM", r"did you mean LSTM\?"),
    ],
)
def test_settings_that_cannot_be_used(override: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load_task(recipe(tmp_path, TEXT), [override])


def test_the_best_f1_cannot_be_selected_without_spans(tmp_path: Path) -> None:
    path = recipe(tmp_path, TEXT, "  tag_column: 1\n")
    said = r"train\.select: expected accuracy or loss, since the tags of column 1 are no spans.*got f1"
    with pytest.raises(ConfigError, match=said):
        es.train(path, tmp_path / "run", quietly, overrides=[*SMALL, "train.select=f1"])


def test_tags_that_violate_their_scheme_are_noted_and_learned_leniently(tmp_path: Path) -> None:
    said: list[str] = []
    path = recipe(tmp_path, TEXT, "  tag_column: 2\n  scheme: iobes\n")  # it is IOB2
    run = es.train(path, tmp_path / "run", said.append, overrides=[*SMALL, "train.max_steps=2"])
    assert any("invalid transitions, read as conlleval does" in line for line in said)
    assert run.evaluate("valid")["spans"] > 0


def test_splits(tmp_path: Path) -> None:
    task: Any = load_task(recipe(tmp_path, TEXT), SMALL)
    texts = TaggedTexts(task.recipe.data, 1)
    assert [len(texts.examples(split)) for split in texts.splits()] == [23, 2]
    assert texts.examples("valid").digest() != texts.examples("train").digest()
    with pytest.raises(DataError, match="no test split; it has train, valid"):
        texts.examples("test")
    assert read_tagged(tmp_path / "train.conll").digest() == read_tagged(tmp_path / "train.conll").digest()
    model: SequenceTagger
    task.prepare()
    model = task.model()
    coded = task.learned.coded(texts.examples("valid").sentences)
    assert len(decoded(model, coded, task.learned.columns)) == 2
