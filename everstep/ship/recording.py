"""Record a form as a graph of tensor operations in which each recurrence is one node."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from everstep import hooks
from everstep.abstract import AbstractCell
from everstep.backends import reference
from everstep.backends.dispatch import taking
from everstep.networks.forms import Form, Input, Named
from everstep.ship.sizes import NotExported, Size, pair_of_sizes, solved
from everstep.state import State, leaves, unflatten
from everstep.tracing.operations import operation_name
from everstep.tracing.recorder import Functions, Recorder
from everstep.tracing.refusals import Untraceable
from everstep.tracing.trace import StepGraph, evaluating, is_free, shared_places

_NEAR = 4
"""The largest distance from a multiple of a dynamic size at which a number counts as derived from it."""


def recurrence(*_: Any) -> Any:
    """The graph's placeholder for a cell over a sequence: (inputs, state, lengths) to (ys, *state).

    Raises:
        RuntimeError: always; it must not be called.
    """
    raise RuntimeError("a recurrence of a recorded graph cannot be called; it is only written to a file")


class Called(NamedTuple):
    """A cell that is called over a sequence, and the nests that its x and its state are.

    Attributes:
        cell: the cell.
        xs, state: nests of the same kind as those of the call.
    """

    cell: AbstractCell
    xs: Any
    state: State


class Recorded:
    """A recorded form. Its sizes are numbers or `Size`s, solved from two recordings with different sizes.

    Attributes:
        nodes: the nodes in order, without the output node.
        known: the tensors of parameter and constant nodes.
        names: the names of parameter nodes.
        ends: the output nodes: the outputs, then the leaves of the state.
        inputs: the input nodes by name.
        outputs: the names of `ends`.
        cells: the call of each recurrence node.

    Raises:
        NotExported: the two recordings have different operations.
    """

    def __init__(self, first: _Once, second: _Once, sizes: tuple[dict[str, int], dict[str, int]]):
        self._sizes = sizes
        self.nodes = [node for node in first.module.graph.nodes if node.op != "output"]
        others = [node for node in second.module.graph.nodes if node.op != "output"]
        self._partner = dict(zip(self.nodes, others, strict=False))
        for node, other in zip_longest(self.nodes, others):
            if node is None or other is None or (node.op, node.target) != (other.op, other.target):
                raise NotExported("it takes other operations for other sizes of its input")
        self.known, self.names = first.known, first.names
        self.ends: list[fx.Node] = next(n.args[0] for n in first.module.graph.nodes if n.op == "output")
        self.inputs, self.outputs, self.cells = first.inputs, first.outputs, first.cells

    @property
    def free(self) -> list[fx.Node]:
        """The input nodes in order."""
        return list(self.inputs.values())

    def shape(self, node: fx.Node) -> list[int | Size]:
        """The sizes of what a node gives."""
        value, other = node.meta["val"], self._partner[node].meta["val"]
        return [solved(a, b, *self._sizes) for a, b in zip(value.shape, other.shape, strict=True)]

    def arguments(self, node: fx.Node) -> tuple[Any, dict[str, Any]]:
        """The positional and keyword arguments of a node; numbers derived from dynamic sizes are `Size`s."""
        other = self._partner[node]
        return self._met(node.args, other.args), self._met(dict(node.kwargs), dict(other.kwargs))

    def _met(self, a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node):
            if self._partner[a] is not b:
                raise NotExported("it takes other operations for other sizes of its input")
            return a
        if isinstance(a, list | tuple):
            return [self._met(p, q) for p, q in zip(a, b, strict=True)]
        if isinstance(a, dict):
            return {key: self._met(value, b[key]) for key, value in a.items()}
        if type(a) is int and type(b) is int:
            return solved(a, b, *self._sizes)
        if a != b and a == a:
            raise NotExported(f"it computes with a number that is {a} for some sizes of its input and {b} for others")
        return a


class TracedStep:
    """A traced step with the interface of `Recorded`. The size of n times the rows is `Size(n, ("rows",))`."""

    def __init__(self, graph: StepGraph, given: list[Tensor]):
        self._rows = graph.rows
        self.nodes = [node for node in graph.module.graph.nodes if node.op != "output"]
        self.ends: list[fx.Node] = next(n.args[0] for n in graph.module.graph.nodes if n.op == "output")
        places = [node for node in self.nodes if node.op == "placeholder"]
        self.free = places[len(given) :]
        self.known: dict[fx.Node, Any] = {node: t.detach() for node, t in zip(places, given, strict=False)}
        self.known |= {n: getattr(graph.module, str(n.target)) for n in self.nodes if n.op == "get_attr"}
        self.names: dict[fx.Node, str] = {}

    def shape(self, node: fx.Node) -> list[int | Size]:
        """The sizes of what a node gives."""
        return [self._size(n) for n in node.meta["val"].shape]

    def arguments(self, node: fx.Node) -> tuple[Any, dict[str, Any]]:
        """The positional and keyword arguments of a node."""
        return self._met(node.args), self._met(dict(node.kwargs))

    def _met(self, a: Any) -> Any:
        if isinstance(a, list | tuple):
            return [self._met(one) for one in a]
        if isinstance(a, dict):
            return {key: self._met(value) for key, value in a.items()}
        return self._size(a) if type(a) is int else a

    def _size(self, number: int) -> int | Size:
        return number if not number or number % self._rows else Size(number // self._rows, ("rows",))


class _Once(NamedTuple):
    """One recording of a form, for one choice of its dynamic sizes."""

    module: fx.GraphModule
    known: dict[fx.Node, Any]
    names: dict[fx.Node, str]
    inputs: dict[str, fx.Node]
    outputs: list[str]
    cells: dict[fx.Node, Called]


class _Recorder(Recorder):
    """Records a whole model. `sizes` are values of the dynamic sizes. A cell over a sequence becomes one node."""

    def __init__(self, sizes: Collection[int], operations: Collection[str]):
        super().__init__(torch.device("cpu"), 1, {}, operations)
        self._sizes = tuple(sizes)
        self.cells: dict[fx.Node, Called] = {}

    def _of_call(self, number: int) -> bool:
        return number > 0 and any(min(number % s, -number % s) <= _NEAR for s in self._sizes)

    def recurrence(
        self, cell: AbstractCell, xs: Any, state: State, lengths: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, State]:
        """Record a cell over a sequence as one node.

        Raises:
            NotExported: `resets` are given.
        """
        if resets is not None:
            raise NotExported("it resets its state within a sequence")
        first = leaves(xs)[0][1]
        before = [leaf for _, leaf in leaves(state)]
        given = [[self._node(leaf) for _, leaf in leaves(xs)], [self._node(leaf) for leaf in before]]
        node = self.graph.call_function(recurrence, (*given, None if lengths is None else self._node(lengths)))
        with torch.utils._python_dispatch._disable_current_modes():
            ys = torch.empty(*first.shape[:2], cell.output_size, dtype=first.dtype, device="meta")
            values = (ys, *(torch.empty(leaf.shape, dtype=leaf.dtype, device="meta") for leaf in before))
        node.meta |= {"val": values, "free": True, "line": ""}
        self.cells[node] = Called(cell, xs, state)
        parts = [self.graph.call_function(operator.getitem, (node, place)) for place in range(len(values))]
        made = [self._traced(part, value, True, own=True) for part, value in zip(parts, values, strict=True)]
        return made[0], unflatten(state, made[1:])


class _Holder(nn.Module):
    """A form as a module, for `torch.func.functional_call`."""

    def __init__(self, form: Form, start: State):
        super().__init__()
        self.model = form.model
        self._form, self._start = form, (start,)  # a tuple keeps a tensor from becoming a traced attribute

    def forward(self, given: list[Tensor], state: list[Tensor]) -> tuple[list[str], list[Tensor]]:
        named = dict(zip(self._form.inputs, given, strict=True))
        outputs, new = self._form.run(named, unflatten(self._start[0], state))
        return [*outputs, *leaf_names("new_state", new)], [*outputs.values(), *(leaf for _, leaf in leaves(new))]


def record(form: Form, operations: Collection[str]) -> Recorded:
    """Record a form on tensors without data, for two choices of its dynamic sizes.

    `operations` names the supported operations besides those of a traced step.

    Raises:
        NotExported: a module has a hook, the state has dynamic sizes, the form branches on tensor values, or an
            operation is not supported.
    """
    hooked = next((m for m in form.model.modules() if hooks.hooked(m)), None)
    if hooked is not None:
        raise NotExported(f"its {type(hooked).__name__} has a hook, which cannot be exported; remove it first")
    if form.before is None and any(is_free(leaf) for _, leaf in leaves(form.initial(1))):
        raise NotExported("its state has dynamic sizes, such as the memory of attention, beside the batch")
    names = list(form.sizes())
    taken = {n for t in (*form.model.parameters(), *form.model.buffers()) for n in t.shape}
    both = pair_of_sizes(names, taken | {d for one in form.inputs.values() for d in one.dims if isinstance(d, int)})
    try:
        with torch.inference_mode(False), torch.no_grad():
            # of both choices, so that a fixed number near a multiple of one is recorded alike
            near = {size for sizes in both for size in sizes.values()}
            first, second = (_recorded(form, sizes, near, operations) for sizes in both)
    except Untraceable as error:
        raise NotExported(str(error).replace("its step ", "it ")) from error
    return Recorded(first, second, both)


def _recorded(form: Form, sizes: dict[str, int], near: Collection[int], operations: Collection[str]) -> _Once:
    random = torch.Generator()
    drawn = {name: one.drawn(sizes, random) for name, one in form.inputs.items()}
    with torch.no_grad(), evaluating(form.model), taking(reference.run):
        start = form.begun(sizes, random)
    holder = _Holder(form, start)
    recorder = _Recorder(near, operations)
    own = dict(_tensors(holder))
    values: dict[str, Tensor] = {}
    for place, (name, tensor) in enumerate(own.items()):
        values[name] = recorder.input(f"value{place}", name, tensor, False)
    everywhere: dict[str, Tensor] = {name: values[first] for name, first in shared_places(holder).items()}
    given = [recorder.input(f"in{k}", name, leaf, True) for k, (name, leaf) in enumerate(drawn.items())]
    state = [recorder.input(f"state{k}", name, leaf, True) for k, (name, leaf) in enumerate(leaves(start))]
    try:
        with evaluating(form.model), taking(recorder.recurrence), recorder, Functions(recorder):
            outputs, results = torch.func.functional_call(holder, everywhere, (given, state), tie_weights=False)
        module = recorder.finish(results)
    except (Untraceable, NotExported):
        raise
    except Exception as error:
        recorder.check()
        raise NotExported(f"it cannot be followed: {error}") from error
    places = [node for node in module.graph.nodes if node.op == "placeholder"]
    parameters = dict(zip(places, own.items(), strict=False))
    known: dict[fx.Node, Any] = {node: tensor.detach() for node, (_, tensor) in parameters.items()}
    known |= {n: getattr(module, str(n.target)).detach() for n in module.graph.nodes if n.op == "get_attr"}
    told = {node: name.removeprefix("model.") for node, (name, _) in parameters.items()}
    inputs = dict(zip([*drawn, *leaf_names("state", start)], places[len(own) :], strict=True))
    return _Once(module, known, told, inputs, outputs, recorder.cells)


def with_memory(
    source: Recorded, called: Called, xs: Sequence[fx.Node], state: Sequence[fx.Node], operations: Collection[str]
) -> Recorded:
    """Record one step of a cell whose state has dynamic sizes beside the batch.

    Args:
        source: the recorded form.
        called: the cell.
        xs, state: the leaves that it is called with there.
        operations: as of `record`.

    Raises:
        NotExported: as `record`.
    """
    named = [[str(n) if isinstance(n, Size) else n for n in source.shape(node)] for node in (*xs, *state)]
    of_x, of_state = [[dims[0], *dims[2:]] for dims in named[: len(xs)]], named[len(xs) :]
    sizes = list(dict.fromkeys(n for dims in of_state for n in dims if isinstance(n, str)))

    def begin(given: Named, _: State) -> tuple[Named, State]:
        known = dict(zip(sizes, (len(one) for one in given.values()), strict=True))
        shapes = [[known[n] if isinstance(n, str) else n for n in dims] for dims in of_state]
        return {}, unflatten(called.state, [torch.zeros(shape) for shape in shapes])

    def step(given: Named, before: State) -> tuple[Named, State]:
        y, new = called.cell.step(unflatten(called.xs, list(given.values())), before)
        return {"y": y}, new

    inputs = {}
    for k, (node, dims) in enumerate(zip(xs, of_x, strict=True)):
        inputs[f"x.{k}"] = Input(tuple(dims), None if node.meta["val"].dtype.is_floating_point else 1)
    before = Form(called.cell, begin, {f"size.{name}": Input((name,)) for name in sizes})
    return record(Form(called.cell, step, inputs, before=before), operations)


def leaf_names(kind: str, state: State) -> list[str]:
    """The names of the leaves of a state in a file; a lone leaf is named `kind`.

    >>> leaf_names("state", torch.zeros(1)), leaf_names("state", (torch.zeros(1),))
    (['state'], ['state.0'])
    """
    if isinstance(state, Tensor):
        return [kind]
    return [f"{kind}.{name}" for name, _ in leaves(state)]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters, then the buffers, each once, with their names."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def operations_of(recorded: Recorded | TracedStep) -> list[str]:
    """The names of the operations in a graph."""
    return [operation_name(node.target) for node in recorded.nodes if node.op == "call_function"]
