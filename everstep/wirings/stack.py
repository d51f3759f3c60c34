"""Stacks of layers, and shortcuts past them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from everstep.cell import Cell, Layer, scan
from everstep.state import State, valid
from everstep.wirings.cell_wrapper import CellWrapper
from everstep.wirings.memoryless import Memoryless
from everstep.wirings.time_distributed import as_layers, check_cell


class Identity(Memoryless):
    """y_t = x_t, with no state and no parameters."""

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """y = x."""
        return x, state

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """All steps at once."""
        return zero_padding(xs, lengths), state


class Stacked(Layer):
    """What `EncoderStack` and `Stack` share: layers on top of one another, whose state is the tuple of theirs."""

    def __init__(self, *given: Layer | nn.Module):
        nn.Module.__init__(self)
        layers = as_layers(type(self).__name__, given)
        _check_chain(self, layers)
        self.layers = nn.ModuleList(layers)
        self.input_size, self.output_size = layers[0].input_size, layers[-1].output_size

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The tuple of the layers' initial states."""
        return tuple(layer.initial_state(batch, like) for layer in self._layers())

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """The whole sequence through one layer after another."""
        final = []
        for layer, start in zip(self._layers(), state, strict=True):
            xs, end = scan(layer, xs, start, lengths=lengths, resets=resets, backend=backend)
            final.append(end)
        return xs, tuple(final)

    def sublayers(self) -> Sequence[Layer]:
        """The layers."""
        return self._layers()

    def _layers(self) -> Sequence[Layer]:
        return list(self.layers)  # type: ignore[arg-type]


class EncoderStack(Stacked):
    """Layers on top of one another, some of them acausal; the state is the tuple of theirs.

    Other modules of PyTorch (`Linear`, `LayerNorm`, `ReLU`, …) may stand among them; they run at every step by itself
    (see `TimeDistributed`), and have the state `()`.

    >>> import torch
    >>> from everstep import GRU, LSTM, Bidirectional
    >>> layer = EncoderStack(Bidirectional(LSTM(3, 4), LSTM(3, 4)), GRU(8, 5))
    >>> layer(torch.zeros(2, 7, 3))[0].shape
    torch.Size([2, 7, 5])

    Raises:
        TypeError: what is neither a layer nor a module for single steps.
        ValueError: no layer, or a layer whose input_size is not the output_size below it.
    """


class Stack(Stacked, Cell):
    """Cells on top of one another: a cell again, whose state is the tuple of theirs.

    Other modules of PyTorch may be among them, as in `EncoderStack`.

    >>> import torch
    >>> from everstep import LSTM, Dropout
    >>> cell = Stack(LSTM(3, 8), Dropout(8, 0.5), LSTM(8, 8))
    >>> ys, (lower, _, upper) = cell(torch.zeros(2, 7, 3))

    Raises:
        TypeError: an acausal layer (stack those with `EncoderStack`), or an argument that is not a layer.
        ValueError: no cell, or a cell whose input_size is not the output_size below it.
    """

    def __init__(self, *cells: Cell | nn.Module):
        acausal = [type(cell).__name__ for cell in cells if isinstance(cell, Layer) and not isinstance(cell, Cell)]
        if acausal:
            raise TypeError(f"Stack: {acausal[0]} is no Cell (it cannot be stepped); use EncoderStack for such layers")
        Stacked.__init__(self, *cells)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of every cell, from the lowest up."""
        new = []
        for cell, old in zip(self._layers(), state, strict=True):
            assert isinstance(cell, Cell)
            x, end = cell.step(x, old)
            new.append(end)
        return x, tuple(new)


class Residual(CellWrapper):
    """y_t = x_t + cell(x_t): a shortcut past a cell whose input and output sizes are equal (He 2016; in GNMT, Wu 2016).

    >>> import torch
    >>> from everstep import GRU
    >>> Residual(GRU(5, 5))(torch.zeros(2, 7, 5))[0].shape
    torch.Size([2, 7, 5])

    Raises:
        ValueError: the sizes differ.
    """

    def __init__(self, cell: Cell):
        check_cell("Residual", cell)
        if cell.input_size != cell.output_size:
            raise ValueError(
                f"Residual: input and output sizes should be equal, but {type(cell).__name__} has "
                f"{cell.input_size} and {cell.output_size}"
            )
        super().__init__(cell.input_size, cell.output_size)
        self.cell = cell

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x + the cell's output."""
        y, state = self.cell.step(x, state)
        return x + y, state

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """The cell over the whole sequence, then one sum; padding stays zero."""
        ys, state = scan(self.cell, xs, state, lengths=lengths, resets=resets, backend=backend)
        return ys + zero_padding(xs, lengths), state


def zero_padding(xs: Tensor, lengths: Tensor | None) -> Tensor:
    """`xs` (batch, time, features) with zeros at and beyond each row's length."""
    if lengths is None:
        return xs
    return torch.where(valid(lengths, xs.shape[1])[..., None], xs, 0)


def _check_chain(who: Layer, layers: Sequence[Layer]) -> None:
    if not layers:
        raise ValueError(f"{type(who).__name__}: at least one layer is needed")
    for place, (below, above) in enumerate(pairwise(layers)):
        if below.output_size != above.input_size:
            raise ValueError(
                f"{type(who).__name__}: layer {place} ({type(below).__name__}) gives {below.output_size} features, but "
                f"layer {place + 1} ({type(above).__name__}) takes {above.input_size}"
            )
