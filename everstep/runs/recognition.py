"""The search for what is said: the `decode` section of recognisers, and the language model that it may ask."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from everstep.data.text.tokenizer import Tokenizer
from everstep.decode.decoder import Decoder
from everstep.decode.fusion import TokenFusion, WordFusion
from everstep.decode.paths import Floats, best_path
from everstep.decode.prefix_beam import Bonus, Extends, Spelled, prefix_beam
from everstep.errors import ConfigError, DataError
from everstep.networks.alphabet import Alphabet
from everstep.runs.capabilities import Generates
from everstep.runs.training import load
from everstep.sections import Count, NonNegative, Section

LANGUAGE_MODEL = "language_model"
"""The key of the language model."""


class RecognitionSection(Section):
    """How texts are found."""

    beam_width: Count | None = None
    """prefixes that a beam search keeps; null: the likeliest label of each step, without a search"""
    language_model: str | None = None
    """folder of a run of a language model, of characters or of words, that the beam asks as well"""
    language_weight: NonNegative = 0.5
    """α: weight of its log p"""
    bonus: float = 0.0
    """β: added for each label, with a language model of words for each word; above 0, texts are longer"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """A language model, or a bonus, without a beam."""
        if self.beam_width is None and self.language_model is not None:
            yield "beam_width", f"expected a number of prefixes, such as 16, beside {LANGUAGE_MODEL}; got null"
        if self.beam_width is None and self.bonus:
            yield "beam_width", f"expected a number of prefixes, such as 16, beside bonus={self.bonus:g}; got null"


class Recognition:
    """Finds texts in log p of labels.

    Args:
        section: the settings.
        alphabet: the labels.
    """

    def __init__(self, section: RecognitionSection, alphabet: Alphabet):
        self.section, self.alphabet = section, alphabet

    def __call__(self, log_p: Floats, n_best: int = 1) -> list[Spelled]:
        """The best texts in log p (T, K + 1), best first; without a beam one.

        Raises:
            ConfigError: more texts are asked for than the beam is wide, or the language model does not fit.
        """
        width = self.section.beam_width
        if n_best > (width or 1):
            raise ConfigError(
                f"expected at most decode.beam_width={width or 'null, which gives one'} texts; got {n_best}"
            )
        if width is None:
            labels = best_path(log_p)
            return [Spelled(labels, float(np.max(log_p, 1, initial=-np.inf).sum()), 0.0)]
        return prefix_beam(log_p, width, self._asked, n_best)

    @cached_property
    def _asked(self) -> Extends:
        section, alphabet = self.section, self.alphabet
        if section.language_model is None:
            return Bonus(len(alphabet.symbols), section.bonus)
        return language_fusion(section, alphabet)


def language_fusion(section: RecognitionSection, alphabet: Alphabet) -> Extends:
    """The language model of the section as the search sees it.

    Raises:
        ConfigError: it is no language model of characters or words, or its tokens are not those of the labels.
        RunError: there is no such run.
    """
    assert section.language_model is not None
    where = f"decode.{LANGUAGE_MODEL}={section.language_model}"
    run = load(section.language_model)
    tokenizer = getattr(run.task, "tokenizer", None)
    if not isinstance(run.task, Generates) or not isinstance(tokenizer, Tokenizer):
        raise ConfigError(f"{where}: expected a run of a language model; it is one of {run.recipe.task}")
    rows = section.beam_width or 1
    decoder: Decoder = run.task.decoder(run.model, "")
    scale = (section.language_weight, section.bonus, rows)
    if {"chars": "characters", "words": "words"}.get(tokenizer.kind) == alphabet.unit:
        return TokenFusion(decoder, _tokens(tokenizer, alphabet, where), *scale)
    if tokenizer.kind == "words" and " " in alphabet.symbols:
        return WordFusion(decoder, alphabet.symbols, lambda word: _token(tokenizer, word), *scale)
    raise ConfigError(
        f"{where}: its tokens are {tokenizer.kind}, and the labels are {alphabet.unit}; expected characters for "
        "characters, or words"
    )


def _tokens(tokenizer: Tokenizer, alphabet: Alphabet, where: str) -> list[int]:
    found = {symbol: _token(tokenizer, symbol) for symbol in alphabet.symbols}
    if lacking := [symbol for symbol, token in found.items() if token is None]:
        raise ConfigError(
            f"{where}: it lacks {', '.join(map(repr, lacking[:5]))}, which are labels; train it on such texts"
        )
    return [token for token in found.values() if token is not None]


def _token(tokenizer: Tokenizer, symbol: str) -> int | None:
    """The only token of a symbol; None if there is none."""
    try:
        ids = tokenizer.encode(symbol, line_end=False).tolist()
    except DataError:
        return None
    return int(ids[0]) if len(ids) == 1 else None
