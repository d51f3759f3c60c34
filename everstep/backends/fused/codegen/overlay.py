"""Shared memory of arrays: saved values overwrite the step's input, and gradients overwrite saved values.

Training of small layers is memory-bound. A hoisted input is read only once, in the forward loop, and the values that
the loop saves for backward often have its shape, as have the gradients of the backward loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import fx

from everstep.backends.fused.codegen.plan import Loop, Plan
from everstep.backends.fused.row_graph import Node
from everstep.native import products
from everstep.tracing.operations import operation_name

_OWN = {"addmm", "add", "sub"}
"""Operations whose result is new memory that their own gradient does not read."""


@dataclass(frozen=True)
class Home:
    """The location of an array: in the memory of input `host`, at offset `offset` of each step."""

    host: int
    offset: int


@dataclass(frozen=True)
class _Access:
    """The elements of an array that a phase reads or writes, in the order of its loop."""

    phase: int
    name: tuple[str, int]
    numbers: np.ndarray[Any, Any]

    def moved(self, home: Home) -> _Access:
        return _Access(self.phase, ("x", home.host), self.numbers + home.offset)


def own(before: fx.GraphModule, inputs: int) -> list[int]:
    """Inputs of the loop whose memory nothing else reads."""
    (output,) = [n for n in before.graph.nodes if n.op == "output"]
    values = list(output.args[0])
    alone = [k for k, node in enumerate(values[:inputs]) if list(node.users) == [output] and values.count(node) == 1]
    return [k for k in alone if _made(values[k])]


def _made(node: fx.Node) -> bool:
    product = node.target is products.mm
    return node.op == "call_function" and (product or operation_name(node.target) in _OWN)


def homes(hosts: Mapping[int, int], saved: Mapping[int, int], forward: Plan, backward: Plan) -> dict[int, Home]:
    """The locations of saved values, by index.

    `hosts` and `saved`: row sizes of the inputs that may be overwritten, and of the saved values.
    """
    still = {node.key for node in inputs(backward)}
    reads = list(_reads(forward))
    found: dict[int, Home] = {}
    for k, size in saved.items():
        writes = [w for w in _writes(forward) if w.name == ("saved", k)]
        others = [(home, saved[j]) for j, home in found.items()]
        places = [
            Home(host, offset)
            for host, all_of_it in hosts.items()
            if ("x", host) not in still
            for offset in range(0, all_of_it - size + 1, max(size, 1))
            if all(host != h.host or offset + size <= h.offset or h.offset + n <= offset for h, n in others)
        ]
        fitting = [place for place in places if not _clash(reads, [w.moved(place) for w in writes])]
        if fitting:
            found[k] = fitting[0]
    return found


def hindering(backward: Plan, gradient: int, size: int, host: int, found: Mapping[int, Home]) -> set[int] | None:
    """The saved values that a gradient would overwrite too early in an input of its size; None if it never fits."""
    writes = [w.moved(Home(host, 0)) for w in _writes(backward) if w.name == ("g", gradient)]
    if len({int(n) for w in writes for n in w.numbers}) < size:
        return None  # arrays not written in every step are cleared before it
    reads = [a for a in _reads(backward) if a.name[0] == "saved" and a.name[1] in found]
    return {a.name[1] for a in reads if _clash([a.moved(found[a.name[1]])], writes)}


def inputs(order: Plan) -> Iterator[Node]:
    """The inputs that a plan reads, with repetitions."""
    yield from (arg.node for node in order.nodes for arg in node.args if arg.node.op == "input")


def _clash(reads: Iterable[_Access], writes: Sequence[_Access]) -> bool:
    """Whether an element would be overwritten before it is read."""
    return any(_early(write, read) for read in reads for write in writes if read.name == write.name)


def _early(write: _Access, read: _Access) -> bool:
    if write.phase > read.phase or not np.intersect1d(write.numbers, read.numbers).size:
        return False
    # a loop computes many elements at once, but reads everything of an element before it writes it
    return write.phase < read.phase or not np.array_equal(write.numbers, read.numbers)


def _reads(order: Plan) -> Iterator[_Access]:
    for phase, nodes in _phases(order):
        for arg in (arg for node in nodes for arg in node.args if arg.node.op == "input"):
            yield _Access(phase, arg.node.key, arg.place.indices())


def _writes(order: Plan) -> Iterator[_Access]:
    for phase, nodes in _phases(order):
        for where, k, place in (store for node in nodes for store in order.stores.get(id(node), [])):
            yield _Access(phase, (where, k), place.indices())


def _phases(order: Plan) -> Iterator[tuple[int, list[Node]]]:
    return ((number, p.nodes if isinstance(p, Loop) else [p]) for number, p in enumerate(order.phases))
