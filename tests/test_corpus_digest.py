"""A token file that is not as it was written is made again, whatever happened to it."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from everstep.data import Corpus, Tokenizer, expand, prepare, read_blocks
from everstep.data.text import corpus as corpus_module
from everstep.errors import DataError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text("to be or not to be\n\nthat is\nthe question\n" * 9)
    return path


@pytest.fixture
def made(source: Path, tmp_path: Path) -> Callable[[], Corpus]:
    tokenizer = Tokenizer.train(read_blocks([source]), "words")
    return lambda: prepare(source, tokenizer, sequence="lines", cache=tmp_path / "cache")


def facts(corpus: Corpus) -> tuple[object, ...]:
    counts = (corpus.chars, corpus.bytes, corpus.words, corpus.unknown, corpus.skipped, corpus.digest)
    return (corpus.tokens.tolist(), corpus.starts.tolist(), *counts)


@pytest.mark.parametrize("name", ["tokens.bin", "starts.npy", "corpus.json"])
def test_any_flipped_bit_is_found(name: str, made: Callable[[], Corpus]) -> None:
    whole = made()
    assert whole.path is not None
    path = whole.path / name
    content = path.read_bytes()
    expected = facts(whole)
    for bit in random.Random(0).sample(range(8 * len(content)), 60):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.unlink()
        path.write_bytes(damaged)
        assert facts(made()) == expected, bit
        assert path.read_bytes() == content, bit


@pytest.mark.parametrize("name", ["tokens.bin", "starts.npy", "corpus.json"])
@pytest.mark.parametrize("damage", ["pipe", "folder", "huge", "link", "empty", "zeros", "nested"])
def test_what_is_no_file_of_ours_is_made_again(name: str, damage: str, made: Callable[[], Corpus]) -> None:
    whole = made()
    assert whole.path is not None
    expected, path = facts(whole), whole.path / name
    size = path.stat().st_size
    path.unlink()
    if damage == "pipe":
        os.mkfifo(path)
    elif damage == "folder":
        path.mkdir()
    elif damage == "huge":
        path.touch()
        os.truncate(path, 1 << 40)
    elif damage == "link":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes({"empty": b"", "zeros": bytes(size), "nested": b"[" * 200_000}[damage])
    assert facts(made()) == expected
    assert path.is_file()


@pytest.mark.parametrize(
    "header", [b"{(", b"'", b"  x\n y", b"(" * 100, b"{'descr': '<i8', 'fortran_order': 1, 'shape': (9,)}"]
)
def test_a_header_that_no_parser_reads_is_damage(header: bytes, made: Callable[[], Corpus]) -> None:
    whole = made()
    assert whole.path is not None
    expected, path = facts(whole), whole.path / "starts.npy"
    content = path.read_bytes()
    size = int.from_bytes(content[8:10], "little")
    path.write_bytes(content[:10] + header.ljust(size) + content[10 + size :])
    assert facts(made()) == expected


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_text_is_a_regular_file(kind: str, tmp_path: Path) -> None:
    path = Path("/dev/zero")
    if kind == "pipe":
        path = tmp_path / "pipe"
        os.mkfifo(path)
    with pytest.raises(DataError, match=f"cannot be read .expected a regular file, but it is a {kind}"):
        expand(str(path))


@pytest.mark.parametrize("dtype", ["<u8", "<f8", ">i8"])
def test_starts_of_another_kind_are_refused_though_their_bytes_are_the_same(
    dtype: str, made: Callable[[], Corpus]
) -> None:
    whole = made()
    assert whole.path is not None
    expected, path = facts(whole), whole.path / "starts.npy"
    out = io.BytesIO()
    np.save(out, np.load(path).view(dtype))
    path.write_bytes(out.getvalue())
    assert facts(made()) == expected


def test_a_cache_of_an_early_version_is_made_again(made: Callable[[], Corpus]) -> None:
    whole = made()
    assert whole.path is not None
    path = whole.path / "corpus.json"
    early = json.loads(path.read_text())
    del early["seal"]
    path.write_text(json.dumps(early, indent=1))
    assert facts(made()) == facts(whole)
    assert "seal" in json.loads(path.read_text())


def test_the_digest_is_taken_piece_by_piece(made: Callable[[], Corpus], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = facts(made())
    monkeypatch.setattr(corpus_module, "_HASHED_BYTES", 16)
    monkeypatch.setattr(corpus_module, "_write", None)  # so that it is not made again
    assert facts(made()) == expected


SCRIPT = """
import itertools, sys, time
from pathlib import Path
from everstep.data import Tokenizer
from everstep.data.text import tokenise
from everstep.data.text.text_files import spanned

def blocks(*arguments, **options):
    yield from itertools.islice(itertools.cycle(spanned(*arguments, **options)), 40)
    print("here", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    tokenise.INLINE_BYTES, tokenise.spanned = 0, blocks
    source = Path(sys.argv[1])
    parts = tokenise.tokenised([source], Tokenizer.train([source.read_text()], "chars"), "utf-8", "stream", 2)
    for part in parts:
        pass
"""


def children(pid: int) -> list[int]:
    """Of a process, as the system lists them."""
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_that_tokenise_end_with_the_one_that_began_them(number: int, source: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said == "here\n", process.communicate()
        found = children(process.pid)
        assert len(found) >= 3  # two that tokenise, and one of the library's
        process.send_signal(number)
        process.communicate()
    while any(map(alive, found)):  # for ever, if it is as it should not be
        time.sleep(0.05)
