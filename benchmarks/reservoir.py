"""Echo state networks beside ReservoirPy: how fast, and how long they follow a chaotic series on their own.

    python benchmarks/reservoir.py [--speed] [--quality] [--quick] [--json FILE] [--picture FILE]

`--speed`: one series of 2,000 steps through reservoirs of the same matrices; float64; the two take turns, with half a
second between in which the threads of the one go to sleep, and their numbers are compared. On all cores; on one with
OMP_NUM_THREADS=1. `--quality`: Mackey–Glass (τ = 17) and Lorenz; both search the same random settings on validation
windows, and the best is run with five new seeds on test windows. Without an option, both. Mackey–Glass is read from
the folder that EVERSTEP_DATA names. ReservoirPy: pip install reservoirpy==0.4.2
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from matplotlib.figure import Figure
from timing import alternately, summary
from torch import Tensor

import everstep as es
from everstep.native.processor import name as cpu_name

try:
    import reservoirpy
    from reservoirpy import mat_gen
    from reservoirpy.nodes import Reservoir as TheirReservoir
    from reservoirpy.nodes import Ridge as TheirRidge
except ModuleNotFoundError:
    raise SystemExit(f"{__doc__}\nReservoirPy is not here: pip install reservoirpy==0.4.2") from None

Result = dict[str, Any]
F64 = torch.float64
WASHOUT = 100

# ---------------------------------------------------------------------------------------------------------------- speed


def speed(quick: bool) -> Iterator[Result]:
    """States, states and read-out, and free running; ReservoirPy's default density is 0.1."""
    shapes = [(300, 30)] if quick else [(1000, 100), (4000, 400), (1000, 10), (4000, 10), (10000, 10), (10000, 1000)]
    for units, connections in shapes:
        yield beside(units, connections, 300 if quick else 2000)


def beside(units: int, connections: int, steps: int) -> Result:
    """Both, of the same matrices."""
    start = time.perf_counter()
    scales = {"input_scaling": 1.0, "bias_scaling": 0.0}  # theirs has no bias
    cell = es.Reservoir(1, units, connections=connections, leak=0.5, **scales, seed=0, dtype=F64)
    drawn = time.perf_counter() - start
    theirs = TheirReservoir(W=csr(cell), Win=cell.weight_ih.numpy(), lr=0.5)
    readout, model, made = TheirRidge(1e-6), es.EchoState(cell, 1), {}
    series = wave(steps + 1)
    xs, targets = series[:, :-1], series[:, 1:]
    x, y = xs[0].numpy(), targets[0].numpy()
    freely = 20 if units * connections > 10**6 else 200

    def run() -> Any:
        if theirs.initialized:
            theirs.reset()
        made["theirs"] = theirs.run(x)
        return made["theirs"]

    @torch.no_grad()
    def ours() -> None:
        made["ours"] = cell(xs)[0]

    def free() -> None:
        h = theirs.run(x[:WASHOUT])[-1]
        for _ in range(freely):
            h = theirs.step(readout.step(h))

    parts: dict[str, dict[str, Callable[[], object]]] = {
        "states": {"reservoirpy": run, "everstep": ours},
        "states and read-out": {
            "reservoirpy": lambda: readout.fit(run(), y, warmup=WASHOUT),
            "everstep": lambda: model.fit(xs, targets, washout=WASHOUT, ridge=1e-6),
        },
        "free running": {"reservoirpy": free, "everstep": lambda: model.generate(freely, xs[:, :WASHOUT])},
    }
    result: Result = {"units": units, "connections": connections, "steps": steps, "drawing_s": drawn}
    print(f"{units} units, {connections} connections each, T{steps}, drawn in {drawn:.1f} s")
    for name, ways in parts.items():
        result[name] = compared(ways)
        shown = " / ".join(
            f"{t['median_ms']:.1f} ms [{t['least_ms']:.1f} … {t['most_ms']:.1f}]" for t in result[name]["times"]
        )
        print(f"  {name:20} {shown} = {result[name]['ratio']:.2f}", flush=True)
    outputs = readout.run(made["theirs"]) - model.predict(xs)[0].numpy()
    result["apart"] = float(np.abs(made["theirs"] - made["ours"][0].numpy()).max())
    result["outputs_apart"] = float(np.abs(outputs[WASHOUT:]).max())
    print(f"  states apart {result['apart']:.0e}, outputs {result['outputs_apart']:.0e}", flush=True)
    return result


def compared(ways: dict[str, Callable[[], object]]) -> Result:
    """Medians of nine, of three where one takes over 2 s; theirs over ours."""
    seconds = alternately(ways, 1, warmup=0)
    rounds = 2 if max(map(max, seconds.values())) > 2 else 9
    more = alternately(ways, rounds, warmup=0, rest=0.5 if rounds == 9 else 0)
    # the first round is one of three where they are few, and else a warm-up
    times = [summary([*(seconds[name] if rounds == 2 else []), *more[name]]) for name in ways]
    return {"times": times, "rounds": 3 if rounds == 2 else 9, "ratio": times[0]["median_ms"] / times[1]["median_ms"]}


def csr(cell: es.Reservoir) -> Any:
    """W as ReservoirPy holds it."""
    values = (cell.scale * cell.weights).numpy().ravel()
    starts = np.arange(cell.units + 1) * cell.weights.shape[1]
    return scipy.sparse.csr_array((values, cell.columns.numpy().ravel(), starts), shape=(cell.units, cell.units))


def wave(steps: int) -> Tensor:
    """Two sines, (1, steps, 1)."""
    t = torch.arange(steps, dtype=F64)
    return (torch.sin(t / 5) + 0.5 * torch.sin(t / 5 * 2**0.5))[None, :, None]


# -------------------------------------------------------------------------------------------------------------- quality


@dataclass(frozen=True)
class Series:
    """A chaotic series, standardised, and how it is judged."""

    name: str
    values: Tensor  # (time, features)
    per_step: float  # Lyapunov times a step
    units: int
    train: int
    warm: int
    horizon: int
    windows: int

    def starts(self, test: bool) -> list[int]:
        """Where free running starts: validation in the first half of what training left, test in the second."""
        middle = (self.train + len(self.values)) // 2
        first, last = (middle, len(self.values)) if test else (self.train, middle)
        return np.linspace(first + self.warm, last - self.horizon, self.windows).astype(int).tolist()


def lorenz(steps: int, dt: float = 0.02) -> Tensor:
    """σ = 10, ρ = 28, β = 8/3 (Lorenz 1963), by the classic Runge–Kutta method; the first 2,000 steps are dropped."""

    def slope(s: Any) -> Any:
        x, y, z = s
        return np.array([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

    state, found = np.array([1.0, 1.0, 1.0]), []
    for _ in range(2000 + steps):
        a = slope(state)
        b = slope(state + dt / 2 * a)
        c = slope(state + dt / 2 * b)
        d = slope(state + dt * c)
        state = state + dt / 6 * (a + 2 * b + 2 * c + d)
        found.append(state)
    return torch.tensor(np.array(found[2000:]))


def series(quick: bool) -> list[Series]:
    """Both, with Lyapunov exponents 0.906 and 0.006 per unit of time (the Mackey–Glass file has one value a unit)."""
    units, windows = (100, 3) if quick else (500, 20)
    made = [Series("Lorenz", standard(lorenz(20000)), 0.906 * 0.02, units, 5000, WASHOUT, 1300, windows)]
    path = Path(os.environ.get("EVERSTEP_DATA", "data")) / "mackey_glass" / "mackey_glass_tau17.csv"
    values = torch.tensor(np.loadtxt(path, delimiter=","))[:, None]
    return [*made, Series("Mackey–Glass", standard(values), 0.006, units, 3000, WASHOUT, 1500, windows)]


def standard(values: Tensor) -> Tensor:
    """Mean 0, standard deviation 1."""
    return (values - values.mean(0)) / values.std(0)


Settings = dict[str, float]


def settings(rng: np.random.Generator) -> Settings:
    """One random draw; the ranges are the same for both."""
    return {
        "radius": rng.uniform(0.2, 1.4),
        "leak": rng.uniform(0.2, 1.0),
        "input_scaling": 10 ** rng.uniform(-1.3, 0.2),
        "bias": rng.uniform(0, 1),
        "ridge": 10 ** rng.uniform(-15, -3),
        "density": float(rng.choice([0.02, 0.1])),
    }


def ours_from(data: Series, s: Settings, seed: int, starts: list[int]) -> Tensor:
    """Free runs (windows, horizon, features) of everstep."""
    size = data.values.shape[1]
    cell = es.Reservoir(
        size,
        data.units,
        radius=s["radius"],
        connections=round(s["density"] * data.units),
        input_scaling=s["input_scaling"],
        bias_scaling=s["bias"],
        leak=s["leak"],
        seed=seed,
        dtype=F64,
    )
    model = es.EchoState(cell, size)
    xs = data.values[None]
    model.fit(xs[:, : data.train], xs[:, 1 : data.train + 1], washout=WASHOUT, ridge=s["ridge"])
    return model.generate(data.horizon, torch.stack([data.values[p - data.warm : p] for p in starts]))


def theirs_from(data: Series, s: Settings, seed: int, starts: list[int]) -> Tensor:
    """The same of ReservoirPy."""
    reservoir = TheirReservoir(
        data.units,
        sr=s["radius"],
        lr=s["leak"],
        input_scaling=s["input_scaling"],
        rc_connectivity=s["density"],
        input_connectivity=INPUT_CONNECTIVITY,
        bias=mat_gen.uniform(low=-s["bias"], high=s["bias"]),
        seed=seed,
    )
    readout = TheirRidge(s["ridge"])
    values = data.values.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an ill-conditioned matrix; the search avoids what comes of it
        readout.fit(reservoir.run(values[: data.train]), values[1 : data.train + 1], warmup=WASHOUT)
    runs = []
    for p in starts:
        reservoir.reset()
        h, run = reservoir.run(values[p - data.warm : p])[-1], []
        for _ in range(data.horizon):
            run.append(readout.step(h))
            h = reservoir.step(run[-1])
        runs.append(np.array(run))
    return torch.tensor(np.array(runs))


INPUT_CONNECTIVITY = 1.0
WAYS = {"reservoirpy": theirs_from, "everstep": ours_from}


def valid_times(data: Series, runs: Tensor, starts: list[int]) -> Tensor:
    """Lyapunov times until the error, over the root mean square of the series, exceeds 0.4, (windows,)."""
    truth = torch.stack([data.values[p : p + data.horizon] for p in starts])
    wrong = (runs - truth).norm(dim=-1) / data.values.square().sum(-1).mean().sqrt()
    wrong = torch.cat([wrong.nan_to_num(torch.inf), torch.full((len(starts), 1), torch.inf)], 1)
    return (wrong > 0.4).int().argmax(1) * data.per_step


def nrmse(data: Series, runs: Tensor, starts: list[int], ahead: int = 84) -> float:
    """Root mean square error `ahead` steps on, over the standard deviation of the series (which is 1)."""
    truth = torch.stack([data.values[p + ahead - 1] for p in starts])
    return float((runs[:, ahead - 1] - truth).square().mean().sqrt())


def quality(quick: bool) -> tuple[list[Result], Any]:
    """Search on validation windows, report on test windows; the last run of Lorenz for the picture."""
    tries, seeds, results, drawn = (2, 1, [], None) if quick else (30, 5, [], None)
    for data in series(quick):
        for name, way in WAYS.items():
            start = time.perf_counter()
            rng, scores = np.random.default_rng(0), []
            for _ in range(tries):
                s = settings(rng)
                try:
                    runs = way(data, s, 100, data.starts(test=False))
                except (ValueError, np.linalg.LinAlgError):  # singular, for this ridge
                    continue
                scores.append((float(valid_times(data, runs, data.starts(test=False)).mean()), s))
            best = max(scores, key=lambda pair: pair[0])
            places, times, errors = data.starts(test=True), [], []
            for seed in range(seeds):
                runs = way(data, best[1], seed, places)
                times.append(valid_times(data, runs, places))
                errors.append(nrmse(data, runs, places))
            found = torch.stack(times)
            quarters = torch.quantile(found, torch.tensor([0.25, 0.5, 0.75], dtype=found.dtype)).tolist()
            results.append(
                {
                    "series": data.name,
                    "way": name,
                    "units": data.units,
                    "settings": best[1],
                    "validation": best[0],
                    "valid_lyapunov_times": {"quartiles": quarters, "by_seed": found.median(1).values.tolist()},
                    "nrmse84": {"median": float(np.median(errors)), "by_seed": errors},
                    "seconds": time.perf_counter() - start,
                }
            )
            print(
                f"{data.name:13} {name:12} valid for {quarters[1]:.2f} Lyapunov times [{quarters[0]:.2f} … "
                f"{quarters[2]:.2f}], NRMSE84 {np.median(errors):.2e}, {results[-1]['seconds']:.0f} s, {best[1]}",
                flush=True,
            )
            if data.name == "Lorenz" and name == "everstep":
                middle = int((found[-1] - found[-1].median()).abs().argmin())
                drawn = data, runs[middle], places[middle], float(found[-1][middle])
    return results, drawn


def picture(path: Path, data: Series, run: Tensor, start: int, valid: float) -> None:
    """The first coordinate of one free run over the truth."""
    figure = Figure(figsize=(10, 4.2), dpi=100, layout="constrained")
    axes = figure.subplots()
    shown = min(len(run), int(1.7 * valid / data.per_step))
    before = 60
    times = (torch.arange(-before, shown) + 1) * data.per_step
    axes.plot(
        times, data.values[start - before : start + shown, 0], color="#555555", linewidth=3, alpha=0.55, label="truth"
    )
    axes.plot(times[before:], run[:shown, 0], color="#0072B2", linewidth=1.8, label="echo state network, on its own")
    axes.axvline(0, color="#999999", linestyle=":")
    axes.axvline(valid, color="#D55E00", linestyle="--")
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.7, high + 0.5)
    top = axes.get_ylim()[1]
    axes.text(valid, top, f" error > 0.4 after {valid:.1f}", color="#D55E00", va="top", fontsize=13, fontweight="bold")
    axes.set_xlabel("time since the last true input (Lyapunov times)", fontsize=14)
    axes.set_ylabel("x of the Lorenz system\n(standard deviations)", fontsize=14)
    axes.tick_params(labelsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=12, frameon=False, loc="lower left", ncols=2)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--quick", action="store_true", help="small, to see that all of it runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    both = not (options.speed or options.quality)
    known = json.loads(options.json.read_text("utf-8")) if options.json and options.json.exists() else {}
    threads = torch.get_num_threads()
    results: Result = known | {"cpu": cpu_name(), "reservoirpy": reservoirpy.__version__}
    print(f"{results['cpu']}, threads: {threads}, torch {torch.__version__}, reservoirpy {reservoirpy.__version__}")

    def keep() -> None:
        if options.json:
            options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    if options.quality or both:
        results["quality"], drawn = quality(options.quick)
        keep()
        if options.picture:
            picture(options.picture, *drawn)
    if options.speed or both:
        measured = results.setdefault("speed", {})[str(threads)] = []
        for found in speed(options.quick):
            measured.append(found)
            keep()


if __name__ == "__main__":
    main()
