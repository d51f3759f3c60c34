"""Words as points of a plane: a map of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from matplotlib.font_manager import FontProperties
from numpy.typing import NDArray

from everstep.look.glyphs import font_of, has, usual
from everstep.look.style import COLOURS, GREY, canvas, save

Floats = NDArray[np.floating]
GROUPS = len(COLOURS)
_BEGINNINGS, _ROUNDS = 10, 50


def principal_plane(vectors: Floats) -> tuple[NDArray[np.float64], float]:
    """The coordinates (N, 2) along the two directions in which N vectors differ most, and their share of the variance.

    Example:
        >>> plane, share = principal_plane(np.array([[0.0, 0, 1], [2, 0, 1], [4, 1, 1]]))
        >>> plane.shape, round(share, 6)
        ((3, 2), 1.0)
    """
    centred = vectors.astype(np.float64) - vectors.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    whole = float((sizes**2).sum())
    plane = np.zeros((len(centred), 2))
    plane[:, : len(directions[:2])] = centred @ directions[:2].T
    return plane, float((sizes[:2] ** 2).sum()) / whole if whole else 1.0


def near_plane(vectors: Floats, seed: int = 1) -> NDArray[np.float64] | None:
    """Coordinates (N, 2) that keep neighbours together (t-SNE of cosines, van der Maaten and Hinton 2008).

    None without scikit-learn, and for fewer than 10 vectors.
    """
    if len(vectors) < 10 or find_spec("sklearn") is None:
        return None
    from sklearn.manifold import TSNE

    perplexity = min(15.0, (len(vectors) - 1) / 3)
    placed = TSNE(metric="cosine", init="random", perplexity=perplexity, random_state=seed)
    found: NDArray[np.float64] = placed.fit_transform(vectors.astype(np.float64))
    return found


def grouped(units: Floats, groups: int = GROUPS, seed: int = 1) -> NDArray[np.int64]:
    """Which of a few groups each of N vectors of length 1 is in: k-means of cosines, the best of ten beginnings.

    Example:
        >>> of = grouped(np.array([[1.0, 0], [0, 1], [0.9, 0.1]]), groups=2)
        >>> bool(of[0] == of[2] != of[1])
        True
    """
    random = np.random.default_rng(seed)
    begun = [units[random.permutation(len(units))[:groups]] for _ in range(_BEGINNINGS)]
    return max((_settled(units, centres) for centres in begun), key=lambda found: found[1])[0]


def _settled(units: Floats, centres: Floats) -> tuple[NDArray[np.int64], float]:
    """The groups that begin with these centres, and the sum of cosines to their centres."""
    of = (units @ centres.T).argmax(1)
    for _ in range(_ROUNDS):
        sums = np.stack([units[of == k].sum(0) if (of == k).any() else centres[k] for k in range(len(centres))])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = sums / np.where(lengths > 0, lengths, 1)
        before, of = of, (units @ centres.T).argmax(1)
        if (of == before).all():
            break
    return of, float((units @ centres.T).max(1).sum())


def draw_map(words: Sequence[str], plane: Floats, groups: NDArray[np.int64], path: Path, title: str) -> None:
    """Write words at their places (N, 2), coloured by group; words that would cover others, or lack a font, are dots.

    Args:
        words: N words, the most important first: these are written.
        plane: (N, 2) places.
        groups: (N,) numbers of colours.
        path: the PNG to write.
        title: what the axes are.
    """
    figure = canvas(9.0, 12.0)
    axes = figure.subplots()
    colours = [COLOURS[group % len(COLOURS)] for group in groups]
    axes.scatter(plane[:, 0], plane[:, 1], s=9, c=colours, alpha=0.6, linewidths=0)
    axes.set_title(title, fontsize=15, color=GREY)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.margins(0.06)
    figure.draw_without_rendering()  # only then are places in pixels final
    taken: list[tuple[float, float, float, float]] = []
    pixels = axes.transData.transform(plane)
    for word, (x, y), (left, bottom), colour in zip(words, plane, pixels, colours, strict=True):
        width, height = 9.0 * len(word) + 4, 17.0
        box = (left - width / 2, bottom - height / 2, left + width / 2, bottom + height / 2)
        if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        font = _font(word)
        if font is None:
            continue
        taken.append(box)
        axes.text(x, y, word, color=colour, ha="center", va="center", parse_math=False, font=font, fontsize=11)
    save(figure, path)


def written(words: Sequence[str]) -> int:
    """How many of the words have a font."""
    return sum(_font(word) is not None for word in words)


def _font(word: str) -> FontProperties | None:
    """A font that has all characters of a word; None if none is found."""
    if all(has(usual(), character) for character in word):
        return FontProperties()
    found = [font_of(character) for character in word]
    return next((FontProperties(fname=path) for path in found if path and all(has(path, one) for one in word)), None)
