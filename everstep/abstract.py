"""The interfaces of a cell that tracing and the backends use.

`cell.py` imports the backends, since calling a cell on a sequence runs it on one of them. The backends therefore know
only these abstract classes, which `Cell`, `Affine` and `Gated` implement. More declared structure allows more speed.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from everstep.state import State


class AbstractCell(nn.Module):
    """One step: all that the reference loop and the compiled engine need.

    Attributes:
        input_size: features of each x_t.
        output_size: features of each y_t.
    """

    input_size: int
    output_size: int

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The state before the first step, every leaf (batch, ...), of the dtype and device of `like`."""
        raise NotImplementedError(f"{type(self).__name__} has no initial_state")

    def step(self, x: Any, state: State) -> tuple[Tensor, State]:
        """One step: x (batch, input_size) and the state to the output (batch, output_size) and the new state."""
        raise NotImplementedError(f"{type(self).__name__} has no step(x, state)")


class AbstractAffine(AbstractCell):
    """A step h = a(x) ∘ h⁻ + b(x) with the output `output(h, x)`: what a parallel scan needs."""

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a and b, each (batch, output_size), from x (batch, input_size), row by row."""
        raise NotImplementedError(f"{type(self).__name__} has no coefficients(x)")

    def output(self, h: Tensor, x: Tensor) -> Tensor:
        """The output (batch, output_size) from the new state h and x, row by row."""
        raise NotImplementedError(f"{type(self).__name__} has no output(h, x)")

    def steps_as_declared(self) -> bool:
        """Whether `step` is the one derived from `coefficients`; a subclass may have overridden it."""
        raise NotImplementedError(f"{type(self).__name__} has no steps_as_declared")


class AbstractGated(AbstractCell):
    """A step that may equal one of `torch.nn`: what a vendor kernel needs."""

    hidden_size: int
    weight_ih: Tensor | None
    weight_hh: Tensor | None
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def vendor_kernel(self) -> str | None:
        """The name of the `torch` kernel that computes this step ("lstm", "gru", …), or None."""
        raise NotImplementedError(f"{type(self).__name__} has no vendor_kernel")

    def steps_as_declared(self) -> bool:
        """Whether `step` is the equation; a subclass may have overridden it."""
        raise NotImplementedError(f"{type(self).__name__} has no steps_as_declared")
