"""The step of a cell as a diagram of products, pointwise operations and named gates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, fx

from everstep.cell import Cell
from everstep.look.step import NamedStep, ParameterRows, block_name, gate_name, height, named_step, narrowed
from everstep.state import leaves
from everstep.tracing.operations import kind_of, operation_name

SYMBOLS = {
    "add": "+",
    "sub": "−",
    "mul": "∘",
    "div": "÷",
    "neg": "−",
    "sigmoid": "σ",
    "maximum": "max",
    "minimum": "min",
    "_softmax": "softmax",
    "native_layer_norm": "normalise",
    "sum": "Σ",
    "cat": "[ ; ]",
    "reciprocal": "1 ÷",
    "rsqrt": "1 ÷ √",
    "sqrt": "√",
    "abs": "| · |",
    "remainder": "mod",
    "where": "choose",
    "eq": "=",
    "ne": "≠",
    "lt": "<",
    "le": "≤",
    "gt": ">",
    "ge": "≥",
    "pow": "power",
    "bmm": "·",
    "mm": "·",
    "mv": "·",
}
Span = tuple[int, int] | None
"""A range of a value's last dimension; None for all of it."""


class Item(NamedTuple):
    """A node: its lines of text, its kind ("input", "product", "gate", "pointwise", "output") and its shape."""

    lines: tuple[str, ...]
    kind: str
    shape: str


@dataclass
class Diagram:
    """Nodes and edges; `delays` lead from an output to the input that it becomes one step later."""

    items: dict[str, Item] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    delays: list[tuple[str, str]] = field(default_factory=list)

    def kind(self, *kinds: str) -> list[str]:
        """The nodes of these kinds."""
        return [key for key, item in self.items.items() if item.kind in kinds]


def step_diagram(cell: Cell, x: Tensor) -> Diagram:
    """The diagram of one step of `cell` for inputs like x (batch, input_size), traced in eval mode.

    Slices and other views are not nodes. Each slice of a value is a separate node instead, so that a product that
    computes four gates appears as four. Parameters are named at the operations that use them.

    Raises:
        Untraceable: the step cannot be traced, with the reason.
    """
    return _Drawer(cell, named_step(cell, x)).draw(x)


def leaf_name(name: str) -> str:
    """The name of a state leaf: h for a single one, s0 for one with only an index."""
    return "h" if name == "state" else f"s{name}" if name[0].isdigit() else name


def symbol(name: str, when: str) -> str:
    """A name with the time as subscript, as mathtext."""
    plain = name.replace("_", r"\_")
    return rf"$\mathit{{{plain}}}_{{{when}}}$"


class _Drawer:
    def __init__(self, cell: Cell, step: NamedStep):
        self.cell, self.step = cell, step
        self.diagram = Diagram()
        self.keys: dict[tuple[fx.Node, Span], str] = {}
        self.gates = {gate.node: gate.name for gate in step.gates}

    def draw(self, x: Tensor) -> Diagram:
        names = [leaf_name(name) for name, _ in leaves(self.cell.initial_state(1, x[:1]))]
        for node, name, when in [(self.step.inputs, "x", "t"), *((n, k, "t-1") for n, k in self._states(names))]:
            self._add((node, None), (symbol(name, when),), "input", _shape(node, None))
        output, *ends = self._results()
        shown: dict[str, list[str]] = {}
        nodes: dict[str, fx.Node] = {}
        for name, node in (("y", output), *zip(names, ends, strict=True)):  # a state leaf may also be called y
            key = self._value(node, None)
            assert key is not None
            shown[key] = list(dict.fromkeys([*shown.get(key, []), name]))
            nodes[key] = node
        for key, same in shown.items():
            text = " = ".join(symbol(name, "t") for name in same)
            end = self._add(None, (text,), "output", _shape(nodes[key], None))
            self.diagram.edges.append((key, end))
            back = [place for place, end_node in enumerate(ends) if self._value(end_node, None) == key]
            self.diagram.delays += [(end, self.keys[self.step.state[place], None]) for place in back]
        return self.diagram

    def _states(self, names: list[str]) -> list[tuple[fx.Node, str]]:
        return list(zip(self.step.state, names, strict=True))

    def _results(self) -> list[fx.Node]:
        end = next(node for node in self.step.graph.module.graph.nodes if node.op == "output")
        return list(end.args[0])

    def _add(self, value: tuple[fx.Node, Span] | None, lines: tuple[str, ...], kind: str, shape: str) -> str:
        key = f"{len(self.diagram.items)}"
        self.diagram.items[key] = Item(lines, kind, shape)
        if value is not None:
            self.keys[value] = key
        return key

    def _value(self, node: fx.Node, span: Span) -> str | None:
        """The node of the diagram for this part of a value; None for what depends on parameters alone."""
        if node in self.step.constant:
            return None
        size = _size(node)
        if span is not None and span == (0, size):
            span = None
        if (node, span) in self.keys:
            return self.keys[node, span]
        name, kind = operation_name(node.target), kind_of(node.target)
        cut = _cut(node)
        if cut is not None:
            source, start, stop = cut
            return self._value(source, (start, stop) if span is None else (start + span[0], start + span[1]))
        piece = _piece(node, span)
        if piece is not None:
            return self._value(*piece)
        if name == "getitem":  # normalisation returns its value with mean and scale
            return self._value(node.args[0], span)  # type: ignore[arg-type]
        if kind == "view" and name != "cat" and (span is None or _size(node.all_input_nodes[0]) == size):
            return self._value(node.all_input_nodes[0], span)
        if span is not None and not self._passes(node, size):
            whole = self._value(node, None)
            assert whole is not None
            key = self._add((node, span), (f"[{self._part(node, span)}]",), "pointwise", _shape(node, span))
            self.diagram.edges.append((whole, key))
            return key
        if kind == "product":
            return self._product(node, span)
        return self._operation(node, span)

    def _passes(self, node: fx.Node, size: int) -> bool:
        """Whether a part of the result depends only on the same part of each argument."""
        if kind_of(node.target) == "product":
            return any(other in self.step.constant for other in node.all_input_nodes)
        inputs = node.all_input_nodes
        return kind_of(node.target) == "pointwise" and all(_value(n).dim() > 0 and _size(n) == size for n in inputs)

    def _product(self, node: fx.Node, span: Span) -> str:
        matrices = [other for other in node.all_input_nodes if other in self.step.constant]
        lines = [self._named(other, span) for other in matrices]
        if not matrices:
            lines = [SYMBOLS["mm"]]
        elif len(matrices) > 1:  # the bias comes first
            lines = [*lines[1:], f"+ {lines[0]}"]
        inputs = [other for other in node.all_input_nodes if other not in self.step.constant]
        if matrices:
            depth = _size(inputs[0])
            width = _size(node) if span is None else span[1] - span[0]
            lines.insert(1, f"{width} × {depth}")
        parts = [self._value(other, None) for other in inputs]
        return self._joined((node, span), tuple(lines), "product", parts)

    def _operation(self, node: fx.Node, span: Span) -> str:
        name = operation_name(node.target)
        label = SYMBOLS.get(name, name.strip("_"))
        numbers = [arg for arg in node.args[:2] if isinstance(arg, int | float)]
        constants = [self._named(other, span) for other in node.all_input_nodes if other in self.step.constant]
        if name == "rsub":
            label = f"{numbers[0]:g} −" if numbers else "−"
        elif name in ("clamp", "hardtanh"):
            low, high = (_bound(arg) for arg in (*node.args[1:3], None, None)[:2])
            label = f"clip to {low or '−∞'} … {high or '∞'}"
        elif name in ("add", "sub", "mul", "div", "pow", "remainder", "eq", "ne", "lt", "le", "gt", "ge") and numbers:
            label = f"{'×' if name == 'mul' else label} {numbers[0]:g}"
        elif name in ("add", "sub", "mul", "div") and constants:
            label = f"{label} {constants[0]}"
        lines = [label]
        gate = self.gates.get(node)
        if gate is not None:
            lines = [f"{gate if span is None else self._part(node.all_input_nodes[0], span)} = {label}"]
        parts = [self._value(other, span) for other in _tensors(node) if other not in self.step.constant]
        return self._joined((node, span), tuple(lines), "gate" if gate is not None else "pointwise", parts)

    def _joined(self, value: tuple[fx.Node, Span], lines: tuple[str, ...], kind: str, parts: list[str | None]) -> str:
        key = self._add(value, lines, kind, _shape(*value))
        self.diagram.edges += [(part, key) for part in parts if part is not None]
        return key

    def _part(self, node: fx.Node, span: tuple[int, int]) -> str:
        """The name of a slice of a block of gates."""
        if node.op == "placeholder" and (parts := tuple(getattr(self.cell, "parts", ()))):  # of the input
            share = _size(node) // len(parts)
            if span[0] % share == 0 and span[1] - span[0] == share:
                return str(parts[span[0] // share])
        return gate_name(self.cell, narrowed(self.step.rows[node], _size(node), *span)) or f"{span[0]}:{span[1]}"

    def _named(self, node: fx.Node, span: Span) -> str:
        """The name of a parameter with the rows that are used."""
        rows = self.step.rows.get(node, frozenset())
        if len(rows) != 1:
            sources = [self.step.parameters[n] for n in _ancestors(node) if n in self.step.parameters]
            return ", ".join(sources) or "constant"
        (found,) = rows
        if span is not None and found.stop - found.start > span[1] - span[0]:
            found = ParameterRows(found.parameter, found.start + span[0], found.start + span[1])
        block, _ = block_name(self.cell, found)
        whole = found.start == 0 and found.stop == height(self.cell, found.parameter)
        return found.parameter if whole or not block else f"{found.parameter} [{block}]"


def _bound(arg: Any) -> str:
    """A number as text, "" for None."""
    return f"{arg:g}".replace("-", "−") if isinstance(arg, int | float) else ""


def _tensors(node: fx.Node) -> list[fx.Node]:
    """The arguments that are nodes, with repetitions, lists flattened."""
    found: list[fx.Node] = []
    for arg in node.args:
        found += [part for part in (arg if isinstance(arg, list | tuple) else [arg]) if isinstance(part, fx.Node)]
    return list(dict.fromkeys(found))


def _ancestors(node: fx.Node) -> list[fx.Node]:
    found = [node]
    for other in found:
        found += [source for source in other.all_input_nodes if source not in found]
    return found


def _cut(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """The source and range of a slice of the last dimension; None if the node is not one."""
    source: Any = node.args[0] if node.args else None
    if operation_name(node.target) == "slice":
        dim, start, stop = (*node.args[1:4], 0, 0, None)[:3]
        if dim not in (-1, _value(source).dim() - 1):
            return None
        first, last, step = slice(start, stop, *node.args[4:5]).indices(_size(source))
        return (source, first, last) if step == 1 else None
    if operation_name(node.target) == "getitem" and operation_name(source.target) in ("split", "split_with_sizes"):
        place: Any = node.args[1]
        dim = source.args[2] if len(source.args) > 2 else 0
        if dim not in (-1, source.meta["val"][0].dim() - 1):
            return None
        sizes = [part.shape[-1] for part in source.meta["val"]]
        return source.args[0], sum(sizes[:place]), sum(sizes[: place + 1])
    return None


def _piece(node: fx.Node, span: Span) -> tuple[fx.Node, Span] | None:
    """The operand of a concatenation that contains this span, and the span within it."""
    if span is None or operation_name(node.target) != "cat":
        return None
    pieces, dim = (*node.args, 0)[:2]
    begin = 0
    for piece in pieces if dim in (-1, _value(node).dim() - 1) else ():  # type: ignore[union-attr]
        size = _size(piece)  # type: ignore[arg-type]
        if begin <= span[0] and span[1] <= begin + size:
            return piece, (span[0] - begin, span[1] - begin)  # type: ignore[return-value]
        begin += size
    return None


def _value(node: fx.Node) -> Tensor:
    value = node.meta["val"]
    found: Tensor = value[0] if isinstance(value, tuple) else value
    return found


def _size(node: fx.Node) -> int:
    value = _value(node)
    return value.shape[-1] if value.dim() else 1


def _shape(node: fx.Node, span: Span) -> str:
    shape = ["B", *map(str, _value(node).shape[1:])]
    if span is not None:
        shape[-1] = str(span[1] - span[0])
    return f"({', '.join(shape)})"
