"""Variational dropout on the recurrent connection from h_{t-1} to h_t."""

from __future__ import annotations

from torch import Tensor

from everstep.equation import Gated, Projection
from everstep.state import State
from everstep.wirings.regularise import FeedingMasks


class StateDropout(FeedingMasks):
    """One dropout mask on the input of the recurrent matrix for the whole sequence (Gal & Ghahramani 2016).

    In training every product of U reads h_{t-1} ∘ m / (1 − p) instead of h_{t-1} (and r ∘ h_{t-1} ∘ m / (1 − p) where
    the reset gate comes before the product), with m ~ Bernoulli(1 − p) drawn for every row each time a sequence is run.
    The part of the old state that a gate carries over is not dropped or scaled, so that it does not grow over time.
    With `VariationalDropout` on the inputs and on the top output, every arrow of the paper's figure has its mask.

    >>> from everstep import LSTM, Identity, Stack, VariationalDropout
    >>> cell = VariationalDropout(StateDropout(LSTM(3, 5), 0.25), 0.25)
    >>> ys, _ = Stack(cell, VariationalDropout(Identity(5), 0.25))(torch.zeros(2, 7, 3))

    Args:
        cell: a `Gated` cell.
        p: probability in [0, 1) that a feature of h is dropped; none is outside of training.

    Known limit: in training the mask enters the step, so that no vendor kernel can run it.

    Raises:
        TypeError: a cell that is no `Gated`, has a step of its own or no recurrent matrix.
        RuntimeError: `step` in training, where no sequence is there to hold the mask.
    """

    def __init__(self, cell: Gated, p: float):
        if not isinstance(cell, Gated) or not cell.steps_as_declared() or cell.weight_hh is None:
            raise TypeError(
                f"StateDropout: expected a `Gated` cell with a recurrent matrix, as LSTM and GRU are, but got "
                f"{type(cell).__name__}"
            )
        super().__init__(cell, p)

    def dropped(self, x: Tensor, state: State, mask: Tensor) -> tuple[Tensor, State]:
        """One step whose recurrent products read through `mask`."""
        cell = self.cell
        s = cell.state_type(*((state,) if len(cell.state_names) == 1 else state))
        px = Projection(x, cell.weight_ih, cell.bias_ih, cell.input_gates, cell._direct_x)
        ph = _Masked(s[0], mask, cell)
        new = type(cell).equation(px, ph, s, **cell.options)
        return (new, new) if len(cell.state_names) == 1 else (new[0], cell.state_type(*new))

    def extra_repr(self) -> str:
        return f"p={self.p}"


class _Masked(Projection):
    """h as an equation sees it, where every product reads through a mask."""

    __slots__ = ("_mask",)

    def __init__(self, value: Tensor, mask: Tensor, cell: Gated):
        super().__init__(value * mask, cell.weight_hh, cell.bias_hh, cell.hidden_gates, cell._direct_h)
        self._mask = mask

    def of(self, value: Tensor) -> Projection:
        """The same projection of another vector, through the same mask."""
        return super().of(value * self._mask)
