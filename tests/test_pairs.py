"""Texts with their translations: readers, tokens, batches, and what is wrong with data."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.data import Tokenizer
from everstep.data.pair_batches import PairBatches, TokenSequences
from everstep.data.readers.json_array import array_entries
from everstep.data.readers.text_pairs import found_pairs, read_pairs
from everstep.data.text.language import Language
from everstep.data.text.moses import Moses
from everstep.errors import ConfigError, DataError
from everstep.measures.bleu import translation_measures
from everstep.runs import pair_tokens
from everstep.runs.directions import Direction
from everstep.runs.pair_data import PairTexts
from everstep.runs.pair_section import PairSection

ENGLISH = ["a man", "two dogs run", "", "it's a <eos> day"]
FRENCH = ["un homme", "deux chiens courent", "", "c'est un jour"]


def read(
    names: Any, source: Any = "en", target: Any = "fr", format: Any = "auto", encoding: str = "utf-8"
) -> list[tuple[str, str]]:
    found = found_pairs(names, source, target, format)
    return [(pair.source, pair.target) for pair in read_pairs(found, source, target, encoding)]


def two_files(folder: Path, one: Sequence[str] = ENGLISH, other: Sequence[str] = FRENCH) -> str:
    for language, lines in (("en", one), ("fr", other)):
        (folder / f"t.{language}").write_text("".join(f"{line}\n" for line in lines))
    return str(folder / "t")


# -------------------------------------------------------------------------------------------------------------- readers


def test_every_format_gives_the_same_pairs(tmp_path: Path) -> None:
    pairs = list(zip(ENGLISH, FRENCH, strict=True))
    assert read(two_files(tmp_path)) == pairs
    marked = "\ufeff" + "\r\n".join(ENGLISH) + "\r\n"
    (tmp_path / "m.en.gz").write_bytes(gzip.compress(marked.encode()))
    (tmp_path / "m.fr.xz").write_bytes(lzma.compress("\n".join(FRENCH).encode()))
    assert read(str(tmp_path / "m")) == pairs
    (tmp_path / "t.tsv").write_text("id\tfr\ten\n" + "".join(f"7\t{b}\t{a}\n" for a, b in pairs))
    assert read(str(tmp_path / "t.tsv")) == pairs
    (tmp_path / "plain.txt").write_text("".join(f"{a}\t{b}\tCC-BY\n" for a, b in pairs))
    assert read(str(tmp_path / "plain.txt"), 0, 1) == pairs
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"en": a, "fr": b}) + "\n" for a, b in pairs))
    assert read(str(tmp_path / "t.jsonl")) == pairs
    rows = "".join(json.dumps({"id": 1, "translation": {"en": a, "fr": b}}) + "\n" for a, b in pairs)
    (tmp_path / "hf.json").write_text(rows)
    assert read(str(tmp_path / "hf.json")) == pairs
    assert read([str(tmp_path / "t.tsv"), str(tmp_path / "hf.json")]) == pairs * 2


@pytest.mark.parametrize("indent", [None, 1])
def test_one_array_is_read_like_lines(tmp_path: Path, indent: int | None) -> None:
    pairs = [(f"größe {number}", f'"x" [{number}], {{}}') for number in range(3000)]
    entries = [{"id": number, "translation": {"en": a, "fr": b}} for number, (a, b) in enumerate(pairs)]
    (tmp_path / "t.json").write_text("\ufeff\r\n " + json.dumps(entries, indent=indent) + "\n")
    assert read(str(tmp_path / "t.json")) == pairs
    (tmp_path / "t.json.gz").write_bytes(gzip.compress((tmp_path / "t.json").read_bytes()))
    assert read(str(tmp_path / "t.json.gz"), format="jsonl") == pairs
    (tmp_path / "none.json").write_text("[ ]")
    assert read(str(tmp_path / "none.json")) == []


def test_a_table_whose_first_text_begins_with_a_bracket(tmp_path: Path) -> None:
    (tmp_path / "film.txt").write_text("[Music]\t[Musik]\nhello\thallo\n")
    assert read(str(tmp_path / "film.txt"), 0, 1) == [("[Music]", "[Musik]"), ("hello", "hallo")]
    (tmp_path / "array.txt").write_text('[\n {"en": "x", "fr": "y"}]')
    assert read(str(tmp_path / "array.txt")) == [("x", "y")]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_entries_of_an_array_cut_anywhere(size: int) -> None:
    values = [{"a": "]}, [{"}, 12, -3.5, "é\\n", None, [[], {}], True]
    text = json.dumps(values)
    cut = [text[start : start + size] for start in range(0, len(text), size)]
    assert list(array_entries(iter(cut), "t")) == list(enumerate(values, 1))
    with pytest.raises(DataError, match=r"t, entry 1: is no JSON"):
        list(array_entries(iter(["[" * 100_000]), "t"))


def test_a_format_that_is_given_wins_over_files_of_the_same_name(tmp_path: Path) -> None:
    name = two_files(tmp_path)
    Path(name).write_text("en\tfr\nx\ty\n")
    assert read(name, format="tsv") == [("x", "y")]
    assert read(name)[0] == ("a man", "un homme")


def test_white_space_inside_of_a_text_is_spaces(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"en": " a\nb\t", "fr": "c\u2028d"}) + "\n")
    assert read(str(tmp_path / "t.jsonl")) == [("a b", "c d")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.tsv", "de\tfr\nx\ty\n", r"line 1: expected a header that names a column 'en', got 'de', 'fr'"),
        ("t.tsv", "en\tfr\nx\n", r"line 2: expected 2 columns or more, separated by tabs, got 1"),
        ("t.jsonl", '{"en": "x"}\n', r"line 1: expected a key 'fr'"),
        ("t.jsonl", '{"en": "x", "fr": 3}\n', r"line 1: expected a string at 'fr', got 3"),
        ("t.jsonl", '{"en": "x"\n', r"line 1: is no JSON"),
        ("t.jsonl", "[\n", r"t\.jsonl, entry 1: is no JSON"),
        ("t.json", '[{"en": "x", "fr": "y"}, {"en": "x"}]', r"t\.json, entry 2: expected a key 'fr'"),
        ("t.json", '[{"en": "x", "fr": "y"} {', r"expected , or \] after entry 1 of the array, got '\{'"),
        ("t.json", '[{"en": "x", "fr": "y"}', r"after entry 1 of the array, got the end of the file"),
        ("t.json", '[{"en": "x", "fr": "y"}] 3', r"expected nothing after the array of 1 entries, got '3'"),
        ("t.json", "[3]", r"t\.json, entry 1: expected a JSON object, got 3"),
        ("t.json", '[{"en": nan}]', r"entry 1: is no JSON"),
        ("t.jsonl", "3\n", r"expected a JSON object, got 3"),
        ("t.jsonl", '{"en": "\\ud800", "fr": "y"}\n', r"half a surrogate pair"),
        ("t.txt", "no tab\n", r"cannot tell its format"),
        ("t.tsv", "en\tfr\nx\0\ty\n", r"it holds NUL bytes"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        read(str(tmp_path / name))


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.en has 4 lines, .*t\.fr has 2; expected as many"):
        read(two_files(tmp_path, other=FRENCH[:2]))
    (tmp_path / "t.fr").unlink()
    with pytest.raises(DataError, match=r"expected two files, .*t\.en and .*t\.fr .*; there is no .*t\.fr"):
        read(str(tmp_path / "t"))
    with pytest.raises(DataError, match=r"no file matches.*or the beginning of two files"):
        read(str(tmp_path / "nowhere"))
    (tmp_path / "t.fr").write_bytes("é\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"set data\.encoding=|Set data\.encoding="):
        read(str(tmp_path / "t"))


# --------------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("kind", ["words", "chars", "bytes", "bpe", "unigram"])
@pytest.mark.parametrize("reverse", [False, True])
def test_lines_come_back(kind: str, reverse: bool) -> None:
    text = [f"{line}\n" for line in ("a man and a dog", "two dogs run.", "größe 東")]
    size = {"max_size": 300} if kind in ("bpe", "unigram") else {}
    tokenizer = Tokenizer.train(
        text, kind, eos=True, unk=True if kind in ("words", "chars", "unigram") else None, **size
    )
    language = Language(tokenizer, reverse=reverse)
    lines = ["a dog and a man", "", "two", "a <eos> man"]
    coded = language.encode(lines)
    assert len(coded.lengths) == 4
    for number, line in enumerate(lines[:3]):
        *ids, end = coded.row(number)
        assert end == language.end
        assert language.text(ids[::-1] if reverse else ids) == line
    assert language.encode([]).lengths.tolist() == []
    assert coded.lengths[1] == 1
    if kind != "words":
        assert language.text(tokenizer.encode("a\nd", line_end=False)) in ("a d", "ad")


def test_moses_parts_and_joins() -> None:
    moses = Moses("de")
    line = 'Das ist "gut", nicht wahr? 3,5 & mehr.'
    assert moses.parted(line) == 'Das ist " gut " , nicht wahr ? 3,5 & mehr .'
    assert moses.joined(moses.parted(line)) == line
    tokenizer = Tokenizer.train([moses.parted(line) + "\n"], "words")
    language = Language(tokenizer, moses)
    assert language.text(language.encode([line]).row(0)) == line


def test_a_package_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everstep.data.text.moses.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs sacremoses: pip install 'everstep\[translation\]'"):
        Moses("de")
    assert list(PairSection(tokenisation="moses").problems(lambda key, name: None))


# -------------------------------------------------------------------------------------------------------------- batches


def sequences(lengths: Sequence[int]) -> TokenSequences:
    return TokenSequences.of(np.arange(sum(lengths)) % 50 + 1, np.array(lengths, np.int64))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=40),
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(5, 40)),
    st.booleans(),
)
def test_each_pair_is_in_one_batch_as_it_is(
    sizes: list[tuple[int, int]], rows: int, most: int | None, shuffle: bool
) -> None:
    source, target = (sequences([pair[side] for pair in sizes]) for side in (0, 1))
    batches = PairBatches(source, target, 99, rows, shuffle=shuffle, max_tokens=most)
    seen = []
    for index in range(len(batches)):
        batch = batches.batch(3, index)
        assert batch.count == int(batch.lengths.sum())
        assert batch.rows <= rows
        if most is not None and batch.rows > 1:
            assert batch.rows * max(batch.source.shape[1], batch.targets.shape[1]) <= most
        for row, place in enumerate(batch.places.tolist()):
            length, other = int(batch.lengths[row]), int(batch.source_lengths[row])
            assert batch.targets[row, :length].tolist() == target.row(place)
            assert batch.inputs[row, :length].tolist() == [99, *target.row(place)[:-1]]
            assert batch.source[row, :other].tolist() == source.row(place)
            for padded, end in ((batch.source, other), (batch.targets, length), (batch.inputs, length)):
                assert not padded[row, end:].any()
            seen.append(place)
    assert sorted(seen) == list(range(len(sizes)))
    assert batches.batch(3, 0).places.tolist() == batches.batch(3, 0).places.tolist()


def test_batches_are_of_similar_lengths_on_both_sides() -> None:
    random = np.random.default_rng(1)
    one = random.integers(5, 30, 4000)
    other = np.clip(one + random.integers(-6, 7, 4000), 1, None)
    batches = PairBatches(sequences(one), sequences(other), 0, 32)
    padding = [1 - batch.count / batch.targets.numel() for batch in (batches.batch(0, i) for i in range(len(batches)))]
    assert np.mean(padding) < 0.12  # by the source's length alone it is 25 %, in the order of the file 40 %


# ----------------------------------------------------------------------------------------------------------- the splits


def texts(train: str, **more: Any) -> PairTexts:
    return PairTexts(PairSection(train=train, unit="words", **more), 1)


def test_no_source_is_on_both_sides_of_the_cut(tmp_path: Path) -> None:
    english = [f"text {number % 30}" for number in range(90)]
    prefix = two_files(tmp_path, english, [f"texte {number}" for number in range(90)])
    found = texts(prefix, valid_fraction=0.2)
    train, valid = ({pair.source for pair in found.pairs(split)} for split in ("train", "valid"))
    assert len(valid) == 6
    assert len(train) == 24
    assert not train & valid
    assert len([*found.pairs("train"), *found.pairs("valid")]) == 90
    assert found.digest("train") != found.digest("valid")
    with pytest.raises(DataError, match=r"two different texts or more"):
        texts(two_files(tmp_path, ["a"] * 3, ["b"] * 3)).languages()


def test_what_is_left_out_is_counted_by_line(tmp_path: Path) -> None:
    prefix = two_files(
        tmp_path, ["a b", "", "a", "a " * 30, "c", "a", ""], ["x", "y", "", "z", "x y z w v u t s r q", "x", ""]
    )
    found = texts(prefix, valid_fraction=0, max_length=20, max_ratio=4, vocabulary="separate")
    sides = found.languages()
    assert not sides.joint
    told = "\n".join(found.told(sides))
    assert "train: 2 pairs of 5 and 4 tokens" in told
    assert "2 pairs left out, empty on one side: t.en, line 2; t.en, line 3" in told
    assert "1 pair left out, longer than 20 tokens (data.max_length): t.en, line 4" in told
    assert "1 pair left out, of lengths too far apart (data.max_ratio=4): t.en, line 5" in told
    assert "1 pair left out, blank on both sides: t.en, line 7" in told
    scored = found.coded("train", sides)
    assert len(scored.source.lengths) == 6  # all but the blank line are scored
    assert found.texts("train")[1] == ["x", "y", "", "z", "x y z w v u t s r q", "x"]
    with pytest.raises(DataError, match=r"data\.train: no pair is left to use \(1 empty on one side\)"):
        texts(two_files(tmp_path, ["a"], [""]), valid_fraction=0).coded("train", sides, learn=True)


def test_a_text_of_exactly_the_longest_length_is_learnt(tmp_path: Path) -> None:
    prefix = two_files(tmp_path, ["a b c", "a b c d"], ["x", "y"])
    found = texts(prefix, valid_fraction=0, max_length=3)
    assert found.coded("train", found.languages(), learn=True).source.lengths.tolist() == [4]


def test_a_passage_needs_a_pair_with_both_texts(tmp_path: Path) -> None:
    found = texts(two_files(tmp_path, ["a", ""], ["", "y"]), valid_fraction=0)
    with pytest.raises(DataError, match=r"no held-out pair has both texts; give a text \(--text FILE\)"):
        found.passage(None, 100, Direction("en", "fr"))


def test_texts_of_training_in_a_test_are_said(tmp_path: Path) -> None:
    prefix = two_files(tmp_path, ["a b", "c"], ["x", "y"])
    found = texts(prefix, valid_fraction=0, test=prefix)
    told = list(found.told(found.languages()))
    assert any("test: 2 of 2 source texts (100.0%) are also in the training data" in line for line in told)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"source": "fr"}, r"target: expected another than source"),
        ({"eos": False}, r"eos: expected null or true"),
        ({"tokenisation": "moses", "source": 0}, r"moses needs languages"),
        ({"unit": "bpe", "unk": True}, r"which has no unknown tokens"),
        ({"max_ratio": 0.5}, r"max_ratio"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PairSection(**settings)


# ------------------------------------------------------------------------------------------------------------ the cache


@pytest.fixture
def small_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, in which also small files are kept."""
    monkeypatch.setenv("EVERSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pair_tokens, "CACHED", 0)
    return tmp_path / "cache"


def test_tokens_are_kept_and_mapped(tmp_path: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = two_files(tmp_path, ["a b", "", "c c c", "d"] * 700, ["x", "y", "z z", ""] * 700)
    found = texts(prefix, valid_fraction=0.3, valid=None)
    sides = found.languages()
    with monkeypatch.context() as patch:
        patch.setattr(pair_tokens, "CACHED", 1 << 40)
        plain = texts(prefix, valid_fraction=0.3).coded("train", sides, learn=True)
    first = found.coded("train", sides, learn=True)
    assert isinstance(first.source.tokens, np.memmap)
    assert not list(small_cache.glob(".*"))

    def fail(*given: Any) -> Any:
        raise AssertionError("tokenised again")

    with monkeypatch.context() as patch:
        patch.setattr(Language, "encode", fail)
        again = texts(prefix, valid_fraction=0.3).coded("train", sides, learn=True)
    for coded in (first, again):
        assert coded.left_out == plain.left_out
        for side in (0, 1):
            for kept, wanted in zip(coded[side], plain[side], strict=True):
                np.testing.assert_array_equal(kept, wanted)
    assert (
        texts(prefix, valid_fraction=0.3).coded("valid", sides).source.lengths.tolist() != first.source.lengths.tolist()
    )


def test_tokens_that_are_damaged_or_of_other_files_are_made_again(tmp_path: Path, small_cache: Path) -> None:
    prefix = two_files(tmp_path, ["a b", "c"], ["x", "y"])
    found = texts(prefix, valid_fraction=0)
    sides = found.languages()
    wanted = found.coded("train", sides).source.tokens.tolist()
    (folder,) = small_cache.glob("pairs-*")
    for name in ("source.bin", "source.starts", "source.lengths", "pairs.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert found.coded("train", sides).source.tokens.tolist() == wanted
    two_files(tmp_path, ["c", "a b"], ["x", "y"])
    assert found.coded("train", sides).source.tokens.tolist() != wanted
    assert len(list(small_cache.glob("pairs-*"))) == 2


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, small_cache: Path) -> None:
    found = texts(two_files(tmp_path, ["a"], ["x"]), valid_fraction=0)
    small_cache.write_text("a file")
    with pytest.raises(DataError, match=r"token files cannot be written there"):
        found.coded("train", found.languages())


# ------------------------------------------------------------------------------------------------------------- measures


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    found, references = ["the cat sat on the mat .", "a dog"], ["The cat sat on a mat.", "a dog"]
    measures = translation_measures(found, references)
    assert 0 < measures["bleu"] < 100
    assert "tok:13a" in measures["bleu_signature"]
    lower = translation_measures(found, references, lowercase=True)
    assert lower["bleu"] > measures["bleu"]
    assert "case:lc" in lower["bleu_signature"]
    assert translation_measures(["a b c d", ""], ["a b c d", ""], tokenised=True)["bleu"] == pytest.approx(100)
    assert translation_measures([""], ["a b c d"])["bleu"] == 0
    with pytest.raises(ValueError, match="one reference for each"):
        translation_measures(["a"], [])
