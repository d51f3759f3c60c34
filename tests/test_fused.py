"""The compiled engine against the reference: random cells, every way of calling, and what is refused."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from laws import UserCell
from random_cells import differences
from test_laws import assert_same, carried, everything, inputs
from torch import Tensor, nn

import everstep as es
from everstep.native import build, toolchain

F64 = torch.float64
pytestmark = [
    pytest.mark.usefixtures("as_shipped"),
    pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler"),
]


def make(cell: Callable[..., es.Cell] = es.GRU, *sizes: int, dtype: torch.dtype = F64, **options: Any) -> es.Cell:
    torch.manual_seed(1)
    return cell(*(sizes or (3, 5)), **options).to(dtype)


def compare(cell: es.Cell, xs: Tensor, state: object = None, tolerance: float = 1e-9, **how: object) -> None:
    """Everything that fused gives is what the reference gives."""
    state = carried(cell, len(xs), xs.dtype) if state is None else state
    want = everything(cell, xs, state, "reference", **how)
    assert_same(everything(cell, xs, state, "fused", **how), want, tolerance)


# -------------------------------------------------------------------------------------------------------------- threads


@pytest.mark.sanitize
def test_two_python_threads_at_once() -> None:
    cells = [make(es.LSTM, 3, 16), make(es.GRU, 3, 16)]
    xs = inputs(cells[0], 4, 30)
    want = [everything(cell, xs, carried_zero(cell, 4), "reference") for cell in cells]
    failures: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for _ in range(20):
                assert_same(everything(cells[k], xs, carried_zero(cells[k], 4), "fused"), want[k], 1e-9)
        except BaseException as error:  # it is raised again below
            failures.append(error)

    workers = [threading.Thread(target=work, args=(k % 2,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, failures


def carried_zero(cell: es.Cell, batch: int) -> object:
    return cell.initial_state(batch, torch.zeros(1, dtype=F64))


# ------------------------------------------------------------------------------------------------------ unusual numbers


@pytest.mark.sanitize
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 5e-324, 1e-310, 1e150])
@pytest.mark.parametrize("kind", [es.LSTM, es.GRU, es.LayerNormGRU, es.SLSTM, es.MLSTM, es.MinGRU, UserCell])
def test_nan_infinity_and_denormals_flow_as_in_the_reference(kind: Callable[..., es.Cell], number: float) -> None:
    cell = UserCell().double() if kind is UserCell else make(kind, 3, 6)
    xs = inputs(cell, 3, 6)
    xs[1, 2, 0] = number
    want = es.scan(cell, xs, backend="reference")[0]
    torch.testing.assert_close(es.scan(cell, xs, backend="fused")[0], want, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert torch.isfinite(want[0]).all()


@pytest.mark.sanitize
@pytest.mark.parametrize("op", ["relu", "sigmoid", "tanh", "abs", "sign", "elu", "softplus", "hardtanh", "leaky_relu"])
def test_pointwise_operations_on_unusual_numbers(op: str) -> None:
    fn = getattr(torch, op, None) or getattr(nn.functional, op)
    check_pointwise(fn, f"unusual {op}")


OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda h: torch.clamp(h, -0.5, 0.5),
    "maximum": lambda h: torch.maximum(h, 0.25 * torch.ones_like(h)),
    "minimum": lambda h: torch.minimum(h, torch.zeros_like(h)),
    "where": lambda h: torch.where(h > 0, h, -h),
    "softmax": lambda h: torch.softmax(h, -1),
    "amax": lambda h: h - h.amax(-1, keepdim=True),
    "exp": lambda h: torch.exp(h),
    "log1p": lambda h: torch.log1p(torch.abs(h)),
    "where NaN": lambda h: torch.where(h != h, 0.5, h),
    "selu": lambda h: nn.functional.selu(h),
    "logsigmoid": lambda h: nn.functional.logsigmoid(h),
    "hardsigmoid": lambda h: nn.functional.hardsigmoid(h) * 0 + h,
}


@pytest.mark.sanitize
@pytest.mark.parametrize("name", OTHER)
def test_other_operations_on_unusual_numbers(name: str) -> None:
    check_pointwise(OTHER[name], f"other {name}")


class Through(es.Cell):
    """A state that stands still and a function of it, so that the function sees exactly the numbers that are given."""

    def __init__(self, fn: Callable[[Tensor], Tensor]):
        super().__init__(1, 12)
        self.fn = fn

    def step(self, x, state):
        return self.fn(state) + 0 * x, state


def check_pointwise(fn: Callable[[Tensor], Tensor], name: str) -> None:
    big = torch.finfo(F64).max
    numbers = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 20.0, -800.0, big, float("nan"), float("inf"), -float("inf")]
    state = torch.tensor(
        [numbers, [0.0] * 12, [-0.5, 0.5] * 6, [x if x == x and abs(x) < 1e9 else 1.0 for x in numbers]]
    )
    cell, xs = Through(fn), torch.zeros(4, 2, 1, dtype=F64)
    got, want = (
        dict(zip(("ys", "grad"), with_grad(cell, xs, state.double(), backend), strict=True))
        for backend in ("fused", "reference")
    )
    torch.testing.assert_close(got["ys"], want["ys"], rtol=1e-12, atol=1e-300, equal_nan=True)
    # gradients of finite numbers; beyond, PyTorch's own formulas differ from each other
    torch.testing.assert_close(got["grad"][1:], want["grad"][1:], rtol=1e-12, atol=1e-14, equal_nan=True)


def with_grad(cell: es.Cell, xs: Tensor, state: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    state = state.clone().requires_grad_()
    ys, _ = es.scan(cell, xs, state, backend=backend)
    return ys.detach(), torch.autograd.grad(ys.sum(), state)[0]


# -------------------------------------------------------------------------------------------------- PyTorch's machinery


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # inside of PyTorch
@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "forward mode"])
def test_function_transforms_take_another_backend(transform: str) -> None:
    cell = make(es.GRUBefore)
    xs = inputs(cell, 2, 4)

    def total(xs: Tensor, backend: str = "auto") -> Tensor:
        return es.scan(cell, xs, backend=backend)[0].square().sum()

    expected = torch.autograd.grad(total(leaf := xs.clone().requires_grad_(), "reference"), leaf)[0]
    if transform == "grad":
        torch.testing.assert_close(torch.func.grad(total)(xs), expected)
    elif transform == "vmap":
        many = torch.stack([xs, 2 * xs])
        torch.testing.assert_close(torch.func.vmap(total)(many), torch.stack([total(xs), total(2 * xs)]))
    elif transform == "jvp":
        _, along = torch.func.jvp(total, (xs,), (torch.ones_like(xs),))
        torch.testing.assert_close(along, expected.sum())
    else:
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(xs, torch.ones_like(xs))
            along = torch.autograd.forward_ad.unpack_dual(total(dual)).tangent
        torch.testing.assert_close(along, expected.sum())


@pytest.mark.instructions
def test_autocast() -> None:
    cell = make(es.LSTM, 16, 32, dtype=torch.float32)
    xs = torch.randn(3, 7, 16)
    want = everything(cell, xs, carried(cell, 3, torch.float32), "reference")
    with torch.autocast("cpu", torch.bfloat16):
        ys, state = es.scan(cell, xs)
        ys.float().sum().backward()
    assert state.c.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(ys.float(), es.scan(cell, xs, backend="reference")[0], rtol=0, atol=0.05)
    assert want["ys"].shape == ys.shape


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch itself reads it, where it goes on after the loop
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method")  # and uses what torch 2.11 says not to
def test_a_compiled_caller() -> None:
    cell = make()
    xs = inputs(cell, 2, 4)
    compiled = torch.compile(lambda xs: es.scan(cell, xs)[0] * 2, backend="eager")
    try:
        torch.testing.assert_close(compiled(xs), es.scan(cell, xs, backend="reference")[0] * 2)
    finally:
        torch._dynamo.reset()


def test_export_gives_no_wrong_result() -> None:
    cell = make()
    xs = inputs(cell, 2, 4)
    es.scan(cell, xs, backend="fused")  # known to the engine before
    try:
        program = torch.export.export(cell, (xs,))
    except Exception:  # refusing is well, with whatever PyTorch raises
        return
    torch.testing.assert_close(program.module()(xs)[0], cell(xs)[0])


# ------------------------------------------------------------------------------------------------- elementary functions

HARNESS = """
#define EACH(F) \\
  extern "C" void F##_f32(const float* a, float* b, long n) { _Pragma("omp simd") \\
    for (long i = 0; i < n; ++i) b[i] = es_##F(a[i]); } \\
  extern "C" void F##_f64(const double* a, double* b, long n) { _Pragma("omp simd") \\
    for (long i = 0; i < n; ++i) b[i] = es_##F(a[i]); }
EACH(exp) EACH(tanh) EACH(sigmoid) EACH(log) EACH(log1p) EACH(expm1)
"""
LIMITS = {"exp": (1, 2), "tanh": (2, 2), "sigmoid": (3, 3), "log": (1, 1), "log1p": (3, 3), "expm1": (4, 4)}
"""The largest error in units in the last place: float32, float64."""


def exact(name: str, x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x)) if name == "sigmoid" else getattr(np, name)(x)


def grid(dtype: Any) -> np.ndarray:
    """Dense where the functions bend, through all exponents, and around what is special."""
    info = np.finfo(dtype)
    around = [0.625, -0.625, 87.3, -87.3, -103.9, 88.8, 100, -110, 709.7, 709.8, -708.4, -745.2, 720, -760]
    parts = [
        np.linspace(-110, 110, 400_001),
        np.linspace(-1, 1, 400_001),
        np.linspace(-760, 760, 200_001),
        *(np.linspace(x * 0.999, x * 1.001, 20_001) for x in around),
        np.geomspace(float(info.tiny), 800, 100_001),
        -np.geomspace(float(info.tiny), 800, 100_001),
        np.geomspace(float(info.smallest_subnormal), float(info.tiny), 1001),
        np.array([0.0, -0.0, info.max, info.min]),
    ]
    return np.concatenate(parts).astype(dtype)


def errors(name: str, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The grid, and the error at every place of it in units in the last place of the exact result."""
    library = build.load(Path(build.__file__).with_name("math.h").read_text("utf-8") + HARNESS, "math")
    run = getattr(library, f"{name}_f{np.dtype(dtype).itemsize * 8}")
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    x = grid(dtype)
    got = np.empty_like(x)
    run(x.ctypes.data, got.ctypes.data, len(x))
    with np.errstate(all="ignore"):
        want = exact(name, x.astype(np.float64 if dtype == np.float32 else np.longdouble))
        rounded = want.astype(dtype)
        assert np.array_equal(np.isinf(got), np.isinf(rounded))
        assert np.array_equal(np.isnan(got), np.isnan(rounded))
        # a sigmoid below the smallest normal number may be 0
        finite = np.isfinite(rounded) & ((name != "sigmoid") | (np.abs(rounded) >= np.finfo(dtype).tiny))
        assert np.all(got[~finite & np.isfinite(rounded)] <= np.finfo(dtype).tiny)
        return x[finite], np.abs((got.astype(want.dtype) - want)[finite] / np.spacing(np.abs(rounded[finite])))


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LIMITS)
def test_elementary_functions(name: str, dtype: Any) -> None:
    x, wrong = errors(name, dtype)
    assert wrong.max() <= LIMITS[name][dtype == np.float64], (x[wrong.argmax()], wrong.max())


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LIMITS)
def test_elementary_functions_at_the_ends(name: str, dtype: Any) -> None:
    library = build.load(Path(build.__file__).with_name("math.h").read_text("utf-8") + HARNESS, "math")
    run = getattr(library, f"{name}_f{np.dtype(dtype).itemsize * 8}")
    run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0] * 5, dtype)
    got = np.empty_like(x)
    run(x.ctypes.data, got.ctypes.data, len(x))
    with np.errstate(all="ignore"):
        want = exact(name, x)
    assert np.isnan(got[::5]).all()
    assert np.array_equal(got, want, equal_nan=True)


def test_memory_of_inference_mode_serves_training_after_it() -> None:
    cell, xs = es.LSTM(64, 64), torch.randn(64, 50, 64)
    for _ in range(2):
        with torch.inference_mode():
            want = cell(xs)[0].clone()
        ys, _ = cell(xs.clone().requires_grad_())
        ys.square().sum().backward()
        assert not ys.is_inference()
        torch.testing.assert_close(ys, want)


EXTREMES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda v: torch.softmax(v, -1),
    "log_softmax": lambda v: torch.log_softmax(v, -1),
    "amax": lambda v: v - v.amax(-1, keepdim=True),
    "amin": lambda v: v * v.amin(-1, keepdim=True),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_the_place_of_a_maximum_is_not_found_by_numbers_computed_again(name: str) -> None:
    class Extreme(es.Cell):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.p, self.out = nn.Parameter(torch.rand(3) * 2 - 1), nn.Linear(3, 3)

        def step(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            v = torch.tanh(h * h)
            v = torch.lerp(v, self.p, torch.sigmoid(v - self.p))  # cheap enough to be computed again
            h = torch.tanh(self.out(EXTREMES[name](v)) + x)
            return h, h

    for seed in range(4):
        torch.manual_seed(seed)
        assert not differences(Extreme().double(), F64, seed, 5, 6)


def test_gradients_of_any_kind_go_backward() -> None:
    cell = make()
    xs = inputs(cell, 2, 3).requires_grad_()
    found = []
    for backend in ("reference", "fused"):
        ys, _ = es.scan(cell, xs, backend=backend)
        eye = torch.eye(ys.numel(), dtype=ys.dtype).view(-1, *ys.shape)
        (batched,) = torch.autograd.grad(ys, xs, eye, is_grads_batched=True, retain_graph=True)
        (negated,) = torch.autograd.grad(ys, xs, torch._neg_view(torch.ones_like(ys)))
        assert not batched.requires_grad
        found.append((batched, negated))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
