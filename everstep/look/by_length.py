"""How good a model is on short and on long inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from everstep.look.style import COLOURS, GREY, canvas, label, save


class Group(NamedTuple):
    """Inputs of similar lengths, `first` to `last` words, how many, and a figure of them."""

    first: int
    last: int
    inputs: int
    value: float


def length_groups(lengths: Sequence[int], most: int = 8, fewest: int = 5) -> list[list[int]]:
    """Places by rising length in at most so many groups of near-equal size, of at least `fewest` where there are as
    many; equal lengths stay together.

    >>> length_groups([3, 1, 2, 1], most=2, fewest=1)
    [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
    size = max(fewest, -(-len(order) // most))
    groups: list[list[int]] = []
    for place in order:
        full = not groups or (len(groups[-1]) >= size and lengths[groups[-1][-1]] != lengths[place])
        if full:
            groups.append([])
        groups[-1].append(place)
    if len(groups) > 1 and len(groups[-1]) < fewest:
        rest = groups.pop()
        groups[-1] += rest
    return groups


def draw_by_length(groups: Sequence[Group], what: str, unit: str, path: Path) -> str:
    """A bar for each group.

    Args:
        groups: by rising length.
        what: the figure's name, such as "BLEU".
        unit: what lengths are counted in, such as "words of the source".

    Returns:
        A sentence that says what to see.
    """
    figure = canvas(height=5.0)
    axes = figure.subplots()
    names = [str(g.first) if g.first == g.last else f"{g.first}–{g.last}" for g in groups]
    values = [group.value for group in groups]
    axes.bar(np.arange(len(groups)), values, color=COLOURS[0], width=0.7)
    for place, group in enumerate(groups):
        axes.annotate(f"{group.inputs:,}", (place, group.value), ha="center", va="bottom", fontsize=12, color=GREY)
    axes.set_xticks(np.arange(len(groups)), names)
    axes.set_ylim(0, None if any(values) else 1)
    label(axes, unit, what)
    axes.grid(visible=False, axis="x")
    save(figure, path)
    first, last = groups[0], groups[-1]
    if first is last:
        return f"{what} by length; there is one group alone."
    ends = f"{first.value:.1f} of {names[0]}, {last.value:.1f} of {names[-1]} {unit}"
    return f"{what} by length, with the number of each group above it: {ends}."
