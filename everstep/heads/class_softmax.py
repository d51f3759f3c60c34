"""A softmax over classes of words, and one over the words of a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.heads.alias_method import check_counts
from everstep.heads.cross_entropy import row_nats
from everstep.heads.linear_head import LinearHead


def frequency_bins(counts: Tensor, bins: int) -> Tensor:
    """The bin of each class, (K,): sorted from frequent to rare, each bin has an equal part of Σ √count, and is never
    empty (Mikolov 2011, "Extensions of recurrent neural network language model", which takes count, and its later
    code √count).

    >>> frequency_bins(torch.tensor([1, 16, 4, 1]), 3)
    tensor([2, 0, 1, 2])

    Args:
        counts: (K,), at least 0.
        bins: C ≤ K.
    """
    order = torch.argsort(counts, descending=True, stable=True)
    roots = counts[order].cpu().double().clamp_min(1e-9).sqrt().cumsum(0).numpy()
    first = np.searchsorted(roots, np.arange(bins) * roots[-1] / bins, side="left")
    first[1:] += 1  # the class that crosses a border ends its bin
    at = np.arange(bins)
    first = np.maximum.accumulate(np.where(at == 0, 0, first) - at) + at
    first = np.minimum(first, len(counts) - bins + at)
    found = torch.empty(len(counts), dtype=torch.int64)
    found[order.cpu()] = torch.from_numpy(np.searchsorted(first, np.arange(len(counts)), side="right") - 1)
    return found


class ClassSoftmax(LinearHead):
    """p(k | y) = p(g | y) · p(k | g, y), with g the group of class k (Goodman 2001).

    p(g | y) = softmax(U y + a)_g over C groups; p(k | g, y) is softmax(W y + b)_k over the classes of the group.

    Training computes C scores and those of the target's group: of all K classes about √K, if C is.

    >>> head = ClassSoftmax(8, 4, groups=[0, 1, 1, 0])
    >>> ys = torch.zeros(2, 7, 8)
    >>> head.predict(ys).exp()[0, 0].tolist()
    [0.25, 0.25, 0.25, 0.25]

    Args:
        input_size: features D of y.
        classes: K.
        groups: the group of each class, as a list of K numbers from 0 on, for instance of Brown clusters (Brown 1992);
            or C, the number of groups, whose members are found by frequency (`frequency_bins`) where `counted` is
            told; None: C = √K.
        tied: an embedding's weight (K, E) to use as W; where E ≠ D, a linear layer takes y to E features first.
        sparse: the gradient of `weight` is sparse, with the rows of the groups that occur.

    Parameters: `weight` (K, D or E) and `bias` (K,), W and b; `group_weight` (C, D or E) and `group_bias` (C,), U and
    a. Matrices initially uniform in ±1/√D, biases zero. Buffer: `group` (K,) int64.

    Raises:
        ValueError: a group without a class, a list of another length, or more groups than classes.

    Known limit: the groups that occur in a batch are computed one after the other, which is slow where they are many
    and its steps are few.
    """

    group: Tensor

    def __init__(
        self,
        input_size: int,
        classes: int,
        *,
        groups: Sequence[int] | int | None = None,
        tied: Tensor | None = None,
        sparse: bool = False,
    ):
        super().__init__(input_size, classes, tied)
        self._given = not isinstance(groups, int) and groups is not None
        if isinstance(groups, int) or groups is None:
            many = max(1, round(classes**0.5)) if groups is None else groups
            if not 1 <= many <= classes:
                raise ValueError(f"ClassSoftmax: expected 1 to {classes} groups, one class each at least; got {many}")
            found = torch.arange(classes) * many // classes
        else:
            found, many = _checked(groups, classes)
        self.groups, self.sparse = many, sparse
        self.register_buffer("group", found)
        features = self.weight.shape[1]
        bound = features**-0.5
        self.group_weight = nn.Parameter(torch.empty(many, features).uniform_(-bound, bound))
        self.group_bias = nn.Parameter(torch.zeros(many))

    def counted(self, counts: Tensor) -> None:
        """Group the classes by how often each occurs in the training data, (K,), unless their groups were given.

        Raises:
            ValueError: the counts do not fit.
        """
        check_counts("ClassSoftmax", counts, self.classes)
        if not self._given:
            self.group.copy_(frequency_bins(counts, self.groups))

    def predict(self, ys: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(k | y), (…, classes), in float32."""
        scores = self.logits(ys).float()
        group = self.group.expand_as(scores)
        outer = F.linear(self.joined(ys), self.group_weight, self.group_bias).float().log_softmax(-1)
        floor = torch.full_like(outer, -torch.inf)
        top = floor.scatter_reduce(-1, group, scores.detach(), "amax")
        sums = torch.zeros_like(outer).scatter_add(-1, group, (scores - top.gather(-1, group)).exp())
        return scores + (outer - top - sums.log()).gather(-1, group)

    def nats(self, ys: Tensor, target: Tensor) -> Tensor:
        """−log p(target | y) of outputs (n, D) and targets (n,): (n,); of the groups only those that occur."""
        ys, group = self.joined(ys), self.group[target]
        found = row_nats(ys, self.group_weight, self.group_bias, group)
        if not len(target):
            return found
        by_group = torch.argsort(group, stable=True)
        present, rows = torch.unique_consecutive(group[by_group], return_counts=True)
        members, place, sizes = self._members(present)
        # split, whose backward is one concatenation: a slice's would fill an array of the whole
        parts = zip(
            ys[by_group].split(rows.tolist()),
            F.embedding(members, self.weight, sparse=self.sparse).split(sizes),
            self.bias.index_select(0, members).split(sizes),
            place[target[by_group]].split(rows.tolist()),
            strict=True,
        )
        inner = torch.cat([row_nats(*part) for part in parts])
        return found.index_add(0, by_group, inner)

    def _members(self, present: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """The classes of the groups `present` (rising), the place of each class in its group, (K,), and the sizes."""
        order = torch.argsort(self.group, stable=True)
        sizes = torch.bincount(self.group, minlength=self.groups)
        starts = sizes.cumsum(0) - sizes
        place = torch.empty_like(order)
        place[order] = torch.arange(self.classes, device=order.device) - starts.repeat_interleave(sizes)
        inside = torch.zeros(self.groups, dtype=torch.bool, device=order.device)
        inside[present] = True
        return order[inside[self.group[order]]], place, sizes[present].tolist()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


def _checked(groups: Sequence[int], classes: int) -> tuple[Tensor, int]:
    """The groups as a tensor, and how many there are."""
    if len(groups) != classes:
        raise ValueError(f"ClassSoftmax: expected the group of each of {classes} classes, got {len(groups)}")
    found = torch.tensor(groups, dtype=torch.int64)
    many = int(found.max()) + 1
    if int(found.min()) < 0 or len(found.unique()) != many:
        raise ValueError(f"ClassSoftmax: expected groups 0 … {many - 1}, each with a class; one is missing or below 0")
    return found, many
