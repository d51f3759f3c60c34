"""Word vectors as a job: learned, asked, drawn, resumed, and written to files of other programs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from job_laws import JobLaws
from test_word_vectors import quietly
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data.readers.vector_files import read_vector_file, vector_file
from everstep.errors import ConfigError, DataError, Diverged
from everstep.runs.begun_vectors import begin_embedding
from everstep.runs.recipe_files import load_task
from everstep.runs.word_measures import WordVectorView
from everstep.runs.word_text import WordBatches
from everstep.ship.export import export


def pairs_of_words(folder: Path, lines: int = 1500) -> Path:
    """Lines in which the words of one of four topics stand around a function word."""
    random = np.random.default_rng(1)
    made = []
    for _ in range(lines):
        topic = random.integers(4)
        words = [f"{'abcd'[topic]}{random.integers(5)}" for _ in range(6)]
        made.append(" ".join([*words[:3], "of", *words[3:]]))
    path = folder / "topics.txt"
    path.write_text("\n".join(made) + "\n")
    return path


SMALL = ("model.embedding_size=16", "train.batch_size=2000", "train.max_epochs=4", "train.threads=1",
         "objective.subsample=0.01", "train.learning_rate=0.05")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    folder = tmp_path_factory.mktemp("topics")
    rows = [f"{a}{i} {b}{j} {9 if a == b else 1}" for a in "ab" for b in "abcd" for i, j in ((0, 1), (2, 3))]
    (folder / "same.txt").write_text("\n".join([*rows, "a0 missing 5"]) + "\n")
    (folder / "questions.txt").write_text(": topics\na0 a1 b0 b1\na0 a1 b0 nothing\n")
    files = f"data.train={pairs_of_words(folder)}", f"data.similarity={folder / 'same.txt'}"
    overrides = [*SMALL, *files, f"data.analogies={folder / 'questions.txt'}"]
    return es.train("word-vectors-own", folder / "run", quietly, overrides=overrides)


def test_words_that_are_used_alike_are_near(run: es.Run) -> None:
    for answer in run.predict(["a0", "b3"]):
        word = answer.record["query"]
        near = [found["word"] for found in answer.record["neighbours"]]
        assert len(near) == 10
        assert all(name[0] == word[0] for name in near[:4])
        cosines = [found["cosine"] for found in answer.record["neighbours"]]
        assert cosines == sorted(cosines, reverse=True)
    scores = run.evaluate("valid")
    assert scores["spearman"] > 0.6
    assert scores["similarity"]["same.txt"]["left_out"] == 1
    assert (scores["questions"], scores["unanswered"]) == (1, 1)
    assert scores["loss"] < run.task.mean_loss(run.task.model(), run.task.batches("valid", None, "score"))[0]


def test_predictions_of_sums_and_of_unknown_words(run: es.Run) -> None:
    sums, alone, unknown, blank = run.predict(["a0 - a1 + b0", "B0\n", "nowhere + a0", ""], n_best=3)
    assert len(sums.record["neighbours"]) == 3
    assert not {"a0", "a1", "b0"} & {found["word"] for found in sums.record["neighbours"]}
    assert alone.record["query"] == "b0"
    assert unknown.record["unknown"] == ["nowhere"]
    assert unknown.text == "nowhere + a0\t(no vector of nowhere)"
    assert blank.record["neighbours"] == []
    done = CliRunner().invoke(app, ["predict", str(run.path), "--json"], input="a0\n")
    assert json.loads(done.stdout)["neighbours"][0]["word"][0] == "a"


class TestLaws(JobLaws):
    job = "word-vectors"
    settings = (*SMALL, "train.batch_size=500", "model.ngrams=[2, 3]")
    asked = (["a0 - a1 + b0"], ["b3"], ["unseen1"], [""])

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        path = folder / "recipe.yaml"
        path.write_text(
            f"task: word-vectors\ndata:\n  train: {pairs_of_words(folder, 300)}\ntrain: {{max_epochs: 2}}\n"
        )
        return path


def test_a_rate_that_is_too_high_is_said(tmp_path: Path) -> None:
    settings = [*SMALL, f"data.train={pairs_of_words(tmp_path, 200)}", "train.learning_rate=1e30"]
    with pytest.raises(Diverged, match=r"training diverged at step .*Lower learning_rate"):
        es.train("word-vectors-own", tmp_path / "run", quietly, overrides=settings)


def test_phrases_are_words(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("\n".join(["in new york city it rains", "the old city of new york", "it rains in the city"] * 30))
    settings = [*SMALL, f"data.train={path}", "data.phrases=2", "data.phrase_threshold=4", "data.valid_fraction=0"]
    trained = es.train("word-vectors-own", tmp_path / "run", quietly, overrides=settings)
    words = es.load(tmp_path / "run").task.words
    assert "new_york" in words.names
    assert words.counts[words.names.index("new_york")] >= 30
    (answer,) = trained.predict(["new york"])
    assert answer.record["query"] == "new york"
    assert answer.record["neighbours"]


def test_phrases_that_are_written_alike_are_one_word(tmp_path: Path) -> None:
    """a_b c and a b_c, of two passes, and a word with the mark in it."""
    path = tmp_path / "t.txt"
    path.write_text("\n".join(["a b", "a b x c", "b c", "a b c d", "b c d", "a_b e", "a_b_c f"] * 20))
    common = [*SMALL, f"data.train={path}", "data.valid_fraction=0", "train.max_epochs=1", "data.phrases=3"]
    settings = [*common, "data.phrase_threshold=0.1"]
    trained = es.train("word-vectors-own", tmp_path / "run", quietly, overrides=settings)
    words = trained.task.words
    assert len(set(words.names)) == len(words.names) == len(words.counts)
    assert words.counts[words.names.index("a_b")] >= 20
    exported = read_vector_file(str(export(trained, tmp_path / "words.vec", to="vec")))
    assert exported.repeated == 0
    assert es.load(tmp_path / "run").task.words.names == words.names


def test_what_phrases_leave_of_a_word_is_too_rare(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("\n".join([*["new york is far", "the far land"] * 30, "york the far"]))
    settings = [*SMALL, f"data.train={path}", "data.valid_fraction=0", "data.phrases=1", "data.phrase_threshold=3"]
    trained = es.train("word-vectors-own", tmp_path / "run", quietly, overrides=settings)
    words = trained.task.words
    assert words.counts[words.names.index("new_york")] == 30
    assert words.counts[words.names.index("york")] == 0  # once, where min_count is 5


def test_a_text_of_one_line_has_batches_too(run: es.Run) -> None:
    """As text8: the learning rate changes within it."""
    words = run.task.words
    line = np.full(10_000, 3, np.int32)
    batches = WordBatches(np.append(line, words.tokenizer.eos_id).astype(np.int32), words, 2000, 1)
    sizes = [len(batches.batch(0, index).tokens) for index in range(len(batches))]
    assert sizes == [2000, 2000, 2000, 2000, 2001]


def test_batches_begin_where_lines_do(run: es.Run) -> None:
    batches = run.task.batches("train", None, "learn")
    assert isinstance(batches, WordBatches)
    pieces = [batches.batch(0, index) for index in range(len(batches))]
    joined = torch.cat([piece.tokens for piece in pieces])
    assert joined.tolist() == run.task.texts.tokens("train", run.task.words).tolist()
    assert all(int(piece.tokens[-1]) == 0 for piece in pieces)
    assert sum(piece.count for piece in pieces) == int((joined > 1).sum())
    assert len({batches.batch(epoch, 0).seed for epoch in range(3)}) == 3


def test_pictures(run: es.Run, tmp_path: Path) -> None:
    found = list(run.task.pictures(run.model, tmp_path, None))
    assert found[0][0].name == "word-map.png"
    assert all(path.stat().st_size > 5000 for path, _ in found)
    with pytest.raises(DataError, match="expected three words that have a vector; there is 1"):
        list(run.task.pictures(run.model, tmp_path, "a0 what is this"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.momentum=0.9", "momentum: expected"),
        ("train.weight_decay=0.1", "train.weight_decay: expected 0, since weights move at every pair"),
        ("train.clip_norm=1", "train.clip_norm: expected null"),
        ("train.optimizer=adamw", "train.optimizer: expected one of sgd"),
        ("train.accumulate=2", "train.accumulate: expected 1"),
        ("model.ngrams=[6, 3]", "model.ngrams: expected the shortest first"),
        ("data.unit=chars", "data.unit: expected one of words"),
    ],
)
def test_bad_recipes_are_refused(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
        load_task("word-vectors-own", [setting], False)


def test_measures_are_found_from_anywhere(run: es.Run) -> None:
    data = run.recipe.data  # type: ignore[attr-defined]
    assert Path(data.similarity).is_absolute()
    with pytest.raises(DataError, match=r"data.analogies: .*no file matches"):
        es.train("word-vectors-minute", run.path / "other", quietly, overrides=["data.analogies=nowhere.txt"])


@pytest.mark.parametrize(
    ("text", "min_count", "told"),
    [
        ("every word is but once here\n" * 2, 5, r"at least 5 times \(data.min_count\); there is none"),
        ("word " * 30 + "\n", 1, r"at least 1 time \(data.min_count\); there is one"),
    ],
)
def test_bad_texts_are_refused(tmp_path: Path, text: str, min_count: int, told: str) -> None:
    path = tmp_path / "t.txt"
    path.write_text(text)
    given = [f"data.train={path}", "data.valid_fraction=0", f"data.min_count={min_count}"]
    with pytest.raises(DataError, match=f"expected two words that occur {told}"):
        es.train("word-vectors-own", tmp_path / "run", quietly, overrides=given)
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("form", ["word2vec", "word2vec-binary", "glove", "vec"])
def test_files_of_vectors_keep_their_bits(form: str, run: es.Run, tmp_path: Path) -> None:
    path = export(run, tmp_path / "words", to=form)  # type: ignore[arg-type]
    found = read_vector_file(str(path))
    assert found.words[:1] == ("of",)
    view = WordVectorView(run.model)
    assert all(
        np.array_equal(row, view.vectors[view.places[word]])
        for word, row in zip(found.words, found.numbers, strict=True)
    )
    packed = tmp_path / "words.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(read_vector_file(str(packed), 16).numbers, found.numbers)
    with pytest.raises(DataError, match=r"expected vectors of 15 numbers \(model.embedding_size\), got 16"):
        read_vector_file(str(path), 15)
    path.write_bytes(path.read_bytes()[:-70])
    if form != "glove":
        with pytest.raises(
            DataError, match=r"expected 21 vectors, as its first line says; got (19|20): it is cut off|numbers"
        ):
            read_vector_file(str(path))


def test_words_that_files_cannot_hold(tmp_path: Path) -> None:
    for word in ("new york", "", "a"):
        with pytest.raises(DataError, match="files of word vectors cannot hold"):
            list(vector_file(["a", word], np.zeros((2, 3), np.float32), "vec"))
    path = tmp_path / "v.txt"
    path.write_text("a 1 2\nnew york 3 4\na 5 6\n")
    found = read_vector_file(str(path))
    assert (found.words, found.repeated) == (("a", "new york"), 1)
    assert found.numbers.tolist() == [[1, 2], [3, 4]]
    path.write_bytes(b"2 2\na \x00\x00\x80\x7f\x00\x00\x80\x7f\nb 12345678\n")
    with pytest.raises(DataError, match="vector 1: the vector of 'a' holds NaN or an infinity"):
        read_vector_file(str(path))
    path.write_bytes(b"1 2\n\xff\xfe \x00\x00\x80?\x00\x00\x80?\n")
    with pytest.raises(DataError, match="vector 1: expected a word in UTF-8"):
        read_vector_file(str(path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a\t1\t2\n", "line 1: expected a word and numbers, with a space between; got 'a"),
        ("a 1 2\n\nb 3 4\n", "line 2: expected a word and numbers"),
        ("3 0\na 1\n", "line 1: expected vectors of one number or more; got 0"),
        ("a 1e50 2\n", "line 1: the vector of 'a' holds NaN or an infinity"),
        ("a 1 2\nb 1\n", "line 2: expected vectors of 2 numbers, as before it; got 1"),
        ("a 1 2\nb 1 x\n", "line 2: expected 2 numbers after the word 'b'"),
    ],
)
def test_lines_that_are_no_vectors(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "v.vec").write_text(content)
    with pytest.raises(DataError, match=said):
        read_vector_file(str(tmp_path / "v.vec"))


def test_damaged_archives_and_many_files_are_said(tmp_path: Path) -> None:
    rows = "".join(f"w{row} {row} 1 2\n" for row in range(3000))
    packed = bytearray(gzip.compress(f"3000 3\n{rows}".encode()))
    packed[12:60] = b"\xff" * 48
    path = tmp_path / "v.vec.gz"
    path.write_bytes(packed)
    with pytest.raises(DataError, match=r"v.vec.gz: (damaged|cannot be read)"):
        read_vector_file(str(path))
    (tmp_path / "a.vec").write_text("a 1 2\n")
    (tmp_path / "b.vec").write_text("b 1 2\n")
    with pytest.raises(DataError, match=r"expected one file of word vectors; it matches 2"):
        read_vector_file(str(tmp_path / "*.vec"))


def test_other_jobs_begin_with_such_vectors(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("the 1 2 3\nking 4 5 6\nzzz 7 8 9\n")
    said: list[str] = []
    settings = [f"model.vectors={tmp_path / 'v.txt'}", "train.max_steps=1", "train.learning_rate=1e-9"]
    small = [*settings, "model.embedding_size=3", "model.hidden_size=4"]
    words = [*small, "data.unit=words", "data.lowercase=true", "data.min_count=20"]
    trained = es.train("shakespeare-minute", tmp_path / "lm", said.append, overrides=words)
    row = trained.task.tokenizer.symbols.index("the")
    assert trained.model.embedding.weight[row].tolist() == pytest.approx([1, 2, 3], abs=1e-4)
    assert any(line.startswith("vectors: 3 of 3 numbers; 2 of ") for line in said)
    again = es.load(tmp_path / "lm")
    assert torch.equal(again.model.embedding.weight, trained.model.embedding.weight)
    trained = es.train("classify-minute", tmp_path / "c", quietly, overrides=small)
    row = trained.task.tokenizer.symbols.index("the")
    assert trained.model.embedding.weight[row].tolist() == pytest.approx([1, 2, 3], abs=1e-4)
    with pytest.raises(DataError, match=r"expected vectors of 5 numbers \(model.embedding_size\), got 3"):
        es.train("classify-minute", tmp_path / "d", quietly, overrides=[*small, "model.embedding_size=5"])
    assert not (tmp_path / "d").exists()
    task = load_task("translate-minute", small, False)
    task.prepare()
    model = task.model()
    begin_embedding(task, model, said.append)
    symbols = task.sides.source.tokenizer.symbols
    assert model.source_embedding.weight[symbols.index(" the")].tolist() == [1, 2, 3]
    assert said[-1].startswith("vectors: 3 of 3 numbers; ")
    (tmp_path / "v.txt").write_text("qqq 1 2 3\n")
    with pytest.raises(DataError, match=r"has none of the .* tokens of the vocabulary"):
        es.train("classify-minute", tmp_path / "d", quietly, overrides=small)
