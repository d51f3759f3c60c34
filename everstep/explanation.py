"""`explain`: which backend a call would use, and why not others. (A module named `explain` would shadow it.)"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from everstep.backends.dispatch import choose
from everstep.backends.fused import backend as fused
from everstep.cell import Cell, Layer, check_call
from everstep.tracing.refusals import Untraceable
from everstep.tracing.trace import trace


@dataclass(frozen=True)
class Explanation:
    """The result of `explain`: a cell's backend, why others were rejected, its step; or the parts of a wiring."""

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
    """Report which backend `scan` would use now for every cell inside `layer`, and why the others were rejected.

    As in a call, the answer depends on training or eval mode and on whether gradients are enabled.

    For a compiled step it reports what is computed outside of the loop and what inside, arithmetic and memory, and what
    bounds its speed; for any other step, which operations need only x, and which need the state.

    >>> import everstep as es
    >>> print(explain(es.Accumulator(3), torch.zeros(2, 7, 3, dtype=torch.bfloat16)))
    Accumulator(3, 3): parallel
      not fused: the compiled loop is for float32 or float64, but got torch.bfloat16
      not vendor: its step is none of torch.nn.LSTM, GRU, RNN
      step: products that need x alone: 0; operations that need the state: 2 pointwise; 0 FLOP a row

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape or dtype, as in `scan`.
    """
    check_call(layer, xs, lengths, resets, "auto", "explain")
    return _explained(layer, xs, lengths, resets)


def _explained(layer: Layer, xs: Tensor, lengths: Tensor | None, resets: Tensor | None) -> Explanation:
    title = f"{type(layer).__name__}({layer.input_size}, {layer.output_size})"
    way = layer.native_path(xs)
    if way is not None:
        return Explanation(title, "its own", step=way)
    found = layer.dispatched(xs)
    if found is None:
        parts = [
            _explained(part, xs.new_empty(1).expand(*xs.shape[:2], part.input_size), lengths, resets)
            for part in layer.sublayers()
        ]
        return Explanation(title, None, parts=tuple(parts))
    cell, given = found
    assert isinstance(cell, Cell)
    name, _, passed = choose(cell, given, lengths, resets)
    return Explanation(
        title, name, passed, fused.describe_step(cell, given) if name == fused.name else _step(cell, given)
    )


def _step(cell: Cell, xs: Any) -> str:
    try:
        return str(trace(cell, xs, training=True))
    except Untraceable as reason:
        return str(reason)
