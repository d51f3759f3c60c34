"""The reservoir of an echo state network: a sparse random recurrent layer that is not learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.backends.dispatch import dispatch
from everstep.cell import Cell
from everstep.cells import LeakyRNN
from everstep.state import State
from everstep.wirings.reservoir import loop
from everstep.wirings.reservoir.matrix import connections_of, random_connections, spectral_radius
from everstep.wirings.stack import zero_padding


class Reservoir(Cell):
    """A sparse random recurrent layer of a given spectral radius, which is not learned (Jaeger 2001).

    h_t = (1 − a) ∘ h_{t-1} + a ∘ tanh(W_in x_t + b + W h_{t-1} + ν_t), with a the leak rate (Jaeger 2007; Lukoševičius
    2012, "A practical guide to applying echo state networks"). W_in is uniform in ± `input_scaling`, b in
    ± `bias_scaling`. Each unit has `connections` incoming weights in W, uniform, from random units; W is scaled so that
    its largest absolute eigenvalue is `radius`. ν_t ~ N(0, `noise`²) only in training mode, drawn for each sequence.

    >>> cell = Reservoir(3, 50, radius=0.9, leak=0.3, seed=0)
    >>> ys, h = cell(torch.zeros(2, 7, 3))
    >>> round(spectral_radius(cell.matrix()), 6)
    0.9

    For feedback from an output (W_fb y_{t-1}), which adds that many inputs, see `EchoState`. To combine reservoirs in
    depth or side by side: `SkipStack` and `Parallel`. To initialise a network that is learned: `to_rnn`.

    Args:
        input_size: features of x_t.
        units: features of h_t.
        radius: spectral radius ρ(W); with `matrix`, None leaves it as it is. (This is of W: a leak rate below
            1 moves the eigenvalues of the whole step towards 1.)
        connections: number of units that each unit reads, at most `units`. The density of W is connections / units.
        matrix: W itself, units × units, an array or a scipy.sparse matrix, instead of a random one.
        input_scaling: one number, or one per input. The default suits inputs of standard deviation 1: standardise them.
        bias_scaling: zero for no bias; the reservoir, and a linear read-out of it, is then an odd function of x.
        leak: the leak rate in (0, 1], one number or one per unit; 1 keeps nothing of the old state.
        noise: standard deviation of ν.
        seed: of W, W_in and b; the same seed gives the same weights on every machine. None draws one from PyTorch.
        device, dtype: of the buffers.

    Buffers, not parameters: `weight_ih` (units, D), `bias` (units,), `leak` (units,), and W, whose row i has
    scale · weights[i, j] in column columns[i, j]; both are (units, connections).

    On a CPU, without gradients, a compiled loop runs the sequence, reading W once per step for eight rows of the batch.
    Gradients of inputs and state use PyTorch operations.

    Known limit: with gradients it keeps units · connections numbers per row and step.

    Raises:
        ValueError: a radius that W cannot have (its eigenvalues are all 0), or an argument out of range.
    """

    weight_ih: Tensor
    bias: Tensor
    leak: Tensor
    weights: Tensor
    columns: Tensor
    scale: Tensor

    def __init__(
        self,
        input_size: int,
        units: int,
        *,
        radius: float | None = 0.9,
        connections: int = 10,
        matrix: Any = None,
        input_scaling: float | Sequence[float] = 0.3,
        bias_scaling: float = 0.2,
        leak: float | Sequence[float] | Tensor = 1.0,
        noise: float = 0.0,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(input_size, units)
        self.units, self.radius = units, radius
        self.noise = _number("noise", noise)
        rng = np.random.default_rng(int(torch.randint(1 << 62, ())) if seed is None else seed)
        if matrix is None:
            if isinstance(connections, bool) or not isinstance(connections, int) or connections < 0:
                raise ValueError(f"Reservoir: connections should be a whole number of at least 0, not {connections!r}")
            columns, weights = random_connections(units, min(connections, units), rng)
        else:
            columns, weights = _given(matrix, units)
        scales = _span("input_scaling", input_scaling, input_size, "an input")
        leaks = _span("leak", leak, units, "a unit")
        if (leaks <= 0).any() or (leaks > 1).any():
            raise ValueError(f"Reservoir: leak should lie in (0, 1], but is {leak}")
        buffers = {
            "weight_ih": rng.uniform(-1, 1, (units, input_size)) * scales,
            "bias": rng.uniform(-1, 1, units) * _number("bias_scaling", bias_scaling),
            "leak": leaks,
            "weights": weights,
            "scale": np.array(1.0 if radius is None else _factor(columns, weights, _number("radius", radius))),
        }
        for name, value in buffers.items():
            self.register_buffer(name, torch.tensor(value, dtype=dtype or torch.get_default_dtype(), device=device))
        self.register_buffer("columns", torch.tensor(columns, device=device))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step, without noise."""
        return self.recur(F.linear(x, self.weight_ih, self.bias), state)

    def recur(self, drive: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step from all external input: `drive` (batch, units) is W_in x + b + ν."""
        heard = state.index_select(1, self.columns.flatten()).view(len(state), *self.columns.shape)
        fresh = torch.tanh(drive + self.scale * (heard * self.weights).sum(-1))
        h = (1 - self.leak) * state + self.leak * fresh
        return h, h

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """The compiled loop if it is available, otherwise PyTorch operations step by step."""
        noisy = self.noise > 0 and self.training
        if xs.dtype != self.weights.dtype and not torch.is_autocast_enabled(xs.device.type):
            raise TypeError(f"scan(Reservoir): xs is {xs.dtype}, but the buffers are {self.weights.dtype}")
        native = backend == "auto" and loop.available(state, xs.to(state.dtype), *self._numbers())
        if not native and not noisy:
            return dispatch(self, xs, state, lengths, resets, backend)
        if not noisy:
            return loop.run(self, xs.to(state.dtype), state, lengths, resets)
        drive = F.linear(zero_padding(xs, lengths), self.weight_ih, self.bias).to(state.dtype)
        drive = drive + self.noise * torch.randn_like(drive)
        if native:
            return loop.run_driven(self, drive, state, lengths, resets)
        return dispatch(_Driven(self), drive, state, lengths, resets, backend)

    def native_path(self, xs: Tensor, *others: Tensor) -> str | None:
        """The compiled loop, if it can run; `others` are further tensors that it would read."""
        if not loop.available(self.initial_state(1, xs), xs, *others, *self._numbers()):
            return None
        return f"a compiled loop over {self.weights.numel():,} connections; with gradients, step by step"

    def closed_loop(
        self,
        xs: Tensor,
        state: Tensor,
        y: Tensor,
        readout: nn.Linear,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """y_t = readout(h_t) for inputs [x_t; y_{t-1}], in one compiled loop; None if it cannot run.

        Args:
            xs: (batch, time, input_size − outputs).
            state, y: before the first step, (batch, units) and (batch, outputs).

        Returns:
            Outputs (batch, time, outputs), and the last state and output.
        """
        if not loop.available(
            state, xs, y, readout.weight, readout.bias, *self._numbers()
        ) or torch.is_autocast_enabled("cpu"):
            return None
        outside = xs.shape[2]
        drive = F.linear(zero_padding(xs, lengths), self.weight_ih[:, :outside], self.bias)
        if self.noise > 0 and self.training:
            drive = drive + self.noise * torch.randn_like(drive)
        closed = loop.Closed(self.weight_ih[:, outside:], readout.weight, readout.bias, y)
        return loop.run_closed(self, drive, state, closed, lengths, resets)

    def _numbers(self) -> tuple[Tensor, ...]:
        return self.weights, self.scale, self.weight_ih, self.bias, self.leak

    def matrix(self) -> Tensor:
        """W (units, units), as a dense matrix."""
        dense = self.weights.new_zeros(self.units, self.units)
        return dense.scatter_add_(1, self.columns.long(), self.scale * self.weights)

    def to_rnn(self) -> LeakyRNN:
        """A dense `LeakyRNN` with the same weights as parameters: the reservoir as an initialisation for learning.

        >>> cell = Reservoir(3, 20, leak=0.5)
        >>> xs = torch.randn(2, 7, 3)
        >>> torch.allclose(cell.to_rnn()(xs)[0], cell(xs)[0], atol=1e-5)
        True
        """
        device, dtype = self.weights.device, self.weights.dtype
        rnn = LeakyRNN(self.input_size, self.units, alpha=1 - self.leak, device=device, dtype=dtype)
        numbers = {"weight_ih": self.weight_ih, "weight_hh": self.matrix(), "bias_ih": self.bias}
        rnn.load_state_dict({**rnn.state_dict(), **numbers, "bias_hh": torch.zeros_like(self.bias)})
        return rnn

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.units}, radius={self.radius}, connections={self.weights.shape[1]}"


class _Driven(Cell):
    """The recurrence alone; x_t is all of the external input."""

    def __init__(self, reservoir: Reservoir):
        super().__init__(reservoir.units)
        self.reservoir = reservoir

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.reservoir.recur(x, state)


def _given(matrix: Any, units: int) -> tuple[Any, Any]:
    """Columns and weights of the given matrix."""
    shape = tuple(getattr(matrix, "shape", ()))
    if shape != (units, units):
        raise ValueError(f"Reservoir: matrix should be {units} × {units} (units), but has shape {shape}")
    return connections_of(matrix)


def _factor(columns: Any, weights: Any, radius: float) -> float:
    """The factor on the weights that gives the requested radius."""
    import scipy.sparse

    units, connections = weights.shape
    starts = np.arange(units + 1) * connections
    own = spectral_radius(scipy.sparse.csr_array((weights.ravel(), columns.ravel(), starts), shape=(units, units)))
    if own == 0 and radius > 0:
        why = (
            "with connections=0 (zero density) W is zero"
            if connections == 0
            else "W is nilpotent (no unit hears itself, however indirectly), so that all its eigenvalues are 0"
        )
        raise ValueError(
            f"Reservoir: spectral radius {radius} cannot be reached: {why}; give more connections, or radius=None with "
            "a matrix of your own"
        )
    return radius / own if own else 1.0


def _number(name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"Reservoir: {name} should be a finite number of at least 0, but is {value}")
    return float(value)


def _span(name: str, value: float | Sequence[float] | Tensor, size: int, each: str) -> Any:
    """`value` as an array of `size` numbers."""
    numbers = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    if numbers.shape not in ((), (size,)) or not torch.isfinite(numbers).all():
        raise ValueError(f"Reservoir: {name} should be one number or {size}, one {each}, but is {value}")
    return numbers.expand(size).numpy()
