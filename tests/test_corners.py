"""Derivatives of compiled operations where they have corners or none: PyTorch's own, zeros and None included."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import everstep as es
from everstep.native import toolchain

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")

F64 = torch.float64
PLACES = [0.0, -0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0, 6.0, 20.0, 20.5, 100.0]
PLACES += [-place for place in PLACES[2:]]
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{
        name: getattr(torch, name)
        for name in (
            *("neg", "sigmoid", "tanh", "relu", "exp", "log", "sqrt", "rsqrt", "abs", "sin", "cos", "erf", "log1p"),
            *(
                "expm1",
                "sign",
                "reciprocal",
                "floor",
                "atan",
                "ceil",
                "trunc",
                "round",
                "exp2",
                "log2",
                "log10",
                "cosh",
            ),
            *("tan", "frac", "nan_to_num", "square", "selu"),
        )
    },
    **{
        name: getattr(F, name)
        for name in (
            *("mish", "hardswish", "hardshrink", "softshrink", "silu", "softplus", "logsigmoid", "elu", "celu"),
            *("leaky_relu", "hardtanh", "gelu", "relu6", "softsign", "tanhshrink"),
        )
    },
    **{f"to the power {p}": lambda v, p=p: v**p for p in (0, 0.0, 1, 2, 3, 4, 0.5, -1, -2, 1.5, -0.5)},
    "a power": lambda v: 2.0**v,
    "a power of itself": lambda v: v.abs() ** v,
    "gelu by tanh": lambda v: F.gelu(v, approximate="tanh"),
    "threshold": lambda v: F.threshold(v, 0.5, -1.0),
    "clamp": lambda v: v.clamp(-1, 1),
    "clamp above": lambda v: v.clamp_max(0.5),
    "clamp below": lambda v: v.clamp_min(0.5),
    "remainder": lambda v: v % 2,
    "softplus 3": lambda v: F.softplus(v, 3.0, 6.0),
    "elu 2": lambda v: F.elu(v, -2.0),
    "hardtanh 3": lambda v: F.hardtanh(v, -3, 0.5),
    "maximum": lambda v: torch.maximum(v, torch.zeros_like(v)),
    "minimum": lambda v: torch.minimum(v, torch.ones_like(v)),
    "maximum of itself": lambda v: torch.maximum(v, v),
    "where": lambda v: torch.where(v > 0, v, 0.0),
    "masked": lambda v: v.masked_fill(v <= 0.5, 2.0),
    "of a comparison": lambda v: v * (v > 0),
    "sign times": lambda v: v.sign() * v,
    "floor times": lambda v: v.floor() * v,
    "straight through": lambda v: v + (v.round() - v).detach(),
    "hypot": lambda v: torch.hypot(v, torch.ones_like(v)),
    "logaddexp": lambda v: torch.logaddexp(v, torch.ones_like(v)),
    "divided by itself": lambda v: v / v,
    "lerp": lambda v: torch.lerp(v, v * 2, v),
}


class Side(es.Cell):
    """Every function of its own part of x."""

    def __init__(self) -> None:
        super().__init__(len(PLACES) * (len(FUNCTIONS) + 1))

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        parts = x.split(len(PLACES), 1)
        functions = [*FUNCTIONS.values(), F.hardsigmoid]
        y = torch.cat([function(part) for function, part in zip(functions, parts, strict=True)], 1)
        return y, state


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_derivatives_are_pytorch_s(dtype: torch.dtype) -> None:
    xs = torch.tensor(PLACES, dtype=dtype).repeat(1, 1, len(FUNCTIONS) + 1).requires_grad_()
    found = []
    for backend in ("fused", "reference"):
        ys, _ = es.scan(Side(), xs, backend=backend)
        (gradient,) = torch.autograd.grad(ys.sum(), xs)
        found.append((ys.detach().view(-1, len(PLACES)), gradient.view(-1, len(PLACES))))
    near = {"rtol": 1e-11, "atol": 1e-12} if dtype == F64 else {"rtol": 1e-5, "atol": 1e-6}
    for k, name in enumerate(FUNCTIONS):
        for what, ours, theirs in zip(("value", "derivative"), *found, strict=True):
            wrong = ~torch.isclose(ours[k], theirs[k], equal_nan=True, **near)
            if name == "to the power -0.5" and what == "value":
                wrong &= torch.tensor(PLACES) != 0  # where PyTorch's own depends on the sign of zero
            told = [(PLACES[i], ours[k][i].item(), theirs[k][i].item()) for i in wrong.nonzero()[:, 0]]
            assert not told, (name, what)
    # PyTorch has 1/6 of float32 in its derivative of hardsigmoid in float64 too
    torch.testing.assert_close(found[0][0][-1], found[1][0][-1], **near)
    torch.testing.assert_close(found[0][1][-1], found[1][1][-1], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "name", ["relu", "elu", "celu", "selu", "softplus", "hardswish", "maximum", "maximum of itself"]
)
def test_derivatives_at_what_is_no_number(name: str) -> None:
    xs = torch.full((1, 1, 1), math.nan, dtype=F64, requires_grad=True)

    class One(es.Cell):
        def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return FUNCTIONS[name](x), state

    ours, theirs = (torch.autograd.grad(es.scan(One(1), xs, backend=b)[0].sum(), xs) for b in ("fused", "reference"))
    torch.testing.assert_close(ours, theirs, equal_nan=True)


NOTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "sign": torch.sign,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "round": torch.round,
    "to the power 0": lambda v: v**0,
    "detached": lambda v: v.detach(),
    "compared": lambda v: (v > 0).to(v.dtype),
    "made like it": torch.zeros_like,
    "a sum of steps": lambda v: v.floor().sum(1, keepdim=True) + v.detach(),
    "a part": lambda v: torch.cat([v[:, :1].round(), v[:, 1:].detach()], 1),
}


class Nothing(es.Cell):
    """x, a parameter, a matrix and a leaf of the state reach the output by one function alone."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__(3)
        self.function = function
        self.scale, self.free = (nn.Parameter(torch.randn(3, dtype=F64)) for _ in range(2))
        self.linear = nn.Linear(3, 3, dtype=F64)
        self.recurrent = nn.Linear(3, 3, dtype=F64)

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_zeros(batch, 3), like.new_ones(batch, 3)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        inner = self.linear(x) + self.scale * x + self.recurrent(state[0])
        y = self.function(inner) + self.function(state[0]) + self.free
        return y, (y * 0.5, state[1])


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("ragged", [False, True])
def test_no_gradient_and_zeros_are_told_apart(name: str, ragged: bool) -> None:
    torch.manual_seed(0)
    cell = Nothing(NOTHING[name])
    xs = torch.randn(2, 4, 3, dtype=F64, requires_grad=True)
    start = (torch.randn(2, 3, dtype=F64, requires_grad=True), torch.randn(2, 3, dtype=F64, requires_grad=True))
    lengths = torch.tensor([4, 2]) if ragged else None
    tensors = [xs, *start, *cell.parameters()]
    found = []
    for backend in ("fused", "reference"):
        ys, _ = es.scan(cell, xs, start, lengths=lengths, backend=backend)
        found.append(torch.autograd.grad(ys.sum(), tensors, allow_unused=True))
    names = ["xs", "state 0", "state 1", *(name for name, _ in cell.named_parameters())]
    for what, ours, theirs in zip(names, *found, strict=True):
        # "state 1" passes through: whether it reaches the output is not asked; packed rows are made for any x
        if what != "state 1" and not (ragged and name == "made like it" and what == "xs"):
            assert (ours is None) == (theirs is None), what
        if theirs is not None:
            torch.testing.assert_close(ours, theirs)
