"""Translate token sequences, and compute log p of given translations, independently of the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from everstep.cancellation import check_cancelled
from everstep.data.bucket_order import Ints
from everstep.data.pair_batches import PairBatches, TokenSequences
from everstep.data.text.language import Language
from everstep.decode.beam import beam_search
from everstep.decode.constraints import Constraint
from everstep.decode.hypotheses import Hypothesis
from everstep.decode.section import BeamSection
from everstep.errors import ConfigError
from everstep.networks.encoder_decoder import EncoderDecoder
from everstep.networks.translator_ensemble import TranslatorEnsemble
from everstep.sections import Count, Positive

SEARCHED, ROWS = 4096, 64
"""The most source tokens, padding included, and the most sources in one batch of the search."""
SCORED = 4096
"""Most tokens scored in one batch, padding included."""
Progress = Callable[[int, int], None]
Translator = EncoderDecoder | TranslatorEnsemble


class TranslationSearch(BeamSection):
    """The search for the best translation. Lengths are in tokens, without the end token."""

    to: str | None = None
    """language to translate to; a run of several target languages needs it"""
    source: str | None = None
    """language of the texts; a run that reads several needs it where data.tokenisation is moses"""
    own_tokens: bool = False
    """writes only tokens that the training texts of the target language have; else a run of several languages may
    answer an untrained direction (data.zero_shot) in the language that it was trained to write from this source"""
    max_length: Count = 200
    """longest translation, in tokens"""
    length_ratio: Positive | None = 4.0
    """longest translation relative to the length of its source with the end token, but not below min_length; null: no
    such limit"""
    max_source: Count = 1000
    """tokens read of a longer source"""
    replace_unknown: bool = False
    """replaces unknown words by the source word with the largest attention weight; needs data.unit words"""


def translated(
    model: Translator,
    source: TokenSequences,
    target: Language,
    how: TranslationSearch,
    progress: Progress = lambda done, total: None,
    constraints: Sequence[Constraint | None] = (),
) -> list[list[Hypothesis]]:
    """The `n_best` translations of each source, best first, in the order of the sources.

    Args:
        model: the model, which this puts into eval mode.
        source: the sources as tokens.
        target: the target language.
        how: the search.
        progress: gets the number of translated sources and their total.
        constraints: for each source, an automaton that its translations obey, or None; () for none.

    Raises:
        ConfigError: `how.replace_unknown` and a model without attention; `how.own_tokens` and none are known.
    """
    model.eval()
    if how.own_tokens and target.only is None:
        raise ConfigError("decode.own_tokens: this run has no record of the tokens of its languages; train it again")
    unk = target.tokenizer.unk_id
    allowed = target.only if how.own_tokens else None
    if allowed is not None and how.replace_unknown and unk is not None:
        allowed = [*allowed, unk]
    found: list[list[Hypothesis]] = [[]] * len(source.lengths)
    how = how.replace(unk=True) if how.replace_unknown else how
    device = model.device
    done = 0
    for rows in _by_length(source.lengths):
        with torch.inference_mode():
            tokens = torch.from_numpy(source.padded(rows)).to(device)
            lengths = torch.from_numpy(source.lengths[rows]).to(device)
            decoder = model.search(tokens, lengths, target.end, target.end, () if unk is None else (unk,))
        if how.replace_unknown and decoder.attention is None:
            raise ConfigError("decode.replace_unknown: expected attention, which a model of the ensemble lacks")
        legal = [constraints[row] for row in rows.tolist()] if constraints else ()
        for place, best in zip(
            rows.tolist(), beam_search(decoder, _plain(how), constraints=legal, allowed=allowed), strict=True
        ):
            found[place] = best
        progress(done := done + len(rows), len(source.lengths))
    return found


def _plain(how: TranslationSearch) -> BeamSection:
    return BeamSection(**{name: value for name, value in how if name in BeamSection.model_fields})


def _by_length(lengths: Ints) -> Iterator[Ints]:
    """Batches of rows sorted by length, within the limits ROWS and SEARCHED."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        ahead = lengths[order[start : start + ROWS]] * np.arange(1, len(order[start : start + ROWS]) + 1)
        fit = max(1, int(np.searchsorted(ahead, SEARCHED, side="right")))
        yield order[start : start + fit]
        start += fit


@torch.no_grad()
def token_log_p(model: Translator, source: TokenSequences, target: TokenSequences, begin: int) -> list[list[float]]:
    """log p of each target token given the source and the tokens before it, in nats, as one list per target."""
    model.eval()
    device = model.device
    found: list[list[float]] = [[]] * len(source.lengths)
    batches = PairBatches(source, target, begin, 64, shuffle=False, max_tokens=SCORED)
    for index in range(len(batches)):
        check_cancelled()
        batch = batches.batch(0, index).to(device)
        log_p = model.log_p(batch).tolist()
        for place, row, length in zip(batch.places.tolist(), log_p, batch.lengths.tolist(), strict=True):
            found[place] = row[:length]
    return found
