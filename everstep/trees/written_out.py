"""Compositions of a state (h, c) whose derivative is written out: all levels are one node of PyTorch's graph.

Levels are small: beside the products, what nodes of the graph cost and what its operations copy is a third of the time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from everstep.state import State
from everstep.trees.composition import Children, Composition
from everstep.trees.forest import Forest, Level


class Above(NamedTuple):
    """What the derivative of one level says.

    Attributes:
        by_h, by_c: (m, H), by the children's states.
        by_x: (q, G), by what was read of the inputs.
        sums: for each of the `weights` its product's derivative (n, rows) and what was multiplied, (n, columns).
    """

    by_h: Tensor
    by_c: Tensor
    by_x: Tensor
    sums: tuple[tuple[Tensor, Tensor], ...]


class OverLevels(ABC):
    """All levels of a forest, and their derivative."""

    @abstractmethod
    def ahead(self, forest: Forest, h: Tensor, c: Tensor, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Fills the rows of inner nodes in h and c, (nodes, H) in the order of the levels; returns what `back` needs.

        Args:
            forest: the trees.
            h, c: of which the rows of leaves are there.
            x: of `inputs`, (inner nodes, G) or (1, G).
            weights: the `weights` of the composition.
        """

    @abstractmethod
    def back(
        self,
        forest: Forest,
        kept: Sequence[Tensor],
        h: Tensor,
        c: Tensor,
        by_h: Tensor,
        by_c: Tensor,
        x: Tensor,
        weights: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """The derivatives by x and by each of the weights.

        Args:
            forest, h, c, x, weights: of `ahead`.
            kept: what that returned.
            by_h: (nodes, H), what comes from outputs; becomes the derivatives by the states.
            by_c: the same by c, of which the rows of roots are there.
        """


class WrittenOut(Composition):
    """A composition of a state (h, c) that also computes a level without PyTorch's graph, and then its derivative.

    `combine_by` says the same with the graph: it runs where one differentiates twice or in other ways.
    """

    @abstractmethod
    def weights(self) -> Sequence[Tensor]:
        """The matrices (rows, columns) that states are multiplied with, made once for all levels."""

    def over_levels(self, forest: Forest, h: Tensor, c: Tensor, x: Tensor, weights: Sequence[Tensor]) -> OverLevels:
        """What computes all levels of a forest, from what `OverLevels.ahead` takes: by default, each in PyTorch."""
        return EachLevel(self)

    @abstractmethod
    def combine_by(self, weights: Sequence[Tensor], x: Tensor, children: Children) -> State:
        """`combine`, given the matrices."""

    def combine(self, x: Tensor, children: Children) -> State:
        """The states of nodes with children."""
        return self.combine_by(self.weights(), x, children)

    @abstractmethod
    def ahead(
        self, level: Level, x: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """h and c (q, H) of a level's inner nodes, and what `back` needs.

        Args:
            level: which child is whose.
            x: of `inputs`, (q, G) or (1, G).
            h, c: of the children, (m, H).
            weights: the `weights`.
        """

    @abstractmethod
    def back(
        self,
        level: Level,
        kept: Sequence[Tensor],
        h: Tensor,
        c: Tensor,
        by_h: Tensor,
        by_c: Tensor,
        weights: Sequence[Tensor],
    ) -> Above:
        """The derivative of `ahead`, of the same h and c; what comes from above, (q, H), may be overwritten."""


def times(values: Tensor, weight: Tensor, added: Tensor | None = None) -> Tensor:
    """values Wᵀ + added, computed as W is: shortened products of what is not."""
    if weight.dtype != values.dtype:
        made = (values.to(weight.dtype) @ weight.t()).to(values.dtype)
        return made if added is None else made.add_(added)
    return values @ weight.t() if added is None else torch.addmm(added, values, weight.t())


def transformed() -> bool:
    """Whether PyTorch differentiates otherwise than by `backward`: forward, or in `torch.func`."""
    return forward_ad._current_level >= 0 or bool(torch._C._are_functorch_transforms_active())


Again = Callable[[Tensor, Tensor, Tensor, Sequence[Tensor]], tuple[Tensor, Tensor, Tensor]]
"""From leaves' h and c, x and the matrices to the outputs and the roots' h and c, with the graph."""


def run(
    cell: WrittenOut, forest: Forest, again: Again, h: Tensor, c: Tensor, x: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """All levels: the outputs (nodes, H) in the order of the nodes, and h and c of the roots.

    Args:
        cell, forest: what runs over what.
        again: the same with the graph.
        h, c: of all leaves, (leaves, H), in the order of the levels.
        x: of `inputs`, for all inner nodes in that order, (inner nodes, G), or (1, G).
        weights: the cell's.
    """
    made: tuple[Tensor, Tensor, Tensor] = _Run.apply(cell, forest, again, h, c, x, *weights)
    return made


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cell: WrittenOut, forest: Forest, again: Again, *given: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        leaf_h, leaf_c, x, *weights = given
        h, c = (of.new_empty(forest.nodes, of.shape[1]).index_copy_(0, forest.leaf_rows, of) for of in (leaf_h, leaf_c))
        way = cell.over_levels(forest, h, c, x, weights)
        ctx.save_for_backward(*given, h, c, *way.ahead(forest, h, c, x, weights))
        ctx.way, ctx.forest, ctx.again, ctx.weights = way, forest, again, len(weights)
        return h.index_select(0, forest.places), h[: forest.trees].clone(), c[: forest.trees].clone()

    @staticmethod
    def backward(ctx: Any, by_ys: Tensor, by_h: Tensor, by_c: Tensor) -> tuple[Tensor | None, ...]:
        forest: Forest = ctx.forest
        leaf_h, leaf_c, x, *rest = ctx.saved_tensors
        weights, (h, c, *kept) = rest[: ctx.weights], rest[ctx.weights :]
        if torch.is_grad_enabled():  # to be differentiated again
            given = (leaf_h, leaf_c, x, *weights)
            wanted = [tensor for tensor, needed in zip(given, ctx.needs_input_grad[3:], strict=True) if needed]
            made = ctx.again(leaf_h, leaf_c, x, weights)
            grads = iter(
                torch.autograd.grad(made, wanted, (by_ys, by_h, by_c), create_graph=True, materialize_grads=True)
            )
            return None, None, None, *(next(grads) if needed else None for needed in ctx.needs_input_grad[3:])
        all_h = by_ys.index_select(0, forest.by_level)
        all_c = torch.empty_like(all_h)
        all_h[: forest.trees] += by_h
        all_c[: forest.trees] = by_c
        by_x, by_weights = ctx.way.back(forest, kept, h, c, all_h, all_c, x, weights)
        by_leaves = (rows.index_select(0, forest.leaf_rows) for rows in (all_h, all_c))
        return None, None, None, *by_leaves, by_x, *by_weights


class EachLevel(OverLevels):
    """Level by level in PyTorch, by a composition's `ahead` and `back`."""

    def __init__(self, cell: WrittenOut):
        self._cell = cell

    def ahead(self, forest: Forest, h: Tensor, c: Tensor, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """From the deepest level up; what the levels keep, as many of each."""
        last, last_inner = forest.nodes, forest.inner
        kept: list[Tensor] = []
        for level in reversed(forest.levels):
            first = last - level.nodes
            if level.inner:
                rows = x[last_inner - level.inner : last_inner] if len(x) > 1 else x
                below = slice(last, last + level.below)
                *new, needed = self._cell.ahead(level, rows, h[below], c[below], weights)
                for of, values in zip((h, c), new, strict=True):
                    of[first:last].index_copy_(0, level.inner_rows, values)
                kept += needed
            last, last_inner = first, last_inner - level.inner
        return tuple(kept)

    def back(
        self,
        forest: Forest,
        kept: Sequence[Tensor],
        h: Tensor,
        c: Tensor,
        by_h: Tensor,
        by_c: Tensor,
        x: Tensor,
        weights: Sequence[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """From the roots down."""
        levels = [level for level in forest.levels if level.inner]
        each = len(kept) // max(1, len(levels))
        found: list[Above] = []
        first = 0
        for place, level in zip(range(len(levels) - 1, -1, -1), levels, strict=True):  # without one only the last is
            last = first + level.nodes
            below = slice(last, last + level.below)
            of_h, of_c = (rows[first:last].index_select(0, level.inner_rows) for rows in (by_h, by_c))
            needed = kept[place * each : (place + 1) * each]
            above = self._cell.back(level, needed, h[below], c[below], of_h, of_c, weights)
            by_h[below] += above.by_h
            by_c[below] = above.by_c
            found.append(above)
            first = last
        return _by_x(found, x), _by_weights(found, weights)


def _by_x(found: Sequence[Above], x: Tensor) -> Tensor:
    if not found:
        return torch.zeros_like(x)
    rows = torch.cat([above.by_x for above in found])
    return rows if len(x) == len(rows) else rows.sum(0, keepdim=True)


def _by_weights(found: Sequence[Above], weights: Sequence[Tensor]) -> list[Tensor]:
    """Of each matrix, one product over all levels."""
    if not found:
        return [torch.zeros_like(weight) for weight in weights]

    def over_levels(weight: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        by, values = (torch.cat(parts).to(weight.dtype) for parts in zip(*pairs, strict=True))
        return by.t() @ values

    return [*map(over_levels, weights, zip(*(above.sums for above in found), strict=True))]
