"""A softmax in which rare classes are few features wide and computed only where they are needed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.heads.alias_method import check_counts
from everstep.heads.cross_entropy import row_nats
from everstep.heads.head import VocabularyHead

_TOUCH = 32
"""What passing over a logit costs (maximum, exponential, sum, slope), in multiply-adds of its product."""
_NARROWEST = 112
"""Fewest features of a tail. With 16, the perplexity of `benchmarks/vocabularies.py` is 25 % above a full softmax's."""
_MOST_TAILS = 8
_GRID = 48
"""Places at which a cut-off is tried."""


def tail_sizes(features: int, tails: int, divisor: float) -> list[int]:
    """Features of each tail, from frequent to rare: D / divisor^i, at least 112 and at most D.

    >>> tail_sizes(512, 3, 4)
    [128, 112, 112]
    """
    return [max(min(_NARROWEST, features), round(features / divisor**i)) for i in range(1, tails + 1)]


def cheapest_cutoffs(classes: int, features: int, divisor: float = 4.0) -> tuple[int, ...]:
    """The cut-offs that cost least on text whose k-th most frequent class has p ∝ 1/k (Zipf 1935); () for no tail.

    As in Grave 2017, costs are modelled, here as multiply-adds a target: a class of the head costs D + c, one of tail
    i p_i (d_i + c), c for passes over a logit; entering a tail costs p_i D d_i.

    >>> cheapest_cutoffs(2, 8)
    ()
    >>> len(cheapest_cutoffs(100_000, 512))
    8

    Args:
        classes: K.
        features: D of the outputs.
        divisor: of the features, from tail to tail.
    """
    grid = np.unique(np.geomspace(1, classes, _GRID).astype(np.int64))
    share = np.cumsum(1 / np.arange(1, classes + 1))[grid - 1]
    share /= share[-1]
    places = len(grid)
    best: tuple[float, tuple[int, ...]] = (float(classes * (features + _TOUCH)), ())
    for tails in range(1, _MOST_TAILS + 1):
        sizes = tail_sizes(features, tails, divisor)
        cost = (grid + tails) * float(features + _TOUCH)  # of ending the head at each place
        came = []
        for size in sizes:
            inside = share[None, :] - share[:, None]
            steps = inside * ((grid[None, :] - grid[:, None]) * (size + _TOUCH) + features * size)
            whole = np.where(np.tri(places, dtype=bool), np.inf, cost[:, None] + steps)  # a tail is not empty
            came.append(whole.argmin(0))
            cost = whole.min(0)
        if cost[-1] < best[0]:
            place, cuts = places - 1, []
            for origin in reversed(came):
                place = int(origin[place])
                cuts.append(int(grid[place]))
            best = (float(cost[-1]), tuple(reversed(cuts)))
    return best[1]


class AdaptiveSoftmax(VocabularyHead):
    """A softmax over frequent classes and over tails, and in each tail one over its rare classes (Grave 2017).

    p(k | y) = softmax(W_0 y + b_0)_k for the c_1 most frequent classes, the head;
    p(k | y) = p(tail i | y) · softmax(W_i P_i y + b_i)_k for a class of tail i, with p(tail i | y) from the same
    softmax as the head, and P_i (d_i, D) from D to d_i = D / divisor^i features, but at least 112. The head is computed
    for every step, a tail for the steps whose target it has, so that a training step costs a small part of a full one.

    >>> head = AdaptiveSoftmax(8, 100, cutoffs=(10, 40))
    >>> ys, target = torch.zeros(2, 7, 8), torch.arange(14).view(2, 7)
    >>> head.loss(ys, target).shape, round(head.predict(ys).exp().sum().item(), 3)
    (torch.Size([2]), 14.0)

    Args:
        input_size: features D of y.
        classes: K.
        cutoffs: rising numbers of classes at which the head and every tail but the last end; None:
            `cheapest_cutoffs`; (): one full softmax.
        divisor: of the features, from tail to tail, at least 1.
        tied: an embedding's weight (K, D), whose rows are those of W_0 and W_i; P_i is then D × D, and `divisor` is
            not used. Its classes must be sorted from frequent to rare already.

    Parameters: `head` (c_1 + tails, D), or (tails, D) where tied, and `head_bias`; `down.i` (d_i, D), `tail.i`
    (K_i, d_i), `tail_bias.i` (K_i,); matrices initially uniform in ±1/√(columns), biases zero, until `counted` makes
    them the logarithms of the frequencies of classes and tails. Buffer: `rank` (K,), the place of each class among all,
    sorted from frequent to rare: as they are numbered, until `counted`.

    Raises:
        ValueError: cut-offs that do not rise or reach K, a divisor below 1, or a tied weight of another shape.

    Known limit: classes of a tail share d_i features, which costs some perplexity; see docs/vocabularies.md.
    """

    rank: Tensor

    def __init__(
        self,
        input_size: int,
        classes: int,
        *,
        cutoffs: Sequence[int] | None = None,
        divisor: float = 4.0,
        tied: Tensor | None = None,
    ):
        super().__init__()
        if divisor < 1:
            raise ValueError(f"AdaptiveSoftmax: expected a divisor of at least 1, got {divisor}")
        if tied is not None and tied.shape != (classes, input_size):
            got = tuple(tied.shape)
            raise ValueError(f"AdaptiveSoftmax: a tied weight should be {(classes, input_size)}, but is {got}")
        divisor = 1.0 if tied is not None else divisor
        found = cheapest_cutoffs(classes, input_size, divisor) if cutoffs is None else tuple(cutoffs)
        if list(found) != sorted({*found}) or any(not 0 < cut < classes for cut in found):
            raise ValueError(f"AdaptiveSoftmax: expected rising cut-offs within 1 … {classes - 1}, got {list(found)}")
        self.input_size, self.classes, self.cutoffs = input_size, classes, found
        self._ends = [*found, classes]
        sizes = [end - start for start, end in self._spans()]
        self.tied = tied
        self.register_buffer("rank", torch.arange(classes))
        self.head = _matrix(len(found) + (self._ends[0] if tied is None else 0), input_size)
        self.head_bias = nn.Parameter(torch.zeros(self._ends[0] + len(found)))
        narrow = tail_sizes(input_size, len(sizes), divisor)
        self.down = nn.ParameterList(_matrix(few, input_size) for few in narrow)
        self.tail = nn.ParameterList(
            _matrix(size, few) for size, few in zip(sizes, narrow, strict=True) if tied is None
        )
        self.tail_bias = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes)

    def _spans(self) -> list[tuple[int, int]]:
        """The ranks of each tail, (first, end)."""
        return list(zip(self._ends, self._ends[1:], strict=False))

    def counted(self, counts: Tensor) -> None:
        """Sort the classes by how often each occurs in the training data, (K,), and begin with these frequencies.

        Raises:
            ValueError: the counts do not fit.
        """
        if counts.is_meta:
            return
        check_counts("AdaptiveSoftmax", counts, self.classes)
        if self.tied is None:
            order = torch.argsort(counts, descending=True, stable=True).to(self.rank)
            self.rank[order] = torch.arange(self.classes, device=order.device)
        often = torch.empty(self.classes, dtype=torch.float64, device=self.rank.device)
        often[self.rank] = counts.to(often).clamp_min(1)
        tails = often[self._ends[0] :].split([end - start for start, end in self._spans()]) if self.cutoffs else ()
        sums = [tail.sum()[None] for tail in tails]
        with torch.no_grad():
            self.head_bias.copy_((torch.cat([often[: self._ends[0]], *sums]) / often.sum()).log())
            for bias, tail in zip(self.tail_bias, tails, strict=True):
                bias.copy_((tail / tail.sum()).log())

    def _rows(self) -> list[Tensor]:
        """W_0, the rows of the head's classes and of the tails, and then the W_i."""
        if self.tied is None:
            return [self.head, *self.tail]
        # split, whose backward is one concatenation: a slice's would fill an array of the whole
        first, *tails = self.tied.split([self._ends[0], *(end - start for start, end in self._spans())])
        return [torch.cat([first, self.head]), *tails]

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(k | y), (…, classes), in float32."""
        first, *tails = self._rows()
        log_p = F.linear(ys, first, self.head_bias).float().log_softmax(-1)
        parts, common = [log_p[..., : self._ends[0]]], self._ends[0]
        for index, rows in enumerate(tails):
            low = F.linear(F.linear(ys, self.down[index]), rows, self.tail_bias[index])
            parts.append(log_p[..., common + index, None] + low.float().log_softmax(-1))
        return torch.cat(parts, -1)[..., self.rank]

    def nats(self, ys: Tensor, target: Tensor) -> Tensor:
        """−log p(target | y) of outputs (n, D) and targets (n,): (n,); of the tails only what is needed."""
        first, *tails = self._rows()
        rank, common = self.rank[target], self._ends[0]
        cuts = torch.tensor(self.cutoffs, dtype=torch.int64, device=rank.device)
        part = torch.bucketize(rank, cuts, right=True)
        found = row_nats(ys, first, self.head_bias, torch.where(part == 0, rank, common + part - 1))
        for index, (start, _) in enumerate(self._spans()):
            rows = (part == index + 1).nonzero()[:, 0]
            if len(rows):
                low = F.linear(ys[rows], self.down[index])
                more = row_nats(low, tails[index], self.tail_bias[index], rank[rows] - start)
                found = found.index_add(0, rows, more)
        return found

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, cutoffs={self.cutoffs}"


def _matrix(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns).uniform_(-(columns**-0.5), columns**-0.5))
