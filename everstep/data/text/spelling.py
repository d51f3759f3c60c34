"""Incremental conversion of ids to text, to show a text while it is generated."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence


class TokenSpeller:
    """Converts ids to text incrementally; the results, joined, are the text of all ids. See `Tokenizer.speller`.

    Args:
        pieces: the text of each id; bytes for `bytes` and `bpe`, whose tokens may split characters.
        spaced: whether to put a space between two pieces, except at line ends (for words).

    Example:
        >>> speller = TokenSpeller(["to", "be", "\\n"], spaced=True)
        >>> [speller.spell([0]), speller.spell([1, 2]), speller.spell([0]), speller.end()]
        ['to', ' be\\n', 'to', '']
    """

    def __init__(self, pieces: Sequence[str] | Sequence[bytes], spaced: bool = False):
        self._pieces, self._spaced = pieces, spaced
        self._before = "\n"
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def spell(self, ids: Iterable[int]) -> str:
        """The text that these ids (0 to V − 1) complete; the bytes of an incomplete character are held back."""
        found = [self._pieces[i] for i in ids]
        if found and isinstance(found[0], bytes):
            return self._bytes.decode(b"".join(found))  # type: ignore[arg-type]
        return "".join(map(self._joined, found) if self._spaced else found)  # type: ignore[arg-type]

    def end(self) -> str:
        """The text held back; bytes of an incomplete character become U+FFFD."""
        return self._bytes.decode(b"", final=True)

    def _joined(self, piece: str) -> str:
        space = "" if "\n" in (self._before, piece) else " "
        self._before = piece
        return space + piece
