"""Reading text: names and patterns, compression, encodings, blocks, and every way in which a file can be wrong."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.data.text.text_files import (
    BLOCK_CHARS,
    expand,
    file_blocks,
    file_lines,
    line_end_at,
    open_text,
    pieces,
    read_blocks,
    spanned,
)
from everstep.errors import DataError


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_bundled_text_is_exact():
    text = "".join(read_blocks(expand("everstep:shakespeare"))).encode()
    assert len(text) == 1_115_394
    assert hashlib.sha256(text).hexdigest() == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def test_names_and_patterns_expand_in_order_and_once(tmp_path, monkeypatch):
    b, a, c = (write(tmp_path / name, "x") for name in ("b.txt", "a.txt", "c[1].log"))
    (tmp_path / "d.txt").mkdir()
    assert expand([f"{tmp_path}/*.txt", str(b), str(c)]) == [a, b, c]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", str(tmp_path))
    assert expand("~/a.txt") == expand("$WHERE/a.txt") == expand("${WHERE}/a.txt") == [a]


def test_the_data_folder_has_a_default(tmp_path, monkeypatch):
    folder = tmp_path / "shared" / "data"
    folder.mkdir(parents=True)
    write(folder / "a.txt", "x")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("EVERSTEP_DATA", raising=False)
    assert [path.read_text() for path in expand(["$EVERSTEP_DATA/a.txt", "${EVERSTEP_DATA}/*.txt"])] == ["x"]
    monkeypatch.setenv("EVERSTEP_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"EVERSTEP_DATA/a\.txt"):
        expand("$EVERSTEP_DATA/a.txt")


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("{}/trian.txt", r"trian\.txt.*nearest.*train\.txt"),
        ("{}/none/*.txt", "there is no folder"),
        ("{}", "got a folder"),
        ("{}/empty.txt", r"empty\.txt: the file is empty"),
        ("$NO_SUCH_VARIABLE/a", "environment variable"),
        ("everstep:goethe", "everstep:shakespeare"),
        ([], "no data file"),
    ],
)
def test_names_that_match_nothing_usable_are_explained(tmp_path, pattern, told):
    write(tmp_path / "train.txt", "x")
    write(tmp_path / "empty.txt", "")
    wanted = pattern if isinstance(pattern, list) else pattern.format(tmp_path)
    with pytest.raises(DataError, match=told):
        expand(wanted)


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(DataError, match=r"a\.txt: cannot be read"):
        expand(f"{tmp_path}/*.txt")


def test_compression_goes_by_suffix(tmp_path):
    text = "one\ntwo\n"
    for name, content in (
        ("a.txt", text.encode()),
        ("a.txt.gz", gzip.compress(text.encode())),
        ("a.xz", lzma.compress(text.encode())),
        ("a.log", text.encode()),
    ):
        path = write(tmp_path / name, content)
        assert "".join(read_blocks(path)) == text
        with open_text(path) as lines:
            assert list(lines) == ["one\n", "two\n"]
    with pytest.raises(DataError, match="cannot be read"):
        open_text(tmp_path / "missing.txt")


lines = st.lists(st.text("ab é\t\r", max_size=30), max_size=12).map("\n".join)


@settings(max_examples=200, deadline=None)
@given(text=lines.filter(bool), limit=st.integers(1, 40))
def test_blocks_join_to_the_text_and_end_where_lines_end(tmp_path_factory, text, limit):
    path = tmp_path_factory.mktemp("blocks") / "a.txt"
    path.write_bytes(text.encode())
    clean = text.replace("\r\n", "\n").replace("\r", "\n")
    blocks = list(file_blocks(path, block_chars=limit))
    assert "".join(block.text for block in blocks) == clean
    assert blocks[-1].consumed == len(text.encode())
    done = ""
    for block in blocks:
        assert len(block.text) <= limit
        assert block.line == done.count("\n") + 1
        assert block.starts_inside == (bool(done) and not done.endswith("\n"))
        done += block.text
        assert block.ends_inside == (done != clean and not done.endswith("\n"))
        if block.ends_inside:  # only a line longer than a block is cut, before its last space if there is one
            assert "\n" not in block.text
            assert clean[len(done)] == " " or " " not in block.text[1:]


@given(text=lines, limit=st.integers(1, 20))
def test_pieces_join_to_the_text_and_are_cut_at_breaks(text, limit):
    found = list(pieces(text, limit))
    assert "".join(found) == text
    for piece, after in pairwise(found):
        assert piece.endswith("\n") or after.startswith(" ")
    assert all(len(piece) <= limit or " " not in piece[1:limit] for piece in found)


@given(text=lines.filter(bool), other=lines.filter(bool), first=st.integers(0, 50), size=st.none() | st.integers(0, 60))
def test_a_span_is_a_slice_of_the_text_of_all_files(tmp_path_factory, text, other, first, size):
    folder = tmp_path_factory.mktemp("span")
    paths = [write(folder / "a.txt", text), write(folder / "b.txt", other)]
    whole = "".join(read_blocks(paths))
    last = None if size is None else first + size
    assert "".join(read_blocks(paths, block_chars=7, span=(first, last))) == whole[first:last]
    for block in spanned(paths, block_chars=7, span=(first, last)):
        clean = "".join(read_blocks(block.path))
        assert block.text in clean
        assert block.line <= clean.count("\n") + 1


@pytest.mark.parametrize(("share", "size"), [(0.1, 4), (0.5, 8), (0.6, 12), (1.0, 16)])
def test_a_share_of_a_text_ends_with_a_line(tmp_path, share, size):
    path = write(tmp_path / "a.txt", "one\ntwo\nsix\nten\n")
    assert line_end_at([path], share) == size


def test_a_mark_of_byte_order_is_dropped_and_newlines_are_one(tmp_path):
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree \xef\xbb\xbf\n")
    assert "".join(read_blocks(path)) == "one\ntwo\nthree \ufeff\n"
    path = write(tmp_path / "b.txt", "één\r\n".encode("utf-16"))
    assert "".join(read_blocks(path, "utf-16")) == "één\n"


@pytest.mark.parametrize("before", [0, 5, (1 << 20) - 1, (1 << 20) + 7, 3 << 20])
def test_a_bad_byte_is_told_with_its_place(tmp_path, before):
    content = b"a" * before + "é".encode() + b"\xff and more\n"
    for name, stored in (("a.txt", content), ("a.gz", gzip.compress(content, 1))):
        path = write(tmp_path / name, stored)
        with pytest.raises(DataError, match=rf"{name}: byte {before + 2} \(0xff\).*latin-1"):
            list(read_blocks(path))
    assert "".join(read_blocks(path, "latin-1")).endswith("ÿ and more\n")


def test_a_character_cut_by_the_end_of_the_file_is_told(tmp_path):
    path = write(tmp_path / "a.txt", "aé".encode()[:-1])
    with pytest.raises(DataError, match=r"byte 1 \(0xc3\)"):
        list(read_blocks(path))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("lines", [1, 3, 1 << 19])
def test_a_bad_byte_is_told_with_its_line(tmp_path, lines, end):
    path = write(tmp_path / "a.txt", f"ab{end}".encode() * (lines - 1) + b"b\xff\n")
    with pytest.raises(DataError, match=rf"\(0xff\), in line {lines}, is not utf-8 text"):
        list(read_blocks(path))


@pytest.mark.parametrize("size", [1, 7, BLOCK_CHARS])
def test_lines_come_whole_and_split_at_newlines_alone(tmp_path, monkeypatch, size):
    text = "\ufeffone\r\n\r\ntwo words \x85 and\u2028more\x0c\rthe end"
    path = write(tmp_path / "a.txt", text)
    monkeypatch.setattr("everstep.data.text.text_files.file_blocks", partial(file_blocks, block_chars=size))
    assert list(file_lines(path)) == ["one\n", "\n", "two words \x85 and\u2028more\x0c\n", "the end"]


def test_a_folder_is_a_name_where_folders_are_asked_for(tmp_path):
    path = write(tmp_path / "a.txt", "x")
    assert expand([str(tmp_path), str(path)], folders=True) == [tmp_path, path]


@pytest.mark.parametrize("content", [b"text \0 text", b"\x7fELF\0\0\xff\xfe", b"\x89PNG\r\n\0"])
def test_binary_files_are_refused(tmp_path, content):
    path = write(tmp_path / "a.bin", content)
    with pytest.raises(DataError, match=r"a\.bin: looks binary"):
        list(read_blocks(path))


def test_damaged_archives_are_named(tmp_path):
    text = os.urandom(5000).hex().encode()
    for name, content in (("a.gz", gzip.compress(text)), ("a.xz", lzma.compress(text))):
        for damaged in (content[: len(content) // 2], b"no archive", content[:1000] + b"!!!!" + content[1004:]):
            path = write(tmp_path / name, damaged)
            with pytest.raises(DataError, match=f"{name}: damaged or incomplete"):
                list(read_blocks(path))
    path = write(tmp_path / "b.gz", gzip.compress(b""))
    with pytest.raises(DataError, match="holds no text"):
        list(read_blocks(path))


@pytest.mark.parametrize("encoding", ["no-such-code", "base64"])
def test_unknown_encodings_are_told(tmp_path, encoding):
    path = write(tmp_path / "a.txt", "x")
    with pytest.raises(DataError, match=rf"data\.encoding='{encoding}'"):
        list(read_blocks(path, encoding))


def test_a_line_without_end_is_read_in_bounded_pieces(tmp_path):
    path = write(tmp_path / "a.txt", "x" * 100_000)
    assert max(map(len, read_blocks(path, block_chars=1000))) == 1000
    assert BLOCK_CHARS == 4 << 20


def test_reading_and_tokenising_never_import_torch():
    code = "import sys, everstep.data as d; d.prepare, d.Tokenizer; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
