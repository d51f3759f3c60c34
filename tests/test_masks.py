"""Random masks: their probabilities, independence, scale and reproducibility."""

from __future__ import annotations

import math

import pytest
import torch

import everstep as es
from everstep.wirings import masks

LIKE = torch.zeros(1)


@pytest.mark.parametrize("p", [0.001, 0.05, 0.3, 0.5, 0.9])
def test_probabilities(p: float) -> None:
    size = 400_000
    within = 5 * math.sqrt(p * (1 - p) / size)
    drawn = masks.bernoulli(LIKE, (400, 1000), p)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert abs(float(drawn.double().mean()) - p) < within
    kept = masks.dropout_mask(LIKE, (400, 1000), p)
    assert abs(float((kept == 0).double().mean()) - p) < within
    assert kept.unique().numel() == 2
    assert float(kept.max()) == pytest.approx(1 / (1 - p))


def test_the_two_of_one_number_and_neighbours_are_independent() -> None:
    drawn = masks.bernoulli(LIKE, (200_000, 4), 0.3).double()
    correlation = torch.corrcoef(torch.cat([drawn[:-1], drawn[1:]], 1).t()) - torch.eye(8, dtype=torch.float64)
    assert float(correlation.abs().max()) < 5 / math.sqrt(200_000)


def test_seeds_sizes_and_dtypes() -> None:
    for shape in ((), (0,), (1,), (3,), (5, 7), (2, 0, 3)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            like, found = torch.zeros(1, dtype=dtype), []
            for _ in range(2):
                torch.manual_seed(3)
                found.append(masks.dropout_mask(like, shape, 0.5))
            assert torch.equal(*found)
            assert found[0].shape == shape
            assert found[0].dtype == dtype
    assert not torch.equal(masks.bernoulli(LIKE, (99,), 0.5), masks.bernoulli(LIKE, (99,), 0.5))


def test_extreme_probabilities() -> None:
    for p, expected in ((0.0, 0.0), (1.0, 1.0), (1e-12, 0.0), (1 - 1e-12, 1.0)):
        assert bool((masks.bernoulli(LIKE, (1000, 100), p) == expected).all())
    assert 2 < float(masks.bernoulli(LIKE, (1000, 1000), 2e-5).sum()) < 60


def test_dropout_and_its_gradient() -> None:
    x = torch.randn(50, 40, dtype=torch.float64, requires_grad=True)
    assert masks.dropout(x, 0.4, training=False) is x
    assert masks.dropout(x, 0.0) is x
    y = masks.dropout(x, 0.4)
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    torch.testing.assert_close(y, x * x.grad)
    assert 0.3 < float((y == 0).double().mean()) < 0.5


def test_under_vmap_each_has_its_own() -> None:
    cell = es.Dropout(6, 0.5)
    ys = torch.func.vmap(lambda x: cell(x)[0], randomness="different")(torch.ones(3, 4, 5, 6))
    assert not torch.equal(ys[0], ys[1])
