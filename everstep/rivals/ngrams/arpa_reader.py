"""Reading ARPA files of back-off n-gram models."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from everstep.data.text.text_files import open_text
from everstep.data.text.tokenizer import Tokenizer
from everstep.data.text.vocabulary import EOS, UNK
from everstep.errors import DataError
from everstep.rivals.ngrams.ngram_table import NGramTable

BEGIN, END = "<s>", "</s>"
NEVER = -100.0
"""log10 p of an unknown word where the file has no <unk>, as in KenLM."""
LN10 = math.log(10)
_BLOCK = 1 << 16  # entries that are looked up at a time
_COUNT = re.compile(r"ngram\s+(\d+)\s*=\s*(\d+)")


class Arpa(NamedTuple):
    """The content of an ARPA file: its words as a tokenizer with <eos> for <s> and </s>, its n-grams, and notes."""

    tokenizer: Tokenizer
    table: NGramTable
    notes: list[str]


def read_arpa(path: str | Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Arpa:
    r"""Read an ARPA file, plain, `.gz` or `.xz`, line by line.

    An n-gram without a back-off weight has weight 1. A file without <unk> gives unknown words log10 p = -100, as KenLM
    does, and a note; <UNK> is <unk>.

    Args:
        path: the file.
        progress: called after every 65,536 n-grams of an order and at its end: n-grams read, and those in the header.

    Raises:
        DataError: the file cannot be read, counts are wrong, a line is no entry, log p is above 0, an n-gram has a word
            that is no unigram or begins with an n-gram that has no entry, or occurs twice. The message names the line.

    >>> path = getfixture("tmp_path") / "tiny.arpa"
    >>> size = path.write_text("\\data\\\nngram 1=3\n\n\\1-grams:\n-1 <unk>\n-0.5 </s>\n-0.4 a\n\n\\end\\\n")
    >>> arpa = read_arpa(path)
    >>> arpa.tokenizer.symbols, arpa.table.order
    (['<eos>', '<unk>', 'a'], 1)
    """
    return _Reader(Path(path), progress).read()


class _Entries(NamedTuple):
    """Some entries of one order: lines, log10 p, words, log10 b."""

    lines: list[int]
    log_p: list[float]
    words: list[list[str]]
    backoff: list[float]


class _Reader:
    def __init__(self, path: Path, progress: Callable[[int, int], None]):
        self._path, self._number, self._progress = path, 0, progress
        self._lines = self._read_lines()
        self._line = ""
        self._notes: list[str] = []

    def _read_lines(self) -> Iterator[str]:
        with open_text(self._path) as lines:
            try:
                for self._number, line in enumerate(lines, 1):
                    if line := line.strip(" \t\r\n"):
                        yield line
            except (OSError, EOFError, UnicodeDecodeError) as error:
                raise DataError(f"{self._path}, after line {self._number}: cannot be read as text ({error})") from None

    def _wrong(self, message: str, line: int | None = None) -> NoReturn:
        raise DataError(f"{self._path}, line {line or self._number}: {message}")

    def _next(self) -> str:
        self._line = next(self._lines, "")
        return self._line

    def read(self) -> Arpa:
        sizes = self._header()
        tokenizer, ids, log_p, backoff = self._unigrams(sizes)
        table = NGramTable(tokenizer.vocab_size, [], [log_p], [backoff])
        for n in range(2, len(sizes) + 1):
            self._order(table, n, sizes, ids)
        if self._line != "\\end\\":
            self._wrong(f"expected \\end\\ after the {len(sizes)}-grams; got {self._line or 'the end of the file'!r}")
        del table.backoff[len(sizes) - 1 :]
        return Arpa(tokenizer, table, self._notes)

    def _header(self) -> list[int]:
        """The number of n-grams of each order."""
        while self._next() not in ("\\data\\", ""):
            pass
        if not self._line:
            raise DataError(f"{self._path}: expected an ARPA file; it has no line \\data\\")
        sizes: list[int] = []
        while found := _COUNT.fullmatch(self._next()):
            if int(found[1]) != len(sizes) + 1:
                self._wrong(f"expected ngram {len(sizes) + 1}=…; got {self._line!r}")
            sizes.append(int(found[2]))
        if not sizes:
            self._wrong(f"expected ngram 1=… after \\data\\; got {self._line!r}")
        return sizes

    def _entries(self, n: int, sizes: Sequence[int]) -> Iterator[_Entries]:
        """The entries of an order in blocks; checks their number."""
        if self._line != f"\\{n}-grams:":
            self._wrong(f"expected \\{n}-grams: by the counts of the header; got {self._line!r}")
        count, last = 0, n == len(sizes)
        block = _Entries([], [], [], [])
        while (line := self._next()) and not line.startswith("\\"):
            self._entry(line, n, last, block)
            count += 1
            if len(block.lines) == _BLOCK:
                yield block
                self._progress(sum(sizes[: n - 1]) + count, sum(sizes))
                block = _Entries([], [], [], [])
        if count != sizes[n - 1]:
            self._wrong(f"expected {sizes[n - 1]:,} {n}-grams, as the header says; got {count:,}")
        yield block
        self._progress(sum(sizes[:n]), sum(sizes))

    def _entry(self, line: str, n: int, last: bool, block: _Entries) -> None:
        parts = line.replace("\t", " ").split(" ")
        parts = [part for part in parts if part] if "" in parts else parts
        if len(parts) not in (n + 1, n + 2):
            self._wrong(f"expected log10 p, {n} words and perhaps a back-off weight; got {line!r}")
        try:
            log_p, backoff = float(parts[0]), float(parts[n + 1]) if len(parts) == n + 2 else 0.0
        except ValueError:
            self._wrong(f"expected numbers before and after the {n} words; got {line!r}")
        if not (math.isfinite(log_p) and math.isfinite(backoff)):
            self._wrong(f"expected finite numbers; got {line!r}")
        if log_p > 0:
            self._wrong(f"expected log10 p of at most 0; got {parts[0]}")
        if last and backoff:
            self._wrong(f"expected no back-off weight at the largest order; got {parts[n + 1]}")
        block.lines.append(self._number)
        block.log_p.append(log_p)
        block.words.append(parts[1 : n + 1])
        block.backoff.append(backoff)

    def _unigrams(
        self, sizes: Sequence[int]
    ) -> tuple[Tokenizer, dict[str, int], NDArray[np.float32], NDArray[np.float32]]:
        """The tokenizer, the id of each word (V for <s>), and the values of the unigrams by id."""
        found: dict[str, tuple[float, float]] = {}
        for block in self._entries(1, sizes):
            for line, log_p, (word,), backoff in zip(*block, strict=True):
                word = UNK if word == "<UNK>" else word
                if word in found:
                    self._wrong(f"{word!r} occurs twice", line)
                if word == EOS or len(word.split()) != 1:
                    self._wrong(f"{word!r} cannot be a word, since it holds white space or is {EOS}", line)
                found[word] = (log_p, backoff)
        if END not in found:
            raise DataError(f"{self._path}: expected the word {END} among the unigrams; it is not there")
        if UNK not in found:
            self._notes.append(f"{self._path} has no {UNK}: unknown words have log10 p = {NEVER:g}")
        ends, begins = found.pop(END), found.pop(BEGIN, (0.0, 0.0))
        found.setdefault(UNK, (NEVER, 0.0))
        tokenizer = Tokenizer.train(["".join(f"{word}\n" for word in found)], "words", eos=True, unk=True)
        numbers = tokenizer.encode("\n".join(found)).astype(np.int64)[::2]
        assert tokenizer.eos_id is not None
        size = tokenizer.vocab_size
        values = np.zeros((2, size))
        values[:, numbers] = np.array(list(found.values())).T
        values[:, tokenizer.eos_id] = ends[0], begins[1]
        ids = dict(zip(found, numbers.tolist(), strict=True))
        ids |= {END: tokenizer.eos_id, BEGIN: size, "<UNK>": ids[UNK]}
        return tokenizer, ids, _nats(values[0]), _nats(values[1])

    def _order(self, table: NGramTable, n: int, sizes: Sequence[int], ids: dict[str, int]) -> None:
        """Add the n-grams of an order to the table."""
        parts: list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]] = []
        for block in self._entries(n, sizes):
            words = [self._numbered(*entry, ids) for entry in zip(block.lines, block.words, strict=True)]
            rows = np.array(words, np.int64).reshape(-1, n)
            prefix = rows[:, 0]
            for place in range(2, n):
                prefix = table.numbers(place, prefix, rows[:, place - 1])
            if (prefix < 0).any():
                at = int(np.argmax(prefix < 0))
                context = " ".join(block.words[at][:-1])
                self._wrong(f"expected an entry for {context!r}, with which this n-gram begins", block.lines[at])
            keys = prefix * table.vocabulary + rows[:, -1]
            parts.append((keys, _nats(block.log_p), _nats(block.backoff), np.array(block.lines, np.int64)))
        keys, log_p, backoff, lines = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        if (keys[1:] == keys[:-1]).any():
            at = int(np.argmax(keys[1:] == keys[:-1])) + 1
            self._wrong("this n-gram occurs twice", int(lines[order[at]]))
        table.keys.append(keys.astype(np.int64))
        table.log_p.append(log_p[order])
        table.backoff.append(backoff[order])

    def _numbered(self, line: int, words: list[str], ids: dict[str, int]) -> list[int]:
        """The ids of the words of an n-gram; <s> may stand first, </s> last."""
        if BEGIN in words[1:] or END in words[:-1]:
            self._wrong(f"expected {BEGIN} first and {END} last; got {' '.join(words)!r}", line)
        try:
            found = [ids[word] for word in words]
        except KeyError as error:
            self._wrong(f"{error.args[0]!r} is not among the unigrams", line)
        if words[0] == BEGIN:
            found[0] = ids[END]
        return found


def _nats(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float32]:
    return (np.asarray(values, np.float64) * LN10).astype(np.float32)
