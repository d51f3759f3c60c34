"""Random architecture search: cells of `random_tree`, trained for equally many steps, beside an LSTM and a GRU."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from copy import copy
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from everstep.cells import random_tree
from everstep.errors import ConfigError, Diverged, RunError, counted
from everstep.explanation import Explanation, explain
from everstep.learn import RunLock, fit
from everstep.runs import card
from everstep.runs.recipe import Recipe
from everstep.runs.recipe_files import changed, load_task, parse_task, to_yaml
from everstep.runs.shipped_recipes import read_recipe
from everstep.runs.task import Say, Task
from everstep.runs.text_data import with_absolute_paths
from everstep.runs.training import begin as begin_training
from everstep.runs.workers import in_processes, kept, stoppable
from everstep.runs.yaml_text import parse_yaml
from everstep.state import leaves
from everstep.storage.files import replace_file
from everstep.storage.reading import json_text
from everstep.storage.records import Record, read_records, write_records

YARDSTICKS = ("LSTM", "GRU")
STEPS = 32  # length of the sequence for which a backend is chosen
RECORDS, RECIPE, BEST_TREE, BEST_RECIPE = "search.jsonl", "recipe.yaml", "best.json", "best.yaml"


def search(
    recipe: str | Path,
    out: str | Path,
    log: Say,
    *,
    overrides: Sequence[str] = (),
    cells: int = 50,
    steps: int | None = None,
    processes: int = 1,
    begin: Callable[[], None] | None = None,
) -> list[Record]:
    """Train the trees of seeds 0 … cells − 1, an LSTM and a GRU, each for equally many steps with the same seed.

    Results are stored in `OUT/search.jsonl`, one line each, and not repeated: the same call resumes a stopped search or
    adds cells to a finished one. `OUT/best.json` is the best tree, as a value of `model.cell`, and `OUT/best.yaml` the
    recipe with it.

    Args:
        recipe: a shipped name or a YAML file; the search replaces its `model.cell`.
        out: the folder of the search.
        log: receives each line for the user.
        overrides: changes of the recipe.
        cells: number of random cells.
        steps: optimizer steps per cell; `train.max_steps` of the recipe if None.
        processes: number of cells trained in parallel, each in its own process with `train.threads` threads (default
            1).
        begin: called at the start of each new process.

    Returns:
        The records of `search.jsonl`: name; seed and tree (None for LSTM and GRU); outcome: "trained", "diverged" (NaN
        or infinity) or "refused" (by the compiled engine; not trained, and tried again the next time); reason; backend;
        perplexity on the validation split, or None; seconds, including compilation; parameters and state size of the
        cells.

    Raises:
        ConfigError: the recipe or an argument cannot be used.
        DataError: the text cannot be used.
        RunError: `out` is not a search, belongs to another recipe, or is in use.
        Interrupted: a signal arrived; finished results are kept.
    """
    task = _limited(load_task(recipe, overrides), cells, steps, processes)
    out = Path(out)
    # reports problems of the data before the folder is created; the data is read once for all cells
    task = _prepared(to_yaml(task.recipe))
    text = to_yaml(task.recipe)
    with RunLock(_folder(out)), stoppable(kept(out)):
        _same(out, task.recipe)
        records = {record["name"]: record for record in read_records(out / RECORDS)}
        wanted: dict[str, Any] = {name: name for name in YARDSTICKS}
        wanted |= {f"tree-{seed}": random_tree(seed) for seed in range(cells)}
        todo = {n: c for n, c in wanted.items() if n not in records or records[n]["outcome"] == "refused"}
        if todo:
            log(f"done: {len(wanted) - len(todo)} of {counted(len(wanted), 'cell')}; {len(todo)} to go")
        started = time.monotonic()
        with closing(in_processes(partial(attempt, text), todo, processes, begin)) as attempts:
            for number, (name, found) in enumerate(attempts, 1):
                seed = None if name in YARDSTICKS else int(name.removeprefix("tree-"))
                records[name] = {"name": name, "seed": seed, **found}
                write_records(out / RECORDS, records.values())
                left = (time.monotonic() - started) / number * (len(todo) - number)
                wait = f", about {left:.0f} s to go" if left < 90 else f", about {left / 60:.0f} min to go"
                log(f"{_told(records[name])}   ({number} of {len(todo)}{wait if left else ''})")
        trees = [record for record in ranked(list(records.values())) if record["tree"] is not None]
        if trees:
            replace_file(out / BEST_TREE, (json_text(trees[0]["tree"]) + "\n").encode())
            replace_file(out / BEST_RECIPE, to_yaml(_with_cell(task, _tuples(trees[0]["tree"])).recipe).encode())
    return read_records(out / RECORDS)


def ranked(records: list[Record]) -> list[Record]:
    """The trained records, best first."""
    return sorted((r for r in records if r["outcome"] == "trained"), key=lambda record: record["perplexity"])


def attempt(recipe: str, cell: Any) -> Record:
    """Train and validate a model with `cell` (a name or a tree), unless the compiled engine refuses its tree."""
    started = time.monotonic()
    task = _prepared(recipe)
    settings = task.recipe.train
    torch.set_num_threads(settings.threads or 1)
    torch.manual_seed(task.recipe.seed)
    model: Any = _with_cell(task, cell).model()
    parts = list(_cells(explain(model.body, torch.zeros(settings.batch_size, STEPS, model.body.input_size))))
    found: Record = {
        "tree": None if isinstance(cell, str) else cell,
        "outcome": "trained",
        "reason": None,
        "backend": ", ".join(sorted({str(part.backend) for part in parts})),
        "perplexity": None,
        "parameters": sum(parameter.numel() for parameter in model.body.parameters()),
        "state": sum(leaf.numel() for _, leaf in leaves(model.initial_state(1))),
    }
    if not isinstance(cell, str) and found["backend"] != "fused":
        reason = next(part.passed["fused"] for part in parts if part.backend != "fused")
        return {**found, "outcome": "refused", "reason": reason, "seconds": time.monotonic() - started}
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = fit(
                model,
                task.objective,
                task.batches("train", model, "learn"),
                settings,
                out=Path(folder),
                seed=task.recipe.seed,
                validate=task.validate,
                log=lambda line: None,
            )
            assert result.best_valid is not None
            found["perplexity"] = math.exp(min(result.best_valid, 700))
        except Diverged as error:
            found |= {"outcome": "diverged", "reason": str(error).partition("; ")[0]}
    return {**found, "seconds": time.monotonic() - started}


def _limited(task: Task[Any], cells: int, steps: int | None, processes: int) -> Task[Any]:
    """The job with `max_steps` as its only limit."""
    for name, value in (("cells", cells), ("steps", steps), ("processes", processes)):
        if value is not None and value < 1:
            raise ConfigError(f"search: expected {name} to be a whole number ≥ 1; got {value}")
    steps = steps or task.recipe.train.max_steps
    if steps is None:
        raise ConfigError("search: expected --steps N for each cell, since the recipe has no train.max_steps; got none")
    if not task.recipe.validated():
        raise ConfigError("search: expected data.valid, or data.valid_fraction above 0: cells are compared by it")
    if task.code.digests:
        files = ", ".join(task.code.digests)
        raise ConfigError(f"search: expected a recipe without files of your own, but it names {files}")
    limits = (f"train.max_steps={steps}", "train.max_epochs=null", "train.max_minutes=null")
    limited = changed(task, limits)
    limited.recipe = with_absolute_paths(limited.recipe)
    return limited


def _folder(out: Path) -> Path:
    if out.exists() and not (out / RECIPE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is no search; give another folder, or delete it")
    return out


def _same(out: Path, recipe: Recipe) -> None:
    """Begin the folder, or check that it was begun with the same recipe."""
    path = out / RECIPE
    if not path.is_file():
        card.write_environment(out)
        replace_file(path, to_yaml(recipe).encode())
        return
    before, now = (_dotted(parse_yaml(text, str(path))) for text in (read_recipe(path), to_yaml(recipe)))
    different = [key for key in {**now, **before} if now.get(key) != before.get(key)]
    if different:
        raise RunError(f"{out} is a search by a recipe with another {', '.join(different)}; give another folder")


def _dotted(raw: Any) -> dict[str, Any]:
    """The dotted keys of an untrusted recipe with their values; loads no code."""
    found: dict[str, Any] = {}
    for key, value in raw.items() if isinstance(raw, dict) else ():
        found |= {f"{key}.{name}": entry for name, entry in value.items()} if isinstance(value, dict) else {key: value}
    return found


@lru_cache(1)
def _prepared(recipe: str) -> Task[Any]:
    """The job of a recipe, with its data read."""
    task = parse_task(recipe, RECIPE)
    begin_training(task, lambda line: None)
    return task


def _cells(explained: Explanation) -> Iterator[Explanation]:
    """The cells within a wiring."""
    if explained.backend is not None:
        yield explained
    for part in explained.parts:
        yield from _cells(part)


def _with_cell(task: Task[Any], cell: Any) -> Task[Any]:
    """The job with another cell and the same data, not read again."""
    model = task.recipe.model.model_copy(update={"cell": cell})
    other = copy(task)
    other.recipe = task.recipe.model_copy(update={"model": model})
    return other


def _tuples(tree: Any) -> Any:
    return tuple(map(_tuples, tree)) if isinstance(tree, list | tuple) else tree


def _told(record: Record) -> str:
    result = f"perplexity {record['perplexity']:,.1f}" if record["perplexity"] is not None else record["outcome"]
    return f"{record['name']:8} {result:20} {record['seconds']:5.1f} s {record['parameters']:9,} parameters"
