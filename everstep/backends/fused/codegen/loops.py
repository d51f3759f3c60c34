"""C++ for one loop: pointwise values and reductions of one shape, for all active rows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from everstep.backends.fused.codegen.plan import Loop, Plan, fusible
from everstep.backends.fused.row_graph import REDUCTIONS, Node, Place, Shape, View, dense

_PIECE = 128
"""Numbers processed per prefetch of equally many."""
_VECTOR = 8
"""Numbers of a dimension that is worth processing in whole vectors."""
_EXPRESSIONS = {
    "copy": "{0}",
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "neg": "(-{0})",
    "reciprocal": "(T(1) / {0})",
    "sigmoid": "es_sigmoid({0})",
    "tanh": "es_tanh({0})",
    "exp": "es_exp({0})",
    "relu": "({0} <= 0 ? T(0) : {0})",
    "abs": "({0} < 0 ? -{0} : {0})",
    "sign": "(T({0} > 0) - T({0} < 0))",
    "sqrt": "es_sqrt({0})",
    "rsqrt": "(T(1) / es_sqrt({0}))",
    "maximum": "({0} > {1} || {0} != {0} ? {0} : {1})",
    "minimum": "({0} < {1} || {0} != {0} ? {0} : {1})",
    "clamp_min": "({0} < {1} ? {1} : {0})",
    "clamp_max": "({0} > {1} ? {1} : {0})",
    "where": "({0} != 0 ? {1} : {2})",
    **{
        name: f"T({{0}} {sign} {{1}})"
        for name, sign in zip(("gt", "ge", "lt", "le"), (">", ">=", "<", "<="), strict=True)
    },
    "eq": "T({0} == {1})",
    "ne": "T({0} != {1})",
    # in numbers, since GCC 12 loses lanes of && and || between a mask that is computed and one that is loaded
    "and": "(T({0} != 0) * T({1} != 0))",
    "or": "T(T({0} != 0) + T({1} != 0) != 0)",
    "not": "T({0} == 0)",
    "pow": "es_pow({0}, {1})",
    **{name: f"es_{name}({{0}})" for name in ("log", "log1p", "expm1", "sin", "cos", "erf", "atan", "floor")},
}


class LoopWriter:
    """Generates the lines of a loop, with its reads and writes.

    Args:
        loop: the loop.
        plan: the plan of the loop.
        sums: names of arrays that are accumulated.
        source, target: give the address of a row in a node that is read, and in an array, at the step `at`, or `out` in
            a caller's array.
        next_step: distance to a later step whose memory is prefetched, where memory bounds the loop; "" for none.
        scratch: gives the index of a node's working memory, and its row stride.
    """

    real = "T"
    """The type of a value."""

    def __init__(
        self,
        loop: Loop,
        plan: Plan,
        sums: frozenset[str],
        source: Callable[[Node], str],
        target: Callable[[str, int], str],
        scratch: Callable[[Node], tuple[int, int]],
        next_step: str = "",
    ):
        self.loop, self.added, self.source, self.target, self.scratch = loop, sums, source, target, scratch
        self.next_step = next_step
        members = {id(n) for n in loop.nodes}
        self.reads: list[tuple[Node, Place]] = []
        self.numbers: dict[tuple[int, Place], int] = {}  # indices of the reads
        for node in loop.nodes:
            for arg in node.args:
                if arg.node.op == "literal" or (id(arg.node) in members and fusible(node, arg)):
                    continue
                key = id(arg.node), _flat_place(arg.place)
                if key not in self.numbers:
                    self.numbers[key] = len(self.reads)
                    self.reads.append((arg.node, key[1]))
        self.writes = [
            (node, where, k, _flat_place(place))
            for node in loop.nodes
            for where, k, place in plan.stores.get(id(node), [])
        ]
        self.sums = [(n, _flat_place(_reduced_place(n))) for n in loop.nodes if n.op in REDUCTIONS]
        places = [p for _, p in self.reads] + [p for *_, p in self.writes] + [p for _, p in self.sums]
        self.shape, strides = _side_by_side(*_collapse(loop.shape, [p.strides for p in places]))
        first, second = len(self.reads), len(self.reads) + len(self.writes)
        self.read_strides, self.write_strides = strides[:first], strides[first:second]
        self.sum_strides = strides[second:]
        # sums along the innermost dimension are kept in a variable
        self.held = [n for n, walk in enumerate(self.sum_strides) if not (walk and walk[-1])]
        self.divided = divided(loop, self.shape)
        self.fetched = bool(self.next_step) and self.divided
        """Whether the memory of a later step is prefetched."""
        self.carried = {n: m for n in range(len(self.writes)) if (m := self._same(n)) is not None}
        """Outputs that are also carried to the next step; non-temporal stores copy them from there."""

    def write(self) -> list[str]:
        """The lines of the loop."""
        indent = "        " + "  " * len(self.shape[:-1])
        return [
            "    {",
            *(self.share() if self.divided else ["      for (int64_t i = me; i < active; i += team) {"]),
            *self._pointers(),
            *(
                f"{'        ' + '  ' * d}for (int64_t k{d} = 0; k{d} < {n}; ++k{d}) {{"
                for d, n in enumerate(self.shape[:-1])
            ),
            *self._fetch(),
            *(indent + line for line in self._numbers()),
            *(
                f"        if (nontemporal) es_nontemporal_copy(nontemporal{n} + low, q{n} + low, high - low);"
                for n in self.carried
            ),
            *(["        }"] if self.fetched else []),
            *("        " + "  " * d + "}" for d in reversed(range(len(self.shape[:-1])))),
            "      }",
            "    }",
        ]

    @property
    def _inner(self) -> int:
        return self.shape[-1] if self.shape else 1

    def share(self) -> list[str]:
        """The loop over all rows, in which each thread owns the numbers `low` to `high`, in whole vectors."""
        return [
            f"      const int64_t units = ({self._inner} + 15) / 16;",
            "      const int64_t low = units * me / team * 16;",
            f"      const int64_t high = me + 1 == team ? {self._inner} : units * (me + 1) / team * 16;",
            "      for (int64_t i = 0; i < active; ++i) {",
        ]

    def _pointers(self) -> list[str]:
        lines = [
            "        const int64_t r = ROW(i), at = offset[r] + t, out = outer[r] + t; (void)at; (void)out; (void)r;"
        ]
        for number, (node, place) in enumerate(self.reads):
            lines.append(f"        const T* const p{number} = {self.source(node)} + {place.offset};")
        for number, (_, where, k, place) in enumerate(self.writes):
            start = f"{self.target(where, k)} + {place.offset}"
            if number in self.carried:
                _, where, k, place = self.writes[self.carried[number]]
                lines.append(f"        T* const nontemporal{number} = {start};")
                start = f"nontemporal ? {self.target(where, k)} + {place.offset} : nontemporal{number}"
            lines.append(f"        T* const q{number} = {start};")
        for number, (node, _) in enumerate(self.sums):
            k, distance = self.scratch(node)
            lines.append(f"        T* const s{number} = w{k} + i * {distance};")
            lines.append(f"        for (int64_t j = 0; j < {node.size}; ++j) s{number}[j] = {_start(node, 'T(0)')};")
        return lines

    def _same(self, number: int) -> int | None:
        """The write of an output's values to the next state, in a memory-bound loop; None if there is none."""
        node, where, *_ = self.writes[number]
        if where != "y" or not self.fetched or self.write_strides[number] != [1]:
            return None
        same = (m for m, (other, to, *_) in enumerate(self.writes) if other is node and to == "next")
        return next((m for m in same if self.write_strides[m] == [1]), None)

    def _fetch(self) -> list[str]:
        """Prefetch the memory of a later step, which the processor does not predict, interleaved with the work."""
        if not self.fetched:
            return []
        starts = [f"{self.source(node)} + {place.offset}" for node, place in self.reads]
        starts += [
            f"{self.target(where, k)} + {place.offset}"
            for number, (_, where, k, place) in enumerate(self.writes)
            if number not in self.carried
        ]
        starts = later(starts, self.next_step)
        lines = [f"        const T* const n{number} = {start};" for number, start in enumerate(starts)]
        lines.append(f"        for (int64_t from = low, all = high; from < all; from += {_PIECE}) {{")
        lines.append(f"        const int64_t low = from, high = all - from < {_PIECE} ? all : from + {_PIECE};")
        lines.append("        for (int64_t j = low; j < high; j += 64 / int64_t(sizeof(T))) {")
        lines += [f"          __builtin_prefetch(n{number} + j);" for number in range(len(starts))]
        return [*lines, "        }"]

    def _numbers(self) -> list[str]:
        """The innermost loop, with initialisation before and stores after it."""
        lines = [f"T h{n} = {_start(self.sums[n][0], '0')};" for n in self.held]
        if not any(self.sums[n][0].op == "amax" for n in self.held):
            clauses = "".join(f" reduction(+:h{n})" for n in self.held)
            lines.append(f"#pragma omp simd{clauses}")
        bounds = ("low", "high") if self.divided else ("0", str(self._inner))
        lines.append(f"for (int64_t j = {bounds[0]}; j < {bounds[1]}; ++j) {{")
        lines += ["  " + line for line in self._body()]
        lines.append("}")
        for n in self.held:
            target = _at(f"s{n}", self.sum_strides[n])
            lines.append(f"{target} = {_joined(self.sums[n][0], target, f'h{n}')};")
        return lines

    def _body(self) -> list[str]:
        lines, stored = [], []  # stored after all reads, which may share the memory (overlay.py)
        variables: dict[int, str] = {}
        for node in self.loop.nodes:
            terms = [self._term(node, arg, variables) for arg in node.args]
            if node.op in REDUCTIONS:
                n = next(n for n, (other, _) in enumerate(self.sums) if other is node)
                target = f"h{n}" if n in self.held else _at(f"s{n}", self.sum_strides[n])
                lines.append(f"{target} = {_joined(node, target, terms[0])};")
                continue
            variable = variables[id(node)] = f"v{len(variables)}"
            lines.append(f"const {self.real} {variable} = {_EXPRESSIONS[node.op].format(*terms)};")
            stored += [self._store(n, variable) for n, (owner, *_) in enumerate(self.writes) if owner is node]
        return [*lines, *stored]

    def _term(self, node: Node, arg: View, variables: dict[int, str]) -> str:
        if arg.node.op == "literal":
            return self._literal(arg.node.key)
        if id(arg.node) in variables and fusible(node, arg):
            return variables[id(arg.node)]
        return self._load(self.numbers[id(arg.node), _flat_place(arg.place)])

    def _literal(self, value: float) -> str:
        return _number(value)

    def _load(self, number: int) -> str:
        return _at(f"p{number}", self.read_strides[number])

    def _store(self, number: int, variable: str) -> str:
        _, where, k, _ = self.writes[number]
        sign = "+=" if f"{where}{k}" in self.added else "="
        return f"{_at(f'q{number}', self.write_strides[number])} {sign} {variable};"


def later(starts: Sequence[str], distance: str) -> list[str]:
    """The addresses that depend on the step, moved to another step."""
    moved = [re.sub(r" (at|out) ", rf" (\1 {distance}) ", s) for s in starts]
    return sorted({s for s, before in zip(moved, starts, strict=True) if s != before})


def _at(pointer: str, strides: Sequence[int]) -> str:
    """The element at the current loop counters."""
    outer = "".join(f" + k{d} * {s}" for d, s in enumerate(strides[:-1]) if s)
    last = strides[-1] if strides else 0
    step = "" if last == 0 else " + j" if last == 1 else f" + j * {last}"
    return f"{pointer}[0{outer}{step}]"


def _start(node: Node, zero: str) -> str:
    return zero if node.op == "sum" else "-__builtin_inf()"


def _joined(node: Node, so_far: str, more: str) -> str:
    """The sum or maximum of two values; NaN counts as largest."""
    return f"{so_far} + {more}" if node.op == "sum" else f"({more} > {so_far} || {more} != {more} ? {more} : {so_far})"


def divided(loop: Loop, shape: Sequence[int]) -> bool:
    """Whether threads share the numbers of each row, rather than the rows."""
    return len(shape) <= 1 and not loop.reduces and math.prod(shape) >= 32


def _flat_place(place: Place) -> Place:
    return place.reduced()


def _reduced_place(node: Node) -> Place:
    """The place of a reduction's result over the shape that it reads."""
    strides = tuple(0 if n != m else s for n, m, s in zip(node.over, node.shape, dense(node.shape), strict=True))
    return Place(node.over, strides)


def _collapse(shape: Shape, strides: Sequence[tuple[int, ...]]) -> tuple[list[int], list[list[int]]]:
    """Merge adjacent dimensions that every access traverses contiguously."""
    sizes, walks = list(shape), [list(s) for s in strides]
    d = 0
    while d + 1 < len(sizes):
        if all(w[d] == w[d + 1] * sizes[d + 1] for w in walks):
            sizes[d : d + 2] = [sizes[d] * sizes[d + 1]]
            for w in walks:
                w[d : d + 2] = [w[d + 1]]
        else:
            d += 1
    return sizes, walks


def _side_by_side(sizes: list[int], walks: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """The dimension innermost along which most accesses find their numbers side by side, or one number for all."""
    apart = [sum(walk[d] not in (0, 1) for walk in walks) for d in range(len(sizes))]
    long = [d for d, size in enumerate(sizes) if size >= _VECTOR]
    best = min(reversed(long), key=lambda d: apart[d], default=len(sizes) - 1)
    if not sizes or apart[best] >= apart[-1]:
        return sizes, walks
    order = [*(d for d in range(len(sizes)) if d != best), best]
    return [sizes[d] for d in order], [[walk[d] for d in order] for walk in walks]


def _number(value: float) -> str:
    if math.isnan(value):
        return 'T(__builtin_nan(""))'
    if math.isinf(value):
        return "T(__builtin_inf())" if value > 0 else "T(-__builtin_inf())"
    return f"T({value!r})"
