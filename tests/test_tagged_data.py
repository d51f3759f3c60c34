"""Sentences with tags: what is read of files, what is refused with its line, and that they are written as they came."""

from __future__ import annotations

import json
import lzma
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from everstep.data.readers.tagged import read_tagged
from everstep.data.readers.tagged_columns import TagColumns, read_columns
from everstep.data.readers.tagged_formats import columns_of, format_of, read_sentences, with_tags
from everstep.data.tagged_batches import TaggedBatches
from everstep.data.text.text_files import expand, read_blocks
from everstep.data.word_features import CAPITALS, LONGEST, WordVocabulary, capitals
from everstep.errors import DataError
from everstep.measures.tag_schemes import broken, recognised, spans
from everstep.networks.pretrained_vectors import read_vectors, saved_vectors, vectors_of

CONLLU = """# sent_id = 1
# text = Let's go
1-2\tLet's\t_\t_\t_\t_\t_\t_\t_\t_
1\tLet\tlet\tVERB\tVB\t_\t0\troot\t_\t_
2\t's\twe\tPRON\tPRP\t_\t1\tobj\t_\t_
2.1\tus\twe\tPRON\tPRP\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t1\txcomp\t_\t_

# sent_id = 2
1\t#\t#\tSYM\t#\t_\t0\troot\t_\t_
"""
CONLL = """-DOCSTART- -X- O O

# a comment before a sentence
EU NNP I-NP I-ORG
# # I-NP O
rejects VBZ I-VP O


Ben\u00a0Hur NNP I-NP I-PER"""


def file(folder: Path, text: str | bytes, name: str = "text.conll") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def lines_of(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n")


# ------------------------------------------------------------------------------------------------------------- reading


def test_columns_with_documents_comments_and_words_that_look_like_them(tmp_path: Path) -> None:
    found = read_tagged(file(tmp_path, CONLL))
    assert [sentence.words for sentence in found.sentences] == [["EU", "#", "rejects"], ["Ben\u00a0Hur"]]
    assert found.tags(0) == [["I-ORG", "O", "O"], ["I-PER"]]
    assert found.skipped == {"document mark": 1, "comment": 1}
    assert found.place(0, 1).endswith("text.conll, line 5")
    assert found.place(1).endswith("line 9")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("The\tDET\nold man\tNOUN\n", {}),  # tabs: a word may hold a space
        ("\ufeffThe\tDET\r\nold man\tNOUN\r\n\r\n", {}),  # Windows
        ("The,x,DET\nold man,y,NOUN\n", {"separator": ",", "word": 0, "tags": -1}),
        ("pos\tform\nDET\tThe\nNOUN\told man\n", {"word": "form", "tags": "pos"}),
        ('{"tokens": ["The", "old man"], "tags": ["DET", "NOUN"]}\n', {}),
        ('{"w": ["The", "old man"], "t": ["DET", "NOUN"]}\n', {"word": "w", "tags": "t"}),
        ("a\tThe\tDET\tb\nc\told man\tNOUN\td\n", {"word": 1, "tags": -2}),
    ],
)
def test_the_same_sentence_in_many_forms(text: str, options: dict[str, Any], tmp_path: Path) -> None:
    found = read_tagged(file(tmp_path, text), **options)
    assert [(sentence.words, sentence.tags) for sentence in found.sentences] == [
        (["The", "old man"], (["DET", "NOUN"],))
    ]


def test_conll_u_by_name_and_by_content(tmp_path: Path) -> None:
    for name in ("a.conllu", "a.txt"):
        found = read_tagged(file(tmp_path, CONLLU, name), tags=["upos", "xpos"], features=["lemma"])
        assert found.format == "conllu"
        assert [sentence.words for sentence in found.sentences] == [["Let", "'s", "go"], ["#"]]
        assert found.sentences[0].tags == (["VERB", "PRON", "VERB"], ["VB", "PRP", "VB"])
        assert found.sentences[0].features == (["let", "we", "go"],)
        assert found.skipped == {"comment": 3, "token of several words or empty node": 2}


def test_blank_lines_of_any_kind_end_a_sentence(tmp_path: Path) -> None:
    found = read_tagged(file(tmp_path, "a\tX\n\t\nb\tX\n\ufeff\n\n   \nc\tX\n"))
    assert [sentence.words for sentence in found.sentences] == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# new document\n# x = 1\na A\n# B\n", ["a", "#"]),  # in a sentence, # is a word where the columns fit
        ("# # B\na b C\n", ["#", "a"]),
        ("#tag\tX\n# said\nb\tX\n", ["#tag", "b"]),
    ],
)
def test_comments_and_words_that_begin_alike(text: str, words: list[str], tmp_path: Path) -> None:
    assert read_tagged(file(tmp_path, text)).sentences[0].words == words


def test_without_comments_every_line_is_a_word(tmp_path: Path) -> None:
    assert read_tagged(file(tmp_path, "# one\nThe DET\n"), comments=False).sentences[0].words == ["#", "The"]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("a X\nb\n", {}, r"line 2: expected 2 columns separated by spaces, as in line 1, got 1 column: 'b'"),
    ("a\tX\n\nb\tX\tY\n", {}, r"line 3: expected 2 columns separated by tabs, as in line 1, got 3 columns"),
    ("a\tX\nb\t\n", {}, r"line 2: the word 'b' has no tag in column -1, got ''"),
    ("a\tX\n\tX\n", {}, r"line 2: expected a word in column 0, got nothing"),
    ("a X\n", {"tags": 4}, r"line 1: expected a column 4 .*got 2 columns"),
    ("word tag\na X\n", {"word": "words", "tags": "tag"}, r"line 1: expected a column named 'words'.*mean 'word'"),
    ("a\n", {"tags": 1}, r"line 1: expected a column 1"),
    ("a\nb\n", {}, r"line 1: expected a column of tags beside that of words, got 1 column: 'a'; set data.word_column"),
    ("a X\n", {"tags": [1, 0]}, r"line 1: expected a column of tags beside that of words, got 2 columns"),
    (CONLLU.replace("3\tgo", "x\tgo"), {}, r"line 7: expected an id of CoNLL-U \(1, or 1-2, or 1.1\).*got 'x'"),
    (CONLLU.replace("go\tgo\tVERB", "go\tgo\t_"), {}, r"line 7: the word 'go' has no tag in column 'upos', got '_'"),
    ('{"tokens": ["a"], "tags": ["X"]}\n{"tokens": ["a"]}\n', {}, r"line 2: expected a key 'tags', got 'tokens'"),
    ('{"tokens": ["a", "b"], "tags": ["X"]}\n', {}, r"line 1: expected one of 'tags' for each of 2 words, got 1"),
    ('{"tokens": "a b", "tags": ["X"]}\n', {}, r"line 1: expected a list of texts at 'tokens', got \"a b\""),
    ('{"tokens": ["a", ""], "tags": ["X", "X"]}\n', {}, r"line 1: expected words, got an empty one"),
    ('{"tokens": ["a"], "tags": [1]}\n', {}, r"line 1: expected a list of texts at 'tags', got \[1\]"),
    ('{"tokens": ["a"\n', {}, r"line 1: is no JSON"),
    ('{"tokens": ["\\ud800"], "tags": ["X"]}\n', {}, r"line 1: half a surrogate pair"),
    ("\n\n", {}, r"no word with a tag"),
    ("# only\n", {}, r"no word with a tag"),
]


@pytest.mark.parametrize(("text", "options", "said"), BAD)
def test_what_cannot_be_used_is_told_with_its_line(
    text: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        read_tagged(file(tmp_path, text), **options)


def test_an_empty_sentence_is_left_out_and_counted(tmp_path: Path) -> None:
    text = '{"tokens": [], "tags": []}\n{"tokens": ["a"], "tags": ["X"]}\n'
    found = read_tagged(file(tmp_path, text, "a.jsonl"))
    assert (len(found), found.skipped) == (1, {"empty sentence": 1})


def test_one_sentence_cannot_be_held_out(tmp_path: Path) -> None:
    one = read_tagged(file(tmp_path, "a X\n"))
    with pytest.raises(DataError, match=r"one sentence alone.*data\.valid_fraction=0"):
        one.held_out(0.1, 1)
    many = read_tagged(file(tmp_path, "a X\n\n" * 10))
    assert [len(part) for part in many.held_out(0.2, 1)] == [8, 2]


# -------------------------------------------------------------------------------------------------- written as it came


@pytest.mark.parametrize(
    ("text", "format"),
    [
        (CONLL, "columns"),
        (CONLLU, "conllu"),
        ("one\n#two\n\nthree", "columns"),
        ("\n\n#\n", "columns"),
        ("", "columns"),
    ],
)
def test_what_is_read_is_written_with_a_column_more(text: str, format: Any) -> None:
    lines = lines_of(text)
    columns = columns_of(format, None, None, ())
    read = list(read_sentences(lines, format, columns, "here", words_only=True))
    written: list[str] = []
    for sentence in read:
        found = with_tags(sentence, format, {"t": [f"<{word}>" for word in sentence.words]}, "O")
        written += found.split("\n")
    assert len(written) == len(lines)
    kinds: Counter[str] = Counter()
    for before, after in zip(lines, written, strict=True):
        more = after.removeprefix(before)
        assert after.startswith(before)
        kinds[more.strip()[:1]] += 1
    words = sum(len(sentence.words) for sentence in read)
    assert kinds["<"] == words
    # and what was written is read again, its last column as tags
    last = [f"<{word}>" for sentence in read for word in sentence.words]
    again = read_sentences(written, format, TagColumns(columns.word, (-1,)), "here")
    assert [tag for sentence in again for (tags,) in [sentence.tags] for tag in tags] == last


def test_marks_and_nodes_get_an_entry_so_that_columns_stay_even() -> None:
    (sentence, _) = read_columns(lines_of(CONLLU), TagColumns("form", ()), "here", conllu=True)
    written = sentence.with_columns({"t": ["V", "P", "V"]})
    assert written[2] == lines_of(CONLLU)[2] + "\t_"
    assert [line.count("\t") for line in written[2:7]] == [10] * 5
    (first, _) = read_columns(lines_of(CONLL), TagColumns(0, ()), "here")
    assert first.with_columns({"t": ["1", "2", "3"]}, "O")[:4] == [
        "-DOCSTART- -X- O O O",
        "",
        "# a comment before a sentence",
        "EU NNP I-NP I-ORG 1",
    ]


def test_a_header_names_the_new_column() -> None:
    lines = ["form\tpos", "The\tDET"]
    (sentence,) = read_columns(lines, TagColumns("form", ("pos",)), "here", words_only=True)
    assert sentence.with_columns({"pos": ["X"]}) == ["form\tpos\tpos", "The\tDET\tX"]


def test_json_keeps_its_keys_and_tags() -> None:
    line = '{"id": 7, "tokens": ["a", "b"], "tags": ["X", "Y"]}'
    (sentence,) = read_sentences([line], "jsonl", columns_of("jsonl", None, None, ()), "here", words_only=True)
    added = {"tags": ["P", "Q"]}
    assert json.loads(with_tags(sentence, "jsonl", added, "O")) == {**json.loads(line), "predicted": ["P", "Q"]}
    (plain,) = read_sentences(['{"tokens": ["a"]}'], "jsonl", TagColumns("tokens", ("tags",)), "here", words_only=True)
    assert json.loads(with_tags(plain, "jsonl", {"tags": ["P"]}, "O")) == {"tokens": ["a"], "tags": ["P"]}


def test_plain_text_is_parted_into_words() -> None:
    found = list(read_sentences(["It isn't bad.", ""], "text", TagColumns(0, ()), "here"))
    assert [sentence.words for sentence in found] == [["It", "isn't", "bad", "."], []]
    assert found[0].with_columns({"t": ["a", "b", "c", "d"]}) == ["It\ta", "isn't\tb", "bad\tc", ".\td", ""]


def test_formats_by_name_and_first_line() -> None:
    assert format_of("a.conllu.gz", iter([]))[0] == "conllu"
    assert format_of("a.jsonl", iter([]))[0] == "jsonl"
    found, lines = format_of("a.txt", iter(["", '{"tokens": []}']))
    assert (found, list(lines)) == ("jsonl", ["", '{"tokens": []}'])
    assert format_of("a.txt", iter(["1\tx"]))[0] == "columns"


# -------------------------------------------------------------------------------------------- what is known of the data


def test_published_counts(shared_data: Path) -> None:
    folder = shared_data / "conll2003"
    if not folder.is_dir():
        pytest.skip("CoNLL-2003 is not there")
    counted = {}
    for name in ("eng.train.gz", "eng.testa", "eng.testb"):
        tags = read_tagged(folder / name).tags(0)
        assert recognised(tags) == "iob1"
        counted[name] = sum(len(spans(some, "iob1")) for some in tags)
        if name == "eng.train.gz":
            assert sum(len(spans(some, "iob2", strict=True)) for some in tags) == 72  # what a strict IOB2 reader finds
            places = [(number, place) for number, some in enumerate(tags) for place in broken(some, "iob1")]
            assert len(places) == 2
    assert counted == {"eng.train.gz": 23_499, "eng.testa": 5_942, "eng.testb": 5_648}


@pytest.mark.parametrize(
    ("name", "sentences", "words"),
    [
        ("wnut17/emerging.dev.conll", 1_009, 15_733),
        ("wnut17/wnut17train.conll", 3_394, 62_730),
        ("conll2000_chunking/test.txt", 2_012, 47_377),
        ("ud_english_ewt/en_ewt-ud-test.conllu.gz", 2_077, 25_094),
    ],
)
def test_published_sizes(name: str, sentences: int, words: int, shared_data: Path) -> None:
    if not (shared_data / name).exists():
        pytest.skip(f"{name} is not there")
    found = read_tagged(shared_data / name)
    assert (len(found), sum(len(sentence.words) for sentence in found.sentences)) == (sentences, words)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    import make_orders

    return make_orders


def test_bundled_orders_are_what_their_script_writes(script: ModuleType, tmp_path: Path) -> None:
    script.main(tmp_path)
    for split in ("train", "valid", "test"):
        (shipped,) = expand(f"everstep:orders.{split}")
        assert lzma.decompress((tmp_path / shipped.name).read_bytes()).decode() == "".join(read_blocks(shipped))
    train, test = (read_tagged(f"everstep:orders.{split}") for split in ("train", "test"))
    kinds: dict[str, set[str]] = {"PERSON": set(), "PLACE": set()}
    for sentence in train.sentences:
        for span in spans(sentence.tags[0], "iob2", strict=True):
            if span.type in kinds:
                kinds[span.type] |= set(sentence.words[span.start : span.stop])
    assert len(kinds["PERSON"] & kinds["PLACE"]) > 10  # only what stands around them tells
    new = {word for sentence in test.sentences for word in sentence.words} - {
        word for sentence in train.sentences for word in sentence.words
    }
    assert len(new) > 30


# ----------------------------------------------------------------------------------------------------- words as numbers


def test_capitals_of_words() -> None:
    words = {"the": "lower", "The": "Initial", "A": "Initial", "USA": "UPPER", "McDonald": "miXed", "12.5": "digits",
             "mp3": "d1gits and letters", "--": "mark", "東京": "other"}  # fmt: skip
    assert {word: CAPITALS[capitals(word)] for word in words} == words


def test_a_vocabulary_counts_reads_and_comes_back() -> None:
    sentences = [["Room", "101", "room"], ["room", "202", "Ärger"]]
    words = WordVocabulary.of(
        sentences, [[["a", "b", "a"], ["c", "a", "a"]]], min_count=2, lowercase=True, zero_digits=True, affixes=[2, -1]
    )
    assert words.read_counts == {"room": 3, "000": 2}
    assert [words.number(word) for word in ("ROOM", "999", "Ärger")] == [1, 2, 0]
    assert [words.knows(word) for word in ("Room", "ROOM")] == [True, False]
    assert words.affixes == {2: ("om",), -1: ("r",)}
    again = WordVocabulary.from_json(json.loads(json.dumps(words.to_json())))
    assert again == words
    coded = words.coded([["room", "new"]], [[["b", "?"]]], np.array([[0], [1]]))
    assert coded.words.tolist() == [1, 0]
    assert coded.features.tolist() == [[1, 1, 1, 2], [1, 0, 0, 0]]
    assert coded.spelled_lengths.tolist() == [4, 3]


def test_long_words_and_no_words() -> None:
    words = WordVocabulary.of([["a" * 500]])
    coded = words.coded([["a" * 500, "b"], []], [], np.zeros((2, 1), np.int64))
    assert coded.spelled_lengths.tolist() == [LONGEST, 1]
    batch = TaggedBatches(coded, 2, shuffle=False).batch(0, 0)
    assert batch.lengths.tolist() == [0, 2]
    assert batch.words.shape == (2, 2)
    nothing = words.coded([[]], [], np.zeros((0, 1), np.int64))
    assert TaggedBatches(nothing, 2).batch(0, 0).words.tolist() == [[0]]


def test_batches_hold_every_sentence_once_and_their_forms() -> None:
    random = np.random.default_rng(0)
    sentences = [[f"w{number}" for number in random.integers(0, 50, length)] for length in random.integers(1, 30, 100)]
    words = WordVocabulary.of(sentences)
    tags = np.arange(sum(map(len, sentences)))[:, None]
    batches = TaggedBatches(words.coded(sentences, [], tags), 16, seed=3)
    seen = []
    for index in range(len(batches)):
        batch = batches.batch(1, index)
        assert batch.count == int(batch.lengths.sum())
        for row, place in enumerate(batch.places.tolist()):
            length = int(batch.lengths[row])
            spelled = [
                "".join(words.characters[c - 1] for c in batch.spelled[form, : batch.spelled_lengths[form]].tolist())
                for form in batch.forms[row, :length].tolist()
            ]
            assert spelled == sentences[place]
            assert np.diff(batch.tags[row, :length, 0].numpy()).tolist() == [1] * (length - 1)
            seen.append(place)
    assert sorted(seen) == list(range(100))


# -------------------------------------------------------------------------------------------------------------- vectors


def test_vectors_of_both_formats(tmp_path: Path) -> None:
    words = WordVocabulary.of([["The", "cat", "dog"]])
    for text in ("2 3\nthe 1 2 3\ncat 4 5 6\n", "the 1 2 3\ncat 4 5 6\ncat 7 8 9\n. . 0 0 0\n"):
        found = read_vectors(str(file(tmp_path, text, "v.txt")), 3)
        assert found.numbers[:2].tolist() == [[1, 2, 3], [4, 5, 6]]
        rows = found.rows(words)
        assert rows[words.number("The")].tolist() == [1, 2, 3]
        assert rows[words.number("dog")].isnan().all()
        assert "2 of 3 training words have one, which are 66.7%" in found.coverage(words)
    assert found.words == ("the", "cat", ". .")
    (tmp_path / "v.safetensors").write_bytes(saved_vectors(found))
    again = vectors_of(tmp_path / "v.safetensors", found.words)
    assert again is not None
    assert again.numbers.tolist() == found.numbers.tolist()
    (tmp_path / "v.safetensors").write_bytes(saved_vectors(None))
    assert vectors_of(tmp_path / "v.safetensors", ()) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2 4\nthe 1 2 3 4\n", r"line 1: expected vectors of 3 numbers \(model.embedding_size\), got 4"),
        ("the 1 2 3\ncat 4 5\n", r"line 2: expected vectors of 3 numbers"),
        ("the 1 2 x\n", r"line 1: expected 3 numbers after the word 'the'"),
        ("the 1 2 nan\n", r"line 1: the vector of 'the' holds NaN"),
        ("0 3\n", r"no vector"),
    ],
)
def test_vectors_that_cannot_be_used(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        read_vectors(str(file(tmp_path, text, "v.txt")), 3)
