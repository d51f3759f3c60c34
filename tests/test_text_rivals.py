"""What recurrent classifiers are held against: the figures, what is chosen on what, and the bounds."""

from __future__ import annotations

import importlib.util
import math
import sys

import numpy as np
import pytest

from everstep.data.readers.labelled import read_labelled
from everstep.data.readers.trees import read_trees
from everstep.errors import ConfigError
from everstep.rivals import Rival, WordTexts, text_classes, text_rivals
from everstep.rivals.class_means import ClassMeans

pytestmark = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")


def drawn(count: int, seed: int, classes: int = 2) -> WordTexts:
    """Texts of which two words in three tell the class."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, count)
    told = np.where(random.random((count, 6)) < 0.3, targets[:, None], random.integers(0, classes, (count, 6)))
    words = [[f"w{number}x{random.integers(9)}" for number in row[: random.integers(1, 7)]] for row in told]
    return WordTexts(words, targets)


def reviews(name: str) -> WordTexts:
    data = read_labelled(f"everstep:reviews.{name}")
    return WordTexts([text.split() for text in data.texts], data.ids())


def by_name(rivals: list[Rival]) -> dict[str, Rival]:
    return {rival.name.split(",")[0]: rival for rival in rivals}


def test_where_order_decides_counts_are_at_chance():
    found = by_name(text_rivals(reviews("train"), reviews("pairs"), reviews("valid"), classes=2))
    assert list(found) == ["majority class", "bag of words", "bag of n-grams", "last 5 words", "one big window"]
    assert found["majority class"].accuracy == 0.5
    assert found["bag of words"].accuracy == 0.5
    assert found["bag of words"].nats > math.log(2) - 1e-9
    assert all(rival.accuracy < 0.6 for rival in found.values())
    both = by_name(text_rivals(reviews("train"), reviews("test"), reviews("valid"), classes=2))
    assert both["bag of words"].accuracy == 0.75  # the easy half, and half of the pairs
    assert all(rival.accuracy < 0.8 for rival in both.values())
    assert all(rival.texts == 6000 and rival.seconds > 0 for rival in found.values())


def test_the_majority_by_hand():
    train = WordTexts([["a"]] * 5, np.array([0, 0, 0, 1, 2]))
    majority = text_rivals(train, WordTexts([["a"]] * 2, np.array([0, 3])), classes=4)[0]
    assert majority.accuracy == 0.5
    assert majority.macro_f1 == pytest.approx((2 / 3 + 0) / 2)
    assert majority.nats == pytest.approx(-(math.log(4 / 9) + math.log(1 / 9)) / 2)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_bag_is_scikit_learns(classes):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score, log_loss
    from sklearn.pipeline import make_pipeline

    train, test = drawn(300, 0, classes), drawn(200, 1, classes)
    pipeline = make_pipeline(
        TfidfVectorizer(token_pattern=r"\S+", lowercase=False, binary=True, ngram_range=(1, 2)),
        LogisticRegression(C=4.0, max_iter=1000),
    )
    pipeline.fit([" ".join(words) for words in train.words], train.targets)
    texts = [" ".join(words) for words in test.words]
    rival = by_name(text_rivals(train, test, classes=classes))["bag of n-grams"]
    assert rival.accuracy == pytest.approx(pipeline.score(texts, test.targets), abs=0.011)
    assert rival.macro_f1 == pytest.approx(f1_score(test.targets, pipeline.predict(texts), average="macro"), abs=0.02)
    assert rival.nats == pytest.approx(log_loss(test.targets, pipeline.predict_proba(texts)), abs=0.01)
    assert rival.chosen == ""


def test_held_out_texts_choose_and_test_texts_do_not(monkeypatch):
    train, valid = drawn(300, 0), drawn(100, 1)
    chosen = {name: rival.chosen for name, rival in by_name(text_rivals(train, drawn(50, 2), valid, classes=2)).items()}
    for seed in (3, 4):
        other = by_name(text_rivals(train, drawn(50, seed), valid, classes=2))
        assert {name: rival.chosen for name, rival in other.items()} == chosen
    on_valid = {}
    for strength in text_classes.STRENGTHS:
        monkeypatch.setattr(text_classes, "STRENGTHS", (strength,))
        on_valid[f"C = {strength:g}"] = by_name(text_rivals(train, valid, valid, classes=2))
    assert len({rivals["last 5 words"].nats for rivals in on_valid.values()}) == 3
    for name in ("bag of words", "last 5 words", "one big window"):
        best = min(on_valid, key=lambda told: (-on_valid[told][name].accuracy, on_valid[told][name].nats))
        assert chosen[name] == best


def test_windows_see_places_from_the_end():
    # the class is the word two before the end: every window sees it, a bag does not
    random = np.random.default_rng(0)
    words = random.choice(["a", "b"], (400, 8))
    targets = (words[:, -3] == "a").astype(np.int64)
    texts = WordTexts(
        [["c"] * int(extra) + list(row) for extra, row in zip(random.integers(0, 4, 400), words, strict=True)], targets
    )
    test = WordTexts(texts.words[:100], targets[:100])
    train = WordTexts(texts.words[100:], targets[100:])
    found = by_name(text_rivals(train, test, classes=2))
    assert found["last 5 words"].accuracy == found["one big window"].accuracy == 1.0
    assert found["bag of words"].accuracy < 0.8
    assert by_name(text_rivals(train, test, classes=2, window=2))["last 2 words"].accuracy < 0.8
    assert [rival.name for rival in text_rivals(train, test, classes=2)][-1] == "one big window, 11 words"


def test_long_texts_are_seen_through_fifty_places():
    texts = WordTexts([["a"] * 70 + ["b"], ["b"] * 60 + ["a"]], np.array([0, 1]))
    assert text_rivals(texts, texts, classes=2)[-1].name == "one big window, 50 words"


def test_too_many_words_are_cut_evenly_and_no_class_is_lost():
    train = drawn(1000, 0, 3)
    train.targets[500] = 3
    found = text_rivals(train, WordTexts([["w1x1"], ["w0x0"]], np.array([3, 0])), classes=4, most_words=400)
    assert found[0].texts == 1000
    assert all(90 < rival.texts < 150 for rival in found[1:])
    assert all(math.isfinite(rival.nats) for rival in found)


def test_a_class_that_training_never_saw_costs_infinitely():
    found = text_rivals(drawn(100, 0), WordTexts([["w1x1"], ["w0x0"]], np.array([2, 0])), classes=3)
    assert math.isfinite(found[0].nats)
    assert all(rival.nats == math.inf and rival.accuracy <= 0.5 for rival in found[1:])


def test_very_many_classes_are_told_by_their_means(monkeypatch):
    train, valid, test = (drawn(count, seed, 300) for count, seed in ((3000, 0), (300, 1), (300, 2)))
    found = text_rivals(train, test, valid, classes=400)
    assert [rival.name for rival in found][:3] == ["majority class", "bag of words", "bag of n-grams"]
    assert all(rival.texts == 3000 for rival in found)
    bag = by_name(found)["bag of words"]
    assert bag.accuracy > 20 * found[0].accuracy
    assert bag.nats < found[0].nats - 1
    assert bag.chosen.startswith("β = ")
    monkeypatch.setattr(text_classes, "_AT_ONCE", 1000)  # two texts at a time
    again = by_name(text_rivals(train, test, valid, classes=400))["bag of words"]
    assert (again.accuracy, again.nats) == (bag.accuracy, pytest.approx(bag.nats, rel=1e-12))


def test_class_means_by_hand():
    from scipy.sparse import csr_array

    vectors = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    model = ClassMeans(csr_array(vectors), np.array([5, 5, 2]), sharpness=3.0)
    mean = vectors[:2].mean(0)
    scores = 3 * np.array([[0.0, vectors[1] @ mean / np.linalg.norm(mean)]])
    want = scores - np.log(np.exp(scores).sum())
    assert list(model.classes_) == [2, 5]
    np.testing.assert_allclose(model.predict_log_proba(csr_array(vectors[1:2])), want, rtol=1e-12)


def test_what_is_missing_is_told(monkeypatch):
    texts = drawn(20, 0)
    with pytest.raises(ValueError, match="valid: expected texts and as many targets, got 0 and 0"):
        text_rivals(texts, texts, WordTexts([], np.array([], np.int64)), classes=2)
    with pytest.raises(ValueError, match=r"test: expected targets 0 … 1, got one of 2"):
        text_rivals(texts, WordTexts([["a"]], np.array([2])), classes=2)
    with pytest.raises(ValueError, match="train: expected at least two classes"):
        text_rivals(WordTexts([["a"]], np.array([1])), texts, classes=2)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"need scikit-learn .*pip install 'everstep\[classification\]'"):
        text_rivals(texts, texts, classes=2)


@pytest.mark.slow
def test_the_stanford_sentences(shared_data):
    sets = []
    for name in ("train.txt.gz", "dev.txt", "test.txt"):
        trees = [tree for tree in read_trees([shared_data / "sst" / name]) if tree.label != "2"]
        words = [[word.lower() for word in tree.leaves] for tree in trees]
        sets.append(WordTexts(words, np.array([tree.label > "2" for tree in trees], np.int64)))
    train, valid, test = sets
    found = by_name(text_rivals(train, test, valid, classes=2))
    assert found["majority class"].accuracy == pytest.approx(909 / 1821)
    assert found["bag of n-grams"].accuracy == pytest.approx(0.811, abs=0.006)
    assert found["one big window"].accuracy < 0.72
