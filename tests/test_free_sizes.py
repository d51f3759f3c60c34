"""State leaves of free sizes, which steps only read: a memory of any length, in one compiled program."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import everstep as es
from everstep.backends.fused import backend as fused
from everstep.native import build, toolchain
from everstep.state import State, leaves
from tests.laws import refused

pytestmark = pytest.mark.skipif(toolchain.compiler() is None, reason="no C++ compiler on this machine")

F64 = torch.float64
X, E, H = 4, 6, 5


class Attending(es.Cell):
    """h_t = tanh(W [x_t; c_t] + U h_{t-1}), c_t what an attention reads of a memory.

    Memory is (batch, S, E), its keys are (batch, S, H); `mask` is (batch, S), of x's dtype or bool: 1 where there is
    something.
    """

    def __init__(self, attend: Callable[[Attending, Tensor, Tensor, Tensor, Tensor], Tensor], mask: Any = None):
        super().__init__(X, H)
        self.attend, self.mask = attend, mask
        self.query, self.score = nn.Linear(H, H), nn.Linear(H, 1, bias=False)
        self.vector = nn.Parameter(torch.randn(H))
        self.before, self.after = nn.Linear(X + E, H), nn.Linear(H, H)

    def initial_state(self, batch: int, like: Tensor) -> State:
        mask = like.new_zeros(batch, 0, dtype=self.mask or like.dtype)
        there = {"memory": like.new_zeros(batch, 0, E), "keys": like.new_zeros(batch, 0, H)}
        return like.new_zeros(batch, H), there, mask

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, there, mask = state
        context = self.attend(self, h, there["memory"], there["keys"], mask)
        h = torch.tanh(self.before(torch.cat([x, context], -1)) + self.after(h))
        return h, (h, there, mask)


def additive(c: Attending, h: Tensor, memory: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    scores = c.score(torch.tanh(keys + c.query(h)[:, None])).squeeze(-1) + (mask - 1) * 1e9
    return torch.bmm(scores.softmax(-1)[:, None], memory)[:, 0]


def by_a_vector(c: Attending, h: Tensor, memory: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    weights = (torch.tanh(keys + c.query(h)[:, None]) @ c.vector).softmax(1) * mask
    return (weights.unsqueeze(-1) * memory).sum(1)


def dot(c: Attending, h: Tensor, memory: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    scores = torch.bmm(keys, c.query(h)[:, :, None])[:, :, 0] / math.sqrt(H)
    return torch.einsum("bs,bse->be", F.softmax(scores.masked_fill(~mask, -1e9), -1), memory)


def turned(c: Attending, h: Tensor, memory: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    scores = (keys.transpose(1, 2) * c.query(h).unsqueeze(-1)).sum(1).masked_fill(mask == 0, -1e9)
    return memory.transpose(1, 2).matmul(scores.softmax(-1).unsqueeze(-1)).squeeze(-1)


def with_both_read_twice(c: Attending, h: Tensor, memory: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    gate = torch.sigmoid(memory[..., :1] + keys[..., :1]).squeeze(-1) * mask
    best = (memory * gate.unsqueeze(-1)).amax(1)
    return best + additive(c, h, memory * memory, keys, mask)


KINDS: dict[str, tuple[Callable[..., Tensor], torch.dtype | None]] = {
    "additive": (additive, None),
    "by a vector": (by_a_vector, None),
    "dot": (dot, torch.bool),
    "turned": (turned, None),
    "both read twice": (with_both_read_twice, None),
}


def made(name: str, dtype: torch.dtype = F64) -> Attending:
    torch.manual_seed(0)
    return Attending(*KINDS[name]).to(dtype)


def given(cell: Attending, rows: int, size: int, dtype: torch.dtype = F64) -> State:
    mask = torch.arange(size) < torch.randint(1, size + 1, (rows, 1)) if size else torch.zeros(rows, 0)
    h, memory, keys = (torch.randn(rows, *shape, dtype=dtype) for shape in ((H,), (size, E), (size, H)))
    there = {"memory": memory.requires_grad_(), "keys": keys.requires_grad_()}
    return h.requires_grad_(), there, mask.to(cell.mask or dtype)


def everything(cell: es.Cell, xs: Tensor, state: State, backend: str, **how: Any) -> list[Tensor]:
    ys, final = es.scan(cell, xs, state, backend=backend, **how)
    ends = [ys, *(leaf for _, leaf in leaves(final))]
    ends = [e for e in ends if e.is_floating_point()]
    loss = sum((e * torch.linspace(1, 2, e.numel(), dtype=e.dtype).view(e.shape)).sum() for e in ends)
    wanted = [t for t in (xs, *(leaf for _, leaf in leaves(state or ())), *cell.parameters()) if t.requires_grad]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [*ends, *(torch.zeros(()) if g is None else g for g in gradients)]


@pytest.mark.parametrize("name", KINDS)
def test_one_program_serves_any_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, sources, traced = made(name), set(), []
    load, trace = build.load, fused.trace
    monkeypatch.setattr(build, "load", lambda source, *rest: sources.add((rest[0], source)) or load(source, *rest))
    monkeypatch.setattr(fused, "trace", lambda *args, **kwargs: traced.append(1) or trace(*args, **kwargs))
    lengths = torch.tensor([5, 2, 0])
    for size in (7, 1, 2, 33, 64, 200, 3, 8, 15, 16, 17, 31):
        xs = torch.randn(3, 5, X, dtype=F64, requires_grad=True)
        for how in ({}, {"lengths": lengths}, {"lengths": lengths, "reverse": True}):
            state = given(cell, 3, size)
            found, wanted = (everything(cell, xs, state, b, **how) for b in ("fused", "reference"))
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert sum(name.startswith("Attending") for name, _ in sources) == 2  # forward and backward
    assert len(traced) == 3


@pytest.mark.parametrize("name", ["additive", "dot"])
@pytest.mark.parametrize("size", [0, 5])
def test_a_memory_may_be_empty(name: str, size: int) -> None:
    cell, xs = made(name), torch.randn(2, 3, X, dtype=F64, requires_grad=True)
    state = given(cell, 2, size) if size else None
    torch.testing.assert_close(*(everything(cell, xs, state, b) for b in ("fused", "reference")))


@pytest.mark.parametrize("name", ["additive", "dot"])
def test_a_reset_leaves_the_memory(name: str) -> None:
    cell, lengths = made(name), torch.tensor([6, 2, 0])
    resets = torch.tensor([[0, 0, 1, 0, 1, 0], [1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]).bool()
    for size in (4, 9):
        xs, state = torch.randn(3, 6, X, dtype=F64, requires_grad=True), given(cell, 3, size)
        how = {"lengths": lengths, "resets": resets}
        torch.testing.assert_close(*(everything(cell, xs, state, b, **how) for b in ("fused", "reference")))
        ys, _ = es.scan(cell, xs, state, resets=resets, backend="fused")
        rest = (torch.zeros_like(state[0]), *state[1:])
        torch.testing.assert_close(ys[0, 4:], es.scan(cell, xs[:, 4:], rest, backend="reference")[0][0])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_rows_and_threads(threads: int, rows: int) -> None:
    cell, before = made("additive", torch.float32), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in (3, 40):
            xs = torch.randn(rows, 9, X, requires_grad=True)
            state = given(cell, rows, size, torch.float32)
            found, wanted = (everything(cell, xs, state, b) for b in ("fused", "reference"))
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_without_gradients_and_of_the_memory_alone() -> None:
    cell, xs = made("additive"), torch.randn(2, 4, X, dtype=F64)
    state = given(cell, 2, 6)
    with torch.no_grad():
        torch.testing.assert_close(*(es.scan(cell, xs, state, backend=b) for b in ("fused", "reference")))
    with torch.inference_mode():
        torch.testing.assert_close(*(es.scan(cell, xs, state, backend=b) for b in ("fused", "reference")))
    for parameter in cell.parameters():
        parameter.requires_grad_(False)
    torch.testing.assert_close(*(everything(cell, xs, state, b) for b in ("fused", "reference")))


def test_backward_twice_and_a_second_derivative() -> None:
    cell, xs = made("by a vector"), torch.randn(2, 4, X, dtype=F64, requires_grad=True)
    state = given(cell, 2, 6)
    wanted = [xs, state[1]["memory"], state[1]["keys"], cell.vector]
    found = []
    for backend in ("fused", "reference"):
        ys, _ = es.scan(cell, xs, state, backend=backend)
        first = torch.autograd.grad(ys.square().sum(), wanted, retain_graph=True)
        again = torch.autograd.grad(ys.square().sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in again), wanted)
        found.append([*first, *again, *second])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def test_a_final_state_goes_on_and_shares_no_memory() -> None:
    cell, xs = made("additive"), torch.randn(2, 6, X, dtype=F64)
    state = given(cell, 2, 5)
    whole, _ = es.scan(cell, xs, state, backend="fused")
    first, carried = es.scan(cell, xs[:, :2], state, backend="fused")
    rest, _ = es.scan(cell, xs[:, 2:], carried, backend="fused")
    torch.testing.assert_close(torch.cat([first, rest], 1), whole)
    assert carried[1]["memory"].data_ptr() != state[1]["memory"].data_ptr()


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_a_dict_in_another_order(backend: str) -> None:
    cell, xs = made("additive"), torch.randn(2, 4, X, dtype=F64)
    h, there, mask = given(cell, 2, 5)
    found, _ = es.scan(cell, xs, (h, dict(reversed(there.items())), mask), backend=backend)
    torch.testing.assert_close(found, es.scan(cell, xs, (h, there, mask), backend=backend)[0], rtol=0, atol=0)
    with pytest.raises(TypeError, match="should be a dict with keys"):
        es.scan(cell, xs, (h, {"memory": there["memory"]}, mask), backend=backend)


def test_within_a_stack() -> None:
    cell = made("additive")
    layer = es.Stack(es.GRU(3, X).double(), cell)
    xs = torch.randn(2, 4, 3, dtype=F64, requires_grad=True)
    for size in (3, 9):
        state = (torch.zeros(2, X, dtype=F64), given(cell, 2, size))
        torch.testing.assert_close(*(everything(layer, xs, state, b) for b in ("auto", "reference")))


def test_what_is_kept_grows_with_the_places_not_with_their_features() -> None:
    cell, xs = made("additive"), torch.randn(2, 4, X, dtype=F64)
    es.scan(cell, xs, given(cell, 2, 3), backend="fused")
    family = fused._program(cell, xs)
    assert isinstance(family, fused.Family)
    few, many = (family.at(size).kept_numbers for size in (20, 40))
    assert 0 < (many - few) / 20 < H


@pytest.mark.parametrize(
    "attention",
    [
        lambda: es.LocalMonotonicAttention(es.GeneralAttention(H, E), 1),
        lambda: es.LocalPredictiveAttention(es.DotAttention(H), 1),
        lambda: es.MultiHeadAttention(H, E, 4, heads=2),
    ],
    ids=["local-m", "local-p", "multi-head"],
)
def test_attentions_compiled(attention: Callable[[], es.Attention]) -> None:
    torch.manual_seed(1)
    made = attention()
    cell = es.Attend(es.GRU(X + made.memory_size, H), made).double()
    resets = torch.zeros(3, 6, dtype=torch.bool)
    resets[0, 3] = True
    for size in (5, 1):
        memory = torch.randn(3, size, made.memory_size, dtype=F64, requires_grad=True)
        xs, found = torch.randn(3, 6, X, dtype=F64), []
        for backend in ("fused", "reference"):
            state = cell.start(memory, torch.tensor([size, 1, 0]))
            ys, _ = es.scan(cell, xs, state, resets=resets, lengths=torch.tensor([6, 5, 3]), backend=backend)
            found.append([ys, *torch.autograd.grad(ys.square().sum(), [memory, *cell.parameters()])])
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


def changes(c: Attending, h: Tensor, memory: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    memory.mul_(0.5)
    return additive(c, h, memory, keys, mask)


def averages(c: Attending, h: Tensor, memory: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    return memory.mean(1) * c.query(h)[:, :1]


def counts(c: Attending, h: Tensor, memory: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    total = memory[:, 0]
    for place in range(1, memory.shape[1]):
        total = torch.tanh(total + memory[:, place])
    return total


REFUSED: dict[str, tuple[Callable[..., Tensor], str]] = {
    "writing over it": (changes, "changes state leaf '1.memory', whose size is free"),
    "a number of it": (averages, "it computes with it"),
    "a loop over it": (counts, "it computes with it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_more_than_a_size_runs_as_the_loop(name: str, caplog: pytest.LogCaptureFixture) -> None:
    function, told = REFUSED[name]
    torch.manual_seed(0)
    cell = Attending(function).double()
    for size in (4, 6, 9):
        xs, state = torch.randn(2, 3, X, dtype=F64, requires_grad=True), given(cell, 2, size)
        with caplog.at_level(logging.WARNING, logger="everstep"):
            torch.testing.assert_close(*(everything(cell, xs, state, b) for b in ("auto", "reference")))
    assert told in (refused(fused, cell, xs, None, None) or "")


class Two(es.Cell):
    """Two memories of lengths of their own."""

    def initial_state(self, batch: int, like: Tensor) -> State:
        return like.new_zeros(batch, 3), like.new_zeros(batch, 0, 3), like.new_zeros(batch, 0, 3)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, first, second = state
        h = torch.tanh(h + x + first.sum(1) - second.amax(1))
        return h, (h, first, second)


@pytest.mark.parametrize("sizes", [(4, 4), (4, 7)])
def test_two_memories(sizes: tuple[int, int]) -> None:
    cell, xs = Two(3), torch.randn(2, 5, 3, dtype=F64, requires_grad=True)
    state = (torch.randn(2, 3, dtype=F64), *(torch.randn(2, n, 3, dtype=F64, requires_grad=True) for n in sizes))
    torch.testing.assert_close(*(everything(cell, xs, state, b) for b in ("fused", "reference")))


@pytest.mark.parametrize("backend", ["auto", "fused", "reference"])
def test_what_cannot_be_is_told(backend: str) -> None:
    cell, xs = made("additive"), torch.randn(2, 4, X, dtype=F64)
    h, there, mask = given(cell, 2, 3)
    with pytest.raises(ValueError, match=r"leaf '1.memory' should have shape \(2, 3, 6\), but has \(2, 3, 7\)"):
        es.scan(cell, xs, (h, there | {"memory": torch.zeros(2, 3, 7, dtype=F64)}, mask), backend=backend)


def test_a_stream_takes_a_memory_of_any_length() -> None:
    cell, xs = made("additive"), torch.randn(2, 4, X, dtype=F64)
    stream = es.Stream(cell, 2)
    assert "sizes that each state brings" in (stream.reason or "")
    for size in (5, 3):
        stream.state = given(cell, 2, size)
        assert stream(xs[:, 0]).shape == (2, H)
        assert stream.state[1]["memory"].shape == (2, size, E)
    state = given(cell, 2, 6)
    stream.state = state
    found = torch.stack([stream(x) for x in xs.unbind(1)], 1)
    torch.testing.assert_close(found, es.scan(cell, xs, state, backend="reference")[0])
    cell.double().query.weight = nn.Parameter(torch.zeros(H, H, dtype=F64))  # taken anew, the state with it
    stream(xs[:, 0])
    torch.testing.assert_close(stream.state[1]["memory"], state[1]["memory"].detach())


def test_beside_more_than_a_thousand_units() -> None:
    torch.manual_seed(0)
    cell = es.Attend(es.LSTM(4 + 300, 300), es.DotAttention(300)).to(F64)
    xs = torch.randn(2, 3, 4, dtype=F64, requires_grad=True)
    for size in (1, 7):
        memory = torch.randn(2, size, 300, dtype=F64, requires_grad=True)
        one, other = (everything(cell, xs, cell.start(memory), backend) for backend in ("fused", "reference"))
        for found, wanted in zip(one, other, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)
