"""`everstep lab remedies`: what is tried, gone on with, chosen, refused and shown."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import apart
import pytest
import torch
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.errors import ConfigError, Interrupted, RunError
from everstep.lab import remedy_trials as lab
from everstep.lab.remedies import REMEDIES, TASKS, Remedy, omega_objective
from everstep.lab.remedy_trials import RECORDS, Experiment, Trial, attempt, examine, remedies
from everstep.lab.synthetic import Predictor, measure, objective
from everstep.look.remedy_results import Grid, Reach, draw_remedies, remedy_table
from everstep.runs.workers import in_processes
from everstep.storage.records import read_records
from everstep.wirings.orthogonal import ModReLU, Orthogonal

TWO = ("tanh", "GRU")
TINY: dict[str, Any] = {"lags": (3, 5), "remedies": TWO, "hidden": 8, "batch": 8, "steps": 4}


def tiny(**changes: Any) -> Experiment:
    return Experiment(**{"task": "adding", **TINY, **changes})


def tried(experiment: Experiment, out: Path) -> list[dict[str, Any]]:
    return remedies(experiment, out, log=lambda line: None)


@pytest.fixture
def small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "CHECK_ROWS", 40)
    monkeypatch.setattr(lab, "TEST_ROWS", 40)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lab") / "run"
    tried(tiny(rates=(1e-3, 1e-2)), out)
    return out


def learned(task: str, name: str) -> None:
    found = attempt(Trial(tiny(task=task, lags=(10,), steps=3), name, 10, 1e-3, 0, math.inf))
    assert found["steps"] == 3
    assert found["outcome"] == "unsolved"
    assert found["curve"][-1][0] == 3
    assert 0 < found["loss"] < math.inf
    features = TASKS[task].problem(10).input_size
    cell = next(remedy for remedy in REMEDIES if remedy.name == name).cell(features, 8, 10)
    assert found["parameters"] == sum(parameter.numel() for parameter in cell.parameters())


@pytest.mark.parametrize("name", [remedy.name for remedy in REMEDIES])
def test_every_remedy_is_trained(name: str, small_sets: None) -> None:
    learned("adding", name)


@pytest.mark.parametrize("task", ["order", "copy"])
@pytest.mark.parametrize("name", ["tanh, Ω", "LSTM, chrono"])
def test_every_task_is_learned(task: str, name: str, small_sets: None) -> None:
    learned(task, name)


def test_remedies_are_what_they_say() -> None:
    made: dict[str, Any] = {remedy.name: remedy.cell(2, 8, 100) for remedy in REMEDIES}
    assert len(made) == len(REMEDIES)
    orthogonal = made["tanh, orthogonal"].weight_hh
    assert torch.allclose(orthogonal @ orthogonal.T, torch.eye(8), atol=1e-5)
    assert torch.equal(made["IRNN"].weight_hh, torch.eye(8))
    assert torch.equal(made["IRNN, 0.9 I"].weight_hh, 0.9 * torch.eye(8))
    assert torch.equal(made["LSTM, forget 1"].bias_ih[8:16], torch.ones(8))
    chrono = made["LSTM, chrono"]
    forget = (chrono.bias_ih + chrono.bias_hh)[8:16]
    assert 0 <= forget.min().item() < forget.max().item() <= math.log(99)
    assert torch.equal((chrono.bias_ih + chrono.bias_hh)[:8], -forget)
    assert made["clockwork"].periods == (1, 2, 4, 8, 16, 32, 64)[:4]
    assert made["time skip"].d == 10
    assert float(made["leaky"].alpha.max()) == pytest.approx(math.exp(-1 / 200))
    assert [remedy.clip for remedy in REMEDIES] == [None] + [1.0] * (len(REMEDIES) - 1)


def test_orthogonal_stays_orthogonal_and_steps_as_it_runs() -> None:
    cell = Orthogonal(es.RNN(3, 6, activation=ModReLU(6)))
    optimizer, start = torch.optim.Adam(cell.parameters(), 0.1), cell.matrix().detach()
    for _ in range(10):
        optimizer.zero_grad()
        cell(torch.randn(4, 5, 3))[0].square().sum().backward()
        optimizer.step()
    matrix = cell.matrix()
    assert torch.allclose(matrix @ matrix.T, torch.eye(6), atol=1e-5)
    assert float((matrix - start).detach().norm()) > 0.1
    xs = torch.randn(2, 4, 3)
    whole, end = cell(xs)
    state = cell.initial_state(2, xs)
    for t in range(4):
        y, state = cell.step(xs[:, t], state)
        assert torch.allclose(y, whole[:, t], atol=1e-5)
    assert torch.allclose(end, state, atol=1e-5)
    loop, _ = cell(xs, backend="reference")
    assert torch.allclose(whole, loop, atol=1e-5)
    for got, want in zip(
        *(torch.autograd.grad(ys.sum(), list(cell.parameters())) for ys in (whole, loop)), strict=True
    ):
        assert torch.allclose(got, want, atol=1e-4)
    for wrong, shape in (
        (es.LSTM(3, 4), r"LSTM is \(16, 4\)"),
        (es.RNN(3, 5), r"RNN is \(5, 5\)"),
        (es.Identity(3, 3), "is None"),
    ):
        with pytest.raises(ValueError, match=shape):
            Orthogonal(wrong)


def test_omega_is_added_to_the_loss() -> None:
    problem = TASKS["order"].problem(12)
    model, batch = Predictor(es.RNN(8, 4), problem), problem.batch(5)
    (plain,) = objective(model, batch, None)
    (none,) = omega_objective(0.0)(model, batch, None)
    assert torch.allclose(none.total, plain.total)
    (some,) = omega_objective(3.0)(model, batch, None)
    assert torch.equal(some.reported, none.reported)
    _, penalty, _ = es.learn.omega.omega(
        model.layer,
        batch.inputs,
        lambda ys: torch.nn.functional.cross_entropy(model.answer(ys[:, -1]), batch.targets[:, 0], reduction="none"),
    )
    assert torch.allclose(some.total - some.reported, 3 * penalty / 12, atol=1e-6)


def test_records(done: Path) -> None:
    records = read_records(done / RECORDS)
    assert [(r["remedy"], r["lag"], r["rate"], r["seed"]) for r in records] == [
        (name, lag, rate, 0) for lag in (3, 5) for name in TWO for rate in (1e-3, 1e-2)
    ]
    for r in records:
        assert r["outcome"] == "unsolved"
        assert r["relative"] == pytest.approx(r["loss"] * 6)
        assert r["error"] == r["loss"]
        assert [step for step, _ in r["curve"]] == [0, 4]
        assert r["check"] == min(relative for _, relative in r["curve"])


def test_the_test_is_of_the_weights_that_were_best_on_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "CHECK_EVERY", 1)
    seen: dict[float, float] = {}

    def noted(model: Predictor, rows: int, *, seed: int) -> Any:
        score = measure(model, rows, seed=seed)
        if seed == 0:
            seen[round(score.relative, 5)] = float(sum(p.detach().double().sum() for p in model.parameters()))
        else:
            seen[math.nan] = float(sum(p.detach().double().sum() for p in model.parameters()))
        return score

    monkeypatch.setattr(lab, "measure", noted)
    found = attempt(Trial(tiny(steps=1), "GRU", 5, 0.3, 0, math.inf))  # a step too far
    curve = [relative for _, relative in found["curve"]]
    assert len(curve) == 2
    assert curve[0] < curve[1]
    assert next(value for key, value in seen.items() if math.isnan(key)) == seen[curve[0]]


def test_a_solved_trial_ends_early_and_the_clock_ends_others() -> None:
    experiment = tiny(hidden=24, batch=32, steps=5000)
    solved = attempt(Trial(experiment, "GRU", 4, 1e-2, 0, 60.0))
    assert (solved["outcome"], solved["error"] < 0.01) == ("solved", True)
    assert solved["steps"] < 2000
    timed = attempt(Trial(tiny(steps=None, minutes=1.0), "tanh", 5, 1e-5, 0, 0.2))
    assert timed["outcome"] == "unsolved"
    assert 0.2 <= timed["seconds"] < 5


def test_divergence_is_an_outcome() -> None:
    found = attempt(Trial(tiny(steps=50), "IRNN", 300, 3.0, 0, math.inf))
    assert found["outcome"] == "diverged"
    assert found["steps"] < 50
    assert found["relative"] > 0.5  # of the weights before


def test_a_network_that_is_not_finite_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def infinite(features: int, units: int, lag: int) -> es.Cell:
        cell = es.RNN(features, units)
        with torch.no_grad():
            cell.weight_ih.fill_(math.nan)
        return cell

    found = examine(Remedy("broken", "", infinite), Trial(tiny(), "broken", 5, 1e-3, 0, math.inf))
    assert (found["outcome"], found["relative"], found["check"], found["curve"]) == ("diverged", None, None, [])
    json.dumps(found, allow_nan=False)
    reach = lab.grid(tiny(lags=(5,), remedies=("tanh",)), [{**found, "remedy": "tanh"}]).reaches["tanh", 5]
    assert reach.told == "diverged"


def test_a_start_that_was_killed_is_no_other_folder(tmp_path: Path) -> None:
    for name in (".lock", "environment.json", ".tmp-lab.json"):
        (tmp_path / name).write_text("")
    assert len(tried(tiny(lags=(3,), remedies=("tanh",)), tmp_path)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    asked: list[Trial] = []

    def stopping(trial: Trial) -> Any:
        asked.append(trial)
        if len(asked) == 3:
            os.kill(os.getpid(), number)
        return attempt(trial)

    monkeypatch.setattr(lab, "attempt", stopping)
    out = tmp_path / "run"
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"{number.name}; what was finished is in .*, and the same command goes on"):
        tried(tiny(), out)
    assert signal.getsignal(number) == before
    first = read_records(out / RECORDS)
    assert len(first) == 2
    lines: list[str] = []
    whole = remedies(tiny(), out, log=lines.append)
    assert whole[:2] == first
    assert lines[0] == "done: 2 of 4 trials; 2 to go"
    assert len(asked) == 5
    assert tried(tiny(), out) == whole
    assert len(asked) == 5


def test_what_runs_beside_ends_with_an_interruption() -> None:
    before = set(active_children())
    results = in_processes(time.sleep, {"short": 0.0, "long": 60.0}, processes=2)
    assert next(results)[0] == "short"
    beside = set(active_children()) - before
    assert beside
    with pytest.raises(Interrupted):
        results.throw(Interrupted("", signal.SIGTERM))
    end = time.monotonic() + 20
    for child in beside:  # `join` gives up at once where the executor's own thread has just seen the end
        while child.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        assert not child.is_alive()


def without_time(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in r.items() if key != "seconds"} for r in records]


def test_killed_in_parallel_it_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = [
        "--lags",
        "3,5",
        "--only",
        "tanh;GRU",
        "--hidden",
        "8",
        "--batch",
        "8",
        "--rates",
        "0.001",
        "--steps",
        "4",
    ]
    command = ["lab", "remedies", *options, "--processes", "2", "--out", str(out)]
    process = apart.started(apart.command, command, told=tmp_path / "told.txt")
    until = time.monotonic() + 60
    while not (out / "remedies.jsonl").exists() and process.is_alive() and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    apart.ended(process)
    kept = read_records(out / RECORDS)
    assert kept
    done = CliRunner().invoke(app, ["lab", "remedies", *options, "--out", str(out)])
    assert done.exit_code == 0, done.output
    after = {(r["remedy"], r["lag"]): r for r in read_records(out / RECORDS)}
    assert len(after) == 4
    assert all(after[r["remedy"], r["lag"]] == r for r in kept)
    alone = without_time(tried(tiny(), tmp_path / "alone"))
    assert without_time([after[r["remedy"], r["lag"]] for r in alone]) == alone


def test_the_minutes_are_shared(tmp_path: Path, small_sets: None, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(lab, "attempt", lambda trial: shares.append(trial.seconds) or attempt(trial))
    experiment = tiny(minutes=2.0, seeds=3)
    assert experiment.share == 120 / 12
    assert tiny(minutes=2.0, processes=2).share == 2 * 120 / 4
    tried(experiment, tmp_path / "run")
    assert shares == [10.0] * 12
    (tmp_path / "run" / "remedies.jsonl").write_text("")
    tried(tiny(minutes=2.0, seeds=3, processes=1), tmp_path / "run")
    assert shares == [10.0] * 24


def test_the_best_rate_on_the_check_is_shown() -> None:
    experiment = tiny(lags=(3,), remedies=("GRU",), rates=(1e-3, 1e-2), seeds=2)
    base = {"remedy": "GRU", "lag": 3}
    records = [
        {**base, "rate": 1e-3, "seed": 0, "check": 0.5, "relative": 0.1, "outcome": "unsolved"},
        {**base, "rate": 1e-3, "seed": 1, "check": 0.5, "relative": 0.1, "outcome": "unsolved"},
        {**base, "rate": 1e-2, "seed": 0, "check": 0.2, "relative": 0.3, "outcome": "solved"},
        {**base, "rate": 1e-2, "seed": 1, "check": 0.4, "relative": 0.5, "outcome": "diverged"},
    ]
    reach = lab.grid(experiment, records).reaches["GRU", 3]
    assert reach == Reach(relative=0.4, solved=1, diverged=1, tried=2, rate=1e-2)
    assert reach.told == "0.40 ✓1/2"


def test_table_and_picture(tmp_path: Path) -> None:
    reaches = {
        ("a", 5): Reach(0.0412, 1, 0, 1, 1e-3),
        ("a", 50): Reach(0.97, 0, 0, 1, 1e-3),
        ("b", 5): Reach(math.inf, 0, 1, 1, 1e-3),
        ("b", 50): Reach(123.0, 0, 1, 1, 1e-3),
    }
    grid = Grid("adding", "squared error below 0.01", {"a": "first", "b": "second"}, (5, 50), reaches)
    assert remedy_table(grid).splitlines()[2:] == [
        "| a | 0.041 ✓ | 0.97 | first |",
        "| b | diverged | 9.99 | second |",
    ]
    draw_remedies(grid, tmp_path / "new" / "picture.png")
    assert (tmp_path / "new" / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_command_line(done: Path) -> None:
    options = ["--lags", "3,5", "--only", "tanh; GRU", "--hidden", "8", "--batch", "8", "--steps", "4"]
    command = ["lab", "remedies", *options, "--rates", "0.001,0.01", "--out", str(done)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[0] == "| remedy | lag 3 | lag 5 | what it is |"
    page = (done / "remedies.md").read_text()
    assert "\n".join(shown.stdout.splitlines()[:4]) in page
    assert "squared error below 0.01" in page
    assert (done / "pictures" / "remedies.png").read_bytes().startswith(b"\x89PNG")
    assert "everstep lab remedies" in CliRunner().invoke(app, ["lab"]).output


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--lags", "abc"], "--lags: expected whole numbers with commas between; got 'abc'"),
        (["--lags", "0"], "a lag of 0 cannot be used: Adding: two markers need at least 2 steps"),
        (["--lags", "5,3"], "expected lags to be rising whole numbers; got 5, 3"),
        (["--lags", "5", "--task", "order"], "a lag of 5 cannot be used: TemporalOrder: steps"),
        (["--task", "adds"], "expected task to be one of adding, order, copy; got adds"),
        (["--only", "tanh; LSTN"], "LSTM, chrono; .*; got LSTN"),
        (["--rates", "-1"], "expected rates to be numbers above 0; got -1.0"),
        (["--rates", "x"], "--rates: expected numbers with commas between; got 'x'"),
        (["--seeds", "0"], "expected seeds to be a whole number ≥ 1; got 0"),
        (["--minutes", "0"], "expected minutes to be a number above 0; got 0"),
        (["--steps", "0"], "expected steps to be a whole number ≥ 1; got 0"),
        (["--processes", "0"], "expected processes to be a whole number ≥ 1; got 0"),
    ],
)
def test_wrong_options(changed: list[str], message: str, tmp_path: Path) -> None:
    options = {"--lags": "5", "--steps": "2", **dict(zip(changed[::2], changed[1::2], strict=True))}
    arguments = [part for pair in options.items() for part in pair]
    shown = CliRunner().invoke(app, ["lab", "remedies", *arguments, "--out", str(tmp_path / "run")])
    assert shown.exit_code == 2
    import re

    assert re.search(message, " ".join(shown.stderr.split())), shown.stderr
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_said_before_any_work(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["lab", "remedies", "--lags", "5", "--out", str(tmp_path / "run")])
    assert (shown.exit_code, "expected --minutes or --steps" in " ".join(shown.stderr.split())) == (2, True)
    (tmp_path / "file").write_text("")
    shown = CliRunner().invoke(app, ["lab", "pictures", "--out", str(tmp_path / "file")])
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "file: File exists." in shown.stderr
    assert "Training" not in shown.stderr


def test_wrong_folders(done: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="minutes or steps to be a limit; got none"):
        tiny(steps=None)
    with pytest.raises(RunError, match="is an experiment with other hidden, steps; give another folder"):
        tried(tiny(rates=(1e-3, 1e-2), hidden=9, steps=5), done)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is no experiment of the laboratory"):
        tried(tiny(), tmp_path / "file")
    with pytest.raises(RunError, match="is no experiment of the laboratory"):
        tried(tiny(), tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "lab.json").write_text(json.dumps({"experiment": "cliffs", "seconds_a_trial": None}))
    with pytest.raises(RunError, match=r"is of another experiment \(cliffs\)"):
        tried(tiny(), other)
    (other / "lab.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        tried(tiny(), other)
    copy = tmp_path / "copy"
    tried(tiny(lags=(3,), remedies=("tanh",)), copy)
    (copy / "remedies.jsonl").write_text("nonsense\n")
    with pytest.raises(RunError, match=r"is damaged .* delete the line that is not JSON"):
        tried(tiny(lags=(3,), remedies=("tanh",)), copy)
