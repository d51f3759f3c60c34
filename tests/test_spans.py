"""Spans as tags: schemes, what they allow, and figures that equal conlleval's to the byte."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from everstep.errors import DataError
from everstep.measures import Part, aligned_accuracy, aligned_words, conlleval, span_measures
from everstep.measures.tag_schemes import LETTERS, Scheme, Span, broken, converted, recognised, spans, tags_of
from everstep.networks.tag_columns import TagColumn

ALIGNED = json.loads((Path(__file__).parent / "fixtures" / "conll18.json").read_text("utf-8"))["cases"]
CASES = json.loads((Path(__file__).parent / "fixtures" / "conlleval.json").read_text("utf-8"))["cases"]
SCHEMES: list[Scheme] = ["iob1", "iob2", "iobes", "bilou"]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_what_conlleval_prints(case: dict[str, Any]) -> None:
    assert conlleval(case["targets"], case["predictions"], case["scheme"]) == case["printed"]


def test_words_of_two_tokenisers_are_aligned_as_in_the_shared_task() -> None:
    for case in ALIGNED:
        gold, system = ([Part(surface, tuple(words)) for surface, words in case[side]] for side in ("gold", "system"))
        assert len(aligned_words(gold, system)) == case["aligned"]
        found = aligned_accuracy(gold, case["tags"], system, case["predicted"])
        assert found == pytest.approx(case["f1"], abs=1e-12)
    assert aligned_accuracy([], [], [], []) == 0
    with pytest.raises(ValueError, match=r"expected the same characters; they differ at 'ab' and 'ac'"):
        aligned_words([Part("ab", ("ab",))], [Part("a c", ("ac",))])
    with pytest.raises(ValueError, match=r"as many tags as words, \[1, 1\], got 0 and 1"):
        aligned_accuracy([Part("a", ("a",))], [], [Part("a", ("a",))], ["X"])


def layouts(length: int) -> list[list[Span]]:
    """Every way to lay spans of two types over a sentence."""
    if length == 0:
        return [[]]
    found = layouts(length - 1)  # the last word is outside
    for start in range(length):
        found += [[*before, Span(start, length, kind)] for before in layouts(start) for kind in ("X", "a-b")]
    return found


def test_every_scheme_holds_every_layout_of_spans() -> None:
    every = layouts(4)
    assert len(every) == 153
    for one in every:
        for scheme in SCHEMES:
            tags = tags_of(one, 4, scheme)
            assert spans(tags, scheme) == spans(tags, scheme, strict=True) == one
            assert broken(tags, scheme) == []
            for other in SCHEMES:
                assert converted(tags, scheme, other) == tags_of(one, 4, other)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_allowed_is_what_is_written_of_some_spans(scheme: Scheme) -> None:
    """Of all sequences of four tags, those without a broken transition are those that spans are written as."""
    tags = ["O", *(f"{letter}-{kind}" for letter in LETTERS[scheme] for kind in ("X", "a-b"))]
    written = {tuple(tags_of(one, 4, scheme)) for one in layouts(4)}
    assert {some for some in product(tags, repeat=4) if not broken(some, scheme)} == written
    strict = {some: spans(some, scheme, strict=True) for some in product(tags, repeat=2)}
    assert all(set(found) <= set(spans(some, scheme)) for some, found in strict.items())


def test_schemes_are_recognised() -> None:
    one = [Span(0, 2, "X"), Span(2, 3, "X"), Span(4, 5, "Y")]
    assert [recognised([tags_of(one, 6, scheme)]) for scheme in SCHEMES] == SCHEMES
    assert recognised([["O", "O"]]) is None
    assert recognised([["DET", "NOUN"], ["O", "B-X"]]) is None
    assert recognised([["B", "I", "O"]]) == "iob2"
    assert recognised([["B-X", "I-X", "E-X", "L-X"]]) is None  # of two schemes


def test_broken_transitions_are_told() -> None:
    column = TagColumn.of("ner", [["B-X", "I-X", "O"]], "auto", "iobes")
    assert list(column.breaks(["O", "I-X", "I-Y"])) == [
        (1, "I-X after O is no transition of iob2"),
        (2, "I-Y after I-X is no transition of iob2"),
    ]
    whole = TagColumn.of("ner", [["B-X", "E-X", "S-X"]], "auto", "same")
    assert list(whole.breaks(["B-X"])) == [(0, "the end after B-X is no transition of iobes")]
    with pytest.raises(DataError, match=r"data\.scheme=iob2: expected tags of spans.*in column pos; got 'NOUN'"):
        TagColumn.of("pos", [["NOUN"]], "iob2", "iobes")


def test_what_a_model_learns_and_writes() -> None:
    data = ["I-X", "B-X", "I-X", "O", "I-Y"]
    column = TagColumn.of("ner", [data, ["O", "I-X"]], "auto", "iobes")
    assert (column.scheme, column.learned, len(column.tags)) == ("iob1", "iobes", 9)
    assert [column.tags[number] for number in column.numbers(data)] == ["S-X", "B-X", "E-X", "O", "S-Y"]
    assert column.written(column.numbers(data)) == data
    assert column.numbers(["I-Z", "O", "?"]) == [-1, 0, -1]  # a type, and a tag, that training never saw
    follows, first, last = column.allowed() or ()
    names = column.tags
    pairs = [(names.index("B-X"), names.index("E-X")), (names.index("B-X"), names.index("O"))]
    assert [bool(follows[pair]) for pair in pairs] == [True, False]
    assert [bool(first[names.index(tag)]) for tag in ("B-X", "E-X")] == [True, False]
    assert [bool(last[names.index(tag)]) for tag in ("B-X", "E-X")] == [False, True]
    invalid = TagColumn.of("ner", [["B-X", "O", "I-X", "I-Y"]], "iobes", "iobes")  # it is IOB2
    assert [invalid.tags[number] for number in invalid.numbers(["B-X", "O", "I-X", "I-Y"])] == [
        "S-X",
        "O",
        "S-X",
        "S-Y",
    ]
    assert invalid.numbers(["S-Z", "?"]) == [-1, -1]
    plain = TagColumn.of("pos", [["NOUN", "DET"]], "auto", "iobes")
    assert (plain.scheme, plain.tags, plain.outside, plain.allowed()) == (None, ("DET", "NOUN"), "_", None)
    assert TagColumn.from_json(json.loads(json.dumps(column.to_json()))) == column


def test_lenient_and_strict_figures_differ_as_they_should() -> None:
    found = span_measures([["B-X", "I-X", "O", "B-X"]], [["I-X", "I-X", "O", "B-X"]])
    assert found.total.figures == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert found.strict.figures == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3)}
    assert found.accuracy == 0.75
    with pytest.raises(ValueError, match="as many predictions as tags"):
        span_measures([["O"]], [["O", "O"]])
