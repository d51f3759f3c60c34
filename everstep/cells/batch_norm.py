"""Batch-normalised LSTM, with separate statistics for each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import Cell, check_size
from everstep.state import State, where


class BatchNormState(NamedTuple):
    """h and c, each (batch, H), and t (batch,): the number of the next step since the start or the last reset."""

    h: Tensor
    c: Tensor
    t: Tensor


class BatchNormLSTM(Cell):
    """Batch-normalised LSTM (Cooijmans 2017, "Recurrent batch normalization").

    (i, f, g, o) = γ_x ∘ N(W x_t) + γ_h ∘ N(U h_{t-1}) + b; c_t = σ(f) ∘ c_{t-1} + σ(i) ∘ tanh(g);
    h_t = σ(o) ∘ tanh(γ_c ∘ N(c_t) + β_c).
    N(a) = (a − mean) / √(var + ε), feature by feature. In training mean and var are those of the rows of the batch that
    are at the same step t of their sequence (without padding), and the running statistics of step t move towards them
    by the fraction `momentum`; in eval the running statistics of step t are used. Steps from `steps` on share the last.

    >>> cell = BatchNormLSTM(3, 5, steps=10)
    >>> ys, (h, c, t) = cell(torch.randn(4, 7, 3))
    >>> y, state = cell.eval().step(torch.randn(4, 3), (h, c, t))

    Args:
        input_size: features D of x_t.
        hidden_size: features H of h_t.
        steps: number of steps with separate statistics.
        momentum: how far the running statistics move at each training batch.
        epsilon: ε, which is added to the variance.
        device, dtype: of the parameters.

    Parameters: `weight_ih` (4H, D), `weight_hh` (4H, H), initially uniform in ±1/√H; `bias` (4H,), 0; `gain_x` (4H,),
    `gain_h` (4H,), `gain_c` (H,): γ, 0.1 as in the paper; `bias_c` (H,): β_c, 0.
    Buffers: `running_mean` and `running_var` (steps, 9H), those of W x, U h and c; the variance is biased.

    Known limit: in training it runs as a loop, and if only one row reaches a step, it is normalised to 0. Steps never
    reached in training have mean 0 and variance 1. In eval the statistics of a step are looked up by a product with
    `steps` · 18H entries. `Zoneout` around it should name its leaves, since the step count must not be zoned out.

    Raises:
        RuntimeError: `step` in training, which has no batch of sequences for the statistics.
    """

    gates = ("i", "f", "g", "o")
    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor
    gain_x: Tensor
    gain_h: Tensor
    gain_c: Tensor
    bias_c: Tensor
    running_mean: Tensor
    running_var: Tensor
    places: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        steps: int = 100,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, hidden_size)
        self.hidden_size, self.steps = hidden_size, check_size(self, "steps", steps)
        self.momentum, self.epsilon = momentum, epsilon
        for name, shape in (
            ("weight_ih", (4 * hidden_size, input_size)),
            ("weight_hh", (4 * hidden_size, hidden_size)),
            ("bias", (4 * hidden_size,)),
            ("gain_x", (4 * hidden_size,)),
            ("gain_h", (4 * hidden_size,)),
            ("gain_c", (hidden_size,)),
            ("bias_c", (hidden_size,)),
        ):
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(steps, 9 * hidden_size, device=device, dtype=dtype))
        self.register_buffer("places", torch.arange(steps, device=device), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The initial values given in the class docstring, and running statistics of mean 0 and variance 1."""
        for matrix in (self.weight_ih, self.weight_hh):
            nn.init.uniform_(matrix, -1 / math.sqrt(self.hidden_size), 1 / math.sqrt(self.hidden_size))
        for gain in (self.gain_x, self.gain_h, self.gain_c):
            nn.init.constant_(gain, 0.1)
        for bias in (self.bias, self.bias_c, self.running_mean):
            nn.init.zeros_(bias)
        nn.init.ones_(self.running_var)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros, at step 0."""
        zeros = like.new_zeros(batch, self.hidden_size)
        return BatchNormState(zeros, zeros.clone(), like.new_zeros(batch))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """In eval: one step with the running statistics."""
        if self.training:
            raise RuntimeError(
                "BatchNormLSTM: a single step has no batch of sequences to take statistics of; call the cell on "
                "sequences, or .eval() it"
            )
        here = (self.places == self.place(state[2])[:, None]).to(self.running_mean.dtype)
        with torch.autocast(x.device.type, enabled=False):  # statistics are not rounded
            mean, var = here @ self.running_mean, here @ self.running_var

        def norm(a: Tensor, features: slice) -> Tensor:
            return (a - mean[:, features]) * torch.rsqrt(var[:, features] + self.epsilon)

        return self.equation(x, BatchNormState(*state), norm)

    def place(self, t: Tensor) -> Tensor:
        """The row of the running statistics for step t."""
        return torch.round(t).clamp(0, self.steps - 1)

    def equation(
        self, x: Tensor, state: BatchNormState, norm: Callable[[Tensor, slice], Tensor]
    ) -> tuple[Tensor, BatchNormState]:
        """The equation, with N = `norm`, which takes the columns of its statistics."""
        size = self.hidden_size
        ahead = self.gain_x * norm(F.linear(x, self.weight_ih), slice(0, 4 * size))
        again = self.gain_h * norm(F.linear(state.h, self.weight_hh), slice(4 * size, 8 * size))
        i, f, g, o = (ahead + again + self.bias).chunk(4, -1)
        c = torch.sigmoid(f) * state.c + torch.sigmoid(i) * torch.tanh(g)
        inner = self.gain_c * norm(c, slice(8 * size, 9 * size)) + self.bias_c
        h = torch.sigmoid(o) * torch.tanh(inner)
        return h, BatchNormState(h, c, state.t + 1)

    def unroll(
        self, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """In training, a loop over the whole batch, which also updates the running statistics."""
        if not self.training:
            return super().unroll(xs, state, lengths, resets, backend)
        if backend not in ("auto", "reference"):
            raise ValueError(f"scan: backend {backend!r} cannot run BatchNormLSTM: in training it normalises over rows")
        ys = []
        for t, x in enumerate(xs.unbind(1)):
            live = xs.new_ones(len(xs), dtype=torch.bool) if lengths is None else t < lengths
            if resets is not None:
                state = where(resets[:, t] & live, self.initial_state(len(xs), xs), state)
            y, new = self._train_step(torch.where(live[:, None], x, 0), BatchNormState(*state), live)
            ys.append(torch.where(live[:, None], y, 0))
            state = where(live, new, state)
        return torch.stack(ys, 1), state

    def native_path(self, xs: Tensor) -> str | None:
        """In training, a loop."""
        return "a loop of PyTorch's, which normalises over the rows of the batch" if self.training else None

    def _train_step(self, x: Tensor, state: BatchNormState, live: Tensor) -> tuple[Tensor, BatchNormState]:
        """One step normalised over the live rows that are at the same step."""
        place = self.place(state.t).detach()
        peers = ((place == place[:, None]) & live).to(self.running_mean.dtype)
        peers = peers / peers.sum(1, keepdim=True).clamp(min=1)
        means, variances = [], []

        def norm(a: Tensor, features: slice) -> Tensor:
            a = a.to(peers.dtype)
            with torch.autocast(x.device.type, enabled=False):
                apart = a - peers @ a
                # rows at the same step share a mean, so that this is the mean squared deviation from it
                var = peers @ apart.square()
            means.append((a - apart).detach())
            variances.append(var.detach())
            return apart * torch.rsqrt(var + self.epsilon)

        y, new = self.equation(x, state, norm)
        rows = place[live].long()
        with torch.no_grad():
            for running, found in ((self.running_mean, means), (self.running_var, variances)):
                running[rows] = torch.lerp(running[rows], torch.cat(found, 1)[live], self.momentum)
        return y, new

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, steps={self.steps}"
