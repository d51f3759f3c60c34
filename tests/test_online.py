"""Learning forward in time: RTRL is exact, and SnAp-1 is its definition."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import CELLS
from torch import Tensor, nn
from torch.nn import functional as F

import everstep as es
from everstep.data.batches import TokenBatch
from everstep.learn import FitSettings, Loss, fit
from everstep.networks.cells_by_name import cell_names
from everstep.state import detach, leaves, map_state

F64 = torch.float64
TIME = 6


def build(name: str) -> es.Cell:
    torch.manual_seed(11)
    return CELLS[name]().double().eval()


def learnable(cell: es.Cell) -> bool:
    """It has a state to carry and parameters to learn."""
    state = leaves(cell.initial_state(1, torch.zeros(1, dtype=F64)))
    return bool(state) and any(p.requires_grad for p in cell.parameters())


NOTHING_TO_LEARN = {
    "Accumulator", "Identity", "Dropout", "Window", "FeedForward", "TimeDistributed", "Reservoir",
    "Parallel reservoirs",
}  # fmt: skip
LEARNABLE = [name for name in CELLS if name not in NOTHING_TO_LEARN]


def test_what_can_be_learned_online_is_known() -> None:
    assert {name for name in CELLS if not learnable(build(name))} == NOTHING_TO_LEARN


def sequence(cell: es.Cell, time: int = TIME, batch: int = 2) -> Tensor:
    torch.manual_seed(12)
    return torch.randn(batch, time, cell.input_size, dtype=F64)


def loss(ys: Tensor, final: Any) -> Tensor:
    """Of every output and of the final state."""
    total = (ys * torch.linspace(-1, 1, ys.numel(), dtype=F64).view_as(ys)).sum()
    for _, leaf in leaves(final):
        total = total + (leaf * torch.linspace(0.5, 1, leaf.numel(), dtype=F64).view_as(leaf)).sum()
    return total


def gradient(layer: es.Cell, xs: Tensor, **how: Any) -> Tensor:
    """Of all parameters, in one vector."""
    ys, final = layer(xs, **how)
    total = loss(ys, final.cell if isinstance(layer, es.Online) else final)
    grads = torch.autograd.grad(total, list(layer.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


def error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("name", LEARNABLE)
def test_rtrl_is_bptt(name: str) -> None:
    cell = build(name)
    xs = sequence(cell)
    assert error(gradient(es.Online(cell), xs), gradient(cell, xs, backend="reference")) <= 1e-8


def test_rtrl_is_tested_on_the_whole_catalogue() -> None:
    kinds = {type(build(name)) for name in LEARNABLE}
    catalogue = [getattr(es.cells, name) for name in cell_names()]
    cells = {kind for kind in catalogue if isinstance(kind, type) and issubclass(kind, es.Cell)}
    assert cells - kinds == {es.Accumulator}  # it has no parameters
    assert len([kind for kind in cells if not issubclass(kind, es.Affine)]) >= 50


@pytest.mark.parametrize("name", ["LSTM", "UserCell", "nested"])
def test_rtrl_with_ragged_rows_resets_and_a_carried_state(name: str) -> None:
    cell = build(name)
    xs = sequence(cell, batch=4)
    how = {"lengths": torch.tensor([TIME, 0, 3, 4]), "resets": torch.rand(4, TIME) < 0.3}
    online = es.Online(cell)
    assert error(gradient(online, xs, **how), gradient(cell, xs, **how)) <= 1e-8
    # piece by piece, each with a backward of its own and nothing kept of those before
    torch.manual_seed(0)
    weights = torch.randn(4, TIME, cell.output_size, dtype=F64)
    state = None
    for at in range(0, TIME, 2):
        part = slice(at, at + 2)
        rest = (how["lengths"] - at).clamp(0, 2)
        ys, state = online(xs[:, part], state, lengths=rest, resets=how["resets"][:, part])
        (ys * weights[:, part]).sum().backward()
        state = detach(state)
    found = [p.grad for p in cell.parameters()]
    want = torch.autograd.grad((cell(xs, **how)[0] * weights).sum(), list(cell.parameters()))
    assert all(error(a, b) <= 1e-8 for a, b in zip(found, want, strict=True))


def test_nothing_of_the_past_is_kept() -> None:
    online = es.Online(es.GRU(2, 3))

    def nodes(tensor: Tensor) -> int:
        seen, stack = set(), [tensor.grad_fn]
        while stack:
            node = stack.pop()
            if node is not None and node not in seen:
                seen.add(node)
                stack += [other for other, _ in node.next_functions]
        return len(seen)

    state, sizes = None, []
    for x in torch.randn(5, 1, 1, 2):
        ys, state = online(x, state)  # not even detached
        sizes.append(nodes(ys))
    assert len(set(sizes[1:])) == 1


def test_outputs_are_the_cells() -> None:
    cell = build("LSTM")
    xs = sequence(cell)
    for rule in ("rtrl", "snap1", "uoro"):
        online = es.Online(cell, rule)
        ys, state = online(xs)
        want, final = cell(xs, backend="reference")
        assert torch.equal(ys, want)
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(leaves(state.cell), leaves(final), strict=True))
        assert list(online.state_dict()) == [f"cell.{name}" for name in cell.state_dict()]


# -- SnAp-1


def by_definition(cell: es.Cell, xs: Tensor) -> Tensor:
    """Σ_t of (y_t)² with J_t = M ∘ (D_t J_{t-1} + I_t), M where I is not zero at a place in general position."""
    parameters = dict(cell.named_parameters())
    state = cell.initial_state(1, xs)
    sizes = [leaf.numel() for _, leaf in leaves(state)]

    def flat(nest: Any) -> Tensor:
        return torch.cat([leaf.flatten() for _, leaf in leaves(nest)])

    def step(s: Tensor, values: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, Tensor]:
        parts = iter(s.split(sizes))
        nest = map_state(lambda leaf: next(parts).view(leaf.shape), state)
        named = dict(zip(parameters, values, strict=True))
        with torch.nn.utils.stateless._reparametrize_module(cell, named):
            y, new = cell.step(x, nest)
        return flat(new), y

    values = tuple(p.detach() for p in parameters.values())

    def jacobians(s: Tensor, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """∂(s', y)/∂s and ∂(s', y)/∂θ."""
        of_s = torch.autograd.functional.jacobian(lambda s: step(s, values, x), s)
        of_p = torch.autograd.functional.jacobian(lambda *v: step(s, v, x), values)
        return [o.flatten(1) if o.dim() == 2 else o[0] for o in of_s], [
            torch.cat([part.reshape(rows, -1) for part in o], 1)
            for o, rows in zip(of_p, (len(s), cell.output_size), strict=True)
        ]

    torch.manual_seed(1)
    mask = sum(
        jacobians(torch.randn(sum(sizes), dtype=F64), torch.randn(1, cell.input_size, dtype=F64))[1][0].abs()
        for _ in range(8)
    )
    total, influence, s = torch.zeros(mask.shape[1], dtype=F64), torch.zeros_like(mask), flat(state)
    for x in xs.unbind(1):
        (by_s, y_by_s), (by_p, y_by_p) = jacobians(s, x)
        new, y = step(s, values, x)
        total += 2 * y[0] @ (y_by_p + y_by_s @ influence)
        influence = (by_s @ influence + by_p) * (mask > 0)
        s = new.detach()
    return total.detach()


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRUBefore", "LEM", "TimeSkip"])
def test_snap1_is_its_definition(name: str) -> None:
    cell = build(name)
    xs = sequence(cell, batch=1)
    found = {}
    for rule in ("snap1", "rtrl"):
        ys, _ = es.Online(cell, rule)(xs)
        grads = torch.autograd.grad(ys.square().sum(), list(cell.parameters()))
        found[rule] = torch.cat([g.flatten() for g in grads])
    assert error(found["snap1"], by_definition(cell, xs)) <= 1e-10
    if name != "GRUBefore":  # there a parameter touches every state within one step, so that nothing is left out
        assert error(found["snap1"], found["rtrl"]) > 1e-3


@pytest.mark.parametrize("name", ["IndRNN", "UnICORNN", "BRC", "MinGRU", "QRNN", "SRU", "RGLRU", "TRNN", "UserStart"])
def test_snap1_is_exact_where_units_do_not_meet(name: str) -> None:
    if name == "UserStart":
        cell: es.Cell = LearnedStart().double()
    else:
        cell = build(name)
    xs = sequence(cell)
    online = es.Online(cell, "snap1")
    states = sum(leaf.numel() for _, leaf in leaves(cell.initial_state(1, xs)))
    parameters = sum(p.numel() for p in cell.parameters())
    assert online.influence.numbers <= 2 * parameters < states * parameters
    assert error(gradient(online, xs), gradient(cell, xs)) <= 1e-8


class LearnedStart(es.Cell):
    """h_t = tanh(a ∘ h_{t-1} + x_t), from a learned h_0."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        torch.manual_seed(1)
        self.a, self.start = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))

    def initial_state(self, batch: int, like: Tensor) -> Tensor:
        return self.start.to(like.dtype).expand(batch, 3)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.a * state + x)
        return h, h


def test_snap1_carries_little() -> None:
    cell = es.LSTM(3, 20)
    parameters = sum(p.numel() for p in cell.parameters())
    assert es.Online(cell, "snap1").influence.numbers == 2 * parameters  # h and c of its unit
    assert es.Online(cell, "rtrl").influence.numbers == 40 * parameters
    assert es.Online(cell, "uoro").influence.numbers == 40 + parameters


# -- learning


class Steps:
    """One step a batch; the state goes on."""

    batch_size, carries_state = 3, True

    def __init__(self, tokens: Tensor):
        self.tokens = tokens

    def __len__(self) -> int:
        return self.tokens.shape[1] - 1

    def batch(self, epoch: int, index: int) -> TokenBatch:
        now, later = self.tokens[:, index : index + 1], self.tokens[:, index + 1 : index + 2]
        return TokenBatch(now, later, None, None, 0, 1)


class Predictor(nn.Module):
    """One-hot tokens, a vanilla network learned online, and a fixed read-out."""

    def __init__(self, symbols: int, hidden: int):
        super().__init__()
        torch.manual_seed(0)
        self.online = es.Online(es.RNN(symbols, hidden).double())
        self.register_buffer("out", torch.randn(symbols, hidden, dtype=F64))


def prediction(model: Predictor, batch: TokenBatch, state: Any) -> Iterator[Loss]:
    xs = F.one_hot(batch.inputs, len(model.out)).double()
    ys, state = model.online(xs, state)
    nats = F.cross_entropy((ys @ model.out.mT).mT, batch.targets, reduction="none").sum(1)
    yield Loss(nats, nats.detach(), state)


def test_fit_learns_online(tmp_path: Path) -> None:
    symbols, hidden, rate, steps = 4, 5, 0.3, 8
    tokens = torch.randint(symbols, (3, steps + 1), generator=torch.Generator().manual_seed(2))
    model = Predictor(symbols, hidden)
    start = {name: p.detach().clone() for name, p in model.online.cell.named_parameters()}
    settings = FitSettings(
        optimizer="sgd", learning_rate=rate, max_steps=steps, schedule="constant", clip_norm=None, precision="float32"
    )
    fit(model, prediction, Steps(tokens), settings, out=tmp_path, log=lambda line: None)

    # by hand: h = tanh(W x + b + U h' + c), ∂h/∂θ = diag(1 − h²) (U ∂h'/∂θ + what θ does directly)
    w, u, b, c = (start[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    h = torch.zeros(3, hidden, dtype=F64)
    influence = [torch.zeros(3, hidden, *p.shape, dtype=F64) for p in (w, u, b, c)]
    every = torch.eye(hidden, dtype=F64)
    for t in range(steps):
        x = F.one_hot(tokens[:, t], symbols).double()
        new = torch.tanh(x @ w.mT + b + h @ u.mT + c)
        slope = 1 - new.square()
        direct = [
            torch.einsum("ij,bk->bijk", every, x),
            torch.einsum("ij,bk->bijk", every, h),
            every.expand(3, -1, -1),
            every.expand(3, -1, -1),
        ]
        influence = [
            torch.einsum("bi,bi...->bi...", slope, torch.einsum("ij,bj...->bi...", u, j) + d)
            for j, d in zip(influence, direct, strict=True)
        ]
        wrong = torch.softmax(new @ model.out.mT, 1) - F.one_hot(tokens[:, t + 1], symbols)
        by_h = wrong @ model.out / 3  # three targets a step
        w, u, b, c = (
            p - rate * torch.einsum("bi,bi...->...", by_h, j) for p, j in zip((w, u, b, c), influence, strict=True)
        )
        h = new
    for name, want in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), (w, u, b, c), strict=True):
        assert error(model.online.cell.get_parameter(name).detach(), want) <= 1e-10
    assert error(start["weight_hh"], u) > 1e-2


# -- bad input


def test_a_state_too_large_is_refused_before_starting() -> None:
    cell = es.LSTM(64, 512)
    message = (
        r"rtrl of LSTM \(1,024 state numbers, 1,183,744 parameters\) carries 1,212,153,856 numbers for each of 1 rows "
        r"and needs 13.5 GiB .* limit is 2 GiB; take 'snap1' or 'uoro'"
    )
    with pytest.raises(ValueError, match=message):
        es.Online(cell)
    online = es.Online(es.GRU(4, 8), limit=1 << 20)
    with pytest.raises(ValueError, match=r"for each of 100 rows .* GiB .*a smaller batch, or raise limit"):
        online(torch.zeros(100, 1, 4))
    with pytest.raises(ValueError, match=r"touches \d+ or more of the 32 state numbers .*take 'uoro'"):
        es.Online(es.GRUBefore(32, 32), "snap1", limit=1 << 20)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="Bidirectional is no Cell: it sees the future"):
        es.Online(es.Bidirectional(es.LSTM(3, 4), es.LSTM(3, 4)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rule should be one of rtrl, snap1, uoro, but is 'bptt'"):
        es.Online(es.LSTM(3, 4), "bptt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Accumulator has no trainable parameters"):
        es.Online(es.Accumulator(3))
    with pytest.raises(ValueError, match="Identity has no state"):
        es.Online(es.Identity(3))
    with pytest.raises(ValueError, match="limit should be"):
        es.Online(es.LSTM(3, 4), limit=0)
    with pytest.raises(ValueError, match="initial state of LearnedStart is learned, which 'uoro' cannot"):
        es.Online(LearnedStart(), "uoro")
    with pytest.raises(ValueError, match="'fused' cannot run Online"):
        es.scan(es.Online(es.RNN(3, 4)), torch.zeros(1, 2, 3), backend="fused")


def test_dropout_inside_is_refused_in_training() -> None:
    for cell in (es.Stack(es.RNN(3, 4), es.Dropout(4, 0.5)), es.Zoneout(es.RNN(3, 4), 0.5)):
        online = es.Online(cell)
        with pytest.raises(RuntimeError, match="inside draws random numbers within a step"):
            online(torch.zeros(1, 2, 3))
        online.eval()(torch.zeros(1, 2, 3))


def test_the_gradient_cannot_be_differentiated_again() -> None:
    online = es.Online(es.RNN(2, 3))
    (grad, *_) = torch.autograd.grad(
        online(torch.randn(1, 3, 2))[0].sum(), list(online.parameters()), create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()
