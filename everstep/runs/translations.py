"""Translations as text and records, their figures, and scores of given translations."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from everstep.data.pair_batches import TokenSequences
from everstep.data.readers.text_pairs import one_line
from everstep.data.text.language import Language
from everstep.decode.hypotheses import Hypothesis
from everstep.errors import ConfigError, DataError, check_finite, counted
from everstep.measures.bleu import translation_measures
from everstep.networks.scoring import Score
from everstep.networks.translating import Progress, TranslationSearch, Translator, token_log_p, translated
from everstep.runs.directions import Direction
from everstep.runs.pair_data import PairTexts
from everstep.runs.pair_tokens import Sides
from everstep.runs.run import warn
from everstep.runs.task import Prediction
from everstep.runs.wished_lines import Wish, constraint

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

MEANS = ("bleu", "chrf", "brevity_penalty", "length_ratio")
"""Figures of one language, of which several directions have the mean."""
SHOWN = ("pairs", *MEANS, "nats_per_token", "perplexity", "ended")
"""Figures in the table of directions."""


def asked_search(how: TranslationSearch, n_best: int) -> TranslationSearch:
    """The search with `n_best` translations.

    Raises:
        ConfigError: `n_best` is larger than the beam.
    """
    if n_best > how.beam_width:
        raise ConfigError(
            f"predict: expected at most {how.beam_width} translations of a beam of that width (decode.beam_width), but "
            f"{n_best} were asked for; widen the beam: decode.beam_width={n_best}"
        )
    return how.replace(n_best=n_best)


def translations(
    model: Translator, wishes: Sequence[Wish], sides: Sides, how: TranslationSearch
) -> Iterator[Prediction]:
    """The translation of each text, or the n best as lines of rank, log p and text. An empty line stays empty.

    Raises:
        DataError: a phrase cannot be written with the vocabulary.
    """
    lines = [wish.text for wish in wishes]
    source = _bounded(sides.source.encode(lines), how.max_source, sides.source)
    full = np.array([place for place, line in enumerate(lines) if line], np.int64)
    legal = [constraint(wishes[place], sides.target, how.own_tokens) for place in full.tolist()]
    some = legal if any(one is not None for one in legal) else ()
    best = iter(translated(model, source.select(full), sides.target, how, constraints=some))
    for place, wish in enumerate(wishes):
        found = next(best) if wish.text else []
        if wish.text and not found:
            warn(f"note: line {wish.line} has no hypothesis within the limits of decode{_with_phrases(wish)}")
        yield (
            _prediction(wish.text, source.row(place), found, sides, how)
            if found
            else Prediction("", {"source": wish.text, "translation": ""})
        )


def _with_phrases(wish: Wish) -> str:
    return f" that has {', '.join(map(repr, wish.phrases))}" if wish.phrases else ""


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
    tags = int(sides.source.tag is not None)
    if sides.source.reverse:
        words = words[max(0, len(words) + 1 + tags - how.max_source) :]
    written = [target.tokenizer.decode([token]).strip() for token in one.tokens]
    for step, (token, place) in enumerate(zip(one.tokens, one.attention.argmax(1).tolist(), strict=False)):
        if token == unk and 0 <= place - tags < len(words):
            written[step] = words[place - tags]
    return target.written(" ".join(written))


def _bounded(source: TokenSequences, most: int, language: Language) -> TokenSequences:
    """Cut sources to the first `most` tokens with the tag and the end token, and warn about them.

    Where tokens come in reverse, the first ones of the text are the last ones of the row.
    """
    long = source.lengths > most
    if not long.any():
        return source
    warn(
        f"note: {counted(int(long.sum()), 'line')} of more than {most:,} tokens (the longest has "
        f"{int(source.lengths.max()):,}): the first {most:,} are translated (decode.max_source)"
    )
    rows = [_cut(source.row(number), most, language) for number in range(len(long))]
    return TokenSequences.of(
        np.array([token for row in rows for token in row], source.tokens.dtype), np.array([len(row) for row in rows])
    )


def _cut(row: list[int], most: int, language: Language) -> list[int]:
    if len(row) <= most:
        return row
    if not language.reverse:
        return [*row[: most - 1], row[-1]]
    tags = row[:1] if language.tag is not None and most > 1 else []
    return [*tags, *row[len(tags) - most :]]


def figures(
    model: Translator,
    texts: PairTexts,
    split: str,
    direction: Direction,
    sides: Sides,
    how: TranslationSearch,
    likelihood: tuple[float, int],
    progress: Progress,
) -> dict[str, Any]:
    """The figures of a split in one direction: the likelihood of its references, and BLEU and chrF of the translations.

    Args:
        model: the model.
        texts: the pairs.
        split: the split.
        direction: one of its directions.
        sides: both languages.
        how: the search.
        likelihood: the mean nats per token of the references, and the number of their tokens.
        progress: gets the number of translated sources and their total.
    """
    nats, tokens = likelihood
    sources, references = texts.texts(split, direction)
    found, ended = best_texts(model, sources, texts.toward(sides, direction), how, progress)
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


def together(each: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of a split in all directions: those of one, or sums and means, with a table of `directions`.

    Of tokens, the likelihood is the mean over all; BLEU and chrF, which are of one language, are means of directions.
    """
    rows = list(each.values())
    if len(rows) == 1:
        return rows[0]
    pairs, tokens = (sum(row[name] for row in rows) for name in ("pairs", "tokens"))
    nats = sum(row["loss"] * row["tokens"] for row in rows) / tokens
    means = {name: sum(row[name] for row in rows) / len(rows) for name in MEANS}
    signatures = {name: value for name, value in rows[0].items() if name.endswith("_signature")}
    table = {name: {key: row[key] for key in SHOWN if key in row} for name, row in each.items()}
    return {
        "pairs": pairs,
        "tokens": tokens,
        "loss": nats,
        "nats_per_token": nats,
        "perplexity": math.exp(min(nats, 700)),
        **means,
        **signatures,
        "ended": sum(row["ended"] * row["pairs"] for row in rows) / pairs,
        "directions": table,
    }


def in_one_form(texts: Sequence[str], normal_form: str | None) -> list[str]:
    """The texts as they are compared: composed where `data.normal_form` changes what the model writes."""
    form: Literal["NFC", "NFKC"] = "NFKC" if normal_form in ("NFKC", "NFKD") else "NFC"
    return list(texts) if normal_form is None else [unicodedata.normalize(form, text) for text in texts]


def best_texts(
    model: Translator,
    sources: Sequence[str],
    sides: Sides,
    how: TranslationSearch,
    progress: Progress = lambda done, total: None,
) -> tuple[list[str], float]:
    """The best translation of each text, and the share that ended with <eos>. A blank text has a blank translation."""
    how = how.replace(n_best=1)
    coded = _bounded(sides.source.encode(sources), how.max_source, sides.source)
    full = np.array([place for place, text in enumerate(sources) if text], np.int64)
    best = translated(model, coded.select(full), sides.target, how, progress)
    found = [""] * len(sources)
    for place, some in zip(full.tolist(), best, strict=True):
        found[place] = _text(some[0], sources[place], sides, how) if some else ""
    return found, sum(bool(some) and some[0].ended for some in best) / max(len(best), 1)


def pair_scores(model: Translator, lines: Sequence[str], sides: Sides, first_line: int) -> list[Score]:
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
                f"got {came}: {lines[number - first_line][:60]!r}"
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
