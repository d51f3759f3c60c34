"""What every order of running a composition over trees shares: checks, the leaves, and the inputs of inner nodes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everstep.cell import Cell
from everstep.state import State, leaves, map_state, unflatten
from everstep.trees.composition import Composition
from everstep.trees.forest import Forest


class Composed(nn.Module):
    """A composition over a `Forest`; a subclass says in which order nodes are computed.

    Args:
        cell: the composition.

    Raises:
        TypeError: `cell` is not a composition.
    """

    def __init__(self, cell: Composition):
        super().__init__()
        given: object = cell
        if not isinstance(given, Composition):
            who = type(self).__name__
            hint = f"; for a cell of sequences, {who}(ChildSum(cell))" if isinstance(given, Cell) else ""
            raise TypeError(f"{who}: expected a Composition, but got {type(cell).__name__}{hint}")
        self.cell = cell
        self.input_size, self.output_size = cell.input_size, cell.output_size

    def _given(self, xs: Tensor, forest: Forest) -> tuple[State, Tensor]:
        """The states of all leaves, and the inputs of all inner nodes, both in the order of the levels; the latter one
        row of zeros if no inner node has an input."""
        self._check(xs, forest)
        if forest.lacking:
            xs = torch.cat([xs, xs.new_zeros(1, self.input_size)])
        of_leaves = self._leaves(xs.index_select(0, forest.leaf_inputs))
        of_inner = xs.index_select(0, forest.inner_inputs) if forest.inner_fed else xs.new_zeros(1, self.input_size)
        return of_leaves, of_inner

    def _leaves(self, xs: Tensor) -> State:
        """The states of leaves, in the dtype of their inputs whatever that of products."""
        return map_state(lambda leaf: leaf.to(xs.dtype), self.cell.leaf(xs))

    def _inputs(self, xs: Tensor) -> State:
        """What `combine` reads of the inputs of inner nodes; None if it reads none."""
        if not self.cell.reads_inner:
            return None
        return map_state(lambda leaf: leaf.to(xs.dtype), self.cell.inputs(xs))

    def _check(self, xs: Tensor, forest: Forest) -> None:
        who = f"{type(self).__name__}({type(self.cell).__name__})"
        if xs.shape != (forest.inputs, self.input_size):
            raise ValueError(
                f"{who}: xs should be ({forest.inputs}, {self.input_size}), a row for each node that has an input, but "
                f"is {tuple(xs.shape)}"
            )
        if xs.device != forest.places.device:
            raise ValueError(f"{who}: the forest should be on {xs.device}, as xs, but is on {forest.places.device}")
        if told := self.cell.refuses(forest.fewest_children, forest.most_children, forest.inner_fed):
            raise ValueError(f"{who}: {told}")


def split_rows(nest: State, sizes: list[int]) -> list[State]:
    """Every leaf of a nest split into chunks of these numbers of rows."""
    parts = [leaf.split(sizes) for _, leaf in leaves(nest)]
    return [unflatten(nest, some) for some in zip(*parts, strict=True)]
