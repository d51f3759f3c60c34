"""Heads against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from everstep.heads import Categorical


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
    learned, plain = head.smoothed(ys, target, lengths)
    torch.testing.assert_close(plain, head.loss(ys, target, lengths).detach())
    log_p = head.predict(ys)
    picked = log_p.gather(-1, target[..., None])[..., 0]
    each = -(0.8 * picked + 0.2 * log_p.mean(-1))
    live = torch.arange(5) < lengths[:, None]
    torch.testing.assert_close(learned, torch.where(live, each, 0).sum(1))
    assert learned.requires_grad
    assert not plain.requires_grad


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
