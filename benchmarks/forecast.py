"""What forecasting must show: all columns of ETTh1, values removed at random, the last tenth of small series, memory.

    python benchmarks/forecast.py ett OUT [--horizons 96,192,336,720] [key=value …]
    python benchmarks/forecast.py missing OUT [--share 0.3] [key=value …]
    python benchmarks/forecast.py small OUT [key=value …]
    python benchmarks/forecast.py many OUT [--series 10000] [--steps 1000] [key=value …]

Every line printed is a JSON object. Runs are written into OUT; a finished one is read, not trained again.

- ett: `ett-h1-all` at each horizon, beside the rivals on the same windows.
- missing: `ett-h1` (OT, a day ahead) with all values, then with a share of all rows removed at random (seed 0), read
  with masks by a GRU, filled forward without masks, and by GRU-D. Removed values are no targets, so that all are scored
  on the same windows' other targets.
- small: airline passengers and sunspots, one step and a year ahead from up to 23 origins of the last tenth, beside ETS
  and Theta.
- many: made-up series in one long CSV; the peak memory of a training, in GiB.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np

import everstep as es

DATA = Path(os.environ.get("EVERSTEP_DATA", "."))
FIGURES = ("mse", "mae", "mase", "wql", "coverage_80", "coverage_90")


def trained(recipe: str | Path, out: Path, overrides: list[str]) -> tuple[es.Run, dict[str, Any]]:
    """The run, and the seconds of wall and CPU time of its training and scoring."""
    if (out / "scores.json").exists():
        return es.load(out), {}
    start, used = time.perf_counter(), time.process_time()
    run = es.train(recipe, out, lambda line: None, overrides=overrides)
    return run, {"seconds": round(time.perf_counter() - start), "cpu": round(time.process_time() - used)}


def said(run: es.Run, spent: dict[str, Any], rivals: list[dict[str, Any]] | None = None, **about: Any) -> None:
    """Print the figures of a run and the MSE and MASE of its rivals."""
    scores = run.evaluate()
    others = {row["name"]: [row["mse"], row["mase"]] for row in rivals or scores["rivals"]}
    print(json.dumps({**about, **{name: scores[name] for name in FIGURES}, "rivals": others, **spent}), flush=True)


def ett(out: Path, horizons: list[int], overrides: list[str]) -> None:
    """All columns of ETTh1."""
    for horizon in horizons:
        run, spent = trained("ett-h1-all", out / f"ett-{horizon}", [f"model.horizon={horizon}", *overrides])
        said(run, spent, horizon=horizon)


def removed(out: Path, share: float) -> Path:
    """ETTh1's oil temperature without a share of its values."""
    with gzip.open(DATA / "ett" / "ETTh1.csv.gz", "rt") as lines:
        rows = [line.rstrip("\n").split(",") for line in lines]
    gone = np.random.default_rng(0).random(len(rows)) < share
    path = out / f"removed-{share:g}.csv"
    texts = [f"{row[0]},{'' if gone[place] and place else row[-1]}" for place, row in enumerate(rows)]
    path.write_text("\n".join(texts) + "\n")
    return path


def missing(out: Path, share: float, overrides: list[str]) -> None:
    """A share of the values removed, in four ways to read."""
    path = removed(out, share)
    for name, more in {
        "all values": [],
        "masks": [f"data.train={path}"],
        "forward fill": [f"data.train={path}", "model.masks=false"],
        "GRU-D": [f"data.train={path}", "model.cell=GRUD"],
    }.items():
        run, spent = trained("ett-h1", out / f"missing-{name.replace(' ', '-')}", [*more, *overrides])
        said(run, spent, input=name)


def small(out: Path, overrides: list[str]) -> None:
    """The last tenth of two small series."""
    for name, recipe in SMALL.items():
        file = DATA / "timeseries_small" / f"{name}.csv"
        for horizon in (1, 12):
            path = out / f"{name}.yaml"
            path.write_text(recipe.format(file=file))
            more = [f"model.horizon={horizon}", *(AHEAD if name.startswith("air") and horizon > 1 else []), *overrides]
            run, spent = trained(path, out / f"{name}-{horizon}", more)
            found = run.backtest(23, step=None if horizon == 1 else 1 if name.startswith("air") else 12, quick=False)
            errors = {model: row["mase"] for model, row in found["models"].items()}
            about = {"series": name, "horizon": horizon, "origins": len(found["origins"]), "step": found["step"]}
            print(json.dumps({**about, "mase": errors, **spent}), flush=True)


AHEAD = ["model.level=last", "model.smoothing=learned", "model.highway=false", "train.max_epochs=80"]
"""Airline passengers a year ahead; of ten settings the best on 26 months before the test."""
SMALL = {
    "airline-passengers": """
task: forecast
seed: 1
data: {{train: "{file}", scaling: log, valid_part: 14, test_part: 14}}
model:
  {{cell: GRU, window: 36, segment: 12, hidden_size: 16, level: season, spread: none, highway: true, head: point}}
train: {{batch_size: 16, learning_rate: 0.005, schedule: cosine, max_epochs: 40}}
""",
    "monthly-sunspots": """
task: forecast
seed: 1
data: {{train: "{file}", scaling: standard, calendar: false, valid_part: 282, test_part: 282}}
model:
  {{cell: GRU, window: 144, segment: 12, hidden_size: 16, level: last, spread: none, highway: true, head: point}}
train: {{batch_size: 64, learning_rate: 0.001, schedule: cosine, max_epochs: 20}}
""",
}


def many(out: Path, series: int, steps: int, overrides: list[str]) -> None:
    """The peak memory of training on many series."""
    path, random = out / "many.csv", np.random.default_rng(0)
    if not path.exists():
        stamps = np.datetime_as_string(np.datetime64("2024-01-01T00") + np.arange(steps), unit="h")
        with path.open("w") as file:
            file.write("unique_id,ds,y\n")
            for number in range(series):
                level = 100 + 20 * np.sin(2 * np.pi * (np.arange(steps) + number) / 24) + random.normal(0, 5, steps)
                rows = (f"s{number},{stamp},{y:.2f}\n" for stamp, y in zip(stamps, level, strict=True))
                file.write("".join(rows))
    settings = [f"data.train={path}", "train.max_epochs=null", "train.max_steps=200", *overrides]
    run, spent = trained("forecast-own", out / "many", settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    said(run, spent, series=series, steps=steps, gib=round(peak, 2), mb=round(path.stat().st_size / 1e6))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("ett", "missing", "small", "many"))
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--horizons", default="96,192,336,720")
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    overrides = ["train.threads=1", *given.overrides]
    if given.what == "ett":
        ett(given.out, [int(horizon) for horizon in given.horizons.split(",")], overrides)
    elif given.what == "missing":
        missing(given.out, given.share, overrides)
    elif given.what == "small":
        small(given.out, overrides)
    else:
        many(given.out, given.series, given.steps, overrides)


if __name__ == "__main__":
    main()
