"""Tuning the keys of a recipe: trials that are run folders, pruned by their validations, resumed after any kill."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from everstep.errors import ConfigError, DataError, Diverged, RunError, counted
from everstep.lab.tuned_keys import Tuned, read_keys
from everstep.learn.metrics import METRICS_FILE, read_metrics
from everstep.learn.selection import LOSS, Selection
from everstep.runs import training
from everstep.runs.folder import is_run
from everstep.runs.recipe_files import flat, load_task, to_yaml
from everstep.runs.task import Say, Task
from everstep.runs.text_data import check_files, file_keys, with_absolute_paths
from everstep.runs.workers import in_processes, kept, stoppable
from everstep.storage import files
from everstep.storage.reading import json_text, parse_json, read_json
from everstep.storage.records import Record

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

    from everstep.lab.study_journal import StudyJournal

STUDY, BEST_RECIPE = "study.json", "best.yaml"
_LARGEST = 1 << 24  # bytes of study.json
_PRUNED = "pruned"


@dataclass(frozen=True)
class TuningPlan:
    """What every process of a study knows of it.

    Attributes:
        recipe: a shipped name or a YAML file.
        out: the folder of the study.
        fixed: changes of the recipe that all trials have.
        keys: what differs between trials.
        trials: the number of trials in all.
        measure: the validation measure that is compared; `highest` says whether its highest value is best.
        unpruned: the number of trials that are trained to their end before any is pruned.
        seed: the recipe's.
        own_seeds: whether the seed of a trial is `seed` + its number; else it is `seed`.
        threads: threads of each process, or None for those of the recipe.
        trust_code: whether Python files stored in runs may be executed.
    """

    recipe: str | Path
    out: Path
    fixed: tuple[str, ...]
    keys: tuple[Tuned, ...]
    trials: int
    measure: str
    highest: bool
    unpruned: int
    seed: int
    own_seeds: bool
    threads: int | None
    trust_code: bool

    def overrides(self, number: int, values: dict[str, Any]) -> list[str]:
        """The changes of the recipe that make a trial."""
        shown = {key: value if isinstance(value, str) else repr(value) for key, value in values.items()}
        threads = [] if self.threads is None else [f"train.threads={self.threads}"]
        seed = self.seed + number * self.own_seeds
        return [*self.fixed, *threads, f"seed={seed}", *(f"{key}={text}" for key, text in shown.items())]

    def journal(self) -> StudyJournal:
        """The study, opened in this process."""
        from everstep.lab.study_journal import StudyJournal

        return StudyJournal(self.out, self.highest, self.unpruned)

    def best(self, values: Sequence[float]) -> float:
        """The best of some values of the measure; NaN if there is none."""
        return (max if self.highest else min)(values, default=math.nan)


class _Pruned(Exception):
    """Ends the training of a trial that is worse than most."""


def tune(
    recipe: str | Path,
    out: str | Path,
    log: Say,
    *,
    keys: Sequence[str] = (),
    trials: int = 20,
    workers: int = 1,
    unpruned: int = 5,
    trust_code: bool = False,
    begin: Callable[[], None] | None = None,
) -> tuple[TuningPlan, list[Record]]:
    """Train a recipe `trials` times with other values of some keys, and find the best.

    Values come from Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), ten random trials first. A trial
    is a run folder, `OUT/trial-0003`. It is pruned if its best validation so far is worse than the median of the
    others' at the same number of validations (Golovin et al. 2017). The same call goes on with a study that was
    stopped, or adds trials; other processes may take part. Seeds, failures and resuming: docs/tuning.md.

    Args:
        recipe: a shipped name or a YAML file.
        out: the folder of the study.
        log: receives each line for the user; with several workers a module-level function.
        keys: KEY=LOW..HIGH, KEY=log:LOW..HIGH, KEY=a,b,c; any other KEY=VALUE changes the recipe of all trials. Without
            a range or choices: learning rate, size of the state and dropouts.
        trials: number of trials in all.
        workers: number of trials trained at once, each in a process of its own.
        unpruned: number of trials that are trained to their end before any is pruned.
        trust_code: whether Python files stored in runs may be executed.
        begin: called at the start of each new process.

    Returns:
        The plan, and the records of all trials: trial, run, outcome ("trained", "pruned", "diverged", "refused",
        "running"), value (the best of the measure), reason, steps, seconds, values.

    Raises:
        ConfigError: a key, a range or an argument cannot be used; nothing was done.
        DataError: the data cannot be used.
        RunError: `out` is no study, or one of another recipe or other keys; it cannot be written.
        Interrupted: a signal arrived; the same call goes on.
    """
    if find_spec("optuna") is None:
        raise ConfigError("tune needs optuna: pip install 'everstep[tune]'")
    plan = _planned(recipe, Path(out), log, keys, trials, workers, unpruned, trust_code)
    from everstep.lab.study_journal import one_at_a_time

    with stoppable(kept(out)), files.explained(plan.out, "repeat the command"):
        if not (plan.out / STUDY).is_file():
            _refuse_strangers(plan.out)
            plan = replace(plan, own_seeds=_validated_alike(plan))
        with one_at_a_time(plan.out):
            plan = _begin(plan)
            before = records(plan)
        ended = sum(record["outcome"] != "running" for record in before)
        if before:
            log(f"done: {ended} of {counted(trials, 'trial')}")
        jobs = {str(number): plan for number in range(min(workers, max(1, trials - ended)))}
        with closing(in_processes(partial(work, log), jobs, workers, begin)) as ends:
            for _ in ends:
                pass
        found = records(plan)
        best = ranked(plan, found)
        if best:
            of_any = replace(plan, threads=None)  # what one of several workers had is not for a training by itself
            text = to_yaml(_task(of_any, best[0]["trial"], best[0]["values"]).recipe)
            files.replace_file(plan.out / BEST_RECIPE, text.encode())
    return plan, found


def work(log: Say, plan: TuningPlan) -> None:
    """Work on trials until there is none left; several processes may."""
    journal = plan.journal()
    while True:
        with journal.taken(plan.keys, plan.trials, plan.seed) as trial:
            if trial is None:
                return
            _run(journal, trial, plan, log)


def records(plan: TuningPlan) -> list[Record]:
    """What is known of each trial, in their order; see `tune`."""
    return [_record(plan, frozen) for frozen in plan.journal().study.get_trials(deepcopy=False)]


def ranked(plan: TuningPlan, found: Sequence[Record]) -> list[Record]:
    """The trained trials, best first."""
    trained = [record for record in found if record["outcome"] == "trained"]
    return sorted(trained, key=lambda record: record["value"], reverse=plan.highest)


def _planned(
    recipe: str | Path,
    out: Path,
    log: Say,
    keys: Sequence[str],
    trials: int,
    workers: int,
    unpruned: int,
    trust_code: bool,
) -> TuningPlan:
    """Check everything that can be checked before any work."""
    for name, value, least in (("trials", trials, 1), ("workers", workers, 1), ("unpruned", unpruned, 1)):
        if value < least:
            raise ConfigError(f"tune: expected {name} to be a whole number ≥ {least}; got {value}")
    fixed, tuned = read_keys(recipe, keys, log, trust_code)
    task = load_task(recipe, fixed, trust_code)
    if not task.recipe.validated():
        raise ConfigError("tune: expected data.valid, or data.valid_fraction above 0: trials are compared by it")
    if not tuned:
        raise ConfigError("tune: expected a key to tune, such as train.learning_rate=log:1e-4..1e-2; got none")
    _check_files(task)
    settings = task.recipe.train
    selection = Selection(settings, task.scores)
    given = settings.threads is not None or any(one.key == "train.threads" for one in tuned)
    threads = None if workers == 1 or given else max(1, (os.cpu_count() or 1) // workers)
    return TuningPlan(
        recipe=recipe,
        out=out,
        fixed=tuple(fixed),
        keys=tuple(tuned),
        trials=trials,
        measure=selection.name,
        highest=selection.highest,
        unpruned=unpruned,
        seed=task.recipe.seed,
        own_seeds=True,
        threads=threads,
        trust_code=trust_code,
    )


def _refuse_strangers(out: Path) -> None:
    if out.exists():
        ours = (".picking", ".tmp-" + STUDY)  # of a study that was killed as it began
        if not out.is_dir() or any(path.name not in ours for path in out.iterdir()):
            raise RunError(f"{out} exists and is no study; give another folder, or delete it")


def _check_files(task: Task[Any]) -> None:
    section = getattr(task.recipe, "data", None)
    check_files(section, file_keys(section))


def _validated_alike(plan: TuningPlan) -> bool:
    """Whether trials of other seeds are validated on the same data, which some jobs hold out at random.

    Raises:
        DataError: the data cannot be used.
    """
    digests = []
    for number in (0, 1):
        task = _task(plan, number, {})
        training.begin(task, lambda line: None)
        digests.append(task.digest("valid"))
    return digests[0] is not None and digests[0] == digests[1]


def _begin(plan: TuningPlan) -> TuningPlan:
    """Begin the folder, or check that it was begun with the same recipe and keys; returns the plan with its seeds."""
    task = load_task(plan.recipe, plan.fixed, plan.trust_code)
    now: dict[str, Any] = {
        "recipe": flat(with_absolute_paths(task.recipe)),
        "code": task.code.digests,
        "keys": {one.key: asdict(one) for one in plan.keys},
        "unpruned": plan.unpruned,
        "own_seeds": plan.own_seeds,
    }
    text = json_text(now, indent=1) + "\n"
    path = plan.out / STUDY
    if not path.is_file():
        files.replace_file(path, text.encode())
        return plan
    before = read_json(path, _LARGEST)
    now = parse_json(text)
    different = [
        name
        for part in ("recipe", "code", "keys")
        for name in {**now[part], **before.get(part, {})}
        if now[part].get(name) != before.get(part, {}).get(name)
    ]
    different += ["unpruned"] * (now["unpruned"] != before.get("unpruned"))
    if different:
        told = ", ".join(dict.fromkeys(different))
        raise RunError(f"{plan.out} is a study with another {told}; give another folder, or the same command")
    return replace(plan, own_seeds=bool(before.get("own_seeds", True)))


def _task(plan: TuningPlan, number: int, values: dict[str, Any]) -> Task[Any]:
    task = load_task(plan.recipe, plan.overrides(number, values), plan.trust_code)
    task.recipe = with_absolute_paths(task.recipe)
    return task


def _run(journal: StudyJournal, trial: Trial, plan: TuningPlan, log: Say) -> None:
    """Train a trial, or go on with it, and tell the study how it ended."""
    from optuna.trial import TrialState

    from everstep.lab.study_journal import trial_name

    out = plan.out / trial_name(trial.number)
    outcome, reason = "trained", ""
    try:
        if _PRUNED in trial.user_attrs:  # the process was killed before it could say so
            raise _Pruned
        watch = partial(_watch, journal, trial, plan)
        say = partial(_warnings, log, trial.number)
        if is_run(out):
            training.resume(out, say, trust_code=plan.trust_code, callbacks=[watch])
        else:
            training.train(_task(plan, trial.number, trial.params), out, say, callbacks=[watch])
    except _Pruned:
        outcome = _PRUNED
    except Diverged as error:
        outcome, reason = "diverged", str(error).partition("; ")[0]
    except (ConfigError, DataError) as error:
        _check_files(load_task(plan.recipe, plan.fixed, plan.trust_code))  # files that are gone are no trial's fault
        outcome, reason = "refused", str(error)
    except torch.OutOfMemoryError:
        outcome, reason = "refused", "the memory of the device does not suffice"
    trial.set_user_attr("outcome", outcome)
    trial.set_user_attr("reason", reason)
    if outcome == "trained":
        journal.study.tell(trial, plan.best(_validations(plan, out)))
    else:  # a pruned trial counts by its validations, one without any as the worst; a failed one does not count
        state = TrialState.FAIL if outcome == "refused" else TrialState.PRUNED
        journal.study.tell(trial, state=state)
    log(told(plan, _record(plan, journal.study.get_trials(deepcopy=False)[trial.number])))


def _watch(journal: StudyJournal, trial: Trial, plan: TuningPlan, record: dict[str, Any]) -> None:
    """Report a validation to the study.

    Raises:
        _Pruned: the trial is worse than most.
    """
    if "valid" not in record:
        return
    from everstep.lab.study_journal import trial_name

    number = len(_validations(plan, plan.out / trial_name(trial.number)))  # also counts those from before a kill
    if number - 1 not in journal.study.get_trials(deepcopy=False)[trial.number].intermediate_values:
        trial.report(record[_key(plan)], number - 1)
    if trial.should_prune():
        trial.set_user_attr(_PRUNED, number)
        raise _Pruned


def _validations(plan: TuningPlan, run: Path) -> list[float]:
    """The measure at each validation of a run."""
    found = (record.get(_key(plan)) for record in read_metrics(run / METRICS_FILE))
    return [float(value) for value in found if value is not None]


def _key(plan: TuningPlan) -> str:
    return "valid" if plan.measure == LOSS else f"valid.{plan.measure}"


def _warnings(log: Say, number: int, line: str) -> None:
    if line.startswith("warning"):
        log(f"trial {number}: {line}")


def _record(plan: TuningPlan, frozen: FrozenTrial) -> Record:
    from everstep.lab.study_journal import trial_name

    run = plan.out / trial_name(frozen.number)
    last: dict[str, Any] = next(reversed(read_metrics(run / METRICS_FILE)), {})
    values = _validations(plan, run)
    ended = frozen.state.is_finished()
    best = plan.best(values) if values else None
    return {
        "trial": frozen.number,
        "run": run.name,
        "outcome": frozen.user_attrs.get("outcome", "running") if ended else "running",
        "value": frozen.value if frozen.state.name == "COMPLETE" else best,
        "reason": frozen.user_attrs.get("reason") or None,
        "steps": last.get("step", 0),
        "seconds": last.get("seconds", 0.0),
        "values": dict(frozen.params),
    }


def told(plan: TuningPlan, record: Record) -> str:
    """A trial in one line."""
    value = "" if record["value"] is None else f"{plan.measure} {record['value']:.4f}"
    keys = " ".join(f"{key}={shown(value)}" for key, value in record["values"].items())
    state = record["outcome"] if record["outcome"] != "trained" else ""
    reason = f"  ({record['reason']})" if record["reason"] else ""
    return f"trial {record['trial']:<4} {value:18} {state:9} {record['seconds']:6.1f} s  {keys}{reason}"


def shown(value: Any) -> str:
    """A tuned value as text, short."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
