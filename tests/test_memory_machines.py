"""NTM and DNC: addressing equals its definitions, a place is written and found again, and copying generalises."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

import everstep as es
from everstep.lab.synthetic import Copying, Predictor, measure, objective
from everstep.learn import FitSettings, fit
from everstep.look.memory_heads import draw_heads, head_weights
from everstep.memory.dnc import allocation
from everstep.memory.places import by_content, revised, sharpened, shifted

F64 = torch.float64


def weights(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=F64).softmax(-1)


def test_content_is_a_softmax_of_cosines() -> None:
    keys, memory, strengths = (
        torch.randn(2, 3, 4, dtype=F64),
        torch.randn(2, 5, 4, dtype=F64),
        torch.rand(2, 3, 1).to(F64),
    )
    found = by_content(keys, strengths, memory)
    for b in range(2):
        for h in range(3):
            cosines = torch.cosine_similarity(keys[b, h][None], memory[b], dim=-1)
            torch.testing.assert_close(found[b, h], (strengths[b, h] * cosines).softmax(-1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("reach", [1, 2])
def test_shifts_go_around_the_ring(reach: int) -> None:
    w, shares = weights(2, 3, 6), weights(2, 3, 2 * reach + 1)
    want = torch.zeros_like(w)
    for i in range(6):
        for d in range(-reach, reach + 1):
            want[..., i] += shares[..., d + reach] * w[..., (i - d) % 6]
    torch.testing.assert_close(shifted(w, shares), want)
    onward = torch.zeros(2, 3, 2 * reach + 1, dtype=F64)
    onward[..., reach + 1] = 1
    assert torch.equal(shifted(w, onward), w.roll(1, -1))


def test_sharpening_is_a_power() -> None:
    w, powers = weights(2, 3, 6), 1 + torch.rand(2, 3, 1).to(F64)
    torch.testing.assert_close(sharpened(w, powers), w**powers / (w**powers).sum(-1, keepdim=True))
    focused = torch.eye(4, dtype=F64)[None].requires_grad_()
    found = sharpened(focused, torch.full((1, 4, 1), 3.0, dtype=F64))
    torch.testing.assert_close(found, focused.detach())
    (gradient,) = torch.autograd.grad(found[0, 0, 0], focused)
    assert gradient.isfinite().all()


def test_heads_write_one_after_another() -> None:
    memory, w = torch.randn(2, 5, 3, dtype=F64), weights(2, 2, 5)
    erased, added = torch.rand(2, 2, 3, dtype=F64), torch.randn(2, 2, 3, dtype=F64)
    found = memory
    for k in range(2):
        found = found * (1 - torch.einsum("bn,bw->bnw", w[:, k], erased[:, k]))
        found = found + torch.einsum("bn,bw->bnw", w[:, k], added[:, k])
    torch.testing.assert_close(revised(memory, w, erased, added), found)


def test_allocation_equals_the_sorted_definition() -> None:
    usage = torch.rand(50, 6, dtype=F64)
    usage[::2, 3] = usage[::2, 1]  # as much as another
    usage[::3, 0] = 1
    want = torch.empty_like(usage)
    order = usage.sort(dim=-1, stable=True).indices
    for row in range(len(usage)):
        left = 1.0
        for place in order[row].tolist():
            want[row, place] = (1 - usage[row, place]) * left
            left = left * usage[row, place]
    torch.testing.assert_close(allocation(usage), want)
    torch.testing.assert_close(allocation(torch.zeros(1, 4)), torch.eye(4)[:1], rtol=0, atol=2e-6)
    for used in permutations((0.1, 0.5, 0.9)):
        assert int(allocation(torch.tensor([used])).argmax()) == used.index(0.1)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", ["NTM", "DNC"])
def test_nothing_becomes_nan(kind: str, backend: str) -> None:
    torch.manual_seed(0)
    machine = es.NTM(es.LSTM(3 + 4, 8), 6, 4) if kind == "NTM" else es.DNC(es.LSTM(3 + 4, 8), 6, 4)
    for scale in (0.0, 1.0, 1e3):
        with torch.no_grad():
            for p in machine.parameters():
                p.copy_(torch.randn_like(p) * scale)
        xs = (torch.randn(4, 300, 3) * max(scale, 1)).requires_grad_()
        ys, state = es.scan(machine, xs, backend=backend)
        assert ys.isfinite().all()
        assert all(leaf.isfinite().all() for leaf in (state.memory, *machine.heads(state).values()))
        for gradient in torch.autograd.grad(ys.square().mean(), [xs, *machine.parameters()]):
            assert gradient.isfinite().all()


def test_usage_and_weights_stay_in_their_range() -> None:
    torch.manual_seed(0)
    machine = es.DNC(es.LSTM(3 + 8, 8), 6, 4, reads=2)
    with torch.no_grad():
        for p in machine.parameters():
            p.mul_(5)
    _, state = machine(torch.randn(8, 100, 3) * 3)
    assert (state.usage >= 0).all()
    assert (state.usage <= 1 + 1e-5).all()
    assert (state.links.diagonal(dim1=1, dim2=2) == 0).all()
    for sums in (state.writing.sum(-1), state.reading.sum(-1), state.links.sum(-1), state.links.sum(-2)):
        assert (sums <= 1 + 1e-4).all()
        assert (sums >= -1e-6).all()


def test_a_longer_memory_takes_the_same_weights() -> None:
    for machine in (es.NTM(es.GRU(3 + 4, 8), 6, 4), es.DNC(es.GRU(3 + 4, 8), 6, 4)):
        xs = torch.randn(2, 5, 3)
        machine(xs)
        machine.places = 50
        ys, state = machine(xs)
        assert state.memory.shape == (2, 50, 4)
        torch.testing.assert_close(ys, es.scan(machine, xs, backend="reference")[0])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: es.NTM(es.GRU(3, 4), 8, 4), ValueError, r"takes \[x; r\], but GRU has input_size 3 and r has 4"),
        (lambda: es.DNC(es.GRU(7, 4), 8, 4, reads=2), ValueError, "r has 8 numbers"),
        (lambda: es.NTM(es.GRU(9, 4), 4, 4, shift=2), ValueError, "need 5 places, but there are 4"),
        (lambda: es.NTM(es.GRU(9, 4), 0, 4), ValueError, "places"),
        (lambda: es.NTM(torch.nn.GRU(9, 4), 8, 4), TypeError, "should be a cell"),
        (lambda: es.DNC(es.GRU(9, 4), 8, True), (TypeError, ValueError), "width"),
        (lambda: head_weights(es.GRU(3, 4), torch.zeros(1, 2, 3)), TypeError, "NTM or a DNC, but is GRU"),
        (lambda: Copying(3, 4), ValueError, "at most longest"),
    ],
)
def test_what_is_refused(make, error, words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_copying_generalises_to_longer_sequences(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = Predictor(es.DNC(es.LSTM(5 + 8, 48), 20, 8), Copying(8, bits=4))
    settings = FitSettings(max_steps=1500, learning_rate=0.02, clip_norm=10.0, threads=1)
    fit(model, objective, model.problem.stream(16), settings, out=tmp_path / "run")
    assert measure(model, 100).error < 0.01
    model.problem, model.layer.places = Copying(16, 16, 4), 40
    assert measure(model, 100).error < 0.05
    batch = model.problem.batch(1)
    found = head_weights(model.layer, batch.inputs)
    assert found["writes"].shape == found["reads"].shape == (33, 1, 40)
    written, read = found["writes"][:16, 0].argmax(-1), found["reads"][17:, 0].argmax(-1)
    assert (written == read).mean() > 0.9  # each vector is read where it was written
    draw_heads(found, {"inputs": batch.inputs[0].numpy()}, tmp_path / "heads.png")
    assert (tmp_path / "heads.png").stat().st_size > 5000
