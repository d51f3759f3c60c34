"""C++ for a planned step: the loop over time, forward or backward, over one block of rows or over a share of the units.

The generated function has one argument, a table of integers and pointers (`HEADER`, then the arrays in the order of
`Code.arrays`), so that it is called through a plain C interface and compiles without any header but `native/math.h`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from everstep.scanning.fused.graph import REDUCTIONS, Node, Place, Shape, dense
from everstep.scanning.fused.plan import Loop, Plan, fusible

HEADER = (
    "rows",
    "split",
    "order",
    "offset",
    "length",
    "resets",
    "gemm",
    "barrier",
    "gate",
    "memory",
    "share",
    "block",
    "panel",
)
"""The first entries of the table, in the order in which `table.py` writes them.

`split` is 1 where threads share the units of all rows, 0 where each owns rows.
"""

_PRELUDE = (Path(__file__).parent / "native" / "math.h").read_text(encoding="utf-8")

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


def known(op: str) -> bool:
    """Whether the loop can compute this pointwise operation."""
    return op in _EXPRESSIONS


@dataclass(frozen=True)
class Code:
    """Generated source.

    Attributes:
        source: C++ with one function, `run`.
        arrays: names of the table's entries after `HEADER`.
        row: numbers of memory that each row of a block needs.
        spare: numbers that each thread needs besides, for what is not kept.
        loose: numbers of a row's one loop, where no number needs another of the step before; else 0.
    """

    source: str
    arrays: tuple[str, ...]
    row: int
    spare: int
    loose: int

    @cached_property
    def slots(self) -> dict[str, int]:
        """Where each array's address stands in the table."""
        return {name: place for place, name in enumerate(self.arrays, len(HEADER))}


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


def generate(plan: Plan, setting: Setting, bytes_each: int) -> Code:
    """The source of one loop over time."""
    return _Writer(plan, setting, bytes_each).write()


class _Writer:
    def __init__(self, plan: Plan, setting: Setting, bytes_each: int):
        self.plan, self.setting, self.bytes = plan, setting, bytes_each
        self.carry = "dprev" if setting.backward else "next"
        self.arrays: list[str] = [
            name for k in range(len(setting.states)) for name in (f"start{k}", f"init{k}", f"end{k}")
        ]
        self.lines: list[str] = []
        self.lds = [leading(n, bytes_each) for n in setting.states]
        self.scratch = {id(n): k for k, n in enumerate(plan.scratch)}
        self.scratch_lds = [leading(n.size, bytes_each) for n in plan.scratch]
        self.widest = max([16, *(setting.sizes[name] for name in setting.optional | setting.sums)])
        self.packs = [f"pack{k}" for k in range(len(plan.products))]
        for name in (*setting.sizes, *self.packs):
            if name not in self.arrays:
                self.arrays.append(name)
        self.zeros = [n for n in plan.scattered if sum(math.prod(p.shape) for p in n.parts) < n.size]
        self.loose = self._loose()

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

    # the frame

    def write(self) -> Code:
        real = "float" if self.bytes == 4 else "double"
        row = 2 * sum(self.lds) + sum(self.scratch_lds)
        body = "\n".join(self._step())
        source = f"""{_PRELUDE}
typedef {real} T;
typedef void (*Gemm)(const T*, int64_t, int64_t, const T*, int64_t, int64_t, int64_t, int64_t, T*, int64_t, int);
typedef void (*Barrier)(void*, int64_t);

static void over_time(const int64_t* a, int64_t base, int64_t apart, int64_t count, int64_t capacity, int64_t me,
                      int64_t team, int64_t thread, T* memory) {{
  const int64_t* const order = (const int64_t*)a[{self._at("order")}];
  const int64_t* const offset = (const int64_t*)a[{self._at("offset")}];
  const int64_t* const length = (const int64_t*)a[{self._at("length")}];
  const uint8_t* const resets = (const uint8_t*)a[{self._at("resets")}];
  const Gemm gemm = (Gemm)a[{self._at("gemm")}];
  const Barrier barrier = (Barrier)a[{self._at("barrier")}];
  void* const gate = (void*)a[{self._at("gate")}];
  const int64_t panel = a[{self._at("panel")}];
  (void)gemm; (void)panel; (void)resets;
#define ROW(i) order[base + (i) * apart]
#define WAIT() do {{ if (team > 1) barrier(gate, team); }} while (0)
  T* const nowhere = memory + capacity * {row}{" + thread * " + str(self.widest)};
{chr(10).join(self._pointers())}
{chr(10).join(self._states())}
  if (count == 0) return;
  for (int64_t i = me; i < count; i += team) {{
    const int64_t r = ROW(i);
{self._copy_states("cur", "start", "      ", "end")}
  }}
  WAIT();
  const int64_t last = length[ROW(0)];
  (void)last;
{self._time()}
{body}
{self._close()}
#undef ROW
#undef WAIT
}}

extern "C" void run(void* table, int64_t i, int64_t n) {{
  const int64_t* const a = (const int64_t*)table;
  T* const memory = (T*)a[{self._at("memory")}];
  const int64_t rows = a[{self._at("rows")}], block = a[{self._at("block")}];
  if (a[{self._at("split")}]) {{
    over_time(a, 0, 1, rows, rows, i, n, i, memory);
    return;
  }}
  // rows are sorted by length: every n-th of them, so that all threads have as much to do
  const int64_t own = rows > i ? (rows - i + n - 1) / n : 0;
  for (int64_t first = 0; first < own; first += block)
    over_time(a, i + first * n, n, own - first < block ? own - first : block, block, 0, 1, i,
              memory + i * a[{self._at("share")}] - i * {self.widest});
}}
"""
        return Code(source, tuple(self.arrays), row, self.widest, self.loose)

    def _at(self, name: str) -> int:
        return HEADER.index(name)

    def _slot(self, name: str) -> int:
        return len(HEADER) + self.arrays.index(name)

    def _pointers(self) -> list[str]:
        s, lines = self.setting, []
        for name, size in s.sizes.items():
            slot = self._slot(name)
            written = self._written(name)
            const = "" if written else "const "
            if name in s.sums:
                own = f"(T*)a[{slot}] + thread * {2 * leading(size, self.bytes)}"
                lines.append(f"  T* const {name} = a[{slot}] ? {own} : nowhere;")
            elif name in s.optional:
                lines.append(f"  T* const {name} = a[{slot}] ? (T*)a[{slot}] : nowhere;")
                lines.append(f"  const int64_t {name}_step = a[{slot}] ? {s.apart.get(name, size)} : 0;")
            else:
                lines.append(f"  {const}T* const {name} = ({const}T*)a[{slot}];")
        lines += [f"  const T* const {name} = (const T*)a[{self._slot(name)}];" for name in self.packs]
        place = 2 * sum(self.lds)
        for k, ld in enumerate(self.scratch_lds):
            lines.append(f"  T* const w{k} = memory + capacity * {place};")
            place += ld
        return lines

    def _written(self, name: str) -> bool:
        return (
            name in self.setting.sums
            or name in self.setting.optional
            or any(f"{where}{k}" == name for stores in self.plan.stores.values() for where, k, _ in stores)
        )

    def _states(self) -> list[str]:
        lines, place = [], 0
        for k, ld in enumerate(self.lds):
            lines.append(f"  T *cur{k} = memory + capacity * {place}, *nxt{k} = memory + capacity * {place + ld};")
            for name in (f"start{k}", f"init{k}", f"end{k}"):
                lines += [f"  T* const {name} = (T*)a[{self._slot(name)}];"]
            place += 2 * ld
        return lines

    def _copy_states(self, to: str, source: str, indent: str, also: str = "") -> str:
        lines = []
        for k, (size, ld) in enumerate(zip(self.setting.states, self.lds, strict=True)):
            second = (
                f" if ({also}{k} != {source}{k}) {also}{k}[r * {size} + j] = v;"
                if also and not self.setting.backward
                else ""
            )
            target = f"{to}{k}[i * {ld} + j]" if to in ("cur", "nxt") else f"{to}{k}[r * {size} + j]"
            origin = f"{source}{k}[i * {ld} + j]" if source in ("cur", "nxt") else f"{source}{k}[r * {size} + j]"
            if self.setting.backward and source == "start":
                origin = f"start{k} ? {origin} : T(0)"
            lines.append(
                f"{indent}for (int64_t j = 0; j < {size}; ++j) {{ const T v = {origin}; {target} = v;{second} }}"
            )
        return "\n".join(lines)

    def _time(self) -> str:
        if not self.setting.backward:
            return f"""  int64_t active = count;
  for (int64_t t = 0; t < last; ++t) {{
    while (active && length[ROW(active - 1)] <= t) --active;
    if (resets) {{
      for (int64_t i = me; i < active; i += team) {{
        const int64_t r = ROW(i);
        if (!resets[offset[r] + t]) continue;
{self._copy_states("cur", "init", "        ")}
      }}
      WAIT();
    }}"""
        return """  int64_t active = 0;
  for (int64_t t = last - 1; t >= 0; --t) {
    while (active < count && length[ROW(active)] > t) ++active;"""

    def _close(self) -> str:
        swap = "\n".join(
            f"    {{ T* const held = cur{k}; cur{k} = nxt{k}; nxt{k} = held; }}" for k in range(len(self.lds))
        )
        if not self.setting.backward:
            return f"""    for (int64_t i = me; i < active; i += team) {{
      const int64_t r = ROW(i);
      if (length[r] != t + 1) continue;
{self._copy_states("end", "nxt", "      ")}
    }}
{swap}
  }}"""
        flush = self._flush()
        moved, waiting = [], []
        for k, (size, ld) in enumerate(zip(self.setting.states, self.lds, strict=True)):
            waiting.append(f"      for (int64_t j = 0; j < {size}; ++j) nxt{k}[i * {ld} + j] = cur{k}[i * {ld} + j];")
            moved.append(
                f"        for (int64_t j = 0; j < {size}; ++j) {{ init{k}[r * {size} + j] += nxt{k}[i * {ld} + j]; "
                f"nxt{k}[i * {ld} + j] = 0; }}"
            )
        return f"""    if (resets) {{
      for (int64_t i = me; i < active; i += team) {{
        const int64_t r = ROW(i);
        if (!resets[offset[r] + t]) continue;
{chr(10).join(moved)}
      }}
      WAIT();
    }}
{flush}
    // rows that are not yet active keep what came in
    for (int64_t i = active + me; i < count; i += team) {{
{chr(10).join(waiting)}
    }}
    {"if (active < count) " if self.loose else ""}WAIT();
{swap}
  }}
  {"WAIT();" if self.loose else ""}
  for (int64_t i = me; i < count; i += team) {{
    const int64_t r = ROW(i);
{self._copy_states("end", "cur", "    ")}
  }}"""

    def _flush(self) -> str:
        """Sums over many steps are kept short: of 16 steps, then of those."""
        lines = []
        for name in sorted(self.setting.sums):
            size = self.setting.sizes[name]
            lines.append(
                f"    if (a[{self._slot(name)}] && (t & 15) == 0) for (int64_t j = 0; j < {size}; ++j) {{ "
                f"{name}[{leading(size, self.bytes)} + j] += {name}[j]; {name}[j] = 0; }}"
            )
        return "\n".join(lines)

    # one step

    def _step(self) -> list[str]:
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
            k = self.scratch[id(node)]
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
        k = self.scratch[id(node)]
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
            k = self.scratch[id(node)]
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
            k = self.scratch[id(node)]
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
