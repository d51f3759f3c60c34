"""The linear-chain CRF against the sum over all sequences."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from far_device import FarDevice
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import everstep as es
from everstep.heads import compiled_chain
from everstep.native import toolchain

F64 = torch.float64
Masks = tuple[Tensor, Tensor, Tensor]
TRUE = torch.ones(3, dtype=torch.bool)


@pytest.fixture(params=["compiled", "PyTorch's operations"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the recursions run."""
    if request.param == "compiled":
        if toolchain.compiler() is None:
            pytest.skip("no C++ compiler")
    else:
        monkeypatch.setenv("EVERSTEP_COMPILER", "none")
    return str(request.param)


def head(tags: int, input_size: int | None = None, allowed: Masks | None = None, spread: float = 1.0) -> es.CRF:
    made = es.CRF(input_size, tags, allowed=allowed).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=spread)
    return made


class Brute(NamedTuple):
    """Every sequence of a row, (count, length), and log p of each."""

    paths: Tensor
    log_p: Tensor


def brute_force(crf: es.CRF, ys: Tensor, lengths: list[int]) -> Iterator[Brute]:
    """By the definition, with masks as −∞."""
    parts = [crf.transitions, crf.start, crf.end]
    if crf.allowed_start is not None:
        masks = (crf.allowed_transitions, crf.allowed_start, crf.allowed_end)
        parts = [p.masked_fill(~m, -torch.inf) for p, m in zip(parts, masks, strict=True) if m is not None]
    transitions, start, end = parts
    for scores, length in zip(crf.scores(ys), lengths, strict=True):
        paths = torch.tensor(list(itertools.product(range(crf.tags), repeat=length)), dtype=torch.int64)
        if length == 0:
            yield Brute(paths.view(1, 0), 0 * (scores.sum() + crf.start.sum()).view(1))
            continue
        total = start[paths[:, 0]] + end[paths[:, -1]] + scores[torch.arange(length), paths].sum(1)
        total = total + transitions[paths[:, :-1], paths[:, 1:]].sum(1)
        yield Brute(paths, total.log_softmax(0))


def loss_of(rows: Iterator[Brute], target: Tensor, lengths: list[int]) -> Tensor:
    losses = []
    for (paths, log_p), tags, length in zip(rows, target, lengths, strict=True):
        losses.append(-log_p[(paths == tags[:length]).all(1)].sum())
    return torch.stack(losses)


def check(crf: es.CRF, ys: Tensor, target: Tensor, lengths: list[int], n: int = 5) -> None:
    """Loss, all gradients, marginals, the best sequence and the n best."""
    given = torch.tensor(lengths)
    ys = ys.clone().requires_grad_()
    found = crf.loss(ys, target, given)
    want = loss_of(brute_force(crf, ys, lengths), target, lengths)
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-10)
    leaves = [ys, *crf.parameters()]
    gradients = torch.autograd.grad(found.sum(), leaves)
    for got, expected in zip(gradients, torch.autograd.grad(want.sum(), leaves, materialize_grads=True), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    marginals, best, (paths, log_p) = crf.marginals(ys, given), crf.predict(ys, given), crf.nbest(ys, n, given)
    for row, (every, length) in enumerate(zip(brute_force(crf, ys, lengths), lengths, strict=True)):
        p = every.log_p.exp()
        expected = (nn.functional.one_hot(every.paths, crf.tags) * p[:, None, None]).sum(0)
        torch.testing.assert_close(marginals[row, :length], expected, rtol=1e-10, atol=1e-10)
        order = every.log_p.argsort(descending=True)[:n]
        order = order[every.log_p[order] > -torch.inf]
        assert torch.equal(paths[row, : len(order), :length], every.paths[order])
        assert torch.equal(best[row, :length], every.paths[order[0]])
        torch.testing.assert_close(log_p[row, : len(order)], every.log_p[order], rtol=1e-10, atol=1e-10)
        assert (log_p[row, len(order) :] == -torch.inf).all()
        for padding in (best[row, length:], paths[row, :, length:], marginals[row, length:]):
            assert not padding.any()


def begin_inside(kinds: int) -> Masks:
    """IOB2 of so many kinds: tag 0 outside, 2k + 1 begins, 2k + 2 goes on after these two of its kind."""
    size = 2 * kinds + 1
    tag = torch.arange(size)
    inside = (tag > 0) & (tag % 2 == 0)
    same = (tag[:, None] == tag) | (tag[:, None] == tag - 1)
    return ~inside | (inside & same), ~inside, torch.ones(size, dtype=torch.bool)


@pytest.mark.sanitize
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tags=st.sampled_from([1, 3]),
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    further=st.integers(0, 2),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
)
def test_equals_the_sum_over_all_sequences(
    way: str, tags: int, lengths: list[int], further: int, seed: int, spread: float
) -> None:
    torch.manual_seed(seed)
    time = max(lengths) + further
    ys = torch.randn(len(lengths), time, tags, dtype=F64) * spread
    check(head(tags, spread=spread), ys, torch.randint(tags, (len(lengths), time)), lengths)


def test_sixty_tags_and_features_of_a_network(way: str) -> None:
    ys, target = torch.randn(3, 2, 7, dtype=F64), torch.randint(60, (3, 2))
    check(head(60, 7), ys, target, [2, 0, 1], n=100)


@pytest.mark.sanitize
def test_what_is_forbidden_is_neither_summed_nor_predicted(way: str) -> None:
    crf = head(5, allowed=begin_inside(2), spread=3.0)
    ys = 3 * torch.randn(4, 5, 5, dtype=F64)
    target = torch.tensor([[0, 1, 2, 2, 0], [3, 4, 4, 1, 1], [1, 2, 9, -1, 9], [-100] * 5])
    check(crf, ys, target, [5, 5, 2, 0], n=40)
    kinds = {}
    for tag in crf.predict(torch.randn(200, 30, 5, dtype=F64) * 5).flatten().tolist():
        kinds[tag] = kinds.get(tag, 0) + 1
    assert min(kinds[tag] for tag in range(5)) > 50
    assert torch.equal(crf.marginals(ys)[:, 0, [2, 4]], torch.zeros(4, 2, dtype=F64))
    crf.loss(ys, target.clamp(0, 0)).sum().backward()
    assert crf.transitions.grad is not None
    assert not crf.transitions.grad[~begin_inside(2)[0]].any()


@pytest.mark.sanitize
@pytest.mark.parametrize("behind", [735.0, 1e4])
def test_scores_that_are_far_apart(way: str, behind: float) -> None:
    """What the first step leaves far behind is all that may go on; as a number it would lose digits, or be 0."""
    ys, target = torch.randn(2, 4, 3, dtype=F64), torch.zeros(2, 4, dtype=torch.int64)
    ys[:, 0, 1] = behind
    only, first = torch.eye(3, dtype=torch.bool), torch.tensor([True, False, False])
    check(head(3, allowed=(only, TRUE, first)), ys, target, [4, 2], n=1)
    check(head(3, spread=behind), behind * torch.randn(2, 4, 3, dtype=F64), target, [4, 3])


@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("time", [2, 2000])
def test_float32_equals_float64_however_long_and_large(way: str, size: float, time: int) -> None:
    wide = head(3, spread=size).float()
    exact = copy.deepcopy(wide).double()
    ys, target = size * torch.randn(2, time, 3), torch.randint(3, (2, time))
    losses, gradients = [], []
    for crf in (wide, exact):
        given = ys.to(crf.start.dtype).requires_grad_()
        losses.append(crf.loss(given, target))
        gradients.append(torch.autograd.grad(losses[-1].sum(), [given, *crf.parameters()]))
        assert losses[-1].isfinite().all()
    torch.testing.assert_close(losses[0].double(), losses[1], rtol=3e-7, atol=3e-7 * size)
    torch.testing.assert_close(gradients[0][0].double(), gradients[1][0], rtol=0, atol=3e-4)
    for got, want in zip(gradients[0][1:], gradients[1][1:], strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=5e-4 if way == "compiled" else 0.2)
    assert torch.equal(wide.predict(ys), exact.predict(ys.double()))
    torch.testing.assert_close(wide.marginals(ys).sum(-1), torch.ones(2, time))


@pytest.mark.sanitize
def test_threads_own_rows() -> None:
    crf = head(60)
    ys, target = torch.randn(7, 60, 60, dtype=F64, requires_grad=True), torch.randint(60, (7, 60))
    lengths = torch.tensor([60, 0, 3, 60, 59, 1, 60])
    found = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            loss = crf.loss(ys, target, lengths)
            found.append((loss, crf.predict(ys, lengths), *torch.autograd.grad(loss.sum(), [ys, *crf.parameters()])))
        finally:
            torch.set_num_threads(before)
    for one, three in zip(found[0][:3], found[1][:3], strict=True):
        assert torch.equal(one, three)
    for one, three in zip(found[0][3:], found[1][3:], strict=True):
        torch.testing.assert_close(one, three, rtol=1e-12, atol=1e-12)


def test_padding_and_order_of_rows_change_nothing(way: str) -> None:
    crf = head(3)
    ys, target, lengths = torch.randn(4, 6, 3, dtype=F64), torch.randint(3, (4, 6)), torch.tensor([6, 1, 0, 3])
    alone = [crf.loss(ys[i : i + 1, :n], target[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())]
    whole = crf.loss(ys, target, lengths)
    torch.testing.assert_close(whole, torch.cat(alone), rtol=0, atol=1e-14)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(crf.loss(ys[order], target[order], lengths[order]), whole[order])
    assert torch.equal(crf.predict(ys[order], lengths[order]), crf.predict(ys, lengths)[order])
    padding = torch.arange(6) >= lengths[:, None]
    other = ys.masked_fill(padding[..., None], torch.nan).requires_grad_()
    found = crf.loss(other, target.masked_fill(padding, -100), lengths)
    assert torch.equal(found, whole)
    found.sum().backward()
    for gradient in (other.grad, *(parameter.grad for parameter in crf.parameters())):
        assert gradient is not None
        assert gradient.isfinite().all()
    assert torch.equal(crf.predict(other, lengths), crf.predict(ys, lengths))
    assert torch.equal(crf.marginals(other, lengths), crf.marginals(ys, lengths))


def test_no_steps_and_no_rows(way: str) -> None:
    crf = head(3, 4)
    ys, target = torch.randn(2, 5, 4, dtype=F64, requires_grad=True), torch.zeros(2, 5, dtype=torch.int64)
    crf.loss(ys[:, :0], target[:, :0]).sum().backward()
    assert not any(p.grad is None or p.grad.any() for p in crf.parameters())
    assert crf.predict(ys[:, :0]).shape == (2, 0)
    assert crf.marginals(ys[:, :0]).shape == (2, 0, 3)
    paths, log_p = crf.nbest(ys[:, :0], 2)
    assert paths.shape == (2, 2, 0)
    assert log_p.tolist() == [[0, -torch.inf]] * 2
    for lengths in (None, torch.zeros(0, dtype=torch.int64)):
        assert crf.loss(ys[:0], target[:0], lengths).shape == (0,)
        assert crf.predict(ys[:0], lengths).shape == (0, 5)
        assert crf.nbest(ys[:0], 2, lengths)[1].shape == (0, 2)


def test_derivatives_of_derivatives(way: str) -> None:
    crf = head(3)
    ys, target, lengths = torch.randn(2, 4, 3, dtype=F64), torch.zeros(2, 4, dtype=torch.int64), torch.tensor([4, 2])
    ys.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda y: crf.loss(y, target, lengths), ys)
    assert torch.autograd.gradcheck(lambda y: crf.marginals(y, lengths), ys)
    assert not torch.no_grad()(crf.marginals)(ys, lengths).requires_grad
    inferred = torch.inference_mode()(crf.marginals)(ys.detach(), lengths)
    torch.testing.assert_close(inferred, crf.marginals(ys, lengths).detach())
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(crf).marginals(ys.clone(), lengths.clone()), inferred)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_gradients_of_each_row_by_torch_func() -> None:
    crf = head(3, 4)
    ys, target = torch.randn(3, 4, 4, dtype=F64), torch.randint(3, (3, 4))

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.crf = crf

        def forward(self, y: Tensor, tags: Tensor) -> Tensor:
            return self.crf.loss(y[None], tags[None])[0]

    module = Loss()
    values = {name: value.detach() for name, value in module.named_parameters()}

    def loss(given: dict[str, Tensor], y: Tensor, tags: Tensor) -> Tensor:
        return torch.func.functional_call(module, given, (y, tags))

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(values, ys, target)
    crf.loss(ys, target).sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad)
    ys.requires_grad_()
    (gradient,) = torch.autograd.grad(crf.loss(ys, target).sum(), ys)
    direction = torch.randn_like(ys)
    _, forward = torch.func.jvp(lambda y: crf.loss(y, target).sum(), (ys.detach(),), (direction,))
    torch.testing.assert_close(forward, (gradient * direction).sum())


def test_transitions_that_are_no_plain_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(Tensor):
        pass

    crf, ys, target = head(3), torch.randn(2, 4, 3, dtype=F64), torch.zeros(2, 4, dtype=torch.int64)
    want = crf.loss(ys, target)
    crf.transitions = nn.Parameter(crf.transitions.detach().as_subclass(Other))
    monkeypatch.setattr(compiled_chain, "nats", None)
    torch.testing.assert_close(crf.loss(ys, target).as_subclass(Tensor), want)


def test_sums_are_float32_under_autocast() -> None:
    crf = head(3, 4).float()
    ys, target = torch.randn(2, 50, 4), torch.randint(3, (2, 50))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = crf.scores(ys)
        found = crf.loss(ys, target), crf.marginals(ys), crf.predict(ys), crf.nbest(ys, 2)
    plain = es.CRF(None, 3)
    plain.load_state_dict({k: v for k, v in crf.state_dict().items() if "linear" not in k})
    assert torch.equal(found[0], plain.loss(scores, target))
    assert torch.equal(found[1], plain.marginals(scores))
    assert torch.equal(found[2], plain.predict(scores))
    assert torch.equal(found[3][1], plain.nbest(scores, 2)[1])
    short = crf.bfloat16()
    assert short.loss(ys.bfloat16(), target).dtype == torch.float32


def test_on_another_device() -> None:
    crf = head(5, 4, allowed=begin_inside(2)).float()
    ys, target, lengths = torch.randn(3, 6, 4), torch.zeros(3, 6, dtype=torch.int64), torch.tensor([6, 0, 2])

    def everything(*given: Tensor) -> list[Tensor]:
        ys, target, lengths = given
        found = [crf.loss(ys, target, lengths), crf.marginals(ys, lengths), crf.predict(ys, lengths)]
        return [*found, *crf.nbest(ys, 3, lengths)]

    want = everything(ys, target, lengths)
    with FarDevice() as mode:
        crf = crf.to("cuda")
        found = everything(*(tensor.to("cuda") for tensor in (ys, target, lengths)))
        assert all(mode.is_far(tensor) for tensor in found)
        found[0].sum().backward()
        here = [tensor.cpu() for tensor in found]
    for got, expected in zip(here, want, strict=True):
        torch.testing.assert_close(got, expected)


def test_learns_that_tags_alternate() -> None:
    """What each step shows says nothing; the transitions say it all."""
    crf = es.CRF(1, 2)
    ys, target = torch.zeros(4, 9, 1), (torch.arange(9) + torch.tensor([0, 0, 0, 1])[:, None]) % 2
    optimizer = torch.optim.Adam(crf.parameters(), 0.1)
    for _ in range(100):
        optimizer.zero_grad()
        crf.loss(ys, target).mean().backward()
        optimizer.step()
    assert crf.loss(ys, target).mean() < 0.75  # three of four begin with 0: 0.562 nats
    assert torch.equal(crf.predict(ys), target[:1].expand(4, 9))
    paths, log_p = crf.nbest(ys, 2)
    assert torch.equal(paths[0], target[[0, 3]])
    torch.testing.assert_close(log_p[0].exp(), torch.tensor([0.75, 0.25]), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: es.CRF(0, 3), "input_size should be a whole number of at least 1"),
        (lambda: es.CRF(4, 0), "tags should be a whole number of at least 1"),
        (
            lambda: es.CRF(4, 3, allowed=(TRUE, TRUE, TRUE)),
            r"of shapes \(3, 3\), \(3,\), \(3,\), but one is",
        ),
        (
            lambda: es.CRF(4, 3).predict(torch.zeros(2, 5, 3)),
            r"be \(batch, time, 4\), but have shape \(2, 5, 3\)",
        ),
        (lambda: es.CRF(4, 3).nbest(torch.zeros(2, 5, 4), 0), "n should be a whole number of at least 1"),
        (lambda: _loss([[0, 1], [0, 3]]), "target should lie in 0 … 2, but is 3 in row 1 at step 1"),
        (lambda: _loss([[0, 1]]), r"target should be whole numbers of shape \(2, 2\)"),
        (lambda: _loss([[0, 1], [0, 3]], [2, 1, 1]), r"lengths should have shape \(2,\), but has \(3,\)"),
        (lambda: _loss([[0, 1], [0, 3]], [2, 3]), r"lengths should lie in 0 … 2 \(time\), but row 1 has 3"),
        (lambda: _loss([[0, 1], [0, 2]]), "row 1 has tag 2 at step 1, after tag 0, which `allowed` forbids"),
        (lambda: _loss([[0, 1], [2, 2]]), "row 1 has tag 2 at step 0, the first, which `allowed` forbids"),
        (lambda: _loss([[0, 1], [1, 2]]), "row 1 ends with tag 2, which `allowed` forbids"),
    ],
)
def test_errors_say_what_to_do(way: str, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def _loss(target: list[list[int]], lengths: list[int] | None = None) -> Tensor:
    follows, first, _ = begin_inside(1)
    crf = es.CRF(None, 3, allowed=(follows, first, first))
    return crf.loss(torch.zeros(2, 2, 3), torch.tensor(target), None if lengths is None else torch.tensor(lengths))


def test_rows_as_long_as_no_sequence(way: str) -> None:
    nothing = torch.zeros(3, 3, dtype=torch.bool)
    crf = head(3, allowed=(nothing, TRUE, TRUE))
    ys = torch.randn(3, 4, 3, dtype=F64)
    for call in (crf.predict, crf.marginals):
        with pytest.raises(ValueError, match="row 1 has 4 steps, but `allowed` has no sequence of so many tags"):
            call(ys, torch.tensor([1, 4, 0]))
        call(ys, torch.tensor([1, 1, 0]))
    assert crf.nbest(ys, 4, torch.tensor([1, 4, 0]))[1].isfinite().sum(1).tolist() == [3, 0, 1]
