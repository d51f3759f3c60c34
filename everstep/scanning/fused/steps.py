"""C++ for one step of the loop over time: products, and loops over numbers, for all rows that have such a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from everstep.scanning.fused.graph import REDUCTIONS, Node, Place, Shape, dense
from everstep.scanning.fused.plan import Loop, Plan, fusible

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
    "and": "T({0} != 0 && {1} != 0)",
    "or": "T({0} != 0 || {1} != 0)",
    "not": "T({0} == 0)",
    "pow": "es_pow({0}, {1})",
    **{name: f"es_{name}({{0}})" for name in ("log", "log1p", "expm1", "sin", "cos", "erf", "atan", "floor")},
}


def leading(size: int, bytes_each: int) -> int:
    """The distance of rows in memory: whole vectors, and no power of two, which would fall on the same cache lines."""
    width = -(-size // 16) * 16
    return width + 16 if width * bytes_each % 1024 == 0 else width


@dataclass(frozen=True)
class Setting:
    """What a loop over time is about.

    Attributes:
        backward: from the last step to the first.
        states: sizes of the leaves that are carried.
        sizes: numbers in a row of every array, by name.
        sums: names of arrays that are added to (gradients of constants).
        optional: names of arrays that may be absent.
        following: for each leaf of the state, the array in which the forward loop left it after every step, or None.
        apart: distance of the steps of arrays that lie within others.
    """

    backward: bool
    states: tuple[int, ...]
    sizes: dict[str, int]
    sums: frozenset[str]
    optional: frozenset[str]
    following: tuple[str | None, ...]
    apart: dict[str, int]


class Steps:
    """Writes what one step does, in a frame that defines `t`, `active`, `me`, `team`, `ROW`, `WAIT` and the arrays.

    Attributes:
        carry: what the next step gets: "next", or backward "dprev".
        lds: distance of the rows of each leaf of the state, in the memory `cur` and `nxt`.
        scratch_lds: likewise of the memory `w` of values between phases.
        zeros: values of which no phase writes every number.
        loose: numbers of a row's one loop, where no number needs another of the step before; else 0.
    """

    def __init__(self, plan: Plan, setting: Setting, bytes_each: int):
        self.plan, self.setting, self.bytes = plan, setting, bytes_each
        self.carry = "dprev" if setting.backward else "next"
        self.lds = [leading(n, bytes_each) for n in setting.states]
        self.scratch_lds = [leading(n.size, bytes_each) for n in plan.scratch]
        self.zeros = [n for n in plan.scattered if sum(math.prod(p.shape) for p in n.parts) < n.size]
        self.loose = self._loose()
        self._scratch = {id(n): k for k, n in enumerate(plan.scratch)}

    def _loose(self) -> int:
        loop = self.plan.phases[0] if len(self.plan.phases) == 1 else None
        if not isinstance(loop, Loop) or self.zeros:
            return 0
        carried = [
            arg
            for node in loop.nodes
            for arg in node.args
            if arg.node.op == "input" and arg.node.key[0] == ("dnext" if self.setting.backward else "prev")
        ]
        divided = _divided(loop, [math.prod(loop.shape)])
        return math.prod(loop.shape) if divided and all(arg.whole for arg in carried) else 0

    def write(self) -> list[str]:
        """The lines of the loop's body."""
        lines = []
        if self.zeros:
            lines += self._clear(self.zeros)
        for number, phase in enumerate(self.plan.phases):
            if isinstance(phase, Node):
                lines += self._product(phase)
            else:
                lines += self._loop(phase, f"loop{number}")
            # numbers that need no others wait where whole rows are moved
            moved = "resets" if self.setting.backward else "resets || length[ROW(active - 1)] == t + 1"
            lines.append(f"    if ({moved}) WAIT();" if self.loose else "    WAIT();")
        return lines

    def _clear(self, nodes: Sequence[Node]) -> list[str]:
        lines = [
            "    for (int64_t i = me; i < active; i += team) {",
            "      const int64_t at = offset[ROW(i)] + t; (void)at;",
        ]
        for node in nodes:
            # what is added up over the steps is not cleared in each
            for where, k in [a for a in self.plan.scattered[node] if f"{a[0]}{a[1]}" not in self.setting.sums]:
                lines.append(f"      for (int64_t j = 0; j < {node.size}; ++j) {self._target(where, k)}[j] = 0;")
        return [*lines, "    }", "    WAIT();"]

    def _product(self, node: Node) -> list[str]:
        number = self.plan.products.index(node)
        view = node.args[0]
        length = math.prod(view.shape)
        source, ld = self._compact(view.node)
        if id(node) in self.plan.carried:
            target, target_ld = f"nxt{self.plan.carried[id(node)]}", self.lds[self.plan.carried[id(node)]]
        else:
            k = self._scratch[id(node)]
            target, target_ld = f"w{k}", self.scratch_lds[k]
        return [
            "    {",
            f"      const int64_t panels = ({node.size} + panel - 1) / panel;",
            f"      gemm({source} + {view.place.offset}, {ld}, active, pack{number}, {length}, {node.size}, "
            f"panels * me / team, panels * (me + 1) / team, {target}, {target_ld}, 0);",
            "    }",
        ]

    def _compact(self, node: Node) -> tuple[str, int]:
        """Where a product finds its operand, row after row."""
        if node.op == "input":
            k = node.key[1]
            return f"cur{k}", self.lds[k]
        if id(node) in self.plan.carried:
            k = self.plan.carried[id(node)]
            return f"nxt{k}", self.lds[k]
        k = self._scratch[id(node)]
        return f"w{k}", self.scratch_lds[k]

    def _target(self, where: str, k: int) -> str:
        """The start of this row's part of an array."""
        name = f"{where}{k}"
        if where == "scratch":
            return f"(w{k} + i * {self.scratch_lds[k]})"
        if where == self.carry:
            return f"(nxt{k} + i * {self.lds[k]})"
        if name in self.setting.sums:
            return name
        step = f"{name}_step" if name in self.setting.optional else str(self.setting.sizes[name])
        return f"({name} + at * {step})"

    def _source(self, node: Node) -> str:
        """The start of this row's part of what is read."""
        if node.op != "input":
            if id(node) in self.plan.carried:
                k = self.plan.carried[id(node)]
                return f"(nxt{k} + i * {self.lds[k]})"
            k = self._scratch[id(node)]
            return f"(w{k} + i * {self.scratch_lds[k]})"
        kind, k = node.key
        if kind in ("prev", "dnext") and (kind == "dnext") == self.setting.backward:
            return f"(cur{k} + i * {self.lds[k]})"
        if kind == "prev":
            size, array = self.setting.states[k], self.setting.following[k]
            return (
                f"(resets && resets[at] ? before_init{k} + r * {size} : t == 0 ? before{k} + r * {size} "
                f": {array} + (at - 1) * {size})"
            )
        if kind == "next":
            return f"({self.setting.following[k]} + at * {self.setting.states[k]})"
        if kind == "const":
            return f"const{k}"
        return f"({kind}{k} + at * {self.setting.apart.get(f'{kind}{k}', node.size)})"

    def _loop(self, loop: Loop, label: str) -> list[str]:
        """Pointwise values and reductions over one shape, for all active rows."""
        members = {id(n) for n in loop.nodes}
        reads: list[tuple[Node, Place]] = []
        names: dict[tuple[int, Place], str] = {}
        for node in loop.nodes:
            for arg in node.args:
                if arg.node.op == "literal" or (id(arg.node) in members and fusible(node, arg)):
                    continue
                place = _flat_place(arg.place)
                if (id(arg.node), place) not in names:
                    names[id(arg.node), place] = f"p{len(reads)}"
                    reads.append((arg.node, place))
        writes = [
            (node, where, k, _flat_place(place))
            for node in loop.nodes
            for where, k, place in self.plan.stores.get(id(node), [])
        ]
        sums = [(n, _flat_place(_reduced_place(n))) for n in loop.nodes if n.op in REDUCTIONS]
        places = [p for _, p in reads] + [p for *_, p in writes] + [p for _, p in sums]
        shape, strides = _collapse(loop.shape, [p.strides for p in places])

        inner = shape[-1] if shape else 1
        divided = _divided(loop, shape)
        lines = ["    {"]
        if divided:
            # whole vectors for each thread
            lines.append(f"      const int64_t units = {-(-inner // 16)};")
            lines.append("      const int64_t low = units * me / team * 16;")
            lines.append(f"      const int64_t high = me + 1 == team ? {inner} : units * (me + 1) / team * 16;")
            lines.append("      for (int64_t i = 0; i < active; ++i) {")
        else:
            lines.append("      for (int64_t i = me; i < active; i += team) {")
        lines.append("        const int64_t r = ROW(i), at = offset[r] + t; (void)at; (void)r;")
        for number, ((node, place), _) in enumerate(zip(reads, places, strict=False)):
            lines.append(f"        const T* const p{number} = {self._source(node)} + {place.offset};")
        for number, (_, where, k, place) in enumerate(writes):
            lines.append(f"        T* const q{number} = {self._target(where, k)} + {place.offset};")
        for number, (node, _) in enumerate(sums):
            k = self._scratch[id(node)]
            start = "T(0)" if node.op == "sum" else "-__builtin_inf()"
            lines.append(f"        T* const s{number} = w{k} + i * {self.scratch_lds[k]};")
            lines.append(f"        for (int64_t j = 0; j < {node.size}; ++j) s{number}[j] = {start};")
        indent = "        "
        for depth, n in enumerate(shape[:-1]):
            lines.append(f"{indent}for (int64_t k{depth} = 0; k{depth} < {n}; ++k{depth}) {{")
            indent += "  "

        def place_of(number: int, variable: str) -> str:
            outer = "".join(f" + k{d} * {s}" for d, s in enumerate(strides[number][:-1]) if s)
            last = strides[number][-1] if strides[number] else 0
            step = "" if last == 0 else " + j" if last == 1 else f" + j * {last}"
            return f"{variable}[0{outer}{step}]"

        first_write, first_sum = len(reads), len(reads) + len(writes)
        held = [n for n in range(len(sums)) if not (strides[first_sum + n] and strides[first_sum + n][-1])]
        clauses = ""
        for n in held:
            start = "0" if sums[n][0].op == "sum" else "-__builtin_inf()"
            lines.append(f"{indent}T h{n} = {start};")
            if sums[n][0].op == "sum":
                clauses += f" reduction(+:h{n})"
        if not any(sums[n][0].op == "amax" for n in held):
            lines.append(f"{indent}#pragma omp simd{clauses}")
        bounds = ("low", "high") if divided else ("0", str(inner))
        lines.append(f"{indent}for (int64_t j = {bounds[0]}; j < {bounds[1]}; ++j) {{")
        variables: dict[int, str] = {}
        stored = []  # after all reads, which may be of the same memory (overlay.py)
        for node in loop.nodes:
            terms = []
            for arg in node.args:
                if arg.node.op == "literal":
                    terms.append(_number(arg.node.key))
                elif id(arg.node) in variables and fusible(node, arg):
                    terms.append(variables[id(arg.node)])
                else:
                    name = names[id(arg.node), _flat_place(arg.place)]
                    terms.append(place_of(int(name[1:]), name))
            if node.op in REDUCTIONS:
                n = next(n for n, (other, _) in enumerate(sums) if other is node)
                target = f"h{n}" if n in held else place_of(first_sum + n, f"s{n}")
                new = (
                    f"{target} + {terms[0]}"
                    if node.op == "sum"
                    else (f"({terms[0]} > {target} || {terms[0]} != {terms[0]} ? {terms[0]} : {target})")
                )
                lines.append(f"{indent}  {target} = {new};")
                continue
            variable = variables[id(node)] = f"v{len(variables)}"
            lines.append(f"{indent}  const T {variable} = {_EXPRESSIONS[node.op].format(*terms)};")
            for number, (owner, where, k, _) in enumerate(writes):
                if owner is node:
                    sign = "+=" if f"{where}{k}" in self.setting.sums else "="
                    stored.append(f"{indent}  {place_of(first_write + number, f'q{number}')} {sign} {variable};")
        lines += [*stored, f"{indent}}}"]
        for n in held:
            target = place_of(first_sum + n, f"s{n}")
            new = (
                f"{target} + h{n}" if sums[n][0].op == "sum" else f"(h{n} > {target} || h{n} != h{n} ? h{n} : {target})"
            )
            lines.append(f"{indent}{target} = {new};")
        for _ in shape[:-1]:
            indent = indent[2:]
            lines.append(f"{indent}}}")
        return [*lines, "      }", "    }"]


def _divided(loop: Loop, shape: Sequence[int]) -> bool:
    """Whether threads share the numbers of a row, not the rows."""
    return len(shape) <= 1 and not loop.reduces and math.prod(shape) >= 32


def _flat_place(place: Place) -> Place:
    return place.reduced()


def _reduced_place(node: Node) -> Place:
    """Where a reduction's result goes, over the shape that it reads."""
    strides = tuple(0 if n != m else s for n, m, s in zip(node.over, node.shape, dense(node.shape), strict=True))
    return Place(node.over, strides)


def _collapse(shape: Shape, strides: Sequence[tuple[int, ...]]) -> tuple[list[int], list[list[int]]]:
    """Join neighbouring dimensions that every access walks through as one."""
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


def _number(value: float) -> str:
    if math.isnan(value):
        return 'T(__builtin_nan(""))'
    if math.isinf(value):
        return "T(__builtin_inf())" if value > 0 else "T(-__builtin_inf())"
    return f"T({value!r})"
