"""A layer that passes a part of its input on to the layer above."""

from __future__ import annotations

import torch
from torch import Tensor

from everstep.cell import Cell, check_size, scan
from everstep.state import State
from everstep.wirings.cell_wrapper import CellWrapper
from everstep.wirings.stack import zero_padding
from everstep.wirings.time_distributed import check_cell


class Passing(CellWrapper):
    """y_t = [cell(x_t) (+ the first features of x_t); the last `size` features of x_t].

    So a stack hands a context to all its layers. With `Attend` below, the decoders of GNMT (Wu 2016, "Google's neural
    machine translation system"), whose first layer's attention feeds all layers: the context is read with that layer's
    state before the step; or, as in its second version in the code of tensorflow/nmt (2017), with its output, so that
    nothing read goes back and each layer is one scan.

    >>> H, M = 5, 6
    >>> upper = [Passing(es.LSTM(H + M, H), M, residual=True) for _ in range(2)]
    >>> first = es.Attend(es.LSTM(3 + M, H), es.AdditiveAttention(H, M), output="both")
    >>> second = es.Attend(es.LSTM(3, H), es.AdditiveAttention(H, M), "after", output="both")
    >>> decoder, state = es.Stack(second, *upper), second.start(torch.zeros(2, 7, M))
    >>> rest = [cell.initial_state(2, torch.zeros(1)) for cell in upper]
    >>> ys, _ = decoder(torch.zeros(2, 9, 3), (state, *rest))
    >>> ys.shape
    torch.Size([2, 9, 11])

    Args:
        cell: reads all of x_t.
        size: how many of the last features are passed on.
        residual: add the first features of x_t, as many as the cell gives, to its output.

    Raises:
        TypeError: an acausal layer.
        ValueError: a size below 1, or more features passed on or added than x_t has.
    """

    def __init__(self, cell: Cell, size: int, *, residual: bool = False):
        check_cell("Passing", cell)
        first = cell.output_size if residual else 0
        if first + check_size(self, "size", size) > cell.input_size:
            parts = f"adds {first} and passes on {size}" if residual else f"passes on {size}"
            raise ValueError(
                f"Passing: it {parts} features of its input, but {type(cell).__name__} has input_size {cell.input_size}"
            )
        super().__init__(cell.input_size, cell.output_size + size)
        self.cell, self.size, self.residual = cell, size, residual

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The cell's output, and what is passed on."""
        y, state = self.cell.step(x, state)
        return self._joined(x, y), state

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """The cell over the whole sequence, then what is passed on; padding stays zero."""
        ys, state = scan(self.cell, xs, state, lengths=lengths, resets=resets, backend=backend)
        return self._joined(zero_padding(xs, lengths), ys), state

    def _joined(self, x: Tensor, y: Tensor) -> Tensor:
        if self.residual:
            y = y + x[..., : self.cell.output_size]
        return torch.cat([y, x[..., -self.size :]], -1)

    def extra_repr(self) -> str:
        return f"size={self.size}, residual={self.residual}"
