"""Deep recurrent networks: deep input, output and transition, and skip connections past layers.

The three of Pascanu, Gulcehre, Cho & Bengio 2014 ("How to construct deep recurrent neural networks"):

>>> from everstep import DTRNN, EncoderStack, FeedForward, LSTM, Bidirectional, Residual, Stack
>>> deep_input = Stack(FeedForward(3, 8, 8), LSTM(8, 5))
>>> deep_transition = DTRNN(3, 5, depth=3)
>>> deep_output = Stack(LSTM(3, 5), FeedForward(5, 8, 8))

And the encoder of GNMT (Wu 2016), with a bidirectional bottom layer and shortcuts from the third layer on:

>>> upper = [LSTM(10, 5), *(Residual(LSTM(5, 5)) for _ in range(6))]
>>> encoder = EncoderStack(Bidirectional(LSTM(3, 5), LSTM(3, 5)), *upper)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import Cell, Layer, check_size, scan
from everstep.cells.parametric import Parametric
from everstep.state import State, check_nest
from everstep.wirings.memoryless import Memoryless
from everstep.wirings.stack import zero_padding
from everstep.wirings.time_distributed import check_cell

Activation = Callable[[Tensor], Tensor]


class FeedForward(Memoryless):
    """A network without memory, the same at every step: z_0 = x_t, z_l = φ(W_l z_{l-1} + b_l), y_t = z_L.

    Below a cell it gives a deep input-to-hidden function, above a cell a deep hidden-to-output function (Pascanu 2014,
    "How to construct deep recurrent neural networks"). All steps are computed in one batch.

    >>> from everstep import GRU, Stack
    >>> cell = Stack(FeedForward(3, 8, 8), GRU(8, 5), FeedForward(5, 2, linear_output=True))
    >>> cell(torch.zeros(2, 7, 3))[0].shape
    torch.Size([2, 7, 2])

    Args:
        input_size: features of x_t.
        *sizes: features of z_1 … z_L.
        activation: φ, an elementwise function or module.
        linear_output: leave out the last φ.
        device, dtype: of the parameters.

    Raises:
        ValueError: no layer, or a size below 1.
    """

    def __init__(
        self,
        input_size: int,
        *sizes: int,
        activation: Activation = torch.tanh,
        linear_output: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if not sizes:
            raise ValueError("FeedForward: the size of at least one layer is needed beside input_size")
        widths = [input_size, *(check_size(self, f"the size of layer {n}", size) for n, size in enumerate(sizes, 1))]
        super().__init__(input_size, sizes[-1])
        self.layers = nn.ModuleList(nn.Linear(a, b, device=device, dtype=dtype) for a, b in pairwise(widths))
        self.activation, self.linear_output = activation, linear_output

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        return self._apply_layers(x), state

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """All steps at once."""
        # before, so that a NaN in the padding reaches no gradient; after, because biases make zeros nonzero
        return zero_padding(self._apply_layers(zero_padding(xs, lengths)), lengths), state

    def _apply_layers(self, z: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers, 1):
            z = layer(z)
            if place < len(self.layers) or not self.linear_output:
                z = self.activation(z)
        return z

    def extra_repr(self) -> str:
        name = getattr(self.activation, "__name__", self.activation)
        return f"activation={name}, linear_output={self.linear_output}"


class DTRNN(Parametric):
    """An RNN whose transition is deep, DT-RNN (Pascanu 2014, "How to construct deep recurrent neural networks").

    z_1 = φ(W x_t + U_1 h_{t-1} + b_1), z_l = φ(U_l z_{l-1} + b_l), h_t = z_L; with L = `depth`. With `shortcut`,
    DT(S)-RNN, S h_{t-1} is added inside the last φ: a path through time with one φ a step instead of L. For L = 2 that
    is the authors' code (GroundHog, groundhog/layers/rec_layers.py); for larger L, theirs has a shortcut to every layer
    but the first.

    >>> ys, h = DTRNN(3, 5, depth=3, shortcut=True)(torch.zeros(2, 7, 3))

    Args:
        input_size, hidden_size: features D of x_t and H of h_t and every z_l.
        depth: layers L within a step; at least 2.
        shortcut: whether h_{t-1} also reaches the last layer.
        activation: φ.
        **how: bias, device, dtype.

    Parameters: `weight_ih` (H, D); `weight_hh` (L·H, H) and `bias_hh` (L·H), layer after layer; `weight_skip` (H, H)
    with a shortcut.

    Known limits: each step has L sequential products; without the shortcut gradients pass through L times as many φ.

    Raises:
        ValueError: a size below 1, or a depth below 2.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_hh: Tensor | None
    weight_skip: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        depth: int = 2,
        shortcut: bool = False,
        activation: Activation = torch.tanh,
        **how: Any,
    ):
        super().__init__(input_size, hidden_size)
        if check_size(self, "depth", depth) < 2:
            raise ValueError("DTRNN: depth should be at least 2; a transition of depth 1 is that of RNN")
        self.depth, self.shortcut, self.activation = depth, shortcut, activation
        rows = depth * hidden_size
        shapes = {"weight_ih": (hidden_size, input_size), "weight_hh": (rows, hidden_size), "bias_hh": (rows,)}
        self.declare({**shapes, **({"weight_skip": (hidden_size, hidden_size)} if shortcut else {})}, **how)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The equation."""
        biases = [None] * self.depth if self.bias_hh is None else self.bias_hh.chunk(self.depth)
        z = state
        for layer, (weight, bias) in enumerate(zip(self.weight_hh.chunk(self.depth), biases, strict=True), 1):
            a = F.linear(z, weight, bias)
            if layer == 1:
                a = a + F.linear(x, self.weight_ih)
            if layer == self.depth and self.shortcut:
                a = a + F.linear(state, self.weight_skip)
            z = self.activation(a)
        return z, z

    def extra_repr(self) -> str:
        name = getattr(self.activation, "__name__", self.activation)
        return f"{super().extra_repr()}, depth={self.depth}, shortcut={self.shortcut}, activation={name}"


class DeepTransition(Cell):
    """Several cells in sequence within one step, each passing its state to the next (Miceli Barone 2017).

    y^1, s^1 = cell_1(x_t, s_{t-1}); y^l, s^l = cell_l(0, s^{l-1}); y_t = y^L, s_t = s^L. ("Deep architectures for
    neural machine translation"; with RHN cells of depth 1 it is the RHN of depth L, Zilly 2017.)

    >>> from everstep import GRU
    >>> ys, h = DeepTransition(GRU(3, 5), GRU(1, 5), GRU(1, 5))(torch.zeros(2, 7, 3))

    Args:
        *cells: the first reads x_t. The others read zeros, whatever their input_size; 1 is enough.

    Known limits: the input weights of all cells but the first have no effect, and their gradients are zero. Put
    random masks (`Dropout`, `Zoneout`) around the whole, since the cells inside are only stepped.

    Raises:
        ValueError: no cell, or a cell whose state differs in shape from that of the first.
        TypeError: an argument that is not a Cell, or a cell whose state is a different nest from that of the first.
    """

    def __init__(self, *cells: Cell):
        cells = _checked_cells("DeepTransition", cells)
        super().__init__(cells[0].input_size, cells[-1].output_size)
        starts = [cell.initial_state(1, _like(cell)) for cell in cells]
        for place, start in enumerate(starts):
            check_nest(f"DeepTransition: cell {place} ({type(cells[place]).__name__})", start, starts[0])
        self.cells = nn.ModuleList(cells)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The first cell's."""
        return self._cells()[0].initial_state(batch, like)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The equation."""
        first, *others = self._cells()
        y, state = first.step(x, state)
        for cell in others:
            y, state = cell.step(x.new_zeros(len(x), cell.input_size), state)
        return y, state

    def _cells(self) -> Sequence[Cell]:
        return list(self.cells)  # type: ignore[arg-type]


class SkipStack(Cell):
    """Stacked cells with skip connections: x reaches every cell, and every cell reaches the output (Graves 2013).

    h^1 = cell_1(x_t), h^n = cell_n([x_t; h^{n-1}]), y_t = [h^1; …; h^N] ("Generating sequences with recurrent neural
    networks"). The state is the tuple of the cells' states.

    >>> from everstep import LSTM
    >>> SkipStack(LSTM(3, 4), LSTM(3 + 4, 5), LSTM(3 + 5, 6))(torch.zeros(2, 7, 3))[0].shape
    torch.Size([2, 7, 15])

    Raises:
        ValueError: no cell, or a cell whose input_size is not the size of x plus the output_size of the cell below.
        TypeError: an argument that is not a Cell.
    """

    def __init__(self, *cells: Cell):
        cells = _checked_cells("SkipStack", cells)
        super().__init__(cells[0].input_size, sum(cell.output_size for cell in cells))
        for place, (below, above) in enumerate(pairwise(cells), 1):
            if above.input_size != self.input_size + below.output_size:
                raise ValueError(
                    f"SkipStack: cell {place} ({type(above).__name__}) should take [x; h], {self.input_size} and "
                    f"{below.output_size} features, but its input_size is {above.input_size}"
                )
        self.cells = nn.ModuleList(cells)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The tuple of the cells' initial states."""
        return tuple(cell.initial_state(batch, like) for cell in self._cells())

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of every cell, from the lowest up."""
        return self._climb(x, state, lambda cell, wide, old: cell.step(wide, old))

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """The whole sequence through one cell after another."""
        how: dict[str, Any] = {"lengths": lengths, "resets": resets, "backend": backend}
        return self._climb(xs, state, lambda cell, wide, old: scan(cell, wide, old, **how))

    def sublayers(self) -> Sequence[Layer]:
        """The cells."""
        return self._cells()

    def _climb(self, x: Tensor, state: State, run: Callable[[Cell, Tensor, State], Any]) -> tuple[Tensor, State]:
        outputs: list[Tensor] = []
        new = []
        for cell, old in zip(self._cells(), state, strict=True):
            y, end = run(cell, torch.cat([x, *outputs[-1:]], -1), old)
            outputs.append(y)
            new.append(end)
        return torch.cat(outputs, -1), tuple(new)

    def _cells(self) -> Sequence[Cell]:
        return list(self.cells)  # type: ignore[arg-type]


def _checked_cells(who: str, cells: tuple[Cell, ...]) -> tuple[Cell, ...]:
    if not cells:
        raise ValueError(f"{who}: at least one cell is needed")
    for cell in cells:
        check_cell(who, cell)
    return cells


def _like(cell: Cell) -> Tensor:
    """A tensor of the dtype and device that the cell's state has."""
    parameter = next(cell.parameters(), None)
    return torch.zeros(0) if parameter is None else parameter.detach().new_zeros(0)
