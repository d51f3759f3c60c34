"""What holds for every exported head that says what its targets are (`Head.targets`), by itself."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import everstep as es
from everstep import heads

D, K = 4, 3
EXPORTED = {name: kind for name in es.__all__ if isinstance(kind := getattr(heads, name, None), type)}
HEADS = [name for name, kind in EXPORTED.items() if issubclass(kind, heads.Head) and kind.targets is not None]
LENGTHS = torch.tensor([3, 0, 2, 1])
OPTIONS: dict[str, dict[str, Any]] = {
    "AdaptiveSoftmax": {"cutoffs": (1, 2)},
    "ClassSoftmax": {"groups": [0, 1, 0]},
    "SampledSoftmax": {"samples": 4},
    "NCE": {"samples": 4},
    "BlackOut": {"samples": 4},
}
"""Of those whose defaults are for large vocabularies."""


def made(name: str) -> Any:
    """A head whose parameters are all different."""
    head = EXPORTED[name](D, K, **OPTIONS.get(name, {}))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) / 2)
    return head


def given(name: str, rows: int = 4, time: int = 3) -> tuple[Any, Tensor, Tensor]:
    """A head, outputs and targets."""
    head = made(name)
    target = torch.randint(K, (rows, time)) if head.targets == "class" else torch.randint(2, (rows, time, K))
    return head, torch.randn(rows, time, D, requires_grad=True), target


def test_heads_join_by_themselves() -> None:
    assert {"Bernoulli", "Categorical", "CRF", "Cumulative"} <= {*HEADS}
    assert {"AdaptiveSoftmax", "ClassSoftmax", "MixtureOfSoftmaxes", "SampledSoftmax", "NCE", "BlackOut"} <= {*HEADS}


@pytest.mark.parametrize("name", HEADS)
def test_probabilities_of_all_targets_add_up_to_one(name: str) -> None:
    head, _, _ = given(name)
    steps = list(range(K)) if head.targets == "class" else list(product((0, 1), repeat=K))
    targets = torch.tensor(list(product(steps, repeat=2)))
    ys = torch.randn(1, 2, D).expand(len(targets), 2, D)
    with torch.no_grad():
        assert head.loss(ys, targets).neg().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_padded_equals_alone(name: str) -> None:
    head, ys, target = given(name)
    together, predicted = head.loss(ys, target, LENGTHS), head.predict(ys, LENGTHS)
    together.sum().backward()
    assert ys.grad is not None
    assert together.shape == (4,)
    assert predicted.shape[:2] == (4, 3)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = ys[row : row + 1, :length], target[row : row + 1, :length]
        torch.testing.assert_close(together[row], head.loss(*alone)[0] if length else torch.zeros(()))
        assert not ys.grad[row, length:].any()
        if length:
            assert ys.grad[row, :length].any()
            torch.testing.assert_close(predicted[row, :length], head.predict(alone[0])[0])


@pytest.mark.parametrize("name", HEADS)
def test_permuting_rows_commutes(name: str) -> None:
    head, ys, target = given(name)
    order = torch.tensor([2, 0, 3, 1])
    for found, want in (
        (head.loss(ys[order], target[order], LENGTHS[order]), head.loss(ys, target, LENGTHS)[order]),
        (head.predict(ys[order], LENGTHS[order]), head.predict(ys, LENGTHS)[order]),
    ):
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("name", HEADS)
def test_learns_its_targets(name: str) -> None:
    head, ys, target = given(name)
    optimizer = torch.optim.Adam([*head.parameters(), ys], 0.2)
    losses = []
    for _ in range(40):
        loss = head.loss(ys, target, LENGTHS).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize("name", HEADS)
def test_saved_and_loaded_gives_the_same_bits(name: str) -> None:
    head, ys, target = given(name)
    other = EXPORTED[name](D, K, **OPTIONS.get(name, {}))
    other.load_state_dict(head.state_dict())
    assert torch.equal(head.loss(ys, target, LENGTHS), other.loss(ys, target, LENGTHS))
