"""Echo state networks over streams that come in pieces, and over arrays that are no tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import everstep as es

F64 = torch.float64


def reservoir(inputs: int, units: int = 20, dtype: torch.dtype = F64) -> es.Reservoir:
    return es.Reservoir(inputs, units, leak=0.6, bias_scaling=0.2, seed=1, dtype=dtype)


def waves(steps: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    """A wave and what becomes of it, (1, steps, 1) and (1, steps, 2)."""
    t = torch.arange(steps, dtype=F64)
    wave = torch.sin(t / 4) + 0.6 * torch.sin(t / 4 * 2**0.5)
    return wave[None, :, None].to(dtype), torch.stack([wave.roll(2), wave**2], 1)[None].to(dtype)


# ------------------------------------------------------------------------------------------------- learning in pieces


@pytest.mark.parametrize("size", [1, 10, 64])
@pytest.mark.parametrize("forgetting", [1.0, 0.98])
@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-9), (torch.float32, 1e-2)])
def test_a_stream_in_pieces_is_the_whole(
    size: int, forgetting: float, feedback: bool, dtype: torch.dtype, tolerance: float
) -> None:
    xs, targets = waves(150, dtype)
    whole, pieces = (es.EchoState(reservoir(1 + 2 * feedback, dtype=dtype), 2, feedback=feedback) for _ in range(2))
    errors, end = whole.fit_online(xs, targets, ridge=0.01, forgetting=forgetting)
    found, state = [], None
    for x, y in zip(xs.split(size, 1), targets.split(size, 1), strict=True):
        part, state = pieces.fit_online(x, y, ridge=0.01, forgetting=forgetting, state=state)
        found.append(part)
    torch.testing.assert_close(torch.cat(found, 1), errors, rtol=0, atol=tolerance)
    torch.testing.assert_close(pieces.readout.weight, whole.readout.weight, rtol=0, atol=tolerance)
    if dtype == F64:
        torch.testing.assert_close(state, end, rtol=0, atol=1e-7)


def test_learning_goes_on_from_where_a_warm_up_ended() -> None:
    xs, targets = waves(120)
    warmed, plain = (es.EchoState(reservoir(1), 2) for _ in range(2))
    errors, (state, inverse) = warmed.fit_online(xs[:, 50:], targets[:, 50:], state=warmed.warm_up(xs[:, :50]))
    fresh, _ = plain.fit_online(xs[:, 50:], targets[:, 50:])
    assert not torch.allclose(errors, fresh)
    torch.testing.assert_close(state, warmed.warm_up(xs), rtol=0, atol=1e-12)
    assert inverse.shape == (1, 21, 21)
    hs = torch.cat([warmed.cell(xs)[0][0, 50:], torch.ones(70, 1, dtype=F64)], 1)
    torch.testing.assert_close(inverse[0], torch.linalg.inv(hs.t() @ hs + torch.eye(21, dtype=F64)), rtol=0, atol=1e-8)


def test_learning_goes_on_from_a_state_of_this_network_only() -> None:
    xs, targets = waves(20)
    _, learned = es.EchoState(reservoir(1), 2).fit_online(xs, targets)
    with pytest.raises(ValueError, match=r"inverse of shape \(1, 31, 31\), but it has \(1, 21, 21\)"):
        es.EchoState(reservoir(1, 30), 2).fit_online(xs, targets, state=learned)


# --------------------------------------------------------------------------------------------------- arrays of NumPy's


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_arrays_are_as_good_as_tensors(dtype: torch.dtype) -> None:
    def made(convert: Any) -> list[Tensor]:
        xs, targets = (convert(values) for values in waves(200))
        model = es.EchoState(reservoir(1, dtype=dtype), 2).fit(xs, targets, ridge=[1e-3, 1e-2])
        errors, _ = model.fit_online(xs, targets)
        own = es.EchoState(reservoir(1, dtype=dtype), 1).fit(xs[:, :-1], xs[:, 1:])
        taught = es.EchoState(reservoir(3, dtype=dtype), 2, feedback=True)
        return [
            *model.parameters(),
            errors,
            model.predict(xs),
            model.warm_up(xs),
            own.generate(3, xs),
            *taught.warm_up(xs, targets),
        ]

    arrays, tensors = made(np.asarray), made(lambda values: values.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(arrays, tensors, strict=True))


def test_lengths_may_be_an_array() -> None:
    xs, targets = waves(200)
    models = [
        es.EchoState(reservoir(1), 2).fit(xs.expand(2, -1, -1), targets.expand(2, -1, -1), lengths=lengths)
        for lengths in (np.array([200, 150]), torch.tensor([200, 150]))
    ]
    assert torch.equal(models[0].readout.weight, models[1].readout.weight)


def test_regressions_take_arrays() -> None:
    features, targets = (np.random.default_rng(0).normal(size=(30, k)) for k in (3, 2))
    solved, steps = [], []
    for convert in (np.asarray, torch.as_tensor, np.ndarray.tolist):
        regression, rls = es.Ridge(), es.RecursiveLeastSquares(3, 2)
        regression.add(convert(features), convert(targets))
        solved.append(regression.solve(0.1)[0])
        for h, y in zip(features, targets, strict=True):
            rls.update(convert(h), convert(y))
        steps.append(rls.weight)
    assert torch.equal(solved[0], solved[1])
    assert torch.equal(steps[0], steps[1])
    torch.testing.assert_close(solved[0].float(), solved[2].float())


@pytest.mark.parametrize("wrong", ["text", None, object(), np.array(["a"]), [[1.0], [2.0, 3.0]]])
def test_what_holds_no_numbers_is_said(wrong: Any) -> None:
    xs, targets = waves(200)
    with pytest.raises(TypeError, match=r"EchoState\.fit: xs should be a tensor or an array of numbers, but is"):
        es.EchoState(reservoir(1), 2).fit(wrong, targets)
    with pytest.raises(TypeError, match=r"EchoState\.predict: xs should be a tensor or an array of numbers, but is"):
        es.EchoState(reservoir(1), 2).predict(wrong)
    with pytest.raises(TypeError, match="Ridge: targets should be a tensor or an array of numbers, but is"):
        es.Ridge().add(xs[0], wrong)
