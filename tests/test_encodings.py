"""Every reader reads alike: training files, lines on stdin, a passage, prompts; and the right encoding is named."""

from __future__ import annotations

import codecs
import gzip
import io
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everstep.data.text.decoding import as_read, read_lines, reads_text, sniffed
from everstep.data.text.text_files import file_lines, open_text, read_blocks
from everstep.errors import DataError
from everstep.runs.pictures import own_text
from everstep.runs.recipe_files import parse_recipe

ODD = "one\r\ntwo\rthree\x0cstill\u2028three\x85\x1c\x1d\x1e\x0b\u2029end\n\n four \r\r\nlast"
LINES = ["one", "two", "three\x0cstill\u2028three\x85\x1c\x1d\x1e\x0b\u2029end", "", " four ", "", "last"]
UNICODE = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "gb18030"]


def chunked(content: bytes, size: int) -> Iterator[bytes]:
    stream = io.BytesIO(content)
    return iter(lambda: stream.read(size), b"")


def by_blocks(path: Path, encoding: str) -> str:
    return "".join(read_blocks(path, encoding))


def by_file_lines(path: Path, encoding: str) -> str:
    return "".join(file_lines(path, encoding))


def by_open_text(path: Path, encoding: str) -> str:
    with open_text(path, encoding) as file:
        return file.read()


def by_passage(path: Path, encoding: str) -> str:
    text = f"task: language-model\ntrain: {{max_steps: 1}}\ndata: {{encoding: {encoding}}}"
    return own_text(types.SimpleNamespace(recipe=parse_recipe(text, "recipe"), task=None), path)  # type: ignore[arg-type]


def by_stdin(path: Path, encoding: str) -> str:
    content = path.read_bytes()
    whole = list(read_lines(chunked(content, 1 << 16), "standard input", encoding))
    assert list(read_lines(chunked(content, 3), "standard input", encoding)) == whole
    return "\n".join(whole)


READERS = [by_blocks, by_file_lines, by_open_text, by_stdin]
Reader = Callable[[Path, str], str]


@pytest.mark.parametrize("mark", [False, True])
@pytest.mark.parametrize("encoding", UNICODE)
@pytest.mark.parametrize("reader", [*READERS, by_passage])
def test_every_reader_reads_alike(reader: Reader, encoding: str, mark: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes((("\ufeff" if mark and encoding != "utf-8-sig" else "") + ODD).encode(encoding))
    if encoding in ("utf-16", "utf-32") and mark:
        return  # the codec's own mark and one more, which is a symbol of the text
    read = reader(path, encoding)
    assert read.split("\n") == LINES


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.sampled_from("ab é\t\r\n\x0c\x0b\x1c\x85\u2028\ufeff東"), max_size=40),
    size=st.integers(1, 9),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-32"]),
)
def test_lines_of_a_stream_are_the_lines_of_a_file(
    text: str, size: int, encoding: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = text.encode(encoding)
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes(content)
    lines = [line.removesuffix("\n") for line in file_lines(path, encoding)] if as_read(text) else []
    assert list(read_lines(chunked(content, size), "stdin", encoding)) == lines


def test_a_text_that_is_typed_is_read_as_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(("\ufeff" + ODD).encode())
    assert as_read("\ufeff" + ODD) == by_blocks(tmp_path / "a.txt", "utf-8")


# ------------------------------------------------------------------------------------------------ the right encoding

ENGLISH = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n" * 5
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива.\n" * 5
CURLY = "“Oh!” said she — it’s a café.\n" * 5


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "stated", "right"),
    [
        (ENGLISH.encode("utf-16"), "utf-8", "utf-16"),
        (codecs.BOM_UTF16_BE + ENGLISH.encode("utf-16-be"), "utf-8", "utf-16"),
        (RUSSIAN.encode("utf-16"), "utf-8", "utf-16"),
        (RUSSIAN.encode("utf-16"), "latin-1", "utf-16"),
        ("東京は日本の首都である。\n".encode("utf-16"), "utf-8", "utf-16"),
        (ENGLISH.encode("utf-16-le"), "utf-8", "utf-16-le"),
        (ENGLISH.encode("utf-16-be"), "utf-8", "utf-16-be"),
        (RUSSIAN.encode("utf-16-le"), "utf-8", "utf-16-le"),
        (RUSSIAN.encode("utf-16-be"), "cp1252", "utf-16-be"),
        (ENGLISH.encode("utf-16-le"), "utf-16", "utf-16-le"),
        (ENGLISH.encode("utf-32"), "utf-8", "utf-32"),
        (ENGLISH.encode("utf-32-be"), "utf-8", "utf-32-be"),
        (CURLY.encode("cp1252"), "utf-8", "cp1252"),
        (CURLY.encode(), "ascii", "utf-8"),
        (ENGLISH.encode(), "utf-16", "utf-8"),
        (RUSSIAN.encode() + b"x", "utf-16", "utf-8"),
    ],
)
def test_the_encoding_named_is_the_one_that_works(
    content: bytes, stated: str, right: str, reader: Reader, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    if reader is not by_open_text:  # which leaves errors to Python
        with pytest.raises(DataError) as told:
            reader(path, stated)
        assert f"data.encoding={right}" in str(told.value).replace(f"{right}-", "…")
        assert "binary" not in str(told.value)
    assert reader(path, right).rstrip("\n") == content.decode(right).removeprefix("\ufeff").rstrip("\n")


def test_damage_in_a_text_is_told_from_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(RUSSIAN.encode()[:500] + b"\xff" + RUSSIAN.encode()))
    with pytest.raises(DataError, match=r"byte 500 \(0xff\), in line 4, .*that place may be damaged"):
        by_blocks(path, "utf-8")


@pytest.mark.parametrize(
    "content", [b"\x7fELF\2\1\1\0\0\0\0\0", b"some \0 words\n" * 9, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"]
)
def test_what_is_binary_is_no_text_of_another_encoding(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    for reader in (by_blocks, by_stdin):
        with pytest.raises(DataError, match=r"looks binary.*tr -d"):
            reader(tmp_path / "a.txt", "utf-8")
    assert sniffed(content) is None


def test_lines_before_a_bad_one_come_first() -> None:
    lines = read_lines(chunked(b"good\r\nfine\rbad caf\xe9 x\n", 64), "standard input", "utf-8", "--encoding ")
    assert [next(lines), next(lines)] == ["good", "fine"]
    with pytest.raises(DataError, match=r"line 3: expected UTF-8; byte 8 of it \(0xe9\).*--encoding cp1252"):
        next(lines)


@pytest.mark.parametrize("encoding", ["base64", "rot13", "idna", "punycode", "undefined", "no-such", "utf\0", "hex"])
def test_what_is_no_encoding_of_text(encoding: str, tmp_path: Path) -> None:
    assert not reads_text(encoding)
    (tmp_path / "a.txt").write_text("a")
    for reader in READERS:
        with pytest.raises(DataError, match="expected an encoding that Python reads"):
            reader(tmp_path / "a.txt", encoding)
