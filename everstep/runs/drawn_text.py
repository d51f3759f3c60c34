"""Conversion of sampled tokens to text while they are sampled, up to the end of each text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from everstep.decode import Sampler
from everstep.decode.decoder import Decoder
from everstep.decode.sampling import NumberSampler
from everstep.decode.section import SamplingSection
from everstep.errors import ConfigError
from everstep.runs.capabilities import Speller


class SpelledText:
    """One text, spelled until its end.

    Args:
        speller: turns tokens into text.
        end: the token, or the row of numbers, that ends the text; None: none does.
        stop: the text ends before this string; "" for none.

    Attributes:
        done: whether the text has ended.
    """

    def __init__(self, speller: Speller, end: Any, stop: str):
        self._speller, self._end, self._stop = speller, end, stop
        self._held = ""  # text that may be the beginning of `stop`
        self.done = False

    def begin(self, given: Sequence[Any]) -> str:
        """The text of the tokens of a prompt, in which nothing ends it."""
        return self._speller.spell(given)

    def spell(self, token: Any) -> str:
        """The text that is certain after one more token, or row of numbers."""
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
    """A model that continues a prompt, what chooses its tokens or numbers, and the texts that they become."""

    decoder: Decoder
    sampler: Sampler | NumberSampler
    texts: list[SpelledText]


def begun_writing(
    decoder: Decoder,
    how: SamplingSection,
    random: torch.Generator,
    spellers: Sequence[Speller],
    stop: str,
    until_end: bool,
) -> Writing:
    """What writes a text with each of the spellers. A sequence of numbers always ends where its end is drawn.

    Raises:
        ConfigError: `until_end` without a token that ends a sequence; a setting that the decoder has no use for.
    """
    if decoder.numbers is not None:
        if how.top_k is not None or how.top_p is not None:
            raise ConfigError(
                "generate: top_k and top_p choose among tokens, but this run draws numbers; leave them out, and set "
                "the temperature"
            )
        end: Any = list(decoder.numbers.end)
        drawn = NumberSampler(decoder.numbers.draw, how.temperature, random)
        return Writing(decoder, drawn, [SpelledText(speller, end, stop) for speller in spellers])
    if until_end and decoder.end is None:
        raise ConfigError(
            "generate: until_end (--until-end) needs a symbol that ends a sequence, which this run's vocabulary "
            "lacks; give a text to stop at (--stop)"
        )
    sampler = Sampler(how.temperature, how.top_k, how.top_p, () if how.unk else decoder.never, random)
    end = decoder.end if until_end else None
    return Writing(decoder, sampler, [SpelledText(speller, end, stop) for speller in spellers])


def spelled(texts: Sequence[SpelledText], given: Sequence[Any], drawn: Iterator[Tensor]) -> Iterator[list[str]]:
    """Yield the next piece of each text for each step of `drawn`; the first piece is the text of `given`.

    Sampling stops when all texts have ended.
    """
    yield [text.begin(given) for text in texts]
    for tokens in drawn:
        yield [text.spell(token) for text, token in zip(texts, tokens.tolist(), strict=True)]
        if all(text.done for text in texts):
            return
    yield [text.finish() for text in texts]
