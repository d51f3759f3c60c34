"""The law of the compiled engine: fused = reference, for threads × shapes × rows × the limits that divide its work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from laws import UserCell
from test_laws import assert_same, carried, everything, exactly, ways
from torch import Tensor, nn

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.backends.fused.runtime import work_layout
from everstep.backends.fused.runtime.program import Program
from everstep.native import toolchain

F64 = torch.float64
pytestmark = [
    pytest.mark.usefixtures("as_shipped"),
    pytest.mark.sanitize,
    pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine"),
]


# -------------------------------------------------------------------------------------------------------------- cells


class Elementwise(es.Cell):
    """h_t = σ(a_t) ∘ h_{t−1} + b_t ∘ v: no number needs another, so that threads can share a row without waiting."""

    def __init__(self, size: int):
        super().__init__()
        self.input_size, self.hidden_size, self.output_size = 2 * size, size, size
        self.v = nn.Parameter(torch.randn(size))

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, self.hidden_size)

    def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, -1)
        y = torch.sigmoid(a) * h + b * self.v
        return y, y


class Recurrence(es.Affine):
    """h_t = a_t ∘ h_{t-1} + b_t with a_t and b_t given side by side as x_t: outputs that leave by way of strips."""

    def __init__(self, size: int):
        super().__init__(2 * size, size)

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two halves of x."""
        a, b = x.chunk(2, -1)
        return a, b


class Momentum(es.Cell):
    """Two leaves, a parameter, numbers and another output: v = μ ∘ v⁻ - x / 4, h = h⁻ + v, y = 1 - h ∘ x."""

    def __init__(self, size: int):
        super().__init__(size, size)
        self.mu = nn.Parameter(torch.rand(size))

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_ones(batch, self.output_size), like.new_zeros(batch, self.output_size)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, v = state
        v = self.mu * v - x / 4
        h = h + v
        return 1 - h * x, (h, v)


@es.gated("a b", state="h k")
def Weighed(x, h, s):  # type: ignore[no-untyped-def]
    """Backward reads the products of x, which therefore have to be kept."""
    return torch.tanh(x.a * h.a + x.b), s.k + x.b * s.h


class Highway(es.Cell):
    """x is read as it comes, and multiplied by a matrix that is not transposed; nothing is multiplied in the loop."""

    def __init__(self, size: int):
        super().__init__(size, size)
        self.weight = nn.Parameter(torch.randn(size, 2 * size) / size**0.5)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step."""
        a, b = (x @ self.weight).chunk(2, -1)
        c = torch.sigmoid(a) * state + torch.tanh(b)
        return c + x, c


class Late(es.Cell):
    """Reads its hoisted product twice: before and after the product with the state, in order and turned round."""

    input_size, hidden_size, output_size = 3, 16, 16

    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.w, self.u = nn.Linear(3, 16), nn.Linear(16, 16, bias=False)

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        return like.new_zeros(batch, 16)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        v = self.w(x)
        if self.how == "turned":
            y = torch.tanh(v) * torch.sigmoid(v.view(-1, 4, 4).transpose(1, 2).flatten(1)) + self.u(state)
        elif self.how == "later":
            y = torch.tanh(v + state) * v
            y = torch.sigmoid(self.u(y) + v) * torch.tanh(v - y)
        elif self.how == "in products":
            y = torch.tanh(self.u(torch.sigmoid(v + state)) + v)
        elif self.how == "for its square":
            y = torch.tanh(self.w(x) * v + state) * v
        else:
            y = torch.tanh(v + torch.sigmoid(self.u(v)) + state)
        return y, torch.tanh(y)


# --------------------------------------------------------------------------------------------------------------- axes


Limits = dict[str, dict[str, object]]
UNITS: Limits = {"units shared": {"partition": lambda threads, *_: (threads, True)}}
PRODUCTS: Limits = UNITS | {
    "some steps at once": {"_NEAR": 1},
    "many steps at once": {"_NEAR": 1 << 40},
    "all steps before": {"_LARGE": 0},
    "all steps before, if a thread is idle": {"_ALONE": 0},
}
OUTPUTS: Limits = {
    "numbers shared": {"partition_elementwise": lambda threads, *_: (threads, True)},
    "past the caches": {"_NONTEMPORAL": 0},
    "in the caches": {"_NONTEMPORAL": 1 << 60},
}
LIMITS: Limits = PRODUCTS | OUTPUTS
"""What decides in `table` how a loop divides its work, each at its ends: constants, and whether threads share rows."""
THREADS = (1, 2, 3)
BOTH = (F64, torch.float32)


class Case(NamedTuple):
    """A cell, the rows and steps that it is run over, and which limits it may reach."""

    make: Callable[[], es.Cell]
    shapes: tuple[tuple[int, int], ...]
    limits: Limits = UNITS
    dtypes: tuple[torch.dtype, ...] = (F64,)


NOTHING = ((2, 0), (0, 3), (0, 0))
AHEAD = ((1, 45), (5, 45))
FEW_AND_MANY = ((1, 12), (2, 12), (7, 6), (66, 6))
CASES: dict[str, Case] = {
    "LSTM 1": Case(lambda: es.LSTM(1, 1), ((1, 5), (3, 5), (65, 5), (130, 5))),
    "LSTM 7": Case(lambda: es.LSTM(2, 7), ((3, 5), (65, 5))),
    "LSTM 16": Case(lambda: es.LSTM(3, 16), ((3, 5), (130, 5))),
    "LSTM 17": Case(lambda: es.LSTM(5, 17), ((3, 5), (65, 5))),
    "LSTM 33": Case(lambda: es.LSTM(4, 33), ((1, 5), (130, 5))),
    "LSTM 64": Case(lambda: es.LSTM(2, 64), ((3, 5), (65, 5))),
    "LSTM 20": Case(lambda: es.LSTM(3, 20), FEW_AND_MANY, UNITS, BOTH),
    "LayerNormLSTM": Case(lambda: es.LayerNormLSTM(3, 20), FEW_AND_MANY, UNITS, BOTH),
    "MLSTM": Case(lambda: es.MLSTM(3, 20), FEW_AND_MANY, UNITS, BOTH),
    "LSTM 112": Case(lambda: es.LSTM(3, 112), ((1, 12),), UNITS, BOTH),
    "UserCell": Case(UserCell, ((4, 9), *NOTHING), UNITS, BOTH),
    "LSTM": Case(lambda: es.LSTM(20, 24), (*AHEAD, *NOTHING), PRODUCTS),
    "LSTM of one feature": Case(lambda: es.LSTM(1, 24), AHEAD, PRODUCTS),
    "GRU": Case(lambda: es.GRU(20, 24), (*AHEAD, *NOTHING), PRODUCTS),
    "weighed": Case(lambda: Weighed(20, 24), AHEAD, PRODUCTS),
    "highway": Case(lambda: Highway(20), AHEAD, PRODUCTS),
    "two products": Case(lambda: es.GRUBefore(20, 24), AHEAD, PRODUCTS),
    "elementwise": Case(lambda: Elementwise(33), ((1, 40), (2, 20)), OUTPUTS),
    "elementwise 512": Case(lambda: Elementwise(512), ((1, 70), (2, 30)), OUTPUTS),  # the first is shared anyway
    "recurrence 32": Case(lambda: Recurrence(32), ((1, 50), (3, 50)), OUTPUTS, BOTH),
    "recurrence 37": Case(lambda: Recurrence(37), ((1, 50), (3, 50)), OUTPUTS, BOTH),
    "recurrence 496": Case(lambda: Recurrence(496), ((3, 50),), OUTPUTS, BOTH),
    "recurrence 1040": Case(lambda: Recurrence(1040), ((1, 50), (3, 20)), OUTPUTS, BOTH),
    "momentum": Case(lambda: Momentum(64), ((2, 50),), OUTPUTS),
    "momentum 1040": Case(lambda: Momentum(1040), ((1, 50), (2, 20)), OUTPUTS),
    **{
        f"late: {how}": Case(lambda how=how: Late(how), ((5, 7),))  # type: ignore[misc]
        for how in ("turned", "later", "in products", "for its square", "product of a product")
    },
}
ROUNDS_ANEW = {"momentum", "momentum 1040"}
"""Where two products are added, compilers choose which of them is not rounded, in each loop anew."""


@pytest.fixture(autouse=True)
def _threads_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@contextmanager
def taken(limit: str) -> Iterator[None]:
    """Layouts as this limit has them."""
    with pytest.MonkeyPatch.context() as changed:
        for constant, value in LIMITS[limit].items():
            changed.setattr(work_layout, constant, value)
        work_layout.layout.cache_clear()
        yield
    work_layout.layout.cache_clear()


def source(cell: es.Cell, xs: Tensor) -> str:
    """Of the loop forward."""
    program = fused._program(cell, xs)
    assert isinstance(program, Program)
    return program.forward_code.source


def rows_of(batch: int, time: int) -> dict[str, dict[str, object]]:
    """Whole, ragged, reset, turned round, and rows without any step: what a batch may be."""
    if batch < 2:
        return {"plain": {}, "resets": {"resets": torch.rand(batch, time) < 0.3}, "reverse": {"reverse": True}}
    none = {"no step": {"lengths": torch.zeros(batch, dtype=torch.int64)}} if time else {}
    found = ways(batch, time) if time else {"plain": {}, "resets": {"resets": torch.zeros(batch, 0, dtype=torch.bool)}}
    return {**found, **none}


def together(cell: es.Cell, xs: Tensor, state: object, how: dict[str, object]) -> dict[str, Tensor]:
    """Everything that the loop gives; outputs are the same where nothing is kept for backward."""
    found = everything(cell, xs, state, "fused", **how)
    with torch.no_grad():
        ys, _ = es.scan(cell, xs, state, backend="fused", **how)
    torch.testing.assert_close(ys, found["ys"], rtol=1e-5 if xs.dtype == torch.float32 else 1e-12, atol=1e-14)
    return {**found, "alone": ys}


def outside(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the reference gives too."""
    return {name: value for name, value in found.items() if name != "alone"}


def same_bits(got: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    return all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize(
    ("name", "dtype"), [pytest.param(n, d, id=f"{n}-{str(d)[6:]}") for n, c in CASES.items() for d in c.dtypes]
)
def test_fused_equals_the_reference(name: str, dtype: torch.dtype) -> None:
    """Within rounding on any threads and under any limit; to the bit at every call, and however steps are divided."""
    torch.manual_seed(1)
    cell, limits, tolerance = CASES[name].make().to(dtype), CASES[name].limits, 1e-10 if dtype == F64 else 1e-5
    for batch, time in CASES[name].shapes:
        xs, state = torch.randn(batch, time, cell.input_size, dtype=dtype), carried(cell, batch, dtype)
        for way, how in rows_of(batch, time).items():
            want = everything(cell, xs, state, "reference", **how)
            exact = want if dtype == F64 else exactly(cell, xs, state, **how)
            for threads in THREADS:
                if threads == 3 and way in ("ragged", "resets", "no step"):  # on two threads, and both of them on three
                    continue
                torch.set_num_threads(threads)
                first = together(cell, xs, state, how)
                assert_same(outside(first), want, tolerance, exact)
                # threads may disturb each other
                assert threads == 1 or same_bits(together(cell, xs, state, how), first)
                for limit in limits if way in ("plain", "reversed") else ():
                    shared = limit.endswith("shared")
                    if threads not in ((2, 3) if shared else (1, 2)):
                        continue
                    with taken(limit):
                        found = together(cell, xs, state, how)
                        assert not shared or same_bits(together(cell, xs, state, how), found)
                    if shared or name in ROUNDS_ANEW:  # sums, and what is computed as vectors, are of their shares
                        assert_same(outside(found), want, tolerance, exact)
                    else:
                        assert same_bits(found, first), (limit, threads, batch, time, way)


@pytest.mark.parametrize("threads", [1, 2])
def test_limits_of_products_are_heeded(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    torch.set_num_threads(threads)
    chunks: list[int] = []
    layout = work_layout.layout

    def note(*given: Any) -> work_layout.Layout:
        found = layout(*given)
        chunks.append(found.chunk)
        return found

    monkeypatch.setattr(fused.call, "layout", note)
    cell, xs = es.LSTM(20, 24), torch.randn(1, 45, 20)
    found = []
    for limit in (name for name in PRODUCTS if name not in UNITS):
        with taken(limit):
            chunks.clear()
            es.scan(cell, xs, backend="fused")
            found.append({*chunks})
    assert found == [{14}, {45}, {0}, {45 if threads == 1 else 0}]  # one thread: none is idle


@pytest.mark.parametrize(
    ("name", "strips"), [("recurrence 32", True), ("recurrence 37", False), ("recurrence 496", True)]
)
def test_outputs_leave_by_strips_where_lines_are_whole(name: str, strips: bool) -> None:
    cell = CASES[name].make()
    code = source(cell, torch.zeros(1, 300, cell.input_size))
    assert "if (nontemporal) es_nontemporal_copy(" in code
    assert ("auto strip" in code) == strips


def test_what_backward_needs_is_kept() -> None:
    """In training the state of every step stays, which strips do not leave."""
    assert "== nowhere" in source(Momentum(64).double(), torch.zeros(2, 300, 64, dtype=F64))


def test_strips_need_arithmetic_alone() -> None:
    """What a vector has no operator for is computed number by number."""

    class Rectified(Recurrence):
        def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.relu(super().step(x, state)[1])
            return h, h

    xs, found = torch.randn(2, 300, 128), []
    cell = Rectified(64)
    assert "auto strip" not in source(cell, xs)
    for limit in ("in the caches", "past the caches"):
        with taken(limit):
            found.append(es.scan(cell, xs, backend="fused")[0].clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["recurrence 1040", "momentum 1040"])
def test_not_a_number_is_gone_at_the_next_reset(name: str, threads: int) -> None:
    """Strips hold many steps of some numbers in registers."""
    torch.manual_seed(1)
    torch.set_num_threads(threads)
    cell = CASES[name].make().double()
    xs, state, resets = torch.randn(2, 300, cell.input_size, dtype=F64), carried(cell, 2), torch.rand(2, 300) < 0.05
    xs[:, 100] = torch.nan
    resets[:, 101] = True
    assert "auto strip" in source(cell, xs)
    how = {"lengths": torch.tensor([300, 257]), "resets": resets}
    with torch.no_grad():
        want, _ = es.scan(cell, xs, state, backend="reference", **how)
        assert want[:, 100].isnan().all()
        for limit in ("in the caches", "past the caches"):
            with taken(limit):
                ys, _ = es.scan(cell, xs, state, backend="fused", **how)
            torch.testing.assert_close(ys, want, equal_nan=True, rtol=1e-12, atol=1e-12)


class Masked(es.Cell):
    """Rows of a matrix, kept where two masks, one of them a row's, say so; and a product, so that steps have phases."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(3, 3)
        self.join, self.read = join, nn.Linear(4, 3)

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_ones(batch, 4, 3), like.new_zeros(batch, 4)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        kept, other = state
        row = x.unsqueeze(1)
        chosen = torch.where(self.join(kept < 0.3, row >= 0.1), kept, row)
        return self.read(other), (torch.tanh(chosen * row), other)


@pytest.mark.parametrize("join", [torch.logical_and, torch.logical_or])
def test_two_masks_joined(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    cell, xs = Masked(join).double(), torch.randn(3, 4, 3, dtype=F64).requires_grad_()
    found = []
    for backend in ("reference", "fused"):
        state = tuple(leaf.requires_grad_() for leaf in cell.initial_state(3, xs.detach()))
        ys, (kept, other) = es.scan(cell, xs, state, backend=backend)
        total = ys.sum() + other.sum() + (kept * torch.linspace(0.5, 1, kept.numel(), dtype=F64).view_as(kept)).sum()
        found.append(torch.autograd.grad(total, xs)[0])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-9)
