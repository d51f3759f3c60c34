"""Pictures of what the encoder of a multilingual model gives for sentences of several languages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from everstep.look.sentence_map import (
    JOINED,
    Vectors,
    draw_sentence_map,
    neighbour_plane,
    principal_plane,
    translations_found,
)
from everstep.networks.encoder_decoder import EncoderDecoder
from everstep.runs.directions import Direction
from everstep.runs.pair_data import PairTexts
from everstep.runs.pair_tokens import Sides

SENTENCES, FEWEST = 200, 4
"""The most sentences of each language on a map, and the fewest for which there is one."""


def language_maps(model: EncoderDecoder, texts: PairTexts, sides: Sides, out: Path) -> Iterator[tuple[Path, str]]:
    """Draw the sentences of the last split that are there in every language that the model reads, in two planes."""
    split = texts.splits()[-1]
    parallel = parallel_texts(texts, split)
    count = len(next(iter(parallel.values()), []))
    if len(parallel) < 2 or count < FEWEST:
        return
    vectors = {
        language: sentence_vectors(model, texts.toward(sides, first_from(texts, language)), some)
        for language, some in parallel.items()
    }
    pivot, *others = vectors
    shares = [f"{translations_found(vectors[other], vectors[pivot]):.0%} of {other}" for other in others]
    told = (
        f"{count} sentences of {split} in {', '.join(vectors)}, each the mean of what the encoder gives for its "
        f"tokens; lines join translations of the first {min(JOINED, count)}. Of the sentences in {pivot} the nearest, "
        f"with each language's mean removed, means the same for {', '.join(shares)}."
    )
    every = np.concatenate(list(vectors.values()))
    plane, share = principal_plane(every)
    yield _drawn(
        vectors, plane, out / "sentences.png", f"Two principal components ({share:.0%} of the variance): {told}"
    )
    near = neighbour_plane(every)
    if near is not None:
        yield _drawn(vectors, near, out / "sentences-neighbours.png", f"Neighbours (t-SNE): {told}")


def _drawn(vectors: dict[str, Vectors], plane: Vectors, path: Path, told: str) -> tuple[Path, str]:
    sizes = np.cumsum([len(some) for some in vectors.values()])[:-1]
    draw_sentence_map(dict(zip(vectors, np.split(plane, sizes), strict=True)), path)
    return path, told


def first_from(texts: PairTexts, language: str) -> Direction:
    """The first direction from a language."""
    return next(direction for direction in texts.section.tested if str(direction.source) == language)


def parallel_texts(texts: PairTexts, split: str) -> dict[str, list[str]]:
    """Texts of the same meaning, by language: those of the first direction's source, and all their translations.

    They are found by the number of their line, and must have the same source text.
    """
    directions = texts.directions(split)
    pivot = directions[0].source
    readable = {str(direction.source) for direction in texts.section.tested}
    rows: dict[int, dict[str, str]] = {}
    wanted = {str(pivot)}
    for direction in directions:
        if direction.source != pivot or str(direction.target) not in readable:
            continue
        wanted.add(str(direction.target))
        for pair in texts.pairs(split, direction):
            row = rows.setdefault(pair.line, {str(pivot): pair.source})
            if pair.source and pair.target and row[str(pivot)] == pair.source:
                row[str(direction.target)] = pair.target
    whole = [row for _, row in sorted(rows.items()) if row.keys() >= wanted][:SENTENCES]
    order = [str(pivot), *sorted(wanted - {str(pivot)})]
    return {language: [row[language] for row in whole] for language in order}


@torch.no_grad()
def sentence_vectors(model: EncoderDecoder, sides: Sides, lines: list[str]) -> Vectors:
    """The mean over the tokens of a text of the encoder's outputs, without the tag and the end, (texts, features)."""
    model.eval()
    coded = sides.source.encode(lines)
    first = int(sides.source.tag is not None)
    found = []
    for start in range(0, len(lines), 64):
        rows = np.arange(start, min(start + 64, len(lines)))
        lengths = torch.from_numpy(coded.lengths[rows]).to(model.device)
        memory = model.encoded(torch.from_numpy(coded.padded(rows)).to(model.device), lengths)
        places = torch.arange(memory.shape[1], device=model.device)
        inside = (places >= first) & (places < lengths[:, None] - 1)
        found.append((memory * inside[..., None]).sum(1) / inside.sum(1, keepdim=True).clamp_min(1))
    vectors: Vectors = torch.cat(found).double().cpu().numpy()
    return vectors
