"""Networks over trees: from the leaves to the roots, and from the roots to the leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from everstep.cell import Cell
from everstep.state import State, leaves, like_nest, map_state, select
from everstep.trees.composition import Children
from everstep.trees.forest import Forest, Level
from everstep.trees.written_out import WrittenOut, run, transformed
from everstep.wirings.composed import Composed, split_rows


class Tree(Composed):
    """A composition over batches of different trees, from the leaves to the roots, level by level.

    All leaves are computed in one call, and so are the input terms of inner nodes. Then each level is one call of the
    composition's `combine` for the inner nodes of all trees at that depth, the deepest level first.

    >>> from everstep.data import parse_tree
    >>> trees = [parse_tree("(3 (2 a) (4 (3 lovely) (2 film)))"), parse_tree("(2 hm)")]
    >>> network = Tree(es.NaryTreeLSTM(6, 5))
    >>> ys, (h, c) = network(torch.zeros(4, 6), es.Forest.of(trees))
    >>> ys.shape, h.shape  # of all nodes, and of the roots
    (torch.Size([6, 5]), torch.Size([2, 5]))

    The result for a tree does not depend on the other trees.

    Args:
        cell: computes a node's state from its input and its children's states.

    Attributes:
        input_size: features D of each x.
        output_size: features of each node's output.

    Raises:
        TypeError: `cell` is not a composition.
    """

    def forward(self, xs: Tensor, forest: Forest) -> tuple[Tensor, State]:
        """The outputs of all nodes, and the states of the roots.

        Args:
            xs: (M, D), the inputs of the nodes that have one, in the order of the nodes.
            forest: the trees, on the device of xs.

        Returns:
            The outputs (nodes, output_size) in the order of the nodes, and a nest of (trees, …).

        Raises:
            ValueError: xs of another shape, a node with more children than the composition takes, or an inner node with
                an input that the composition does not read.
        """
        of_leaves, rows = self._given(xs, forest)
        of_inner = self._inputs(rows)
        if isinstance(self.cell, WrittenOut) and not transformed():
            return self._written_out(self.cell, forest, of_leaves, of_inner)
        return self._levels(forest, self.cell.combine, of_leaves, of_inner)

    def _written_out(
        self, cell: WrittenOut, forest: Forest, of_leaves: State, of_inner: Tensor
    ) -> tuple[Tensor, State]:
        """All levels as one node of the graph."""
        weights, kind = cell.weights(), of_inner.device.type
        if torch.is_autocast_enabled(kind):  # products are in low precision, states are not
            weights = [weight.to(torch.get_autocast_dtype(kind)) for weight in weights]

        def again(h: Tensor, c: Tensor, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            combine = partial(cell.combine_by, weights)
            ys, (h, c) = self._levels(forest, combine, like_nest((h, c), of_leaves), x)
            return ys, h, c

        h, c = of_leaves
        ys, *roots = run(cell, forest, again, h, c, of_inner, weights)
        return ys, like_nest(tuple(roots), of_leaves)

    def _levels(
        self, forest: Forest, combine: Callable[[Any, Children], State], of_leaves: State, of_inner: State
    ) -> tuple[Tensor, State]:
        """All levels, from the deepest, given all leaves and the input terms of all inner nodes."""
        below = split_rows(of_leaves, [level.leaves for level in forest.levels])
        same = not forest.inner_fed  # one row for all inner nodes
        rows = [of_inner] * len(below) if same else split_rows(of_inner, [level.inner for level in forest.levels])
        like = leaves(of_leaves)[0][1]
        state: State = None
        ys: list[Tensor] = []
        for level in reversed(forest.levels):
            leaf, x = below.pop(), rows.pop()
            if level.inner:
                made = map_state(lambda part: part.to(like.dtype), combine(x, Children(state, level)))
                state = _merged(leaf, made, level)
            else:
                state = leaf
            ys.append(leaves(state)[0][1])
        return torch.cat(ys[::-1]).index_select(0, forest.places), state


class TopDown(nn.Module):
    """A sequence cell run from the roots to the leaves: each node continues from its parent's state, a root from the
    initial state. So a node's output is that of the cell on the path to it.

    y, s = cell.step(x, s of the parent). On top of `Tree`, with x its outputs, every node sees the whole tree.

    >>> from everstep.data import parse_tree
    >>> forest = es.Forest.of([parse_tree("(3 (2 a) (4 (3 lovely) (2 film)))"), parse_tree("(2 hm)")])
    >>> up, down = Tree(es.NaryTreeLSTM(6, 5)), TopDown(es.GRU(5, 4))
    >>> ys, _ = up(torch.zeros(4, 6), forest)
    >>> down(ys, forest).shape
    torch.Size([6, 4])

    Args:
        cell: any `Cell`.

    Attributes:
        input_size: features D of each x.
        output_size: features of each node's output.

    Raises:
        TypeError: `cell` is not a Cell.
    """

    def __init__(self, cell: Cell):
        super().__init__()
        if not isinstance(cell, Cell):
            raise TypeError(f"TopDown: expected a Cell, but got {type(cell).__name__}")
        self.cell = cell
        self.input_size, self.output_size = cell.input_size, cell.output_size

    def forward(self, xs: Tensor, forest: Forest) -> Tensor:
        """The outputs of all nodes, (nodes, output_size), in the order of the nodes.

        Args:
            xs: (nodes, D), an input for every node.
            forest: the trees, on the device of xs.

        Raises:
            ValueError: xs of another shape or on another device.
        """
        if xs.shape != (forest.nodes, self.input_size):
            raise ValueError(
                f"TopDown: xs should be ({forest.nodes}, {self.input_size}), a row for each node, but is "
                f"{tuple(xs.shape)}"
            )
        if xs.device != forest.places.device:
            raise ValueError(f"TopDown: the forest should be on {xs.device}, as xs, but is on {forest.places.device}")
        sizes = [level.leaves + level.inner for level in forest.levels]
        state = self.cell.initial_state(sizes[0], xs)
        ys: list[Tensor] = []
        for level, x in zip(forest.levels, xs.index_select(0, forest.by_level).split(sizes), strict=True):
            y, state = self.cell.step(x, select(state, level.above) if ys else state)
            ys.append(y)
        return torch.cat(ys).index_select(0, forest.places)


def _merged(of_leaves: State, of_inner: State, level: Level) -> State:
    """The states of a level's nodes in their order."""
    order = level.order
    if order is None:
        return of_inner
    return map_state(lambda a, b: torch.cat([a, b]).index_select(0, order), of_leaves, of_inner)
