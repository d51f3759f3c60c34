"""Several labels, classes in an order, pairs of texts, documents: heads and figures by hand, and the job on each."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data.readers.labelled import read_labelled
from everstep.errors import ConfigError, DataError
from everstep.heads import Bernoulli, Cumulative
from everstep.measures import OrderedMeasures, class_measures, label_measures
from everstep.networks.answer_kinds import Several
from everstep.networks.answers import OneOf
from everstep.networks.classifying import class_losses, to_score
from everstep.networks.document_pieces import piece_losses
from everstep.networks.documents import Hierarchy
from everstep.networks.sequence_classifier import ClassifierSection, SequenceClassifier
from everstep.networks.token_contributions import relevance
from everstep.runs.recipe_files import load_task

SMALL = "train: {max_epochs: 8, threads: 1, batch_size: 8, learning_rate: 0.05}\n"
MODEL = "model: {embedding_size: 8, hidden_size: 8}\n"


def quietly(line: str) -> None:
    del line


def recipe(folder: Path, data: str, extra: str = "", model: str = MODEL) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"task: classification\ndata: {{{data}}}\n{model}{extra}{SMALL}")
    return path


# --------------------------------------------------------------------------------------------------------------- heads


def test_cumulative_is_a_difference_of_sigmoids() -> None:
    torch.manual_seed(0)
    head = Cumulative(3, 4).double()
    assert head.predict(torch.zeros(1, 1, 3).double()).exp()[0, 0].tolist() == pytest.approx([0.25] * 4)
    ys, target, lengths = torch.randn(2, 5, 3).double(), torch.randint(4, (2, 5)), torch.tensor([5, 2])
    below = torch.sigmoid(head.thresholds - (ys @ head.weight.T))
    p = torch.cat([below, torch.ones(2, 5, 1)], -1).diff(dim=-1, prepend=torch.zeros(2, 5, 1))
    torch.testing.assert_close(head.predict(ys).exp(), p.float(), atol=1e-6, rtol=1e-5)
    nats = -p.gather(-1, target[..., None])[..., 0].log()
    wanted = torch.stack([nats[0].sum(), nats[1, :2].sum()])
    torch.testing.assert_close(head.loss(ys, target, lengths), wanted.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.loss(ys, target), nats.sum(1).float(), atol=1e-5, rtol=1e-5)
    two = Cumulative(3, 2).double()
    torch.testing.assert_close(
        two.predict(ys)[..., 0], torch.nn.functional.logsigmoid(two.first - ys @ two.weight[0]).float()
    )
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        Cumulative(3, 1)


def test_cumulative_far_out_is_finite_and_so_is_its_gradient() -> None:
    head = Cumulative(1, 5)
    ys = torch.tensor([[[-500.0], [0.0], [500.0]]], requires_grad=True)
    head.weight.data.fill_(1.0)
    log_p = head.predict(ys)
    assert log_p.isfinite().all()
    log_p.sum().backward()
    assert ys.grad is not None
    assert all(grad.isfinite().all() for grad in (ys.grad, head.first.grad, head.steps.grad, head.weight.grad))


def test_bernoulli_by_hand() -> None:
    torch.manual_seed(0)
    head = Bernoulli(3, 4)
    ys, lengths = torch.randn(2, 5, 3), torch.tensor([5, 2])
    target = torch.randint(2, (2, 5, 4))
    p = torch.sigmoid(ys @ head.weight.T + head.bias)
    torch.testing.assert_close(head.predict(ys).exp(), p)
    nats = -torch.where(target > 0, p, 1 - p).log().sum(-1)
    torch.testing.assert_close(head.loss(ys, target, lengths), torch.stack([nats[0].sum(), nats[1, :2].sum()]))
    torch.testing.assert_close(head.loss(ys, target), nats.sum(1))


# ------------------------------------------------------------------------------------------------------------- figures


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**31))
def test_figures_of_labels_are_those_of_scikit_learn(labels: int, rows: int, seed: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(seed)
    truth, guess = random.random((2, rows, labels + 1)) < 0.4
    measured = label_measures(truth, guess, nats=np.arange(rows), p=random.random(truth.shape))
    there = truth.any(0) | guess.any(0)
    options: dict[str, Any] = {"zero_division": 0.0}
    assert measured.accuracy == pytest.approx(sklearn.accuracy_score(truth, guess))
    assert measured.micro_f1 == pytest.approx(sklearn.f1_score(truth, guess, average="micro", **options))
    by_label = sklearn.f1_score(truth, guess, average=None, **options)
    assert measured.f1 == pytest.approx(by_label)
    assert measured.macro_f1 == pytest.approx(by_label[there].mean() if there.any() else 0)
    assert measured.nats == (rows - 1) / 2
    report = measured.report([f"l{k}" for k in range(labels + 1)])
    assert report["count"] == rows
    assert sum(one["support"] for one in report["classes"].values()) == truth.sum()


def test_labels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"one shape \(N, K\), got \(2, 1\) and \(1, 2\)"):
        label_measures([[1], [0]], [[1, 0]])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(*[st.integers(0, 4)] * 2), min_size=1))
def test_figures_of_an_order_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    targets, guesses = np.array(pairs).T
    measured = OrderedMeasures(**vars(class_measures(targets, guesses, 5)))
    assert measured.mae == pytest.approx(abs(targets - guesses).mean())
    if len({*targets, *guesses}) > 1:
        kappa = sklearn.cohen_kappa_score(targets, guesses, weights="quadratic", labels=range(5))
        assert measured.quadratic_kappa == pytest.approx(kappa)
    else:
        assert measured.quadratic_kappa == 1


# ------------------------------------------------------------------------------------------------------ several labels


SEVERAL = [("red thing", "red"), ("blue thing", "blue"), ("red and blue thing", "blue, red"), ("plain thing", "")]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    folder = tmp_path_factory.mktemp("several")
    rows = [(f"{text} number{number % 5}", label) for number in range(15) for text, label in SEVERAL]
    (folder / "t.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    path = recipe(folder, f'train: {folder}/t.tsv, label_separator: ","', "objective: {calibrated: true}\n")
    return es.train(path, folder / "run", quietly)


def test_any_number_of_labels_is_learned(several: es.Run, tmp_path: Path) -> None:
    scores = several.evaluate("valid")
    assert scores["count"] == 6
    assert (scores["accuracy"], scores["micro_f1"], scores["macro_f1"]) == (1, 1, 1)
    assert set(scores) >= {"ece", "temperature", "loss"}
    found = list(several.predict([text for text, _ in SEVERAL]))
    assert [p.record["labels"] for p in found] == [["red"], ["blue"], ["blue", "red"], []]
    assert [p.text.split("\t")[0] for p in found] == ["red", "blue", "blue,red", ""]
    p = found[2].record["probabilities"]
    assert found[2].record["probability"] == pytest.approx(p["red"] * p["blue"])
    assert es.load(several.path).evaluate("valid") == scores
    names = {rival["name"]: rival for rival in several.rivals("valid")}
    assert names["bag of words"]["micro_f1"] == 1
    assert names["how often each label is"]["micro_f1"] < 1
    assert "| bag of n-grams | " in (several.path / "README.md").read_text()
    drawn = {path.name: told for path, told in several.task.pictures(several.model, tmp_path, None)}
    assert "confusion.png" not in drawn
    assert f"Expected calibration error {scores['ece']:.3f}" in drawn["reliability.png"]
    (why,) = several.predict(["plain red thing"], explain=True)
    assert why.text.split("\t")[2].startswith("plain [+red+]")
    nats = -sum(math.log(q if label in ("red",) else 1 - q) for label, q in found[0].record["probabilities"].items())
    assert found[0].record["probability"] == pytest.approx(math.exp(-nats))


def test_labels_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "x", "label": ["b", 1]}\n{"text": "y", "label": []}\n{"text": "z", "label": "a"}\n'
    )
    (tmp_path / "b.txt").write_text("__label__a word __label__b more\nnone at all\n")
    found = read_labelled([tmp_path / "a.jsonl", tmp_path / "b.txt"], label_separator="+")
    assert list(zip(found.texts, found.labels, strict=True)) == [
        ("x", "b+1"),
        ("y", ""),
        ("z", "a"),
        ("word more", "a+b"),
        ("none at all", ""),
    ]
    assert Several(("1", "a", "b"), "+").targets(found).tolist() == [
        [1, 0, 1],
        [0, 0, 0],
        [0, 1, 0],
        [0, 1, 1],
        [0, 0, 0],
    ]
    with pytest.raises(DataError, match=r"b\.txt, line 1: the label 'a' is not among the 2 known ones: '1', 'b'"):
        Several(("1", "b"), "+").targets(found.select([3, 0]))
    (tmp_path / "c.jsonl").write_text('{"text": "x", "label": ["a+b"]}\n')
    with pytest.raises(DataError, match=r"line 1: the label 'a\+b' holds data\.label_separator='\+'; take another"):
        read_labelled(tmp_path / "c.jsonl", label_separator="+")


def test_what_does_not_go_with_several_labels(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("text\tlabel\na b\tx\nc d\tx\n")
    path = recipe(tmp_path, f'train: {tmp_path}/t.tsv, label_separator: ","')
    objective = ("ordinal=true", "class_weights=balanced", "label_smoothing=0.1")
    for key in (*(f"objective.{one}" for one in objective), "model.ngrams=1"):
        with pytest.raises(ConfigError, match=key.partition("=")[0]):
            load_task(path, [key])
    with pytest.raises(ConfigError, match=r"data\.merge: expected null beside label_separator"):
        load_task(path, ["data.merge={y: [x]}"])
    with pytest.raises(DataError, match=r"expected at least two labels, separated by .*got 'x'"):
        load_task(path).prepare()


# ------------------------------------------------------------------------------------------------ classes in an order


@pytest.fixture(scope="module")
def ordinal(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    folder = tmp_path_factory.mktemp("ordinal")
    words = {"2": "bad", "9": "fair", "10": "good", "30": "great"}
    rows = [(f"{word} thing number{number % 5}", label) for number in range(15) for label, word in words.items()]
    (folder / "t.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    settings = "objective: {ordinal: true, calibrated: true, class_weights: balanced}\n"
    return es.train(recipe(folder, f"train: {folder}/t.tsv", settings), folder / "run", quietly)


def test_an_order_is_learned(ordinal: es.Run) -> None:
    assert json.loads((ordinal.path / "classes.json").read_text()) == ["2", "9", "10", "30"]
    scores = ordinal.evaluate("valid")
    assert (scores["accuracy"], scores["mae"], scores["quadratic_kappa"]) == (1, 0, 1)
    found = [p.record for p in ordinal.predict(["bad thing", "great thing"])]
    assert [record["label"] for record in found] == ["2", "30"]
    p = list(found[0]["probabilities"].values())
    assert sum(p) == pytest.approx(1)
    assert p == sorted(p, reverse=True)
    assert es.load(ordinal.path).evaluate("valid") == scores


def test_what_says_the_order(tmp_path: Path) -> None:
    rows = [("a b", "low"), ("c d", "mid"), ("e f", "high"), ("g h", "other")]
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    path = recipe(tmp_path, f"train: {tmp_path}/t.tsv, valid_fraction: 0", "objective: {ordinal: true}\n")
    with pytest.raises(DataError, match=r"objective\.ordinal: expected numbers as classes.*'high', 'low'"):
        load_task(path).prepare()
    task = load_task(path, ["data.classes={l: low, m: mid, h: high}"])
    task.prepare()
    assert task.classes == ("l", "m", "h")
    with pytest.raises(ConfigError, match=r"label_smoothing: expected 0 beside ordinal; got 0\.1"):
        load_task(path, ["objective.label_smoothing=0.1"])
    with pytest.raises(ConfigError, match=r"data\.merge: expected null beside objective\.ordinal"):
        load_task(path, ["data.merge={x: [low]}"])


# --------------------------------------------------------------------------------------------------------------- pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    folder = tmp_path_factory.mktemp("pairs")
    words = ["cat", "dog", "sun", "sea"]
    rows = [f"a {one} here,the {two},{'same' if one == two else 'other'}\n" for one in words for two in words] * 4
    (folder / "t.csv").write_text("first,second,label\n" + "".join(rows))
    path = recipe(folder, f"train: {folder}/t.csv, text: [first, second], valid_fraction: 0.2", "", MODEL)
    overrides = ["train.max_epochs=25", "objective.class_weights=balanced"]
    return es.train(path, folder / "run", quietly, overrides=overrides)


def test_two_texts_are_compared(pairs: es.Run) -> None:
    assert pairs.evaluate("valid")["accuracy"] == 1
    lines = ["a cat here\tthe cat", "a cat here\tthe sea", "\t", ""]
    found = list(pairs.predict(lines))
    assert [p.record["label"] for p in found][:2] == ["same", "other"]
    (alone,) = pairs.predict(lines[1:2])
    assert alone.record["probability"] == pytest.approx(found[1].record["probability"], abs=1e-5)
    with pytest.raises(DataError, match=r"expected two texts with a tab between them, as in training; got 'only one'"):
        list(pairs.predict(["only one"]))
    (why,) = pairs.predict(lines[:1], explain=True)
    assert why.record["explanation"]["pieces"] == ["a", "cat", "here", "|", "the", "cat"]
    assert len(why.record["explanation"]["gradient"]) == 6
    names = {rival["name"]: rival["accuracy"] for rival in pairs.rivals("valid")}
    assert names["bag of words"] < 1  # it cannot compare


def test_pictures_of_pairs(pairs: es.Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["look", str(pairs.path), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "words-gradient.png").exists()


def test_each_text_is_read_by_itself() -> None:
    torch.manual_seed(0)
    section = ClassifierSection(embedding_size=4, hidden_size=5)
    model = SequenceClassifier(9, OneOf("abc"), section, paired=True).eval()
    rows = [np.array(one) for one in ([1, 2, 9, 3], [9, 4, 5, 6], [7, 9], [9], [1, 2, 3, 4, 5, 9, 8])]
    batch = to_score(rows).batch(0, 0)
    found = model.read(batch.inputs, model.embedding(batch.inputs), batch.lengths)

    def vector(ids: np.ndarray[Any, Any]) -> torch.Tensor:
        embedded = model.embedding(torch.from_numpy(ids)[None])
        return model.body(embedded, lengths=torch.tensor([len(ids)]))[0][0]

    for place, ours in zip(batch.places.tolist(), found, strict=True):
        cut = int(np.flatnonzero(rows[place] == 9)[0])
        u, v = vector(rows[place][:cut]), vector(rows[place][cut + 1 :])
        torch.testing.assert_close(ours, torch.cat([u, v, (u - v).abs(), u * v]))


def test_two_columns_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a\tlabel\tb\nso it\tx\tgoes \n")
    (tmp_path / "b.jsonl").write_text('{"a": "so\\tit\\n goes", "b": "", "label": "y"}\n')
    found = read_labelled([tmp_path / "a.tsv", tmp_path / "b.jsonl"], text=("a", "b"))
    assert found.texts == ["so it\tgoes", "so it goes\t"]
    (tmp_path / "c.txt").write_text("__label__a x\n")
    with pytest.raises(DataError, match=r"for two texts \(data\.text\), got the format fasttext"):
        read_labelled(tmp_path / "c.txt", text=("a", "b"))
    with pytest.raises(DataError, match=r"b\.jsonl, line 1: expected a key 'c'"):
        read_labelled(tmp_path / "b.jsonl", text=("a", "c"))
    path = recipe(tmp_path, f"train: {tmp_path}/a.tsv, text: [a, b], format: lines")
    with pytest.raises(ConfigError, match=r"data\.text: expected one column, since files of format lines"):
        load_task(path)
    with pytest.raises(ConfigError, match=r"model\.reader: expected flat where data\.text names two columns"):
        load_task(path, ["data.format=auto", "model.reader=hierarchical"])


# ----------------------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize("read_out", ["attention", "mean"])
def test_a_document_is_read_sentence_by_sentence(read_out: Any) -> None:
    torch.manual_seed(0)
    section = ClassifierSection(embedding_size=4, hidden_size=5, reader="hierarchical", read_out=read_out)
    model = SequenceClassifier(9, OneOf("abc"), section, ends=(0,)).eval()
    assert isinstance(model.body, Hierarchy)
    random = np.random.default_rng(0)
    rows = [random.integers(0, 9, length) for length in (0, 1, 2, 30, 200)]
    rows += [np.full(130, 3), np.zeros(3, np.int64)]
    batch = to_score(rows).batch(0, 0)
    found = model.read(batch.inputs, model.embedding(batch.inputs), batch.lengths)
    for place, ours in zip(batch.places.tolist(), found, strict=True):
        sentences: list[list[int]] = [[]]
        for token in rows[place].tolist():
            sentences[-1].append(token)
            if token == 0 or len(sentences[-1]) == 60:
                sentences.append([])
        parts = [torch.tensor(one)[None] for one in sentences if one]
        vectors = [model.body.words(model.embedding(one))[0] for one in parts]
        whole = torch.stack(vectors, 1) if vectors else torch.zeros(1, 0, 10)
        torch.testing.assert_close(ours, model.body.sentences(whole)[0][0])
    for one, row in zip(relevance(model, to_score(rows)), rows, strict=True):
        assert (one.attention is None) == (read_out == "mean")
        if one.attention and len(row):
            assert sum(one.attention) == pytest.approx(1, abs=1e-5)


def test_documents_are_learned(tmp_path: Path) -> None:
    rows = [(f"Nothing here. It was {word}! And more.", label) for word, label in (("good", "x"), ("bad", "y"))] * 20
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    model = "model: {embedding_size: 8, hidden_size: 8, reader: hierarchical, read_out: attention}\n"
    run = es.train(recipe(tmp_path, f"train: {tmp_path}/t.tsv", model=model), tmp_path / "run", quietly)
    assert run.evaluate("valid")["accuracy"] == 1
    assert len(run.model.ends) == 2  # "." and "!", which the texts have
    (why,) = run.predict(["It was good! Nothing here"], explain=True)
    assert sum(why.record["explanation"]["attention"]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ConfigError, match=r"model\.reader: expected data\.unit words, chars or bytes"):
        load_task(tmp_path / "recipe.yaml", ["data.unit=bpe"])


# ------------------------------------------------------------------------------------------------ documents in pieces


@pytest.mark.parametrize("read_out", ["last", "mean", "max", "sum"])
def test_the_pieces_of_a_text_end_where_the_whole_does(read_out: Any) -> None:
    torch.manual_seed(0)
    section = ClassifierSection(embedding_size=4, hidden_size=5, bidirectional=False, read_out=read_out)
    model = SequenceClassifier(9, OneOf("abc"), section).double().eval()
    rows = [np.random.default_rng(0).integers(0, 9, length) for length in (0, 1, 4, 5, 11, 12)]
    batch = to_score(rows, np.array([0, 1, 2, 0, 1, 2])).batch(0, 0)
    losses = list(piece_losses(model, batch, None, 4))
    assert len(losses) == 3
    prefixes = torch.zeros(len(rows))
    for row, length in enumerate(batch.lengths.tolist()):
        for start in range(0, max(1, length), 4):
            stop = min(start + 4, length)
            log_p = model(batch.inputs[row : row + 1, : max(1, stop)], torch.tensor([stop]))[0]
            prefixes[row] -= log_p[batch.labels[row]] * ((stop - start) / length if length else 1)
    torch.testing.assert_close(sum(loss.total for loss in losses), prefixes)
    torch.testing.assert_close(sum(loss.reported for loss in losses), prefixes)
    whole = list(piece_losses(model, batch, torch.tensor([1.0, 2.0, 3.0]), 12))
    (plain,) = class_losses(model, batch, torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(whole[0].total, plain.total)


def test_gradients_end_where_a_piece_begins() -> None:
    section = ClassifierSection(embedding_size=4, hidden_size=5, bidirectional=False, read_out="last")
    model = SequenceClassifier(9, OneOf("abc"), section)
    batch = to_score([np.array([1, 2, 3, 4, 5])], np.array([1])).batch(0, 0)
    touched = []
    for loss in piece_losses(model, batch, None, 2):
        model.zero_grad()
        loss.total.sum().backward()
        assert model.embedding.weight.grad is not None
        touched.append(model.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist())
    assert touched == [[1, 2], [3, 4], [5]]


def test_long_texts_are_learned_in_pieces(tmp_path: Path) -> None:
    rows = [(f"so it {word} " + "goes on and on " * 5, label) for word, label in (("was", "x"), ("is", "y"))] * 20
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    model = "model: {embedding_size: 8, hidden_size: 8, bidirectional: false, read_out: max}\n"
    path = recipe(tmp_path, f"train: {tmp_path}/t.tsv", "objective: {bptt: 6}\n", model)
    assert es.train(path, tmp_path / "run", quietly).evaluate("valid")["accuracy"] == 1
    for key, told in (
        ("model.bidirectional=true", r"model\.bidirectional: expected false beside objective\.bptt"),
        ("model.read_out=attention", r"model\.read_out: expected one of last, sum, mean, max .*got attention"),
        ("model.reader=hierarchical", r"objective\.bptt: expected null beside model\.reader=hierarchical"),
        ("model.variational=true", r"model\.variational: expected false"),
    ):
        with pytest.raises(ConfigError, match=told):
            load_task(path, [key])
