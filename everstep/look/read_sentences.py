"""Which sentences of a story are read, hop by hop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.look.style import canvas, save

LONGEST = 12
"""Sentences of a story that are drawn, the latest ones."""
WIDE = 52
"""Characters of a sentence that are drawn."""


class ReadStory(NamedTuple):
    """A question on a story.

    Attributes:
        story: S sentences.
        question: the question.
        said: the answer that was given.
        answer: the right one; "" if unknown.
        weights: (hops, S), how much each hop reads of each sentence.
    """

    story: Sequence[str]
    question: str
    said: str
    answer: str
    weights: NDArray[np.float64]


def draw_read_stories(found: Sequence[ReadStory], path: Path) -> str:
    """Draw stories, two a row, each sentence beside how much of it each hop reads; returns the caption."""
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    tall = [
        max(min(len(one.story), LONGEST) for one in found[line * columns : (line + 1) * columns])
        for line in range(lines)
    ]
    heights = [1.1 + 0.3 * rows for rows in tall]
    figure = canvas(sum(heights), 7.0 * columns)
    grid = figure.subplots(lines, columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat[len(found) :]:
        axes.axis("off")
    for axes, one in zip(grid.flat, found, strict=False):
        weights = one.weights[:, -LONGEST:].T
        story = [shorten(sentence, WIDE, placeholder=" …") for sentence in one.story[-LONGEST:]]
        if story:
            axes.imshow(weights, cmap="Greys", vmin=0, vmax=1, aspect="auto")
            for (row, hop), share in np.ndenumerate(weights):
                colour = "white" if share > 0.5 else "black"
                axes.text(hop, row, f"{share:.2f}".lstrip("0"), ha="center", va="center", color=colour, fontsize=10)
        axes.set_yticks(range(len(story)), story, fontsize=12)
        axes.set_xticks(range(len(one.weights)), [f"hop {hop + 1}" for hop in range(len(one.weights))], fontsize=11)
        axes.tick_params(length=0)
        right = f" (right: {one.answer})" if one.answer and one.answer != one.said else ""
        axes.set_title(f"{shorten(one.question, WIDE, placeholder=' …')} {one.said}{right}", fontsize=13, loc="right")
    save(figure, path)
    return "How much each hop reads of each sentence, the question and the answer given above; the columns sum to 1."
