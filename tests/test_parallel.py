"""The associative scan: its depth, its memory, and its numbers at lengths that are no powers of two."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import everstep as es
from everstep.backends.dispatch import BACKENDS
from everstep.backends.parallel import linear_scan
from tests.laws import refused


class Count(TorchDispatchMode):
    """Operations, and the largest tensor that one of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.operations += 1
            self.elements += 0 if made._is_view() else made.numel()
        return made


def costs(time: int) -> tuple[int, int]:
    a, b, start = torch.rand(1, time, 2), torch.rand(1, time, 2), torch.rand(1, 2)
    a.requires_grad_()
    with Count() as count:
        torch.autograd.grad(linear_scan(a, b, start).sum(), a)
    return count.operations, count.elements


def test_depth_is_logarithmic_and_memory_linear() -> None:
    found = {time: costs(time) for time in (64, 128, 256, 512, 1024, 2048)}
    steps = [found[2 * t][0] - found[t][0] for t in (64, 128, 256, 512, 1024)]
    assert len(set(steps)) == 1
    assert steps[0] < 80
    for time, (_, elements) in found.items():
        assert elements < 100 * time, time


@pytest.mark.parametrize("time", [1, 2, 3, 5, 8, 13, 100, 1023, 1025])
def test_equals_the_loop(time: int) -> None:
    a, b = (torch.randn(2, time, 3, 2, dtype=torch.float64) for _ in range(2))
    h = start = torch.randn(2, 3, 2, dtype=torch.float64)
    want = []
    for t in range(time):
        h = a[:, t] * h + b[:, t]
        want.append(h)
    expected = torch.stack(want, 1)
    torch.testing.assert_close(linear_scan(a, b, start), expected, rtol=1e-9, atol=1e-9)


def test_a_user_written_affine_cell_runs_in_parallel() -> None:
    class Decay(es.Affine):
        def __init__(self, size: int):
            super().__init__()
            self.input_size = self.output_size = size
            self.rate = torch.nn.Parameter(torch.full((size,), 0.9))

        def coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.rate.expand_as(x), x

    cell, xs = Decay(3), torch.randn(2, 50, 3)
    assert refused(BACKENDS["parallel"], cell, xs, None, None) is None
    torch.testing.assert_close(cell(xs, backend="parallel")[0], cell(xs, backend="reference")[0])

    class Loud(Decay):
        def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            y, state = super().step(x, state)
            return 2 * y, state

    assert "a step of its own" in str(refused(BACKENDS["parallel"], Loud(3), xs, None, None))
    torch.testing.assert_close(Loud(3)(xs)[0], 2 * cell(xs)[0])


TRANSFORMS = {
    "grad": lambda run, xs: torch.func.grad(lambda xs: run(xs).square().sum())(xs),
    "vmap": lambda run, xs: torch.func.vmap(run)(torch.stack([xs, 2 * xs])),
    "jvp": lambda run, xs: torch.func.jvp(run, (xs,), (xs.cos(),))[1],
    "forward mode": lambda run, xs: forward_mode(run, xs),
}


def forward_mode(run: Callable[[Tensor], Tensor], xs: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(run(forward_ad.make_dual(xs, xs.cos()))).tangent


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("kind", [es.MinGRU, es.LSTM])
def test_under_transforms_another_backend_runs(kind: type[es.Cell], transform: str) -> None:
    cell, xs = kind(3, 4), torch.randn(2, 9, 3)

    def derived(backend: str) -> Tensor:
        return TRANSFORMS[transform](lambda xs: es.scan(cell, xs, backend=backend)[0], xs)

    torch.testing.assert_close(derived("auto"), derived("reference"), rtol=1e-4, atol=1e-5)


def test_under_transforms_the_parallel_scan_says_why_not() -> None:
    cell = es.MinGRU(3, 4)
    with pytest.raises(ValueError, match=r"'parallel' cannot run MinGRU: it is inside of a torch\.func transform"):
        torch.func.vmap(lambda xs: cell(xs, backend="parallel")[0])(torch.randn(2, 1, 9, 3))
