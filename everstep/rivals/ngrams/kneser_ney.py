"""Interpolated modified Kneser-Ney smoothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.errors import DataError
from everstep.rivals.ngrams.ngram_counts import OrderCounts
from everstep.rivals.ngrams.ngram_table import NGramTable
from everstep.rivals.ngrams.workspace import Workspace

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Kept = NDArray[np.bool_]


def discounts(adjusted: Ints, n: int, fallback: Sequence[float] | None, work: Workspace) -> Floats:
    """The discounts (0, D₁, D₂, D₃₊) of an order, by its adjusted counts.

    D_k = k - (k + 1) · Y · n_{k+1} / n_k with Y = n₁ / (n₁ + 2 n₂), where n_k n-grams have the count k
    (Chen & Goodman 1999).

    Raises:
        DataError: a discount is undefined or not within (0, k], and there is no `fallback`.

    >>> discounts(np.array([1, 1, 1, 1, 2, 2, 3, 4]), 1, None, Workspace(1 << 20)).tolist()
    [0.0, 0.5, 1.25, 1.0]
    """
    found = np.zeros(5, np.int64)
    for block in work.blocks(len(adjusted), adjusted):
        found += np.bincount(np.minimum(adjusted[block], 5), minlength=6)[:5]
    one, two, three, four = (int(count) for count in found[1:])
    if one and two and three:
        y = one / (one + 2 * two)
        exact = np.array([0, 1 - 2 * y * two / one, 2 - 3 * y * three / two, 3 - 4 * y * four / three])
        if (exact[1:] > 0).all():
            return exact
    if fallback is None:
        raise DataError(
            f"order {n}: the discounts of modified Kneser-Ney are undefined on this text, of which {one:,}, {two:,}, "
            f"{three:,} and {four:,} n-grams have the (adjusted) counts 1, 2, 3 and 4; expected some of each. Give "
            "more text, a lower model.order, or model.fallback_discounts=[0.5,1,1.5]"
        )
    return np.array([0, *fallback], np.float64)


def kneser_ney(
    levels: Sequence[OrderCounts],
    vocabulary: int,
    work: Workspace,
    *,
    prune: Sequence[int] = (0,),
    fallback: Sequence[float] | None = None,
) -> NGramTable:
    """Estimate a model by interpolated modified Kneser-Ney smoothing (Chen & Goodman 1999).

    p(w | h) = max(a(h w) - D(a(h w)), 0) / a(h) + γ(h) p(w | h'), where a are adjusted counts, a(h) = Σ_w a(h w), h' is
    h without its first word, and γ(h) is what the discounts and the pruned n-grams leave. Below order 1 stands the
    uniform distribution over the vocabulary, so that a word that never occurs has γ / V. p sums to 1 over the
    vocabulary in every context.

    Args:
        levels: the result of `count_ngrams`.
        vocabulary: V.
        work: makes the arrays.
        prune: for each order from 1 on, n-grams that occur at most so often are left out; the last entry holds for all
            higher orders. They count for the discounts and for a(h), as in KenLM (Heafield 2013).
        fallback: (D₁, D₂, D₃₊) for orders whose discounts are undefined, which is usual for small texts.

    Raises:
        DataError: discounts are undefined, and there is no `fallback`.

    >>> from everstep.rivals.ngrams.ngram_counts import count_ngrams
    >>> work = Workspace(1 << 20)
    >>> levels = count_ngrams(np.array([1, 2, 1, 0]), np.array([0]), 0, 3, 2, work)
    >>> table = kneser_ney(levels, 3, work, fallback=(0.5, 1, 1.5))
    >>> log_p, _ = table.step(np.array([1]), table.initial_state(1))
    >>> float(np.exp(log_p).sum().round(6))
    1.0
    """
    below = np.full(1, 1 / vocabulary)  # the order 0 has one n-gram, which every suffix of order 1 is
    kept, numbers = np.ones(1, np.bool_), np.zeros(1, np.int64)  # of the order below, before and after pruning
    keys, log_p, backoff = [], [], []
    for n, level in enumerate(levels, 1):
        cut = prune[min(n, len(prune)) - 1] if n > 1 else 0
        taken = discounts(level.adjusted, n, fallback, work) if level.adjusted.any() else np.zeros(4)
        gamma = _left_over(level, len(below), vocabulary, taken, cut, work)
        if n > 1:
            backoff.append(_chosen(kept, work, np.float32, _log_of(gamma.left)))
        below, kept = _probabilities(level, n, vocabulary, gamma, below, taken, cut, work)
        log_p.append(_chosen(kept, work, np.float32, _log_of(below)))
        if n > 1:

            def renumbered(block: slice, old: Ints = level.keys, new: Ints = numbers) -> Ints:
                prefix, word = np.divmod(old[block], vocabulary)
                return new[prefix] * vocabulary + word

            keys.append(_chosen(kept, work, np.int64, renumbered))
        numbers = _numbers(kept, work)
    return NGramTable(vocabulary, keys, log_p, backoff)


def _log_of(values: Floats) -> Callable[[slice], Floats]:
    return lambda block: np.log(values[block])


def _chosen(kept: Kept, work: Workspace, dtype: Any, value: Callable[[slice], NDArray[Any]]) -> NDArray[Any]:
    """The values of the entries that are kept, computed in blocks."""
    found = work.array(int(np.count_nonzero(kept)), dtype)
    at = 0
    for block in work.blocks(len(kept), kept, found):
        some = value(block)[kept[block]]
        found[at : at + len(some)] = some
        at += len(some)
    return found


def _numbers(kept: Kept, work: Workspace) -> Ints:
    """The number of each kept entry among those that are kept."""
    found = work.array(len(kept), np.int64)
    before = 0
    for block in work.blocks(len(kept), kept, found):
        found[block] = before + np.cumsum(kept[block]) - 1
        before += int(np.count_nonzero(kept[block]))
    return found


def _probabilities(
    level: OrderCounts,
    n: int,
    vocabulary: int,
    gamma: _LeftOver,
    below: Floats,
    taken: Floats,
    cut: int,
    work: Workspace,
) -> tuple[Floats, Kept]:
    """p of each n-gram of an order, from those of the order below, and which are kept."""
    size = len(level.keys)
    found, kept = work.array(size, np.float64), work.array(size, np.bool_)
    for block in work.blocks(size, level.keys, level.adjusted, level.raw, level.suffix, found):
        prefix = level.keys[block] // vocabulary
        net, kept[block] = _discounted(level, block, taken, cut)
        suffix = level.suffix[block] if n > 1 else np.zeros_like(prefix)
        share = np.divide(net, gamma.total[prefix], out=np.zeros_like(net), where=net > 0)
        found[block] = share + gamma.left[prefix] * below[suffix]
    if n == 1:
        kept[:] = True
    return found, kept


class _LeftOver(NamedTuple):
    """a(h) and γ(h) of each context h."""

    total: Floats
    left: Floats


def _left_over(
    level: OrderCounts, contexts: int, vocabulary: int, taken: Floats, cut: int, work: Workspace
) -> _LeftOver:
    """The mass that discounts and pruning leave in each context; 1 where nothing follows."""
    total, net = work.array(contexts, np.float64), work.array(contexts, np.float64)
    for block in work.blocks(len(level.keys), level.keys, level.adjusted, level.raw):
        prefix = level.keys[block] // vocabulary
        low, high = int(prefix[0]), int(prefix[-1]) + 1  # keys ascend, and so do prefixes
        net_here, _ = _discounted(level, block, taken, cut)
        total[low:high] += np.bincount(prefix - low, level.adjusted[block], high - low)
        net[low:high] += np.bincount(prefix - low, net_here, high - low)
    left = 1 - np.divide(net, total, out=np.zeros_like(net), where=total > 0)
    return _LeftOver(total, left)


def _discounted(level: OrderCounts, block: slice, taken: Floats, cut: int) -> tuple[Floats, Kept]:
    """a - D(a) of each n-gram, 0 where it is pruned, and whether it is kept."""
    adjusted = level.adjusted[block]
    kept = level.raw[block] > cut
    return np.where(kept, adjusted - taken[np.minimum(adjusted, 3)], 0.0), kept
