"""The bundled reviews are what their script writes, and in their pairs only order decides."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from everstep.data.readers.labelled import Labelled, read_labelled
from everstep.data.text.text_files import expand, read_blocks

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import make_reviews

    return make_reviews


@pytest.fixture(scope="module")
def reviews() -> dict[str, Labelled]:
    return {name: read_labelled(f"everstep:reviews.{name}") for name in ("train", "valid", "test", "pairs")}


def bag(text: str) -> str:
    return " ".join(sorted(text.split()))


def mirrored(data: Labelled) -> list[str]:
    """The texts whose words stand in another text of the other class."""
    classes = defaultdict(set)
    for text, label in zip(data.texts, data.labels, strict=True):
        classes[bag(text)].add(label)
    return [text for text in data.texts if len(classes[bag(text)]) == 2]


def test_the_script_writes_what_is_shipped(script, tmp_path, capsys):
    script.main(tmp_path)
    assert "6000 texts" in capsys.readouterr().out
    for path in tmp_path.iterdir():
        shipped = expand(f"everstep:{path.name.removesuffix('.tsv.xz')}")
        assert "".join(read_blocks(path)) == "".join(read_blocks(shipped))


def test_sizes_and_balance(reviews):
    for name, size in (("train", 6000), ("valid", 800), ("test", 800), ("pairs", 400)):
        data = reviews[name]
        assert Counter(data.labels) == {"positive": size // 2, "negative": size // 2}
        assert len(set(data.texts)) == size
        assert (data.skipped, data.notes) == ({}, [])
        assert len(mirrored(data)) == (size if name == "pairs" else size // 2)


def test_pairs_are_made_alike(reviews):
    texts, labels = reviews["pairs"].texts, reviews["pairs"].labels
    assert texts[:2] == ["the food was good , not bad at all", "the food was bad , not good at all"]
    for (first, second), (one, other) in list(zip(pairwise(texts), pairwise(labels), strict=True))[::2]:
        assert bag(first) == bag(second)
        assert first != second
        assert (one, other) == ("positive", "negative")
        assert ", not " in first


def test_a_pair_that_is_denied_changes_its_classes(reviews, script):
    shape = "they wrote that the {thing} was {a} , not {b} , and they were wrong"
    assert script._mirrored(shape, {"thing": "food"}, ("good", "bad"), denied=True) == [
        ("they wrote that the food was bad , not good , and they were wrong", "positive"),
        ("they wrote that the food was good , not bad , and they were wrong", "negative"),
    ]
    for name in ("train", "valid", "test"):
        pairs = mirrored(reviews[name])
        tells = (" can not ", " is not true ", " a fool ", " wrong", " false")
        denied = [text for text in pairs if any(tell in f" {text}" for tell in tells)]
        assert 2 * len(denied) == len(pairs)


def test_what_stands_together_in_the_test_never_does_in_training(reviews, script):
    opinions = {*script.GOOD, *script.BAD}

    def together(name: str) -> set[frozenset[str]]:
        found = {frozenset(word for word in text.split() if word in opinions) for text in reviews[name].texts}
        assert {len(pair) for pair in found} == {2}
        return found

    for name in ("valid", "test", "pairs"):
        assert not together(name) & together("train")
    words = {word for text in reviews["train"].texts for word in text.split()}
    for name in ("valid", "test", "pairs"):
        assert {word for text in reviews[name].texts for word in text.split()} <= words
