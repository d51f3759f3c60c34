"""Hooks of layers: they run exactly once wherever a layer is called, scanned or stepped, also within a wiring.

PyTorch runs hooks (`register_forward_hook`, and those that `weight_norm`, `spectral_norm` and `prune` of
`torch.nn.utils` register) when a module is called. But a wiring scans or steps the layers inside it, and
`everstep.scan` runs a layer without calling it; so the hooks are triggered here, through PyTorch's own code.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks


class _Inside(threading.local):
    """The modules that this thread is currently running.

    Attributes:
        ids: modules whose hooks have already run for the current call.
        instead: for a module that `around` calls, the function to run in place of its `forward`.
    """

    ids: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.instead: dict[int, Callable[..., Any]] = {}


_inside = _Inside()
_anywhere: list[int] = []
"""One item for each active `around`, in any thread: cheaper to check than thread-local data."""


def hooked(module: nn.Module) -> bool:
    """Whether calling the module runs anything besides its `forward`."""
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _global_forward_pre_hooks
        or _global_forward_hooks
    )


def pending(module: nn.Module) -> bool:
    """Whether the module has hooks that have not run yet for the current call."""
    return hooked(module) and id(module) not in _inside.ids


@contextmanager
def running(module: nn.Module) -> Iterator[None]:
    """Within the block, the module's hooks count as already run."""
    before = _inside.ids
    _inside.ids = (*before, id(module))
    try:
        yield
    finally:
        _inside.ids = before


def around(module: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`run(*args, **kwargs)` with the module's hooks before and after, as if it were its `forward`."""
    with running(module):
        _inside.instead[id(module)] = run
        _anywhere.append(0)
        try:
            return module._call_impl(*args, **kwargs)
        finally:
            _anywhere.pop()
            _inside.instead.pop(id(module), None)


def own_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a layer's `forward` so that a scan of the layer inside it does not run its hooks again."""

    @functools.wraps(forward)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not _anywhere and not hooked(self):
            return forward(self, *args, **kwargs)
        instead = _inside.instead.pop(id(self), None)
        if instead is not None:
            return instead(*args, **kwargs)
        if not hooked(self):
            return forward(self, *args, **kwargs)
        with running(self):
            return forward(self, *args, **kwargs)

    return run


def own_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a cell's `step` so that its hooks run around it, unless they have run for the whole sequence."""

    @functools.wraps(step)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if pending(self):
            return around(self, functools.partial(step, self), *args, **kwargs)
        return step(self, *args, **kwargs)

    run.everstep_hooks = True  # type: ignore[attr-defined]
    return run
