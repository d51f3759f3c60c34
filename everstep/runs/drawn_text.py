"""Conversion of sampled tokens to text while they are sampled, up to the end of each text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from everstep.runs.capabilities import Speller


class _Row:
    """One text, spelled until its end."""

    def __init__(self, speller: Speller, end: int | None, stop: str):
        self._speller, self._end, self._stop = speller, end, stop
        self._held = ""  # text that may be the beginning of `stop`
        self.done = False

    def spell(self, token: int) -> str:
        """The text that is certain after one more token."""
        if self.done:
            return ""
        if token == self._end:
            return self.finish()
        text = self._held + self._speller.spell((token,))
        if not self._stop:
            return text
        before, found, _ = text.partition(self._stop)
        if found:
            self.done, self._held = True, ""
            return before
        keep = next(n for n in range(len(self._stop) - 1, -1, -1) if text.endswith(self._stop[:n]))
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The remaining text."""
        if self.done:
            return ""
        self.done = True
        return self._held + self._speller.end()


def spelled(
    spellers: Sequence[Speller], given: Sequence[int], drawn: Iterator[Tensor], end: int | None, stop: str
) -> Iterator[list[str]]:
    """Yield the next piece of each text for each step of `drawn`; the first piece is the text of `given`.

    A text ends before the token `end` or the string `stop`; sampling stops when all texts have ended.
    """
    rows = [_Row(speller, end, stop) for speller in spellers]
    yield [speller.spell(given) for speller in spellers]
    for tokens in drawn:
        yield [row.spell(token) for row, token in zip(rows, tokens.tolist(), strict=True)]
        if all(row.done for row in rows):
            return
    yield [row.finish() for row in rows]
