"""Which inputs decide: gradient × input of one output, for each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.colors import Normalize
from torch import Tensor

from everstep.look import text
from everstep.look.style import canvas, save

COLOURS = colormaps["RdBu"]


def relevance(output: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Σ_d x_td · ∂f/∂x_td of each step t: what the input there adds to f, to first order (Denil 2014; Li 2016).

    >>> relevance(lambda xs: (xs * torch.tensor([1.0, -2.0])).sum(), torch.ones(3, 2)).tolist()
    [-1.0, -1.0, -1.0]

    Args:
        output: inputs (time, features) to one number, such as the logit of a class over that of the next.
        inputs: (time, features).

    Returns:
        (time,). Known limit: where the output is flat (saturated gates), what matters can have no gradient.
    """
    leaf = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(output(leaf), leaf)
    return (gradient * inputs).sum(-1).detach()


def draw_relevance(rows: Sequence[tuple[str, Sequence[str], Sequence[float]]], path: Path, columns: int = 84) -> str:
    """Draw texts with each piece on the colour of its relevance; returns what to see.

    Args:
        rows: of each text its title, its pieces, and their relevance; each text has a scale of its own.
        path: the PNG to write.
        columns: characters in a row at most.
    """
    laid: list[text.Piece] = []
    for title, pieces, values in rows:
        most = max((abs(value) for value in values), default=0.0) or 1.0
        row = laid[-1].row + 2 if laid else 0
        shown = [(piece, value / most) for piece, value in zip(pieces, values, strict=True)]
        laid += [piece._replace(row=piece.row + row) for piece in text.layout([(title, 0.0)], columns)]
        row = laid[-1].row + 1
        laid += [piece._replace(row=piece.row + row) for piece in text.layout(shown, columns)]
    width, height = text.inches(laid)
    figure = canvas(height, width)
    axes = figure.subplots()
    text.frame(axes, laid)
    scale = Normalize(-1, 1)
    text.legend(axes, scale, COLOURS, "speaks for (blue) or against (red) the predicted class")
    text.paint(axes, laid, scale, COLOURS)
    save(figure, path)
    return (
        "What each word adds to the score of the predicted class over the next likeliest, by gradient × input, to "
        "first order, as a share of the text's strongest word: blue speaks for it, red against it."
    )
