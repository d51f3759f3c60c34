"""The head of pen moves: its loss against brute force and PyTorch's distributions, its extremes, its draws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from everstep.heads.pen_mixture import MOST_CORRELATION, PENS, PenMixture

K = 3


def rows(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Outputs and targets, every third an end."""
    random = torch.Generator().manual_seed(seed)
    ys = torch.randn(*shape, 6 * K + PENS, generator=random, dtype=torch.float64)
    pens = torch.eye(PENS, dtype=torch.float64)[torch.randint(PENS, shape, generator=random)]
    moves = torch.randn(*shape, 2, generator=random, dtype=torch.float64) * (1 - pens[..., 2:])
    return ys, torch.cat([moves, pens], -1)


def family(found: Tensor) -> MixtureSameFamily:
    """What `predict` gives, (6 K + 3,), as a distribution of PyTorch."""
    weight, mean_x, mean_y, sx, sy, rho, _ = found.split([K] * 6 + [PENS])
    covariance = torch.stack([torch.stack([sx**2, rho * sx * sy], -1), torch.stack([rho * sx * sy, sy**2], -1)], -2)
    return MixtureSameFamily(
        Categorical(logits=weight), MultivariateNormal(torch.stack([mean_x, mean_y], -1), covariance)
    )


def test_loss_is_that_of_pytorchs_distributions() -> None:
    head, (ys, target) = PenMixture(K), rows(4, 5)
    found = head.predict(ys)
    want = torch.zeros(4, dtype=torch.float64)
    for row, step in itertools.product(range(4), range(5)):
        pen = target[row, step, 2:]
        nats = -torch.log_softmax(ys[row, step, -PENS:], -1)[pen.argmax()]
        want[row] += nats if pen[2] else nats - family(found[row, step]).log_prob(target[row, step, :2])
    torch.testing.assert_close(head.loss(ys, target), want, rtol=1e-10, atol=1e-10)


def test_densities_and_pens_add_up_to_one() -> None:
    head, (ys, _) = PenMixture(K), rows(1)
    found = head.predict(ys / 2)
    edge = torch.linspace(-12, 12, 481, dtype=torch.float64)
    places = torch.cartesian_prod(edge, edge)
    density = head.log_density(found.expand(len(places), -1), places).exp()
    assert (density.sum() * (edge[1] - edge[0]) ** 2).item() == pytest.approx(1, abs=1e-4)
    assert found[0, -PENS:].exp().sum().item() == pytest.approx(1)
    assert found[0, :K].exp().sum().item() == pytest.approx(1)


def test_gradients() -> None:
    head, (ys, target) = PenMixture(K), rows(2, 3)
    assert torch.autograd.gradcheck(lambda y: head.loss(y, target), ys.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda y: head.loss(y, target), ys)


@pytest.mark.parametrize("move", [0.0, 1e6])
@pytest.mark.parametrize("output", [-1e4, 0.0, 1e4])
def test_nothing_overflows(output: float, move: float) -> None:
    head = PenMixture(K)
    ys = torch.full((1, 2, head.size), output, requires_grad=True)
    target = torch.tensor([[[move, -move, 0, 1, 0], [0, 0, 0, 0, 1.0]]])
    loss = head.loss(ys, target)
    loss.sum().backward()
    assert ys.grad is not None
    assert loss.isfinite().all()
    assert ys.grad.isfinite().all()
    assert not ys.grad[0, 1, :-PENS].any()  # an end has no move


def test_deviations_and_correlations_are_bounded() -> None:
    head = PenMixture(K, least=0.05)
    found = head.predict(torch.full((head.size,), -50.0))
    assert found[3 * K : 5 * K].tolist() == pytest.approx([0.05] * 2 * K, rel=1e-4)
    assert found[5 * K : 6 * K].tolist() == pytest.approx([-MOST_CORRELATION] * K)
    with pytest.raises(ValueError, match=r"expected components ≥ 1 and least > 0; got 0 and 0\.01"):
        PenMixture(0)
    with pytest.raises(ValueError, match="got 1 and 0"):
        PenMixture(1, 0.0)


def test_padded_equals_alone_and_rows_commute() -> None:
    head, (ys, target), lengths = PenMixture(K), rows(4, 3), torch.tensor([3, 0, 2, 1])
    ys.requires_grad_()
    together = head.loss(ys, target, lengths)
    together.sum().backward()
    assert ys.grad is not None
    for row, length in enumerate(lengths.tolist()):
        alone = head.loss(ys[row : row + 1, :length], target[row : row + 1, :length])
        torch.testing.assert_close(together[row : row + 1], alone)
        assert not ys.grad[row, length:].any()
        assert not length or ys.grad[row, :length].any()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(head.loss(ys[order], target[order], lengths[order]), together[order])


def test_half_precision_gives_the_loss_in_float32() -> None:
    head, (ys, target) = PenMixture(K), rows(2, 3)
    half = ys.bfloat16()
    found = head.loss(half, target.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, head.loss(half.float(), target.float()))


def test_it_learns_where_moves_go() -> None:
    head, (_, target) = PenMixture(K), rows(1, 20)
    ys = torch.zeros(1, 1, head.size, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(1))
    ys.requires_grad_()
    optimizer = torch.optim.Adam([ys], 0.1)
    losses = []
    for _ in range(60):
        loss = head.loss(ys.expand(1, 20, -1), target).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 10


def test_draws_have_the_means_deviations_and_pens_that_are_predicted() -> None:
    head, (ys, _), many = PenMixture(K), rows(1, seed=3), 20_000
    ys[:, -1] = -2.0
    found = head.predict(ys)
    drawn = head.draw(found.expand(many, -1), 1.0, torch.Generator().manual_seed(1))
    kept = drawn[drawn[:, 4] < 1, :2]
    pytorch = family(found[0])
    for dimension in range(2):
        spread = pytorch.variance[dimension].sqrt().item()
        assert kept[:, dimension].mean().item() == pytest.approx(pytorch.mean[dimension].item(), abs=5 * spread / 140)
        assert kept[:, dimension].std().item() == pytest.approx(spread, rel=0.05)
    p = found[0, -PENS:].exp().tolist()
    for pen in range(PENS):
        share = drawn[:, 2 + pen].mean().item()
        assert share == pytest.approx(p[pen], abs=5 * math.sqrt(p[pen] * (1 - p[pen]) / many))
    assert not drawn[drawn[:, 4] > 0, :2].any()
    moved = drawn[drawn[:, 4] < 1, :2] - pytorch.mean
    want = family(found[0]).sample((many,)) - pytorch.mean
    cross = (moved.prod(1).mean() - want.prod(1).mean()).item()
    assert abs(cross) < 0.1 * pytorch.variance.prod().sqrt().item()  # the correlation, too


def test_cold_draws_are_the_likeliest() -> None:
    head, (ys, _) = PenMixture(K), rows(5, seed=4)
    ys[:, -1] = -9.0
    found = head.predict(ys)
    cold = head.draw(found, 0.0, None)
    best = found[:, :K].argmax(-1, keepdim=True)
    want = torch.cat([found[:, K : 2 * K].gather(1, best), found[:, 2 * K : 3 * K].gather(1, best)], 1)
    torch.testing.assert_close(cold[:, :2], want)


def test_a_temperature_multiplies_deviations_by_its_root_and_sharpens_pens() -> None:
    head = PenMixture(1)
    found = head.predict(torch.zeros(1, head.size, dtype=torch.float64)).expand(20_000, -1).clone()
    found[:, -PENS:] = torch.tensor([0.5, 0.4, 0.1]).log()
    drawn = head.draw(found, 0.25, torch.Generator().manual_seed(1))
    moved = drawn[drawn[:, 4] < 1, :2]
    assert moved.std(0).tolist() == pytest.approx([1.01 / 2] * 2, rel=0.03)
    total = 0.5**4 + 0.4**4 + 0.1**4
    assert drawn[:, 2:].mean(0).tolist() == pytest.approx([p**4 / total for p in (0.5, 0.4, 0.1)], abs=0.02)
