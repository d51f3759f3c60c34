"""Modules of graphs whose source is forgotten with them."""

from __future__ import annotations

import linecache
import weakref
from typing import Any

from torch import fx
from torch.fx import graph_module as of_torch


def graph_module(root: Any, graph: fx.Graph) -> fx.GraphModule:
    """An `fx.GraphModule` whose source is forgotten when it is freed.

    PyTorch keeps the source of every such module for tracebacks, in `linecache` and in a table of its own, until the
    process ends: 5 KiB for each trace of an LSTM.
    """
    made = fx.GraphModule(root, graph)
    weakref.finalize(made, _forget, type(made).forward.__code__.co_filename).atexit = False
    return made


def _forget(name: str) -> None:
    linecache.cache.pop(name, None)
    loader = getattr(of_torch, "_loader", None)  # private, and may be gone in another version
    getattr(loader, "eval_cache", {}).pop(name, None)
