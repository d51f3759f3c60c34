"""Ids back to text, as they come: a model's text is shown while it is drawn."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence


class Speller:
    """Spells ids one after another: what it gives, joined, is the text of all of them. `Tokenizer.speller` makes one.

    Args:
        pieces: what each id spells, by id; bytes for `bytes` and `bpe`, whose characters may be cut anywhere.
        spaced: one space stands between two pieces, but none at a line's end: words.

    Example:
        >>> speller = Speller(["to", "be", "\\n"], spaced=True)
        >>> [speller.spell([0]), speller.spell([1, 2]), speller.spell([0]), speller.end()]
        ['to', ' be\\n', 'to', '']
    """

    def __init__(self, pieces: Sequence[str] | Sequence[bytes], spaced: bool = False):
        self._pieces, self._spaced = pieces, spaced
        self._before = "\n"
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")

    def spell(self, ids: Iterable[int]) -> str:
        """The text that is certain once these ids (0 to V - 1) have come; the first bytes of a character are held."""
        found = [self._pieces[i] for i in ids]
        if found and isinstance(found[0], bytes):
            return self._bytes.decode(b"".join(found))  # type: ignore[arg-type]
        return "".join(map(self._joined, found) if self._spaced else found)  # type: ignore[arg-type]

    def end(self) -> str:
        """What was held: bytes that never became a character are U+FFFD."""
        return self._bytes.decode(b"", final=True)

    def _joined(self, piece: str) -> str:
        space = "" if "\n" in (self._before, piece) else " "
        self._before = piece
        return space + piece
