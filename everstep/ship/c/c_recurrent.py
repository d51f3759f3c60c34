"""Write a cell over a sequence as a loop in C++."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from everstep.ship.c.c_convolutions import CONVOLUTIONS
from everstep.ship.c.c_indexing import INDEXING
from everstep.ship.c.c_pointwise import POINTWISE
from everstep.ship.c.c_reductions import REDUCTIONS
from everstep.ship.c.c_tensors import TENSORS
from everstep.ship.c.c_values import Value, times
from everstep.ship.c.c_writer import CWriter
from everstep.ship.recording import Called, Recorded, TracedStep, with_memory
from everstep.ship.sizes import NotExported
from everstep.state import leaves
from everstep.tracing.guards import modules, parameters
from everstep.tracing.refusals import Untraceable
from everstep.tracing.trace import is_free, trace

STEP = {**POINTWISE, **REDUCTIONS, **TENSORS, **INDEXING, **CONVOLUTIONS}
"""What writes each operation of a step, by its PyTorch name."""


def recurrence(
    w: CWriter, node: fx.Node, xs: Sequence[fx.Node], state: Sequence[fx.Node], lengths: fx.Node | None
) -> list[Value]:
    """Write a cell over a sequence. Returns its outputs and the leaves of its final state.

    Raises:
        NotExported: the step cannot be traced, or has an operation without a loop.
    """
    assert isinstance(w.source, Recorded)
    called = w.source.cells[node]
    step = _step(w.source, called, xs, state)
    given, kept = [w.value(x) for x in xs], [w.copied(w.value(leaf)) for leaf in state]
    rows, time = given[0].sizes[:2]
    if rows != 1 and isinstance(step, Recorded):
        raise NotExported(f"{type(called.cell).__name__}: several rows with a memory have no loop in C++ here")
    ys = w.each(given[0].kind, (rows, time, called.cell.output_size), lambda: "0")
    row, at = ("0" if rows == 1 else w.lines.fresh("r")), w.lines.fresh("t")
    end = time if lengths is None else f"least<int64_t>({w.value(lengths).one([row])}, {time})"
    if rows != 1:
        w.line(f"for (int64_t {row} = 0; {row} < {rows}; ++{row})")
    w.line(f"for (int64_t {at} = 0; {at} < {end}; ++{at}) {{")
    w.line("const Mark mark(s->arena);")
    inside = CWriter(w.lines, step, STEP, w.constants)
    before = [_row(leaf, row) for leaf in kept]
    inside.values = dict(zip(step.free, [*(_now(x, row, at) for x in given), *before], strict=True))
    inside.write()
    y, *new = [inside.value(end) for end in step.ends]
    w.store(_now(ys, row, at), y)
    made = [inside.copied(leaf) for leaf in new]  # all are there before one takes the place of an old one
    for old, leaf in zip(before, made, strict=True):
        w.store(old, leaf)
    w.line("}")
    return [ys, *kept]


def _row(x: Value, row: str) -> Value:
    """The numbers of one row."""
    at = x.moved(0 if row == "0" else times(row, x.strides[0]))
    return Value(at, x.kind, (1, *x.sizes[1:]), x.strides)


def _now(x: Value, row: str, at: str) -> Value:
    """The numbers of one row and step."""
    one = _row(x, row)
    return Value(one.moved(times(at, x.strides[1])), x.kind, (1, *x.sizes[2:]), (one.strides[0], *one.strides[2:]))


def _step(source: Recorded, called: Called, xs: Sequence[fx.Node], state: Sequence[fx.Node]) -> TracedStep | Recorded:
    cell = called.cell
    like = [torch.zeros(1, 1, *node.meta["val"].shape[2:], dtype=node.meta["val"].dtype) for node in xs]
    if any(is_free(leaf) for _, leaf in leaves(cell.initial_state(1, like[0][:, 0]))):
        return with_memory(source, called, xs, state, list(STEP))
    try:
        graph = trace(cell, like[0] if len(like) == 1 else tuple(like), as_they_are=list(STEP))
    except Untraceable as error:
        raise NotExported(f"{type(cell).__name__}: {error}") from error
    return TracedStep(graph, parameters(modules(cell)))
