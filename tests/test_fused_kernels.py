"""The run-time library of the compiled engine: packed products, the borrowed thread team, the barrier."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, byref, c_char, c_double, c_float, c_int, c_int64, c_void_p
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from everstep.native import build, toolchain
from everstep.native.source import source_text

pytestmark = [
    pytest.mark.usefixtures("as_shipped"),
    pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine"),
]

STRICT = ["-std=gnu++17", "-Wall", "-Wextra", "-Werror"]
BASELINE = [*STRICT, "-O2", "-fPIC", "-shared", "-mtune=generic", "-DES_F32", "-DES_F64"]
BODY = CFUNCTYPE(None, c_void_p, c_int64, c_int64)
REAL: dict[str, Any] = {"f32": c_float, "f64": c_double}
NUMPY: dict[str, Any] = {"f32": np.float32, "f64": np.float64}
GUARD = 77.0


class Joined:
    """The libraries of both precisions, as the engine compiles them, in memory of their own; as if they were one."""

    def __init__(self, folder: Path):
        self._of = {}
        for suffix in REAL:
            job = build._job(f"#define ES_{suffix.upper()}\n{source_text('kernels.cpp')}", f"kernels-{suffix}")
            build.load(job.source, f"kernels-{suffix}")
            copied = shutil.copy(build.folder() / f"{job.stem}.so", folder)
            self._of[suffix] = ctypes.CDLL(copied)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of["f64" if name.endswith("_f64") else "f32"], name)


def baseline(folder: Path) -> ctypes.CDLL:
    """Both precisions in one, for any processor of this family."""
    source = folder / "kernels.cpp"
    source.write_text(source_text("kernels.cpp"), "utf-8")
    library = source.with_suffix(".so")
    subprocess.run([*compiler(), *BASELINE, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def compiler() -> tuple[str, ...]:
    found = toolchain.compiler()
    assert found is not None
    return found.command


def test_no_format_is_warned_of_on_this_machine(tmp_path: Path) -> None:
    source = tmp_path / "kernels.cpp"
    source.write_text(source_text("kernels.cpp"), "utf-8")
    subprocess.run([*compiler(), *STRICT, "-march=native", "-fsyntax-only", str(source)], check=True)


@pytest.fixture(scope="module", params=[Joined, baseline], ids=["native", "baseline"])
def library(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    lib = request.param(tmp_path_factory.mktemp("kernels"))
    size = c_int64
    for s, real in REAL.items():
        matrix = POINTER(real)
        getattr(lib, f"es_panel_{s}").restype = size
        getattr(lib, f"es_packed_size_{s}").restype = size
        getattr(lib, f"es_packed_size_{s}").argtypes = [size, size]
        getattr(lib, f"es_pack_{s}").argtypes = [matrix, size, size, size, size, matrix]
        getattr(lib, f"es_pack_{s}").restype = None
        getattr(lib, f"es_gemm_{s}").argtypes = [
            matrix,
            size,
            size,
            matrix,
            size,
            size,
            size,
            size,
            matrix,
            size,
            c_int,
            c_int,
        ]
        getattr(lib, f"es_gemm_{s}").restype = None
        getattr(lib, f"es_gemm_tn_memory_{s}").restype = size
        getattr(lib, f"es_gemm_tn_memory_{s}").argtypes = [size, size, size]
        across = getattr(lib, f"es_gemm_tn_{s}")
        across.argtypes = [matrix, size, matrix, *[size] * 6, matrix, size, matrix]
        across.restype = None
    lib.es_set_openmp.argtypes = [c_void_p] * 3
    lib.es_parallel.argtypes = [BODY, c_void_p, size]
    lib.es_barrier_bytes.restype = size
    lib.es_barrier.argtypes = [c_void_p, size]
    for name in ("es_set_openmp", "es_parallel", "es_barrier"):
        getattr(lib, name).restype = None
    return lib


class Kernels:
    """One precision of the library on numpy arrays; strides are counted in elements, as the library does."""

    def __init__(self, library: Any, suffix: str) -> None:
        self.library, self.suffix, self.dtype = library, suffix, NUMPY[suffix]
        self.panel: int = getattr(library, f"es_panel_{suffix}")()
        self.eps = float(np.finfo(self.dtype).eps)

    def at(self, array: np.ndarray) -> Any:
        return array.ctypes.data_as(POINTER(REAL[self.suffix]))

    def random(self, *shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(self.dtype)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        (k, n), item = weight.shape, weight.itemsize
        size = getattr(self.library, f"es_packed_size_{self.suffix}")(k, n)
        room = np.full(size + 64, np.nan, self.dtype)
        start = -room.ctypes.data % 64 // item
        packed = room[start : start + size]
        by_k, by_n = (stride // item for stride in weight.strides)
        getattr(self.library, f"es_pack_{self.suffix}")(self.at(weight), k, n, by_k, by_n, self.at(packed))
        return packed

    def gemm(
        self,
        rows: np.ndarray,
        packed: np.ndarray,
        n: int,
        panels: tuple[int, int] | None = None,
        add: np.ndarray | None = None,
        slack: int = 0,
        from_end: bool = False,
    ) -> np.ndarray:
        """C, from an A and a C with `slack` columns more than needed: NaN beside A, guards beside C."""
        m, k = rows.shape
        first, last = panels or (0, -(-n // self.panel))
        a = np.full((m + 1, k + slack), np.nan, self.dtype)
        a[:m, :k] = rows
        c = np.full((m + 1, n + slack), GUARD, self.dtype)
        if add is not None:
            c[:m, :n] = add
        product = getattr(self.library, f"es_gemm_{self.suffix}")
        given = (self.at(a), k + slack, m, self.at(packed), k, n, first, last, self.at(c), n + slack)
        product(*given, add is not None, from_end)
        assert (c[m:] == GUARD).all()
        assert (c[:, n:] == GUARD).all()
        return c[:m, :n]

    def across(
        self,
        g: np.ndarray,
        x: np.ndarray,
        shares: list[tuple[int, int]] | None = None,
        slack: int = 0,
    ) -> np.ndarray:
        """gᵀ·x in shares of its rows; NaN beside g and x, guards beside and after C and the memory."""
        (steps, m), n = g.shape, x.shape[1]
        given = []
        for matrix in (g, x):
            room = np.full((steps + 1, matrix.shape[1] + slack), np.nan, self.dtype)
            room[:steps, : matrix.shape[1]] = matrix
            given += [self.at(room), room.shape[1]]
        c = np.full((m + 1, n + slack), GUARD, self.dtype)
        for m0, m1 in shares or [(0, m)]:
            size = getattr(self.library, f"es_gemm_tn_memory_{self.suffix}")(len(g), m1 - m0, n)
            memory = np.full(size + 64, np.nan, self.dtype)
            memory[size:] = GUARD
            product = getattr(self.library, f"es_gemm_tn_{self.suffix}")
            product(*given, steps, m, n, m0, m1, self.at(c), n + slack, self.at(memory))
            assert (memory[size:] == GUARD).all()
        assert (c[m:] == GUARD).all()
        assert (c[:, n:] == GUARD).all()
        return c[:m, :n]

    def body(self, name: str, *table: Any, members: int = 1) -> None:
        """Run a body of `es_parallel` as each of so many members."""
        numbers = [t if isinstance(t, int) else t.ctypes.data for t in table]
        for i in range(members):
            getattr(self.library, f"es_{name}_{self.suffix}")(
                (c_int64 * len(numbers))(*numbers), c_int64(i), c_int64(members)
            )


@pytest.fixture(params=["f32", "f64"])
def kernels(library: Any, request: pytest.FixtureRequest) -> Kernels:
    return Kernels(library, request.param)


def near(kernels: Kernels, got: np.ndarray, a: np.ndarray, weight: np.ndarray, c: Any = 0.0) -> bool:
    """Whether `got` is a·weight + c but for the roundings of one sum."""
    a64, w64, c64 = (np.asarray(x, np.float64) for x in (a, weight, c))
    bound = 2 * (a.shape[1] + 1) * kernels.eps * (np.abs(a64) @ np.abs(w64) + np.abs(c64))
    return bool((np.abs(got - (a64 @ w64 + c64)) <= bound).all())


@pytest.mark.parametrize("n", [1, 5, 16, 31, 32, 33, 48, 100, 130])
def test_products_of_every_shape(kernels: Kernels, n: int) -> None:
    for k in (0, 1, 3, 16, 64, 257):
        weight = kernels.random(k, n)
        packed = kernels.pack(weight)
        for m in range(34):
            a, c = kernels.random(m, k), kernels.random(m, n, seed=1)
            assert near(kernels, kernels.gemm(a, packed, n, slack=m % 3), a, weight), (m, k)
            assert near(kernels, kernels.gemm(a, packed, n, add=c, slack=m % 2), a, weight, c), (m, k)


@pytest.mark.parametrize(("m", "k"), [(9, 512), (150, 40), (70, 2048), (3, 2500)])
def test_products_worked_on_in_parts(kernels: Kernels, m: int, k: int) -> None:
    weight, a, n = kernels.random(k, 150), kernels.random(m, k), 150
    packed = kernels.pack(weight)
    got = kernels.gemm(a, packed, n)
    assert near(kernels, got, a, weight)
    assert kernels.gemm(a[2:3], packed, n).tobytes() == got[2].tobytes()
    assert kernels.gemm(a, packed, n, slack=9).tobytes() == got.tobytes()


@pytest.mark.parametrize(("k", "n"), [(0, 3), (1, 1), (7, 70), (64, 128), (37, 130)])
def test_packing_is_the_same_from_any_strides(kernels: Kernels, k: int, n: int) -> None:
    weight, panel = kernels.random(k, n), kernels.panel
    panels = -(-n // panel)
    wanted = np.zeros((k, panels * panel), kernels.dtype)
    wanted[:, :n] = weight
    wanted = wanted.reshape(k, panels, panel).swapaxes(0, 1).ravel()
    sparse = np.full((2 * k + 1, 3 * n), np.nan, kernels.dtype)
    sparse[: 2 * k : 2, ::3] = weight
    padded = np.full((n, k + 5), np.nan, kernels.dtype)
    padded[:, :k] = weight.T
    for given in (weight, np.ascontiguousarray(weight.T).T, sparse[: 2 * k : 2, ::3], padded[:, :k].T):
        assert (given == weight).all()
        np.testing.assert_array_equal(kernels.pack(given), wanted)


@pytest.mark.parametrize("n", [5, 130, 300])
def test_a_row_depends_on_nothing_but_itself(kernels: Kernels, n: int) -> None:
    weight, a, c = kernels.random(101, n), kernels.random(33, 101), kernels.random(33, n, seed=1)
    packed = kernels.pack(weight)
    for add in (None, c):
        whole = kernels.gemm(a, packed, n, add=add)
        for m in range(1, 33):
            part = None if add is None else add[-m:]
            assert kernels.gemm(a[-m:], packed, n, add=part).tobytes() == whole[-m:].tobytes()


def test_panels_are_independent(kernels: Kernels) -> None:
    n = 9 * kernels.panel + 3
    a, packed = kernels.random(17, 40), kernels.pack(kernels.random(40, n))
    for m in (1, 2, 3, 17):
        whole = kernels.gemm(a[:m], packed, n)
        for first, last in ((0, 0), (0, 1), (1, 4), (3, 10), (4, 9), (9, 10)):
            part = kernels.gemm(a[:m], packed, n, panels=(first, last))
            inside = slice(first * kernels.panel, last * kernels.panel)
            assert part[:, inside].tobytes() == whole[:, inside].tobytes()
            part[:, inside] = GUARD
            assert (part == GUARD).all()


@pytest.mark.parametrize("m", [1, 2, 4, 5])
@pytest.mark.parametrize("k", [70, 2500])
def test_a_product_from_the_end_has_the_same_bits(kernels: Kernels, m: int, k: int) -> None:
    n = 9 * kernels.panel + 3
    packed, a, c = kernels.pack(kernels.random(k, n)), kernels.random(m, k), kernels.random(m, n, seed=1)
    for add in (None, c):
        for panels in ((0, 10), (3, 10), (2, 4), (5, 5)):
            both = [kernels.gemm(a, packed, n, panels, add, from_end=from_end) for from_end in (False, True)]
            assert both[0].tobytes() == both[1].tobytes()


def test_a_product_from_the_end_takes_the_last_panels_first(kernels: Kernels) -> None:
    n = 9 * kernels.panel
    packed, product = kernels.pack(kernels.random(n, n)), getattr(kernels.library, f"es_gemm_{kernels.suffix}")

    def overwriting(*parts: tuple[int, int], from_end: bool = False) -> bytes:
        row = kernels.random(1, n)  # what is written is read by the parts that follow
        for first, last in parts:
            row_at = kernels.at(row)
            product(row_at, n, 1, kernels.at(packed), n, n, first, last, row_at, n, False, from_end)
        return row.tobytes()

    assert overwriting((0, 9), from_end=True) == overwriting((5, 9), (1, 5), (0, 1))


def test_nan_and_infinity_go_where_arithmetic_takes_them(kernels: Kernels) -> None:
    n = kernels.panel + 5
    weight, a = np.ones((8, n), kernels.dtype), np.ones((6, 8), kernels.dtype)
    a[1, 3], a[2, 0], a[3, 5], weight[7, n - 1], weight[5, 2] = np.nan, np.inf, -np.inf, np.inf, 0
    a[4] = 0
    with np.errstate(invalid="ignore"):
        wanted = (a[:, :, None] * weight).sum(1)
    np.testing.assert_array_equal(kernels.gemm(a, kernels.pack(weight), n), wanted)


@pytest.mark.parametrize("steps", [0, 1, 5, 257, 1000])
def test_products_over_steps(kernels: Kernels, steps: int) -> None:
    for m in (1, 2, 3, 14, 15, 33, 70):
        for n in (1, 2, 3, 14, 15, 33, 70):
            g, x = kernels.random(steps, m), kernels.random(steps, n, seed=1)
            got = kernels.across(g, x, slack=(m + n) % 3)
            assert near(kernels, got, g.T, x), (m, n)
            cut = 2 * m // 3
            parts = kernels.across(g, x, [(cut, m), (0, 0), (0, cut)])
            assert parts.tobytes() == got.tobytes(), (m, n)


@pytest.mark.parametrize(("m", "n"), [(7, 1200), (300, 650), (1100, 2)])
def test_products_over_steps_worked_on_in_parts(kernels: Kernels, m: int, n: int) -> None:
    g, x = kernels.random(300, m), kernels.random(300, n, seed=1)
    got = kernels.across(g, x)
    assert near(kernels, got, g.T, x)
    assert kernels.across(g, x, [(0, m // 2), (m // 2, m)], slack=5).tobytes() == got.tobytes()


def test_sums_over_many_steps_stay_exact(kernels: Kernels) -> None:
    x = np.full((50_000, 1), 0.1, kernels.dtype)
    wanted = (x.astype(np.float64) ** 2).sum()
    got = kernels.across(np.tile(x, (1, 40)), x)
    assert (np.abs(got / wanted - 1) < 300 * kernels.eps).all()  # one chain is off by several thousand


@pytest.mark.parametrize("shape", [(20, 3), (3, 20), (40, 40)])
def test_nan_and_infinity_over_steps(kernels: Kernels, shape: tuple[int, int]) -> None:
    g, x = np.ones((9, shape[0]), kernels.dtype), np.ones((9, shape[1]), kernels.dtype)
    g[2, 0], g[4, 1], x[8, 2], x[4, 0] = np.nan, np.inf, -np.inf, 0
    with np.errstate(invalid="ignore"):
        wanted = (g[:, :, None] * x[:, None, :]).sum(0)
    np.testing.assert_array_equal(kernels.across(g, x), wanted)


@pytest.mark.parametrize("members", [1, 2, 3, 40])
def test_members_of_a_team_share_a_product(kernels: Kernels, members: int) -> None:
    for rows, k, n in ((5, 9, 140), (400, 9, 70), (3, 4, 2), (300, 3, 120), (600, 1, 40), (270, 600, 50)):
        a, weight, g = kernels.random(rows, k), kernels.random(n, k), kernels.random(rows, n)
        packed = np.full(getattr(kernels.library, f"es_packed_size_{kernels.suffix}")(k, n), np.nan, kernels.dtype)
        kernels.body("panels", weight, k, n, 1, k, packed, members=members)
        assert packed.tobytes() == kernels.pack(weight.T).tobytes()
        c = np.full((rows, n), np.nan, kernels.dtype)
        kernels.body("rows", a, k, rows, packed, k, n, c, n, members=members)
        assert c.tobytes() == kernels.gemm(a, packed, n).tobytes()
        for left, right in ((g, a), (a, g)):
            (_, m), columns = left.shape, right.shape[1]
            size = getattr(kernels.library, f"es_gemm_tn_memory_{kernels.suffix}")(rows, m, columns)
            memory, total = np.full(members * size, np.nan, kernels.dtype), np.full((m, columns), np.nan, kernels.dtype)
            table = (left, m, right, columns, rows, m, columns, total, columns)
            kernels.body("columns", 1, 0, 0, memory, size, *[0] * 5, *table, 0, 0, 0, members=members)
            assert total.tobytes() == kernels.across(left, right).tobytes()
            # of each step the one before it, in rows of which one has none
            lengths = np.array([rows - rows // 3, 0, rows // 3])
            offset, resets, time = np.cumsum(lengths) - lengths, np.arange(rows) % 7 == 3, rows + 2
            others = kernels.random(6, columns)
            gathered = np.concatenate([others[:1], right[:-1]])
            gathered[offset[2]] = others[2]
            gathered[resets] = others[3 + 2 * (np.arange(rows) >= offset[2])[resets]]
            # beside another product, a total of what three threads have summed, and padding
            again, parts = np.full((m, columns), np.nan, kernels.dtype), kernels.random(3, 20)
            summed, padded = np.full(7, np.nan, kernels.dtype), kernels.random(3 * time, 2).reshape(3, time, 2)
            wanted = np.where(np.arange(time)[None, :, None] < lengths[:, None, None], padded, 0)
            ragged = (offset, lengths, resets.astype(np.uint8), 3, time)
            second = (left, m, right, columns, rows, m, columns, again, columns, 0, 0, 0, parts, 3, 20, 7, summed)
            third = (padded, padded[0, 0].nbytes)
            kernels.body(
                "columns", 2, 1, 1, memory, size, *ragged, *table, 2, others, columns, *second, *third, members=members
            )
            assert padded.tobytes() == wanted.tobytes()
            assert total.tobytes() == kernels.across(left, gathered).tobytes()
            assert again.tobytes() == kernels.across(left, right).tobytes()
            assert summed.tobytes() == (parts[0, :7] + parts[1, :7] + parts[2, :7]).tobytes()


def threads_for(library: Any, wanted: int) -> list[tuple[int, int]]:
    """(i, n) of every call."""
    seen: list[tuple[int, int]] = []
    library.es_parallel(BODY(lambda _, i, n: seen.append((i, n))), None, wanted)
    return sorted(seen)


def test_without_a_pool_the_caller_works_alone(library: Any) -> None:
    library.es_set_openmp(None, None, None)
    assert threads_for(library, 4) == [(0, 1)]


@pytest.fixture
def pool(library: Any) -> Any:
    torch.zeros(1)
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    paths = {line.split(maxsplit=5)[5] for line in lines if "libgomp" in line}
    if len(paths) != 1:
        pytest.skip("this PyTorch does not run on one libgomp")
    openmp = ctypes.CDLL(paths.pop())
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    library.es_set_openmp(*(ctypes.cast(openmp[name], c_void_p) for name in names))
    yield openmp
    library.es_set_openmp(None, None, None)


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_every_member_of_a_team_works_once(library: Any, pool: Any, wanted: int) -> None:
    pool.omp_set_dynamic(0)
    assert threads_for(library, wanted) == [(i, wanted) for i in range(wanted)]


def test_a_team_within_a_team_is_what_came(library: Any, pool: Any) -> None:
    pool.omp_set_max_active_levels(1)
    inner: list[tuple[int, int]] = []
    outer = BODY(lambda _, i, n: inner.extend(threads_for(library, 2)))
    library.es_parallel(outer, None, 2)
    assert inner == [(0, 1), (0, 1)]


def rounds(library: Any, n: int, run: Callable[[Callable[[int], None]], None]) -> None:
    """Each of `n` threads counts, waits, and must then find that all have counted."""
    barrier = (c_char * library.es_barrier_bytes())()
    counts, wrong = [0] * n, []

    def member(i: int) -> None:
        for r in range(1, 201):
            counts[i] = r
            library.es_barrier(byref(barrier), n)
            wrong.extend(c for c in counts if c != r)
            library.es_barrier(byref(barrier), n)

    run(member)
    assert counts == [200] * n
    assert not wrong


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_barrier_holds_threads_together(library: Any, n: int) -> None:
    def run(member: Callable[[int], None]) -> None:
        threads = [threading.Thread(target=member, args=(i,)) for i in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    rounds(library, n, run)


def test_a_barrier_within_a_team(library: Any, pool: Any) -> None:
    def run(member: Callable[[int], None]) -> None:
        library.es_parallel(BODY(lambda _, i, n: member(i)), None, 2)

    rounds(library, 2, run)


def test_threads_get_rows_of_equal_cost(library: Any) -> None:
    """None is left out or done twice; each thread's are sorted; about as much work for all as can be had."""
    library.es_assign.argtypes, library.es_assign.restype = [c_void_p], None
    rng, over = np.random.default_rng(0), []
    for trial in range(200):
        rows, dense = int(rng.integers(1, 40)), bool(rng.integers(2))
        length = rng.integers(0, 100, rows) if trial % 10 else np.full(rows, 7)
        order = np.argsort(-length, kind="stable")

        def cost(part: list[int], length: Any = length, dense: bool = dense) -> int:
            return sum((4 if not dense or n >= 4 else 3 if n else 7) * int(length[row]) for n, row in enumerate(part))

        for n in (1, 2, 3, 7):
            to = np.full(2 * rows + n + 1, -1)
            table = np.array([order.ctypes.data, length.ctypes.data, rows, n, dense, to.ctypes.data])
            library.es_assign(table.ctypes.data)
            starts, turns = to[: n + 1], to[n + 1 : n + 1 + rows].tolist()
            assert (np.diff(starts) >= 0).all()
            assert (starts[0], starts[-1]) == (0, rows)
            assert sorted(turns) == list(range(rows))
            parts = [turns[a:b] for a, b in pairwise(starts)]
            assert all(length[a] >= length[b] for part in parts for a, b in pairwise(part))
            worst = max(map(cost, parts))
            if n == 2 and trial % 10 and length.max():
                cuts = [max(cost(order[:cut].tolist()), cost(order[cut:].tolist())) for cut in range(rows + 1)]
                over.append(worst / min(cuts))
    assert max(over) <= 1.1  # never much worse than the best cut of the sorted rows
    assert np.mean(over) < 0.98
