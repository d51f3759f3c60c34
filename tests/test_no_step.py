"""Batches without a step: outputs and gradients of zeros, and no error, on every way that a sequence can take."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.backends import reference
from everstep.backends.dispatch import BACKENDS
from everstep.state import leaves
from tests.laws import LAYERS, PLAIN, WIRINGS, D, H, refused

NOTHING = {"T = 0": (0, None), "T = 0, ragged": (0, [0, 0]), "T = 1": (1, [0, 0]), "T = 5": (5, [0, 0])}


@cache
def _built(name: str) -> es.Layer:
    torch.manual_seed(0)
    return LAYERS[name]()


def without_gradients(name: str) -> es.Layer:
    """The layer of that name which all tests here share, so that it is traced once."""
    layer = _built(name)
    layer.zero_grad(set_to_none=True)
    return layer


def check(module: nn.Module, xs: Tensor, state: Any, **how: Any) -> Tensor:
    """Run and go backward."""
    y, final = module(xs, state, **how)
    assert not y.any()
    if state is not None:
        for (_, ours), (_, theirs) in zip(leaves(final), leaves(state), strict=True):
            torch.testing.assert_close(ours, theirs)
    y.sum().backward()
    wanted = {n: p for n, p in module.named_parameters() if p.requires_grad}
    for p in (xs, *wanted.values()):
        assert p.grad is None or not p.grad.any()
    assert xs.grad is not None
    assert {n for n, p in wanted.items() if p.grad is not None} >= (set() if xs.shape[1] else set(wanted))
    assert isinstance(y, Tensor)
    return y


@pytest.mark.parametrize("what", NOTHING)
@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "auto") for name in WIRINGS), *((name, other) for name in PLAIN for other in ("auto", *BACKENDS))],
)
def test_backward_through_no_step(name: str, backend: str, what: str) -> None:
    time, lengths = NOTHING[what]
    for carried in (False, True)[: 2 if backend == "auto" else 1]:
        layer = without_gradients(name)
        xs = torch.randn(2, time, layer.input_size, requires_grad=True)
        state = layer.initial_state(2, xs) if carried else None
        if isinstance(layer, es.Cell) and time and refused(BACKENDS.get(backend, reference), layer, xs, None, None):
            return
        ys = check(layer, xs, state, lengths=None if lengths is None else torch.tensor(lengths), backend=backend)
        assert ys.shape == (2, time, layer.output_size)


@pytest.mark.parametrize("what", NOTHING)
@pytest.mark.parametrize("how", ["last", "sum", "mean", "max", "attention"])
@pytest.mark.parametrize("name", ["GRU", "LSTM", "MinGRU", "Bidirectional", "Bidirectional sum", "EncoderStack"])
def test_read_outs_of_no_step(name: str, how: Any, what: str) -> None:
    time, lengths = NOTHING[what]
    readout = es.ReadOut(without_gradients(name), how)
    xs = torch.randn(2, time, D, requires_grad=True)
    y = check(readout, xs, None, lengths=None if lengths is None else torch.tensor(lengths))
    assert y.shape == (2, readout.output_size)


def test_a_row_of_no_step_beside_others_changes_none_of_their_gradients() -> None:
    for how in ("last", "sum", "mean", "max", "attention"):
        torch.manual_seed(0)
        readout = es.ReadOut(es.GRU(D, H), how)
        xs = torch.randn(3, 4, D)
        found = []
        for rows in ([0, 1, 2], [0, 2]):
            lengths = torch.tensor([4, 0, 2])[rows]
            y, _ = readout(xs[rows], lengths=lengths)
            found.append(torch.autograd.grad(y.square().sum(), list(readout.parameters())))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_no_rows() -> None:
    for name in ("GRU", "MinGRU", "Bidirectional"):
        layer, xs = LAYERS[name](), torch.randn(0, 3, D, requires_grad=True)
        layer(xs)[0].sum().backward()
        assert xs.grad is not None
