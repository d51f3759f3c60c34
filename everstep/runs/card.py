"""The metadata of a run folder: `environment.json`, `scores.json` and the card, `README.md`."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import everstep
from everstep.errors import ConfigError, DataError, RunError, counted
from everstep.learn import FitResult
from everstep.learn.devices import device_name
from everstep.learn.weights import MODEL_FILE, said_step
from everstep.native import processor
from everstep.parameters import device_of, parameter_count
from everstep.runs.capabilities import HasRivals, Renders, abilities
from everstep.runs.folder import ENVIRONMENT
from everstep.runs.recipe import FORMAT
from everstep.runs.task import Task, trusting
from everstep.storage import files
from everstep.storage.reading import json_text, parse_json, read_small, reason, sealed, unsealed

SCORES = "scores.json"
_LARGEST = 1 << 20  # largest environment.json in bytes
_LARGEST_SCORES = 1 << 28
_SAME = "this recipe gives the same bits on such a machine, with as many threads and these versions"
_SAME_BUT_FOR_ROUNDING = (
    "this recipe sees the same batches and draws the same random numbers on such a device with these versions, but a "
    "GPU may add in another order each time, so that the bits differ"
)
_CLOCKED = "the clock had a part in how long it trained or in its learning rate, so that another run will differ"


def write_environment(out: Path, **begun: Any) -> None:
    """Write `environment.json`, sealed: format, versions, machine, threads, time, and the entries `begun`."""
    content = {
        "format": FORMAT,
        "everstep": everstep.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": processor.name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **begun,
    }
    _write_json(out / ENVIRONMENT, sealed(content))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with files.explained(path.parent):
        files.replace_file(path, (json_text(content, indent=2) + "\n").encode())


def amend_environment(out: Path, **begun: Any) -> None:
    """Update entries that `environment.json` already has."""
    content = read_environment(out)
    changed = {name: value for name, value in begun.items() if name in content and content[name] != value}
    if changed:
        _write_json(out / ENVIRONMENT, sealed({**content, **changed}))


def read_environment(out: Path) -> dict[str, Any]:
    """The content of `environment.json`; in early versions it has no seal and fewer entries.

    Raises:
        RunError: the file is missing, damaged or of a newer format.
    """
    path = out / ENVIRONMENT
    try:
        content: dict[str, Any] = parse_json(read_small(path, _LARGEST))
        found = content["format"]
        if "seal" in content:
            content = unsealed(content)
        if not isinstance(found, int):
            raise ValueError(f"its format is {found!r}, not a whole number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: missing or damaged ({reason(error)}); {out} is not a whole run") from None
    if found > FORMAT:
        raise RunError(
            f"{out} was made by a newer version of everstep ({content.get('everstep')}, run format {found}); "
            f"this one ({everstep.__version__}) reads formats up to {FORMAT}: upgrade everstep"
        )
    return content


def write_scores(out: Path, scores: dict[str, Any]) -> None:
    """Write `scores.json`: the result of `evaluate` on each split except "train"."""
    _write_json(out / SCORES, scores)


class Rivals(NamedTuple):
    """Names and measures of baselines on a split, or the reason why there are none."""

    split: str
    found: list[dict[str, Any]]
    missing: str

    def line(self, measure: str) -> str:
        """A line with one measure of each baseline, for the user."""
        told = [f"{rival['name']} {shown_number(rival[measure])}" for rival in self.found]
        return f"rivals on {self.split}, {measure.replace('_', ' ')}: {self.missing or '; '.join(told)}"


def quick_rivals(task: HasRivals, split: str) -> Rivals:
    """The baselines of a job, fitted within seconds."""
    try:
        return Rivals(split, task.rivals(split, quick=True), "")
    except ConfigError as error:
        return Rivals(split, [], str(error))


def write_card(
    out: Path,
    task: Task[Any],
    model: nn.Module,
    made: Sequence[str],
    scores: dict[str, Any],
    rivals: Rivals | None = None,
) -> None:
    """Write `README.md` of a run: its job and model, its measures beside those of baselines, and its commands.

    `made` says how the weights were made, in a line or more, such as those of `trained`.
    """
    recipe = task.recipe
    parameters = parameter_count(model)
    run = f"{shlex.quote(str(out))}{trusting(task)}"
    lines = [
        f"# {out.name}",
        "",
        f"A {recipe.task} run trained with everstep {everstep.__version__}.",
        "",
        *(f"- {line}" for line in _about(task)),
        f"- model: {parameters:,} parameters",
        *(f"- {line}" for line in made),
        "",
        *_table(task, scores),
        "",
        *(_beside(rivals, scores[rivals.split]) if rivals else []),
        "```sh",
        *(example(task, verb, run) for verb in EXAMPLES if verb in abilities(task)),
        "```",
        "",
    ]
    with files.explained(out):
        files.replace_file(out / "README.md", "\n".join(lines).encode())


def _about(task: Task[Any]) -> list[str]:
    """The job's lines on its data, or why there are none: the data of an older run may be gone."""
    try:
        return task.summary()
    except DataError as error:
        return [f"data: {error}"]


def trained(task: Task[Any], model: nn.Module, result: FitResult) -> list[str]:
    """Lines for the card of a run that was trained: how long, and what a repetition gives."""
    how = f"training: {_trained(task, model, result)}; seed {task.recipe.seed}"
    return [how, f"again: {_again(model, result)}"]


def in_one_line(out: Path, task: Task[Any], model: nn.Module) -> str:
    """A summary in one line: job, cells, parameters, step of the weights, first measure on the last split.

    Unknown parts are omitted, for example before training; raises nothing.
    """
    section = getattr(task.recipe, "model", None)
    cell, sizes = getattr(section, "cell", type(model).__name__), getattr(section, "hidden_sizes", ())
    name = (
        cell.get("type", "cell") if isinstance(cell, Mapping) else cell if isinstance(cell, str) else "ExpressionCell"
    )
    layers = f"{len(sizes)} × {min(sizes)}" if len(set(sizes)) == 1 else " + ".join(map(str, sizes))
    words = [task.recipe.task, f"{name} {layers}".strip()]
    words.append(counted(parameter_count(model), "parameter"))
    if (step := said_step(out / MODEL_FILE)) is not None:
        words.append(f"step {step:,}")
    try:
        split, measures = list(parse_json(read_small(out / SCORES, _LARGEST_SCORES)).items())[-1]
        measure = next(name for name in (*task.shown, "loss") if name in measures)
        words.append(f"{measure.replace('_', ' ')} {shown_number(measures[measure])} on {split}")
    except (OSError, ValueError, AttributeError, TypeError, LookupError, StopIteration):
        pass
    return ", ".join(words)


def _trained(task: Task[Any], model: nn.Module, result: FitResult) -> str:
    if not task.optimised:
        return f"the model is fitted to the data at once, without steps, on {_where(model)}"
    minutes = f"{result.seconds / 60:.1f} minutes on {_where(model)}"
    return f"{counted(result.steps, 'step')}, {result.epochs:.2f} epochs, {minutes}; ended by {result.stopped_by}"


def _again(model: nn.Module, result: FitResult) -> str:
    """A sentence on the reproducibility of the run."""
    if result.clocked or result.stopped_by == "max_minutes":
        return _CLOCKED
    return _SAME if device_of(model).type == "cpu" else _SAME_BUT_FOR_ROUNDING


def _where(model: nn.Module) -> str:
    device = device_of(model)
    return device_name(device) + (f" with {counted(torch.get_num_threads(), 'thread')}" if device.type == "cpu" else "")


EXAMPLES = {
    "eval": "{me} eval {run}",
    "generate": "{me} generate {run} --length 200 --temperature 0.8",
    "score": "{me} score {run} < {file}",
    "predict": "{me} predict {run} < {file}",
    "backtest": "{me} backtest {run}",
    "look": "{me} look {run}",
}
FILES = {"score": "sentences.txt", "predict": "lines.txt"}


def example(task: Task[Any], verb: str, run: str, me: str = "everstep") -> str:
    """An example command for a verb of `EXAMPLES`; `me` is the name of the everstep command."""
    if verb == "generate" and isinstance(task, Renders):  # as its recipe draws, to a file that can be looked at
        return f"{me} generate {run} --out made{task.renders[0]}"
    return EXAMPLES[verb].format(me=me, run=run, file={**FILES, **task.reads}.get(verb))


def _table(task: Task[Any], scores: dict[str, dict[str, Any]]) -> list[str]:
    """A table with a row for each numeric measure and a column for each split."""
    names = [name for measures in scores.values() for name, value in measures.items() if isinstance(value, int | float)]
    if not names:
        return ["It was scored on no held-out data, so that nothing is known of how well it does."]
    rows = []
    for name in dict.fromkeys(names):
        meaning = next(filter(None, (meaning_of(task, measures, name) for measures in scores.values())), "")
        shown = " | ".join(shown_measure(measures, name) for measures in scores.values())
        rows.append(f"| {name.replace('_', ' ')} | {shown} | {meaning} |")
    return [f"| | {' | '.join(scores)} | |", "|---|" + "---|" * len(scores) + "---|", *rows]


def _beside(rivals: Rivals, ours: Mapping[str, Any]) -> list[str]:
    """A table of this run and its baselines on one split, a row each."""
    if rivals.missing:
        return [f"Simpler models were not held against it: {rivals.missing}", ""]
    names = [name for name in rivals.found[0] if name in ours]
    rows = [{"name": "**this run**", **ours}, *rivals.found]
    return [
        f"Beside it, simpler models on {rivals.split}, fitted quickly; `everstep eval RUN --rivals` takes its time.",
        "",
        f"| on {rivals.split} | {' | '.join(name.replace('_', ' ') for name in names)} |",
        "|---|" + "---|" * len(names),
        *(f"| {row['name']} | {' | '.join(shown_number(row[name]) for name in names)} |" for row in rows),
        "",
    ]


def shown_measure(measures: Mapping[str, Any], name: str) -> str:
    """A measure as text; one in `lower_bounds` as `≥ 0.1900`."""
    bound = "≥ " if name in measures.get("lower_bounds", ()) else ""
    return bound + shown_number(measures.get(name))


def meaning_of(task: Task[Any], measures: Mapping[str, Any], name: str) -> str:
    """The description of a measure; for a lower bound, with the reason."""
    if name in measures.get("lower_bounds", ()):
        share = f"{measures['unknown_share']:.2%}"
        return f"a lower bound: {share} of the tokens are <unk>, which are not spelled"
    return task.meaning.get(name, "")


def shown_number(value: Any) -> str:
    """A number as text."""
    if value is None:
        return "–"
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
