"""ARPA files: what is read, what is refused and where, and what is written."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from everstep.errors import DataError
from everstep.rivals.ngrams.arpa_reader import read_arpa
from everstep.rivals.ngrams.arpa_writer import arpa_pieces

GOOD = """\
a comment
\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-1\t<unk>
-99\t<s>\t-0.5
-0.5\t</s>
-0.4\ta\t-0.25
-0.9 b -0.125

\\2-grams:
-0.1\t<s> a\t-0.2
-0.2\ta b
-0.3\tb </s>

\\3-grams:
-0.05\t<s> a b

\\end\\
"""


def written(tmp_path: Path, text: str, name: str = "m.arpa") -> Path:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text"), [("m.arpa", GOOD), ("m.arpa.gz", GOOD), ("m.arpa", GOOD.replace("\n", "\r\n"))]
)
def test_files_are_read_plain_compressed_and_from_windows(tmp_path: Path, name: str, text: str) -> None:
    tokenizer, table, notes = read_arpa(written(tmp_path, text, name))
    ids = np.array([[tokenizer.eos_id, *tokenizer.encode("a b a never")]], np.int64)
    log_p, _ = table.score(ids[:, :-1], ids[:, 1:], table.initial_state(1))
    # <s> a; <s> a b; b(a b) b(b) a; b(a) <unk>; </s>
    expected = [-0.1, -0.05, 0 - 0.125 - 0.4, -0.25 - 1, -0.5]
    np.testing.assert_allclose(log_p[0] / np.log(10), expected, rtol=1e-6)
    assert table.order == 3
    assert notes == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ngram 2=3", "ngram 2=4", r"line 19: expected 4 2-grams, as the header says; got 3"),
        ("-0.2\ta b", "0.2\ta b", r"line 16: expected log10 p of at most 0; got 0.2"),
        ("-0.2\ta b", "-0.2\ta c", r"line 16: 'c' is not among the unigrams"),
        ("-0.2\ta b", "nan\ta b", r"line 16: expected finite numbers"),
        ("-0.2\ta b", "-0.2\ta", r"line 16: expected log10 p, 2 words"),
        ("-0.2\ta b", "-0.2\ta b x", r"line 16: expected numbers before and after"),
        ("-0.2\ta b", "-0.2\t<s> a", r"line 16: this n-gram occurs twice"),
        ("-0.2\ta b", "-0.2\ta <s>", r"line 16: expected <s> first and </s> last; got 'a <s>'"),
        ("<s> a b", "b a b", r"line 20: expected an entry for 'b a', with which this n-gram begins"),
        ("<s> a b", "<s> a b\t-0.1", r"line 20: expected no back-off weight at the largest order; got -0.1"),
        ("-0.4\ta", "-0.4\tb", r"'b' occurs twice"),
        ("-0.5\t</s>", "-0.5\tz", r"expected the word </s> among the unigrams"),
        ("\\data\\", "data", r"it has no line \\data\\"),
        ("\\3-grams:", "\\4-grams:", r"line 19: expected \\3-grams: by the counts of the header"),
        ("\\end\\", "", r"expected \\end\\ after the 3-grams; got 'the end of the file'"),
        ("ngram 2=3", "ngram 3=3", r"line 4: expected ngram 2="),
    ],
)
def test_what_is_wrong_is_named_by_its_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(DataError, match=message):
        read_arpa(written(tmp_path, GOOD.replace(old, new)))


def test_progress_counts_the_n_grams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everstep.rivals.ngrams.arpa_reader._BLOCK", 2)
    told: list[tuple[int, int]] = []
    read_arpa(written(tmp_path, GOOD), lambda done, total: told.append((done, total)))
    assert told == [(2, 9), (4, 9), (5, 9), (7, 9), (8, 9), (9, 9)]


def test_a_broken_archive_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD * 50, "m.arpa.gz")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="damaged or incomplete"):
        read_arpa(path)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    tokenizer, table, _ = read_arpa(written(tmp_path, GOOD))
    names = [tokenizer.decode([number]) for number in range(tokenizer.vocab_size)]
    path = tmp_path / "again.arpa"
    path.write_bytes(b"".join(arpa_pieces(table, names, tokenizer.eos_id or 0)))
    again = read_arpa(path)
    assert again.tokenizer.digest == tokenizer.digest
    for ours, theirs in zip(table.keys, again.table.keys, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip([*table.log_p, *table.backoff], [*again.table.log_p, *again.table.backoff], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_symbols_with_spaces_cannot_be_written(tmp_path: Path) -> None:
    _, table, _ = read_arpa(written(tmp_path, GOOD))
    with pytest.raises(DataError, match="the symbol ' ' cannot be written"):
        b"".join(arpa_pieces(table, ["", " ", "a", "b"], 0))
