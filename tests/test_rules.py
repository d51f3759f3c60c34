"""Rules between backward and step: equal to their formulas, and what they are for: a cliff."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import learn_toy as toy
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import everstep as es
from everstep.data.batches import TokenBatch
from everstep.errors import ConfigError, Diverged
from everstep.learn import FitSettings, Loss, fit
from everstep.learn.rules import (
    Rule,
    clip_by_global_norm,
    clip_by_value,
    global_norm,
    gradient_noise,
    gradients,
    scale_to_fixed_norm,
)

RULES: dict[str, Rule] = {
    "global norm": clip_by_global_norm(0.5),
    "fixed norm": scale_to_fixed_norm(0.5),
    "value": clip_by_value(0.5),
    "noise": gradient_noise(0.5),
}


def model_with(*gradients: Tensor) -> nn.ParameterList:
    """One parameter for each gradient, and one that has none."""
    model = nn.ParameterList([torch.zeros_like(g) for g in gradients])
    for parameter, gradient in zip(model, gradients, strict=True):
        parameter.grad = gradient.clone()
    model.append(nn.Parameter(torch.zeros(2)))
    return model


def after(rule: Rule, *given: Tensor, step: int = 0) -> list[Tensor]:
    model = model_with(*given)
    rule(model, step)
    assert model[-1].grad is None
    return [parameter.grad for parameter in list(model)[:-1]]


def drawn() -> list[Tensor]:
    return [10 * torch.randn(3, 2, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]


def length(parts: list[Tensor]) -> float:
    return math.sqrt(sum(float((part.double() ** 2).sum()) for part in parts))


def test_by_value_is_the_per_element_formula() -> None:
    given = [torch.randn(1000, dtype=torch.float64) * scale for scale in (0.01, 1, 1e6)]
    for bound in (0.1, 0.3, 7.0):
        for found, g in zip(after(clip_by_value(bound), *given), given, strict=True):
            torch.testing.assert_close(found, g * bound / g.abs().clamp_min(bound), rtol=1e-15, atol=0)
            assert float(found.abs().max()) <= bound
            assert torch.equal(found[g.abs() <= bound], g[g.abs() <= bound])


def test_by_value_never_exceeds_its_bound_where_the_formula_rounds_above() -> None:
    given = torch.randn(100_000) * 1e3
    bound = 0.1
    assert float((given * bound / given.abs().clamp_min(bound)).abs().max()) > np.float32(bound)
    (found,) = after(clip_by_value(bound), given)
    assert float(found.abs().max()) <= np.float32(bound)


def test_a_step_of_plain_descent_never_exceeds_rate_times_bound() -> None:
    cell = es.RNN(2, 3)
    before = [p.detach().clone() for p in cell.parameters()]
    (1e6 * cell(torch.randn(2, 5, 2))[0].sum()).backward()
    clip_by_value(0.25)(cell, 0)
    torch.optim.SGD(cell.parameters(), lr=0.5).step()
    moves = [float((p.detach() - b).abs().max()) for p, b in zip(cell.parameters(), before, strict=True)]
    assert 0.1 < max(moves) <= 0.125 + 1e-7


def test_fixed_norm_scales_up_and_down_and_leaves_zero() -> None:
    given = drawn()
    for target in (0.01, 1e4):
        found = after(scale_to_fixed_norm(target), *given)
        for new, old in zip(found, given, strict=True):
            torch.testing.assert_close(new, old * target / length(given))
    assert not any(part.any() for part in after(scale_to_fixed_norm(1.0), torch.zeros(3), torch.zeros(2, 2)))


def test_clipping_by_norm_is_its_formula() -> None:
    given = drawn()
    for target in (0.5 * length(given), 2 * length(given)):
        for new, old in zip(after(clip_by_global_norm(target), *given), given, strict=True):
            torch.testing.assert_close(new, old * min(1, target / length(given)))


def test_noise_has_its_variance_and_its_mean() -> None:
    zeros = torch.zeros(200_000, dtype=torch.float64)
    for step in (0, 9, 1000):
        for gamma in (0.55, 0.0):
            (found,) = after(gradient_noise(0.3, gamma), zeros, step=step)
            variance = 0.3 / (1 + step) ** gamma
            assert float(found.var()) == pytest.approx(variance, rel=0.02)
            assert abs(float(found.mean())) < 5 * math.sqrt(variance / len(zeros))


def test_noise_depends_on_seed_and_step_alone() -> None:
    given, rule = drawn(), gradient_noise(1.0, seed=3)
    first = after(rule, *given, step=5)
    before = torch.get_rng_state()
    torch.rand(7)
    moved = torch.get_rng_state()
    again = after(gradient_noise(1.0, seed=3), *given, step=5)
    assert torch.equal(torch.get_rng_state(), moved)
    assert not torch.equal(before, moved)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    noises = [first[0] - given[0]]
    for other, step in ((gradient_noise(1.0, seed=3), 6), (gradient_noise(1.0, seed=4), 5)):
        noises.append(after(other, *given, step=step)[0] - given[0])
    same_size = after(rule, torch.zeros(6), torch.zeros(6), step=5)
    assert not torch.equal(*same_size)  # two parameters have draws of their own
    assert len({tuple(noise.flatten().tolist()) for noise in noises}) == 3


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_rule_hides_what_is_not_finite(name: str, bad: float) -> None:
    found = after(RULES[name], torch.tensor([1.0, bad, 0.0]), torch.ones(2))
    assert not math.isfinite(float(global_norm(found)))
    assert not found[0][1].isfinite()


@pytest.mark.parametrize("name", ["global norm", "fixed norm"])
def test_a_norm_too_large_for_its_type_is_no_gradient_of_zero(name: str) -> None:
    (found,) = after(RULES[name], torch.full((4,), 1e30))
    assert not found.isfinite().any()


@pytest.mark.parametrize("name", RULES)
def test_sparse_gradients_are_as_dense_ones(name: str) -> None:
    tokens, weights = torch.tensor([1, 3, 1, 1]), torch.randn(4, 2)
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        embedding = nn.Embedding(5, 2, sparse=sparse)
        (embedding(tokens) * weights).sum().backward()
        RULES[name](embedding, 0)
        assert embedding.weight.grad.is_sparse is sparse
        found.append(embedding.weight.grad.to_dense())
    if name == "noise":  # only where there are entries
        assert found[1][[0, 2, 4]].any() == False  # noqa: E712
        assert found[1][[1, 3]].all()
    else:
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", RULES)
def test_a_model_without_gradients_is_left_alone(name: str) -> None:
    model = nn.Linear(2, 2)
    RULES[name](model, 0)
    assert gradients(model) == []


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: clip_by_value(0.0), "clip_by_value: max_value must be above 0, got 0.0"),
        (lambda: clip_by_value(math.nan), "clip_by_value: max_value"),
        (lambda: clip_by_global_norm(math.inf), "clip_by_global_norm: max_norm must be above 0, got inf"),
        (lambda: scale_to_fixed_norm(-1.0), "scale_to_fixed_norm: norm must be above 0, got -1.0"),
        (lambda: gradient_noise(0.0), "gradient_noise: eta must be above 0"),
        (lambda: gradient_noise(1.0, -0.1), "gradient_noise: gamma must be 0 or more, got -0.1"),
        (lambda: gradient_noise(1.0, seed=-1), "gradient_noise: seed must be 0 or more, got -1"),
    ],
)
def test_settings_that_cannot_be_used(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


# ------------------------------------------------------------------------------------------------------ the cliff task


class Adder(nn.Module):
    """h_t = U h_{t-1} + W x_t + b and y = v·h_T + c, with U = I at first: it grows as the 50th power of U."""

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.cell = es.RNN(1, 4, activation=nn.Identity())
        es.init_identity(self.cell)
        self.out = nn.Linear(4, 1)

    def forward(self, xs: Tensor) -> Tensor:
        return self.out(self.cell(xs)[0][:, -1])


class Sums:
    """Rows of 50 numbers; what is asked for is their sum, of variance 1."""

    batch_size, carries_state = 16, False

    def __init__(self, seed: int):
        self.seed = seed

    def __len__(self) -> int:
        return 1

    def batch(self, epoch: int, index: int) -> TokenBatch:
        generator = torch.Generator().manual_seed(1000 * self.seed + epoch)
        xs = torch.rand(16, 50, 1, generator=generator) * 2 - 1
        # one target a row: so that the mean is over rows
        return TokenBatch(xs, xs.sum(1) / (50 / 3) ** 0.5, torch.full((16,), 50), None, 49, 50)


def squared(model: nn.Module, batch: TokenBatch, state: Any) -> Iterator[Loss]:
    losses = (model(batch.inputs) - batch.targets)[:, 0] ** 2
    yield Loss(losses, losses.detach(), ())


REMEDIES = {
    "global norm": clip_by_global_norm(1.0),
    "per element, by value": clip_by_value(0.1),
    "fixed norm": scale_to_fixed_norm(1.0),
}


def fitted(seed: int, out: Path, *rules: Rule) -> float:
    """Mean squared error on new rows after plain gradient descent; a constant has 1."""
    model = Adder(seed)
    settings = FitSettings(
        optimizer="sgd",
        learning_rate=0.03,
        schedule="cosine",
        max_steps=400,
        checkpoint_every=1000,
        clip_norm=None,
        precision="float32",
    )
    fit(model, squared, Sums(seed), settings, out=out, rules=rules, seed=seed, log=lambda line: None)
    with torch.no_grad():
        (loss,) = squared(model, Sums(seed + 100).batch(0, 0), None)
    return float(loss.reported.mean())


@pytest.mark.parametrize("seed", range(5))
def test_cliff_unclipped_descent_is_thrown_away(seed: int, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="training diverged at step"):
        fitted(seed, tmp_path)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", REMEDIES)
def test_cliff_each_remedy_learns(name: str, seed: int, tmp_path: Path) -> None:
    assert fitted(seed, tmp_path, REMEDIES[name]) < 0.1


def test_noise_is_the_same_after_a_resume(tmp_path: Path) -> None:
    rules = [clip_by_value(0.05), gradient_noise(0.01)]
    toy.run(tmp_path / "whole", rules=rules, max_steps=12)
    toy.run(tmp_path / "parts", rules=rules, max_steps=5)
    toy.run(tmp_path / "parts", rules=rules, max_steps=12, resume=True)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    toy.run(tmp_path / "none", max_steps=12)
    assert whole == parts != (tmp_path / "none" / "model.safetensors").read_bytes()
