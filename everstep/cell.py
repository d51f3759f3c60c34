"""One step of a recurrent network: `Cell`; cells affine in their state; and `Layer`, all that runs over a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from types import FunctionType
from typing import Any

from torch import Tensor, nn

import everstep
from everstep import hooks
from everstep.state import State


class Layer(nn.Module):
    """Anything that runs over a sequence: (batch, time, input_size) to (batch, time, output_size), with a state.

    A causal layer is a `Cell` and can also be stepped; an acausal one (`Bidirectional`) is only a `Layer`.
    Calling a layer is `everstep.scan`, whose page explains the arguments. Its hooks (PyTorch's, and so the weights that
    `torch.nn.utils.weight_norm`, `spectral_norm` and `prune` compute) run once each time it is called or scanned, also
    within a wiring: a forward hook sees what a call gets and gives, `(xs, state)` and `(ys, state)`. Where it is
    stepped, by `step`, `Stream` or a wiring that has to, they run at every step and see `(x_t, state)` and
    `(y_t, state)`.

    Attributes:
        input_size: features of each x_t.
        output_size: features of each y_t.
    """

    input_size: int
    output_size: int

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        forward = vars(cls).get("forward")
        if isinstance(forward, FunctionType):
            cls.forward = hooks.own_forward(forward)  # type: ignore[method-assign]

    def initial_state(self, batch: int, like: Tensor) -> State:
        """The state before the first step, every leaf (batch, ...), of the dtype and device of `like`."""
        raise NotImplementedError(f"{type(self).__name__} has no initial_state")

    def unroll(
        self, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """Run over checked arguments. A wiring scans the layers inside it here: each keeps its own fast path."""
        raise NotImplementedError(f"{type(self).__name__} has no unroll")

    def scanned(self) -> Sequence[Layer]:
        """The layers that `unroll` hands to `scan`; a plain cell runs itself. For `everstep.explain`."""
        return (self,)

    def own_way(self, xs: Tensor) -> str | None:
        """What `unroll` runs instead of a backend, in words for `everstep.explain`; None: a backend."""
        return None

    def dispatched(self, xs: Tensor) -> tuple[Layer, Any] | None:
        """The cell that `unroll` hands to a backend as the layer is now, and the inputs; None: it scans what is inside.

        For `everstep.explain`; of the inputs only shapes count.
        """
        inner = self.scanned()
        return (self, xs) if len(inner) == 1 and inner[0] is self else None

    @hooks.own_forward
    def forward(
        self,
        xs: Tensor,
        state: State = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        backend: str = "auto",
    ) -> tuple[Tensor, State]:
        """`everstep.scan(self, xs, state, ...)`: outputs (batch, time, output_size) and the final state."""
        return everstep.scanning.plainly(self, xs, state, lengths, resets, False, backend)


class Cell(Layer):
    """One causal step `y_t, s_t = f(x_t, s_{t-1})`, used again at every t. Subclass it and write `step`.

    >>> class Accumulator(Cell):
    ...     def step(self, x, h):
    ...         h = h + x
    ...         return h, h
    >>> ys, h = Accumulator(1, 1)(torch.ones(1, 3, 1))
    >>> ys.flatten().tolist()
    [1.0, 2.0, 3.0]

    `step` is a pure function of `x`, the state and the parameters: it keeps nothing on the module, draws no random
    numbers (a mask belongs to the sequence: see `VariationalDropout`, `Zoneout`). It may write over x and
    the state in place: for others both are as they were.

    Args:
        input_size: features of x_t; a subclass may set both sizes itself instead.
        output_size: features of y_t; `input_size` if not given.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        step = vars(cls).get("step")
        if isinstance(step, FunctionType) and not hasattr(step, "everstep_hooks"):
            cls.step = hooks.own_step(step)  # type: ignore[method-assign]

    def __init__(self, input_size: int | None = None, output_size: int | None = None):
        super().__init__()
        if input_size is not None:
            self.input_size = check_size(self, "input_size", input_size)
            self.output_size = check_size(self, "output_size", input_size if output_size is None else output_size)

    def initial_state(self, batch: int, like: Tensor) -> State:
        """Zeros (batch, output_size); override it for any other state.

        A size of 0 is free: each call's state may have another one there, as the memory that an attention reads has,
        `like.new_zeros(batch, 0, size)`. Steps only read such a leaf, and no reset puts it back.
        """
        return like.new_zeros(batch, self.output_size)

    def step(self, x: Any, state: State) -> tuple[Tensor, State]:
        """One step: x (batch, input_size) and the state to the output (batch, output_size) and the new state."""
        raise NotImplementedError(f"{type(self).__name__} has no step(x, state)")

    def unroll(
        self, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """Run the step over time on the backend asked for, or on the fastest that can."""
        return everstep.scanning.dispatch(self, xs, state, lengths, resets, backend)


class Affine(Cell):
    """A cell affine in its state: h_t = a(x_t) ∘ h_{t-1} + b(x_t). Subclass it: `coefficients`.

    The output is h_t, or what `output` makes of h_t and x_t. Such a recurrence is associative, so that it also runs as
    a parallel scan of O(log T) depth (Blelloch 1990, "Prefix sums and their applications").
    """

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """a and b, each (batch, output_size), from x (batch, input_size), row by row."""
        raise NotImplementedError(f"{type(self).__name__} has no coefficients(x)")

    def output(self, h: Tensor, x: Tensor) -> Tensor:
        """The output (batch, output_size) from the new state h and x, row by row; h itself unless overridden."""
        return h

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """h = a ∘ h⁻ + b."""
        a, b = self.coefficients(x)
        h = a * state + b
        return self.output(h, x), h


def check_size(who: nn.Module, name: str, size: int) -> int:
    """`size` if it is a positive whole number; else a ValueError that names `who` and `name`."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{type(who).__name__}: {name} should be a whole number of at least 1, but is {size!r}")
    return size
