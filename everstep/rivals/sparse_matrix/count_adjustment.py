"""What multiplies relative frequencies in a sparse non-negative matrix, learned by leaving one out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy  # loads its parts when they are used
from numpy.typing import NDArray

from everstep.errors import DataError
from everstep.rivals.sparse_matrix.context_kinds import Ints
from everstep.rivals.sparse_matrix.pair_counts import PairCounts

Floats = NDArray[np.float64]
ROUNDS = 200
_SHIFT = 27  # bits of a count; with 9 bits of a kind, three numbers are one


class Adjustment:
    """M(f, w) = e^A(k, c(f), c(f, w)) · c(f, w) / c(f) of a feature f of kind k and a word w; c are counts.

    A is linear between the corners of a grid of log₂ c(f) and log₂ c(f, w), and has a grid for each kind.

    Args:
        grid: (kinds, L, L), A at powers of two.
        uniform: the logarithm of the weight of the uniform distribution.
    """

    def __init__(self, grid: Floats, uniform: float):
        self.grid, self.uniform = grid, uniform

    def values(self, kind: int, totals: Ints, counts: Ints) -> Floats:
        """M of pairs by the counts of feature and pair, (N,)."""
        corners, shares = _corners(self.grid.shape, np.full(len(totals), kind), totals, counts)
        weight = (self.grid.ravel()[corners] * shares).sum(0)
        found: Floats = np.exp(weight) * counts / totals
        return found


def _corners(shape: tuple[int, ...], kinds: Ints, totals: Ints, counts: Ints) -> tuple[Ints, Floats]:
    """The four corners of the grid around each pair of counts, and their shares: (4, N) both."""
    places = []
    for count in (totals, counts):
        power = np.log2(np.maximum(count, 1))
        low = np.minimum(power.astype(np.int64), shape[1] - 2)
        places.append((low, np.minimum(power - low, 1)))
    (a, left), (b, below) = places
    base = (kinds * shape[1] + a) * shape[2] + b
    corners = np.stack([base, base + 1, base + shape[2], base + shape[2] + 1])
    shares = np.stack([(1 - left) * (1 - below), (1 - left) * below, left * (1 - below), left * below])
    return corners, shares


class _Events(NamedTuple):
    """What the loss reads: sparse matrices over events, features that they have, and triples (kind, c(f), c(f, w)).

    Attributes:
        features: (events, features) 1 where an event has a feature.
        rows: (features, triples) how many words w of a feature have these counts, c(f) without the event.
        changed: (events, triples) what leaving the event out changes: −1 of its own pair, and +1 of what that becomes.
        own: (events, triples) 1 for the counts of its own word without the event.
        kinds, totals, counts: the triples.
    """

    features: Any
    rows: Any
    changed: Any
    own: Any
    kinds: Ints
    totals: Ints
    counts: Ints


def fitted_adjustment(
    counted: Sequence[PairCounts], contexts: Sequence[Ints], words: Ints, vocabulary: int
) -> Adjustment:
    """The adjustment under which words of the training text are likeliest, each left out of the counts.

    The loss is −log p(w | f₁ f₂ …) = log Σ_f Σ_v M(f, v) − log Σ_f M(f, w), with the counts that a text without
    this one occurrence has; it is minimised by L-BFGS, with a standard normal prior on A.

    Args:
        counted: the counts of each kind.
        contexts: for each kind, the place of each event's context, (events,), −1 where it has none.
        words: (events,) the word of each event.
        vocabulary: V.

    Raises:
        DataError: the text has 2²⁷ tokens or more.
    """
    most = max(int(one.totals.max(initial=1)) for one in counted)
    if most >> _SHIFT:
        raise DataError(f"a sparse matrix: expected a text of fewer than {1 << _SHIFT:,} tokens; got {most:,}")
    events = _events(counted, contexts, words, vocabulary)
    levels = int(np.log2(most)) + 2
    shape = (len(counted), levels, levels)
    corners, shares = _corners(shape, events.kinds, events.totals, events.counts)
    triples = np.arange(len(events.counts))
    size = int(np.prod(shape))
    spread = scipy.sparse.coo_matrix(
        (shares.ravel(), (np.tile(triples, 4), corners.ravel())), shape=(len(triples), size)
    ).tocsr()  # fmt: skip
    ratio = events.counts / events.totals
    transposed = [one.T.tocsr() for one in (spread, events.features, events.rows, events.changed, events.own)]

    def loss(theta: Floats) -> tuple[float, Floats]:
        uniform = np.exp(theta[-1])
        values = np.exp(spread @ theta[:-1]) * ratio
        below = events.features @ (events.rows @ values) + events.changed @ values + uniform
        above = events.own @ values + uniform / vocabulary
        back, features, rows, changed, own = transposed
        slope = rows @ (features @ (1 / below)) + changed @ (1 / below) - own @ (1 / above)
        last = uniform * ((1 / below).sum() - (1 / above).sum() / vocabulary)
        gradient = np.append(back @ (slope * values), last) + theta
        total = float(np.log(below).sum() - np.log(above).sum() + 0.5 * theta @ theta)
        return total / len(words), gradient / len(words)

    found = scipy.optimize.minimize(
        loss, np.zeros(size + 1), jac=True, method="L-BFGS-B", options={"maxiter": ROUNDS, "ftol": 1e-8, "gtol": 1e-7}
    )
    return Adjustment(found.x[:-1].reshape(shape), float(found.x[-1]))


def _events(counted: Sequence[PairCounts], contexts: Sequence[Ints], words: Ints, vocabulary: int) -> _Events:
    """The matrices of the loss. A feature that no other occurrence has is none once the event is left out."""
    at, features, rows, changed, own = 0, [], [], [], []
    for kind, (counts, places) in enumerate(zip(counted, contexts, strict=True)):
        event = np.flatnonzero(places >= 0)
        event = event[counts.totals[places[event]] > 1]
        used, feature = np.unique(places[event], return_inverse=True)
        totals = counts.totals[used] - 1
        features.append((event, at + feature))
        low, high = (np.searchsorted(counts.pairs, (used + shift) * vocabulary) for shift in (0, 1))
        each = np.repeat(np.arange(len(used)), high - low)
        inside = np.arange(len(each)) - np.repeat(np.cumsum(high - low) - (high - low), high - low)
        rows.append((at + each, _code(kind, totals[each], counts.counts[low[each] + inside])))
        mine = counts.counts[counts.find_pairs(places[event], words[event], vocabulary)]
        changed.append((event, _code(kind, totals[feature], mine), np.full(len(event), -1.0)))
        left = np.flatnonzero(mine > 1)
        code = _code(kind, totals[feature[left]], mine[left] - 1)
        changed.append((event[left], code, np.ones(len(left))))
        own.append((event[left], code))
        at += len(used)
    codes = np.unique(np.concatenate([part[1] for parts in (rows, changed, own) for part in parts]))

    def matrix(parts: Sequence[tuple[Any, ...]], height: int) -> Any:
        row, code = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
        values = np.concatenate([part[2] if len(part) > 2 else np.ones(len(part[0])) for part in parts])
        return scipy.sparse.coo_matrix(
            (values, (row, np.searchsorted(codes, code))), shape=(height, len(codes))
        ).tocsr()

    event, feature = (np.concatenate([part[place] for part in features]) for place in (0, 1))
    mask = (1 << _SHIFT) - 1
    return _Events(
        scipy.sparse.coo_matrix((np.ones(len(event)), (event, feature)), shape=(len(words), at)).tocsr(),
        matrix(rows, at),
        matrix(changed, len(words)),
        matrix(own, len(words)),
        codes >> 2 * _SHIFT,
        codes >> _SHIFT & mask,
        codes & mask,
    )


def _code(kind: int, totals: Ints, counts: Ints) -> Ints:
    """Three numbers as one."""
    found: Ints = (kind << 2 * _SHIFT) + (totals << _SHIFT) + counts
    return found
