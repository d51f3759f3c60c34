"""C++ for memory-bound loops: many steps of a strip of elements at a time, with the state in registers.

An elementwise recurrence such as h_t = a_t ∘ h_{t-1} + b_t waits for memory. The fewer other instructions there are,
the more loads are in flight. So the state is neither read nor written between steps, and outputs bypass the caches.
"""

from __future__ import annotations

from everstep.backends.fused.codegen.loops import LoopWriter, later

_STEPS, _WIDE = 16, 1024
"""Steps of a strip before the next strip, which shares its pages; bytes from which a strip runs all steps at once."""
_LINES = 16
"""Most cache lines in a strip."""
_EARLY = "+ 1"
"""Prefetch distance in steps."""
_ARITHMETIC = {"copy", "add", "sub", "mul", "div", "neg"}
_LINE = 64
"""Largest cache line in bytes."""


class StripWriter(LoopWriter):
    """Generates all rows and steps of a loop with non-temporal outputs that saves nothing for backward."""

    real = "V"

    @property
    def _leaving(self) -> list[tuple[int, str, int]]:
        """The writes of outputs and next state: index of the write, array, index of the array."""
        return [(n, where, k) for n, (_, where, k, _) in enumerate(self.writes) if where in ("y", "next")]

    def possible(self, states: tuple[int, ...], bytes_each: int) -> bool:
        """Whether the loop is pure arithmetic on whole cache lines at equal positions in all arrays."""
        size, leaving = self._inner, self._leaving
        return (
            size * bytes_each % _LINE == 0
            and sorted(k for _, where, k in leaving if where == "next") == [*range(len(states))]
            and set(states) == {size}
            and any(where == "y" for _, where, _ in leaving)
            and all(self.write_strides[n] == [1] and self.writes[n][3].offset == 0 for n, *_ in leaving)
            and all(stride in ([], [0], [1]) for stride in self.read_strides)
            and all(node.op in _ARITHMETIC for node in self.loop.nodes)
        )

    def write(self) -> list[str]:
        """The lines of the loop; `end` holds the initial state, and then the final state."""
        size = self._inner
        leaves = sorted(k for _, where, k in self._leaving if where == "next")
        even = [f"(uintptr_t){where}{k} % ES_NONTEMPORAL_BYTES == 0" for _, where, k in self._leaving if where == "y"]
        kept = [f"{where}{k} == nowhere" for _, where, k, _ in self.writes if where not in ("y", "next")]
        return [
            "#ifdef ES_NONTEMPORAL_BYTES",
            f"  if ({' && '.join(['nontemporal', '!chunk', *even, *kept])}) {{",
            "    typedef es_line<T>::type V;",
            "    constexpr int64_t L = ES_NONTEMPORAL_BYTES / sizeof(T);",
            f"    constexpr int64_t many = {_LINES} * L;",
            "    const int64_t active = count;",
            *self.share(),
            "        const int64_t r = ROW(i), steps = length[r];",
            f"        const int64_t most = many * sizeof(T) < {_WIDE} ? {_STEPS} : steps;",
            "        for (int64_t begin = 0; begin < steps; begin += most) {",
            "          const int64_t stop = steps - begin < most ? steps : begin + most;",
            "          const auto strip = [&](auto lines, int64_t from) {",
            "            constexpr int N = decltype(lines)::value;",
            *(f"            V c{k}[N];" for k in leaves),
            *(f"            T* const e{k} = end{k} + r * {size} + from;" for k in leaves),
            "            ES_EACH for (int u = 0; u < N; ++u) {",
            *(f"              c{k}[u] = es_get<V>(e{k} + u * L);" for k in leaves),
            "            }",
            "            for (int64_t t = begin; t < stop; ++t) {",
            "              const int64_t at = offset[r] + t, out = outer[r] + t; (void)at; (void)out;",
            "              if (resets && resets[at]) {",
            "                ES_EACH for (int u = 0; u < N; ++u) {",
            *(f"                  c{k}[u] = es_get<V>(init{k} + r * {size} + from + u * L);" for k in leaves),
            "                }",
            "              }",
            *("              " + line for line in self._step()),
            "            }",
            "            ES_EACH for (int u = 0; u < N; ++u) {",
            *(f"              es_put(e{k} + u * L, c{k}[u]);" for k in leaves),
            "            }",
            "          };",
            "          int64_t from = low;",
            f"          for (; from + many <= high; from += many) strip(es_count<{_LINES}>(), from);",
            "          for (; from < high; from += L) strip(es_count<1>(), from);",
            "        }",
            "      }",
            "    es_nontemporal_done();",
            "    return;",
            "  }",
            "#endif",
        ]

    def _step(self) -> list[str]:
        read = {n: f"{self.source(node)} + {place.offset}" for n, (node, place) in enumerate(self.reads)}
        read = {n: f"{start} + from" if self._whole(n) else start for n, start in read.items()}
        early = later([start for n, start in read.items() if self._whole(n)], _EARLY)
        return [
            *(f"const T* const p{n} = {start};" for n, start in read.items() if not self._carried(n)),
            *(f"const T* const n{n} = {start};" for n, start in enumerate(early)),
            *(f"T* const q{n} = {self.target(to, k)} + from;" for n, to, k in self._leaving if to == "y"),
            "ES_EACH for (int u = 0; u < N; ++u) {",
            "  const int64_t j = u * L;",
            *(f"  __builtin_prefetch(n{n} + j);" for n in range(len(early))),
            *("  " + line for line in self._body()),
            "}",
        ]

    def _whole(self, number: int) -> bool:
        """Whether a read has a different element for each position."""
        return self.read_strides[number] == [1]

    def _carried(self, number: int) -> bool:
        node, _ = self.reads[number]
        return node.op == "input" and node.key[0] == "prev"

    def _literal(self, value: float) -> str:
        return f"es_all<V>({super()._literal(value)})"

    def _load(self, number: int) -> str:
        if self._carried(number):
            return f"c{self.reads[number][0].key[1]}[u]"
        return f"es_get<V>(p{number} + j)" if self._whole(number) else f"es_all<V>(p{number}[0])"

    def _store(self, number: int, variable: str) -> str:
        _, where, k, _ = self.writes[number]
        if where == "next":
            return f"c{k}[u] = {variable};"
        return f"es_nontemporal_store(q{number} + j, {variable});" if where == "y" else "// not kept"
