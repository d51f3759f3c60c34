"""Text to ids and back is the same text, for every unit, whole and as it comes; where a unit cannot, it is said how."""

from __future__ import annotations

import json
from functools import cache
from itertools import chain, pairwise

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from everstep.data.text.tokenizer import Tokenizer
from everstep.data.text.vocabulary import KINDS

LETTERS = "abe ▁▂\t\r\x0c\x1c\u0085\u00a0\u2028\ufeff\n\0é\u0301ﬁ🙂東<>|_\\\u200b\ufffd"
SAMPLE = (LETTERS + "\n") * 3 + "to be or not to be ▁▂▃ cpu ▁ ▁▁ be\n" * 5
SIZES = {"bpe": 300, "unigram": 90}


@cache
def made(kind: str, eos: bool) -> Tokenizer:
    return Tokenizer.train([SAMPLE], kind, eos=eos, unk=False, max_size=SIZES.get(kind))


texts = st.text(LETTERS + "cpu▃tnor", max_size=30)


def expected(text: str, kind: str) -> str:
    """Words keep nothing of white space but lines; every other unit keeps all."""
    if kind != "words":
        return text
    lines = [" ".join(line.split()) for line in text.split("\n")]
    return "\n".join(lines)


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back(kind: str, eos: bool) -> None:
    fixed = made(kind, eos)

    @settings(max_examples=120, deadline=None, database=None)
    @given(text=texts)
    @example(text="cpu ▁▂▃")
    @example(text="▁ ▁")
    def comes_back(text: str) -> None:
        tokenizer = fixed
        if kind == "words":  # a vocabulary that has them
            tokenizer = Tokenizer.train([SAMPLE, text], kind, eos=eos, unk=False)
        ids = tokenizer.encode(text, line_end=False)
        assert tokenizer.decode(ids) == expected(text, kind)

    comes_back()


@settings(max_examples=100, deadline=None)
@given(text=texts, kind=st.sampled_from(KINDS), cuts=st.lists(st.integers(0, 30), max_size=5))
def test_what_is_spelled_as_it_comes_joins_to_the_same_text(text: str, kind: str, cuts: list[int]) -> None:
    tokenizer = Tokenizer.train([SAMPLE, text], "words") if kind == "words" else made(kind, True)
    ids = tokenizer.encode(text, line_end=False).tolist()
    bounds = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    speller = tokenizer.speller()
    parts = [speller.spell(ids[a:b]) for a, b in pairwise(bounds)]
    assert "".join(chain(parts, [speller.end()])) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_any_ids_are_spelled_as_they_are_decoded(kind: str) -> None:
    tokenizer = made(kind, False)

    @settings(max_examples=100, deadline=None, database=None)
    @given(ids=st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    def alike(ids: list[int]) -> None:
        speller = tokenizer.speller()
        parts = [speller.spell([i]) for i in ids]
        assert "".join([*parts, speller.end()]) == tokenizer.decode(ids)

    alike()


def test_a_lower_bar_of_the_text_is_told_from_a_space() -> None:
    tokenizer = made("unigram", False)
    assert "\\u2581" in tokenizer.symbols
    assert "▁" in tokenizer.symbols  # the space
    plain = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    assert plain.decode(plain.encode("cpu ▁▂ be").ids) == "cpu ▁▂ be"


def test_a_tokenizer_saved_without_that_distinction_still_gives_its_ids() -> None:
    described = json.loads(made("unigram", True).to_json())
    described["normalizer"]["normalizers"] = described["normalizer"]["normalizers"][:1]
    described["decoder"]["decoders"] = described["decoder"]["decoders"][:-1]
    old = Tokenizer.from_json(json.dumps(described))
    assert (old.eos_id, old.newline_id) == (0, 0)
    assert old.decode(old.encode("a be\n")) == "a be\n"
    assert old.encode("a ▁").tolist() == old.encode("a  ").tolist()
