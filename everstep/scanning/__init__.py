"""Running a step over time: `scan`, the choice of a backend, and `explain`, which says what was chosen and why."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from everstep import hooks
from everstep.cell import Cell, Layer
from everstep.scanning import fused, parallel, reference, vendor
from everstep.scanning.fused import toolchain
from everstep.scanning.nothing import nothing
from everstep.scanning.plain import OPAQUE, plain
from everstep.scanning.record import Untraceable
from everstep.scanning.trace import trace
from everstep.state import State, as_large, check_nest, leaves, like_nest, map_state


class Backend(Protocol):
    """One way to run a cell over time, equal in result to `scanning/reference.py`."""

    name: str

    def refuses(self, cell: Cell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
        """The reason why it cannot run this, in words that a user understands, or None."""

    def slower(self, cell: Cell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
        """The reason why another backend is measured to be faster here, or None. `auto` heeds it."""

    def run(
        self, cell: Cell, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, State]:
        """Outputs (batch, time, output_size) and the final state; time ≥ 1, arguments checked."""


BACKENDS: dict[str, Backend] = {b.name: b for b in (fused, vendor, parallel, reference)}
"""In order of preference."""
_WHOLE = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})
"""Dtypes of whole numbers with which PyTorch computes."""


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
        state: the state to go on from; `layer.initial_state` if None.
        lengths: (batch,) whole numbers in 0 … time. Steps at or beyond a row's length leave its state untouched and its
            outputs zero: a padded row equals the row run alone.
        resets: (batch, time) bool; the state is put back to the initial one before that step of the run.
        reverse: run every row from its last valid step to its first; outputs keep their places.
        backend: "auto", or the name of one of `BACKENDS`.

    Returns:
        Outputs (batch, time, output_size), and the state after each row's last valid step. Large outputs may lie in
        memory that is up to a quarter larger, all of which `torch.save` and `pickle` write: save a clone of them.

    Raises:
        TypeError: an argument of the wrong type, dtype or nest.
        ValueError: an argument of the wrong shape, device or range, or a named backend that refuses.
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
    _check(layer, xs, lengths, resets, backend)
    # under autocast the products are short, but what is carried along the sequence is not
    autocast = torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(xs.device.type)
    initial = layer.initial_state(xs.shape[0], xs.new_empty(0, dtype=torch.float32) if autocast else xs)
    if not isinstance(initial, Tensor):
        _check_leaves(layer, initial)
    if resets is not None and any(0 in leaf.shape[1:] for _, leaf in leaves(initial)):
        raise ValueError(
            f"scan({type(layer).__name__}): resets put back the initial state, which has no sizes that are free (0 in "
            "initial_state): run the rows apart"
        )
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
        state = map_state(torch.Tensor.float, state)
    return flip(ys, lengths) if reverse else ys, state


def _of_pytorch(layer: Layer, backend: str) -> str:
    """The backend where the state is one that PyTorch alone can read."""
    if backend == fused.name:
        raise ValueError(f"scan: backend {backend!r} cannot run {type(layer).__name__}: its state: {OPAQUE}")
    return reference.name if backend == "auto" else backend


def dispatch(
    cell: Cell, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
) -> tuple[Tensor, State]:
    """Run one cell on the backend named, or on the first that can and is not measured to be slower."""
    if torch.compiler.is_dynamo_compiling():
        # the caller is compiled around the loop: unrolled, it would compile for minutes and run slower
        outside: Any = torch._dynamo.disable(_dispatch)
        return outside(cell, xs, state, lengths, resets, backend)  # type: ignore[no-any-return]
    return _dispatch(cell, xs, state, lengths, resets, backend)


def _dispatch(
    cell: Cell, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
) -> tuple[Tensor, State]:
    if backend == "auto":
        name, passed = _choose(cell, xs, lengths, resets)
        if name == reference.name and isinstance(passed[fused.name], fused.Refusal):
            text = f"{cell._get_name()} runs step by step, not compiled: {passed[fused.name]}"
            toolchain.notice(text, text)
        return BACKENDS[name].run(cell, xs, state, lengths, resets)
    reason = BACKENDS[backend].refuses(cell, xs, lengths, resets)
    if isinstance(reason, fused.Hurry):  # which is for `auto` to heed
        reason = fused.refuses(cell, xs, lengths, resets, patient=True)
    if reason is not None:
        raise ValueError(f"scan: backend {backend!r} cannot run {type(cell).__name__}: {reason}")
    return BACKENDS[backend].run(cell, xs, state, lengths, resets)


def _choose(cell: Cell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> tuple[str, dict[str, str]]:
    passed: dict[str, str] = {}
    for backend in BACKENDS.values():
        reason = backend.refuses(cell, xs, lengths, resets) or backend.slower(cell, xs, lengths, resets)
        if reason is None:
            return backend.name, passed
        passed[backend.name] = reason
    raise RuntimeError(f"scan: no backend took {type(cell).__name__}: {passed}")


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: a cell's backend, why others were passed over, its step; or the parts of a wiring."""

    layer: str
    backend: str | None
    passed: dict[str, str] = field(default_factory=dict)
    step: str = ""
    parts: tuple[Explanation, ...] = ()

    def __str__(self) -> str:
        if self.backend is None:
            inner = "\n".join(str(part) for part in self.parts) or "computed at once, without a scan"
            return f"{self.layer}\n" + "\n".join(f"  {line}" for line in inner.splitlines())
        passed = [f"  not {name}: {reason}" for name, reason in self.passed.items()]
        return "\n".join([f"{self.layer}: {self.backend}", *passed, f"  step: {self.step}"])


def explain(layer: Layer, xs: Tensor, *, lengths: Tensor | None = None, resets: Tensor | None = None) -> Explanation:
    """Say which backend `scan` would take now for every cell inside `layer`, and what stood in others' way.

    As a call would, it heeds whether the layer is in training or eval mode and whether gradients are switched on.

    Of a compiled step it says what comes in from outside of the loop, what is computed inside, arithmetic and memory,
    and what bounds its speed; of any other, what needs x alone, and what needs the state.

    >>> import everstep as es
    >>> print(explain(es.Accumulator(3), torch.zeros(2, 7, 3, dtype=torch.bfloat16)))
    Accumulator(3, 3): parallel
      not fused: the compiled loop is for float32 or float64, but torch.bfloat16 came
      not vendor: its step is none of torch.nn.LSTM, GRU, RNN
      step: products that need x alone: 0; operations that need the state: 2 pointwise; 0 FLOP a row

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or dtype, as in `scan`.
    """
    _check(layer, xs, lengths, resets, "auto", "explain")
    return _explained(layer, xs, lengths, resets)


def _explained(layer: Layer, xs: Tensor, lengths: Tensor | None, resets: Tensor | None) -> Explanation:
    title = f"{type(layer).__name__}({layer.input_size}, {layer.output_size})"
    way = layer.own_way(xs)
    if way is not None:
        return Explanation(title, "its own", step=way)
    found = layer.dispatched(xs)
    if found is None:
        parts = [
            _explained(part, xs.new_empty(1).expand(*xs.shape[:2], part.input_size), lengths, resets)
            for part in layer.scanned()
        ]
        return Explanation(title, None, parts=tuple(parts))
    cell, given = found
    assert isinstance(cell, Cell)
    name, passed = _choose(cell, given, lengths, resets)
    return Explanation(title, name, passed, fused.told(cell, given) if name == fused.name else _step(cell, given))


def _step(cell: Cell, xs: Any) -> str:
    try:
        return str(trace(cell, xs, training=True))
    except Untraceable as reason:
        return str(reason)


def flip(xs: Any, lengths: Tensor | None) -> Any:
    """Turn the valid part of every row (batch, time, ...) round in time; padding stays where it is."""
    if lengths is None:
        return map_state(lambda leaf: leaf.flip(1), xs)

    def turn(leaf: Tensor) -> Tensor:
        steps = torch.arange(leaf.shape[1], device=leaf.device)
        places = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
        return leaf.gather(1, places.view(*places.shape, *[1] * (leaf.dim() - 2)).expand_as(leaf))

    return map_state(turn, xs)


def _check(
    layer: Layer, xs: Tensor, lengths: Tensor | None, resets: Tensor | None, backend: str, caller: str = "scan"
) -> None:
    if not isinstance(layer, Layer):
        raise TypeError(f"{caller}: expected a Cell or a wiring, but {type(layer).__name__} came")
    who = f"{caller}({type(layer).__name__})"
    if not (hasattr(layer, "input_size") and hasattr(layer, "output_size")):
        missing = [size for size in ("input_size", "output_size") if not hasattr(layer, size)]
        raise TypeError(f"{who}: {' and '.join(missing)} not set; give them to Cell.__init__ or set them there")
    if backend != "auto" and (not isinstance(backend, str) or backend not in BACKENDS):
        raise ValueError(f"{who}: backend should be 'auto' or one of {', '.join(BACKENDS)}, but is {backend!r}")
    if not isinstance(xs, Tensor) or xs.dim() != 3 or xs.shape[2] != layer.input_size:
        came = f"shape {tuple(xs.shape)}" if isinstance(xs, Tensor) else type(xs).__name__
        raise ValueError(f"{who}: xs should be (batch, time, input_size={layer.input_size}), but {came} came")
    if not xs.is_floating_point():
        raise TypeError(f"{who}: xs should be floating point, but is {xs.dtype}; embed tokens first")
    parameter = _first_parameter(layer)
    if parameter is not None and parameter.device != xs.device:
        raise ValueError(f"{who}: xs is on {xs.device}, but the parameters are on {parameter.device}")
    if parameter is not None and parameter.dtype != xs.dtype and not torch.is_autocast_enabled(xs.device.type):
        raise TypeError(f"{who}: xs is {xs.dtype}, but the parameters are {parameter.dtype}")
    if lengths is not None:
        _check_lengths(who, xs, lengths)
    if resets is not None:
        _check_tensor(who, "resets", resets, tuple(xs.shape[:2]), xs.device)
        if resets.dtype != torch.bool:
            raise TypeError(f"{who}: resets should be bool, but is {resets.dtype}")


def _check_leaves(layer: Layer, initial: State) -> None:
    for name, leaf in leaves(initial):
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"{type(layer).__name__}.initial_state: leaf {name!r} is a {type(leaf).__name__}; a state is a tensor, "
                "or a tuple, named tuple, list or dict of states"
            )


def _first_parameter(module: nn.Module) -> Tensor | None:
    """`next(module.parameters(), None)` without its cost."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    found = (_first_parameter(child) for child in module._modules.values() if child is not None)
    return next((parameter for parameter in found if parameter is not None), None)


def _check_lengths(who: str, xs: Tensor, lengths: Tensor) -> None:
    batch, time = xs.shape[:2]
    _check_tensor(who, "lengths", lengths, (batch,), xs.device)
    if lengths.dtype not in _WHOLE:
        raise TypeError(f"{who}: lengths should be whole numbers (int64), but is {lengths.dtype}")
    values = [] if lengths.is_meta else lengths.tolist()
    if values and (min(values) < 0 or max(values) > time):
        row, value = next((row, value) for row, value in enumerate(values) if not 0 <= value <= time)
        raise ValueError(f"{who}: lengths should lie in 0 … {time} (time), but row {row} has {value}")


def _check_tensor(who: str, name: str, value: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{who}: {name} should be a tensor of shape {shape}, but is {type(value).__name__}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{who}: {name} should have shape {shape}, but has {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{who}: {name} should be on {device} like xs, but is on {value.device}")
