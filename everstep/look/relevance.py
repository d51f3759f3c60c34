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
    "The drop of the predicted class's margin over the second class when a word is left out, relative to the "
    "text's strongest word: blue supports the class, red opposes it."
)
GRADIENT = (
    "Gradient × input: the first-order contribution of each word's embedding to the predicted class's margin over "
    "the second class, relative to the text's strongest word: blue supports the class, red opposes it."
)
CHARACTERS = (
    "Words not seen in training: gradient × input of log p of the predicted tag for each character, relative to the "
    "word's strongest: blue supports the tag, red opposes it."
)
ATTENTION = "Attention weight of each word in the read-out, relative to the text's largest."


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
    told = "weight" if what == ATTENTION else "supports (blue) or opposes (red) the predicted class"
    coloured_text.legend(axes, scale, COLOURS, told)
    coloured_text.paint(axes, laid, scale, COLOURS)
    save(figure, path)
    return what
