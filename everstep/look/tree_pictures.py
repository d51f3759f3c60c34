"""Trees with a class at every node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb

from everstep.look.coloured_text import ink
from everstep.look.style import GREY, canvas, save

ORDER = colormaps["RdYlBu"]
WRONG = "black"
MOST = 60
"""Most nodes of a drawn tree; a larger one would be unreadable."""


class DrawnTree(NamedTuple):
    """A tree to draw.

    Attributes:
        words: the word of each node, or None.
        children: the indices of each node's children.
        predicted: the predicted class of each node, as an index into the names.
        probability: the probability of that class at each node.
        right: whether the prediction is correct at each node; None if unknown.
    """

    words: Sequence[str | None]
    children: Sequence[Sequence[int]]
    predicted: Sequence[int]
    probability: Sequence[float]
    right: Sequence[bool | None]


def draw_trees(trees: Sequence[DrawnTree], names: Sequence[str], path: Path) -> str:
    """Draw trees one below the other, each node with its predicted class; returns the caption.

    Args:
        trees: the trees, of any shape.
        names: the class names.
        path: the PNG to write.
    """
    placed = [_placed(tree) for tree in trees]
    heights = [1.0 + 0.6 * max(y for _, y in places) for places in placed]
    widest = max(max(x for x, _ in places) for places in placed)
    figure = canvas(sum(heights) + 0.4, max(8.0, 0.9 * (widest + 2)))
    every = figure.subplots(len(trees), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, tree, places in zip(every, trees, placed, strict=True):
        _draw(axes, tree, places, names)
        axes.set_xlim(-1, widest + 1)
    save(figure, path)
    known = any(one is not None for tree in trees for one in tree.right)
    wrong = "; a thick outline marks a wrong prediction" if known else ""
    return f"The predicted class of every node, fainter where the model is less confident{wrong}."


def _placed(tree: DrawnTree) -> list[tuple[float, float]]:
    """x and depth of each node: leaves side by side, parents centred above their children."""
    number = len(tree.children)
    below = {child for children in tree.children for child in children}
    ahead = [node for node in range(number) if node not in below]
    depth = dict.fromkeys(ahead, 0.0)
    order = []
    while ahead:  # parents before children, leaves from left to right
        node = ahead.pop()
        order.append(node)
        depth |= dict.fromkeys(tree.children[node], depth[node] + 1)
        ahead += reversed(tree.children[node])
    x: dict[int, float] = {}
    for node in order:
        if not tree.children[node]:
            x[node] = float(len(x))
    for node in reversed(order):
        if tree.children[node]:
            x[node] = sum(x[child] for child in tree.children[node]) / len(tree.children[node])
    return [(x[node], depth[node]) for node in range(number)]


def _draw(axes: Axes, tree: DrawnTree, places: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    for (x, y), children in zip(places, tree.children, strict=True):
        for child in children:
            axes.plot([x, places[child][0]], [y, places[child][1]], color=GREY, linewidth=1, zorder=1)
    for node, (x, y) in enumerate(places):
        said, word = tree.predicted[node], tree.words[node]
        wrong, colour = tree.right[node] is False, _faded(said, tree.probability[node], len(names))
        outline = {"edgecolor": WRONG if wrong else GREY, "linewidth": 2.5 if wrong else 0.8}
        box = {"boxstyle": "round,pad=0.25", "facecolor": colour, **outline}
        letters = ink(to_hex(colour))
        axes.text(x, y, _short(names[said]), ha="center", va="center", fontsize=11, bbox=box, zorder=2, color=letters)
        if word is not None:
            axes.text(x, y + 0.42, _short(word, 14), ha="center", va="center", fontsize=11, zorder=2)
    axes.set_ylim(max(y for _, y in places) + 0.8, -0.5)
    axes.axis("off")


def _faded(said: int, probability: float, classes: int) -> tuple[float, float, float]:
    """The colour of a class, closer to white at lower probability; white at 1/K, the least of a predicted class."""
    least = 1 / max(classes, 2)
    sure = max(0.0, (probability - least) / (1 - least))
    red, green, blue = (1 - (1 - part) * sure for part in to_rgb(ORDER(said / max(classes - 1, 1))))
    return red, green, blue


def _short(text: str, most: int = 10) -> str:
    """The text, shortened to fit into a node."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
