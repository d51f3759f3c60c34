"""C++ for one step of the loop over time: products and pointwise loops, for all active rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from everstep.backends.fused.codegen.loops import LoopWriter, divided
from everstep.backends.fused.codegen.plan import Loop, Plan
from everstep.backends.fused.codegen.strips import StripWriter
from everstep.backends.fused.row_graph import Node


def leading(size: int, bytes_each: int) -> int:
    """The row stride in memory: whole vectors, and not a power of two, which would map rows to the same cache sets."""
    width = -(-size // 16) * 16
    return width + 16 if width * bytes_each % 1024 == 0 else width


@dataclass(frozen=True)
class InputProjection:
    """A product computed for many steps at once: of inputs before these steps, of gradients after them.

    Attributes:
        source, target: names of arrays.
        depth, width: their row sizes.
    """

    source: str
    target: str
    depth: int
    width: int


@dataclass(frozen=True)
class HeldProduct:
    """A gradient of a leaf that is only read: Σ over steps of left ⊗ right, computed after all steps of a row.

    Attributes:
        leaf: whose gradient.
        left, right: which of the gradients of every step.
        rows, columns: numbers of these.
        apart: distance of the rows in the leaf.
    """

    leaf: int
    left: int
    right: int
    rows: int
    columns: int
    apart: int


@dataclass(frozen=True)
class Setting:
    """The parameters of a loop over time.

    Attributes:
        backward: whether it runs from the last step to the first.
        states: sizes of the carried leaves.
        sizes: row size of every array, by name.
        sums: names of arrays that are accumulated (gradients of constants).
        holds: names of those with an entry per row (gradients of leaves that are only read).
        optional: names of arrays that may be absent.
        following: for each leaf of the state, the array where the forward loop stored it after every step, or None.
        apart: step strides of arrays within others.
        projections: products for many steps at once.
        held_products: sums over steps that are computed after the loop.
        outer: names of the caller's arrays, whose rows may have padding.
    """

    backward: bool
    states: tuple[int, ...]
    sizes: dict[str, int]
    sums: frozenset[str]
    optional: frozenset[str]
    following: tuple[str | None, ...]
    apart: dict[str, int]
    projections: tuple[InputProjection, ...] = ()
    outer: frozenset[str] = frozenset()
    holds: frozenset[str] = frozenset()
    held_products: tuple[HeldProduct, ...] = ()


class Steps:
    """Generates the code of one step, in a frame that defines `t`, `active`, `me`, `team`, `ROW`, `WAIT` and arrays.

    `at` is the index of the step among the valid steps, `out` its index in a caller's array.

    Attributes:
        carry: the array that the next step reads: "next", or "dprev" in backward.
        lds: row stride of each leaf of the state, in the memory `cur` and `nxt`.
        scratch_lds: row stride of values between phases, in the memory `w`.
        zeros: values that phases do not write completely.
        elementwise_width: row size of the single loop of a step without dependencies between elements; else 0.
    """

    def __init__(self, plan: Plan, setting: Setting, bytes_each: int):
        self.plan, self.setting, self.bytes = plan, setting, bytes_each
        self.carry = "dprev" if setting.backward else "next"
        self.lds = [leading(n, bytes_each) for n in setting.states]
        self.scratch_lds = [leading(n.size, bytes_each) for n in plan.scratch]
        self.zeros = [n for n in plan.scattered if sum(math.prod(p.shape) for p in n.parts) < n.size]
        self.elementwise_width = self._elementwise_width()
        self._scratch = {id(n): k for k, n in enumerate(plan.scratch)}

    def _elementwise_width(self) -> int:
        loop = self.plan.phases[0] if len(self.plan.phases) == 1 else None
        if not isinstance(loop, Loop) or self.zeros:
            return 0
        carried = [
            arg
            for node in loop.nodes
            for arg in node.args
            if arg.node.op == "input" and arg.node.key[0] == ("dnext" if self.setting.backward else "prev")
        ]
        size = math.prod(loop.shape)
        return size if divided(loop, [size]) and all(arg.whole for arg in carried) else 0

    def write(self) -> list[str]:
        """The lines of the loop's body."""
        lines = []
        if self.zeros:
            lines += self._clear(self.zeros)
        for phase in self.plan.independent:
            lines += self._loop(phase) if isinstance(phase, Loop) else self._products(phase)
            # independent elements wait where whole rows are moved
            moved = "resets" if self.setting.backward else "resets || length[ROW(active - 1)] == t + 1"
            lines.append(f"    if ({moved}) WAIT();" if self.elementwise_width else "    WAIT();")
        return lines

    def projections(self) -> list[str]:
        """The products for a chunk of steps that begins at `t`, or in backward ends there."""
        forward = not self.setting.backward
        if not self.setting.projections:
            return []
        lines = ["    if (chunk && t % chunk == 0) {", *(["      WAIT();"] if self.elementwise_width else [])]
        for number, a in enumerate(self.setting.projections):
            place = "(near ? i * chunk : at)" if forward else self._at(a.target)
            lines += [
                f"      if ({a.target}) for (int64_t i = 0; i < active; ++i) {{",
                "        const int64_t r = ROW(i), at = offset[r] + t, out = outer[r] + t, rest = length[r] - t;",
                "        (void)at; (void)out;",
                f"        const int64_t panels = ({a.width} + panel - 1) / panel;",
                f"        gemm({a.source} + {self._at(a.source)} * {a.depth}, {a.depth}, rest < chunk ? rest : chunk, "
                f"projection{number}, {a.depth}, {a.width}, panels * me / team, panels * (me + 1) / team, "
                f"{a.target} + {place} * {a.width}, {a.width}, 0, 0);",
                "      }",
            ]
        return [*lines, *(["      WAIT();"] if forward else []), "    }"]

    def after(self) -> list[str]:
        """The sums over steps that are made at the end, row by row: four steps at once, for one row of the matrix."""
        if not self.setting.held_products:
            return []
        lines = ["  for (int64_t i = me; i < count; i += team) {", "    const int64_t r = ROW(i), steps = length[r];"]
        for a in self.setting.held_products:
            left, right, hold = f"g{a.left}", f"g{a.right}", f"hold{a.leaf}"
            lines += [
                f"    if ({hold}_step) for (int64_t k = 0; k < {a.rows}; ++k) {{",
                f"      T* const sum = {hold} + r * {hold}_step + k * {a.apart};",
                f"      const T* const x = {left} + offset[r] * {a.rows} + k;",
                f"      const T* y = {right} + offset[r] * {a.columns};",
                "      int64_t s = 0;",
                f"      for (; s + 4 <= steps; s += 4, y += 4 * {a.columns}) {{",
                *(f"        const T x{n} = x[(s + {n}) * {a.rows}];" for n in range(4)),
                "        #pragma omp simd",
                f"        for (int64_t j = 0; j < {a.columns}; ++j)",
                "          sum[j] += "
                + "(x0 * y[j] + x1 * y[{0} + j]) + (x2 * y[2 * {0} + j] + x3 * y[3 * {0} + j]);".format(
                    f"({a.columns})"
                ),
                "      }",
                f"      for (; s < steps; ++s, y += {a.columns})",
                f"        for (int64_t j = 0; j < {a.columns}; ++j) sum[j] += x[s * {a.rows}] * y[j];",
                "    }",
            ]
        return [*lines, "  }"]

    def _clear(self, nodes: Sequence[Node]) -> list[str]:
        lines = [
            "    for (int64_t i = me; i < active; i += team) {",
            "      const int64_t at = offset[ROW(i)] + t, out = outer[ROW(i)] + t; (void)at; (void)out;",
        ]
        for node in nodes:
            # accumulated arrays are not cleared in each step
            added = self.setting.sums | self.setting.holds
            for where, k in [a for a in self.plan.scattered[node] if f"{a[0]}{a[1]}" not in added]:
                lines.append(f"      for (int64_t j = 0; j < {node.size}; ++j) {self._target(where, k)}[j] = 0;")
        return [*lines, "    }", "    WAIT();"]

    def _products(self, nodes: Sequence[Node]) -> list[str]:
        """Products of which none reads another, in every second step from the last one to the first."""
        if len(nodes) == 1:
            return self._product(nodes[0])
        lines = [f"    for (int p = 0; p < {len(nodes)}; ++p) switch (from_end ? {len(nodes) - 1} - p : p) {{"]
        for number, node in enumerate(nodes):
            lines += [f"    case {number}:", *self._product(node), "      break;"]
        return [*lines, "    }"]

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
            f"panels * me / team, panels * (me + 1) / team, {target}, {target_ld}, 0, from_end);",
            "    }",
        ]

    def _compact(self, node: Node) -> tuple[str, int]:
        """The address of a product's operand with contiguous rows, and its row stride."""
        if node.op == "input":
            k = node.key[1]
            return f"cur{k}", self.lds[k]
        if id(node) in self.plan.carried:
            k = self.plan.carried[id(node)]
            return f"nxt{k}", self.lds[k]
        k = self._scratch[id(node)]
        return f"w{k}", self.scratch_lds[k]

    def _target(self, where: str, k: int) -> str:
        """The address of the current row in an array."""
        name = f"{where}{k}"
        if where == "scratch":
            return f"(w{k} + i * {self.scratch_lds[k]})"
        if where == self.carry:
            return f"(nxt{k} + i * {self.lds[k]})"
        if name in self.setting.sums:
            return name
        step = f"{name}_step" if name in self.setting.optional else str(self.setting.sizes[name])
        return f"({name} + {self._at(name)} * {step})"

    def _source(self, node: Node) -> str:
        """The address of the current row in a node that is read."""
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
                f": {array} + ({self._at(array)} - 1) * {size})"
            )
        if kind == "next":
            array = self.setting.following[k]
            return f"({array} + {self._at(array)} * {self.setting.states[k]})"
        if kind == "const":
            return f"const{k}"
        if kind == "held":
            return f"(held{k} + r * {node.size})"
        name = f"{kind}{k}"
        if not self.setting.backward and any(a.target == name for a in self.setting.projections):
            return f"({name} + (near ? i * chunk + t % chunk : at) * {node.size})"
        return f"({name} + {self._at(name)} * {self.setting.apart.get(name, node.size)})"

    def _at(self, name: str | None) -> str:
        """The index of the current step, or row, in an array."""
        if name in self.setting.holds:
            return "r"
        return "out" if name in self.setting.outer else "at"

    def _loop(self, loop: Loop) -> list[str]:
        """Pointwise values and reductions over one shape, for all active rows."""
        sums = self.setting.sums | self.setting.holds
        later = ("- 2" if self.setting.backward else "+ 2") if self.elementwise_width else ""
        return LoopWriter(loop, self.plan, sums, self._source, self._target, self._memory, later).write()

    def strips(self) -> list[str]:
        """An alternative loop over all steps, for memory-bound steps."""
        if not self.elementwise_width or self.setting.backward:
            return []
        (loop,) = self.plan.phases
        assert isinstance(loop, Loop)
        writer = StripWriter(loop, self.plan, frozenset(), self._source, self._target, self._memory)
        return writer.write() if writer.possible(self.setting.states, self.bytes) else []

    def _memory(self, node: Node) -> tuple[int, int]:
        k = self._scratch[id(node)]
        return k, self.scratch_lds[k]
