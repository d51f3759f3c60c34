"""Sentences of several languages as points of a plane, so that those of the same meaning can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everstep.look.style import COLOURS, GREY, canvas, legend, save

Vectors = NDArray[np.float64]
MARKS = "os^Dv*"
JOINED = 25
"""The most sentences whose translations a line joins."""


def principal_plane(vectors: Vectors) -> tuple[Vectors, float]:
    """The two principal components (n, 2) of vectors (n, d), and the share of their variance (0 to 1).

    With the mean removed, X = U S Vᵀ; the components are the first two columns of U S.

    >>> plane, share = principal_plane(np.array([[1.0, 0, 0], [-1, 0, 0], [0, 2, 0], [0, -2, 0]]))
    >>> abs(plane[:, 0]).tolist(), share
    ([0.0, 0.0, 2.0, 2.0], 1.0)
    """
    u, s, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    plane = np.zeros((len(vectors), 2))
    plane[:, : len(s[:2])] = u[:, :2] * s[:2]
    return plane, float((s[:2] ** 2).sum() / max((s**2).sum(), 1e-300))


def neighbour_plane(vectors: Vectors, seed: int = 0) -> Vectors | None:
    """A plane (n, 2) in which neighbours of (n, d) stay neighbours (t-SNE, van der Maaten and Hinton 2008).

    None if scikit-learn is not installed or there are fewer than four vectors.
    """
    if find_spec("sklearn") is None or len(vectors) < 4:
        return None
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    plane: Vectors = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)
    return plane


def translations_found(one: Vectors, other: Vectors) -> float:
    """The share of rows of `one` whose most similar row of `other`, by the cosine, is that of the same number.

    >>> translations_found(np.eye(3), np.eye(3)[[0, 2, 1]])
    0.3333333333333333
    """
    a, b = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-300)
        for x in (one - one.mean(0), other - other.mean(0))
    )
    return float(np.mean((a @ b.T).argmax(1) == np.arange(len(a))))


def draw_sentence_map(planes: Mapping[str, Vectors], path: Path) -> None:
    """Draw the sentences of each language, (n, 2), row i of each of the same meaning; grey lines join some of them."""
    figure = canvas(height=8.0)
    axes = figure.subplots()
    rows = list(planes.values())
    for number in range(min(JOINED, len(rows[0]))):
        ring = np.array([plane[number] for plane in [*rows, rows[0]]])
        axes.plot(ring[:, 0], ring[:, 1], color=GREY, linewidth=0.6, alpha=0.6, zorder=1)
    for number, (language, plane) in enumerate(planes.items()):
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number % len(MARKS)]
        axes.scatter(plane[:, 0], plane[:, 1], s=28, color=colour, marker=mark, label=language, alpha=0.75, zorder=2)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(GREY)
    legend(axes)
    save(figure, path)
