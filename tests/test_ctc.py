"""Labels without times: the head, its paths, the search with language models, and error rates, beside brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import everstep as es
from everstep.decode import Decoder
from everstep.decode.fusion import TokenFusion, WordFusion
from everstep.decode.paths import alignment, best_path
from everstep.decode.prefix_beam import Bonus, prefix_beam
from everstep.heads.ctc import ctc_nats, steps_needed
from everstep.heads.head import IGNORED
from everstep.measures.edit_distance import edit_distance, error_rates

Spelling = tuple[int, ...]
SIZES = [(2, 4), (3, 4), (1, 3), (2, 1)]


def drawn(labels: int, steps: int, seed: int = 0) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.log(np.random.default_rng(seed).dirichlet(np.full(labels + 1, 0.5), steps))
    return found


def spelled(path: Sequence[int], blank: int) -> Spelling:
    return tuple(label for label, _ in itertools.groupby(path) if label != blank)


def enumerated(log_p: NDArray[np.float64]) -> tuple[dict[Spelling, float], dict[Spelling, float]]:
    """log p of every text over all its paths, and that of its best path."""
    steps, classes = log_p.shape
    total, best = dict[Spelling, float](), dict[Spelling, float]()
    for path in itertools.product(range(classes), repeat=steps):
        text, p = spelled(path, classes - 1), float(sum(log_p[t, k] for t, k in enumerate(path)))
        total[text] = np.logaddexp(total.get(text, -np.inf), p)
        best[text] = max(best.get(text, -np.inf), p)
    return total, best


def padded(texts: Sequence[Spelling]) -> Tensor:
    width = max(1, *map(len, texts))
    return torch.tensor([[*text, *[IGNORED] * (width - len(text))] for text in texts])


# ------------------------------------------------------------------------------------------------------------ the head


@pytest.mark.parametrize(("labels", "steps"), SIZES)
def test_the_loss_sums_over_all_paths(labels: int, steps: int) -> None:
    log_p = drawn(labels, steps)
    total, _ = enumerated(log_p)
    every = [text for size in range(steps + 2) for text in itertools.product(range(labels), repeat=size)]
    nats = ctc_nats(torch.from_numpy(log_p).expand(len(every), -1, -1), padded(every))
    for text, found in zip(every, nats.tolist(), strict=True):
        assert found == pytest.approx(-total.get(text, -math.inf), abs=1e-10), text
    assert sum(math.exp(-found) for found in nats.tolist()) == pytest.approx(1)


def test_padded_equals_alone_and_no_steps_are_legal() -> None:
    torch.manual_seed(0)
    head, ys = es.CTC(5, 3), torch.randn(5, 6, 5)
    target, lengths = padded([(0, 1), (2,), (), (1, 1), (0,)]), torch.tensor([6, 3, 0, 2, 0])
    together = head.loss(ys, target, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = head.loss(ys[row : row + 1, :length], target[row : row + 1])
        assert together[row].item() == pytest.approx(alone.item(), abs=1e-5)
    assert together[2] == 0
    assert together[3:].tolist() == [math.inf, math.inf]
    assert steps_needed(target).tolist() == [2, 1, 0, 3, 1]


def test_gradients_are_right_and_none_flows_where_there_are_too_few_steps() -> None:
    torch.manual_seed(0)
    head = es.CTC(4, 3).double()
    target, lengths = padded([(0, 1), (2, 2), ()]), torch.tensor([5, 4, 3])
    ys = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda ys, *_: head.loss(ys, target, lengths), (ys, *head.parameters()))
    head.loss(ys, target, torch.tensor([5, 2, 3]))[[0, 2]].sum().backward()
    short = torch.autograd.grad(head.loss(ys, target, torch.tensor([5, 2, 3])).sum(), ys)[0]
    assert short[1].abs().sum() == 0
    assert short[0].abs().sum() > 0


def test_it_learns_when_labels_come_without_being_told() -> None:
    torch.manual_seed(0)
    target, lengths = torch.tensor([[0, 1, 1], [2, 0, IGNORED]]), torch.tensor([9, 7])
    xs, cell, head = torch.randn(2, 9, 8), es.GRU(8, 16), es.CTC(16, 3)
    optimizer = torch.optim.Adam([*cell.parameters(), *head.parameters()], 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        loss = head.loss(cell(xs, lengths=lengths)[0], target, lengths).sum()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    rows = head.predict(cell(xs, lengths=lengths)[0]).detach().numpy()
    assert [best_path(row[:length]) for row, length in zip(rows, (9, 7), strict=True)] == [[0, 1, 1], [2, 0]]


# --------------------------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize(("labels", "steps"), SIZES)
def test_paths_and_full_beams_are_exact(labels: int, steps: int) -> None:
    log_p = drawn(labels, steps, 1)
    total, best = enumerated(log_p)
    found = prefix_beam(log_p, 10_000, n_best=10_000)
    assert {tuple(one.labels) for one in found} == total.keys()
    for one in found:
        assert one.log_p == pytest.approx(total[tuple(one.labels)], abs=1e-10)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert best[tuple(best_path(log_p))] == pytest.approx(log_p.max(1).sum())
    for text, p in best.items():
        path = np.full(steps, labels)
        for one in alignment(log_p, list(text)):
            path[one.start : one.stop] = one.label
        assert spelled(path, labels) == text
        assert log_p[np.arange(steps), path].sum() == pytest.approx(p)


def test_no_steps_and_too_few() -> None:
    none = np.zeros((0, 3))
    assert best_path(none) == []
    assert alignment(none, []) == []
    assert [one.labels for one in prefix_beam(none, 4)] == [[]]
    assert [one.labels for one in alignment(drawn(2, 3), [])] == []
    with pytest.raises(ValueError, match="2 steps cannot spell 2 labels"):
        alignment(drawn(2, 2), [1, 1])


def test_a_narrow_beam_finds_what_the_best_path_misses() -> None:
    log_p = np.log(np.array([[0.4, 0.6], [0.4, 0.6]]))  # blank twice: 0.36; the label: 0.64
    assert best_path(log_p) == []
    assert prefix_beam(log_p, 2)[0].labels == [0]
    assert prefix_beam(log_p, 2, Bonus(1, -2.0))[0].labels == []


def bigrams(size: int, seed: int = 2) -> tuple[Decoder, Tensor]:
    """A language model of pairs of tokens, of which 0 begins and ends: log p (size, size)."""
    log_p = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(size), size)).log()

    def step(tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        return log_p[tokens], (tokens.clone(),)

    return Decoder(step, (torch.zeros(1, dtype=torch.int64),), torch.tensor([0]), 0), log_p


@pytest.mark.parametrize("rows", [1, 3])
def test_the_language_model_and_the_bonus_add_up(rows: int) -> None:
    log_p, (decoder, pairs) = drawn(3, 4, 3), bigrams(4)
    total, _ = enumerated(log_p)
    tokens, alpha, beta = [2, 1, 3], 0.7, 0.3
    found = prefix_beam(log_p, 10_000, TokenFusion(decoder, tokens, alpha, beta, rows), 10_000)
    assert len(found) == len(total)
    for one in found:
        read = [0, *(tokens[label] for label in one.labels), 0]
        said = sum(float(pairs[a, b]) for a, b in itertools.pairwise(read))
        expected = total[tuple(one.labels)] + alpha * said + beta * len(one.labels)
        assert one.score == pytest.approx(expected, abs=1e-9)
    assert prefix_beam(log_p, 6, TokenFusion(decoder, tokens, 3.0, beta, rows))[0].labels != found[-1].labels


def test_words_count_when_they_end() -> None:
    log_p, (decoder, pairs) = drawn(3, 5, 4), bigrams(4)
    words = {"a": 1, "ab": 2, "b": 3}
    fusion = WordFusion(decoder, ["a", "b", " "], words.get, 0.8, 0.5, 4)
    found = prefix_beam(log_p, 10_000, fusion, 10_000)
    total, _ = enumerated(log_p)
    known = 0
    for one in found:
        said = "".join("ab "[label] for label in one.labels).split()
        if not all(word in words for word in said):
            assert one.score == -math.inf
            continue
        known += 1
        read = [0, *(words[word] for word in said)]
        nats = sum(float(pairs[a, b]) for a, b in itertools.pairwise(read))
        assert one.score == pytest.approx(total[tuple(one.labels)] + 0.8 * nats + 0.5 * len(said), abs=1e-9)
    assert known > 5


# ------------------------------------------------------------------------------------------------------- error rates


def test_distances_of_random_sequences() -> None:
    random = np.random.default_rng(0)

    def slow(a: list[int], b: list[int]) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b) + 1, slow(a, b[1:]) + 1, slow(a[1:], b[1:]) + (a[0] != b[0]))

    for _ in range(40):
        one, other = (random.integers(0, 3, random.integers(0, 6)).tolist() for _ in range(2))
        assert edit_distance(one, other) == slow(one, other)


@pytest.mark.parametrize(
    ("reference", "found", "wer", "cer"),
    [  # the published examples of jiwer's tests, of "From WER and RIL to MER and WIL" (Morris 2004) among them
        ("This is a test", "This is a test", 0, 0),
        ("This is a test", "", 1, 1),
        ("This is a test", "This test", 0.5, 5 / 14),
        ("i am a short ground truth", "i am a considerably longer and very much incorrect hypothesis", 7 / 6, None),
        ("X", "X X Y Y", 3, 6),
        ("X Y X", "X Z", 2 / 3, 3 / 5),
        ("X", "Y Z", 2, 3),
    ],
)
def test_published_error_rates(reference: str, found: str, wer: float, cer: float | None) -> None:
    rates = error_rates([(reference, found)])
    assert rates.wer == pytest.approx(wer)
    assert cer is None or rates.cer == pytest.approx(cer)
    assert rates.sentence_accuracy == (wer == 0)


def test_rates_are_of_all_texts_together() -> None:
    rates = error_rates([("i", "i am"), ("am i good", "y good")])
    assert rates.cer == pytest.approx(0.7)
    assert error_rates([("", "")]) == (0, 0, 1)
    assert error_rates([("", "noise")]).wer == 1
