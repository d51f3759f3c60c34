"""Compositions of a state (h, c) whose derivative is written out: all levels are one node of PyTorch's graph.

Levels are small: beside the products, what nodes of the graph cost and what its operations copy is a third of the time.
"""

from __future__ import annotations

from abc import abstractmethod
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


class WrittenOut(Composition):
    """A composition of a state (h, c) that also computes a level without PyTorch's graph, and then its derivative.

    `combine_by` says the same with the graph: it runs where one differentiates twice or in other ways.
    """

    @abstractmethod
    def weights(self) -> Sequence[Tensor]:
        """The matrices (rows, columns) that states are multiplied with, made once for all levels."""

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
        last, last_inner, kept = forest.nodes, forest.inner, []
        for level in reversed(forest.levels):
            first = last - level.nodes
            if level.inner:
                rows = x[last_inner - level.inner : last_inner] if len(x) > 1 else x
                below = slice(last, last + level.below)
                *new, needed = cell.ahead(level, rows, h[below], c[below], weights)
                for of, values in zip((h, c), new, strict=True):
                    of[first:last].index_copy_(0, level.inner_rows, values)
                kept.append(needed)
            last, last_inner = first, last_inner - level.inner
        ctx.save_for_backward(*given, h, c, *(tensor for some in kept for tensor in some))
        ctx.cell, ctx.forest, ctx.again, ctx.weights, ctx.kept = cell, forest, again, len(weights), [*map(len, kept)]
        return h.index_select(0, forest.places), h[: forest.trees].clone(), c[: forest.trees].clone()

    @staticmethod
    def backward(ctx: Any, by_ys: Tensor, by_h: Tensor, by_c: Tensor) -> tuple[Tensor | None, ...]:
        cell, forest = ctx.cell, ctx.forest
        leaf_h, leaf_c, x, *rest = ctx.saved_tensors
        weights, (h, c, *rest) = rest[: ctx.weights], rest[ctx.weights :]
        if torch.is_grad_enabled():  # to be differentiated again
            given = (leaf_h, leaf_c, x, *weights)
            wanted = [tensor for tensor, needed in zip(given, ctx.needs_input_grad[3:], strict=True) if needed]
            made = ctx.again(leaf_h, leaf_c, x, weights)
            grads = iter(
                torch.autograd.grad(made, wanted, (by_ys, by_h, by_c), create_graph=True, materialize_grads=True)
            )
            return None, None, None, *(next(grads) if needed else None for needed in ctx.needs_input_grad[3:])
        needed = iter(rest)
        kept = [[next(needed) for _ in range(number)] for number in ctx.kept]
        all_h = by_ys.index_select(0, forest.by_level)
        all_c = torch.empty_like(all_h)
        all_h[: forest.trees] += by_h
        all_c[: forest.trees] = by_c
        found: list[Above] = []
        first = 0
        for level in forest.levels:
            last = first + level.nodes
            if level.inner:
                below = slice(last, last + level.below)
                of = (rows[first:last].index_select(0, level.inner_rows) for rows in (all_h, all_c))
                above = cell.back(level, kept.pop(), h[below], c[below], *of, weights)
                all_h[below] += above.by_h
                all_c[below] = above.by_c
                found.append(above)
            first = last
        by_leaves = (rows.index_select(0, forest.leaf_rows) for rows in (all_h, all_c))
        return None, None, None, *by_leaves, _by_x(found, x), *_by_weights(found, weights)


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
