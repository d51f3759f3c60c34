"""Texts whose pieces are coloured by their relevance to the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.colors import Normalize

from everstep.look import coloured_text
from everstep.look.style import canvas, save

COLOURS = colormaps["RdBu"]


LEFT_OUT = (
    "What the score of the predicted class over the next likeliest loses where a word is left out, as a share of "
    "the text's strongest word: blue speaks for the class, red against it."
)
GRADIENT = (
    "Gradient × input: to first order, what the score of the predicted class over the next likeliest owes to each "
    "word's embedding, as a share of the text's strongest word: blue speaks for the class, red against it."
)
CHARACTERS = (
    "Words that training never saw, by the gradient of log p of the predicted tag, times what is read of each "
    "character, as a share of the word's strongest: blue speaks for the tag, red against it."
)
ATTENTION = "The weight that the read-out gives to the step of each word, as a share of the text's largest."


def draw_relevance(
    rows: Sequence[tuple[str, Sequence[str], Sequence[float]]], path: Path, what: str = LEFT_OUT, columns: int = 84
) -> str:
    """Draw texts with each piece coloured by its relevance; returns the caption.

    Args:
        rows: for each text, its title, its pieces, and their relevance; each text has its own scale.
        path: the PNG to write.
        what: the definition of relevance: LEFT_OUT, GRADIENT, CHARACTERS or ATTENTION.
        columns: most characters in a row.
    """
    laid: list[coloured_text.Piece] = []
    for title, pieces, values in rows:
        most = max((abs(value) for value in values), default=0.0) or 1.0
        row = laid[-1].row + 2 if laid else 0
        shown = [(piece, value / most) for piece, value in zip(pieces, values, strict=True)]
        laid += [piece._replace(row=piece.row + row) for piece in coloured_text.layout([(title, 0.0)], columns)]
        row = laid[-1].row + 1
        laid += [piece._replace(row=piece.row + row) for piece in coloured_text.layout(shown, columns)]
    width, height = coloured_text.inches(laid)
    figure = canvas(height, width)
    axes = figure.subplots()
    coloured_text.frame(axes, laid)
    scale = Normalize(-1, 1)
    told = "weight" if what == ATTENTION else "speaks for (blue) or against (red) the predicted class"
    coloured_text.legend(axes, scale, COLOURS, told)
    coloured_text.paint(axes, laid, scale, COLOURS)
    save(figure, path)
    return what
