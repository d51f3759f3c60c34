"""Directions of translation among several languages, and in what shares training sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.text_pairs import Side


class Direction(NamedTuple):
    """From a source language to a target language."""

    source: Side
    target: Side

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"


def direction_of(text: str) -> Direction:
    """A direction from its text, such as `en-de`.

    >>> direction_of("en-de").target
    'de'

    Raises:
        ValueError: it is not two different languages with one hyphen between them.
    """
    source, hyphen, target = text.partition("-")
    if not (source and hyphen and target) or "-" in target:
        raise ValueError(f"expected two languages with one hyphen between them, such as en-de; got {text!r}")
    if source == target:
        raise ValueError(f"expected two different languages; got {text!r}")
    return Direction(source, target)


def mixture(sizes: Sequence[int], temperature: float) -> list[int]:
    """How many pairs of each direction an epoch has, of n_d pairs: m_d = n_max (n_d / n_max)^(1/T), rounded.

    So directions are drawn in the shares p_d ∝ n_d^(1/T): for T = 1 as often as they have pairs, for a large T equally
    often. The largest direction has each of its pairs once, and no other has fewer than its own.

    Source: Arivazhagan et al., "Massively multilingual neural machine translation in the wild", 2019.

    >>> mixture([10_000, 100], 1), mixture([10_000, 100], 5)
    ([10000, 100], [10000, 3981])
    """
    most = max(sizes)
    return [size if size == most else round(most * (size / most) ** (1 / temperature)) for size in sizes]


def repeated(size: int, many: int, random: np.random.Generator) -> NDArray[np.int64]:
    """`many` numbers below `size`, sorted, each as often as any other, or once more: which, is drawn.

    >>> repeated(3, 7, np.random.default_rng(0)).tolist()
    [0, 0, 1, 1, 2, 2, 2]
    """
    whole, rest = divmod(many, size)
    drawn = random.choice(size, rest, replace=False)
    return np.sort(np.concatenate([np.tile(np.arange(size), whole), drawn])).astype(np.int64)
