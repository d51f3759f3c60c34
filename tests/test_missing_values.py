"""GRU-D against its equations, and forecasts from windows with missing values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import everstep as es
from everstep.data.windows import WindowBatch
from everstep.errors import ConfigError
from everstep.networks.forecaster import Forecaster, window_losses
from everstep.networks.forecaster_section import ForecasterSection, WindowShape
from everstep.networks.window_values import since_seen
from everstep.runs.recipe_files import load_task

NAN = float("nan")


def test_the_equations_of_gru_d_value_by_value() -> None:
    torch.manual_seed(0)
    cell = es.GRUD(6, 4).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(torch.randn_like(parameter) / 3)
    x, delta = torch.randn(5, 2).double(), torch.rand(5, 2).double() * 3
    mask = torch.tensor([[1.0, 0], [0, 1], [0, 0], [1, 1], [0, 1]]).double()
    ys, (h, last) = cell(torch.cat([x, mask, delta], 1)[None])
    p = {name: parameter.detach().numpy() for name, parameter in cell.named_parameters()}
    (w, u, b), state, held = (p["weight_ih"], p["weight_hh"], p["bias_ih"]), np.zeros(4), np.zeros(2)
    for t in range(5):
        m, v, d = (part[t].numpy() for part in (mask, x, delta))
        fade = np.exp(-np.maximum(0, p["decay_x"] * d + p["decay_x_bias"]))
        state = np.exp(-np.maximum(0, p["decay_h"] @ d + p["decay_h_bias"])) * state
        seen = np.where(m == 1, v, fade * held + (1 - fade) * p["default"])
        both = np.concatenate([seen, m])
        r, z = (1 / (1 + np.exp(-(w[k] @ both + u[k] @ state + b[k]))) for k in (slice(0, 4), slice(4, 8)))
        n = np.tanh(w[8:] @ both + u[8:] @ (r * state) + b[8:])
        state, held = (1 - z) * state + z * n, np.where(m == 1, v, held)
        np.testing.assert_allclose(ys[0, t].detach().numpy(), state, atol=1e-12)
    np.testing.assert_allclose(last[0].detach().numpy(), held, atol=1e-12)
    torch.testing.assert_close(h[0], ys[0, -1])


def test_a_missing_value_is_not_read_and_its_size_is_checked() -> None:
    torch.manual_seed(1)
    cell, x = es.GRUD(3, 4), torch.randn(1, 6, 1)
    mask = torch.tensor([1.0, 0, 1, 0, 0, 1]).view(1, 6, 1)
    other = torch.where(mask > 0, x, 99.0)
    delta = since_seen(mask)
    torch.testing.assert_close(cell(torch.cat([x, mask, delta], 2))[0], cell(torch.cat([other, mask, delta], 2))[0])
    with pytest.raises(ValueError, match="GRUD: input_size should be a multiple of 3"):
        es.GRUD(4, 5)


def test_times_since_a_value_was_there() -> None:
    there = torch.tensor([[0.0, 1], [0, 1], [1, 0], [1, 0], [0, 1], [0, 0]])[None]
    assert since_seen(there)[0, :, 0].tolist() == [0, 1, 2, 1, 1, 2]
    assert since_seen(there)[0, :, 1].tolist() == [0, 1, 1, 2, 3, 1]


def shape() -> WindowShape:
    return WindowShape(window=12, horizon=5, segment=4, season=4, past=1, future=2, series=2, gaps=True)


@pytest.mark.parametrize("decode", ["direct", "parallel", "encoder-decoder", "recursive"])
def test_a_forecaster_of_gru_d_learns_and_never_reads_a_gap(decode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Forecaster(ForecasterSection(cell="GRUD", hidden_size=12, decode=decode, head="point"), shape())
    values = torch.rand(4, 12) * 10
    values[0, 3:5] = values[2, 9] = NAN
    target = torch.randint(9, (4, 5)).float()
    batch = WindowBatch(values, torch.randn(4, 12, 1), torch.randn(4, 17, 2), target, torch.tensor([0, 1, 0, 1]), 20)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    losses = []
    for _ in range(60):
        (loss,) = window_losses(model, batch)
        optimizer.zero_grad()
        loss.total.sum().backward()
        optimizer.step()
        losses.append(float(loss.reported.sum()))
    assert losses[-1] < losses[0] / 3
    assert all(parameter.grad is not None for parameter in model.body.parameters())
    seen: list[torch.Tensor] = []
    segments = model._segments
    monkeypatch.setattr(model, "_segments", lambda *given: (seen.append(segments(*given)), seen[-1])[1])
    model.eval()
    model(batch)
    inputs, masks, times = seen[0].view(4, 3, 3, 4, 4).unbind(2)  # segments of 4 steps of a value and 3 covariates
    assert masks[..., 0].reshape(4, 12)[0].tolist() == [1, 1, 1, 0, 0, *[1] * 7]
    assert (masks[..., 1:] == 1).all()
    assert times[0, :, 0, 0].tolist() == [0, 1, 2]  # missing at step 4, so last there at step 0
    assert inputs.isfinite().all()


def test_it_is_named_in_recipes_of_any_job(tmp_path: Path) -> None:
    rows = [f"{step},{'' if step % 5 == 3 else 10 + step % 4}" for step in range(80)]
    (tmp_path / "series.csv").write_text("\n".join(["ds,y", *rows]))
    path = tmp_path / "recipe.yaml"
    path.write_text(f"task: forecast\ndata:\n  train: {tmp_path / 'series.csv'}\ntrain:\n  max_epochs: 2\n")
    small = ["model.horizon=4", "model.window=8", "model.segment=2", "model.hidden_size=6", "model.cell=GRUD"]
    run = es.train(path, tmp_path / "run", lambda line: None, overrides=[*small, "train.threads=1"])
    assert np.isfinite(run.evaluate("test")["mse"])
    with pytest.raises(ConfigError, match=r"model\.layers: expected 1 beside a cell whose input is \[x; mask; delta\]"):
        load_task(path, [*small, "model.layers=2"])
