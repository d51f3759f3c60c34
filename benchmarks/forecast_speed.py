"""Windows per second of training an LSTM forecaster, beside neuralforecast, gluonts and a plain loop of nn.LSTM.

    python benchmarks/forecast_speed.py [--json FILE] [--rounds N] [--steps N] [--threads N]

All read a week of hourly values (168) of the bundled rides and predict a day (24), with one layer of 64 units, 128
windows a step, on the same number of threads, in turns:

- everstep: what `everstep train` does for each step; an LSTM over all 168 steps, normalised by the window, which it
  reads as they are, a linear map from the last output to the day, the absolute error. Once more with a linear map to 64
  numbers before the cells (the default), and as `forecast-minute` reads it, a day at once.
- nn.LSTM: what tutorials show; a `Dataset` of windows, a `DataLoader` that shuffles, the same network and loss,
  normalised likewise, clipped gradients, `torch.optim.AdamW`.
- neuralforecast: its `LSTM`, with a decoder of one layer, scaled by the window, the absolute error.
- gluonts: its `DeepAREstimator`, which predicts step by step, in training also those of the window (168 + 24).

A package that is not installed is left out, and said so. Times of the two packages are those between ends of steps of
their own trainers, so that their set-up does not count.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from everstep.learn.learner import Learner
from everstep.native.processor import name as cpu_name
from everstep.runs.recipe_files import load_task

WINDOW, HORIZON, UNITS, BATCH = 168, 24, 64, 128
WARM = 5
"""Steps of a turn that do not count."""
LIKE = [
    "model.cell=LSTM", f"model.hidden_size={UNITS}", f"model.window={WINDOW}", f"model.horizon={HORIZON}",
    "model.head=point", "model.error=mae", "data.calendar=false", f"train.batch_size={BATCH}",
]  # fmt: skip
Turn = Callable[[int], list[float]]
"""From a number of steps to the seconds of each."""


def timed(step: Callable[[], object]) -> Turn:
    """Times each call of `step`."""

    def turn(steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            start = time.perf_counter()
            step()
            found.append(time.perf_counter() - start)
        return found

    return turn


def ours(*options: str) -> Turn:
    """Steps of `fit`."""
    torch.manual_seed(1)
    task: Any = load_task("forecast-minute", [*LIKE, *options])
    task.prepare()
    model = task.model().train()
    return timed(Learner(model, task.objective, task.batches("train", model, "learn"), task.recipe.train).step)


def series() -> dict[str, np.ndarray[Any, Any]]:
    """The training values of each station."""
    task: Any = load_task("forecast-minute", LIKE)
    panel, end = task.series.panel, task.series.part("train").end
    return {name: panel.values(place)[: end[place]].astype(np.float32) for place, name in enumerate(panel.ids)}


class WindowsOf(Dataset[tuple[Tensor, Tensor]]):
    """The windows of all series, at stride 1."""

    def __init__(self, values: dict[str, np.ndarray[Any, Any]]):
        self.values = [torch.from_numpy(np.nan_to_num(one)) for one in values.values()]
        self.at = [(k, t) for k, one in enumerate(self.values) for t in range(len(one) - WINDOW - HORIZON + 1)]

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        one, begin = self.at[index]
        whole = self.values[one][begin : begin + WINDOW + HORIZON]
        return whole[:WINDOW], whole[WINDOW:]


class Plain(nn.Module):
    """An LSTM over the window, and a linear map to the horizon."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(1, UNITS, batch_first=True), nn.Linear(UNITS, HORIZON)

    def forward(self, window: Tensor) -> Tensor:
        level, spread = window[:, -1:], window.std(1, keepdim=True).clamp_min(1e-5)
        ys, _ = self.rnn(((window - level) / spread)[..., None])
        return self.head(ys[:, -1]) * spread + level


def plain() -> Turn:
    """Steps of the plain loop."""
    torch.manual_seed(1)
    model = Plain().train()
    optimizer = torch.optim.AdamW(model.parameters(), 0.003, weight_decay=0.0)
    loader = DataLoader(WindowsOf(series()), BATCH, shuffle=True)

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    batches = endless()

    def step() -> None:
        window, target = next(batches)
        loss = (model(window) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return timed(step)


def watched(base: type, ends: list[float]) -> Any:
    """A callback of a trainer that notes the end of each step."""

    def on_train_batch_end(self: Any, *args: Any, **named: Any) -> None:
        ends.append(time.perf_counter())

    return type("Ends", (base,), {"on_train_batch_end": on_train_batch_end})()


QUIET: dict[str, Any] = {
    "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


def frame() -> Any:
    """The training values as a long table of pandas."""
    import pandas as pd

    parts = [
        pd.DataFrame({"unique_id": name, "ds": pd.date_range("2024-01-01", periods=len(one), freq="h"), "y": one})
        for name, one in series().items()
    ]
    return pd.concat(parts, ignore_index=True).ffill()


def neuralforecast() -> Turn:
    """Steps of its trainer."""
    import pytorch_lightning
    from neuralforecast import NeuralForecast
    from neuralforecast.losses.pytorch import MAE
    from neuralforecast.models import LSTM

    table = frame()

    def turn(steps: int) -> list[float]:
        ends: list[float] = []
        model = LSTM(
            h=HORIZON, input_size=WINDOW, encoder_n_layers=1, encoder_hidden_size=UNITS, decoder_layers=1,
            decoder_hidden_size=UNITS, loss=MAE(), max_steps=steps + 1, windows_batch_size=BATCH, batch_size=12,
            scaler_type="standard", val_check_steps=10**6, callbacks=[watched(pytorch_lightning.Callback, ends)],
            enable_checkpointing=False, **QUIET,
        )  # fmt: skip
        NeuralForecast(models=[model], freq="h").fit(table)
        return np.diff(ends).tolist()

    return turn


def gluonts() -> Turn:
    """Steps of its trainer."""
    import pandas as pd
    from gluonts.dataset.common import ListDataset
    from gluonts.torch.model.deepar import DeepAREstimator
    from lightning.pytorch import Callback

    start = pd.Period("2024-01-01", freq="h")
    data = ListDataset([{"start": start, "target": np.nan_to_num(one)} for one in series().values()], freq="h")

    def turn(steps: int) -> list[float]:
        ends: list[float] = []
        with tempfile.TemporaryDirectory() as folder:  # of its checkpoints
            trainer = {**QUIET, "max_epochs": 1, "callbacks": [watched(Callback, ends)], "default_root_dir": folder}
            DeepAREstimator(
                freq="h", prediction_length=HORIZON, context_length=WINDOW, num_layers=1, hidden_size=UNITS,
                dropout_rate=0.0, lags_seq=[1], batch_size=BATCH, num_batches_per_epoch=steps + 1,
                trainer_kwargs=trainer,
            ).train(data)  # fmt: skip
        return np.diff(ends).tolist()

    return turn


def report(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Figures as JSON takes them."""
    base = statistics.median(seconds["everstep"])
    ways = {
        name: {
            "median_ms": 1000 * statistics.median(found),
            "windows_per_second": BATCH / statistics.median(found),
            "times_ours": statistics.median(found) / base,
        }
        for name, found in seconds.items()
    }
    versions = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    return {"window": WINDOW, "horizon": HORIZON, "units": UNITS, "batch": BATCH, **versions, "ways": ways}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ways = {
        "everstep": ours("model.segment=1", "model.decode=direct", "model.projection=false"),
        "everstep, a map before": ours("model.segment=1", "model.decode=direct"),
        "everstep, a day at once": ours(),
        "nn.LSTM and DataLoader": plain(),
    }
    for name, make in {"neuralforecast": neuralforecast, "gluonts": gluonts}.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed and is left out")
        else:
            ways[name] = make()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, turn in ways.items():
            seconds[name] += turn(given.steps)[WARM:]
    found = report(seconds)
    for name, row in found["ways"].items():
        print(f"{name:26} {row['windows_per_second']:8,.0f} windows/s, {row['times_ours']:.2f} times the time of ours")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
