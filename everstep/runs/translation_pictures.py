"""Pictures of a translation model: attention maps, and accuracy by length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from everstep.data.readers.text_pairs import one_line
from everstep.errors import DataError
from everstep.look.alignment import Alignment, draw_alignments
from everstep.look.by_length import Group, draw_by_length, length_groups
from everstep.look.passage import Passage
from everstep.measures.bleu import translation_measures
from everstep.networks.encoder_decoder import EncoderDecoder
from everstep.networks.token_passage import pieces
from everstep.networks.translating import TranslationSearch, translated
from everstep.runs.language_maps import language_maps
from everstep.runs.pair_data import PairTexts
from everstep.runs.pair_tokens import Sides
from everstep.runs.text_data import UNITS
from everstep.runs.translations import best_texts, in_one_form

MAPS, LONGEST = 4, 24
"""The most attention maps, and the most tokens of a held-out source with a map."""
MEASURED = 2000
"""The most held-out pairs that the figures by length translate."""


def translation_pictures(
    model: EncoderDecoder, texts: PairTexts, sides: Sides, how: TranslationSearch, out: Path, text: str | None
) -> Iterator[tuple[Path, str]]:
    """Draw attention maps of held-out sources or of the lines of `text`; without `text` also accuracy by length.

    Among several directions they are of the first, or the first from `decode.source` to `decode.to`; a map of
    sentences is of all.
    """
    direction = texts.drawn(how.source, how.to, held_out=text is None)
    plain, sides = sides, texts.toward(sides, direction)
    if text is None:
        split = texts.splits()[-1]
        pairs = [(pair.source, pair.target) for pair in islice(texts.pairs(split, direction), MEASURED) if pair.source]
        shown = _shown([source for source, _ in pairs], sides)
    else:
        pairs, shown = [], [line for line in map(one_line, text.splitlines()) if line][:MAPS]
    if maps := _maps(model, shown, sides, how):
        yield out / "alignments.png", draw_alignments(maps, out / "alignments.png")
    if pairs:
        yield from _by_length(model, pairs, texts, sides, how, out)
    if text is None and texts.section.targets:
        yield from language_maps(model, texts, plain, out)


def _shown(sources: Sequence[str], sides: Sides) -> list[str]:
    """Long sources of at most LONGEST tokens."""
    lengths = sides.source.encode(sources).lengths
    fit = [place for place in range(len(sources)) if lengths[place] <= LONGEST]
    best = sorted(fit, key=lambda place: -int(lengths[place]))
    return [sources[place] for place in best[: 5 * MAPS : 5]]


def _maps(model: EncoderDecoder, lines: list[str], sides: Sides, how: TranslationSearch) -> list[Alignment]:
    coded = sides.source.encode(lines)
    found = translated(model, coded, sides.target, how.replace(n_best=1))
    maps = []
    for place, some in enumerate(found):
        for one in some[:1]:
            if one.attention is None:
                continue
            written = [*sides.target.pieces(one.tokens), *["<eos>"] * (len(one.token_log_p) - len(one.tokens))]
            weights = one.attention.double().cpu().numpy()
            maps.append(Alignment(sides.source.pieces(coded.row(place)), written, weights))
    return maps


def _by_length(
    model: EncoderDecoder,
    pairs: Sequence[tuple[str, str]],
    texts: PairTexts,
    sides: Sides,
    how: TranslationSearch,
    out: Path,
) -> Iterator[tuple[Path, str]]:
    section = texts.section
    sources = [source for source, _ in pairs]
    references = in_one_form([target for _, target in pairs], section.normal_form)
    found = in_one_form(best_texts(model, sources, sides, how)[0], section.normal_form)
    chars = section.unit in ("chars", "bytes")
    lengths = [len(source) if chars else len(source.split()) for source in sources]
    unit = "characters of the source" if chars else "words of the source"
    bleu, exact = [], []
    for group in length_groups(lengths):
        some = [found[place] for place in group], [references[place] for place in group]
        ends = lengths[group[0]], lengths[group[-1]], len(group)
        value = translation_measures(*some, section.tokenisation == "given", section.lowercase)["bleu"]
        bleu.append(Group(*ends, value))
        right = [_same(one, other, section.lowercase) for one, other in zip(*some, strict=True)]
        exact.append(Group(*ends, 100 * float(np.mean(right))))
    yield out / "bleu-by-length.png", draw_by_length(bleu, "BLEU", unit, out / "bleu-by-length.png")
    what = "% exactly as the reference"
    yield out / "accuracy-by-length.png", draw_by_length(exact, what, unit, out / "accuracy-by-length.png")


def _same(one: str, other: str, lowercase: bool) -> bool:
    one, other = (" ".join(text.split()) for text in (one, other))  # the output has no other white space
    return one.lower() == other.lower() if lowercase else one == other


def source_passage(model: EncoderDecoder, sides: Sides, text: str, unit: str) -> Passage:
    """A source as the encoder reads it, without predictions. A tag before it is read, but is no piece of the text.

    Raises:
        DataError: the text has no tokens.
    """
    ids = sides.source.encode([text]).row(0)[:-1]
    tags = int(sides.source.tag is not None)
    if len(ids) == tags:
        raise DataError("the passage is empty; give a text with some words")
    name = UNITS[unit]
    labels, spans = pieces(sides.source.tokenizer, ids[tags:], name)
    with torch.no_grad():
        inputs = model.read(torch.tensor(ids, device=model.device))
    shown = "character" if name == "byte" else name
    return Passage(model.encoder, inputs, labels, [last + tags for _, last in spans], name, shown)
