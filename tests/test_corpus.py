"""Corpora: what is in them, when the cache is used again, what a dead or concurrent run leaves, and bad input."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.data.text import corpus as corpus_module
from everstep.data.text import tokenise
from everstep.data.text.corpus import Corpus, prepare
from everstep.data.text.text_files import Block, expand, file_blocks, read_blocks
from everstep.data.text.tokenizer import Tokenizer
from everstep.errors import DataError

TEXT = "one two\nthree\n\n \nfour one\n\n\nfive\n"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    return path


def words(text: str = TEXT, **options: bool) -> Tokenizer:
    return Tokenizer.train([text], "words", **options)


def parts_of(corpus: Corpus, tokenizer: Tokenizer) -> list[str]:
    starts = corpus.starts.tolist()
    return [tokenizer.decode(corpus.tokens[a:b]) for a, b in zip(starts, [*starts[1:], None], strict=True)]


def test_a_stream_is_all_files_one_after_another(source, cache, tmp_path):
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"six one"))
    tokenizer = words()
    corpus = prepare([source, tmp_path / "b.txt.gz"], tokenizer, cache=cache)
    assert corpus.tokens.tolist() == tokenizer.encode(TEXT).tolist() + tokenizer.encode("six one").tolist()
    assert corpus.starts.tolist() == [0]
    assert isinstance(corpus.tokens, np.memmap)
    assert (corpus.chars, corpus.bytes, corpus.words) == (len(TEXT) + 8, len(TEXT) + 8, len(corpus))
    assert (corpus.unknown, corpus.skipped, len(corpus)) == (1, 0, 17)
    assert corpus.summary() == (
        "17 tokens in one stream; 41 characters, 41 bytes, 17 words; 1 unknown (5.88 %), 0 blank parts skipped"
    )


@pytest.mark.parametrize("tokenizer", [words(), words(eos=False), Tokenizer.train([TEXT], "bytes")])
def test_documents_are_cut_at_blank_lines(source, cache, tokenizer, tmp_path):
    (tmp_path / "b.txt").write_text("\n\nfour\ntwo\n\n")
    corpus = prepare([source, tmp_path / "b.txt"], tokenizer, cache=cache, sequence="documents")
    assert parts_of(corpus, tokenizer) == ["one two\nthree\n", "four one\n", "five\n", "four\ntwo\n"]
    assert corpus.words == 14


def test_documents_may_be_files(source, cache, tmp_path):
    (tmp_path / "b.txt").write_text(" \n\n")
    (tmp_path / "c.txt").write_text("five\n\nfour\n")
    tokenizer = words()
    corpus = prepare(f"{tmp_path}/*.txt", tokenizer, cache=cache, sequence="documents", document_separator="file")
    assert parts_of(corpus, tokenizer) == ["one two\nthree\n\n\nfour one\n\n\nfive\n", "five\n\nfour\n"]
    assert corpus.skipped == 1


def test_lines_are_sequences_and_blank_ones_are_counted(source, cache):
    tokenizer = words()
    corpus = prepare(source, tokenizer, cache=cache, sequence="lines")
    assert parts_of(corpus, tokenizer) == ["one two\n", "three\n", "four one\n", "five\n"]
    assert (corpus.skipped, corpus.words) == (4, 10)
    with pytest.raises(DataError, match=r"data\.eos=true"):
        prepare(source, words(eos=False), cache=cache, sequence="lines")


@pytest.mark.parametrize("sequence", ["stream", "documents", "lines"])
def test_spans_share_out_the_text_of_all_files(source, cache, tmp_path, sequence):
    (tmp_path / "b.txt").write_text("six one\nfive")
    tokenizer = words()
    files = [source, tmp_path / "b.txt"]
    whole = prepare(files, tokenizer, cache=cache, sequence=sequence)
    size = len(TEXT) + 12
    for end in (8, 15, 26, len(TEXT), len(TEXT) + 8):  # ends of lines
        spans = [(0, end), (end, None)]
        parts = [prepare(files, tokenizer, cache=cache, sequence=sequence, span=span) for span in spans]
        assert np.concatenate([part.tokens for part in parts]).tolist() == whole.tokens.tolist()
        assert sum(part.words for part in parts) == whole.words
    inside = prepare(files, tokenizer, cache=cache, span=(4, size - 2))
    assert inside.tokens.tolist() == [*tokenizer.encode(TEXT[4:]), *tokenizer.encode("six one\nfi", line_end=False)]


def test_an_eos_written_in_the_text_starts_no_line(cache, tmp_path):
    (tmp_path / "a.txt").write_text("one <eos> two\nthree\n\none")
    tokenizer = words()
    lines = prepare(tmp_path / "a.txt", tokenizer, cache=cache, sequence="lines")
    assert parts_of(lines, tokenizer) == ["one\ntwo\n", "three\n", "one\n"]
    documents = prepare(tmp_path / "a.txt", tokenizer, cache=cache, sequence="documents")
    assert parts_of(documents, tokenizer) == ["one\ntwo\nthree\n", "one\n"]


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(st.sampled_from(["a", "b c", "", "  ", "a  <eos>", "bb bbbbb"]), min_size=1, max_size=14).map(
        "\n".join
    ),
    limit=st.integers(1, 12),
    layout=st.sampled_from(["stream", "paragraphs", "files", "lines"]),
    kind=st.sampled_from(["words", "bytes"]),
)
def test_no_layout_depends_on_where_blocks_are_cut(tmp_path_factory, text, limit, layout, kind):
    if not text.strip():
        return
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    path.write_text(text)
    tokenizer = Tokenizer.train(["a b c bb bbbbb\n"], kind, eos=True)

    def run(limit: int) -> tuple[list[int], list[int], list[int], int]:
        blocks = file_blocks(path, block_chars=limit)
        parts = list(tokenise._joined(tokenise._tokenised_here(blocks, tokenizer, layout, 1), layout))
        tokens = [token for part in parts for token in part.tokens.tolist()]
        offsets = np.cumsum([0, *(len(part.tokens) for part in parts)])
        starts = [int(start + offset) for part, offset in zip(parts, offsets, strict=False) for start in part.starts]
        return tokens, starts, sum(part.counts for part in parts).tolist(), sum(part.skipped for part in parts)

    whole = run(10_000)
    longest = max(map(len, text.split("\n"))) + 1
    if (kind == "bytes" and "<eos>" in text) or any(not line.strip() for line in text.split("\n")):
        limit = max(limit, longest)  # a piece of `<eos>` is no `<eos>`, a piece of a blank line may not be blank
    if layout == "files" and text[0].isspace():
        limit = len(text)  # a first block of nothing but blank lines (millions of them) is dropped
    limit = max(limit, 8)  # pieces of words are other words
    assert run(limit) == whole


def spy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever text is tokenised."""
    calls: list[int] = []
    real = corpus_module.tokenised

    def tokenised(*args: object) -> object:
        calls.append(1)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(corpus_module, "tokenised", tokenised)
    return calls


def test_the_cache_is_used_again_while_nothing_changed(source, cache, monkeypatch):
    calls = spy(monkeypatch)
    first = prepare(source, words(), cache=cache)
    again = prepare(source, words(), cache=cache)
    assert calls == [1]
    assert (again.digest, again.tokens.tolist(), again.summary()) == (
        first.digest,
        first.tokens.tolist(),
        first.summary(),
    )
    os.utime(source, ns=(1, 1))  # touched, but the same text
    assert prepare(source, words(), cache=cache).digest == first.digest
    monkeypatch.setattr(corpus_module, "_sha256", lambda path: pytest.fail("hashed again"))
    prepare(source, words(), cache=cache)
    assert calls == [1]
    assert [path.name for path in cache.iterdir()] == [first.path.name]


def test_the_cache_is_made_again_when_something_changed(source, cache, monkeypatch):
    calls = spy(monkeypatch)
    first = prepare(source, words(), cache=cache)
    source.write_text(TEXT.replace("five", "four"))
    os.utime(source, ns=(2, 2))
    second = prepare(source, words(), cache=cache)
    assert first.digest != second.digest
    assert second.tokens.tolist() == words().encode(TEXT.replace("five", "four")).tolist()
    assert first.tokens.tolist() == words().encode(TEXT).tolist()  # a reader keeps what it has mapped
    for options in ({"sequence": "lines"}, {"sequence": "documents"}, {"encoding": "latin-1"}):
        prepare(source, words(), cache=cache, **options)
    prepare(source, words(eos=False), cache=cache)
    assert len(calls) == 6


def test_pages_that_were_read_are_given_back(cache, monkeypatch):
    monkeypatch.setattr(corpus_module, "_RELEASE_BYTES", 200_000)
    corpus = prepare("everstep:shakespeare", Tokenizer.train(["ab"], "bytes"), cache=cache)
    everything = np.arange(len(corpus)).reshape(-1, 6)
    assert resident(corpus.path / "tokens.bin") == 0
    assert corpus.take(everything[:1000]).tolist() == corpus.tokens[:6000].reshape(-1, 6).tolist()
    assert resident(corpus.path / "tokens.bin") > 0  # just read for the comparison, after the release
    assert np.array_equal(corpus.take(everything), everything * 0 + corpus.tokens.reshape(-1, 6))
    corpus.take(everything)
    assert resident(corpus.path / "tokens.bin") == 0


def resident(path: Path) -> int:
    """Kilobytes of a mapped file in this process's memory."""
    maps = Path("/proc/self/smaps")
    if not maps.exists():
        pytest.skip("needs /proc/self/smaps")
    sections = maps.read_text().split(str(path))[1:]
    return sum(int(section.split("Rss:")[1].split()[0]) for section in sections)


@pytest.mark.parametrize("name", ["tokens.bin", "starts.npy", "corpus.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_cache_is_made_again(source, cache, name, damage):
    first = prepare(source, words(), cache=cache)
    digest, path = first.digest, first.path / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3] if damage == "cut" else b"")
    again = prepare(source, words(), cache=cache)
    assert (again.digest, again.tokens.tolist()) == (digest, words().encode(TEXT).tolist())


def test_the_digest_is_of_tokens_and_starts(source, cache):
    stream = prepare(source, words(), cache=cache)
    lines = prepare(source, words(), cache=cache, sequence="lines")
    assert len({stream.digest, lines.digest}) == 2
    assert prepare(source, words(), cache=cache.parent / "other").digest == stream.digest


def test_two_at_once_give_the_same(source, cache):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: prepare(source, words(), cache=cache), range(16)))
    assert {corpus.digest for corpus in found} == {found[0].digest}
    assert all(corpus.tokens.tolist() == words().encode(TEXT).tolist() for corpus in found)
    assert [path.name for path in cache.iterdir()] == [found[0].path.name]


def test_what_dead_runs_left_is_removed_after_a_day(source, cache):
    name = prepare(source, words(), cache=cache).path.name
    old, new = cache / f".{name}.old", cache / f".{name}.new"
    old.mkdir()
    new.mkdir()
    os.utime(old, (0, 0))
    source.write_text(TEXT * 2)
    prepare(source, words(), cache=cache)
    assert not old.exists()
    assert new.exists()


def test_workers_give_what_one_process_gives(cache, tmp_path, monkeypatch):
    generator = random.Random(0)
    lines = (" ".join(generator.choices("abcdefgh", k=generator.randrange(12))) for _ in range(60_000))
    (tmp_path / "a.txt").write_text("\n".join(lines))
    monkeypatch.setattr(tokenise, "INLINE_BYTES", 0)
    blocks = tokenise.spanned
    monkeypatch.setattr(tokenise, "spanned", lambda files, encoding, span: blocks(files, encoding, 50_000, span))
    tokenizer = words("a b c d e f g h\n")
    seen: list[tuple[int, int]] = []
    for sequence in ("documents", "lines"):
        found = [
            prepare(
                tmp_path / "a.txt",
                tokenizer,
                cache=cache / str(workers),
                sequence=sequence,
                workers=workers,
                progress=lambda done, total: seen.append((done, total)),
            )
            for workers in (1, 2)
        ]
        assert found[0].digest == found[1].digest
        assert found[0].summary() == found[1].summary()
        assert len(found[0].starts) > 3_000
    size = (tmp_path / "a.txt").stat().st_size
    assert {total for _, total in seen} == {size}
    assert [done for done, _ in seen if done == size]
    assert all(0 < done <= size for done, _ in seen)

    (tmp_path / "b.txt").write_text("a b\n" * 50_000 + "a x\n")
    with pytest.raises(DataError, match=r"b\.txt, line 50001, column 3: 'x'"):
        prepare(tmp_path / "b.txt", words("a b\n", unk=False), cache=cache, workers=2)


@pytest.mark.parametrize("text", ["['ab'], 'chars'", "[f'w{n}' for n in range(9000)], 'words'"])
def test_an_unguarded_script_is_told_what_to_do(tmp_path, text):
    """Also where the tokenizer is longer than what a pipe holds."""
    script = tmp_path / "script.py"
    script.write_text(
        "from everstep.data import Tokenizer, prepare\nfrom everstep.data.text import tokenise\n"
        "from everstep.errors import DataError\n"
        "tokenise.INLINE_BYTES = 0\n"
        "try:\n"
        f"    tokenizer = Tokenizer.train({text}, unk=True)\n"
        f"    prepare('everstep:shakespeare', tokenizer, workers=2, cache={str(tmp_path)!r})\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, check=True, timeout=100
    )
    assert "__main__" in run.stdout


def test_an_unknown_symbol_is_told_with_file_and_line(source, cache):
    tokenizer = words("one two three four\n", unk=False)
    for sequence in ("stream", "lines", "documents"):
        with pytest.raises(DataError, match=r"a\.txt, line 8, column 1: 'five'"):
            prepare(source, tokenizer, cache=cache, sequence=sequence)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sequence": "words"}, r"data\.sequence='words'"),
        ({"sequence": "documents", "document_separator": "#"}, r"data\.document_separator"),
        ({"encoding": "utf-16"}, "not utf-16 text"),
    ],
)
def test_options_that_do_not_fit_are_explained(source, cache, options, told):
    with pytest.raises(DataError, match=told):
        prepare(source, words(), cache=cache, **options)


def test_blank_files_hold_no_sequences(tmp_path, cache):
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(DataError, match="every line is blank"):
        prepare(tmp_path / "a.txt", words(), cache=cache, sequence="lines")


def test_a_cache_that_cannot_be_written_is_explained(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file.*EVERSTEP_CACHE"):
        prepare(source, words(), cache=tmp_path / "file" / "cache")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left.*EVERSTEP_CACHE"):
        prepare(source, words(), cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_is_where_the_environment_says(source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("EVERSTEP_CACHE", raising=False)
    assert prepare(source, words()).path.parent == tmp_path / "xdg" / "everstep"
    monkeypatch.setenv("EVERSTEP_CACHE", str(tmp_path / "named"))
    assert prepare(source, words()).path.parent == tmp_path / "named"


def test_a_source_that_changes_while_it_is_read_is_told(source, cache, monkeypatch):
    real = tokenise._encode

    def encode(block: Block, *rest: object) -> object:
        source.write_text(TEXT * 2)
        return real(block, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tokenise, "_encode", encode)
    with pytest.raises(DataError, match="changed while it was being read"):
        prepare(source, words(), cache=cache)


def test_the_description_in_the_cache_is_plain_json(source, cache):
    corpus = prepare(source, words(), cache=cache)
    described = json.loads((corpus.path / "corpus.json").read_text())
    assert described["request"]["tokenizer"] == words().digest
    assert set(described["sources"][0]) == {"path", "size", "mtime_ns", "sha256"}
    assert described["counts"]["words"] == corpus.words


def test_the_bundled_text_is_a_corpus(cache):
    path = expand("everstep:shakespeare")[0]
    corpus = prepare("everstep:shakespeare", Tokenizer.train(read_blocks(path), "chars"), cache=cache)
    assert len(corpus) == corpus.chars == 1_115_394
    assert corpus.words == 202_651 + 40_000
