"""N-grams beside a network: what they say is counted, and a text never hears of itself."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import everstep as es
from everstep.errors import ConfigError
from everstep.networks.answers import OneOf
from everstep.networks.classifying import class_losses, to_score
from everstep.networks.ngram_ratios import NgramRatios
from everstep.networks.sequence_classifier import ClassifierSection, SequenceClassifier
from everstep.networks.token_contributions import relevance

LONGEST, CLASSES = 3, 3


def grams(tokens: list[int]) -> set[tuple[int, ...]]:
    return {tuple(tokens[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(tokens) - n + 1)}


def by_hand(texts: list[list[int]], labels: list[int], tokens: list[int], own: int | None) -> list[float]:
    """The formula of the docstring, with dictionaries."""
    counts = [
        Counter(f for text, k in zip(texts, labels, strict=True) if k == of for f in grams(text)) for of in range(3)
    ]
    totals = [sum(c.values()) + len(set().union(*counts)) for c in counts]
    found = np.zeros(CLASSES)
    for f in grams(tokens):
        often = [c[f] - (k == own) for k, c in enumerate(counts)]
        ratios = np.array([math.log((c + 1) / total) for c, total in zip(often, totals, strict=True)])
        found += (ratios - ratios.mean()) * (sum(often) > 0)
    return list(0.7 * found / math.sqrt(max(1, len(grams(tokens)))))


@pytest.fixture(scope="module")
def drawn() -> tuple[list[list[int]], list[int], NgramRatios]:
    random = np.random.default_rng(0)
    texts = [random.integers(0, 12, length).tolist() for length in (0, 1, 2, 3, 5, 9, 9, 14, 30, 30)]
    labels = random.integers(0, CLASSES, len(texts)).tolist()
    ratios = NgramRatios(LONGEST, CLASSES)
    ratios.scale.data.fill_(0.7)
    ratios.count(to_score([np.array(text, np.int64) for text in texts], np.array(labels)))
    return texts, labels, ratios


def test_the_formula(drawn: tuple[list[list[int]], list[int], NgramRatios]) -> None:
    texts, labels, ratios = drawn
    batch = to_score([np.array(text, np.int64) for text in texts], np.array(labels)).batch(0, 0)
    for own in (None, batch.labels):
        parts = ratios.parts(batch.inputs, batch.lengths, own)
        torch.testing.assert_close(parts.sum(1), ratios(batch.inputs, batch.lengths, own))
        for row, place in enumerate(batch.places.tolist()):
            wanted = by_hand(texts, labels, texts[place], None if own is None else labels[place])
            assert parts[row].sum(0).tolist() == pytest.approx(wanted, abs=1e-5)
            assert not parts[row, len(texts[place]) :].any()
    new = torch.tensor([[40, 41, 3, 99]])
    assert ratios(new, torch.tensor([4]))[0].tolist() == pytest.approx(
        by_hand(texts, labels, new[0].tolist(), None), abs=1e-5
    )


def test_what_occurs_in_one_text_alone_does_not_tell_its_class() -> None:
    texts = [np.arange(5) + 10 * number for number in range(40)]
    labels = np.random.default_rng(1).integers(0, 2, 40)
    ratios = NgramRatios(2, 2)
    ratios.count(batches := to_score(texts, labels))
    batch = batches.batch(0, 0)
    assert not ratios(batch.inputs, batch.lengths, batch.labels).any()
    seen = ratios(batch.inputs, batch.lengths)
    assert (seen.argmax(1) == batch.labels).all()  # at prediction they are as any texts


def test_learning_leaves_the_own_count_out_and_scoring_does_not() -> None:
    section = ClassifierSection(embedding_size=3, hidden_size=3, ngrams=2)
    model = SequenceClassifier(9, OneOf("ab"), section)
    assert model.ratios is not None
    batches = to_score([np.array([1, 2]), np.array([1, 3]), np.array([4, 2])], np.array([0, 1, 1]))
    model.ratios.count(batches)
    batch = batches.batch(0, 0)
    for training, own in ((True, batch.labels), (False, None)):
        (loss,) = class_losses(model.train(training), batch, None)
        log_p = model.logits(batch.inputs, batch.lengths, own).log_softmax(-1)
        torch.testing.assert_close(loss.total, -log_p[range(3), batch.labels])
    loss.total.sum().backward()
    assert model.ratios.scale.grad is not None
    assert not model.ratios.counts.requires_grad


def test_reasons_hold_what_n_grams_say() -> None:
    section = ClassifierSection(embedding_size=3, hidden_size=3, ngrams=2)
    model = SequenceClassifier(9, OneOf("ab"), section)
    model.head.weight.data.zero_()
    batches = to_score([np.array([1, 2]), np.array([1, 3]), np.array([4, 2])], np.array([0, 1, 1]))
    assert model.ratios is not None
    model.ratios.count(batches)
    tokens = torch.tensor([[1, 4, 2]])
    parts = model.ratios.parts(tokens, torch.tensor([3]))[0]
    ahead = int(parts.sum(0).argmax())
    (found,) = relevance(model, to_score([tokens[0].numpy()]))
    assert found.gradient == pytest.approx((parts[:, ahead] - parts[:, 1 - ahead]).tolist(), abs=1e-6)


def test_a_run_keeps_its_counts(tmp_path: Path) -> None:
    rows = [
        (f"{word} thing number{number % 7}", label) for number in range(20) for word, label in (("a", "x"), ("b", "y"))
    ]
    (tmp_path / "t.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows]))
    settings = [
        "model.ngrams=2",
        "model.hidden_size=4",
        "model.embedding_size=4",
        "train.max_epochs=2",
        "train.threads=1",
    ]
    overrides = [f"data.train={tmp_path}/t.tsv", *settings, "train.patience=null"]
    run = es.train("classify-own", tmp_path / "run", lambda line: None, overrides=overrides)
    kept = load_file(tmp_path / "run" / "model.safetensors")["ratios.counts"]
    assert kept.sum() == 36 * 5  # 36 texts to learn from, of three words and two pairs
    assert run.evaluate("valid")["accuracy"] == 1
    assert es.load(tmp_path / "run").evaluate("valid") == run.evaluate("valid")


def test_too_many_classes_to_count() -> None:
    section = ClassifierSection(embedding_size=3, hidden_size=3, ngrams=1)
    with pytest.raises(
        ConfigError, match=r"model\.ngrams: expected 0 where there are more than 64 classes; there are 65"
    ):
        SequenceClassifier(9, OneOf([str(k) for k in range(65)]), section)
