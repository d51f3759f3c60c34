"""`Cell`, one step of a recurrent network; `Layer`, anything that runs over a sequence; and `scan`, which runs it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from everstep import hooks
from everstep.abstract import AbstractAffine, AbstractCell
from everstep.arguments import check_leaves, check_sequence
from everstep.backends import reference
from everstep.backends.dispatch import BACKENDS, dispatch
from everstep.backends.fused import backend as fused
from everstep.native.plain_memory import OPAQUE, plain
from everstep.no_steps import nothing
from everstep.state import State, as_large, check_nest, flip, leaves, like_nest, map_state


class Layer(nn.Module):
    """Anything that runs over a sequence: (batch, time, input_size) to (batch, time, output_size), with a state.

    A causal layer is a `Cell` and can also be stepped; an acausal one (`Bidirectional`) is only a `Layer`.
    Calling a layer is `everstep.scan`; its page explains the arguments. PyTorch hooks (including those of
    `torch.nn.utils.weight_norm`, `spectral_norm` and `prune`) run once each time the layer is called or scanned, also
    inside a wiring: a forward hook sees the call's arguments and results, `(xs, state)` and `(ys, state)`. Where the
    layer is stepped (by `step`, by `Stream`, or by a wiring that needs single steps), hooks run at every step and see
    `(x_t, state)` and `(y_t, state)`.

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

    def sublayers(self) -> Sequence[Layer]:
        """The layers that `unroll` passes to `scan`; for a plain cell, itself. Used by `everstep.explain`."""
        return (self,)

    def native_path(self, xs: Tensor) -> str | None:
        """What `unroll` runs instead of a backend, described for `everstep.explain`; None if it uses a backend."""
        return None

    def dispatched(self, xs: Tensor) -> tuple[Layer, Any] | None:
        """The cell that `unroll` passes to a backend in the current mode, and its inputs; None if it scans sublayers.

        Used by `everstep.explain`; only the shapes of the inputs matter.
        """
        inner = self.sublayers()
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
        return plainly(self, xs, state, lengths, resets, False, backend)


class Cell(Layer, AbstractCell):
    """One causal step `y_t, s_t = f(x_t, s_{t-1})`, applied at every t. Subclass it and write `step`.

    >>> class Accumulator(Cell):
    ...     def step(self, x, h):
    ...         h = h + x
    ...         return h, h
    >>> ys, h = Accumulator(1, 1)(torch.ones(1, 3, 1))
    >>> ys.flatten().tolist()
    [1.0, 2.0, 3.0]

    `step` is a pure function of `x`, the state and the parameters: it stores nothing on the module and draws no random
    numbers (a mask belongs to the sequence: see `VariationalDropout`, `Zoneout`). It may modify x and the state in
    place: other code still sees the original values.

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

        A size of 0 is free: the state of each call may have any size there, as the memory that attention reads does:
        `like.new_zeros(batch, 0, size)`. A reset leaves such a leaf as it is, and a step that only reads it is compiled
        once for all sizes.
        """
        return like.new_zeros(batch, self.output_size)

    def step(self, x: Any, state: State) -> tuple[Tensor, State]:
        """One step: x (batch, input_size) and the state to the output (batch, output_size) and the new state."""
        raise NotImplementedError(f"{type(self).__name__} has no step(x, state)")

    def unroll(
        self, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
    ) -> tuple[Tensor, State]:
        """Run the step over time on the requested backend, or on the fastest one that supports it."""
        return dispatch(self, xs, state, lengths, resets, backend)


class Affine(Cell, AbstractAffine):
    """A cell affine in its state: h_t = a(x_t) ∘ h_{t-1} + b(x_t). Subclass it and write `coefficients`.

    The output is h_t, or `output(h_t, x_t)` if overridden. Affine steps compose associatively, so the recurrence also
    runs as a parallel scan of O(log T) depth (Blelloch 1990, "Prefix sums and their applications").
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

    def steps_as_declared(self) -> bool:
        """Whether `step` is the one derived from `coefficients`; a subclass may have overridden it."""
        return type(self).step is Affine.step


def check_size(who: nn.Module, name: str, size: int) -> int:
    """`size` if it is a positive whole number; else a ValueError that names `who` and `name`."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{type(who).__name__}: {name} should be a whole number of at least 1, but is {size!r}")
    return size


def scan(
    layer: Layer,
    xs: Tensor,
    state: State = None,
    *,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, State]:
    """Run a layer over a sequence: y_t, s_t = step(x_t, s_{t-1}) for every t.

    >>> import everstep as es
    >>> ys, state = scan(es.LSTM(3, 5), torch.zeros(2, 7, 3), lengths=torch.tensor([7, 0]))
    >>> ys.shape, state.h.shape
    (torch.Size([2, 7, 5]), torch.Size([2, 5]))

    Args:
        layer: the cell or wiring.
        xs: (batch, time, input_size).
        state: the state to continue from; `layer.initial_state` if None.
        lengths: (batch,) whole numbers in 0 … time. Steps at or beyond a row's length leave its state untouched and its
            outputs zero: a padded row equals the row run alone.
        resets: (batch, time) bool; where true, the state is reset to the initial one before that step of the run, but
            for leaves of a free size (`Cell.initial_state`), which stay.
        reverse: run every row from its last valid step to its first; outputs keep their positions.
        backend: "auto", or the name of one of `BACKENDS`.

    Returns:
        Outputs (batch, time, output_size), and the state after each row's last valid step. The storage of large outputs
        may be up to a quarter larger than needed, and `torch.save` and `pickle` write all of it: save a clone.

    Raises:
        TypeError: an argument of the wrong type, dtype or nest.
        ValueError: an argument of the wrong shape, device or range, or a named backend that cannot run the layer.
    """
    if isinstance(layer, Layer) and hooks.pending(layer):
        how = {"lengths": lengths, "resets": resets, "backend": backend}
        run = functools.partial(scan, layer, reverse=reverse)
        return hooks.around(layer, run, xs, *(() if state is None else (state,)), **how)  # type: ignore[no-any-return]
    return plainly(layer, xs, state, lengths, resets, reverse, backend)


def plainly(
    layer: Layer,
    xs: Tensor,
    state: State,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, State]:
    """`scan` without the layer's own hooks."""
    check_call(layer, xs, lengths, resets, backend)
    # under autocast the products are in low precision, but the state carried along the sequence is float32
    autocast = torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(xs.device.type)
    initial = layer.initial_state(xs.shape[0], xs.new_empty(0, dtype=torch.float32) if autocast else xs)
    if not isinstance(initial, Tensor):
        check_leaves(layer, initial)
    if state is None:
        state = initial
    else:
        initial = as_large(initial, state)
        check_nest(f"scan({type(layer).__name__})", state, initial)
        if not isinstance(initial, Tensor):
            state = like_nest(state, initial)
        if not plain(*[leaf for _, leaf in leaves(state)]):
            backend = _of_pytorch(layer, backend)
    if xs.shape[1] == 0:
        among = (*(leaf for _, leaf in leaves(state)), *layer.parameters())
        return nothing(xs, (len(xs), 0, layer.output_size), among), map_state(torch.clone, state)
    if reverse:
        xs, resets = flip(xs, lengths), None if resets is None else flip(resets, lengths)
    ys, state = layer.unroll(xs, state, lengths, resets, backend)
    if autocast:
        state = map_state(lambda leaf, first: leaf.to(first.dtype), state, initial)
    return flip(ys, lengths) if reverse else ys, state


def _of_pytorch(layer: Layer, backend: str) -> str:
    """The backend to use where only PyTorch can read the state."""
    if backend == fused.name:
        raise ValueError(f"scan: backend {backend!r} cannot run {type(layer).__name__}: its state: {OPAQUE}")
    return reference.name if backend == "auto" else backend


def check_call(
    layer: Layer, xs: Tensor, lengths: Tensor | None, resets: Tensor | None, backend: str, caller: str = "scan"
) -> None:
    """Raise if the arguments of `scan` (or of `caller`) are ones that no layer can run on, or `backend` is unknown.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or range.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"{caller}: expected a Cell or a wiring, but got {type(layer).__name__}")
    who = f"{caller}({type(layer).__name__})"
    if backend != "auto" and (not isinstance(backend, str) or backend not in BACKENDS):
        raise ValueError(f"{who}: backend should be 'auto' or one of {', '.join(BACKENDS)}, but is {backend!r}")
    check_sequence(who, layer, xs, lengths, resets)
