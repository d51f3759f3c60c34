"""Pictures of word vectors: maps of the most frequent words, or of the words of a text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from everstep.data import Tokenizer
from everstep.errors import DataError, counted
from everstep.look.word_map import draw_map, grouped, near_plane, principal_plane, written
from everstep.networks.word_embedding import WordEmbedding
from everstep.runs.word_measures import WordVectorView

DRAWN = 300
"""Words in a map."""
PASSED = 50
"""The most frequent words, which say little; left out where there are many."""


def word_pictures(
    model: WordEmbedding, counts: np.ndarray, tokenizer: Tokenizer, out: Path, text: str | None
) -> Iterator[tuple[Path, str]]:
    """Draw the map by principal components, and with scikit-learn by t-SNE.

    Raises:
        DataError: the text has fewer than three words with a vector.
    """
    view = WordVectorView(model)
    if text is None:
        order = [int(row) for row in np.argsort(-counts, kind="stable") if counts[row]]
        spelled = [row for row in order if any(map(str.isalpha, model.words[row]))] or order
        rows = spelled[PASSED : PASSED + DRAWN] if len(spelled) > 4 * PASSED else spelled[:DRAWN]
        which = f"{len(rows)} frequent words" + (f", the first {PASSED} left out" if len(spelled) > 4 * PASSED else "")
    else:
        found = [view.place(word) for word in tokenizer.normalize(text).split()]
        rows = list(dict.fromkeys(row for row in found if row is not None))[:DRAWN]
        which = f"the first {len(rows)} words of the text that have a vector"
    if len(rows) < 3:
        raise DataError(f"look: expected three words that have a vector; there is {len(rows)}")
    units, words = view.units[rows], [model.words[row] for row in rows]
    groups = grouped(units)
    plane, share = principal_plane(units)
    path = out / "word-map.png"
    draw_map(words, plane, groups, path, f"first two principal components, {share:.0%} of the variance")
    colours = "Colours are groups of near directions (k-means in all dimensions)."
    if lacking := len(words) - written(words):
        colours += f" {counted(lacking, 'word')} with characters in no font of this machine: dots without a name."
    yield path, f"A map of {which}: near words have near vectors, as far as a plane shows it. {colours}"
    near = near_plane(units)
    if near is not None:
        path = out / "word-map-neighbours.png"
        draw_map(words, near, groups, path, "t-SNE of cosines; only what is near means something")
        yield path, f"The same words by t-SNE: neighbours stay neighbours, large distances mean nothing. {colours}"
