"""One step at a time, compiled: what changes of the cell, what is refused, and where its `step` runs instead."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.native import toolchain
from everstep.state import leaves
from everstep.stream import written_step

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler")


def check(stream: es.Stream, dtype: torch.dtype = torch.float32) -> None:
    """From its initial state it gives what the cell's step gives."""
    stream.reset()
    state = stream.state
    for x in torch.randn(3, stream.batch, stream.cell.input_size, dtype=dtype):
        with torch.no_grad():
            want, state = stream.cell.step(x, state)
        torch.testing.assert_close(stream(x), want)


class Bare(es.Cell):
    """No parameters and no buffers; a step that `change` makes of its state."""

    def __init__(self, start: Callable[[int, Tensor], Any], step: Callable[[Tensor, Any], Any], size: int = 3):
        super().__init__(3, size)
        self.start, self.change = start, step

    def initial_state(self, batch: int, like: Tensor) -> Any:
        return self.start(batch, like)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.change(x, state)


def zeros(batch: int, like: Tensor) -> Tensor:
    return like.new_zeros(batch, 3)


def test_each_turn_gives_the_same_bits() -> None:
    cell, x = es.Stack(es.LSTM(30, 100), es.GRU(100, 70)), torch.randn(2, 30)
    for batch in (1, 2):
        streams = [es.Stream(cell, batch) for _ in "ab"]
        streams[0](x[:batch])  # from now on it has the other turn
        state = streams[0].state
        for _ in range(4):
            for stream in streams:
                stream.state = state
            assert torch.equal(*(stream(x[:batch]) for stream in streams))
            assert all(map(torch.equal, *([leaf for _, leaf in leaves(stream.state)] for stream in streams)))
            state = streams[0].state


def test_products_that_do_not_depend_on_one_another_are_neighbours() -> None:
    cell, like = es.Stack(es.LSTM(3, 4), es.GRU(4, 4)), torch.zeros(1, 3)
    _, order, code = written_step(cell, like, cell.initial_state(1, like))
    assert [len(phase) for phase in order.independent if isinstance(phase, list)] == [2, 2]
    assert code.source.count("switch (from_end ? 1 - p : p)") == 2


def test_a_cell_without_parameters() -> None:
    stream = es.Stream(Bare(zeros, lambda x, h: (torch.tanh(x + h),) * 2))
    assert stream.compiled, stream.reason
    check(stream)


CHANGES: dict[str, Callable[[Any], object]] = {
    "an optimizer's step": lambda cell: torch.optim.SGD([grown(p) for p in cell.parameters()], 1.0).step(),
    "vector_to_parameters": lambda cell: nn.utils.vector_to_parameters(
        1.5 * nn.utils.parameters_to_vector(cell.parameters()).detach(), cell.parameters()
    ),
    "other data": lambda cell: setattr(cell.bias_hh, "data", torch.ones(16)),
    "another parameter": lambda cell: setattr(cell, "weight_hh", nn.Parameter(torch.ones(16, 4))),
    "one of the same memory": lambda cell: aliased(cell).mul_(2),
    "a parameter in its module's dictionary": lambda cell: cell._parameters.update(
        bias_ih=nn.Parameter(torch.ones(16))
    ),
}


def grown(parameter: Tensor) -> Tensor:
    parameter.grad = torch.ones_like(parameter)
    return parameter


def aliased(cell: Any) -> Tensor:
    cell.weight_hh = nn.Parameter(cell.weight_hh.data)
    return cell.weight_hh.detach()


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_parameters_are_noticed(change: str) -> None:
    stream = es.Stream(es.LSTM(3, 4))
    check(stream)
    CHANGES[change](stream.cell)
    junk = [torch.full((size,), torch.nan) for size in (16, 48, 64) for _ in range(50)]  # where data may have been
    check(stream)
    assert stream.compiled
    del junk


@pytest.mark.parametrize("backend", ["compiled", "eager"])
def test_another_dtype_is_followed_with_the_state(backend: str) -> None:
    if backend == "compiled":
        cell: es.Cell = es.GRU(3, 4)
    else:
        cell = Bare(zeros, lambda x, h: (h.sort(1).values + x, h + x))
        cell.scale = nn.Parameter(torch.ones(1))
    stream, x = es.Stream(cell), torch.randn(1, 3)
    assert stream.compiled == (backend == "compiled")
    stream(x)
    before = stream.state
    cell.double()
    with torch.no_grad():
        want, _ = cell.step(x.double(), before.double())
    torch.testing.assert_close(stream(x.double()), want)
    with pytest.raises(ValueError, match=r"x should be \(1, 3\) torch\.float64"):
        stream(x)


def test_another_module_is_noticed() -> None:
    cell = es.Stack(es.GRU(3, 4), es.GRU(4, 4))
    stream = es.Stream(cell)
    check(stream)
    layers = next(m for m in cell.modules() if isinstance(m, nn.ModuleList))
    layers[1] = es.GRU(4, 4, bias=False)
    check(stream)


def test_a_parameter_that_is_gone_is_noticed() -> None:
    cell = es.LSTM(3, 4)
    stream, x = es.Stream(cell), torch.randn(1, 3)
    stream(x)
    del cell.bias_hh
    with pytest.raises(AttributeError, match="bias_hh"):
        stream(x)


def test_parameters_made_in_inference_mode() -> None:
    with torch.inference_mode():
        stream = es.Stream(es.LSTM(3, 4))
        check(stream)
    assert stream.compiled
    check(stream)
    stream.state = stream.state
    stream.cell.bias_hh.data = torch.ones(16)
    check(stream)


OUTS = {
    "shape": (lambda: torch.zeros(2, 5), r"out should be \(2, 4\)"),
    "one dimension": (lambda: torch.zeros(8), r"out should be \(2, 4\)"),
    "dtype": (lambda: torch.zeros(2, 4, dtype=torch.float64), r"torch\.float32 on cpu, but is \(2, 4\) torch\.float64"),
    "device": (lambda: torch.zeros(2, 4, device="meta"), "on meta"),
    "gaps": (lambda: torch.zeros(4, 2).t(), "out should be contiguous"),
}


@pytest.mark.parametrize("name", OUTS)
def test_out_is_checked(name: str) -> None:
    stream = es.Stream(es.LSTM(3, 4), 2)
    make, message = OUTS[name]
    with pytest.raises(ValueError, match=message):
        stream(torch.zeros(2, 3), make())
    out = torch.full((2, 4), torch.nan)
    stream.reset()
    assert stream(torch.zeros(2, 3), out) is out
    assert bool(out.isfinite().all())


def test_what_has_no_step_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a Cell, which has a step, but got Bidirectional"):
        es.Stream(es.Bidirectional(es.GRU(3, 4), es.GRU(3, 4)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch should be at least 0, but is -1"):
        es.Stream(es.GRU(3, 4), -1)


def test_no_rows() -> None:
    stream = es.Stream(es.LSTM(3, 4), 0)
    assert stream(torch.zeros(0, 3)).shape == (0, 4)
    assert stream.state.h.shape == (0, 4)


REFUSED = {
    "a state of another dtype": (
        Bare(
            lambda b, like: like.new_zeros(b, 3, dtype=torch.float64), lambda x, h: (torch.tanh(x + h).float(), h + 1)
        ),
        "its step carries torch.float64; the compiled loop holds torch.float32 alone",
    ),
    "a counter": (
        Bare(lambda b, like: torch.zeros(b, 1, dtype=torch.int64), lambda x, n: (x * n, n + 1)),
        "its step carries torch.int64",
    ),
    "an output of another size": (
        Bare(zeros, lambda x, h: (torch.cat([x, h], 1), h + x), size=4),
        "its step gives (batch, 6), but its output_size asks for (batch, 4)",
    ),
    "a step that reads nothing": (Bare(lambda b, like: (), lambda x, s: (torch.zeros_like(x), s)), "reads no input"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_compiled_is_stepped(name: str) -> None:
    cell, reason = REFUSED[name]
    stream = es.Stream(cell, 2)
    assert reason in (stream.reason or "")
    check(stream)


@pytest.mark.parametrize("compiled", [True, False])
def test_states_that_change_places(compiled: bool) -> None:
    def step(x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        a, b = state
        return (b if compiled else b.sort(1).values), (b, a + x)

    stream = es.Stream(Bare(lambda b, like: (zeros(b, like), zeros(b, like)), step))
    assert stream.compiled == compiled
    check(stream)


def test_a_state_is_checked_before_it_is_set() -> None:
    stream = es.Stream(es.LSTM(3, 4), 2)
    stream(torch.randn(2, 3))
    before = stream.state
    with pytest.raises(
        ValueError, match=r"Stream\(LSTM\): state leaf '1' should have shape \(2, 4\), but has \(1, 4\)"
    ):
        stream.state = torch.zeros(2, 4), torch.zeros(1, 4)
    with pytest.raises(TypeError, match="state should be a tuple of 2"):
        stream.state = torch.zeros(2, 4)
    assert all(torch.equal(a, b) for a, b in zip(stream.state, before, strict=True))
    stream.state = torch.ones(2, 4, requires_grad=True), torch.ones(2, 4)
    assert not stream.state.h.requires_grad


def test_inputs_that_are_no_plain_memory() -> None:
    stream, x = es.Stream(es.LSTM(3, 4)), torch.randn(1, 3)
    want = stream(x)
    stream.reset()
    torch.testing.assert_close(stream(torch._neg_view(-x)), want)


def row(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, 3, dtype=dtype)


KINDS: dict[str, tuple[Callable[[], Any], Callable[[], Tensor]]] = {
    "alone": (nullcontext, row),
    "in a sequence": (nullcontext, lambda: torch.randn(1, 7, 3)[:, 2]),
    "made in inference mode": (torch.inference_mode, row),
    "with a gradient": (nullcontext, lambda: row().requires_grad_()),
    "a parameter": (nullcontext, lambda: nn.Parameter(row())),
    "under autocast": (lambda: torch.autocast("cpu", torch.bfloat16), row),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_like_the_last_one_is_known(kind: str) -> None:
    mode, make = KINDS[kind]
    stream, plain = es.Stream(es.LSTM(3, 4)), row()
    stream(plain)
    assert stream._seen(plain)
    assert stream._seen(torch.zeros(1, 7, 3)[:, 2])
    with mode():
        x = make()
        stream(x)
        assert stream._seen(x)
        assert stream._seen(make())
        stream.reset()
        got = stream(x)
        assert got.is_inference() == (mode is torch.inference_mode)
        assert not got.requires_grad
    stream.reset()
    assert torch.equal(stream(x.detach().clone()), got)


class Own(Tensor):
    """A tensor of another type."""


UNKNOWN = {
    "of another shape": lambda: torch.zeros(2, 4),
    "of other dimensions": lambda: torch.zeros(6),
    "of another dtype": lambda: torch.zeros(2, 3, dtype=torch.float64),
    "on another device": lambda: torch.zeros(2, 3, device="meta"),
    "with gaps": lambda: torch.zeros(3, 2).t(),
    "negated when it is read": lambda: torch._neg_view(torch.zeros(2, 3)),
    "of another type": lambda: torch.zeros(2, 3).as_subclass(Own),
    "sparse": lambda: torch.zeros(2, 3).to_sparse(),
    "no tensor": lambda: [[0.0] * 3] * 2,
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_input_that_needs_a_look_gets_one(name: str) -> None:
    stream = es.Stream(es.LSTM(3, 4), 2)
    stream(torch.zeros(2, 3))
    assert stream._seen(torch.zeros(2, 3))
    assert not stream._seen(UNKNOWN[name]())  # type: ignore[arg-type]


@pytest.mark.instructions
def test_the_callers_modes_leave_no_trace() -> None:
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        stream = es.Stream(es.LSTM(3, 4))
        stream(torch.randn(1, 3))
    check(stream)
