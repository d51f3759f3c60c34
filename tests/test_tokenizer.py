"""Tokenizers: known counts, exact round trips, and the same ids as the Hugging Face tokenizer of the saved file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.data.text.text_files import expand, read_blocks
from everstep.data.text.tokenizer import Tokenizer
from everstep.data.text.vocabulary import KINDS
from everstep.errors import DataError

DATA = Path(os.environ.get("EVERSTEP_DATA") or Path(__file__).parent.parent / "../shared/data")
SAMPLE = (
    "To be, or not to be: that is the question.\n  two  spaces\tand a tab\n\nNaïve café, 東京 — déjà vu 🙂\n"
    "<unk> is a word and so is <eos>\nÅ Ångström ﬁn İstanbul ẞ\n"
) * 3
texts = st.text(st.sampled_from("aAbe \n\t\r\x1c\u00a0\u2028é\u0301ﬁİ🙂<>osunk東▁"), max_size=40) | st.text(max_size=30)


@pytest.fixture(scope="module")
def shakespeare() -> str:
    return "".join(read_blocks(expand("everstep:shakespeare")))


def test_penn_treebank_has_its_published_counts():
    path = DATA / "ptb" / "ptb.train.txt.gz"
    if not path.is_file():
        pytest.skip(f"needs {path}: set EVERSTEP_DATA")
    text = "".join(read_blocks(path))
    tokenizer = Tokenizer.train(read_blocks(path), "words")
    assert tokenizer.vocab_size == 10_000
    assert (tokenizer.eos_id, tokenizer.unk_id, tokenizer.begin_id) == (0, 1, 0)
    assert tokenizer.symbols[2:4] == ["the", "N"]
    assert len(tokenizer.encode(text)) == tokenizer.count(text).words == 929_589
    assert len(Tokenizer.train([text], "chars").symbols) == 50


def test_shakespeare_has_65_characters(shakespeare):
    tokenizer = Tokenizer.train([shakespeare], "chars")
    assert tokenizer.vocab_size == 65
    assert tokenizer.symbols[:3] == [" ", "e", "t"]
    assert tokenizer.symbols[tokenizer.begin_id] == "\\n"
    assert (tokenizer.eos_id, tokenizer.unk_id) == (None, None)
    assert tokenizer.encode(shakespeare).dtype == np.uint8
    assert tokenizer.decode(tokenizer.encode(shakespeare)) == shakespeare


@cache
def made(kind: str, **options: object) -> Tokenizer:
    size = {"bpe": 300, "unigram": 70}.get(kind)
    return Tokenizer.train([SAMPLE], kind, **{"max_size": size, **options})  # type: ignore[arg-type]


CASES = [
    (kind, {"eos": eos, "unk": unk, "lowercase": lower, "normal_form": form})
    for kind in KINDS
    for eos in (False, True)
    for unk in (False, True)
    for lower, form in ((False, None), (True, None), (True, "NFKC"), (False, "NFD"))
    if not (unk and kind in ("bytes", "bpe")) and not (kind in ("bpe", "unigram") and lower != bool(form))
]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_the_saved_file_gives_the_same_ids_in_plain_tokenizers(kind, options, tmp_path):
    ours = made(kind, **options)
    ours.save(tmp_path / "tokenizer.json")
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    for name in ("kind", "vocab_size", "eos_id", "unk_id", "begin_id", "symbols", "digest"):
        assert getattr(loaded, name) == getattr(ours, name), name
    assert (ours.eos_id is not None, ours.unk_id is not None) == (options["eos"], options["unk"])

    @settings(max_examples=60, deadline=None, database=None)
    @given(text=texts | st.sampled_from(SAMPLE.splitlines(keepends=True)))
    def agree(text: str) -> None:
        try:
            ids = ours.encode(text, line_end=False).tolist()
        except DataError:
            assert ours.unk_id is None
            with pytest.raises(Exception, match=r"UNK|unk"):
                plain.encode(text)
            return
        assert plain.encode(text).ids == ids == loaded.encode(text, line_end=False).tolist()
        if kind != "words":
            assert plain.decode(ids) == loaded.decode(ids)

    agree()


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@pytest.mark.parametrize("eos", [False, True])
@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_bytes_and_pieces_of_bytes_round_trip(kind, eos, text):
    tokenizer = made(kind, eos=eos)
    if eos:
        text = text.replace("<eos>", "")
    assert tokenizer.decode(tokenizer.encode(text, line_end=False)) == text


@settings(max_examples=200, deadline=None)
@given(text=texts.filter(lambda text: len(set(text)) > 1), eos=st.booleans(), kind=st.sampled_from(["chars", "words"]))
def test_characters_round_trip_and_words_up_to_white_space(text, eos, kind):
    if len(set(text.split()) | {"\n"}) < 2:
        return
    try:
        tokenizer = Tokenizer.train([text], kind, eos=eos, unk=False)
    except DataError:  # fewer than two symbols
        return
    back = tokenizer.decode(tokenizer.encode(text, line_end=False))
    if eos and kind == "chars":
        text = text.replace("<eos>", "\n")
    assert (
        back == text
        if kind == "chars"
        else [x.split() for x in back.split("\n")] == [x.split() for x in text.split("\n")]
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(texts.map(lambda text: text + "\n"), max_size=5), last=texts, eos=st.booleans())
def test_the_ids_do_not_depend_on_where_blocks_are_cut(kind, texts, last, eos):
    tokenizer = cut(kind, eos)
    parts = [tokenizer.encode(text).tolist() for text in [*texts, last]]
    assert list(chain.from_iterable(parts)) == tokenizer.encode("".join([*texts, last])).tolist()
    if kind in ("chars", "bytes", "words"):
        size = getattr(tokenizer.count("".join([*texts, last])), kind)
        newlines_alone = kind != "words" or not any("<eos>" in text for text in [*texts, last])
        assert not newlines_alone or sum(map(len, parts)) == size


def cut(kind: str, eos: bool) -> Tokenizer:
    return made(kind, eos=eos, unk=kind not in ("bytes", "bpe"), lowercase=True, normal_form="NFC")


@pytest.mark.parametrize("kind", KINDS)
def test_training_does_not_depend_on_blocks_or_on_the_process(kind, shakespeare):
    text = shakespeare[:60_000]
    blocks = text.splitlines(keepends=True)
    size = 400 if kind in ("bpe", "unigram") else None
    digest = Tokenizer.train(blocks, kind, max_size=size).digest
    code = (
        "import sys; from everstep.data.text.tokenizer import Tokenizer; "
        f"print(Tokenizer.train([sys.stdin.buffer.read().decode()], {kind!r}, max_size={size}).digest)"
    )
    other = subprocess.run([sys.executable, "-c", code], input=text.encode(), capture_output=True, check=True)
    assert other.stdout.decode().strip() == digest


def test_a_line_end_is_one_eos_also_without_a_newline():
    tokenizer = Tokenizer.train(["b a b\n"], "words")
    assert tokenizer.symbols == ["<eos>", "<unk>", "b", "a"]
    assert tokenizer.encode("a b").tolist() == tokenizer.encode("a b\n").tolist() == [3, 2, 0]
    assert tokenizer.encode("a b", line_end=False).tolist() == [3, 2]
    assert tokenizer.encode("\n\n").tolist() == [0, 0]
    assert tokenizer.encode("").tolist() == []
    assert tokenizer.encode("<unk> c <eos> a").tolist() == [1, 1, 0, 3, 0]
    assert tokenizer.decode([3, 2, 0, 0, 1]) == "a b\n\n<unk>"
    assert tokenizer.count("a b\nc") == (6, 6, 5)


def test_rare_symbols_are_cut_in_a_stated_order():
    text = ["c b a\nb c\nd\n"]
    assert Tokenizer.train(text, "words", min_count=2).symbols == ["<eos>", "<unk>", "b", "c"]
    assert Tokenizer.train(text, "words", max_size=5).symbols == ["<eos>", "<unk>", "b", "c", "a"]
    assert Tokenizer.train(["aabbc\n"], "chars", max_size=3, unk=True).symbols == ["<unk>", "a", "b"]
    assert Tokenizer.train(text, "words", eos=False, unk=False).symbols == ["\\n", "b", "c", "a", "d"]


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("chars", {"min_count": 3, "unk": False}, r"leave data\.unk out"),
        ("words", {"max_size": 3, "unk": False}, r"cut 1 of 3 words"),
        ("letters", {}, "expected one of chars"),
        ("chars", {"normal_form": "NFX"}, "NFC, NFD"),
        ("chars", {"max_size": 1}, "2 or more"),
        ("chars", {"min_count": 0}, "1 or more"),
        ("bytes", {"unk": True}, "nothing is ever unknown"),
        ("bpe", {"max_size": 100}, "256 bytes"),
        ("unigram", {"max_size": 3}, r"data\.max_size=3"),
        ("unigram", {"min_count": 2}, r"data\.min_count"),
    ],
)
def test_options_that_do_not_fit_are_explained(kind, options, told):
    with pytest.raises(DataError, match=told):
        Tokenizer.train(["b a b\na c\n"], kind, **options)


@pytest.mark.parametrize(("kind", "text"), [("chars", "aaaa"), ("chars", ""), ("words", ""), ("unigram", "")])
def test_a_vocabulary_of_one_symbol_is_refused(kind, text):
    with pytest.raises(DataError, match="nothing to predict"):
        Tokenizer.train([text], kind, eos=False, unk=False)


@pytest.mark.parametrize("kind", ["chars", "words", "unigram"])
def test_an_unknown_symbol_is_told_with_its_place(kind):
    tokenizer = Tokenizer.train(["ab c\nd e\n"], kind, unk=False)
    with pytest.raises(DataError, match=r"line 2, column 3: 'é' \(U\+00E9\).*data\.unk=true"):
        tokenizer.encode("ab c\nd é\n")
    with pytest.raises(DataError, match="line 1, column"):
        tokenizer.encode("ab \ud800")


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_half_a_character_is_told(kind):
    with pytest.raises(DataError, match=r"column 3: '\\ud800' \(U\+D800\)"):
        made(kind, eos=False).encode("ab\ud800")
    with pytest.raises(DataError, match="half of a character"):
        cut(kind, False).encode("ab\ud800")


def test_an_id_outside_the_vocabulary_is_told():
    tokenizer = Tokenizer.train(["ab"], "chars")
    for bad in (2, -1):
        with pytest.raises(DataError, match=f"id {bad} is not in the vocabulary of 2 chars"):
            tokenizer.decode([0, bad])


def test_broken_bytes_decode_to_a_mark():
    tokenizer = made("bytes", eos=False)
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


def test_ids_are_as_small_as_they_can_be():
    assert Tokenizer.train([" ".join(map(str, range(300)))], "words").encode("1").dtype == np.uint16
    assert Tokenizer.train([" ".join(map(str, range(70_000)))], "words").encode("1").dtype == np.uint32


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff", b'{"version": "1.0"}'])
def test_files_that_are_no_tokenizer_are_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match=r"missing\.json"):
        Tokenizer.load(tmp_path / "missing.json")


def test_foreign_tokenizers_are_refused():
    described = json.loads(made("chars").to_json())
    with pytest.raises(DataError, match="no tokenizer that everstep made"):
        Tokenizer.from_json(json.dumps({**described, "pre_tokenizer": None}))
    described["model"]["vocab"]["t"] = 1_000
    with pytest.raises(DataError, match="are not 0 to"):
        Tokenizer.from_json(json.dumps(described))


@pytest.mark.parametrize("kind", KINDS[:1] + KINDS[2:])
def test_a_source_that_fails_says_so_through_every_trainer(kind):
    def blocks():
        yield "some text\n"
        raise DataError("a.txt: byte 7")

    with pytest.raises(DataError, match=r"^a\.txt: byte 7$"):
        Tokenizer.train(blocks(), kind)
