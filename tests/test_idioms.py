"""Operations and habits of steps as people write them: compiled, and equal to the loop that PyTorch runs."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.state import State, leaves
from tests.laws import refused

F64 = torch.float64
SIZE = 6
EYE = torch.eye(SIZE, dtype=F64)
PLACES = torch.arange(SIZE)


class Idiom(es.Cell):
    """h_t = f(W h_{t-1} + x_t)."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__(SIZE)
        self.function, self.linear = function, nn.Linear(SIZE, SIZE, dtype=F64)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = self.function(self.linear(state) + x)
        return h, h


def check(cell: es.Cell, rows: int = 3, steps: int = 5, state: State = None) -> None:
    """Compare the compiled loop with the reference over ragged rows with resets; outputs, states and gradients."""
    torch.manual_seed(0)
    xs = torch.randn(rows, steps, cell.input_size, dtype=F64, requires_grad=True)
    lengths = torch.tensor([steps, steps - 2, 0][:rows])
    resets = torch.rand(rows, steps) < 0.2
    assert refused(fused, cell, xs, None, None) is None
    wanted = [xs, *(p for p in cell.parameters() if p.requires_grad)]
    found = []
    for backend in ("reference", "fused"):
        ys, final = es.scan(cell, xs, state, lengths=lengths, resets=resets, backend=backend)
        ends = [ys, *(leaf for _, leaf in leaves(final))]
        torch.manual_seed(1)
        loss = sum((end * torch.randn_like(end)).sum() for end in ends)
        assert isinstance(loss, Tensor)
        found.append([*ends, *torch.autograd.grad(loss, wanted, allow_unused=True)])
    for ours, theirs in zip(found[1], found[0], strict=True):
        if ours is not None or theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def changed_after_use(v: Tensor) -> Tensor:
    made = torch.zeros(SIZE, dtype=F64)
    for _ in range(3):
        v = torch.tanh(v + made)
        made += 0.1
    return v


def set_in_place() -> Tensor:
    made = torch.ones(SIZE, dtype=F64)
    made[1] = 0.5
    return made


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "threshold": lambda v: F.threshold(v, 0.1, -0.2),
    "exp2": lambda v: torch.exp2(-v.abs()),
    "log2": lambda v: torch.log2(1 + v * v),
    "log10": lambda v: torch.log10(1 + v * v),
    "cosh": lambda v: torch.cosh(0.3 * v).reciprocal(),
    "tan": lambda v: torch.tan(0.2 * torch.tanh(v)),
    "frac": torch.frac,
    "hypot": lambda v: 0.3 * torch.hypot(v, v + 1),
    "logaddexp": lambda v: 0.1 * torch.logaddexp(v, -v),
    "logaddexp of equals": lambda v: 0.1 * torch.logaddexp(v, v),
    "addcdiv": lambda v: torch.addcdiv(torch.tanh(v), v, 1 + v * v, value=0.3),
    "masked_fill": lambda v: torch.tanh(v.masked_fill(v < 0, -0.1)),
    "nan_to_num": lambda v: torch.nan_to_num(torch.tanh(v), nan=3),
    "isnan": lambda v: torch.where(torch.isnan(v), 0.0, torch.tanh(v)),
    "glu": lambda v: F.glu(torch.cat([v, 2 * v], -1), -1),
    "std": lambda v: v / (v.std(-1, keepdim=True) + 1),
    "std of equals": lambda v: torch.tanh(v) + v.mean(-1, keepdim=True).expand_as(v).std(-1, keepdim=True),
    "logsumexp": lambda v: torch.tanh(v - v.logsumexp(-1, keepdim=True)),
    "norm": lambda v: v / (v.norm(dim=-1, keepdim=True) + 1),
    "norm of nothing": lambda v: torch.tanh(v) + (v * 0).norm(dim=-1, keepdim=True),
    "norm 1": lambda v: v / (1 + v.norm(p=1, dim=-1, keepdim=True)),
    "norm inf": lambda v: v / (1 + torch.linalg.vector_norm(v, math.inf, -1, keepdim=True)),
    "normalize": lambda v: F.normalize(v, dim=-1),
    "cosine_similarity": lambda v: v * F.cosine_similarity(v, v.roll(1, -1), dim=-1)[:, None],
    "rms_norm": lambda v: F.rms_norm(v, (SIZE,)),
    "group_norm": lambda v: F.group_norm(v, 2),
    "batch_norm, evaluating": lambda v: F.batch_norm(v, EYE[0], 1 + EYE[1], training=False),
    "prod": lambda v: torch.sigmoid(v).prod(-1, keepdim=True) * v,
    "cumsum": lambda v: torch.tanh(0.2 * v.cumsum(-1)),
    "cumax": lambda v: F.softmax(v, -1).cumsum(-1),
    "cumprod": lambda v: torch.sigmoid(v).cumprod(-1),
    "roll": lambda v: torch.tanh(torch.roll(v, -2, 1)),
    "flip": lambda v: torch.tanh(v.flip(-1)),
    "view of a flip": lambda v: torch.tanh(v.flip(-1).view(-1, 2, 3).transpose(1, 2).flatten(1)),
    "product of a flip": lambda v: torch.tanh(v.flip(-1) @ EYE + (v.flip(-1)[:, None] @ v[:, :, None]).squeeze(2)),
    "list of places": lambda v: torch.tanh(v[:, [2, 0, 1, 3, 5, 4]]),
    "arange of places": lambda v: torch.tanh(v[:, torch.arange(SIZE - 1, -1, -1)]),
    "index_select": lambda v: torch.tanh(v.index_select(1, torch.tensor([5, 3, 1, 0, 2, 4]))),
    "repeat": lambda v: torch.tanh(v.repeat(1, 3).view(-1, 3, SIZE).mean(1)),
    "tile": lambda v: torch.tanh(v.tile(1, 2)[:, 2 : SIZE + 2]),
    "pad": lambda v: torch.tanh(F.pad(v, (1, 0), value=0.5)[:, :-1]),
    "pad less": lambda v: torch.tanh(F.pad(v, (-2, 2))),
    "tril": lambda v: torch.tanh((v[:, :, None] * v[:, None]).tril().sum(-1)),
    "triu of a constant": lambda v: torch.tanh(v @ torch.ones(SIZE, SIZE, dtype=F64).triu(1)),
    "diag_embed": lambda v: torch.tanh(torch.diag_embed(v).sum(-1)),
    "any": lambda v: torch.tanh(v) * (v > 0.5).any(-1, keepdim=True),
    "all": lambda v: torch.tanh(v) * (v > -1).all(-1, keepdim=True),
    "matrices by a vector": lambda v: torch.tanh(v) + (v.view(-1, 3, 2) @ EYE[0, :2]).repeat(1, 2),
    "layer norm, folded": lambda v: F.layer_norm(v.reshape(-1, 2), (2,)).view(-1, SIZE),
    "softmax, folded": lambda v: F.softmax(v.reshape(-1, 3), -1).view(-1, SIZE),
    "sum, folded": lambda v: torch.tanh(v + v.reshape(-1, 3).sum(-1, keepdim=True).view(-1, 2).sum(-1, keepdim=True)),
    "cat, folded": lambda v: torch.cat([v.reshape(-1, 3), v.tanh().reshape(-1, 3)], 1).view(-1, 12)[:, 2:8].tanh(),
    "flip, folded": lambda v: torch.tanh(v.reshape(-1, 3).flip(1).view(-1, SIZE)),
    "constant changed after use": lambda v: changed_after_use(v),
    "copies that change nothing": lambda v: torch.tanh(v.roll(0, -1).mul_(2) + v),
    "sum of one changed": lambda v: torch.tanh(v[:, :1].clone().cumsum(-1).add_(1) + v),
    "power of 0": lambda v: torch.tanh(v + torch.relu(v) ** 0),
    "any of nothing": lambda v: torch.tanh(v + (v[:, :0] > 0).any(-1, keepdim=True)),
    "all of nothing": lambda v: torch.tanh(v + (v[:, :0] > 0).all(-1, keepdim=True)),
    "list of truth values": lambda v: (
        torch.tanh(v) * v[:, [True, False, False, True, False, False]].sum(-1, True).tanh()
    ),
    "power in place": lambda v: torch.tanh((v * 1).pow_(2)),
    "copied in place": lambda v: torch.tanh(torch.empty_like(v).copy_(v)),
    "cosine_similarity, broadcast": lambda v: v * F.cosine_similarity(v[:, :1], v, dim=1)[:, None],
    "cosine_similarity with a constant": lambda v: v * F.cosine_similarity(v, EYE[0] + 1, dim=1)[:, None],
    "constant repeated for rows": lambda v: torch.tanh(v + EYE[0].repeat(len(v), 1)),
    "matrices of rows, flipped": lambda v: torch.tanh((v[:, None] @ EYE.expand(len(v), -1, -1).flip(1))[:, 0]),
    "not of a triangle": lambda v: torch.tanh(v) * (~(v[:, :, None] > v[:, None]).tril()).any(-1),
    "to bool": lambda v: torch.tanh(v) * torch.relu(v).bool(),
    "bool + bool": lambda v: torch.tanh(v) * ((v > 0) + (v > -1)),
    "stack, mean": lambda v: torch.stack([v.tanh(), v.sigmoid()]).mean(0),
    "stack, sum": lambda v: torch.stack([v.tanh(), v.sigmoid()], 1).sum(1),
    "unsqueeze first": lambda v: torch.tanh(v.unsqueeze(0).squeeze(0)),
    "columns": lambda v: torch.column_stack([v[:, i].tanh() for i in range(SIZE)]),
    "view of one": lambda v: torch.tanh(v) * v[:, 0].reshape(-1, 1),
    "one_hot of a constant": lambda v: torch.tanh(v + F.one_hot(torch.tensor(2), SIZE)),
    "a constant set in place": lambda v: torch.tanh(v * set_in_place()),
    "einsum by a transposed": lambda v: torch.tanh(torch.einsum("bi,oi->bo", v, EYE * 0.5)),
    "empty, filled": lambda v: torch.tanh(v + torch.empty_like(v).fill_(0.3)),
    "changed in place": lambda v: v.mul(0.5).add_(0.1).tanh_(),
    "relu in place": lambda v: F.relu(v * 0.5, inplace=True),
    "pow": lambda v: torch.relu(v).clamp(max=1) ** (1 + torch.relu(v[:, :1])),
    "pow of nothing": lambda v: torch.tanh(v) + torch.relu(-v.abs()) ** torch.sigmoid(v),
}


CORNERS: dict[str, tuple[Callable[[Tensor], Tensor], list[float]]] = {
    "hardswish": (F.hardswish, [-3, 3, 2, -4, 4, 0]),
    "hardshrink": (F.hardshrink, [-0.5, 0.5, 2, 1, 0, -1]),
    "softshrink": (F.softshrink, [-0.5, 0.5, 2, 1, 0, -1]),
    "threshold": (lambda v: F.threshold(v, 0.1, -0.2), [0.1, math.nan, 0, math.inf, 1, -1]),
    "frac": (torch.frac, [1, -1, 0.5, 0, 2.25, -2.25]),
    "mish": (F.mish, [math.nan, 30, math.inf, 0, 1, -1]),
    "nan_to_num": (torch.nan_to_num, [math.nan, math.inf, -math.inf, 0, 1, -1]),
    "isnan": (lambda v: torch.where(torch.isnan(v), 1.0, v), [math.nan, 0, 1, 2, 3, 4]),
    "norm": (lambda v: v.norm(dim=-1, keepdim=True).expand_as(v), [0.0] * 6),
    "norm 1": (lambda v: v.norm(p=1, dim=-1, keepdim=True).expand_as(v), [0, 1, -1, 0, 2, 3]),
    "norm inf": (lambda v: torch.linalg.vector_norm(v, math.inf, -1, True).expand_as(v), [1, -1, 0, 1, 0.5, 0]),
    "std": (lambda v: v.std(-1, keepdim=True).expand_as(v), [2.0] * 6),
    "prod": (lambda v: v.prod(-1, keepdim=True).expand_as(v), [0, 0, 2, 1, 3, 1]),
    "cumprod": (lambda v: v.cumprod(-1), [2, 0, 3, 0, 1, 1]),
    "logaddexp": (lambda v: torch.logaddexp(v, v.flip(-1)), [1, 2, 3, 3, 2, 1]),
    "pow": (lambda v: torch.pow(v.abs(), v.flip(-1).abs()), [0, 2, 1, 3, 2, 0]),
    "cosine_similarity": (lambda v: F.cosine_similarity(v, v.flip(-1), dim=-1)[:, None].expand_as(v), [0.0] * 6),
}


class Corners(es.Cell):
    """Every function of `CORNERS` of its own part of x."""

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(CORNERS.values(), (x + 0 * state).split(SIZE, 1), strict=True)
        return torch.cat([function(part) for (function, _), part in parts], 1), state


def test_at_corners_values_and_derivatives_are_those_of_pytorch() -> None:
    found = []
    for backend in ("reference", "fused"):
        numbers = [number for _, numbers in CORNERS.values() for number in numbers]
        xs = torch.tensor(numbers, dtype=F64).expand(2, 3, -1).clone().requires_grad_()
        ys = es.scan(Corners(len(numbers)), xs, backend=backend)[0]
        found.append((ys.split(SIZE, 2), torch.autograd.grad(ys.sum(), xs)[0].split(SIZE, 2)))
    for k, name in enumerate(CORNERS):
        for ours, theirs in zip(*found, strict=True):
            near = {"rtol": 1e-12, "atol": 1e-12, "equal_nan": True, "msg": lambda text, name=name: f"{name}: {text}"}
            torch.testing.assert_close(ours[k], theirs[k], **near)


class Idioms(es.Cell):
    """Of each function a recurrence of its own: h_t = f(a ∘ h_{t-1} + x_t), and of the first with a product."""

    def __init__(self, names: tuple[str, ...]):
        super().__init__(SIZE * len(names))
        self.names = names
        self.linear = nn.Linear(SIZE, SIZE, dtype=F64)
        self.scale = nn.Parameter(torch.rand(len(names), SIZE, dtype=F64))

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        return tuple(like.new_zeros(batch, SIZE) for _ in self.names)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        first, *rest = state
        past = [self.linear(first), *(a * h for a, h in zip(self.scale[1:], rest, strict=True))]
        parts = zip(self.names, past, x.split(SIZE, 1), strict=True)
        ends = tuple(OPERATIONS[name](h + part) for name, h, part in parts)
        return torch.cat(ends, 1), ends


@pytest.mark.sanitize
@pytest.mark.parametrize("names", [tuple(OPERATIONS)[k : k + 8] for k in range(0, len(OPERATIONS), 8)], ids=", ".join)
def test_operations(names: tuple[str, ...]) -> None:
    check(Idioms(names))  # features 6 k to 6 k + 5, and leaf k of the state, are of function k


class Slots(es.Cell):
    """Attention of four slots of memory among themselves."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.query, self.key, self.value = (nn.Linear(SIZE, SIZE, dtype=F64) for _ in range(3))

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        return like.new_ones(batch, 4, SIZE) * 0.1

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.cat([x[:, None], state[:, 1:]], 1).roll(1, 1)
        heads = [part(state).view(-1, 4, 2, SIZE // 2).transpose(1, 2) for part in (self.query, self.key, self.value)]
        read = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(-1, 4, SIZE)
        return read.mean(1), state + read


class Modules(es.Cell):
    """PyTorch's own one-step modules in a step."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.rnn, self.gru = nn.RNNCell(SIZE, SIZE, dtype=F64), nn.GRUCell(SIZE, SIZE, dtype=F64)
        self.lstm, self.norm = nn.LSTMCell(SIZE, SIZE, dtype=F64), nn.RMSNorm(SIZE, dtype=F64)
        self.pair = nn.Bilinear(SIZE, SIZE, SIZE, dtype=F64)

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        return tuple(like.new_zeros(batch, SIZE) for _ in range(4))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        first = self.rnn(x, state[0])
        second = self.gru(first, state[1])
        h, c = self.lstm(second, state[2:])
        return self.norm(self.pair(h, second)), (first, second, h, c)


class Kept(es.Cell):
    """A weight that others have too, in a list, and options that are no parameters."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.tied = [nn.Linear(SIZE, SIZE, dtype=F64)]
        self.tensors = [torch.randn(SIZE, dtype=F64, requires_grad=True)]

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.tied[0](state) * self.tensors[0] + x)
        return h, h


@pytest.mark.sanitize
@pytest.mark.parametrize("cell", [Slots, Modules])
def test_modules(cell: Callable[[], es.Cell]) -> None:
    check(cell())


def parametrized(name: str) -> es.Cell:
    cell = Idiom(torch.tanh)
    linear: Any = cell.linear
    if name == "weight_norm":
        parametrizations.weight_norm(linear)
    elif name == "orthogonal":
        parametrizations.orthogonal(linear)
    elif name == "spectral_norm":
        parametrizations.spectral_norm(linear)
    else:
        prune.l1_unstructured(linear, "weight", 0.5)
    return cell.eval()


@pytest.mark.parametrize("name", ["weight_norm", "orthogonal", "spectral_norm", "pruned"])
def test_weights_made_of_parameters(name: str) -> None:
    check(parametrized(name))


@pytest.mark.parametrize("name", ["solve", "matrix_exp", "sorted", "places"])
def test_what_depends_on_parameters_alone_may_be_anything(name: str) -> None:
    weight = nn.Parameter(torch.randn(SIZE, SIZE, dtype=F64))

    def skew() -> Tensor:
        return weight - weight.t()

    made: Callable[[], Tensor] = {
        "solve": lambda: torch.linalg.solve(EYE + skew(), EYE - skew()),
        "matrix_exp": lambda: torch.matrix_exp(skew()),
        "sorted": lambda: weight.sort(-1).values,
        "places": lambda: weight[[3, 1, 0, 2, 5, 4]],
    }[name]
    cell = Idiom(lambda v: torch.tanh(v @ made()))
    cell.weight = weight
    check(cell)


def test_a_part_of_a_parameter_that_lies_within_another() -> None:
    weights = nn.Parameter(torch.randn(3, 2, 3, 3, dtype=F64))
    cell = Idiom(lambda v: torch.tanh(torch.einsum("bhi,hij->bhj", v.view(-1, 2, 3), weights.unbind()[1]).flatten(1)))
    cell.weights = weights
    check(cell)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x.flip(0),
        lambda x: torch.cat([x, x * 2])[::2],
        lambda x: x[torch.arange(len(x) - 1, -1, -1)],
        lambda x: x.t().reshape(-1, SIZE),
        lambda x: F.layer_norm(x, tuple(x.shape)),
        lambda x: F.layer_norm(x.t(), (len(x),)).t(),
        lambda x: x.tril(),
        lambda x: torch.stack([x, x * 2]).view(-1, 2, SIZE)[:, 0],
    ],
)
def test_rows_are_not_mixed_before_a_product(mixed: Callable[[Tensor], Tensor]) -> None:
    one = nn.Linear(SIZE, SIZE, dtype=F64)

    class Mixing(Idiom):
        def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return super().step(one(mixed(x)), state)

    cell, xs = Mixing(torch.tanh), torch.randn(3, 4, SIZE, dtype=F64)
    assert refused(fused, cell, xs, None, None) is not None
    assert torch.equal(cell(xs)[0], es.scan(cell, xs, backend="reference")[0])


@pytest.mark.sanitize
def test_attention_to_nothing_is_nothing() -> None:
    class Looking(Idiom):
        def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            places = torch.stack([state, state.sin()], 1)[:, None]
            seen = (x[:, :2] > 0.3)[:, None, None]
            read = F.scaled_dot_product_attention(x[:, None, None], places, places, attn_mask=seen)
            return super().step(x + read[:, 0, 0], state)

    check(Looking(torch.tanh))


@pytest.mark.sanitize
def test_modules_with_slots() -> None:
    class Slotted(Idiom):
        __slots__ = ("scale",)

        def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return super().step(x * self.scale, state)

    cell = Slotted(torch.tanh)
    cell.scale = 0.5
    check(cell)


def test_a_chunk_of_a_projection_goes_into_another() -> None:
    one, two = nn.Linear(SIZE, 2 * SIZE, dtype=F64), nn.Linear(SIZE, SIZE, dtype=F64)

    class Chunked(Idiom):
        def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            a, b = one(x).chunk(2, -1)
            h = torch.tanh(self.linear(state) + two(a) * b)
            return h, h

    cell = Chunked(torch.tanh)
    cell.one, cell.two = one, two
    check(cell)


def test_tensors_in_lists_are_the_very_same() -> None:
    cell = Kept()
    xs = torch.randn(2, 3, SIZE, dtype=F64)
    weights = [cell.tied[0].weight, *cell.tensors]
    for _ in range(2):
        found = []
        for backend in ("reference", "fused"):
            ys = es.scan(cell, xs, backend=backend)[0]
            found.append((ys, *torch.autograd.grad(ys.sum(), weights)))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)
        with torch.no_grad():
            for weight in weights:
                weight.mul_(0.5)


@pytest.mark.sanitize
def test_what_a_step_makes_out_of_nothing_can_be_kept() -> None:
    @lru_cache
    def mask() -> Tensor:
        return torch.ones(SIZE, SIZE, dtype=F64).tril()

    cell = Idiom(lambda v: torch.tanh(v @ mask()))
    check(cell)
    assert type(mask()) is Tensor
    assert mask().sum() == SIZE * (SIZE + 1) / 2


REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "the batch as a number": (lambda v: v / v.shape[0], "another number of rows"),
    "the batch as a power": (lambda v: v * v.size(0) ** -0.5, "another number of rows"),
    "the batch in a constant": (lambda v: v * torch.tensor(1.0 / len(v)), "another number of rows"),
    "rounding to bfloat16": (lambda v: v.bfloat16().to(v.dtype), "computes torch.bfloat16; .* holds torch.float64"),
    "whole numbers": (lambda v: (v.long() * 0.1).to(v.dtype), "computes torch.int64"),
    "max": (lambda v: v.max(-1, keepdim=True).values + v, "use torch.amax"),
    "a norm of order 3": (lambda v: v.norm(p=3, dim=-1, keepdim=True) + v, "of order 3"),
    "a roll over all": (lambda v: torch.roll(v, 1), "across the batch"),
    "statistics of the batch": (lambda v: F.batch_norm(v, None, None, training=True), "rows against one another"),
    "norm over rows": (lambda v: F.layer_norm(v.t(), (len(v),)).t(), "rows of the batch against one another"),
    "product of rows": (lambda v: v * (v.t() @ v[:, 0]), "rows of the batch against one another"),
    "flip of rows": (lambda v: v.flip(0), "rows of the batch against one another by flip"),
    "flip of folded rows": (lambda v: v.reshape(-1, 3).flip(0).view(-1, SIZE), "against one another by flip"),
    "cat of rows": (lambda v: torch.cat([v, v])[: len(v)], "against one another by cat"),
    "sum over folded rows": (lambda v: v + v.reshape(-1, 3).sum(0).repeat(2), "against one another by sum"),
    "places that may change": (lambda v: v[:, PLACES], "index at places that may change; write them in the step"),
    "dropout": (lambda v: F.dropout(v, 0.5), "random numbers by bernoulli_; a mask"),
    "a wider output": (lambda v: torch.cat([v, v], -1), r"from \(batch, 6\) .* into \(batch, 12\)"),
    "an index beyond": (lambda v: v[:, [SIZE]] + v, "index 6 is out of bounds for dimension 1 with size 6"),
    "truth values summed along": (lambda v: v * (v > 0).cumsum(-1), "cumsum of torch.bool"),
    "detach in place": (lambda v: (v * 1).detach_(), "in place by detach_; use detach"),
    "a leaf": (lambda v: v * v.is_leaf, "whether a tensor is a leaf"),
    "rows counted": (lambda v: v * torch.ones(len(v), dtype=F64).sum(), "rows of the batch against one another by sum"),
    "variance of all": (lambda v: v / torch.var(v, correction=0), "against one another by var"),
    "a view changed in place": (lambda v: ((w := v * 1)[:, :3].mul_(2), w)[1], "in place by mul_"),
    "changed in place under a view": (lambda v: ((part := (w := v * 1)[:, :1]), w.add_(1), w * part)[2], "by add_"),
    "a part set": (lambda v: ((w := v * 1)[:, :1].copy_(v[:, 1:2]), w)[1], "in place by copy_"),
    "a hook": (lambda v: (v.register_hook(lambda g: g) if v.requires_grad else None, v)[1], "a hook on a gradient"),
    "true and false": (lambda v: v > 0, "into .* torch.bool"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_and_where(name: str) -> None:
    function, told = REFUSED[name]
    reason = refused(fused, Idiom(function), torch.randn(2, 3, SIZE, dtype=F64), None, None)
    assert isinstance(reason, fused.StepRefusal)
    with pytest.raises(ValueError, match=told):
        raise ValueError(reason)
    assert f"({__file__}:" in reason


def test_a_function_with_a_derivative_of_its_own_is_refused() -> None:
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, v: Tensor) -> Tensor:
            return v * 1.0

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad / 2

    for function in (lambda v: cast(Tensor, Half.apply(v)), lambda v: v @ cast(Tensor, Half.apply(EYE.clone()))):
        reason = refused(fused, Idiom(function), torch.randn(2, 3, SIZE, dtype=F64), None, None)
        assert "gradients switched off (no_grad, or an autograd.Function)" in (reason or "")


def test_a_refusal_that_the_step_catches_is_one() -> None:
    def guarded(v: Tensor) -> Tensor:
        try:
            return v.sort(-1).values
        except Exception:
            return v

    def hooked(v: Tensor) -> Tensor:
        with contextlib.suppress(Exception):
            v.register_hook(lambda grad: grad)
        return v

    for function, told in ((guarded, "uses sort"), (hooked, "hook on a gradient")):
        reason = refused(fused, Idiom(function), torch.randn(2, 3, SIZE, dtype=F64), None, None)
        assert told in (reason or "")


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_random_numbers_of_others_are_refused(draw: Callable[[], float]) -> None:
    cell = Idiom(lambda v: v * (draw() > 2))
    reason = refused(fused, cell, torch.randn(2, 3, SIZE, dtype=F64), None, None)
    assert "draws random numbers; a mask belongs to the sequence" in (reason or "")


def test_a_step_that_counts_its_calls_is_refused() -> None:
    class Counting(Idiom):
        calls = 0

        def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            self.calls += 1
            return super().step(x * self.calls, state)

    cell = Counting(torch.tanh)
    reason = refused(fused, cell, torch.randn(2, 3, SIZE, dtype=F64), None, None)
    assert "writes 'calls' on its module; what it keeps belongs to the state" in (reason or "")
    assert cell.calls == 0


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_step_without_a_state_is_an_error(backend: str) -> None:
    class Output(Idiom):
        def step(self, x: Tensor, state: Tensor) -> Tensor:  # type: ignore[override]
            return x

    with pytest.raises(TypeError, match=r"Output\.step should give an output and the new state, but gives one tensor"):
        es.scan(Output(torch.tanh), torch.randn(2, 3, SIZE, dtype=F64), backend=backend)


def test_a_hook_on_a_module_s_gradients_is_refused() -> None:
    cell = Idiom(torch.tanh)
    cell.linear.register_full_backward_hook(lambda module, grad_in, grad_out: None)
    assert "hook on gradients" in (refused(fused, cell, torch.randn(2, 3, SIZE, dtype=F64), None, None) or "")


def test_a_buffer_written_by_the_step_is_refused() -> None:
    class Counting(Idiom):
        def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            self.count = self.count + 1
            return super().step(x, state)

    cell = Counting(torch.tanh)
    cell.register_buffer("count", torch.zeros((), dtype=F64))
    reason = refused(fused, cell, torch.randn(2, 3, SIZE, dtype=F64), None, None)
    assert "writes 'count' on its module; what it keeps belongs to the state" in (reason or "")


class Carrying(Idiom):
    """A leaf of the state of another dtype."""

    def __init__(self, dtype: torch.dtype):
        super().__init__(torch.tanh)
        self.dtype = dtype

    def initial_state(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_zeros(batch, SIZE), torch.zeros(batch, 1, dtype=self.dtype)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, other = state
        y, h = super().step(x, torch.where(other > 0, h, h * 0.5))
        return y, (h, (other + x[:, :1]).to(self.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_a_state_of_another_dtype_is_refused_and_runs_all_the_same(dtype: torch.dtype) -> None:
    cell, xs = Carrying(dtype), torch.randn(4, 6, SIZE, dtype=F64)
    assert f"its step carries {dtype}" in (refused(fused, cell, xs, None, None) or "")
    ys, (_, other) = es.scan(cell, xs)
    want, (_, wanted) = es.scan(cell, xs, backend="reference")
    assert torch.equal(ys, want)
    assert torch.equal(other, wanted)
    assert other.dtype == dtype


def test_a_state_that_is_no_nest_is_an_error() -> None:
    class Held(Idiom):
        def initial_state(self, batch: int, like: Tensor) -> Any:
            return {like.new_zeros(batch, SIZE)}, like.new_zeros(batch, SIZE)

    with pytest.raises(TypeError, match=r"Held\.initial_state: leaf '0' is a set; a state is a tensor, or a tuple"):
        es.scan(Held(torch.tanh), torch.randn(2, 3, SIZE, dtype=F64))


def test_explain_checks_its_arguments_as_scan_does() -> None:
    with pytest.raises(
        ValueError, match=r"explain\(Idiom\): xs should be \(batch, time, input_size=6\), but got shape"
    ):
        es.explain(Idiom(torch.tanh), torch.randn(2, SIZE))
    with pytest.raises(TypeError, match="explain: expected a Cell or a wiring, but got LSTM"):
        es.explain(nn.LSTM(3, 3), torch.randn(2, 3, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_an_output_of_another_size_is_an_error(backend: str) -> None:
    class Wide(Idiom):
        def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            return torch.cat([x, x], -1), state

    with pytest.raises(ValueError, match=r"Wide.step gives an output of shape \(2, 12\), .* asks for \(batch, 6\)"):
        es.scan(Wide(torch.tanh), torch.randn(2, 3, SIZE, dtype=F64), backend=backend)
