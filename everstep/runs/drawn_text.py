"""Conversion of sampled tokens to text while they are sampled, up to the end of each text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from everstep.decode import Sampler
from everstep.decode.decoder import Decoder
from everstep.runs.capabilities import Speller


class SpelledText:
    """One text, spelled until its end.

    Args:
        speller: turns tokens into text.
        end: the token that ends the text; None: none does.
        stop: the text ends before this string; "" for none.

    Attributes:
        done: whether the text has ended.
    """

    def __init__(self, speller: Speller, end: int | None, stop: str):
        self._speller, self._end, self._stop = speller, end, stop
        self._held = ""  # text that may be the beginning of `stop`
        self.done = False

    def begin(self, given: Sequence[int]) -> str:
        """The text of the tokens of a prompt, in which nothing ends it."""
        return self._speller.spell(given)

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


class Writing(NamedTuple):
    """A model that continues a prompt, what chooses its tokens, and the texts that they become."""

    decoder: Decoder
    sampler: Sampler
    texts: list[SpelledText]


def spelled(texts: Sequence[SpelledText], given: Sequence[int], drawn: Iterator[Tensor]) -> Iterator[list[str]]:
    """Yield the next piece of each text for each step of `drawn`; the first piece is the text of `given`.

    Sampling stops when all texts have ended.
    """
    yield [text.begin(given) for text in texts]
    for tokens in drawn:
        yield [text.spell(token) for text, token in zip(texts, tokens.tolist(), strict=True)]
        if all(text.done for text in texts):
            return
    yield [text.finish() for text in texts]
