"""C++ for a scheduled step: the loop over time, forward or backward, over a block of rows or a share of the units.

The generated function has one argument, a table of integers and pointers (`HEADER`, then the arrays in the order of
`Code.arrays`). So it has a plain C interface, and needs only the headers in `native`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from everstep.backends.fused.codegen.plan import Plan
from everstep.backends.fused.codegen.steps import InputProjection, Setting, Steps, leading
from everstep.native.c_tables import Arguments, Routines
from everstep.native.source import source_text

HEADER = (*Arguments._fields, *Routines._fields)
"""The first entries of the table."""

FREE = "free_size"
"""The table entry, and the name in the source, of a size that each call provides."""

_PRELUDE = source_text("math.h", "nontemporal.h")


@dataclass(frozen=True, eq=False)
class Code:
    """Generated source.

    Attributes:
        source: C++ with one function, `run`.
        arrays: names of the table's entries after `HEADER`.
        row: numbers of working memory per row of a block.
        matrices: rows and columns of the matrix of each product.
        projections: products for many steps at once.
        spare: further numbers of working memory per thread, for discarded results.
        elementwise_width: row size of the single loop of a step without dependencies between elements; else 0.
    """

    source: str
    arrays: tuple[str, ...]
    row: int
    matrices: tuple[tuple[int, int], ...]
    projections: tuple[InputProjection, ...]
    spare: int
    elementwise_width: int


def generate(plan: Plan, setting: Setting, bytes_each: int, free: bool = False) -> Code:
    """The source of one loop over time; `free`: whether its sizes may be replaced by others (`family.py`)."""
    return _Writer(plan, setting, bytes_each, free).write()


class _Writer:
    def __init__(self, plan: Plan, setting: Setting, bytes_each: int, free: bool):
        self.plan, self.setting, self.bytes = plan, setting, bytes_each
        self.steps = Steps(plan, setting, bytes_each)
        self.lds, self.elementwise_width = self.steps.lds, self.steps.elementwise_width
        self.arrays: list[str] = [
            name for k in range(len(setting.states)) for name in (f"start{k}", f"init{k}", f"end{k}")
        ]
        spare = [setting.sizes[name] for name in setting.optional | setting.sums]
        # with free sizes, any entry may be the largest
        self.widest = 16 + sum(spare) if free else max([16, *spare])
        self.packs = [f"pack{k}" for k in range(len(plan.products))]
        self.packs += [f"projection{k}" for k in range(len(setting.projections))]
        self.free = free
        for name in (*setting.sizes, *self.packs, *([FREE] if free else [])):
            if name not in self.arrays:
                self.arrays.append(name)

    def write(self) -> Code:
        real = "float" if self.bytes == 4 else "double"
        row = 2 * sum(self.lds) + sum(self.steps.scratch_lds)
        source = f"""{_PRELUDE}
typedef {real} T;
typedef void (*Gemm)(const T*, int64_t, int64_t, const T*, int64_t, int64_t, int64_t, int64_t, T*, int64_t, int, int);
typedef void (*Barrier)(void*, int64_t);

{self._over_time()}
{self._run(row)}"""
        matrices = tuple((math.prod(node.args[0].shape), node.size) for node in self.plan.products)
        return Code(
            source, tuple(self.arrays), row, matrices, self.setting.projections, self.widest, self.elementwise_width
        )

    def _over_time(self) -> str:
        """The function for all steps of a block of rows, or of a share of the units."""
        body = "\n".join(self.steps.write())
        return f"""\
static void over_time(const int64_t* a, int64_t base, int64_t count, int64_t capacity, int64_t me, int64_t team,
                      int64_t thread, T* memory, T* nowhere) {{
  const int64_t* const order = (const int64_t*)a[{self._at("order")}];
  const int64_t* const offset = (const int64_t*)a[{self._at("offset")}];
  const int64_t* const outer = (const int64_t*)a[{self._at("outer")}];
  const int64_t* const length = (const int64_t*)a[{self._at("length")}];
  const uint8_t* const resets = (const uint8_t*)a[{self._at("resets")}];
  const Gemm gemm = (Gemm)a[{self._at("gemm")}];
  const Barrier barrier = (Barrier)a[{self._at("barrier")}];
  void* const gate = (void*)a[{self._at("gate")}];
  const int64_t panel = a[{self._at("panel")}], chunk = a[{self._at("chunk")}];
  const int64_t nontemporal = a[{self._at("nontemporal")}], turn = a[{self._at("turn")}];
  T* const near = a[{self._at("near")}] ? (T*)a[{self._at("near")}] + thread * a[{self._at("near_stride")}] : 0;
  (void)gemm; (void)outer; (void)panel; (void)resets; (void)chunk; (void)near; (void)nontemporal;
#define ROW(i) order[base + (i)]
#define WAIT() do {{ if (team > 1) barrier(gate, team); }} while (0)
{self._free()}
{chr(10).join(self._pointers())}
{chr(10).join(self._states())}
  if (count == 0) return;
  for (int64_t i = me; i < count; i += team) {{
    const int64_t r = ROW(i);
{self._copy_states("cur", "start", "      ", "end")}
  }}
  WAIT();
{chr(10).join(self.steps.strips())}
  const int64_t last = length[ROW(0)];
  (void)last;
{self._time()}
{body}
{self._close()}
{"  if (nontemporal) es_nontemporal_done();" if self.elementwise_width else ""}
#undef ROW
#undef WAIT
}}
"""

    def _run(self, row: int) -> str:
        """The entry function: the share of one thread; each row of a block needs `row` numbers."""
        return f"""extern "C" void run(void* table, int64_t i, int64_t n) {{
  const int64_t* const a = (const int64_t*)table;
  T* const memory = (T*)a[{self._at("memory")}];
  const int64_t rows = a[{self._at("rows")}], block = a[{self._at("block")}];
{self._free()}
{self._clear()}
  if (a[{self._at("split")}]) {{
    over_time(a, 0, rows, rows, i, n, i, memory, memory + rows * {row} + i * {self.widest});
    return;
  }}
  const int64_t* const starts = (const int64_t*)a[{self._at("starts")}];
  T* const own = memory + i * a[{self._at("thread_stride")}];
  // there may be fewer threads than were asked for
  for (int64_t thread = i; thread < a[{self._at("threads")}]; thread += n) {{
    const int64_t end = starts[thread + 1];
    for (int64_t first = starts[thread]; first < end; first += block)
      over_time(a, first, end - first < block ? end - first : block, block, 0, 1, i, own, own + block * {row});
  }}
}}
"""

    def _free(self) -> str:
        return f"  const int64_t {FREE} = a[{self._slot(FREE)}]; (void){FREE};" if self.free else ""

    def _clear(self) -> str:
        """Initialise sums to zero, also those of idle threads."""
        lines = [f"  for (int64_t k = i; k < a[{self._at('threads')}]; k += n) {{"]
        for name in sorted(self.setting.sums):
            bytes_ = 2 * leading(self.setting.sizes[name], self.bytes) * self.bytes
            slot = self._slot(name)
            lines.append(f"    if (a[{slot}]) __builtin_memset((char*)a[{slot}] + k * {bytes_}, 0, {bytes_});")
        return "\n".join([*lines, "  }"]) if self.setting.sums else ""

    def _at(self, name: str) -> int:
        return HEADER.index(name)

    def _slot(self, name: str) -> int:
        return len(HEADER) + self.arrays.index(name)

    def _pointers(self) -> list[str]:
        s, lines = self.setting, []
        projections = {} if s.backward else {a.target: a.width for a in s.projections}
        place = 0
        for name, size in s.sizes.items():
            slot = self._slot(name)
            if name in projections:
                lines.append(f"  T* const {name} = near ? near + capacity * chunk * {place} : (T*)a[{slot}];")
                place += size
                continue
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
        for k, ld in enumerate(self.steps.scratch_lds):
            lines.append(f"  T* const w{k} = memory + capacity * {place};")
            place += ld
        return lines

    def _written(self, name: str) -> bool:
        return (
            name in self.setting.sums
            or name in self.setting.optional
            or any(a.target == name for a in self.setting.projections)
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
            rows = {name: f"{name}{k} + i * {ld}" for name in ("cur", "nxt")}
            rows |= {name: f"{name}{k} + r * {size}" for name in ("start", "init", "end")}
            line = _copied(rows[to], rows[source], size)
            if self.setting.backward and source == "start":
                line = f"if (start{k}) {line} else __builtin_memset({rows[to]}, 0, {size} * sizeof(T));"
            elif self.setting.backward and to == "end":
                line = f"if (end{k}) {line}"
            elif also and not self.setting.backward:
                line += f" if ({also}{k} != {source}{k}) {_copied(rows[also], rows[source], size)}"
            lines.append(indent + line)
        return "\n".join(lines)

    def _time(self) -> str:
        if not self.setting.backward:
            return f"""  int64_t active = count;
  for (int64_t t = 0; t < last; ++t) {{
    const int from_end = (t + turn) & 1; (void)from_end;
    while (active && length[ROW(active - 1)] <= t) --active;
{chr(10).join(self.steps.projections())}
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
    const int from_end = (t + turn) & 1; (void)from_end;
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
            waiting.append("      " + _copied(f"nxt{k} + i * {ld}", f"cur{k} + i * {ld}", size))
            moved.append(
                f"        for (int64_t j = 0; j < {size}; ++j) {{ if (init{k}) init{k}[r * {size} + j] += "
                f"nxt{k}[i * {ld} + j]; nxt{k}[i * {ld} + j] = 0; }}"
            )
        return f"""{chr(10).join(self.steps.projections())}
    if (resets) {{
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
    {"if (active < count) " if self.elementwise_width else ""}WAIT();
{swap}
  }}
  {"WAIT();" if self.elementwise_width else ""}
  for (int64_t i = me; i < count; i += team) {{
    const int64_t r = ROW(i);
{self._copy_states("end", "cur", "    ")}
  }}{"".join(chr(10) + line for line in self.steps.after())}"""

    def _flush(self) -> str:
        """Accumulate sums over many steps in stages of 16 steps, for precision."""
        lines = []
        for name in sorted(self.setting.sums):
            size = self.setting.sizes[name]
            lines.append(
                f"    if (a[{self._slot(name)}] && (t & 15) == 0) for (int64_t j = 0; j < {size}; ++j) {{ "
                f"{name}[{leading(size, self.bytes)} + j] += {name}[j]; {name}[j] = 0; }}"
            )
        return "\n".join(lines)


def _copied(to: str, source: str, size: int) -> str:
    """A copy of `size` numbers; compilers are quicker with it than with a loop."""
    return f"__builtin_memcpy({to}, {source}, {size} * sizeof(T));"
