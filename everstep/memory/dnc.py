"""The differentiable neural computer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn, sigmoid
from torch.nn.functional import softplus

from everstep.cell import Cell, check_size
from everstep.memory.ntm import EMPTY, sizes_beside
from everstep.memory.places import by_content, revised
from everstep.state import State

_LEAST_USE = 1e-6  # a place counts as used by this much at least when the logarithm is taken


class DNCState(NamedTuple):
    """The state of a `DNC`.

    Attributes:
        controller: the controller's.
        memory: M, (batch, places, width).
        usage: u in 0 … 1, (batch, places).
        writing: w^w, (batch, places).
        reading: w^r, (batch, reads, places).
        links: L, (batch, places, places): L[i, j] says how far i was written just after j.
        latest: p, (batch, places): how far a place was the last one written.
        read: what the reading heads found, (batch, reads · width).
    """

    controller: State
    memory: Tensor
    usage: Tensor
    writing: Tensor
    reading: Tensor
    links: Tensor
    latest: Tensor
    read: Tensor


class DNC(Cell):
    """A differentiable neural computer (Graves 2016, "Hybrid computing using a neural network with dynamic external
    memory"): a cell that allocates free places of a memory, and reads them by content or in the order of writing.

    h_t, s_t = controller([x_t; r_{t-1}], s_{t-1}); from a linear function of h_t, with keys k, strengths
    β = 1 + softplus(·), and all gates σ(·):

    - Usage: u = (u + w^w − u ∘ w^w) ∘ Π_heads (1 − f w^r), of the last step's weights, f: free gates.
    - Allocation: a(i) = (1 − u(i)) Π_{j used less than i} u(j), the freest places first.
    - Writing: w^w = g^w (g^a a + (1 − g^a) c), c(i) = softmax of β cos(k, M[i]); M[i] ← M[i] ∘ (1 − w^w(i) e) +
      w^w(i) v.
    - Links: L[i, j] ← (1 − w^w(i) − w^w(j)) L[i, j] + w^w(i) p(j), 0 where i = j; p ← (1 − Σ w^w) p + w^w.
    - Reading: w^r = π_1 Lᵀ w^r + π_2 c + π_3 L w^r, with shares π = softmax(·): backward, by content, forward.

    r_t = Σ_i w^r(i) M[i] of each head; the output is [h_t; r_t].

    >>> from everstep import LSTM
    >>> machine = DNC(LSTM(10 + 2 * 16, 64), places=32, width=16, reads=2)  # reads x_t of 10 numbers
    >>> ys, state = machine(torch.zeros(2, 7, 10))
    >>> ys.shape, state.links.shape
    (torch.Size([2, 7, 96]), torch.Size([2, 32, 32]))

    No parameter depends on the number of places: `machine.places = 1000` gives a trained machine more of them.

    Args:
        controller: any cell; its inputs are those of x_t, then `reads` · `width`.
        places: N.
        width: W, numbers of a place.
        reads: number of reading heads.
        device, dtype: of the parameters.

    Known limits: links and the allocation, which compares all pairs of places instead of sorting them, cost O(N²)
    time and memory a step. Places of equal usage are taken in their order.

    Raises:
        ValueError: a size below 1, or a controller with too few inputs.
    """

    def __init__(
        self,
        controller: Cell,
        places: int = 32,
        width: int = 16,
        *,
        reads: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        sizes = {"places": places, "width": width, "reads": reads}
        self.places, self.width, self.reads = (check_size(self, name, size) for name, size in sizes.items())
        self.input_size, self.output_size = sizes_beside(self, controller, reads * width)
        self.controller = controller
        self.look = nn.Linear(controller.output_size, reads * (width + 5), device=device, dtype=dtype)
        self.change = nn.Linear(controller.output_size, 3 * width + 3, device=device, dtype=dtype)

    def initial_state(self, batch: int, like: Tensor) -> DNCState:
        """The controller's, a memory of 1e-6, and all else 0."""
        n, r = self.places, self.reads
        memory = like.new_full((batch, n, self.width), EMPTY)
        shapes = ((n,), (n,), (r, n), (n, n), (n,), (r * self.width,))
        inner = self.controller.initial_state(batch, like)
        return DNCState(inner, memory, *(like.new_zeros(batch, *shape) for shape in shapes))

    def step(self, x: Tensor, state: DNCState) -> tuple[Tensor, DNCState]:
        """The equations."""
        inner, memory, usage, writing, reading, links, latest, read = state
        h, inner = self.controller.step(torch.cat([x, read], -1), inner)
        asked = self.look(h).unflatten(-1, (self.reads, -1))
        keys, strengths, free, shares = asked.split([self.width, 1, 1, 3], -1)
        usage = usage + writing - usage * writing
        for k in range(self.reads):
            usage = usage * (1 - sigmoid(free[:, k]) * reading[:, k])
        writing, memory = self._write(self.change(h), usage, memory)
        ahead, after = writing[:, :, None], writing[:, None, :]
        apart = 1 - torch.eye(self.places, dtype=links.dtype, device=links.device)
        links = ((1 - ahead - after) * links + ahead * latest[:, None]) * apart
        latest = (1 - writing.sum(-1, keepdim=True)) * latest + writing
        backward, by_key, forward = shares.softmax(-1).split(1, -1)
        content = by_content(keys, 1 + softplus(strengths), memory)
        reading = backward * (reading @ links) + by_key * content + forward * (reading @ links.transpose(1, 2))
        read = (reading @ memory).flatten(1)
        return torch.cat([h, read], -1), DNCState(inner, memory, usage, writing, reading, links, latest, read)

    def heads(self, state: DNCState) -> dict[str, Tensor]:
        """Where the heads are: "writes" and "reads", (batch, heads, places) each."""
        return {"writes": state.writing[:, None], "reads": state.reading}

    def _write(self, asked: Tensor, usage: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The weights of the writing head (batch, places), and the memory after it."""
        key, erased, added, strength, write, allocate = asked.split([*[self.width] * 3, 1, 1, 1], -1)
        content = by_content(key[:, None], 1 + softplus(strength)[:, None], memory)[:, 0]
        g = sigmoid(allocate)
        writing = sigmoid(write) * (g * allocation(usage) + (1 - g) * content)
        return writing, revised(memory, writing[:, None], sigmoid(erased)[:, None], added[:, None])

    def extra_repr(self) -> str:
        return f"places={self.places}, width={self.width}, reads={self.reads}"


def allocation(usage: Tensor) -> Tensor:
    """a(i) = (1 − u(i)) Π_j u(j) over the places j that are used less than i, or as much and come before it.

    Args:
        usage: u in 0 … 1, (batch, N).
    """
    n = usage.shape[1]
    used = usage.clamp(_LEAST_USE, 1)
    earlier = torch.ones(n, n, dtype=usage.dtype, device=usage.device).tril(-1)
    mine, other = used[:, :, None], used[:, None, :]
    first = (other < mine).to(usage.dtype) + (other == mine).to(usage.dtype) * earlier
    return (1 - usage) * (first * other.log()).sum(-1).exp()
