"""Softmaxes for large vocabularies against enumeration of small ones."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.heads import (
    NCE,
    AdaptiveSoftmax,
    BernoulliStop,
    BlackOut,
    Categorical,
    ClassSoftmax,
    Head,
    MixtureOfSoftmaxes,
    SampledSoftmax,
)
from everstep.heads.adaptive_softmax import cheapest_cutoffs, tail_sizes
from everstep.heads.alias_method import Proposal, alias_table
from everstep.heads.class_softmax import frequency_bins
from everstep.heads.head import VocabularyHead

D, K, N = 4, 7, 5
COUNTS = torch.tensor([50, 1, 0, 20, 9, 3, 3])
MAKE: dict[str, Any] = {
    "full": lambda **how: Categorical(D, K, **how),
    "adaptive": lambda **how: AdaptiveSoftmax(D, K, cutoffs=(2, 4), **how),
    "no tail": lambda **how: AdaptiveSoftmax(D, K, cutoffs=(), **how),
    "classes": lambda **how: ClassSoftmax(D, K, **how),
    "given classes": lambda **how: ClassSoftmax(D, K, groups=[2, 0, 1, 1, 0, 2, 2], **how),
    "stop": lambda **how: BernoulliStop(D, K, end=2, **how),
    "mixture": lambda **how: MixtureOfSoftmaxes(D, K, mixtures=3, **how),
    "sampled": lambda **how: SampledSoftmax(D, K, samples=3, **how),
    "nce": lambda **how: NCE(D, K, samples=3, **how),
    "blackout": lambda **how: BlackOut(D, K, samples=3, **how),
}
SAMPLING = ("sampled", "nce", "blackout")


def made(name: str, **how: Any) -> Any:
    """A head in float64, all of whose parameters differ, which knows the counts."""
    head = MAKE[name](**how).double()
    with torch.no_grad():
        head.counted(COUNTS)
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) / 2)
    return head


def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(N, D, dtype=torch.float64), torch.randint(K, (N,))


# ------------------------------------------------------------------------------------------------ what is measured


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_measured_is_what_is_predicted(name: str, tied: bool) -> None:
    weight = nn.Parameter(torch.randn(K, D)) if tied else None
    head = made(name, tied=weight)
    assert not tied or any(parameter is weight for parameter in head.parameters())
    ys, target = rows()
    log_p = head.predict(ys)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(N, dtype=log_p.dtype), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(head.nats(ys, target).to(log_p), -log_p[torch.arange(N), target], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in MAKE if name not in SAMPLING])
def test_gradients_are_those_of_the_prediction(name: str) -> None:
    head = made(name)
    ys, target = rows()
    ys.requires_grad_()
    given = [ys, *head.parameters()]
    head.train()
    found = torch.autograd.grad(head.objective(ys[None], target[None])[0].sum(), given, allow_unused=True)
    wanted = torch.autograd.grad(-head.predict(ys)[torch.arange(N), target].sum(), given, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        one = torch.zeros_like(other) if one is None else one
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)  # predictions are in float32


@pytest.mark.parametrize("name", MAKE)
def test_ignored_steps_are_as_if_they_were_not(name: str) -> None:
    head = made(name).eval()
    ys, target = torch.randn(2, 4, D, dtype=torch.float64, requires_grad=True), torch.randint(K, (2, 4))
    target[0, 1], target[1, 3] = -100, -100
    kept = head.loss(ys[:1, [0, 2, 3]], target[:1, [0, 2, 3]])
    torch.testing.assert_close(head.loss(ys, target)[:1], kept)
    torch.testing.assert_close(head.loss(ys, target)[1:], head.loss(ys[1:], target[1:], torch.tensor([3])))
    loss, nats = head.objective(ys, target, torch.tensor([4, 4]))
    torch.testing.assert_close(nats, head.loss(ys, target).detach(), check_dtype=False)
    loss.sum().backward()
    assert ys.grad is not None
    assert not ys.grad[0, 1].any()
    assert ys.grad[0, 0].any()


@pytest.mark.parametrize("name", MAKE)
def test_rows_without_a_target_can_be_learned_from(name: str) -> None:
    head = made(name).train()
    ys = torch.randn(2, 3, D, dtype=torch.float64, requires_grad=True)
    loss, nats = head.objective(ys, torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 0]))
    assert loss.tolist() == nats.tolist() == [0.0, 0.0]
    loss.sum().backward()


@pytest.mark.parametrize("name", SAMPLING)
def test_a_head_that_samples_is_measured_exactly(name: str) -> None:
    head = made(name)
    ys, target = rows()
    plain = F.cross_entropy(ys @ head.weight.T + head.bias, target, reduction="none")
    torch.testing.assert_close(head.nats(ys, target), plain)
    assert not torch.allclose(head.train().objective(ys[None], target[None])[0], plain.sum())
    torch.testing.assert_close(head.eval().objective(ys[None], target[None])[0], plain.sum()[None])


def test_heads_of_other_sizes_of_embedding() -> None:
    weight = nn.Parameter(torch.randn(K, 3))
    ys = torch.randn(N, D, dtype=torch.float64)
    for name in ("full", "stop", "classes", "mixture", *SAMPLING):
        assert made(name, tied=weight).predict(ys).shape == (N, K)
        with pytest.raises(ValueError, match=f"{K} rows, but has 6"):
            MAKE[name](tied=weight[:6])
    with pytest.raises(ValueError, match=r"tied weight should be \(7, 4\), but is \(7, 3\)"):
        MAKE["adaptive"](tied=weight)


# ------------------------------------------------------------------------------------------------ draws


@pytest.mark.parametrize("weights", [[1.0], [1, 1, 1], [0, 0, 5], [1e-9, 1, 1e9], [3, 1, 4, 1, 5, 9, 2, 6]])
def test_the_alias_table_has_the_distribution(weights: list[float]) -> None:
    kept, other = alias_table(np.array(weights, np.float64))
    found = np.bincount(other, 1 - kept, len(weights)) + kept
    np.testing.assert_allclose(found / len(weights), np.array(weights) / sum(weights), rtol=1e-9, atol=1e-12)


def test_the_alias_table_of_many() -> None:
    weights = np.random.default_rng(1).permutation(1 / np.arange(1.0, 20001.0))
    kept, other = alias_table(weights)
    assert kept.min() >= 0
    assert kept.max() <= 1
    found = np.bincount(other, 1 - kept, len(weights)) + kept
    np.testing.assert_allclose(found / len(weights), weights / weights.sum(), atol=1e-12)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [-1.0, 2.0], [math.inf, 1.0], [math.nan, 1.0]])
def test_weights_that_are_none_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="finite weights"):
        alias_table(np.array(weights))


def test_draws_follow_the_proposal() -> None:
    proposal = Proposal(K, 0.5)
    proposal.counted(COUNTS)
    wanted = COUNTS.clamp_min(1).sqrt() / COUNTS.clamp_min(1).sqrt().sum()
    torch.testing.assert_close(proposal.log_q.exp(), wanted)
    found = torch.bincount(proposal.sample(200_000), minlength=K) / 200_000
    assert (found - wanted).abs().max() < 0.005
    with pytest.raises(ValueError, match="7 counts"):
        proposal.counted(COUNTS[1:])
    with pytest.raises(ValueError, match="0 or more"):
        proposal.counted(-COUNTS)
    with pytest.raises(ValueError, match=r"power within \[0, 1\]"):
        Proposal(K, 2.0)


# ------------------------------------------------------------------------------------------------ sampled losses


def expected(head: Any, ys: Tensor, target: Tensor, k: int) -> list[Tensor]:
    """The gradients of y, W and b, averaged over all draws of k classes with their probability."""
    head.samples = k
    given = [ys.requires_grad_(), head.weight, head.bias]
    found = [torch.zeros_like(one) for one in given]
    q = head.proposal.log_q.double().exp()
    for draw in product(range(K), repeat=k):
        drawn = torch.tensor(draw)
        head.proposal.sample = lambda number, drawn=drawn: drawn
        gradients = torch.autograd.grad(head.learned(ys, target)[0].sum(), given)
        for one, other in zip(found, gradients, strict=True):
            one += q[drawn].prod() * other
    return found


def full(head: Any, ys: Tensor, target: Tensor) -> list[Tensor]:
    """Those of −log p."""
    given = [ys.requires_grad_(), head.weight, head.bias]
    return [*torch.autograd.grad(head.nats(ys, target).sum(), given)]


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    both = zip(found, wanted, strict=True)
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in both) / sum(float(b.square().sum()) for b in wanted))


def test_noise_contrastive_gradients_are_unbiased() -> None:
    head = made("nce")
    ys, target = rows()
    for k in (1, 2):
        found = expected(head, ys, target, k)
        scores = ys @ head.weight.T + head.bias
        delta = scores - head.proposal.log_q.double() - math.log(k)
        of_noise = k * (head.proposal.log_q.double().exp() * F.softplus(delta)).sum(1)
        loss = (F.softplus(-delta[torch.arange(N), target]) + of_noise).sum()
        wanted = torch.autograd.grad(loss, [ys, head.weight, head.bias])
        assert distance(found, [*wanted]) < 1e-6


def test_the_bias_of_the_sampled_softmax_falls_with_the_number_of_samples() -> None:
    head = made("sampled")
    ys, target = rows()
    wanted = full(head, ys, target)
    biases = [distance(expected(head, ys, target, k), wanted) for k in (1, 2, 4)]
    assert biases[0] > biases[1] > biases[2]
    assert biases[2] < 0.7 * biases[0]


def test_the_estimated_normaliser_is_unbiased() -> None:
    head = made("sampled")
    ys, target = rows()
    q, total = head.proposal.log_q.double().exp(), torch.zeros(N, dtype=torch.float64)
    for draw in product(range(K), repeat=2):
        head.samples, drawn = 2, torch.tensor(draw)
        head.proposal.sample = lambda number, drawn=drawn: drawn
        total += q[drawn].prod() * head.drawn(ys, target).log_z().exp().detach()
    torch.testing.assert_close(total, head.logits(ys).exp().sum(1).detach(), rtol=1e-5, atol=1e-6)


def test_blackout_is_its_formula() -> None:
    head = made("blackout")
    ys, target = rows()
    drawn = torch.tensor([0, int(target[0]), 3])
    head.proposal.sample = lambda number: drawn
    found = head.learned(ys, target)[0].detach()
    scores, q = (ys @ head.weight.T + head.bias).detach(), head.proposal.log_q.double().exp()
    for row in range(N):
        weights = {j: math.exp(scores[row, j]) / float(q[j]) for j in range(K)}
        y = int(target[row])
        others = [j for j in drawn.tolist() if j != y]
        total = weights[y] + sum(weights[j] for j in others)
        want = -math.log(weights[y] / total) - sum(math.log(1 - weights[j] / total) for j in others)
        assert found[row].item() == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(("name", "nats"), [("sampled", 0.01), ("nce", 0.01), ("blackout", 0.1)])
def test_they_learn_the_distribution_of_the_data(name: str, nats: float) -> None:
    """Without inputs, the scores should become log p of the data; NCE's without normalisation. BlackOut's do not."""
    torch.manual_seed(0)
    wanted = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.02])
    head = {"sampled": SampledSoftmax, "nce": NCE, "blackout": BlackOut}[name](1, K, samples=40, power=0.5)
    head.counted((1000 * wanted).long())
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias += torch.randn(K) / 2
    optimizer = torch.optim.Adam([head.bias], 0.05)
    ys = torch.zeros(1, 1000, 1)
    for step in range(150):
        if step == 100:
            optimizer.param_groups[0]["lr"] = 0.01
        target = torch.multinomial(wanted, 1000, replacement=True)[None]
        optimizer.zero_grad()
        (head.objective(ys, target)[0].sum() / 1000).backward()
        optimizer.step()
    p = head.predict(torch.zeros(1, 1))[0].detach().exp()
    distance = float((wanted * (wanted / p).log()).sum())  # Kullback-Leibler
    assert distance < nats
    if name == "blackout":  # its bias, for as many draws as there are words: frequent words come too often
        assert distance > 0.03
        assert p[0] > wanted[0] + 0.1
    if isinstance(head, NCE):
        assert head.log_z(torch.zeros(1, 1)).abs().item() < 0.1


@pytest.mark.parametrize("name", ["classes", *SAMPLING])
@pytest.mark.parametrize("tied", [False, True])
def test_sparse_gradients_are_the_dense_ones(name: str, tied: bool) -> None:
    found = []
    for sparse in (False, True):
        torch.manual_seed(3)
        head = made(name, sparse=sparse, tied=nn.Parameter(torch.randn(K, D)) if tied else None)
        ys, target = rows()
        torch.manual_seed(4)
        head.objective(ys[None], target[None])[0].sum().backward()
        assert head.weight.grad.is_sparse == sparse
        found.append(head.weight.grad.to_dense())
    torch.testing.assert_close(*found)


# ------------------------------------------------------------------------------------------------ who is where


def test_counts_decide_heads_tails_and_groups() -> None:
    head = AdaptiveSoftmax(D, K, cutoffs=(2, 4))
    head.counted(COUNTS)
    assert head.rank.tolist() == [0, 5, 6, 1, 2, 3, 4]
    assert frequency_bins(COUNTS, 1).tolist() == [0] * K
    assert sorted(frequency_bins(COUNTS, K).tolist()) == list(range(K))
    groups = frequency_bins(COUNTS, 3)
    roots = COUNTS.double().sqrt()
    assert [round(float(roots[groups == group].sum()), 1) for group in range(3)] == [7.1, 7.5, 4.5]
    given = MAKE["given classes"]()
    given.counted(COUNTS)
    assert given.group.tolist() == [2, 0, 1, 1, 0, 2, 2]
    for kind in (AdaptiveSoftmax, ClassSoftmax, NCE):
        with pytest.raises(ValueError, match="7 counts"):
            kind(D, K).counted(COUNTS[:3])


def test_cutoffs_are_the_cheapest_of_all() -> None:
    classes, features = 300, 64
    p = 1 / np.arange(1, classes + 1)
    p /= p.sum()

    def cost(cuts: tuple[int, ...]) -> float:
        ends = [*cuts, classes]
        found = (ends[0] + len(cuts)) * (features + 32)
        for size, start, end in zip(tail_sizes(features, len(cuts), 4), ends, ends[1:], strict=False):
            found += p[start:end].sum() * ((end - start) * (size + 32) + features * size)
        return float(found)

    tried = [(), *((a,) for a in range(1, 300))]
    tried += [(a, b) for a in range(1, 299, 3) for b in range(a + 1, 300, 3)]
    best = min(tried, key=cost)
    assert cost(cheapest_cutoffs(classes, features)) < 1.03 * cost(best)
    assert cheapest_cutoffs(1, 8) == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptiveSoftmax(D, K, cutoffs=(3, 3)), r"rising cut-offs within 1 … 6, got \[3, 3\]"),
        (lambda: AdaptiveSoftmax(D, K, cutoffs=(7,)), "rising cut-offs within"),
        (lambda: AdaptiveSoftmax(D, K, divisor=0.5), "divisor of at least 1, got 0.5"),
        (lambda: ClassSoftmax(D, K, groups=8), "1 to 7 groups.*got 8"),
        (lambda: ClassSoftmax(D, K, groups=[0, 1]), "the group of each of 7 classes, got 2"),
        (lambda: ClassSoftmax(D, K, groups=[0, 0, 0, 2, 2, 2, 2]), "one is missing"),
        (lambda: BernoulliStop(D, K, end=7), "an end among 2 or more classes, got 7 of 7"),
        (lambda: MixtureOfSoftmaxes(D, K, mixtures=0), "at least one softmax, got 0"),
        (lambda: NCE(D, K, samples=0), "at least one sample, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_base_class_of_vocabularies_is_no_head() -> None:
    with pytest.raises(NotImplementedError, match="VocabularyHead has no predict"):
        VocabularyHead().nats(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64))
    assert issubclass(VocabularyHead, Head)


@pytest.mark.parametrize("tied", [None, torch.zeros(K, D)])
def test_an_adaptive_softmax_begins_with_the_frequencies(tied: Tensor | None) -> None:
    for cutoffs in ((2, 4), ()):
        head = AdaptiveSoftmax(D, K, cutoffs=cutoffs, tied=tied)
        head.counted(COUNTS)
        often = COUNTS.clamp_min(1) / COUNTS.clamp_min(1).sum()
        torch.testing.assert_close(head.predict(torch.zeros(1, D)).exp()[0], often)
