"""Tokenizers for characters, bytes, words and sub-words, each stored as one `tokenizer.json`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as HF

from everstep.data.text import vocabulary
from everstep.data.text.spelling import TokenSpeller
from everstep.data.text.text_files import pieces
from everstep.data.text.vocabulary import EOS, METASPACE, METASPACE_ITSELF
from everstep.errors import DataError
from everstep.storage.reading import read_small, reason

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_WORD = re.compile(r"\S+|\n")
_CHAR = re.compile(r"(?s:.)")
_BATCH_CHARS = 1 << 18
_LARGEST = 1 << 29  # largest tokenizer.json in bytes; enough for millions of words


class Counts(NamedTuple):
    """Size of a text in the units that losses are reported per; a newline is a character, a byte and a word."""

    chars: int
    bytes: int
    words: int


class _Words(dict[str, int]):
    """A dict from word to id that returns `unknown` for missing words."""

    unknown: int | None = None

    def __missing__(self, word: str) -> int:
        if self.unknown is None:
            raise KeyError(word)
        return self.unknown


class _Unknown(Exception):
    """A symbol is not in the vocabulary; `Tokenizer.unknown_error` tells which."""


def _printable(name: str) -> str:
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


class Tokenizer:
    """Maps text to token ids and back. Made with `train`, `load` or `from_json`.

    Text is tokenised line by line, so that the result does not depend on block boundaries. If the vocabulary has
    `<eos>`, each line end is one `<eos>`, also that of a last line without `\\n`; a literal `<eos>` in the text (for
    words: as a separate word) is the same symbol, and so is a literal `<unk>`. Otherwise the newline is a symbol.

    Attributes:
        kind: `chars`, `bytes`, `words`, `bpe` or `unigram`.
        vocab_size: number of symbols V; ids are 0 to V − 1.
        eos_id, unk_id: ids of `<eos>` and `<unk>`, or None.
        begin_id: the input before the first token: `<eos>`, else the newline, else None.
        newline_id: the symbol of a line end: `<eos>`, else the newline, else None.
        symbols: printable names of the symbols, by id.
        digest: SHA-256 (hex) of the tokenizer's JSON.
        dtype: the smallest of uint8, uint16, uint32 that holds every id.

    Example:
        >>> tokenizer = Tokenizer.train(["to be or not to be\\n"], "words")
        >>> tokenizer.symbols
        ['<eos>', '<unk>', 'be', 'to', 'not', 'or']
        >>> tokenizer.encode("to be\\n").tolist()
        [3, 2, 0]
        >>> tokenizer.decode([3, 2, 0])
        'to be\\n'
    """

    def __init__(self, hf: HF, source: str = "tokenizer"):
        self._hf = hf
        self._json = hf.to_str()
        described = json.loads(self._json)
        self.kind = vocabulary.kind_of(described, source)
        vocabulary.check_parts(described, source)
        self.vocab_size = hf.get_vocab_size()
        names = {i: name for name, i in hf.get_vocab().items()}
        if sorted(names) != list(range(self.vocab_size)):
            raise DataError(f"{source}: the ids of its {self.vocab_size} symbols are not 0 to {self.vocab_size - 1}")
        self._names = [names[i] for i in range(self.vocab_size)]
        steps = (described["normalizer"] or {}).get("normalizers", [])
        self._steps = [step["type"] for step in steps if step["type"] != "Replace"]
        self._normalizer = vocabulary.normalizer(self._steps)
        replaced = [step["pattern"].get("String") for step in steps if step["type"] == "Replace"]
        self.eos_id: int | None = hf.token_to_id(EOS) if "\n" in replaced else None
        self.unk_id: int | None = self._find_unk(described["model"])
        newline = vocabulary.byte_names()[10] if self.kind in ("bytes", "bpe") else "\n"
        self.newline_id: int | None = self.eos_id if self.eos_id is not None else hf.token_to_id(newline)
        self.begin_id = self.newline_id
        self.digest = hashlib.sha256(self._json.encode()).hexdigest()
        self.dtype: type[np.uint8] | type[np.uint16] | type[np.uint32] = (
            np.uint8 if self.vocab_size <= 1 << 8 else np.uint16 if self.vocab_size <= 1 << 16 else np.uint32
        )
        self._encode_text: Callable[[str], NDArray[Any]] = getattr(self, f"_encode_{self.kind}")

    def _find_unk(self, model: dict[str, Any]) -> int | None:
        if self.kind == "unigram":
            return model["unk_id"]  # type: ignore[no-any-return]
        return self._hf.token_to_id(model["unk_token"]) if model["unk_token"] else None

    @classmethod
    def train(
        cls,
        blocks: Iterable[str],
        kind: str,
        *,
        max_size: int | None = None,
        min_count: int = 1,
        lowercase: bool = False,
        normal_form: str | None = None,
        eos: bool | None = None,
        unk: bool | None = None,
    ) -> Tokenizer:
        """Train a tokenizer on a text, given in blocks cut at line ends (`read_blocks`) or between words.

        Args:
            blocks: pieces of the text; each is read once.
            kind: `chars`; `bytes` (always all 256); `words` (split at white space); `bpe` (over bytes); `unigram`.
            max_size: most symbols, specials included; None: no limit (8,000 for `bpe` and `unigram`).
            min_count: rarer symbols (for `bpe`: merges) are dropped.
            lowercase, normal_form: normalisation of every text; the form is NFC, NFD, NFKC, NFKD or None.
            eos: whether line ends are `<eos>`; by default for `words` and `unigram`.
            unk: whether `<unk>` replaces missing symbols; by default for `words` and `unigram`, and for `chars` if any
                are dropped.

        Ids: `<eos>` and `<unk>` if present, then by falling frequency, ties in code point order (`bytes` by value;
        `bpe` bytes, then merges). The same text gives the same tokenizer.

        Raises:
            DataError: invalid options, fewer than 2 symbols, or symbols dropped without `<unk>`.

        Example:
            >>> Tokenizer.train(["abba\\n"], "chars").symbols
            ['a', 'b', '\\\\n']
        """
        by_default = kind in ("words", "unigram")
        eos = by_default if eos is None else eos
        unk = by_default or None if unk is None else unk
        options = vocabulary.Options(kind, max_size, min_count, lowercase, normal_form, eos, unk)
        return cls(vocabulary.build(blocks, options))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Read a `tokenizer.json` that everstep wrote.

        Raises:
            DataError: the file is missing, damaged, or was not written by everstep.
        """
        try:
            text = read_small(path, _LARGEST).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as a tokenizer ({reason(error)})") from error
        return cls.from_json(text, str(path))

    @classmethod
    def from_json(cls, text: str, source: str = "tokenizer") -> Tokenizer:
        """The tokenizer from the result of `to_json`; `source` is its name in errors."""
        try:
            hf = HF.from_str(text)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{source}: no Hugging Face tokenizer ({error})") from error
        return cls(hf, source)

    def to_json(self) -> str:
        """The tokenizer as JSON, which `tokenizers.Tokenizer.from_str` reads."""
        return self._json

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        return (json.dumps(json.loads(self._json), ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json`; `tokenizers.Tokenizer.from_file` reads it and gives the same ids."""
        Path(path).write_bytes(self.to_bytes())

    def __repr__(self) -> str:
        return f"Tokenizer({self.kind}, {self.vocab_size} symbols)"

    @cached_property
    def symbols(self) -> list[str]:
        if self.kind not in ("bytes", "bpe"):
            escaped = METASPACE.encode("unicode_escape").decode("ascii")
            return [_printable(name.replace(METASPACE_ITSELF, escaped)) for name in self._names]
        shown = (piece.decode("utf-8", "backslashreplace") for piece in self._bytes)
        return [EOS if i == self.eos_id else _printable(name) for i, name in enumerate(shown)]

    @cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes of each symbol of `bytes` and `bpe`."""
        value = {name: byte for byte, name in enumerate(vocabulary.byte_names())}
        return [
            b"\n" if i == self.eos_id else bytes(value[char] for char in name) for i, name in enumerate(self._names)
        ]

    @cached_property
    def _texts(self) -> list[str]:
        """The text of each symbol of the other kinds."""
        shown = list(self._names)
        if self.kind == "unigram":
            shown = [name.replace(METASPACE, " ").replace(METASPACE_ITSELF, METASPACE) for name in shown]
        if self.eos_id is not None:
            shown[self.eos_id] = "\n"
        return shown

    def normalize(self, text: str) -> str:
        """`text` in the normal form and case of this vocabulary; newlines are kept."""
        if self._normalizer is None:
            return text
        if text.isascii():  # normal forms leave ASCII alone
            return text.lower() if "Lowercase" in self._steps else text
        try:
            return vocabulary.normalized(text, self._normalizer)
        except UnicodeEncodeError as error:
            raise DataError(f"the text holds {text[error.start]!r}, half of a character, which has no form") from None

    def count(self, text: str, *, line_end: bool = True) -> Counts:
        """Numbers of characters, bytes and words (each newline counts as a word) of the normalised text."""
        text = self._ended(self.normalize(text), line_end)
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        return Counts(len(text), size, len(text.split()) + text.count("\n"))

    def encode(self, text: str, *, line_end: bool = True) -> NDArray[Any]:
        """The ids of a text, (tokens,) of `dtype`.

        Args:
            text: whole lines; cutting a text after any `\\n` gives the same ids.
            line_end: whether a last line without `\\n` gets an `<eos>` (if the vocabulary has one); False for a prompt
                that a model continues.

        Raises:
            DataError: the vocabulary lacks a symbol and has no `<unk>`; the message says which and where.

        Example:
            >>> Tokenizer.train(["ab\\n"], "chars", eos=True).encode("ab", line_end=False).tolist()
            [1, 2]
        """
        clean = self._ended(self.normalize(text), line_end)
        try:
            return self._encode_text(clean)
        except (_Unknown, UnicodeEncodeError):
            raise self.unknown_error(text) from None

    def unknown_error(self, text: str, source: str = "the text", first_line: int = 1) -> DataError:
        """The error for a text that `encode` refused: the symbol, its line and its column (in normal form)."""
        for number, line in enumerate(_LINE.findall(self.normalize(text)), first_line):
            if self._knows(line):
                continue
            units = (_WORD if self.kind == "words" else _CHAR).finditer(line)
            column, symbol = next(
                ((unit.start() + 1, unit[0]) for unit in units if not self._knows(unit[0])), (1, line)
            )
            name = f"{symbol!r} (U+{ord(symbol):04X})" if len(symbol) == 1 else repr(symbol)
            return DataError(
                f"{source}, line {number}, column {column}: {name} is not in the vocabulary of {self.vocab_size} "
                f"{self.kind}; train with data.unk=true, or give a text that has it"
            )
        return DataError(f"{source}: the vocabulary of {self.vocab_size} {self.kind} cannot encode it")

    def knows(self, text: str) -> bool:
        """Whether `encode` accepts the text: the vocabulary has all its symbols, or `<unk>`."""
        return self._knows(self.normalize(text))

    def _knows(self, text: str) -> bool:
        try:
            self._encode_text(self._ended(text, False))
        except (_Unknown, UnicodeEncodeError):
            return False
        return True

    def _ended(self, text: str, line_end: bool) -> str:
        """The text with `\\n` for every `<eos>`, including the last."""
        if self.eos_id is None:
            return text
        if self.kind != "words":
            text = text.replace(EOS, "\n")
        return text + "\n" if line_end and text and not text.endswith("\n") else text

    @cached_property
    def _table(self) -> NDArray[Any]:
        """Table from code point (chars) or byte value (bytes) to id; V for missing symbols without `<unk>`."""
        if self.kind == "bytes":
            codes = {ord(piece): i for i, piece in enumerate(self._bytes)}
        else:
            codes = {ord(name): i for i, name in enumerate(self._names) if len(name) == 1}
        if self.eos_id is not None:
            codes[10] = self.eos_id
        missing = self.vocab_size if self.unk_id is None else self.unk_id
        table = np.full(256 if self.kind == "bytes" else 0x110000, missing, np.uint32)
        table[list(codes)] = list(codes.values())
        return table if self.unk_id is None and self.kind != "bytes" else table.astype(self.dtype)

    def _encode_chars(self, text: str) -> NDArray[Any]:
        if text.isascii():
            codes = np.frombuffer(text.encode("ascii"), np.uint8)
        else:
            codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        ids = self._table[codes]
        if self.unk_id is None and len(ids) and ids.max() == self.vocab_size:
            raise _Unknown
        return ids.astype(self.dtype, copy=False)

    def _encode_bytes(self, text: str) -> NDArray[Any]:
        return self._table[np.frombuffer(text.encode("utf-8"), np.uint8)]

    @cached_property
    def _words(self) -> _Words:
        words = _Words((name, i) for i, name in enumerate(self._names))
        words.unknown = self.unk_id
        return words

    def _encode_words(self, text: str) -> NDArray[Any]:
        if self.eos_id is not None:
            words = text.replace("\n", f" {EOS} ").split()
        else:
            words = _WORD.findall(text)
        try:
            return np.fromiter(map(self._words.__getitem__, words), self.dtype, len(words))
        except KeyError:
            raise _Unknown from None

    @cached_property
    def _plain(self) -> HF:
        """The Hugging Face tokenizer for text that is already in normal form."""
        described = json.loads(self._json)
        if self._steps:
            ends = [step for step in described["normalizer"]["normalizers"] if step["type"] == "Replace"]
            described["normalizer"] = {"type": "Sequence", "normalizers": ends} if ends else None
        return HF.from_str(json.dumps(described, allow_nan=False))

    def _encode_subwords(self, text: str) -> NDArray[Any]:
        text.encode("utf-8")  # raises on lone surrogates, before the library aborts on them
        found = [np.empty(0, self.dtype)]
        for piece in pieces(text, _BATCH_CHARS):
            lines = _LINE.findall(piece)
            try:
                paths = self._plain.encode_batch_fast(lines, add_special_tokens=False)
            except Exception as error:  # the library raises plain Exception
                raise _Unknown from error
            found += [np.array(path.ids, self.dtype) for path in paths]
        return np.concatenate(found)

    _encode_bpe = _encode_unigram = _encode_subwords

    def decode(self, ids: Sequence[int] | NDArray[Any]) -> str:
        """The text of ids: `<eos>` becomes `\\n`, words are joined by a space, invalid UTF-8 becomes U+FFFD.

        For all kinds but words, this restores the encoded text in its normal form and case, with three exceptions:
        symbols replaced by `<unk>` are lost, a literal `<eos>` becomes a line end, and in unigram U+FDD0 (a
        noncharacter) becomes `▁`.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        numbers = np.asarray(ids, dtype=np.int64).tolist()
        if numbers and not (min(numbers) >= 0 and max(numbers) < self.vocab_size):
            bad = next(i for i in numbers if not 0 <= i < self.vocab_size)
            raise DataError(f"id {bad} is not in the vocabulary of {self.vocab_size} {self.kind}")
        speller = self.speller()
        return speller.spell(numbers) + speller.end()

    def speller(self) -> TokenSpeller:
        """An incremental `decode`."""
        return TokenSpeller(self._bytes if self.kind in ("bytes", "bpe") else self._texts, self.kind == "words")
