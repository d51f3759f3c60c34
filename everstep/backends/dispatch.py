"""The choice of a backend: the one that is named, or the first that can run a cell and is not measured to be slower."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from everstep.abstract import AbstractCell
from everstep.backends import parallel, reference, vendor
from everstep.backends.fused import backend as fused
from everstep.native import toolchain
from everstep.state import State


class Backend(Protocol):
    """One way to run a cell over time, equal in result to `backends/reference.py`."""

    name: str

    def refuses(self, cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
        """The reason why it cannot run this, in words that a user understands, or None."""

    def slower(self, cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> str | None:
        """The reason why another backend is measured to be faster here, or None. `auto` heeds it."""

    def run(
        self, cell: AbstractCell, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, State]:
        """Outputs (batch, time, output_size) and the final state; time ≥ 1, arguments checked."""


BACKENDS: dict[str, Backend] = {b.name: b for b in (fused, vendor, parallel, reference)}
"""In order of preference."""


def dispatch(
    cell: AbstractCell, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
) -> tuple[Tensor, State]:
    """Run one cell on the backend named, or on the first that can and is not measured to be slower."""
    if torch.compiler.is_dynamo_compiling():
        # the caller is compiled around the loop: unrolled, it would compile for minutes and run slower
        outside: Any = torch._dynamo.disable(_dispatch)
        return outside(cell, xs, state, lengths, resets, backend)  # type: ignore[no-any-return]
    return _dispatch(cell, xs, state, lengths, resets, backend)


def _dispatch(
    cell: AbstractCell, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
) -> tuple[Tensor, State]:
    if backend == "auto":
        name, passed = choose(cell, xs, lengths, resets)
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


def choose(cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None) -> tuple[str, dict[str, str]]:
    """The name of the backend that runs this cell, and why those before it were passed over.

    Raises:
        RuntimeError: there is none, which is a fault of the package.
    """
    passed: dict[str, str] = {}
    for backend in BACKENDS.values():
        reason = backend.refuses(cell, xs, lengths, resets) or backend.slower(cell, xs, lengths, resets)
        if reason is None:
            return backend.name, passed
        passed[backend.name] = reason
    raise RuntimeError(f"scan: no backend took {type(cell).__name__}: {passed}")
