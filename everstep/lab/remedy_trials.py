"""Trials of remedies at several lags, in parallel processes, resumable."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everstep.errors import ConfigError, Diverged, RunError, counted
from everstep.lab.remedies import REMEDIES, TASKS, Remedy
from everstep.lab.synthetic import HeldOutScore, Predictor, measure
from everstep.learn import FitSettings, RunLock
from everstep.learn.learner import Learner
from everstep.learn.progress import Screen
from everstep.look.remedy_results import Grid, Reach
from everstep.runs import card
from everstep.runs.workers import in_processes, kept, stoppable
from everstep.storage.files import TEMPORARY, replace_file
from everstep.storage.reading import LARGEST_RECORDS, json_text, parse_json, read_small, reason
from everstep.storage.records import Record, read_records, write_records

SETTINGS, RECORDS = "lab.json", "remedies.jsonl"
EXPERIMENT = "remedies"
CHECK_EVERY, CHECK_ROWS, TEST_ROWS = 100, 500, 2000
_CHECK, _TEST = 0, 1  # seeds of two sets of held-out sequences
_MARGIN = 0.8  # a check below this share of the goal ends a trial; the margin guards against lucky sequences
_KEPT = ("processes",)  # settings that may change at resume


@dataclass(frozen=True)
class Experiment:
    """The settings of an experiment.

    Attributes:
        task: a name in `TASKS`.
        lags: the lags, rising.
        remedies: names in `REMEDIES`.
        rates: learning rates of AdamW without weight decay; for each remedy and lag, the best on the check is used.
        seeds: number of trials of each, with seeds 0 … seeds − 1.
        hidden: units H.
        batch: sequences per step.
        minutes: total time, shared evenly by all trials; None: only steps limit trials, and results are reproducible.
        steps: most steps of a trial; None: only time limits trials.
        processes: number of parallel trials, one thread each.

    Raises:
        ConfigError: a value is out of range; the message names it.
    """

    task: str
    lags: tuple[int, ...]
    remedies: tuple[str, ...] = tuple(remedy.name for remedy in REMEDIES)
    rates: tuple[float, ...] = (1e-3,)
    seeds: int = 1
    hidden: int = 64
    batch: int = 32
    minutes: float | None = None
    steps: int | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        known = [remedy.name for remedy in REMEDIES]
        _check("task", self.task in TASKS, f"one of {', '.join(TASKS)}", self.task)
        unknown = [name for name in self.remedies if name not in known]
        _check("remedies", self.remedies and not unknown, f"some of: {'; '.join(known)}", "; ".join(unknown) or "none")
        lags = ", ".join(map(str, self.lags)) or "none"
        _check("lags", self.lags and list(self.lags) == sorted(set(self.lags)), "rising whole numbers", lags)
        for lag in self.lags:
            try:
                TASKS[self.task].problem(lag)
            except ValueError as error:
                raise ConfigError(f"lab remedies: a lag of {lag} cannot be used: {error}") from None
        rates = ", ".join(map(str, self.rates)) or "none"
        _check("rates", self.rates and all(0 < rate < math.inf for rate in self.rates), "numbers above 0", rates)
        for name in ("seeds", "hidden", "batch", "processes"):
            _check(name, getattr(self, name) >= 1, "a whole number ≥ 1", getattr(self, name))
        _check("minutes", self.minutes is None or 0 < self.minutes < math.inf, "a number above 0", self.minutes)
        _check("steps", self.steps is None or self.steps >= 1, "a whole number ≥ 1", self.steps)
        _check("minutes or steps", self.minutes or self.steps, "a limit", "none")

    @property
    def trials(self) -> list[tuple[str, int, float, int]]:
        """(remedy, lag, rate, seed) of each trial, shortest lags first."""
        return [
            (remedy, lag, rate, seed)
            for lag in self.lags
            for remedy in self.remedies
            for rate in self.rates
            for seed in range(self.seeds)
        ]

    @property
    def share(self) -> float:
        """Seconds for each trial."""
        if self.minutes is None:
            return math.inf
        return 60 * self.minutes * self.processes / len(self.trials)


@dataclass(frozen=True)
class Trial:
    """One trial as passed to a process: the `Experiment` for its sizes, and the trial's own settings."""

    experiment: Experiment
    remedy: str
    lag: int
    rate: float
    seed: int
    seconds: float


def remedies(
    experiment: Experiment, out: str | Path, *, log: Callable[[str], None] | None = None, begin: Any = None
) -> list[Record]:
    """Try every remedy at every lag. Results are stored in `OUT/remedies.jsonl`, one line each, and not repeated.

    The same call resumes a stopped experiment; unfinished trials restart. A trial ends when it has solved its problem,
    diverged, or used its share of the minutes or its steps. With limited minutes, a faster machine reaches longer lags.

    Args:
        experiment: the settings.
        out: the folder of the experiment.
        log: receives each line for the user; None writes to stderr, with a live line on a terminal.
        begin: called at the start of each new process.

    Returns:
        The records: remedy, lag, rate, seed; outcome: "solved", "unsolved" or "diverged"; loss, relative (to the
        baseline) and error on held-out sequences, with the weights that were best on the check sequences; check, the
        relative loss on those; steps, seconds, parameters; curve, a list of (step, check). NaN is None.

    Raises:
        RunError: `out` is another kind of folder, belongs to another experiment, or is in use.
        Interrupted: SIGINT or SIGTERM; finished trials are kept.
    """
    out = Path(out)
    screen = Screen(log)
    try:
        with RunLock(_folder(out)), stoppable(kept(out)):
            share = _same(out, experiment)
            path = out / RECORDS
            records = {_name(r["remedy"], r["lag"], r["rate"], r["seed"]): r for r in read_records(path)}
            wanted = {_name(*trial): Trial(experiment, *trial, share) for trial in experiment.trials}
            todo = {name: trial for name, trial in wanted.items() if name not in records}
            if todo and len(todo) < len(wanted):
                screen.say(f"done: {len(wanted) - len(todo)} of {counted(len(wanted), 'trial')}; {len(todo)} to go")
            with closing(in_processes(attempt, todo, experiment.processes, begin)) as found:
                for number, (name, record) in enumerate(found, 1):
                    records[name] = record
                    write_records(path, records.values())
                    screen.say(_told(name, record))
                    done = len(wanted) - len(todo) + number
                    if screen.live:
                        screen.show(f"{done} of {len(wanted)} trials", done / len(wanted))
            return [records[name] for name in wanted]
    finally:
        screen.close()


def attempt(trial: Trial) -> Record:
    """Train a remedy at a lag until it has solved the problem or its share is used."""
    return examine(next(remedy for remedy in REMEDIES if remedy.name == trial.remedy), trial)


def examine(remedy: Remedy, trial: Trial) -> Record:
    """As `attempt`, for a remedy that need not be in `REMEDIES`."""
    torch.set_num_threads(1)
    experiment, exam = trial.experiment, TASKS[trial.experiment.task]
    torch.manual_seed(trial.seed)
    problem = exam.problem(trial.lag)
    cell = remedy.cell(problem.input_size, experiment.hidden, trial.lag)
    model = Predictor(cell, problem)
    stream = problem.stream(experiment.batch, trial.seed)
    limit = experiment.steps if experiment.steps is not None else 10**9
    settings = FitSettings(
        max_steps=limit,
        learning_rate=trial.rate,
        clip_norm=remedy.clip,
        schedule="constant",
        precision="float32",
        log_every_seconds=10.0,
    )
    learner = Learner(model, remedy.objective, stream, settings, remedy.rules)
    curve, diverged, seconds = _learn(learner, model, exam.goal, trial.seconds, limit)
    score = measure(model, TEST_ROWS, seed=_TEST)
    return {
        "remedy": remedy.name,
        "lag": trial.lag,
        "rate": trial.rate,
        "seed": trial.seed,
        "outcome": "solved" if score.error < exam.goal else "diverged" if diverged else "unsolved",
        **{name: _finite(value) for name, value in score._asdict().items()},
        "check": min((relative for _, relative in curve), default=None),
        "steps": learner.counts.step,
        "seconds": round(seconds, 3),
        "parameters": sum(parameter.numel() for parameter in cell.parameters()),
        "curve": [list(point) for point in curve],
    }


def _learn(
    learner: Learner, model: Predictor, goal: float, seconds: float, limit: int
) -> tuple[list[tuple[int, float]], bool, float]:
    """The curve of checks, whether training diverged, and its seconds; the model ends with the best weights.

    The clock starts after the first step, which may compile the cell.
    """
    curve: list[tuple[int, float]] = []
    best: dict[str, Tensor] = {name: value.clone() for name, value in model.state_dict().items()}
    started = None

    def check() -> HeldOutScore:
        score = measure(model, CHECK_ROWS, seed=_CHECK)
        if not math.isfinite(score.relative):
            raise Diverged("the check is not finite")
        if all(score.relative < before for _, before in curve):
            best.update({name: value.clone() for name, value in model.state_dict().items()})
        curve.append((learner.counts.step, round(score.relative, 5)))
        return score

    diverged = False
    try:
        error = check().error
        while error >= _MARGIN * goal and learner.counts.step < limit:
            if started is not None and time.monotonic() - started >= seconds:
                break
            learner.step()
            started = started or time.monotonic()
            if learner.counts.step % CHECK_EVERY == 0 or learner.counts.step == limit:
                error = check().error
        if curve[-1][0] < learner.counts.step:
            check()
    except Diverged:
        diverged = True
    model.load_state_dict(best)
    return curve, diverged, time.monotonic() - (started or time.monotonic())


def grid(experiment: Experiment, records: list[Record]) -> Grid:
    """The records as remedies × lags: the median over seeds at the learning rate that was best on the check."""
    reaches = {}
    for remedy in experiment.remedies:
        for lag in experiment.lags:
            mine = [r for r in records if (r["remedy"], r["lag"]) == (remedy, lag)]
            found = [[r for r in mine if r["rate"] == rate] for rate in experiment.rates]
            best = min(found, key=_mean_check)
            known = [r["relative"] for r in best if r["relative"] is not None]
            reaches[remedy, lag] = Reach(
                relative=statistics.median(known) if known else math.inf,
                solved=sum(r["outcome"] == "solved" for r in best),
                diverged=sum(r["outcome"] == "diverged" for r in best),
                tried=len(best),
                rate=best[0]["rate"],
            )
    about = {remedy.name: remedy.about for remedy in REMEDIES if remedy.name in experiment.remedies}
    exam = TASKS[experiment.task]
    return Grid(experiment.task, f"{exam.measure} below {exam.goal:g}", about, experiment.lags, reaches)


def _mean_check(trials: list[Record]) -> float:
    return statistics.mean(math.inf if r["check"] is None else r["check"] for r in trials)


def _check(name: str, good: object, expected: str, came: object) -> None:
    if not good:
        raise ConfigError(f"lab remedies: expected {name} to be {expected}; got {came}")


def _folder(out: Path) -> Path:
    begun = {".lock", TEMPORARY + SETTINGS, "environment.json"}  # possible remains of a killed start
    if (
        out.exists()
        and not (out / SETTINGS).is_file()
        and (not out.is_dir() or {p.name for p in out.iterdir()} - begun)
    ):
        raise RunError(f"{out} exists and is no experiment of the laboratory; give another folder, or delete it")
    return out


def _same(out: Path, experiment: Experiment) -> float:
    """Begin the folder, or check that it belongs to the same experiment; returns the seconds of each trial."""
    path = out / SETTINGS
    now: dict[str, Any] = json.loads(json_text({"experiment": EXPERIMENT, **asdict(experiment)}))
    if not path.is_file():
        card.write_environment(out)
        share = None if experiment.minutes is None else experiment.share
        replace_file(path, (json_text({**now, "seconds_a_trial": share}, indent=1) + "\n").encode())
        return experiment.share
    try:
        before = parse_json(read_small(path, LARGEST_RECORDS))
        share = before.pop("seconds_a_trial")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({reason(error)}); give another folder") from None
    if before.get("experiment") != EXPERIMENT:
        raise RunError(f"{out} is of another experiment ({before.get('experiment')}); give another folder")
    changed = [name for name in now if name not in _KEPT and now[name] != before.get(name)]
    if changed:
        raise RunError(f"{out} is an experiment with other {', '.join(changed)}; give another folder")
    return math.inf if share is None else float(share)


def _name(remedy: str, lag: int, rate: float, seed: int) -> str:
    return f"{remedy}, lag {lag}, rate {rate:g}, seed {seed}"


def _told(name: str, record: Record) -> str:
    loss = "no loss" if record["relative"] is None else f"{record['relative']:.3f} of the baseline"
    return f"{name}: {record['outcome']}, {loss}, {counted(record['steps'], 'step')}, {record['seconds']:.1f} s"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
