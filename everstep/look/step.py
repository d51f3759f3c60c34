"""A traced step with names: the parameter rows that each value sums, and the values that are gates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from everstep.cell import Cell
from everstep.tracing.guards import fingerprint
from everstep.tracing.operations import kind_of, operation_name
from everstep.tracing.refusals import Untraceable
from everstep.tracing.trace import StepGraph, trace

BOUNDED: dict[str, tuple[float, float]] = {
    "sigmoid": (0.0, 1.0),
    "hardsigmoid": (0.0, 1.0),
    "_softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
}
"""Activations and their ranges; those of `hardtanh` and `clamp` depend on their arguments."""

_LINEAR = {"add", "sub", "rsub", "mul", "div", "neg", "addcmul", "_to_copy"}
_KEEPS_PLACES = {"native_layer_norm"}


class ParameterRows(NamedTuple):
    """Rows `start` … `stop` of a parameter, or of one of the matrices in it ("weight_hh[0]").

    Their products form a whole value, or the part of a concatenated value that begins at feature `at`.
    """

    parameter: str
    start: int
    stop: int
    at: int | None = None


class Gate(NamedTuple):
    """A node that is a bounded activation of a sum of products, with its range."""

    name: str
    node: fx.Node
    low: float
    high: float


@dataclass(frozen=True)
class NamedStep:
    """A traced step.

    Attributes:
        graph: the trace.
        parameters: the name of each placeholder of a parameter or buffer.
        inputs: the placeholder of x.
        state: the placeholders of the state's leaves.
        rows: for each node, the rows whose products it sums; empty after an activation or a further matrix.
        constant: the nodes that depend on parameters alone.
        gates: every bounded activation of such a sum, in the order of the step.
    """

    graph: StepGraph
    parameters: dict[fx.Node, str]
    inputs: fx.Node
    state: tuple[fx.Node, ...]
    rows: dict[fx.Node, frozenset[ParameterRows]]
    constant: frozenset[fx.Node]
    gates: tuple[Gate, ...]


def named_step(cell: Cell, x: Tensor) -> NamedStep:
    """Trace one step of `cell` in eval mode, for inputs like x (batch, input_size), and name its values.

    The rows of a value are those of the matrices whose products with x or h_{t-1} it combines by slices, sums, scalings
    and layer normalisation. The *first bounded activation* (`BOUNDED`) of such a value is a gate; its output is the
    gate's value. A gate is named after its rows:

    - in a `Gated` cell, by the gate (`x.f` and `h.f` are the rows of f);
    - in a cell with a tuple of names `gates`, by the block, with rows divided into equal blocks. `blocks` declares
      other divisions: `{"peephole": ("i", "f", "o")}` or `{"weight_ih": {"s": 10, "h": 64}}`;
    - else by the parameter ("forget" for a module `forget` of type `nn.Linear`), with the position of the rows if it
      gives several values ("gates 2 of 4").

    If a value sums several rows, their names are joined by "+". The second gate of a name is called f.2, the third f.3;
    σ(−a) is called 1−f if σ(a) is f.

    Known limit: if a candidate has no activation, the next activation of its sum is taken for it.

    Raises:
        Untraceable: the step cannot be traced, with the reason.
    """
    graph = trace(cell, x[:1, None])
    nodes = list(graph.module.graph.nodes)
    named = [*cell.named_parameters(), *cell.named_buffers()]
    holders = [node for node in nodes if node.op == "placeholder"]
    parameters = dict(zip(holders, (name for name, _ in named), strict=False))
    constant: set[fx.Node] = set(parameters)
    matrices = {name for name, parameter in cell.named_parameters() if parameter.dim()}
    rows: dict[fx.Node, frozenset[ParameterRows]] = {}
    gates: list[Gate] = []
    for node in nodes:
        rows[node] = frozenset()
        if node.op == "get_attr":
            constant.add(node)
        elif parameters.get(node) in matrices:
            rows[node] = frozenset([ParameterRows(parameters[node], 0, len(_value(node)))])
        elif node.op == "call_function":
            if all(other in constant for other in node.all_input_nodes):
                constant.add(node)
            summed = _summed(node, rows, constant)
            bounds = _bounds(node)
            if bounds is not None and summed and node not in constant:
                name = f"{'1−' * _is_complement(node)}{gate_name(cell, summed)}"
                gates.append(Gate(_free(name, gates), node, *bounds))
            rows[node] = frozenset() if _ends(node) else summed
    state = tuple(holders[len(named) + 1 :])
    return NamedStep(graph, parameters, holders[len(named)], state, rows, frozenset(constant), tuple(gates))


class NamedSteps:
    """Traced steps with names, kept from one call to the next, for models that are asked again and again.

    Each place keeps one step, and traces anew where its cell is another than last time, as far as `fingerprint` knows.

    >>> import everstep as es
    >>> kept = NamedSteps()
    >>> one, other = (kept.at(0, es.GRU(2, 3), torch.zeros(1, 2)) for _ in range(2))
    >>> one is other, one is kept.at(0, es.GRU(2, 4), torch.zeros(1, 2))
    (True, False)
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, NamedStep | str]] = {}

    def at(self, place: int, cell: Cell, x: Tensor) -> NamedStep:
        """`named_step(cell, x)`, or the one that this place keeps. Raises as `named_step`."""
        key = fingerprint(cell, x[:1, None])
        known = self._known.get(place)
        if known is None or known[0] != key:
            try:
                known = key, named_step(cell, x)
            except Untraceable as problem:
                known = key, str(problem)
            self._known[place] = known
        if isinstance(known[1], str):
            raise Untraceable(known[1])
        return known[1]


def gate_values(step: NamedStep, cell: Cell, xs: Tensor, state: Sequence[Tensor]) -> dict[str, Tensor]:
    """The values (steps, units) of every gate, from the inputs (steps, input_size) and the leaves before each step."""
    size = step.graph.rows
    wanted = {gate.node: gate.name for gate in step.gates}
    found: dict[str, list[Tensor]] = {gate.name: [] for gate in step.gates}
    parameters = [value.detach() for value in (*cell.parameters(), *cell.buffers())]
    for start in range(0, len(xs), size):
        given = [leaf[start : start + size] for leaf in (xs, *state)]
        count = len(given[0])
        whole = [torch.cat([leaf, leaf[-1:].expand(size - count, *leaf.shape[1:])]) for leaf in given]
        watch = _Watch(step.graph.module, wanted)
        with torch.no_grad():
            watch.run(*parameters, *whole)
        for name, value in watch.seen.items():
            found[name].append(value.expand(size, *value.shape[1:])[:count].flatten(1))
    return {name: torch.cat(pieces) for name, pieces in found.items()}


class _Watch(fx.Interpreter):
    """Runs the graph and stores the values of the `wanted` nodes."""

    def __init__(self, module: fx.GraphModule, wanted: dict[fx.Node, str]):
        super().__init__(module)
        self.wanted, self.seen = wanted, dict[str, Tensor]()

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node in self.wanted:
            self.seen[self.wanted[node]] = value
        return value


def _value(node: fx.Node) -> Tensor:
    value: Tensor = node.meta["val"]
    return value


def _ends(node: fx.Node) -> bool:
    """Whether the result of the node is no longer a sum of rows."""
    name, kind = operation_name(node.target), kind_of(node.target)
    return name not in _KEEPS_PLACES if kind == "reduction" else kind == "pointwise" and name not in _LINEAR


def _bounds(node: fx.Node) -> tuple[float, float] | None:
    name = operation_name(node.target)
    if name in ("hardtanh", "clamp"):
        low, high = (*node.args[1:3], None, None)[:2] if len(node.args) > 1 else (-1.0, 1.0)
        bounded = isinstance(low, int | float) and isinstance(high, int | float)
        return (float(low), float(high)) if bounded else None  # type: ignore[arg-type]
    return BOUNDED.get(name)


def _is_complement(node: fx.Node) -> bool:
    """Whether the node is σ(−a) = 1 − σ(a)."""
    return operation_name(node.target) == "sigmoid" and operation_name(node.all_input_nodes[0].target) == "neg"


def _summed(
    node: fx.Node, rows: dict[fx.Node, frozenset[ParameterRows]], constant: Iterable[fx.Node]
) -> frozenset[ParameterRows]:
    """The rows of the arguments of an operation, positioned as in the result, as if the operation were linear."""
    name, kind = operation_name(node.target), kind_of(node.target)
    if kind == "product":
        matrices = [other for other in node.all_input_nodes[-2:] if other in constant and _value(other).dim() > 1]
        return rows[matrices[-1]] if matrices and node not in constant else frozenset()
    if name == "slice":
        dim, start, stop = (*node.args[1:4], 0, 0, None)[:3]
        return _narrowed(node.args[0], dim, start, stop, rows)
    if name == "select":
        source: Any = node.args[0]
        dim, place = node.args[1:3]
        return frozenset(
            ParameterRows(f"{part.parameter}[{place}]", 0, _value(source).shape[1])
            if _holds_matrices(source, dim)
            else part
            for part in rows[source]
        )
    if name == "getitem":
        source = node.args[0]
        which: Any = node.args[1]
        if operation_name(source.target) in ("split", "split_with_sizes"):
            dim = source.args[2] if len(source.args) > 2 else 0
            sizes = [part.shape[dim] for part in source.meta["val"]]
            start = sum(sizes[:which])
            return _narrowed(source.args[0], dim, start, start + sizes[which], rows)
        return rows[source]
    if name == "cat":
        return _joined(node, rows)
    others = [other for other in node.all_input_nodes if other not in constant or node in constant]
    if name in _KEEPS_PLACES:
        others = others[:1]
    found = frozenset[ParameterRows]().union(*(rows[other] for other in others))
    if found and name in ("add", "sub"):  # an added vector may have its own name
        found = found.union(*(rows[other] for other in node.all_input_nodes if other in constant))
    return found


def _holds_matrices(node: Any, dim: Any) -> bool:
    """Whether a slice of a parameter along `dim` is one of several matrices stored in it."""
    return node.op == "placeholder" and dim == 0 and _value(node).dim() > 2


def _narrowed(
    source: Any, dim: Any, start: Any, stop: Any, rows: dict[fx.Node, frozenset[ParameterRows]]
) -> frozenset[ParameterRows]:
    """The rows `start` … `stop` of each block along the dimension; blocks along another dimension stay whole."""
    size = _value(source).shape[dim]
    first, last, _ = slice(start, stop).indices(size)
    return narrowed(rows[source], size, first, last)


def narrowed(rows: Iterable[ParameterRows], size: int, first: int, last: int) -> frozenset[ParameterRows]:
    """The rows of the features `first` … `last` − 1 of a value with `size` features."""
    found = set()
    for part in rows:
        count = part.stop - part.start
        if part.at is None and count != size:
            found.add(part)
            continue
        begin = part.at or 0
        low, high = max(first, begin), min(last, begin + count)
        if low < high:
            at = None if (low, high) == (first, last) else low - first
            found.add(ParameterRows(part.parameter, part.start + low - begin, part.start + high - begin, at))
    return frozenset(found)


def _joined(node: fx.Node, rows: dict[fx.Node, frozenset[ParameterRows]]) -> frozenset[ParameterRows]:
    """The rows of concatenated values, each with its offset."""
    found: set[ParameterRows] = set()
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    begin, pieces = 0, node.args[0]
    assert isinstance(pieces, list | tuple)
    for piece in pieces:
        assert isinstance(piece, fx.Node)
        size = _value(piece).shape[dim]
        for part in rows[piece]:
            if part.at is not None or part.stop - part.start == size:
                part = part._replace(at=begin + (part.at or 0))
            found.add(part)
        begin += size
    return frozenset(found)


def gate_name(cell: nn.Module, rows: Iterable[ParameterRows]) -> str:
    """A name for a sum of rows: as the cell declares it, else the parameter names with the position of the rows."""
    blocks = [(part, *block_name(cell, part)) for part in sorted(rows, key=lambda part: part[:3])]
    if declared := {block for _, block, is_declared in blocks if is_declared}:
        return "+".join(sorted(declared))
    places: dict[str, set[str]] = {}
    matrices = [part for part, _, _ in blocks if cell.get_parameter(part.parameter.partition("[")[0]).dim() > 1]
    for part, block, _ in blocks:
        if part in matrices or not matrices:  # a bias gives a name only if it is declared
            places.setdefault(block, set()).add(_short(part.parameter))
    return "+".join(f"{'+'.join(sorted(names))} {block}".strip() for block, names in sorted(places.items()))


def block_name(cell: nn.Module, rows: ParameterRows) -> tuple[str, bool]:
    """A name for rows within their parameter, and whether the cell declares it.

    The name of a gate, or of several with commas; else "2 of 4" for the second quarter, "64:100" for other rows, "" for
    all rows.
    """
    whole = height(cell, rows.parameter)
    cuts = {0: 0}
    names = _blocks(cell, rows.parameter, whole)
    for place, (_, size) in enumerate(names, 1):
        cuts[max(cuts) + size] = place
    size = rows.stop - rows.start
    if size == whole:
        return (names[0][0], True) if len(names) == 1 else ("", False)
    if rows.start in cuts and rows.stop in cuts:
        return ", ".join(name for name, _ in names[cuts[rows.start] : cuts[rows.stop]]), True
    if whole % size == 0 and rows.start % size == 0:
        return f"{rows.start // size + 1} of {whole // size}", False
    return f"{rows.start}:{rows.stop}", False


def _short(parameter: str) -> str:
    """The name of the module for its `weight`, else the parameter's name without "weight_"."""
    path, _, leaf = parameter.rpartition(".")
    return path.rpartition(".")[2] if leaf == "weight" and path else leaf.removeprefix("weight_")


def height(cell: nn.Module, parameter: str) -> int:
    """The number of rows of a parameter, or of one matrix in it, "weight_hh[0]"."""
    name, _, _ = parameter.partition("[")
    value = dict([*cell.named_parameters(), *cell.named_buffers()])[name]
    return value.shape[1] if name != parameter else len(value)


def _blocks(cell: nn.Module, parameter: str, whole: int) -> list[tuple[str, int]]:
    """The blocks of a parameter's rows with their sizes, as its owner declares them.

    Declared by `blocks`, a mapping from parameters to names of equal blocks or to a mapping from names to numbers of
    rows; by the gates of an equation; or by `gates`, a tuple of names.
    """
    path, _, leaf = parameter.partition("[")[0].rpartition(".")
    owner = cell.get_submodule(path)
    attribute = {"ih": "input_gates", "hh": "hidden_gates"}.get(leaf.rpartition("_")[2], "gates")
    blocks = getattr(owner, "blocks", None)
    declared = blocks.get(leaf) if isinstance(blocks, Mapping) else None
    if declared is None:
        declared = getattr(owner, attribute, getattr(owner, "gates", ()))
    if isinstance(declared, Mapping):
        counted = all(isinstance(rows, int) for rows in declared.values())
        return list(declared.items()) if counted and sum(declared.values()) == whole else []
    if not isinstance(declared, tuple) or not all(isinstance(name, str) for name in declared):
        return []
    return [(name, whole // len(declared)) for name in declared] if declared and whole % len(declared) == 0 else []


def _free(name: str, taken: Sequence[Gate]) -> str:
    names = {gate.name for gate in taken}
    if name not in names:
        return name
    return next(f"{name}.{k}" for k in range(2, len(names) + 3) if f"{name}.{k}" not in names)
