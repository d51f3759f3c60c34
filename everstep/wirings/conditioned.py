"""A sequence conditioned on one vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from everstep.cell import Cell, Layer, check_size, scan
from everstep.state import State, leaves, unflatten, valid


class Conditioned(Cell):
    """A cell conditioned on a vector v through its initial state, its input at every step, or both.

    "start": s_0 = s + tanh(V v) for every leaf of the state, with s the cell's own initial state (usually zeros);
    without a bias, so that v = 0 has no effect (Cho 2014, "Learning phrase representations using RNN
    encoder–decoder", and, for both leaves of an LSTM, Xu 2015, "Show, attend and tell").
    "feed": y_t, s_t = cell([x_t; v], s_{t-1}). "both": as in Cho 2014.

    >>> from everstep import LSTM
    >>> cell = Conditioned(LSTM(3 + 6, 5), 6, "both")
    >>> v, xs = torch.ones(2, 6), torch.zeros(2, 7, 3)
    >>> ys, (state, still_v) = cell(xs, cell.start(v))

    The vector is passed in the state, so that the cell steps and streams like any other: the state is the cell's, or,
    with "feed" and "both", the cell's and v. After a reset, which begins a document of unknown vector, v is zeros, as
    in `initial_state`. If v is the only input, xs is (batch, time, 0).

    Args:
        cell: the cell inside; with "feed" and "both", its inputs are those of x_t, then v.
        size: features of v.
        mode: "start", "feed" or "both".
        device, dtype: of the parameters: one matrix V in `starts` for every leaf of the state, unless mode is "feed".

    Known limits: "start" adds to every leaf of the state, so it does not suit a state that counts steps.

    Raises:
        ValueError: another `mode`, a size below 1, or a fed cell that takes fewer features than v has.
    """

    def __init__(
        self,
        cell: Cell,
        size: int,
        mode: Literal["start", "feed", "both"] = "start",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if mode not in ("start", "feed", "both"):
            raise ValueError(f"Conditioned: mode should be 'start', 'feed' or 'both', but is {mode!r}")
        self.size, self.mode, self.fed = check_size(self, "size", size), mode, mode != "start"
        if self.fed and cell.input_size < size:
            raise ValueError(
                f"Conditioned: fed with v, the cell takes [x; v], but {type(cell).__name__} has input_size "
                f"{cell.input_size} and v has {size} features"
            )
        self.cell = cell
        self.input_size, self.output_size = cell.input_size - size * self.fed, cell.output_size
        shapes = [leaf.shape[1:] for _, leaf in leaves(cell.initial_state(1, torch.zeros(1)))]
        self.starts = nn.ModuleList(
            nn.Linear(size, math.prod(shape), bias=False, device=device, dtype=dtype)
            for shape in shapes
            if mode != "feed"
        )

    def start(self, v: Tensor) -> State:
        """The initial state for v (batch, size).

        Raises:
            ValueError: v of another shape.
        """
        if not isinstance(v, Tensor) or v.dim() != 2 or v.shape[1] != self.size:
            came = f"shape {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__
            raise ValueError(f"Conditioned.start: v should be (batch, size={self.size}), but got {came}")
        # as in `scan`: the carried state is not in low precision
        like = v.float() if torch.is_autocast_enabled(v.device.type) else v
        state = self.cell.initial_state(v.shape[0], like)
        if self.mode != "feed":
            parts = [
                leaf + torch.tanh(linear(v)).view_as(leaf)
                for (_, leaf), linear in zip(leaves(state), self.starts, strict=True)
            ]
            state = unflatten(state, [part.to(like.dtype) for part in parts])
        return (state, like) if self.fed else state

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Without a vector: the cell's, and zeros for v."""
        state = self.cell.initial_state(batch, like)
        return (state, like.new_zeros(batch, self.size)) if self.fed else state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step; v is unchanged."""
        if not self.fed:
            return self.cell.step(x, state)
        inner, v = state
        y, inner = self.cell.step(torch.cat([x, v], -1), inner)
        return y, (inner, v)

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """The cell over the whole sequence, with v appended to every x_t up to the first reset."""
        if not self.fed:
            return scan(self.cell, xs, state, lengths=lengths, resets=resets, backend=backend)
        inner, v = state
        fed = v[:, None].expand(-1, xs.shape[1], -1)
        if resets is None:
            v = v.clone()  # the result does not share memory with the caller's tensor
        else:
            if lengths is not None:
                resets = resets & valid(lengths, xs.shape[1])
            known = resets.cumsum(1) == 0
            fed = torch.where(known[..., None], fed, 0)
            v = torch.where(known[:, -1:], v, 0)
        ys, inner = scan(self.cell, torch.cat([xs, fed], -1), inner, lengths=lengths, resets=resets, backend=backend)
        return ys, (inner, v)

    def sublayers(self) -> Sequence[Layer]:
        """The cell."""
        return (self.cell,)

    def extra_repr(self) -> str:
        return f"size={self.size}, mode={self.mode}"
