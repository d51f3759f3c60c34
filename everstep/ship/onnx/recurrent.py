"""Write recurrences: ONNX's LSTM, GRU or RNN node if the cell is one of them, else a `Scan` of the traced step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from everstep.abstract import AbstractGated
from everstep.ship.onnx.graph import Graph, info
from everstep.ship.onnx.indexing import INDEXING
from everstep.ship.onnx.node_writer import Writer, sized
from everstep.ship.onnx.pointwise_nodes import POINTWISE
from everstep.ship.onnx.tensors import TENSORS, reshaped
from everstep.ship.recording import Called, Recorded, TracedStep, with_memory
from everstep.ship.sizes import NotExported, Size
from everstep.state import leaves
from everstep.tracing.guards import modules, parameters
from everstep.tracing.refusals import Untraceable
from everstep.tracing.trace import is_free, trace

_HANDLERS = {**POINTWISE, **TENSORS, **INDEXING}
_OWN: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "lstm": ("LSTM", (0, 3, 1, 2), {}),
    "gru": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "rnn_tanh": ("RNN", (0,), {"activations": ["Tanh"]}),
    "rnn_relu": ("RNN", (0,), {"activations": ["Relu"]}),
}
"""By PyTorch kernel: the ONNX operator, the PyTorch gate at each of its gates, and further attributes.

The gate order is i f g o and r z n in PyTorch, i o f c and z r h in ONNX (Operators.md of ONNX, opset 14).
"""


def recurrence(
    w: Writer, node: fx.Node, xs: Sequence[fx.Node], state: Sequence[fx.Node], lengths: fx.Node | None
) -> list[str]:
    """Write a cell over a sequence. Returns the names of its outputs and of the leaves of its final state.

    Raises:
        NotExported: the step cannot be traced, or has an operation without a counterpart.
    """
    assert isinstance(w.source, Recorded)
    called = w.source.cells[node]
    cell = called.cell
    if isinstance(cell, AbstractGated) and cell.steps_as_declared() and len(xs) == 1:
        kernel = cell.vendor_kernel()
        if kernel is not None:
            return _own(w, cell, _OWN[kernel], xs[0], state, lengths)
    step = _step(w, called, xs, state)
    if w.shape(xs[0])[1] == 1 and lengths is None:
        return _once(w, step, xs, state)
    return _loop(w, step, xs, state, lengths)


def _own(
    w: Writer,
    cell: AbstractGated,
    kind: tuple[str, tuple[int, ...], dict[str, Any]],
    xs: fx.Node,
    state: Sequence[fx.Node],
    lengths: fx.Node | None,
) -> list[str]:
    """Write one ONNX recurrent node, whose tensors are time-first and have a dimension of directions."""
    operation, order, more = kind
    assert cell.weight_ih is not None
    assert cell.weight_hh is not None
    biases = [b for b in (cell.bias_ih, cell.bias_hh) if b is not None]
    weights = [_ordered(cell.weight_ih, order), _ordered(cell.weight_hh, order)]
    weights += [torch.cat([_ordered(b, order) for b in biases], 1)] if biases else []
    names = [w.graph.constant(t, f"{operation}.{part}") for t, part in zip(weights, ("W", "R", "B"), strict=False)]
    starts = [w.name(leaf) for leaf in state]
    short, idle = "", None
    if lengths is not None:
        short = w.like(lengths, torch.int32)
        idle = w.add("Unsqueeze", w.add("Equal", short, w.number(0, torch.int32)), w.ints([1]))
        if operation == "RNN":  # onnxruntime's reads before its buffer for length 0
            short = w.add("Max", short, w.number(1, torch.int32))
    first = [w.add("Unsqueeze", name, w.ints([0])) for name in starts]
    turned = w.add("Transpose", w.name(xs), perm=[1, 0, 2])
    given = [turned, *names, *([] if biases else [""]), short, *first]
    ys, *ends = w.add(operation, *given, outputs=1 + len(state), hidden_size=cell.hidden_size, **more)
    ys = w.add("Transpose", w.add("Squeeze", ys, w.ints([1])), perm=[1, 0, 2])
    ends = [w.add("Squeeze", end, w.ints([0])) for end in ends]
    if idle is not None:  # length 0 keeps the state, for which ONNX's nodes return zeros
        ends = [w.add("Where", idle, start, end) for start, end in zip(starts, ends, strict=True)]
        if operation == "RNN":
            ys = w.add("Where", w.add("Unsqueeze", idle, w.ints([2])), w.number(0.0, torch.float32), ys)
    return [ys, *ends]


def _ordered(parameter: Tensor, order: Sequence[int]) -> Tensor:
    """The gates of a parameter in ONNX's order, with a leading dimension of one direction."""
    parts = parameter.detach().chunk(len(order))
    return torch.cat([parts[place] for place in order])[None]


def _step(w: Writer, called: Called, xs: Sequence[fx.Node], state: Sequence[fx.Node]) -> TracedStep | Recorded:
    cell = called.cell
    like = [torch.zeros(1, 1, *node.meta["val"].shape[2:], dtype=w.dtype(node)) for node in xs]
    if any(is_free(leaf) for _, leaf in leaves(cell.initial_state(1, like[0][:, 0]))):
        return _with_memory(w, called, xs, state)
    try:
        graph = trace(cell, like[0] if len(like) == 1 else tuple(like), as_they_are=list(_HANDLERS))
    except Untraceable as error:
        raise NotExported(f"{type(cell).__name__}: {error}") from error
    return TracedStep(graph, parameters(modules(cell)))


def _with_memory(w: Writer, called: Called, xs: Sequence[fx.Node], state: Sequence[fx.Node]) -> Recorded:
    """The step of a cell whose state has dynamic sizes beside the batch."""
    assert isinstance(w.source, Recorded)
    for node in (*xs, *state):
        for size in w.shape(node):
            if isinstance(size, Size):
                w.graph.root.size(size)  # which the step finds there by its name
    return with_memory(w.source, called, xs, state, list(_HANDLERS))


def _writer(graph: Graph, step: TracedStep | Recorded, rows: Size, given: Sequence[Any]) -> Writer:
    inside = Writer(graph, step, _HANDLERS, rows if isinstance(step, TracedStep) else None)
    inside.values = dict(zip(step.free, given, strict=True))
    return inside


def _rows(w: Writer, node: fx.Node) -> Size:
    rows = w.shape(node)[0]
    if isinstance(rows, int):
        raise NotExported(f"it runs a recurrence over a fixed number of rows ({rows}) instead of the batch")
    return rows


def _once(w: Writer, step: TracedStep | Recorded, xs: Sequence[fx.Node], state: Sequence[fx.Node]) -> list[str]:
    """Write a sequence of one step without a loop."""
    given = [w.add("Squeeze", w.name(x), w.ints([1])) for x in xs]
    inside = _writer(w.graph, step, _rows(w, xs[0]), [*given, *map(w.name, state)])
    inside.write()
    y, *new = map(inside.name, step.ends)
    return [w.add("Unsqueeze", y, w.ints([1])), *new]


def _loop(
    w: Writer, step: TracedStep | Recorded, xs: Sequence[fx.Node], state: Sequence[fx.Node], lengths: fx.Node | None
) -> list[str]:
    """Write a `Scan`. Operations that depend on x alone are computed for all steps before the loop."""
    batch, time = _rows(w, xs[0]), w.shape(xs[0])[1]
    early, read, before = _hoisted(w, step, xs)
    body = Graph(w.graph)
    starts, following = [body.fresh("state") for _ in state], list(map(w.name, state))
    pieces = [body.fresh("x") for _ in (*xs, *read)]
    inside = _writer(body, step, batch, [*pieces[: len(xs)], *starts])
    inside.values |= dict(zip(read, pieces[len(xs) :], strict=True))
    inside.write([node for node in step.nodes if node not in early])
    y, *new = map(inside.name, step.ends)
    scanned = [_scanned(w, x, batch, time) for x in xs] + [before[node] for node in read]
    types = [w.dtype(x) for x in xs] + [inside.dtype(node) for node in read]
    if lengths is not None:
        live = body.fresh("live")
        y, new = _masked(body, live, y, [inside.rank(n) for n in step.ends], starts, new)
        scanned, pieces, types = [*scanned, _live(w, lengths, time)], [*pieces, live], [*types, torch.bool]
    dtypes = [w.dtype(leaf) for leaf in state]
    outs = [body.fresh("new_state") for _ in state] + [body.fresh("y")]
    for out, value in zip(outs, [*new, y], strict=True):
        body.give(out, value)
    kinds = [*dtypes, inside.dtype(step.ends[0])]
    # onnxruntime 1.20 asks for them where it does not find them by itself
    shapes = [
        [n if isinstance(n, int) else str(n) for n in shape]
        for shape in (*map(w.shape, state), inside.shape(step.ends[0]))
    ]
    graph = body.finished(
        "step",
        [info(name, dtype, None) for name, dtype in zip([*starts, *pieces], [*dtypes, *types], strict=True)],
        [info(name, dtype, shape) for name, dtype, shape in zip(outs, kinds, shapes, strict=True)],
    )
    many = len(scanned)
    found = w.graph.add(
        "Scan", *following, *scanned, outputs=len(state) + 1, body=graph, num_scan_inputs=many,
        scan_input_axes=[1] * many, scan_output_axes=[1],
    )  # fmt: skip
    found = [found] if isinstance(found, str) else found
    return [found[-1], *found[:-1]]


def _scanned(w: Writer, x: fx.Node, batch: Size, time: int | Size) -> str:
    """The name of what a loop reads for an input; numbers (batch, time) for one without features, to count the steps.

    onnxruntime crashes on a loop over empty tensors. The step joins nothing to what else it reads.
    """
    if 0 not in w.shape(x)[2:]:
        return w.name(x)
    return str(w.add("Expand", w.number(0.0, w.dtype(x)), w.ints([batch, time])))


def _hoisted(
    w: Writer, step: TracedStep | Recorded, xs: Sequence[fx.Node]
) -> tuple[list[fx.Node], list[fx.Node], dict[fx.Node, str]]:
    """The operations that depend on x and constants alone, those among them whose outputs the loop reads, and these
    outputs for all steps; none for a step with a memory, which has dynamic sizes of its own."""
    if isinstance(step, Recorded):
        return [], [], {}
    alone, fixed = set(step.free[: len(xs)]), set(step.known)
    early: set[fx.Node] = set()
    for node in step.nodes:
        if node.op != "call_function":
            continue
        needs = set(node.all_input_nodes)
        if needs <= fixed and not sized(step.arguments(node)):
            fixed.add(node)
        elif needs and needs <= fixed | alone | early:
            early.add(node)
    read = [n for n in step.nodes if n in early and any(user not in early for user in n.users)]
    whole = [n for n in step.nodes if early and (n in early or n in fixed)]
    return whole, read, _early(w, step, whole, read, xs)


def _early(
    w: Writer, step: TracedStep, early: Sequence[fx.Node], read: Sequence[fx.Node], xs: Sequence[fx.Node]
) -> dict[fx.Node, str]:
    """Write the operations that depend on x alone with all steps as rows. Their outputs are (batch, time, …)."""
    if not early:
        return {}
    batch, time = _rows(w, xs[0]), w.shape(xs[0])[1]
    every = f"({batch})*({time})"
    root = w.graph.root
    if every not in root.sizes:
        root.sizes[every] = root.add("Mul", root.size(batch), root.size(time), wish="size")
    flat = [w.add("Reshape", w.name(x), w.ints([-1, *x.meta["val"].shape[2:]])) for x in xs]
    writer = _writer(w.graph, step, Size(1, (every,)), [*flat, *step.free[len(flat) :]])
    writer.write(early)
    found = {}
    for node in read:
        sizes = step.shape(node)
        if not sizes or sizes[0] != Size(1, ("rows",)):
            raise NotExported("its step moves the batch from the first dimension")
        found[node] = reshaped(w, writer.name(node), [batch, time, *sizes[1:]])
    return found


def _live(w: Writer, lengths: fx.Node, time: int | Size) -> str:
    """The name of a mask (batch, time): whether a step is within the length of its row."""
    steps = w.add("Range", *(w.like(n, torch.int64) for n in (0, time, 1)))
    many = w.add("Unsqueeze", w.like(lengths, torch.int64), w.ints([1]))
    return str(w.add("Less", steps, many))


def _masked(
    body: Graph, live: str, y: str, ranks: Sequence[int], old: Sequence[str], new: Sequence[str]
) -> tuple[str, list[str]]:
    """Beyond the length of a row set the output to zero and keep the state."""

    def mask(rank: int) -> str:
        sizes = body.ints([-1, *[1] * (rank - 1)])
        return live if rank == 1 else str(body.add("Reshape", live, sizes))

    zero = body.constant(torch.zeros(()))
    kept = [body.add("Where", mask(rank), b, a) for rank, a, b in zip(ranks[1:], old, new, strict=True)]
    return str(body.add("Where", mask(ranks[0]), y, zero)), kept
