"""Translations as text and records, their figures, and scores of given translations."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from everstep.data.pair_batches import TokenSequences
from everstep.data.readers.text_pairs import one_line
from everstep.decode.hypotheses import Hypothesis
from everstep.errors import ConfigError, DataError, check_finite, counted
from everstep.measures.bleu import translation_measures
from everstep.networks.encoder_decoder import EncoderDecoder
from everstep.networks.scoring import Score
from everstep.networks.translating import Progress, TranslationSearch, token_log_p, translated
from everstep.runs.pair_data import PairTexts, Sides
from everstep.runs.run import warn
from everstep.runs.task import Prediction

MEANING = {
    "loss": "nats per token of the references",
    "nats_per_token": "mean -ln p per token of the references",
    "perplexity": "exp of nats per token",
    "bleu": "precision of n-grams against the references, 0 to 100",
    "chrf": "F2 of character n-grams against the references, 0 to 100",
    "brevity_penalty": "factor of BLEU, below 1 if the translations are shorter than the references",
    "length_ratio": "words of the translations per word of the references",
    "ended": "share of translations that ended with <eos> within the length limit",
}


def asked_search(how: TranslationSearch, n_best: int) -> TranslationSearch:
    """The search with `n_best` translations.

    Raises:
        ConfigError: `n_best` is larger than the beam.
    """
    if n_best > how.beam_width:
        raise ConfigError(
            f"predict: expected at most {how.beam_width} translations of a beam of that width (decode.beam_width), but "
            f"{n_best} were asked for; raise decode.beam_width in the run's config.yaml"
        )
    return how.replace(n_best=n_best)


def translations(
    model: EncoderDecoder, lines: Sequence[str], sides: Sides, how: TranslationSearch
) -> Iterator[Prediction]:
    """The translation of each line, or the n best as lines of rank, log p and text. An empty line stays empty."""
    lines = [one_line(line) for line in lines]
    source = _bounded(sides.source.encode(lines), how.max_source, sides.source.reverse)
    full = np.array([place for place, line in enumerate(lines) if line], np.int64)
    best = iter(translated(model, source.select(full), sides.target, how))
    for place, line in enumerate(lines):
        found = next(best) if line else []
        yield (
            _prediction(line, source.row(place), found, sides, how)
            if found
            else Prediction("", {"source": line, "translation": ""})
        )


def _prediction(line: str, ids: list[int], found: list[Hypothesis], sides: Sides, how: TranslationSearch) -> Prediction:
    records = [_record(one, _text(one, line, sides, how), sides) for one in found]
    record = {"source": line, "source_tokens": sides.source.pieces(ids), **records[0]}
    if how.n_best == 1:
        return Prediction(records[0]["translation"], record)
    printed = (f"{rank}\t{one['log_p']:.4f}\t{one['translation']}" for rank, one in enumerate(records, 1))
    return Prediction("\n".join(printed), {**record, "n_best": records})


def _record(one: Hypothesis, text: str, sides: Sides) -> dict[str, Any]:
    end = ["<eos>"] * (len(one.token_log_p) - len(one.tokens))
    found = {
        "translation": text,
        "log_p": one.log_p,
        "score": one.score,
        "ended": one.ended,
        "tokens": [*sides.target.pieces(one.tokens), *end],
        "token_log_p": one.token_log_p,
    }
    if one.attention is not None:
        found["alignment"] = [[round(weight, 4) for weight in row] for row in one.attention.tolist()]
    return found


def _text(one: Hypothesis, line: str, sides: Sides, how: TranslationSearch) -> str:
    """The text of a translation. With `replace_unknown`, source words replace unknown words."""
    target, unk = sides.target, sides.target.tokenizer.unk_id
    if not how.replace_unknown or one.attention is None or unk not in one.tokens:
        return target.text(one.tokens)
    words = sides.source.words(line)
    if sides.source.reverse:
        words = words[max(0, len(words) + 1 - how.max_source) :]
    written = [target.tokenizer.decode([token]).strip() for token in one.tokens]
    for step, (token, place) in enumerate(zip(one.tokens, one.attention.argmax(1).tolist(), strict=False)):
        if token == unk and place < len(words):
            written[step] = words[place]
    return target.written(" ".join(written))


def _bounded(source: TokenSequences, most: int, reverse: bool) -> TokenSequences:
    """Cut sources to the first `most` tokens with the end token, and warn about them.

    `reverse`: the tokens come in reverse, so that the first ones of the text are the last ones of the row.
    """
    long = source.lengths > most
    if not long.any():
        return source
    warn(
        f"note: {counted(int(long.sum()), 'line')} of more than {most:,} tokens (the longest has "
        f"{int(source.lengths.max()):,}): the first {most:,} are translated (decode.max_source)"
    )
    every = map(source.row, range(len(long)))
    rows = [row[-most:] if reverse or len(row) <= most else [*row[: most - 1], row[-1]] for row in every]
    return TokenSequences.of(
        np.array([token for row in rows for token in row], source.tokens.dtype), np.array([len(row) for row in rows])
    )


def figures(
    model: EncoderDecoder,
    texts: PairTexts,
    split: str,
    sides: Sides,
    how: TranslationSearch,
    likelihood: tuple[float, int],
    progress: Progress,
) -> dict[str, Any]:
    """The figures of a split: the likelihood of its references, and BLEU and chrF of the translations.

    Args:
        model: the model.
        texts: the pairs.
        split: the split.
        sides: both languages.
        how: the search.
        likelihood: the mean nats per token of the references, and the number of their tokens.
        progress: gets the number of translated sources and their total.
    """
    nats, tokens = likelihood
    sources, references = texts.texts(split)
    found, ended = best_texts(model, sources, sides, how, progress)
    section = texts.section
    both = in_one_form(found, section.normal_form), in_one_form(references, section.normal_form)
    measures = translation_measures(*both, section.tokenisation == "given", section.lowercase)
    return {
        "pairs": len(sources),
        "tokens": tokens,
        "loss": nats,
        "nats_per_token": nats,
        "perplexity": math.exp(min(nats, 700)),
        **measures,
        "ended": ended,
    }


def in_one_form(texts: Sequence[str], normal_form: str | None) -> list[str]:
    """The texts as they are compared: composed where `data.normal_form` changes what the model writes."""
    form: Literal["NFC", "NFKC"] = "NFKC" if normal_form in ("NFKC", "NFKD") else "NFC"
    return list(texts) if normal_form is None else [unicodedata.normalize(form, text) for text in texts]


def best_texts(
    model: EncoderDecoder,
    sources: Sequence[str],
    sides: Sides,
    how: TranslationSearch,
    progress: Progress = lambda done, total: None,
) -> tuple[list[str], float]:
    """The best translation of each text, and the share that ended with <eos>. A blank text has a blank translation."""
    how = how.replace(n_best=1)
    coded = _bounded(sides.source.encode(sources), how.max_source, sides.source.reverse)
    full = np.array([place for place, text in enumerate(sources) if text], np.int64)
    best = translated(model, coded.select(full), sides.target, how, progress)
    found = [""] * len(sources)
    for place, some in zip(full.tolist(), best, strict=True):
        found[place] = _text(some[0], sources[place], sides, how) if some else ""
    return found, sum(bool(some) and some[0].ended for some in best) / max(len(best), 1)


def pair_scores(model: EncoderDecoder, lines: Sequence[str], sides: Sides, first_line: int) -> list[Score]:
    """log p(target | source) of lines `source<TAB>target`, in nats.

    Raises:
        DataError: a line does not have exactly one tab; the message has its number, counted from `first_line`.
    """
    both = [line.split("\t") for line in lines]
    for number, parts in enumerate(both, first_line):
        if len(parts) != 2:
            came = f"{len(parts) - 1} tabs" if len(parts) > 2 else "none"
            raise DataError(
                f"the lines to score, line {number}: expected a source and its target with one tab between them, "
                f"came {came}: {lines[number - first_line][:60]!r}"
            )
    source = sides.source.encode(one_line(one) for one, _ in both)
    target = sides.target.encode(one_line(other) for _, other in both)
    unk = sides.target.tokenizer.unk_id
    scores = []
    for place, row in enumerate(token_log_p(model, source, target, sides.target.end) if lines else []):
        check_finite("the score of a line", sum(row))
        unknown = None if unk is None else target.row(place).count(unk)
        scores.append(Score(sum(row), len(row), lines[place], tuple(row), unknown))
    return scores
