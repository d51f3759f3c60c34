"""The schedule of a row graph: products, and loops that compute many pointwise values at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from everstep.backends.fused.row_graph import REDUCTIONS, Builder, Node, Place, Shape, View, dense, flat, ordered, whole


@dataclass(frozen=True)
class End:
    """A result of the step: `where` names an array of the compiled code, `k` is its index."""

    where: str
    k: int
    view: View


@dataclass
class Loop:
    """Pointwise values and reductions over one shape."""

    shape: Shape
    nodes: list[Node] = field(default_factory=list)

    @property
    def reduces(self) -> bool:
        """Whether the loop has reductions."""
        return any(node.op in REDUCTIONS for node in self.nodes)


@dataclass
class Plan:
    """The phases of every step, in order.

    Attributes:
        phases: products (nodes) and loops.
        stores: for each node, the arrays (name, index, place in the array's row) that its loop writes.
        scratch: nodes that need memory within the step.
        carried: products written directly into the next state: node to leaf.
        scattered: for each scatter, the arrays (name, index) that its parts are written to.
    """

    phases: list[Node | Loop]
    stores: dict[int, list[tuple[str, int, Place]]]
    scratch: list[Node]
    carried: dict[int, int]
    scattered: dict[Node, list[tuple[str, int]]]

    @property
    def independent(self) -> list[list[Node] | Loop]:
        """The phases, with neighbouring products of which none reads another as one."""
        found: list[list[Node] | Loop] = []
        for phase in self.phases:
            before = found[-1] if found else None
            if isinstance(phase, Loop):
                found.append(phase)
            elif isinstance(before, list) and all(arg.node not in before for arg in phase.args):
                before.append(phase)
            else:
                found.append([phase])
        return found

    @property
    def nodes(self) -> list[Node]:
        """All computed nodes."""
        return [node for p in self.phases for node in ([p] if isinstance(p, Node) else p.nodes)]

    @property
    def products(self) -> list[Node]:
        """The products, in order."""
        return [p for p in self.phases if isinstance(p, Node)]


def plan(build: Builder, ends: Sequence[End], carry: str) -> Plan:
    """Schedule the computation of `ends`; `carry` names the array of the state that the next step reads."""
    taken: set[int] = set()
    computed = [_computed(build, end, carry, taken) for end in ends]
    nodes = ordered(end.view.node for end in computed)
    active = [n for n in nodes if n.op not in ("input", "literal")]
    levels = _levels(active, computed)

    stores: dict[int, list[tuple[str, int, Place]]] = {}
    carried: dict[int, int] = {}
    scattered: dict[Node, list[tuple[str, int]]] = {}
    for end in computed:
        node = end.view.node
        if node.op == "product":
            carried[id(node)] = end.k
        elif node.op == "scatter":
            scattered.setdefault(node, []).append((end.where, end.k))
        else:
            stores.setdefault(id(node), []).append((end.where, end.k, Place(node.shape, dense(node.shape))))

    read = _read_from_memory(active, levels)
    scratch = [n for n in active if (id(n) in read or n.op in ("product", *REDUCTIONS)) and id(n) not in carried]
    for node in active:
        if node.op != "scatter":
            continue
        targets = scattered.setdefault(node, [])
        if id(node) in read:
            targets.append(("scratch", scratch.index(node)))
        for place, arg in zip(node.parts, node.args, strict=True):
            for where, k in targets:
                stores.setdefault(id(arg.node), []).append((where, k, _over(place, arg.node.shape)))
    for node in active:
        if node.op not in ("product", "scatter", *REDUCTIONS) and id(node) in read:
            stores.setdefault(id(node), []).append(
                ("scratch", scratch.index(node), Place(node.shape, dense(node.shape)))
            )
    return Plan(_phases(active, levels), stores, scratch, carried, scattered)


def _over(place: Place, shape: Shape) -> Place:
    """The place of a part over the shape of its value, up to dimensions of size 1."""
    rest = list(zip(place.shape, place.strides, strict=True))
    strides = tuple(0 if n == 1 else rest.pop(0)[1] for n in shape)
    return Place(shape, strides, place.offset)


def _computed(build: Builder, end: End, carry: str, taken: set[int]) -> End:
    """The end as a whole value that a loop (or, for the carried state, a product) computes."""
    node, view = end.view.node, end.view
    direct = node.op not in ("input", "literal", "product", *REDUCTIONS)
    if view.whole and node.op == "product" and end.where == carry and id(node) not in taken:
        taken.add(id(node))
        return end
    if view.whole and direct:
        return end
    return End(end.where, end.k, whole(build.node("copy", view.shape, [view], key=(end.where, end.k))))


def fusible(reader: Node, arg: View) -> bool:
    """Whether `arg` can stay in a register until `reader` uses it, in one loop."""
    node = arg.node
    if node.op in ("input", "literal", "product", "scatter", *REDUCTIONS) or reader.op in ("product", "scatter"):
        return False
    return arg.whole and flat(node.iteration) == flat(reader.iteration)


def _levels(active: Sequence[Node], ends: Sequence[End]) -> dict[int, int]:
    """The phase of every node: as early as its arguments allow, but products, which so become neighbours, and pointwise
    values as late as readers allow."""
    levels: dict[int, int] = {}
    for node in active:
        level = 0
        for arg in node.args:
            if id(arg.node) in levels:
                # a scatter is complete when its parts are, without a phase of its own
                later = 0 if fusible(node, arg) or node.op == "scatter" else 1
                level = max(level, levels[id(arg.node)] + later)
        levels[id(node)] = level
    readers: dict[int, list[tuple[Node, View]]] = {}
    for node in active:
        for arg in node.args:
            readers.setdefault(id(arg.node), []).append((node, arg))
    leaving = {id(end.view.node) for end in ends}
    for node in reversed(active):
        if node.op in ("scatter", *REDUCTIONS) or id(node) not in readers or id(node) in leaving:
            continue
        if any(reader.op == "scatter" for reader, _ in readers[id(node)]):
            continue
        levels[id(node)] = min(
            levels[id(reader)] - (0 if fusible(reader, arg) else 1) for reader, arg in readers[id(node)]
        )
    return levels


def _read_from_memory(active: Sequence[Node], levels: dict[int, int]) -> set[int]:
    """Nodes that a reader needs in memory, because it runs in another phase or reads them out of order."""
    return {
        id(arg.node)
        for node in active
        if node.op != "scatter"
        for arg in node.args
        if not (fusible(node, arg) and levels[id(arg.node)] == levels[id(node)])
    }


def _phases(active: Sequence[Node], levels: dict[int, int]) -> list[Node | Loop]:
    phases: list[Node | Loop] = []
    for level in range(max(levels.values(), default=-1) + 1):
        here = [n for n in active if levels[id(n)] == level]
        phases.extend(n for n in here if n.op == "product")
        loops: dict[Shape, Loop] = {}
        for node in here:
            if node.op not in ("product", "scatter"):
                loops.setdefault(flat(node.iteration), Loop(flat(node.iteration))).nodes.append(node)
        phases.extend(loops.values())
    return phases
