"""Dropout within a recurrence: of the candidate written to the state, and of the recurrent matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from everstep.cell import Cell, scan
from everstep.equation import Gated
from everstep.state import State
from everstep.wirings.masks import dropout
from everstep.wirings.regularise import FeedingMasks, Masking, probability


class RecurrentDropout(FeedingMasks):
    """Drops features of the candidate, so that a dropped unit writes nothing and forgets nothing (Semeniuta 2016).

    For an LSTM: c_t = f ∘ c_{t-1} + i ∘ d(g); for a GRU: h_t = (1 − z) ∘ d(n) + z ∘ h_{t-1}. In training
    d(g) = g ∘ m / (1 − p) with m ~ Bernoulli(1 − p) for every unit, drawn at every step or once per sequence (the paper
    has both); in eval mode d(g) = g.

    >>> from everstep import GRU, ActivationLSTM
    >>> ys, (h, c) = RecurrentDropout(ActivationLSTM(3, 5), 0.25)(torch.zeros(2, 7, 3))
    >>> ys, h = RecurrentDropout(GRU(3, 5), 0.25, once=True)(torch.zeros(2, 7, 3))

    Args:
        cell: a `Gated` cell with the option `activation`, its candidate's. For `LSTM` take `ActivationLSTM`,
            which has the same parameters.
        p: probability in [0, 1) that a feature of the candidate is dropped; none is outside of training.
        once: one mask for the whole sequence.

    Known limit: in training the masks enter the step, so that no vendor kernel can run it. The paper scales by 1 − p
    in evaluation; here the mask is scaled in training, which has the same expectation.

    Raises:
        TypeError: a cell without that option, or with an overridden step.
        RuntimeError: `step` in training, since the mask belongs to a sequence.
    """

    def __init__(self, cell: Gated, p: float, *, once: bool = False):
        if not isinstance(cell, Gated) or not cell.steps_as_declared() or "activation" not in cell.options:
            raise TypeError(
                f"RecurrentDropout: expected a `Gated` cell with the option `activation`, as ActivationLSTM "
                f"and GRU are, but got {type(cell).__name__}"
            )
        super().__init__(cell, p)
        self.once = once

    def dropped(self, x: Tensor, state: State, mask: Tensor) -> tuple[Tensor, State]:
        """One step whose candidate is multiplied by `mask`."""
        activation = self.cell.options["activation"]
        options = {**self.cell.options, "activation": lambda value: mask * activation(value)}
        y, state = self.cell.evaluate(x, state, options)
        return y, state

    def extra_repr(self) -> str:
        return f"p={self.p}, once={self.once}"


class WeightDrop(Masking):
    """DropConnect on the recurrent matrix: the weight drop of the AWD-LSTM (Merity 2018; Wan 2013).

    y_t, s_t = cell(x_t, s_{t-1}), in training with U ∘ M / (1 − p) in place of its matrix U: M ~ Bernoulli(1 − p) for
    every weight, drawn once per run of a sequence and shared by all rows.

    >>> from everstep import LSTM
    >>> cell = WeightDrop(LSTM(3, 5), 0.5)
    >>> ys, (h, c) = cell(torch.zeros(2, 7, 3))
    >>> list(cell.state_dict())
    ['weight_ih', 'weight_hh', 'bias_ih', 'bias_hh']

    Args:
        cell: the cell inside, which keeps its fast paths. This wiring shares its parameters and buffers under the same
            names: the `state_dict` is that of the cell alone.
        p: probability in [0, 1) that a weight is dropped in training.
        names: the parameters of the cell to apply it to.

    Raises:
        ValueError: a name that is not a parameter of the cell.
        RuntimeError: `step` in training, since the mask belongs to a sequence.
    """

    def __init__(self, cell: Cell, p: float, names: Sequence[str] = ("weight_hh",)):
        known = [name for name, _ in cell.named_parameters()]
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"WeightDrop: {type(cell).__name__} has no parameter {unknown[0]!r}, but {known}")
        super().__init__(cell.input_size, cell.output_size)
        self.p, self.names = probability(self, "p", p), tuple(names)
        self._inside = (cell,)  # in a tuple, so that it is not a submodule: this module shares the cell's contents
        self._parameters, self._buffers, self._modules = cell._parameters, cell._buffers, cell._modules
        self._non_persistent_buffers_set = cell._non_persistent_buffers_set

    @property
    def cell(self) -> Cell:
        """The cell inside."""
        return self._inside[0]

    def train(self, mode: bool = True) -> Self:
        """Sets the mode of this wiring and of the cell."""
        self.cell.train(mode)
        return super().train(mode)

    def unroll(
        self, xs: Tensor, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """Draw one mask per matrix, then run the cell over the whole sequence."""
        how = {"lengths": lengths, "resets": resets, "backend": backend}
        if not self.training or self.p == 0:
            return scan(self.cell, xs, state, **how)  # type: ignore[arg-type]
        dropped = {name: dropout(self.cell.get_parameter(name), self.p) for name in self.names}
        return torch.func.functional_call(self.cell, dropped, (xs, state), how)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"{type(self.cell).__name__}({self.cell.extra_repr()}), p={self.p}, names={self.names}"
