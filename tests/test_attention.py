"""Attentions beside their formulas, what holds of every weight, and `Attend` beside its equation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import everstep as es
from everstep.state import leaves, map_state, select, where
from everstep.wirings.attention.attending import BatchedAttention

pytestmark = pytest.mark.usefixtures("uncompiled")  # the laws hold the compiled engine to the same steps

F64 = torch.float64
Q, M, A = 5, 4, 6

KINDS: dict[str, Callable[[], es.Attention]] = {
    "additive": lambda: es.AdditiveAttention(Q, M, A),
    "concat": lambda: es.ConcatAttention(Q, M, A),
    "dot": lambda: es.DotAttention(M),
    "dot scaled": lambda: es.DotAttention(M, scaled=True),
    "general": lambda: es.GeneralAttention(Q, M),
    "local-m": lambda: es.LocalMonotonicAttention(es.GeneralAttention(Q, M), 1),
    "local-p": lambda: es.LocalPredictiveAttention(es.AdditiveAttention(Q, M, A), 2),
    "location-aware": lambda: es.LocationAwareAttention(Q, M, A, filters=2, width=3),
    "coverage": lambda: es.CoverageAttention(Q, M, A),
    "coverage with fertility": lambda: es.CoverageAttention(Q, M, A, fertility=2),
    "multi-head": lambda: es.MultiHeadAttention(Q, M, A, heads=2),
}
SUMS_TO_LESS = {"local-p"}


def made(name: str) -> es.Attention:
    torch.manual_seed(3)
    return KINDS[name]().to(F64)


def weights_of(attention: es.Attention, memory: Tensor, queries: Tensor) -> list[Tensor]:
    """The weights (S,) of one query after another over one memory (S, M), by the formulas of the papers."""
    found: list[Tensor] = []
    carried = torch.zeros(len(memory), dtype=memory.dtype)
    for t, q in enumerate(queries):
        w = _weights(attention, memory, q, carried, t)
        found.append(w)
        if isinstance(attention, es.LocationAwareAttention):
            carried = w
        if isinstance(attention, es.CoverageAttention):
            fertility = 1.0 if attention.fertility is None else 2 * torch.sigmoid(memory @ attention.fertility)
            carried = carried + w / fertility
    return found


def _score(attention: es.Attention, m: Tensor, q: Tensor, extra: Tensor | float = 0.0) -> Tensor:
    match attention:
        case es.DotAttention():
            return q @ m / (math.sqrt(M) if attention.scaled else 1)
        case es.GeneralAttention():
            return q @ (attention.memory.weight.T.T @ m)
        case es.ConcatAttention():
            return attention.vector @ torch.tanh(attention.both.weight @ torch.cat([q, m]))
    both = attention.query.weight @ q + attention.query.bias + attention.memory.weight @ m
    return attention.vector @ torch.tanh(both + extra)


def _weights(attention: es.Attention, memory: Tensor, q: Tensor, carried: Tensor, t: int) -> Tensor:
    places = range(len(memory))
    match attention:
        case es.MultiHeadAttention():
            d, q = A // 2, attention.query.weight @ q
            keys = memory @ attention.memory.weight[:A].T
            heads = [(keys[:, h : h + d] @ q[h : h + d] / math.sqrt(d)).softmax(0) for h in (0, d)]
            return torch.stack(heads).mean(0)
        case es.LocalMonotonicAttention():
            centre = min(t, len(memory) - 1)
            inside = [s for s in places if abs(s - centre) <= 1]
            w = torch.stack([_score(attention.score, memory[s], q) for s in inside]).softmax(0)
            return torch.zeros(len(memory), dtype=F64).index_put((torch.tensor(inside),), w)
        case es.LocalPredictiveAttention():
            p = len(memory) * torch.sigmoid(attention.vector @ torch.tanh(attention.place.weight @ q))
            inside = [s for s in places if abs(s - p) <= 2]
            w = torch.stack([_score(attention.score, memory[s], q) for s in inside]).softmax(0)
            w = w * torch.stack([torch.exp(-((s - p) ** 2) / (2 * 1.0**2)) for s in inside])
            return torch.zeros(len(memory), dtype=F64).index_put((torch.tensor(inside),), w)
        case es.LocationAwareAttention():
            line, filters = torch.nn.functional.pad(carried, (1, 1)), attention.filters.weight[:, 0]
            extra = [attention.location.weight @ (filters @ line[s : s + 3]) for s in places]
            return torch.stack([_score(attention, memory[s], q, extra[s]) for s in places]).softmax(0)
        case es.CoverageAttention():
            return torch.stack(
                [_score(attention, memory[s], q, carried[s] * attention.coverage) for s in places]
            ).softmax(0)
    return torch.stack([_score(attention, memory[s], q) for s in places]).softmax(0)


def context_of(attention: es.Attention, memory: Tensor, q: Tensor, w: Tensor) -> Tensor:
    if not isinstance(attention, es.MultiHeadAttention):
        return w @ memory
    d, q = A // 2, attention.query.weight @ q
    keys, values = (memory @ attention.memory.weight.T).chunk(2, 1)
    parts = [slice(0, d), slice(d, A)]
    read = [(keys[:, h] @ q[h] / math.sqrt(d)).softmax(0) @ values[:, h] for h in parts]
    return attention.join.weight @ torch.cat(read)


@pytest.mark.parametrize("name", ["additive", "concat"])
def test_many_queries_without_a_gradient_are_scored_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention, queries = made(name), torch.randn(2, 7, Q, dtype=F64)
    memory = attention.prepare(torch.randn(2, 5, M, dtype=F64), torch.tensor([5, 2]))
    assert isinstance(attention, BatchedAttention)
    wanted = attention.attend_all(queries, memory)
    largest, tanh = [0], torch.tanh

    def watched(sums: Tensor) -> Tensor:
        largest[0] = max(largest[0], sums.numel())
        return tanh(sums)

    monkeypatch.setattr("everstep.wirings.attention.scored.SUMS", 3 * 2 * 5 * A)
    monkeypatch.setattr(torch, "tanh", watched)
    with torch.no_grad():
        found = attention.attend_all(queries, memory)
    assert largest == [3 * 2 * 5 * A]
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_its_formula(name: str) -> None:
    attention, lengths = made(name), torch.tensor([6, 1, 3, 0])
    memory, queries = torch.randn(4, 6, M, dtype=F64), torch.randn(4, 3, attention.query_size, dtype=F64)
    prepared = attention.prepare(memory, lengths)
    state, found = attention.start(prepared), []
    for query in queries.unbind(1):
        context, weights, state = attention.attend(query, prepared, state)
        found.append((context, weights))
    for row, n in enumerate(lengths.tolist()):
        wanted = weights_of(attention, memory[row, :n], queries[row]) if n else [torch.zeros(0, dtype=F64)] * 3
        for t, w in enumerate(wanted):
            torch.testing.assert_close(found[t][1][row, :n], w)
            assert not found[t][1][row, n:].any()
            c = context_of(attention, memory[row, :n], queries[row, t], w) if n else torch.zeros(M, dtype=F64)
            torch.testing.assert_close(found[t][0][row], c)


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(KINDS)),
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    more=st.integers(0, 2),
    seed=st.integers(0, 10**6),
)
def test_weights_are_shares_of_what_is_there(name: str, lengths: list[int], more: int, seed: int) -> None:
    attention = made(name)
    torch.manual_seed(seed)
    memory = 3 * torch.randn(len(lengths), max(lengths) + more, M, dtype=F64)
    for row, n in enumerate(lengths):
        memory[row, n:] = torch.nan
    prepared = attention.prepare(memory, torch.tensor(lengths))
    state = attention.start(prepared)
    for _ in range(3):
        query = 3 * torch.randn(len(lengths), attention.query_size, dtype=F64)
        context, weights, state = attention.attend(query, prepared, state)
        assert (weights >= 0).all()
        assert torch.isfinite(context).all()
        for row, n in enumerate(lengths):
            total = float(weights[row].detach().sum())
            assert not weights[row, n:].any()
            assert n or not context[row].any()
            assert total <= 1 + 1e-9 if name in SUMS_TO_LESS else abs(total - bool(n)) < 1e-9


@pytest.mark.parametrize("name", KINDS)
def test_derivatives_of_two_queries(name: str) -> None:
    attention, lengths = made(name), torch.tensor([3, 1, 0])
    memory = torch.randn(3, 3, M, dtype=F64, requires_grad=True)
    queries = torch.randn(3, 2, attention.query_size, dtype=F64, requires_grad=True)
    names = [n for n, _ in attention.named_parameters()]

    def run(memory: Tensor, queries: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        return torch.func.functional_call(
            _Twice(attention), dict(zip(names, parameters, strict=True)), (memory, queries)
        )

    class _Twice(torch.nn.Module):
        def __init__(self, attention: es.Attention):
            super().__init__()
            for name, value in attention._parameters.items():
                self.register_parameter(name, value)
            for name, child in attention.named_children():
                self.add_module(name, child)
            self.whole = [attention]

        def forward(self, memory: Tensor, queries: Tensor) -> tuple[Tensor, ...]:
            attention = self.whole[0]
            prepared = attention.prepare(memory, lengths)
            first, _, state = attention.attend(queries[:, 0], prepared, attention.start(prepared))
            second, weights, _ = attention.attend(queries[:, 1], prepared, state)
            return first, second, weights

    assert torch.autograd.gradcheck(run, (memory, queries, *attention.parameters()))


def decoders() -> dict[str, es.Attend]:
    torch.manual_seed(4)
    return {
        "Bahdanau": es.Attend(es.LSTM(3 + M, Q), es.AdditiveAttention(Q, M, A)),
        "Bahdanau feeding": es.Attend(
            es.GRU(3 + M + Q, Q), es.AdditiveAttention(Q, M, A), output="mixed", input_feeding=True
        ),
        "Luong": es.Attend(es.LSTM(3, Q), es.GeneralAttention(Q, M), "after"),
        "Luong feeding": es.Attend(es.LSTM(3 + Q, Q), es.GeneralAttention(Q, M), "after", input_feeding=True),
        "both": es.Attend(
            es.Stack(es.LSTM(3, 2), es.GRU(2, Q)), es.MultiHeadAttention(Q, M, A, heads=2), "after", output="both"
        ),
        "both feeding": es.Attend(
            es.GRU(3 + Q + M, Q), es.GeneralAttention(Q, M), "after", output="both", input_feeding=True
        ),
        "local-m": es.Attend(es.LSTM(3, Q), es.LocalMonotonicAttention(es.GeneralAttention(Q, M), 1), "after"),
        "coverage": es.Attend(es.LSTM(3, Q), es.CoverageAttention(Q, M, A), "after"),
        "location": es.Attend(es.GRU(3 + M, Q), es.LocationAwareAttention(Q, M, A, filters=2, width=3)),
    }


DECODERS = list(decoders())


def decoder(name: str) -> es.Attend:
    return decoders()[name].to(F64)


def begun(cell: es.Attend, lengths: list[int], size: int) -> es.AttendState:
    torch.manual_seed(5)
    state = map_state(torch.randn_like, cell.cell.initial_state(len(lengths), torch.zeros(1, dtype=F64)))
    return cell.start(torch.randn(len(lengths), size, M, dtype=F64), torch.tensor(lengths), state)


def test_bahdanau_written_out() -> None:
    cell = decoder("Bahdanau")
    state, xs = begun(cell, [4, 2], 4), torch.randn(2, 3, 3, dtype=F64)
    ys, final = cell(xs, state)
    values, keys, _ = state.memory
    attention, inner = cell.attention, es.to_torch(cell.cell).double()
    for row, n in enumerate((4, 2)):
        h, c = (leaf[None, row : row + 1] for leaf in state.cell)
        for t in range(3):
            scores = torch.tanh(attention.query(h[0]) + keys[row, :n]) @ attention.vector
            context = scores.softmax(0) @ values[row, :n]
            y, (h, c) = inner(torch.cat([xs[row, t], context])[None, None], (h, c))
            torch.testing.assert_close(ys[row, t], y[0, 0])
        torch.testing.assert_close(final.cell.c[row], c[0, 0])


def test_luong_written_out() -> None:
    cell = decoder("Luong feeding")
    state, xs = begun(cell, [4, 2], 4), torch.randn(2, 3, 3, dtype=F64)
    ys, final = cell(xs, state)
    for row, n in enumerate((4, 2)):
        inner, out = select(state.cell, torch.tensor([row])), torch.zeros(1, Q, dtype=F64)
        for t in range(3):
            y, inner = cell.cell.step(torch.cat([xs[row, t][None], out], -1), inner)
            w = (y @ cell.attention.memory.weight @ state.memory.values[row, :n].T).softmax(-1)
            out = torch.tanh(torch.cat([w @ state.memory.values[row, :n], y], -1) @ cell.mix.weight.T)
            torch.testing.assert_close(ys[row, t], out[0])
        torch.testing.assert_close(final.fed[row], out[0])


@pytest.mark.parametrize("name", DECODERS)
def test_a_run_is_its_steps_and_their_weights(name: str) -> None:
    cell, lengths = decoder(name), torch.tensor([5, 2, 0])
    state, xs = begun(cell, [4, 0, 1], 4), torch.randn(3, 5, 3, dtype=F64)
    ys, final = cell(xs, state, lengths=lengths)
    weights = cell.weights(xs, state, lengths)
    now = state
    for t, x in enumerate(xs.unbind(1)):
        y, new, w = cell.step_with_weights(x, now)
        live = t < lengths
        now = where(live, new, now)
        torch.testing.assert_close(ys[:, t], torch.where(live[:, None], y, 0))
        torch.testing.assert_close(weights[:, t], torch.where(live[:, None], w, 0))
    for (_, a), (_, b) in zip(leaves(final), leaves(now), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", DECODERS)
def test_a_padded_memory_equals_the_memory_alone(name: str) -> None:
    cell, xs = decoder(name), torch.randn(3, 5, 3, dtype=F64)
    memory = torch.randn(3, 6, M, dtype=F64)
    lengths = [6, 2, 0]
    for row, n in enumerate(lengths):
        memory[row, n:] = torch.nan
    memory.requires_grad_()
    ys, _ = cell(xs, cell.start(memory, torch.tensor(lengths)))
    (grad,) = torch.autograd.grad(ys.square().sum(), memory)
    for row, n in enumerate(lengths):
        alone = memory[row : row + 1, :n].detach().requires_grad_()
        y, _ = cell(xs[row : row + 1], cell.start(alone))
        (g,) = torch.autograd.grad(y.square().sum(), alone)
        torch.testing.assert_close(ys[row : row + 1], y)
        torch.testing.assert_close(grad[row : row + 1, :n], g)
        assert not grad[row, n:].any()


@pytest.mark.parametrize("name", DECODERS)
def test_a_reset_restores_all_but_the_memory(name: str) -> None:
    cell, xs = decoder(name), torch.randn(2, 6, 3, dtype=F64)
    memory = torch.randn(2, 4, M, dtype=F64)
    resets = torch.zeros(2, 6, dtype=torch.bool)
    resets[:, 3] = True
    for backend in ("auto", "reference"):
        ys, _ = es.scan(
            cell, xs, begun(cell, [4, 3], 4)._replace(memory=cell.start(memory).memory), resets=resets, backend=backend
        )
        again, _ = es.scan(cell, xs[:, 3:], cell.start(memory))
        torch.testing.assert_close(ys[:, 3:], again)


def test_a_beam_reorders_rows() -> None:
    cell = decoder("Luong feeding")
    state, rows, xs = begun(cell, [4, 2], 4), torch.tensor([1, 1, 0]), torch.randn(2, 2, 3, dtype=F64)
    _, after = cell.step(xs[:, 0], state)
    moved, _ = cell.step(xs[rows, 1], select(after, rows))
    torch.testing.assert_close(moved, cell.step(xs[:, 1], after)[0][rows])


@pytest.mark.parametrize("query", ["before", "after"])
def test_gnmt_written_out(query: str) -> None:
    torch.manual_seed(6)
    width = 3 + M if query == "before" else 3
    first = es.Attend(es.LSTM(width, Q), es.GeneralAttention(Q, M), query, output="both")
    second, third = es.Passing(es.LSTM(Q + M, Q), M, residual=True), es.LSTM(Q + M, 2)
    decoder = es.Stack(first, second, third).to(F64)
    xs, memory = torch.randn(2, 4, 3, dtype=F64), torch.randn(2, 5, M, dtype=F64)
    start = (first.start(memory), *decoder.initial_state(2, xs)[1:])
    ys, _ = decoder(xs, start)
    inner, middle, top = start[0].cell, start[1], start[2]
    for t, x in enumerate(xs.unbind(1)):
        if query == "after":
            h, inner = first.cell.step(x, inner)
        weights = ((inner.h if query == "before" else h) @ first.attention.memory.weight)[:, None] @ memory.mT
        context = (weights.softmax(-1) @ memory)[:, 0]
        if query == "before":
            h, inner = first.cell.step(torch.cat([x, context], -1), inner)
        below = torch.cat([h, context], -1)
        h, middle = second.cell.step(below, middle)
        h, top = third.step(torch.cat([h + below[:, :Q], context], -1), top)
        torch.testing.assert_close(ys[:, t], h)


def test_without_a_memory_the_context_is_zero() -> None:
    cell, xs = decoder("Bahdanau"), torch.randn(2, 5, 3, dtype=F64)
    ys, _ = cell(xs)
    alone, _ = cell.cell(torch.cat([xs, xs.new_zeros(2, 5, M)], -1))
    torch.testing.assert_close(ys, alone)


def test_explain_says_whether_anything_goes_back() -> None:
    text = str(es.explain(decoder("Luong"), torch.zeros(2, 5, 3, dtype=F64)))
    assert "GeneralAttention of all steps as one batched product" in text
    assert "LSTM" in text
    assert str(es.explain(decoder("Luong feeding"), torch.zeros(2, 5, 3, dtype=F64))).startswith("Attend(3, 5): ")


def lstm() -> es.LSTM:
    return es.LSTM(3 + M, Q)


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no cell": (lambda: es.Attend(torch.nn.Linear(2, 2), es.DotAttention(2)), TypeError, "Linear is no Cell"),
    "no attention": (
        lambda: es.Attend(lstm(), torch.nn.Linear(2, 2)),
        TypeError,
        "expected an attention, but got Linear",
    ),
    "query": (lambda: es.Attend(lstm(), es.GeneralAttention(Q, M), "during"), ValueError, "'before' or 'after'"),
    "output": (lambda: es.Attend(lstm(), es.GeneralAttention(Q, M), output="y"), ValueError, "'cell', 'both' or"),
    "unused": (
        lambda: es.Attend(lstm(), es.GeneralAttention(Q, M), "after", output="cell"),
        ValueError,
        "leaves out what is read",
    ),
    "narrow cell": (
        lambda: es.Attend(es.LSTM(3, Q), es.GeneralAttention(Q, M)),
        ValueError,
        "also takes 4 of the context, but LSTM has input_size 3",
    ),
    "query size": (
        lambda: es.Attend(lstm(), es.GeneralAttention(Q + 1, M)),
        ValueError,
        "first leaf of the state of LSTM, 5 features, but GeneralAttention has query_size 6",
    ),
    "no state": (
        lambda: es.Attend(es.Identity(3 + M), es.GeneralAttention(Q, M)),
        ValueError,
        "is missing",
    ),
    "memory": (
        lambda: decoder("Luong").start(torch.zeros(2, 3, M + 1)),
        ValueError,
        r"GeneralAttention.prepare: memory should be \(batch, places, memory_size=4\), but got shape \(2, 3, 5\)",
    ),
    "whole memory": (lambda: decoder("Luong").start(torch.zeros(2, 3, M).long()), TypeError, "floating point"),
    "lengths": (
        lambda: decoder("Luong").start(torch.zeros(2, 3, M), torch.tensor([1, 4])),
        ValueError,
        "row 1 has 4",
    ),
    "score": (
        lambda: es.LocalMonotonicAttention(es.MultiHeadAttention(Q, M, A, heads=2), 1),
        TypeError,
        "with a score",
    ),
    "reach": (lambda: es.LocalMonotonicAttention(es.DotAttention(M), 0), ValueError, "reach should be"),
    "width": (lambda: es.LocationAwareAttention(Q, M, width=4), ValueError, "width should be odd"),
    "fertility": (lambda: es.CoverageAttention(Q, M, fertility=0), ValueError, "fertility should be above 0"),
    "passing": (lambda: es.Passing(es.LSTM(3, 2), 2, residual=True), ValueError, "adds 2 and passes on 2 features"),
    "heads": (lambda: es.MultiHeadAttention(Q, M, 6, heads=4), ValueError, "multiple of heads 4"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_told(name: str) -> None:
    make, kind, told = WRONG[name]
    with pytest.raises(kind, match=told):
        make()
