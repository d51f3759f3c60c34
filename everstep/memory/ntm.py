"""The neural Turing machine."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn, sigmoid, tanh
from torch.nn.functional import softplus

from everstep.cell import Cell, check_size
from everstep.memory.places import by_content, revised, sharpened, shifted
from everstep.state import State

EMPTY = 1e-6
"""What every number of a new memory is (Collier & Beel 2018, who found it better than random numbers)."""


class NTMState(NamedTuple):
    """The state of an `NTM`.

    Attributes:
        controller: the controller's.
        memory: M, (batch, places, width).
        weights: of every head over the places, the writing ones first, (batch, writes + reads, places).
        read: what the reading heads found, (batch, reads · width).
    """

    controller: State
    memory: Tensor
    weights: Tensor
    read: Tensor


class NTM(Cell):
    """A neural Turing machine (Graves, Wayne & Danihelka 2014): a cell that learns to write and to read a memory.

    h_t, s_t = controller([x_t; r_{t-1}], s_{t-1}). Every head looks at places by what they hold or by where they are,
    from its own linear function of h_t: a key k = tanh(·), a strength β = softplus(·), a gate g = σ(·), shares of
    shifts s = softmax(·), and a power γ = 1 + softplus(·):

    w = g c + (1 − g) w_{t-1} with c(i) = softmax of β cos(k, M[i]); then w(i) ← Σ_d s(d) w(i − d), on a ring of N
    places; then w(i) ← w(i)^γ ÷ Σ_j w(j)^γ.

    Writing heads change M[i] ← M[i] ∘ (1 − w(i) e) + w(i) a, e = σ(·), a = tanh(·), one after another; then reading
    heads, which see what was just written, read r_t = Σ_i w(i) M[i]. The output is [h_t; r_t].

    >>> from everstep import LSTM
    >>> machine = NTM(LSTM(10 + 20, 100), places=128, width=20)  # reads x_t of 10 numbers
    >>> ys, state = machine(torch.zeros(2, 7, 10))
    >>> ys.shape, state.memory.shape
    (torch.Size([2, 7, 120]), torch.Size([2, 128, 20]))

    At the beginning every head is at place 0, all numbers of the memory are 1e-6 (Collier & Beel 2018, "Implementing
    neural Turing machines"), and r is 0. No parameter depends on the number of places: `machine.places = 1000` gives
    a trained machine a longer memory.

    Args:
        controller: any cell; its inputs are those of x_t, then `reads` · `width`.
        places: N.
        width: W, numbers of a place.
        reads, writes: numbers of heads.
        shift: S; a head moves by −S … S places in a step.
        device, dtype: of the parameters.

    Known limits: a step costs O(N · W), used or not; heads do not know which places are free (see `DNC`). The compiled
    loop is made for one number of places.

    Raises:
        ValueError: a size below 1, a shift wider than the ring, or a controller with too few inputs.
    """

    def __init__(
        self,
        controller: Cell,
        places: int = 128,
        width: int = 20,
        *,
        reads: int = 1,
        writes: int = 1,
        shift: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        sizes = {"places": places, "width": width, "reads": reads, "writes": writes, "shift": shift}
        self.places, self.width, self.reads, self.writes, self.shift = (
            check_size(self, name, size) for name, size in sizes.items()
        )
        if 2 * shift + 1 > places:
            raise ValueError(f"NTM: shifts by up to {shift} need {2 * shift + 1} places, but there are {places}")
        self.input_size, self.output_size = sizes_beside(self, controller, reads * width)
        self.controller = controller
        self.look = nn.Linear(
            controller.output_size, (writes + reads) * (width + 2 * shift + 4), device=device, dtype=dtype
        )
        self.change = nn.Linear(controller.output_size, writes * 2 * width, device=device, dtype=dtype)

    def initial_state(self, batch: int, like: Tensor) -> NTMState:
        """The controller's, a memory of 1e-6, every head at place 0, and nothing read."""
        inner = self.controller.initial_state(batch, like)
        memory = like.new_full((batch, self.places, self.width), EMPTY)
        weights = torch.cat([like.new_ones(batch, 1), like.new_zeros(batch, self.places - 1)], 1)
        heads = weights[:, None].repeat(1, self.writes + self.reads, 1)
        return NTMState(inner, memory, heads, like.new_zeros(batch, self.reads * self.width))

    def step(self, x: Tensor, state: NTMState) -> tuple[Tensor, NTMState]:
        """The equations."""
        inner, memory, before, read = state
        h, inner = self.controller.step(torch.cat([x, read], -1), inner)
        asked = self.look(h).unflatten(-1, (self.writes + self.reads, -1))
        erased, added = self.change(h).unflatten(-1, (self.writes, -1)).split(self.width, -1)
        writing = self._weights(asked[:, : self.writes], memory, before[:, : self.writes])
        memory = revised(memory, writing, sigmoid(erased), tanh(added))
        reading = self._weights(asked[:, self.writes :], memory, before[:, self.writes :])
        read = (reading @ memory).flatten(1)
        return torch.cat([h, read], -1), NTMState(inner, memory, torch.cat([writing, reading], 1), read)

    def heads(self, state: NTMState) -> dict[str, Tensor]:
        """Where the heads are: "writes" and "reads", (batch, heads, places) each."""
        writing, reading = state.weights.split([self.writes, self.reads], 1)
        return {"writes": writing, "reads": reading}

    def _weights(self, asked: Tensor, memory: Tensor, before: Tensor) -> Tensor:
        """The weights of some heads, (batch, heads, places)."""
        key, strength, gate, power, shares = asked.split([self.width, 1, 1, 1, 2 * self.shift + 1], -1)
        content, g = by_content(tanh(key), softplus(strength), memory), sigmoid(gate)
        moved = shifted(g * content + (1 - g) * before, shares.softmax(-1))
        return sharpened(moved, 1 + softplus(power))

    def extra_repr(self) -> str:
        return f"places={self.places}, width={self.width}, reads={self.reads}, writes={self.writes}"


def sizes_beside(cell: Cell, controller: Cell, read: int) -> tuple[int, int]:
    """Inputs and outputs of a cell whose controller takes [x; r] and whose output is [h; r], r of `read` numbers.

    Raises:
        TypeError: an acausal layer.
        ValueError: the controller takes fewer numbers than are read.
    """
    name = type(cell).__name__
    if not isinstance(controller, Cell):
        raise TypeError(f"{name}: the controller should be a cell, but is {type(controller).__name__}")
    if controller.input_size < read:
        raise ValueError(
            f"{name}: the controller takes [x; r], but {type(controller).__name__} has input_size "
            f"{controller.input_size} and r has {read} numbers"
        )
    return controller.input_size - read, controller.output_size + read
