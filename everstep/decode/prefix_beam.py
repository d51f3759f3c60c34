"""Beam search over prefixes of labels whose times are unknown, with a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


class Continuation(NamedTuple):
    """What a language model says after a prefix.

    Attributes:
        scores: (K,) what is added to the score of a prefix by each label that extends it.
        end: what is added if the text ends here.
        state: what the language model needs to go on.
    """

    scores: Floats
    end: float
    state: Any


class Extends(Protocol):
    """A language model as the search sees it."""

    def begin(self) -> Continuation:
        """After no label."""

    def after(self, before: Sequence[Continuation], labels: Sequence[int]) -> list[Continuation]:
        """After each of some prefixes and one more label."""


class Bonus:
    """No language model: β is added for each label.

    Args:
        labels: K.
        beta: β.
    """

    def __init__(self, labels: int, beta: float = 0.0):
        self._same = Continuation(np.full(labels, beta), 0.0, None)

    def begin(self) -> Continuation:
        """The same after any prefix."""
        return self._same

    def after(self, before: Sequence[Continuation], labels: Sequence[int]) -> list[Continuation]:
        """The same after any prefix."""
        return [self._same for _ in labels]


class Spelled(NamedTuple):
    """A found text.

    Attributes:
        labels: its labels.
        log_p: log of the probability of its paths that stayed in the beam, in nats.
        score: log_p and what the language model added.
    """

    labels: list[int]
    log_p: float
    score: float


class _Prefix:
    """A node of the tree of prefixes."""

    __slots__ = ("added", "children", "known", "label", "parent")

    def __init__(self, parent: _Prefix | None, label: int, known: Continuation | None, added: float):
        self.parent, self.label, self.known, self.added = parent, label, known, added
        self.children: dict[int, _Prefix] = {}

    def labels(self) -> list[int]:
        found: list[int] = []
        node = self
        while node.parent is not None:
            found.append(node.label)
            node = node.parent
        return found[::-1]


def prefix_beam(log_p: Floats, width: int, model: Extends | None = None, n_best: int = 1) -> list[Spelled]:
    """The texts l with the largest log p(l) + Σ_u s(l_u | l_<u) + e(l) that a beam finds (Hannun 2014).

    p(l) sums over the paths that spell l; s and e are those of `Continuation`. A prefix has two probabilities, that of
    its paths which end in a blank, and in its last label: only after a blank does the same label say it again. At
    each step the `width` best prefixes are kept, by log p and s. A width that keeps all is exact.

    Args:
        log_p: (T, K + 1) of K labels and the blank K.
        width: W ≥ 1.
        model: a language model; None: none.
        n_best: most texts to return, best first; at most W.
    """
    labels = log_p.shape[1] - 1
    model = Bonus(labels) if model is None else model
    beam = [_Prefix(None, -1, model.begin(), 0.0)]
    blank: Floats = np.zeros(1)
    other: Floats = np.full(1, -np.inf)
    for row in np.asarray(log_p, np.float64):
        beam, blank, other = _step(beam, blank, other, row, width, model)
    total = np.logaddexp(blank, other)
    ends = [prefix.added + _known(prefix).end for prefix in beam]
    found = [
        Spelled(prefix.labels(), float(p), float(p) + end) for prefix, p, end in zip(beam, total, ends, strict=True)
    ]
    return sorted(found, key=lambda one: -one.score)[:n_best]


def _step(
    beam: list[_Prefix], blank: Floats, other: Floats, row: Floats, width: int, model: Extends
) -> tuple[list[_Prefix], Floats, Floats]:
    """The beam after one step, and log p of each of its prefixes, ending in a blank and in its last label."""
    labels = len(row) - 1
    total, last = np.logaddexp(blank, other), np.array([prefix.label for prefix in beam])
    said = np.flatnonzero(last >= 0)
    stays_blank, stays = total + row[labels], np.full(len(beam), -np.inf)
    stays[said] = other[said] + row[last[said]]
    grown = total[:, None] + row[None, :labels]
    grown[said, last[said]] = blank[said] + row[last[said]]
    places = {id(prefix): place for place, prefix in enumerate(beam)}
    for place, prefix in enumerate(beam):
        if (parent := places.get(id(prefix.parent))) is not None:  # both ways to this prefix are one
            stays[place] = np.logaddexp(stays[place], grown[parent, prefix.label])
            grown[parent, prefix.label] = -np.inf
    added = np.array([prefix.added for prefix in beam])
    scores = np.stack([_known(prefix).scores for prefix in beam]) + added[:, None]
    ranks = np.concatenate([np.logaddexp(stays_blank, stays) + added, (grown + scores).ravel()])
    best = np.argsort(-ranks, kind="stable")[:width]
    best = best[ranks[best] > -np.inf]
    kept, new = best[best < len(beam)], best[best >= len(beam)] - len(beam)
    parents, next_labels = np.divmod(new, max(labels, 1))
    longer = [_child(beam[p], int(k), float(scores[p, k])) for p, k in zip(parents, next_labels, strict=True)]
    _ask(model, [prefix for prefix in longer if prefix.known is None])
    none = np.full(len(new), -np.inf)
    return (
        [*(beam[place] for place in kept), *longer],
        np.concatenate([stays_blank[kept], none]),
        np.concatenate([stays[kept], grown[parents, next_labels]]),
    )


def _child(parent: _Prefix, label: int, added: float) -> _Prefix:
    """The prefix with one more label, the same object each time, so that the language model is asked once."""
    if label not in parent.children:
        parent.children[label] = _Prefix(parent, label, None, added)
    return parent.children[label]


def _ask(model: Extends, new: list[_Prefix]) -> None:
    before = [_known(prefix.parent) for prefix in new if prefix.parent is not None]
    for prefix, known in zip(new, model.after(before, [prefix.label for prefix in new]) if new else [], strict=True):
        prefix.known = known


def _known(prefix: _Prefix) -> Continuation:
    assert prefix.known is not None
    return prefix.known
