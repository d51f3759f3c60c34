"""Any cell of sequences, over trees."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from everstep.cell import Cell
from everstep.state import State, map_state
from everstep.trees.composition import Children, Composition


class ChildSum(Composition):
    """A cell of sequences as a composition: it steps from the sum of the children's states; at a leaf, from its initial
    state. On a chain it is the cell.

    y, s = cell.step(x, Σ_k s_k), leaf by leaf of the state.

    >>> from everstep.data import parse_tree
    >>> tree = es.Tree(ChildSum(es.GRU(3, 5)))
    >>> ys, (y, h) = tree(torch.zeros(3, 3), es.Forest.of([parse_tree("(S (A x) (B y) (C z))")]))
    >>> ys.shape, h.shape
    (torch.Size([4, 5]), torch.Size([1, 5]))

    The state is the output of the node and the cell's state.

    Args:
        cell: any `Cell`.

    Raises:
        TypeError: what is no cell.

    Known limit: of a cell that carries its state on (h = z ∘ s + …), sums of many children grow.
    """

    def __init__(self, cell: Cell):
        if not isinstance(cell, Cell):
            raise TypeError(f"ChildSum: expected a Cell, but got {type(cell).__name__}")
        super().__init__(cell.input_size, cell.output_size)
        self.cell = cell

    def leaf(self, x: Tensor) -> State:
        """The first step."""
        return self.cell.step(x, self.cell.initial_state(x.shape[0], x))

    def combine(self, x: Any, children: Children) -> State:
        """A step from the sum."""
        _, states = children.states
        return self.cell.step(x.expand(children.level.inner, -1), map_state(children.sum, states))
