"""A step may write over what it is given: others have that too, and it is for them as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.native import toolchain
from everstep.state import State

F64 = torch.float64
BACKENDS = ["reference", *(["fused"] if toolchain.compiler() is not None else [])]


class InPlace(es.Cell):
    """A step on x and (h, m), of which m is only read."""

    def __init__(self, function: Callable[[es.Cell, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]):
        super().__init__(3)
        self.function, self.linear = function, nn.Linear(3, 3, dtype=F64)

    def initial_state(self, batch: int, like: Tensor) -> State:
        return like.new_zeros(batch, 3), like.new_ones(batch, 3)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, m = state
        y, h = self.function(self, x, h, m)
        return y, (h, m)


def add_state(c, x, h, m):  # type: ignore[no-untyped-def]
    h += c.linear(x) * m
    return h, h


def add_state_plainly(c, x, h, m):  # type: ignore[no-untyped-def]
    h = h + c.linear(x) * m
    return h, h


def methods(c, x, h, m):  # type: ignore[no-untyped-def]
    h.mul_(0.5).add_(c.linear(x)).tanh_()
    return h * m, h


def methods_plainly(c, x, h, m):  # type: ignore[no-untyped-def]
    h = torch.tanh(h * 0.5 + c.linear(x))
    return h * m, h


def change_input(c, x, h, m):  # type: ignore[no-untyped-def]
    x *= 2
    h = torch.tanh(c.linear(x) + h)
    return h + x, h * m


def change_input_plainly(c, x, h, m):  # type: ignore[no-untyped-def]
    x = x * 2
    h = torch.tanh(c.linear(x) + h)
    return h + x, h * m


def one_feature(c, x, h, m):  # type: ignore[no-untyped-def]
    z = torch.tanh(c.linear(x) + h)
    h[:, 0] = 0.5
    return z + h, z * m


def one_feature_plainly(c, x, h, m):  # type: ignore[no-untyped-def]
    z = torch.tanh(c.linear(x) + h)
    h = torch.cat([torch.full_like(h[:, :1], 0.5), h[:, 1:]], 1)
    return z + h, z * m


STEPS = [
    (add_state, add_state_plainly),
    (methods, methods_plainly),
    (change_input, change_input_plainly),
    (one_feature, one_feature_plainly),
]


def pair(number: int) -> tuple[es.Cell, es.Cell]:
    torch.manual_seed(0)
    cell, plain = (InPlace(function) for function in STEPS[number])
    plain.load_state_dict(cell.state_dict())
    return cell, plain


def run(cell: es.Cell, backend: str, given: bool, ragged: bool, want: bool) -> list[Tensor]:
    torch.manual_seed(1)
    xs = torch.randn(3, 5, 3, dtype=F64, requires_grad=want)
    state = (torch.randn(3, 3, dtype=F64, requires_grad=want), torch.randn(3, 3, dtype=F64)) if given else None
    lengths, resets = (torch.tensor([5, 2, 0]), torch.rand(3, 5) < 0.3) if ragged else (None, None)
    tensors = [xs, *(state or ())]
    before = [t.detach().clone() for t in tensors]
    ys, carried = es.scan(cell, xs, state, lengths=lengths, resets=resets, backend=backend)
    held = [ys.detach().clone(), *(leaf.detach().clone() for leaf in carried)]
    more, final = es.scan(cell, xs, carried, backend=backend)
    torch.testing.assert_close([ys, *carried], held, rtol=0, atol=0)
    torch.testing.assert_close([t.detach() for t in tensors], before, rtol=0, atol=0)
    ends = [ys, more, *final]
    if not want:
        return ends
    wanted = [t for t in (*tensors, *cell.parameters()) if t.requires_grad]
    loss = sum(((e * torch.arange(1.0, 1 + e.numel(), dtype=F64).view(e.shape)).sum() for e in ends), torch.zeros(()))
    return [*ends, *torch.autograd.grad(loss, wanted, allow_unused=True)]


@pytest.mark.parametrize("number", range(len(STEPS)))
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
@pytest.mark.parametrize("want", [True, False])
def test_it_is_the_step_written_out_of_place(number: int, backend: str, want: bool) -> None:
    cell, plain = pair(number)
    if backend == "fused" and number == 3:
        with pytest.raises(ValueError, match=r"its step changes a tensor in place by fill_ \("):
            run(cell, backend, False, False, want)
        return
    for given in (True, False):
        for ragged in (True, False):
            found, wanted = (run(c, b, given, ragged, want) for c, b in ((cell, backend), (plain, "reference")))
            for ours, theirs in zip(found, wanted, strict=True):
                assert (ours is None) == (theirs is None)
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("number", range(len(STEPS)))
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_without_gradients(number: int, mode: Callable[[], torch.no_grad]) -> None:
    cell, plain = pair(number)
    with mode():
        found, wanted = run(cell, "reference", True, False, False), run(plain, "reference", True, False, False)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("number", range(len(STEPS)))
def test_a_stream(number: int) -> None:
    cell, plain = pair(number)
    xs = torch.randn(2, 5, 3, dtype=F64)
    before, stream = xs.clone(), es.Stream(cell, 2)
    found = torch.stack([stream(x) for x in xs.unbind(1)], 1)
    torch.testing.assert_close(xs, before, rtol=0, atol=0)
    torch.testing.assert_close(found, es.scan(plain, xs, backend="reference")[0])


def test_only_what_is_written_over_is_copied() -> None:
    seen = []

    def function(c: es.Cell, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(m.data_ptr())
        return add_state(c, x, h, m)  # type: ignore[no-any-return]

    es.scan(InPlace(function), torch.randn(2, 5, 3, dtype=F64), backend="reference")
    assert len(set(seen)) == 1


def test_what_is_written_over_later_is_refused() -> None:
    times = []

    def function(c: es.Cell, x: Tensor, h: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        times.append(1)
        return (add_state if len(times) == 3 else add_state_plainly)(c, x, h, m)  # type: ignore[no-any-return]

    with pytest.raises(
        RuntimeError, match=r"InPlace\.step changes its input or its state in place at one step, but not"
    ):
        es.scan(InPlace(function), torch.randn(2, 5, 3, dtype=F64), backend="reference")


class AffineInPlace(es.Affine):
    """Coefficients or outputs that write over what they are given."""

    def __init__(self, where: str):
        super().__init__(3)
        self.where = where

    def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        b = x.mul_(2) if self.where == "coefficients" else x
        return torch.full_like(x, 0.5), b

    def output(self, h: Tensor, x: Tensor) -> Tensor:
        return h.mul_(2) if self.where == "output" else h


@pytest.mark.parametrize("where", ["coefficients", "output"])
def test_coefficients_in_place_are_told(where: str) -> None:
    with pytest.raises(RuntimeError, match=rf"AffineInPlace\.{where} changes its arguments in place"):
        es.scan(AffineInPlace(where), torch.randn(2, 5, 3), backend="parallel")
