"""The choice of a backend: the named one, or the first that can run the cell and is not known to be slower."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from everstep.abstract import AbstractCell
from everstep.backends import parallel, reference, vendor
from everstep.backends.fused import backend as fused
from everstep.backends.protocol import Backend, Refusal, Run
from everstep.native import toolchain
from everstep.state import State

BACKENDS: dict[str, Backend] = {b.name: b for b in (fused, vendor, parallel, reference)}
"""All backends, in order of preference."""
_taker: ContextVar[Callable[..., tuple[Any, State]] | None] = ContextVar("taker", default=None)


@contextmanager
def taking(run: Callable[..., tuple[Any, State]]) -> Iterator[None]:
    """Within the block, `run(cell, xs, state, lengths, resets)` takes every call in the place of a backend.

    That is for who writes calls down, as an export does.
    """
    token = _taker.set(run)
    try:
        yield
    finally:
        _taker.reset(token)


def dispatch(
    cell: AbstractCell, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
) -> tuple[Tensor, State]:
    """Run a cell on the named backend, or with "auto" on the first that can and is not known to be slower."""
    taker = _taker.get()
    if taker is not None:
        return taker(cell, xs, state, lengths, resets)
    if torch.compiler.is_dynamo_compiling():
        # `torch.compile` breaks the graph around the loop; an unrolled loop would compile for minutes and run slower
        outside: Any = torch._dynamo.disable(_dispatch)
        return outside(cell, xs, state, lengths, resets, backend)  # type: ignore[no-any-return]
    return _dispatch(cell, xs, state, lengths, resets, backend)


def _dispatch(
    cell: AbstractCell, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None, backend: str
) -> tuple[Tensor, State]:
    if backend == "auto":
        name, run, passed = choose(cell, xs, lengths, resets)
        if name == reference.name and isinstance(passed[fused.name], fused.StepRefusal):
            text = f"{cell._get_name()} runs step by step, not compiled: {passed[fused.name]}"
            toolchain.notice(text, text)
        return run(state)
    found = BACKENDS[backend].prepare(cell, xs, lengths, resets)
    if isinstance(found, fused.Hurry):  # a reason for `auto` only
        found = fused.prepare(cell, xs, lengths, resets, patient=True)
    if isinstance(found, Refusal):
        raise ValueError(f"scan: backend {backend!r} cannot run {type(cell).__name__}: {found}")
    return found(state)


def choose(
    cell: AbstractCell, xs: Any, lengths: Tensor | None, resets: Tensor | None
) -> tuple[str, Run, dict[str, str]]:
    """The name of the backend for this call, its run, and the reasons why earlier backends were skipped.

    Raises:
        RuntimeError: there is none, which is a bug of the package.
    """
    passed: dict[str, str] = {}
    for backend in BACKENDS.values():
        found = backend.prepare(cell, xs, lengths, resets)
        if isinstance(found, Refusal):
            passed[backend.name] = found
            continue
        reason = backend.slower(cell, xs, lengths, resets)
        if reason is None:
            return backend.name, found, passed
        passed[backend.name] = reason
    raise RuntimeError(f"scan: no backend took {type(cell).__name__}: {passed}")
