"""Hooks of layers run once for a sequence and at every step, within every wiring as alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm

import everstep as es
from everstep import hooks
from everstep.state import leaves
from tests.laws import D, H

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]


def weight_norm(module: nn.Module, name: str) -> None:
    torch.nn.utils.weight_norm(module, name)


class Nested(es.Cell):
    """A user's own cell that steps another."""

    def __init__(self) -> None:
        super().__init__(D, H)
        self.inner = es.GRU(D, H)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, h = self.inner.step(x, state)
        return y * 2, h


WIRINGS: dict[str, Callable[[], es.Layer]] = {
    "alone": lambda: es.GRU(D, H),
    "Stack": lambda: es.Stack(es.LSTM(D, H), es.GRUBefore(H, 5)),
    "Stack of stacks": lambda: es.Stack(es.Stack(es.GRU(D, H)), es.Residual(es.GRU(H, H))),
    "EncoderStack": lambda: es.EncoderStack(es.Bidirectional(es.GRU(D, H), es.RNN(D, 2)), es.LSTM(H + 2, H)),
    "Residual": lambda: es.Residual(es.GRU(D, D)),
    "Bidirectional": lambda: es.Bidirectional(es.GRU(D, H), es.GRU(D, H), "sum"),
    "Parallel": lambda: es.Parallel(es.GRU(D, H), es.RNN(D, 2)),
    "SkipStack": lambda: es.SkipStack(es.LSTM(D, 2), es.GRUBefore(D + 2, H)),
    "DeepTransition": lambda: es.DeepTransition(es.GRU(D, H), es.GRU(1, H)),
    "TimeSkip": lambda: es.TimeSkip(es.LSTM(D, H), 2),
    "TimeSkip beside": lambda: es.TimeSkip(es.GRU(D + H, H), 2, beside=True),
    "Delay": lambda: es.Delay(es.GRU(D, H), 2),
    "Feedback": lambda: es.Feedback(es.GRU(D + H, H)),
    "Conditioned": lambda: es.Conditioned(es.LSTM(D, H), 2),
    "Conditioned feed": lambda: es.Conditioned(es.LSTM(D + 2, H), 2, "feed"),
    "Checkpointed": lambda: es.Checkpointed(es.GRU(D, H), 2),
    "TimeAveraged": lambda: es.TimeAveraged(es.GRU(D, H)),
    "Online": lambda: es.Online(es.RNN(D, H)),
    "VariationalDropout": lambda: es.VariationalDropout(es.LSTM(D, H), 0.5),
    "Zoneout": lambda: es.Zoneout(es.LSTM(D, H), 0.3),
    "RecurrentDropout": lambda: es.RecurrentDropout(es.ActivationLSTM(D, H), 0.25),
    "StateDropout": lambda: es.StateDropout(es.GRU(D, H), 0.5),
    "WeightDrop": lambda: es.WeightDrop(es.LSTM(D, H), 0.5, ["weight_ih"]),
    "EchoState": lambda: es.EchoState(es.GRU(D, H), 2),
    "Nested": Nested,
}


def cells_in(layer: es.Layer) -> list[Any]:
    """The cells with a matrix; what `WeightDrop` holds is no module of it."""
    inside = [m.cell if isinstance(m, es.WeightDrop) else m for m in layer.modules()]
    return [m for m in inside if isinstance(m, es.Cell) and "weight_hh" in dict(m.named_parameters(recurse=False))]


def cells_normed(layer: es.Layer) -> list[Any]:
    inside = [m.cell if isinstance(m, es.WeightDrop) else m for m in layer.modules()]
    return [m for m in inside if isinstance(m, es.Cell) and hasattr(m, "weight_hh_g")]


def tripled(name: str) -> tuple[es.Layer, es.Layer]:
    """A wiring whose recurrent matrices are three times what they were: by the norm's parameter, and by themselves."""
    torch.manual_seed(0)
    plain = WIRINGS[name]().double()
    normed = copy.deepcopy(plain)
    for cell in cells_in(normed):
        weight_norm(cell, "weight_hh")
    if isinstance(normed, es.Online):  # which lists what is to learn when it is made
        normed = es.Online(normed.cell)
    with torch.no_grad():
        for cell in cells_normed(normed):
            cell.weight_hh_g *= 3
        for cell in cells_in(plain):
            cell.weight_hh *= 3
    return normed, plain


def wide(layer: es.Layer) -> Tensor:
    return torch.randn(2, 5, layer.input_size, dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", WIRINGS)
def test_weights_that_a_hook_computes_are_never_stale(name: str, training: bool) -> None:
    normed, plain = tripled(name)
    xs = wide(normed)
    assert cells_in(plain)
    found = []
    for layer in (normed, plain):
        layer.train(training)
        torch.manual_seed(1)
        ys, final = layer(xs, lengths=torch.tensor([5, 3]))
        (ys.square().sum() + sum(leaf.sum() for _, leaf in leaves(final))).backward()
        found.append([ys, *(leaf for _, leaf in leaves(final))])
    if name == "Online":  # whose influence is by other parameters
        found = [ends[:2] for ends in found]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    for cell, other in zip(cells_normed(normed), cells_in(plain), strict=True):
        v = cell.weight_hh_v
        torch.testing.assert_close(
            cell.weight_hh_g.grad, (other.weight_hh.grad * v / v.norm(dim=1, keepdim=True)).sum(1, keepdim=True)
        )


@pytest.mark.parametrize("name", [name for name in WIRINGS if issubclass(type(WIRINGS[name]()), es.Cell)])
def test_a_step_and_a_stream_run_them_too(name: str) -> None:
    for streamed in (False, True):
        normed, plain = tripled(name)
        xs = wide(normed)
        found = []
        for cell in (normed.eval(), plain.eval()):
            assert isinstance(cell, es.Cell)
            if streamed:
                stream = es.Stream(cell, len(xs))
                found.append(torch.stack([stream(x) for x in xs.unbind(1)], 1))
                continue
            state, ys = cell.initial_state(len(xs), xs), []
            for x in xs.unbind(1):
                y, state = cell.step(x, state)
                ys.append(y)
            found.append(torch.stack(ys, 1))
        torch.testing.assert_close(*found)


def test_a_stream_sees_what_a_norm_learns() -> None:
    cell = es.GRU(D, H).eval()
    weight_norm(cell, "weight_hh")
    stream, xs = es.Stream(cell), torch.randn(1, 3, D)
    for _ in range(2):
        stream.reset()
        ys = torch.stack([stream(x) for x in xs.unbind(1)], 1)
        torch.testing.assert_close(ys, cell(xs)[0])
        with torch.no_grad():
            cell.get_parameter("weight_hh_g").mul_(2)
    assert stream.compiled


@pytest.mark.parametrize("how", ["last", "mean", "attention"])
def test_a_read_out_runs_them(how: Any) -> None:
    for name in ("Bidirectional", "EncoderStack", "Stack"):
        torch.manual_seed(0)
        layer = WIRINGS[name]()
        readout, seen = es.ReadOut(layer, how), []
        for module in (layer, *cells_in(layer)):
            module.register_forward_hook(lambda module, *_, seen=seen: seen.append(module.output_size))
        readout(torch.randn(2, 5, D))
        assert len(seen) == 1 + len(cells_in(layer))


def test_a_teacher_runs_them() -> None:
    normed, plain = tripled("Feedback")
    xs, targets = torch.randn(2, 5, D, dtype=torch.float64), torch.randn(2, 5, H, dtype=torch.float64)
    assert isinstance(normed, es.Feedback)
    assert isinstance(plain, es.Feedback)
    torch.testing.assert_close(normed.teacher_forced(xs, targets)[0], plain.teacher_forced(xs, targets)[0])


@pytest.mark.parametrize("hang", [lambda cell: prune.l1_unstructured(cell, "weight_hh", 0.5), spectral_norm])
def test_pruning_and_spectral_norm_hold_within_a_wiring(hang: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    alone, xs = es.GRU(D, H), torch.randn(2, 5, D)
    inside = copy.deepcopy(alone)
    found = []
    for cell, run in ((alone, alone), (inside, es.Stack(inside))):
        torch.manual_seed(1)
        hang(cell, "weight_hh") if hang is spectral_norm else hang(cell)
        with torch.no_grad():
            cell.get_parameter("weight_hh_orig").add_(torch.eye(H).repeat(3, 1))
        found.append(torch.stack([run(xs)[0] for _ in range(3)]))
    assert torch.equal(*found)


def test_a_norm_moves_once_for_a_sequence() -> None:
    cell, xs = es.GRU(D, H), torch.randn(2, 5, D)
    spectral_norm(cell, "weight_hh")
    other = copy.deepcopy(cell)
    cell(xs)
    es.scan(es.Stack(other), xs, backend="reference")
    assert torch.equal(cell.get_buffer("weight_hh_u"), other.get_buffer("weight_hh_u"))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("run", ["call", "scan", "stack", "reversed"])
def test_hooks_see_a_call_once_and_may_change_it(run: str, backend: str) -> None:
    torch.manual_seed(0)
    cell, xs, seen = es.LSTM(D, H), torch.randn(2, 5, D), []

    def before(module: nn.Module, given: tuple[Any, ...], how: dict[str, Any]) -> tuple[Any, ...]:
        seen.append((len(given), given[0].shape, sorted(how)))
        return (given[0] * 2, *given[1:]), how

    def after(module: nn.Module, given: tuple[Any, ...], found: Any) -> Any:
        seen.append((type(module), found[0].shape, found[1]._fields))
        return found[0] + 1, found[1]

    want = es.scan(cell, xs * 2, reverse=run == "reversed", backend=backend)[0] + 1
    cell.register_forward_pre_hook(before, with_kwargs=True)
    cell.register_forward_hook(after)
    if run == "call":
        ys, _ = cell(xs, backend=backend)
    elif run == "stack":
        ys = es.Stack(cell)(xs, backend=backend)[0]
    else:
        ys, _ = es.scan(cell, xs, reverse=run == "reversed", backend=backend)
    assert torch.equal(ys, want)
    assert len(seen) == 2
    assert seen[0][1] == (2, 5, D)
    assert seen[1] == (es.LSTM, (2, 5, H), ("h", "c"))
    seen.clear()
    y, _ = cell.step(xs[:, 0], cell.initial_state(2, xs))
    assert [shape for _, shape, _ in seen] == [(2, D), (2, H)]
    assert not seen.clear()
    if run != "reversed":
        torch.testing.assert_close(y, want[:, 0])


def test_hooks_on_gradients_see_those_of_the_sequence() -> None:
    cell, xs, seen = es.GRU(D, H), torch.randn(2, 5, D, requires_grad=True), []
    cell.register_full_backward_hook(lambda module, inner, outer: seen.append((inner[0].shape, outer[0].shape)))
    es.Stack(cell)(xs)[0].sum().backward()
    assert seen == [((2, 5, D), (2, 5, H))]


def test_a_hook_of_a_wiring_runs_as_that_of_a_cell() -> None:
    inner = es.Stack(es.GRU(D, H), es.GRU(H, H))
    inner.register_forward_hook(lambda module, given, found: (found[0] * 0, found[1]))
    xs = torch.randn(2, 5, D)
    assert not es.Stack(inner)(xs)[0].any()
    assert not es.scan(inner, xs)[0].any()
    assert not inner.step(xs[:, 0], inner.initial_state(2, xs))[0].any()


class Forward(es.GRU):
    """A cell with a `forward` of its own that scans itself."""

    def forward(self, xs: Tensor, state: Any = None, **how: Any) -> tuple[Tensor, Any]:
        ys, state = es.scan(self, xs, state, **how)
        return ys * 2, state


class Stepwise(es.Cell):
    """A cell whose `forward` is its step."""

    def __init__(self) -> None:
        super().__init__(D, H)
        self.cell = nn.GRUCell(D, H)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        h = self.cell(x, h)
        return h, h

    step = forward


def test_a_forward_of_one_s_own_does_not_run_them_twice() -> None:
    calls: list[int] = []
    cell, xs = Forward(D, H), torch.randn(2, 5, D)
    want = cell(xs)[0]
    cell.register_forward_hook(lambda module, given, found: (calls.append(1), found)[1])
    assert torch.equal(cell(xs)[0], want)
    assert len(calls) == 1
    assert torch.equal(es.Stack(cell)(xs)[0], want / 2)  # a wiring runs the step
    assert len(calls) == 2
    other = Stepwise()
    want = es.scan(other, xs)[0]
    other.register_forward_hook(lambda module, given, found: (calls.append(1), found)[1])
    assert torch.equal(es.scan(other, xs)[0], want)
    assert len(calls) == 3
    torch.testing.assert_close(other(xs[:, 0], torch.zeros(2, H))[0], want[:, 0])
    assert len(calls) == 4


def test_hooks_of_every_module_run_within_wirings() -> None:
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda m, given, found: isinstance(m, es.Layer) and seen.append(type(m).__name__)
    )
    try:
        es.Stack(es.GRU(D, H), es.LSTM(H, H))(torch.randn(2, 5, D))
    finally:
        handle.remove()
    assert seen == ["GRU", "LSTM", "Stack"]
    assert not hooks.hooked(es.GRU(D, H))


def test_a_hook_that_fails_leaves_nothing_behind() -> None:
    cell, xs = es.GRU(D, H), torch.randn(2, 5, D)

    def fail(module: nn.Module, given: Any) -> None:
        raise RuntimeError("no")

    handle = cell.register_forward_pre_hook(fail)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            es.Stack(cell)(xs)
    handle.remove()
    want = copy.deepcopy(cell)(xs)[0]
    assert torch.equal(cell(xs)[0], want)
    calls: list[int] = []
    cell.register_forward_hook(lambda *what: calls.append(1))
    cell(xs)
    assert calls == [1]
