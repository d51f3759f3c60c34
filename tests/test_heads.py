"""Heads against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from everstep.heads import Categorical, compiled_softmax
from everstep.heads.cross_entropy import cross_entropy


def brute_force(head: Categorical, ys: torch.Tensor, target: torch.Tensor, lengths: list[int]) -> list[float]:
    rows = []
    for row, length in enumerate(lengths):
        total = 0.0
        for t in range(length):
            scores = [float(head.weight[k] @ ys[row, t] + head.bias[k]) for k in range(head.classes)]
            biggest = max(scores)
            norm = biggest + math.log(sum(math.exp(s - biggest) for s in scores))
            total += norm - scores[int(target[row, t])]
        rows.append(total)
    return rows


@torch.no_grad()
def test_loss_is_the_sum_of_minus_log_p() -> None:
    head = Categorical(4, 7)
    ys, target, lengths = torch.randn(3, 5, 4), torch.randint(7, (3, 5)), torch.tensor([5, 0, 2])
    want = torch.tensor(brute_force(head, ys, target, [5, 0, 2]))
    torch.testing.assert_close(head.loss(ys, target, lengths), want)
    torch.testing.assert_close(head.loss(ys, target), torch.tensor(brute_force(head, ys, target, [5, 5, 5])))
    log_p = head.predict(ys)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, 5))
    torch.testing.assert_close(-log_p.gather(-1, target[..., None])[..., 0].sum(1), head.loss(ys, target))


def test_padding_reaches_no_gradient() -> None:
    head = Categorical(4, 7)
    ys = torch.randn(2, 5, 4, requires_grad=True)
    head.loss(ys, torch.randint(7, (2, 5)), torch.tensor([2, 0])).sum().backward()
    assert ys.grad is not None
    assert ys.grad[0, :2].abs().min() > 0
    assert not ys.grad[0, 2:].any()
    assert not ys.grad[1].any()


def test_smoothing_is_learned_from_and_never_reported() -> None:
    head = Categorical(4, 7, label_smoothing=0.2)
    ys, target, lengths = torch.randn(3, 5, 4), torch.randint(7, (3, 5)), torch.tensor([5, 0, 2])
    learned, plain = head.objective(ys, target, lengths)
    torch.testing.assert_close(plain, head.loss(ys, target, lengths).detach())
    log_p = head.predict(ys)
    picked = log_p.gather(-1, target[..., None])[..., 0]
    each = -(0.8 * picked + 0.2 * log_p.mean(-1))
    live = torch.arange(5) < lengths[:, None]
    torch.testing.assert_close(learned, torch.where(live, each, 0).sum(1))
    assert learned.requires_grad
    assert not plain.requires_grad


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_one_array_of_logits_gives_the_gradients_of_the_plain_formula(
    smoothing: float, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(compiled_softmax, "available", lambda like: False)
    ys, weight, bias = torch.randn(6, 4), torch.randn(5, 4), torch.randn(5)
    given = [leaf.double().requires_grad_() for leaf in (ys, weight, bias)]
    target = torch.tensor([0, 4, 2, 2, 1, 0])

    def plain(ys: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        logits = ys @ weight.T + bias
        return nn.functional.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)

    def mine(ys: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return cross_entropy(ys, weight, bias, target, smoothing)[0]

    torch.testing.assert_close(mine(*given), plain(*given))
    share = torch.rand(6, dtype=torch.float64)
    wanted = torch.autograd.grad(plain(*given), given, share)
    found = torch.autograd.grad(mine(*given), given, share)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(mine, given)
    assert torch.autograd.gradgradcheck(mine, given)
    nats = cross_entropy(*given, target, smoothing)[1]
    assert not nats.requires_grad
    torch.testing.assert_close(
        nats, nn.functional.cross_entropy(given[0] @ given[1].T + given[2], target, reduction="none").detach()
    )


def test_the_largest_logits_lose_no_digits() -> None:
    weight = torch.tensor([[1000.0], [-1000.0], [999.0]])
    loss, nats = cross_entropy(torch.ones(1, 1, requires_grad=True), weight, torch.zeros(3), torch.tensor([1]))
    assert float(nats) == pytest.approx(2000 + math.log1p(math.exp(-1)), rel=1e-6)
    loss.sum().backward()


def test_the_compiled_softmax_is_the_plain_one() -> None:
    for rows, classes in ((0, 3), (1, 1), (5, 63), (3, 64), (2, 333)):
        head = Categorical(4, classes)
        torch.nn.init.normal_(head.bias)
        ys, target = 30 * torch.randn(rows, 4, requires_grad=True), torch.randint(classes, (rows,))
        logits = head.logits(ys).detach()
        with torch.no_grad():
            torch.testing.assert_close(head.predict(ys), logits.log_softmax(-1))
        loss, nats = cross_entropy(ys, head.weight, head.bias, target, 0.1)
        wanted = nn.functional.cross_entropy(logits, target, reduction="none", label_smoothing=0.1)
        torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(nats, nn.functional.cross_entropy(logits, target, reduction="none"))
    damaged = torch.tensor([[torch.nan, 0.0]])
    with torch.no_grad():
        assert Categorical(2, 3).predict(damaged).isnan().all()
    with pytest.raises((IndexError, RuntimeError)):
        cross_entropy(torch.zeros(2, 1, requires_grad=True), torch.zeros(3, 1), torch.zeros(3), torch.tensor([1, 3]))


@pytest.mark.parametrize(
    ("bias", "target", "message"),
    [
        (
            torch.zeros(3),
            torch.zeros(2, dtype=torch.int32),
            "expected target .2,. of torch.int64; got .2,. of torch.int32",
        ),
        (torch.zeros(3), torch.zeros(1, dtype=torch.int64), "expected target"),
        (torch.zeros(1), torch.zeros(2, dtype=torch.int64), "expected bias"),
        (torch.zeros(3).double(), torch.zeros(2, dtype=torch.int64), "expected bias"),
    ],
)
def test_memory_of_another_kind_is_not_read(bias: torch.Tensor, target: torch.Tensor, message: str) -> None:
    ys = torch.zeros(2, 1, requires_grad=True)
    with pytest.raises(ValueError, match=message):
        cross_entropy(ys, torch.zeros(3, 1), bias, target)


def test_a_head_with_other_logits_predicts_them() -> None:
    class Doubled(Categorical):
        def logits(self, ys: torch.Tensor) -> torch.Tensor:
            return 2 * super().logits(ys)

    head, ys = Doubled(4, 5), torch.randn(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(head.predict(ys), head.logits(ys).log_softmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_factors_are_bfloat16_and_gradients_as_of_linear(dtype: torch.dtype) -> None:
    head, target = Categorical(16, 50, label_smoothing=0.1), torch.randint(50, (40,))
    ys = torch.randn(40, 16).to(dtype).requires_grad_()
    given = [ys, head.weight, head.bias]
    with torch.autocast("cpu", torch.bfloat16):
        logits = nn.functional.linear(*given).float()
        plain = nn.functional.cross_entropy(logits, target, reduction="none", label_smoothing=0.1)
        loss = cross_entropy(*given, target, 0.1)[0]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, plain, atol=0.02, rtol=0)
    for one, other in zip(
        torch.autograd.grad(loss.mean(), given), torch.autograd.grad(plain.mean(), given), strict=True
    ):
        assert one.dtype == other.dtype
        assert (one - other).norm() < 0.01 * other.norm()


def test_what_is_learned_from_is_what_is_measured() -> None:
    head = Categorical(6, 7, tied=torch.nn.Parameter(torch.randn(7, 4)), label_smoothing=0.1)
    ys, target = torch.randn(3, 5, 6), torch.randint(7, (3, 5))
    for lengths in (None, torch.tensor([5, 0, 2]), torch.tensor([0, 0, 0])):
        learned = head.objective(ys, target, lengths)
        with torch.no_grad():
            measured = head.objective(ys, target, lengths)
        for one, other in zip(learned, measured, strict=True):
            torch.testing.assert_close(one.detach(), other)
        learned[0].sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert head.objective(ys, target)[0].dtype == torch.float32


def test_tied_weights_are_the_embedding() -> None:
    embedding = nn.Embedding(7, 4)
    same = Categorical(4, 7, tied=embedding.weight)
    assert same.weight is embedding.weight
    assert same.join is None
    joined = Categorical(6, 7, tied=embedding.weight)
    assert joined.join is not None
    ys = torch.randn(2, 3, 6)
    torch.testing.assert_close(joined.logits(ys), joined.join(ys) @ embedding.weight.T + joined.bias)
    with pytest.raises(ValueError, match="7 rows, but has 5"):
        Categorical(4, 7, tied=torch.zeros(5, 4))
