"""Modules of graphs, whose source is written when they are first called and forgotten with them."""

from __future__ import annotations

import linecache
import weakref
from typing import Any

from torch import fx
from torch.fx import graph_module as of_torch


def graph_module(root: Any, graph: fx.Graph) -> fx.GraphModule:
    """An `fx.GraphModule` whose source is written at its first call and forgotten when it is freed.

    Most graphs are only read, and the source of each takes milliseconds. PyTorch keeps it for tracebacks, in
    `linecache` and in a table of its own, until the process ends: 5 KiB for each trace of an LSTM.
    """
    return _Unwritten(root, graph)


class _Unwritten(fx.GraphModule):
    def recompile(self) -> Any:
        """Leave the source to the first call; PyTorch calls this whenever the graph is set."""
        type(self).forward = _written_first  # each such module has a class of its own


def _written_first(self: fx.GraphModule, *given: Any) -> Any:
    fx.GraphModule.recompile(self)
    weakref.finalize(self, _forget, type(self).forward.__code__.co_filename).atexit = False
    return self.forward(*given)


def _forget(name: str) -> None:
    linecache.cache.pop(name, None)
    loader = getattr(of_torch, "_loader", None)  # private, and may be gone in another version
    getattr(loader, "eval_cache", {}).pop(name, None)
