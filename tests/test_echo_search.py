"""The search for a reservoir: on series that it never saw, by hand on what it held out, and again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import everstep as es
from everstep.lab.synthetic import lorenz, mackey_glass

F64 = torch.float64


def series(name: str) -> Tensor:
    values = mackey_glass(2600)[:, None] if name == "mackey-glass" else lorenz(2600, discard=1000)
    return torch.as_tensor(values, dtype=F64)[None]


def error_after(model: es.EchoState, data: Tensor, steps: int) -> float:
    """NRMSE of running freely for that many steps, from places after all that was learned from."""
    places = range(1700, 2600 - steps, 50)
    made = model.generate(steps, torch.cat([data[:, place - 100 : place] for place in places]))[:, -1]
    wanted = torch.cat([data[:, place + steps - 1] for place in places])
    return float(((made - wanted).square() / data.flatten(0, 1).var(0)).mean().sqrt())


@pytest.mark.parametrize(("name", "steps", "bound"), [("mackey-glass", 84, 0.1), ("lorenz", 50, 0.01)])
def test_it_follows_chaos_where_the_defaults_do_not(name: str, steps: int, bound: float) -> None:
    data = series(name)  # as they are, not standardised
    xs, targets = data[:, :1500], data[:, 1:1501]
    found = es.EchoState.search(xs, targets, units=100, trials=16, seed=1)
    plain = es.EchoState(es.Reservoir(data.shape[2], 100, seed=1, dtype=F64), data.shape[2]).fit(xs, targets)
    assert error_after(found.model, data, steps) < bound
    assert not error_after(plain, data, steps) < 3 * bound
    assert found.error < bound


@pytest.mark.parametrize(("name", "steps", "bound"), [("mackey-glass", 84, 0.15), ("lorenz", 50, 0.1)])
def test_the_defaults_run_freely_over_standardised_series(name: str, steps: int, bound: float) -> None:
    data = series(name)
    data = (data - data.mean(1)) / data.std(1)
    xs, targets = data[:, :1500], data[:, 1:1501]
    for seed in range(3):
        model = es.EchoState(es.Reservoir(data.shape[2], 200, seed=seed, dtype=F64), data.shape[2]).fit(xs, targets)
        assert error_after(model, data, steps) < bound
        assert float(model.generate(1000, xs).abs().max()) < 1.5 * float(data.abs().max())


def test_more_trials_are_no_worse_on_what_was_held_out() -> None:
    data = series("mackey-glass")[:, :700]
    errors = [es.EchoState.search(data[:, :-1], data[:, 1:], units=20, trials=trials).error for trials in (1, 2, 8, 24)]
    assert errors[3] < 0.7 * errors[0]
    assert errors[1] <= errors[0]


def test_the_same_seed_finds_the_same() -> None:
    data = series("lorenz")[:, :600]
    first, again, other = (
        es.EchoState.search(data[:, :-1], data[:, 1:], units=20, trials=4, seed=seed) for seed in (3, 3, 4)
    )
    assert first.options == again.options != other.options
    assert first.error == again.error
    assert torch.equal(first.model.readout.weight, again.model.readout.weight)
    assert torch.equal(first.model.generate(5, data), again.model.generate(5, data))


@pytest.mark.parametrize("free", [0, 30])
def test_the_error_is_that_on_what_was_held_out(free: int) -> None:
    data = series("mackey-glass")[:, :501].repeat(2, 1, 1)
    data[1] = data[1].flip(0)
    xs, targets = data[:, :-1], data[:, 1:]
    found = es.EchoState.search(xs, targets, units=15, trials=3, free=free, washout=50, validation=0.2, seed=2)
    cut = 500 - 90
    cell = es.Reservoir(1, 15, seed=2, dtype=F64, **found.options)
    model = es.EchoState(cell, 1).fit(xs[:, :cut], targets[:, :cut], washout=50, ridge=found.model.ridge)
    if free:
        errors = [
            (model.generate(free, data[row : row + 1, place - 50 : place])[0] - data[row, place : place + free])
            for place in np.linspace(cut, 500 - free, 8).astype(int)
            for row in range(2)
        ]
    else:
        errors = list((model.predict(xs) - targets)[:, cut:])
    logs = [math.log(min(2.0, float((e.square() / targets.flatten(0, 1).var(0)).mean().sqrt()))) for e in errors]
    assert found.error == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-5)
    whole = es.EchoState(cell, 1).fit(xs, targets, washout=50, ridge=found.model.ridge)
    assert torch.equal(found.model.readout.weight, whole.readout.weight)


def test_it_searches_for_what_is_not_the_next_input() -> None:
    xs = 50 * torch.rand(1, 800, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    targets = xs.roll(2, 1) * xs.roll(3, 1)
    found = es.EchoState.search(xs, targets, units=40, trials=16)
    plain = es.EchoState(es.Reservoir(1, 40, seed=0, dtype=F64), 1).fit(xs[:, :660], targets[:, :660])
    wrong = (plain.predict(xs) - targets)[:, 660:].square().mean().sqrt() / targets.std()
    assert found.error < 0.7 * float(wrong)


def test_arrays_and_scales_of_each_input() -> None:
    data = series("lorenz")[:, :500] * torch.tensor([1.0, 100.0, 1e-3], dtype=F64)
    found = es.EchoState.search(data[:, :-1].numpy(), data[:, 1:].numpy(), units=15, trials=2)
    scales = np.array(found.options["input_scaling"])
    ratios = scales * data[0, :420].std(0).numpy()
    assert ratios == pytest.approx(ratios[0], rel=0.1)
    assert found.model.readout.weight.dtype == F64


WRONG: list[tuple[Any, str]] = [
    ({"trials": 0}, "trials ≥ 1"),
    ({"washout": 0}, "washout ≥ 1"),
    ({"validation": 1.0}, "0 < validation < 1"),
    ({"washout": 298}, "300 steps leave too few"),
    ({"free": 50}, "free=50 should be below the 40 steps held out"),
    ({"free": -1}, "free=-1 should be"),
    ({"targets": torch.zeros(1, 300, 1), "free": 5}, "which they are not"),
    ({"targets": torch.zeros(1, 299, 1)}, r"shapes \(1, 300, 1\) and \(1, 299, 1\)"),
    ({"targets": torch.full((1, 300, 1), math.nan)}, "targets should be finite, but nan is at row 0, step 0"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_it_refuses(options: Any, message: str) -> None:
    data = series("mackey-glass")[:, :301]
    given = {"xs": data[:, :-1], "targets": data[:, 1:], "units": 10, "trials": 1} | options
    with pytest.raises(ValueError, match=message):
        es.EchoState.search(**given)
