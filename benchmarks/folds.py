"""Cross-validation: a recipe trained on all but one fold of its texts, and tested on that one, for each fold.

    python benchmarks/folds.py RECIPE OUT [key=value …] [--folds 10] [--rivals] [--json FILE]

Trains into OUT/1 … OUT/N, which may be there already: a finished fold is read, not trained again. Prints the accuracy
of each fold, their mean and standard deviation, and the same of the test texts alone that are no texts of training:
where a corpus repeats texts (MPQA), folds share them, and the usual figure is higher than that of new texts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import everstep as es
from everstep.native.processor import name as cpu_name


def measured(recipe: str, out: Path, overrides: list[str], with_rivals: bool) -> dict[str, Any]:
    """One fold and its figures."""
    start, used = time.perf_counter(), cpu_seconds()
    done = (out / "scores.json").exists()
    run = es.load(out) if done else es.train(recipe, out, lambda line: None, overrides=overrides)
    spent = {} if done else {"minutes": (time.perf_counter() - start) / 60, "cpu_minutes": (cpu_seconds() - used) / 60}
    texts = run.task.texts
    test, known = texts.examples("test"), frozenset(texts.examples("train").texts)
    right = [
        p.record["label"] == label for p, label in zip(run.predict(one_line(test.texts)), test.labels, strict=True)
    ]
    new = [hit for hit, text in zip(right, test.texts, strict=True) if text not in known]
    return {
        "accuracy": statistics.fmean(right),
        "accuracy_of_new": statistics.fmean(new) if new else None,
        "texts": len(right),
        "new": len(new),
        "macro_f1": run.evaluate("test")["macro_f1"],
        **spent,
        **({"rivals": {r["name"]: r["accuracy"] for r in run.rivals("test")}} if with_rivals else {}),
    }


def one_line(texts: list[str]) -> list[str]:
    """The texts as lines for `predict`."""
    return [" ".join(text.split("\n")) for text in texts]


def cpu_seconds() -> float:
    """Of this process and its children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def summary(folds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over folds; `texts`, `new` and times are sums."""

    def over(name: str) -> dict[str, float]:
        values = [fold[name] for fold in folds if fold.get(name) is not None]
        return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values) if len(values) > 1 else 0.0}

    found: dict[str, Any] = {name: over(name) for name in ("accuracy", "accuracy_of_new", "macro_f1")}
    found |= {name: sum(fold.get(name, 0) for fold in folds) for name in ("texts", "new", "minutes", "cpu_minutes")}
    rivals = folds[0].get("rivals", {})
    return found | {"rivals": {name: statistics.fmean(fold["rivals"][name] for fold in folds) for name in rivals}}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--first", type=int, help="only so many of the folds")
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folds = []
    for number in range(1, (options.first or options.folds) + 1):
        overrides = [*options.overrides, f"data.folds={options.folds}", f"data.fold={number}"]
        folds.append(measured(options.recipe, options.out / str(number), overrides, options.rivals))
        print(f"fold {number}: {json.dumps(folds[-1])}", flush=True)
    versions = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    result = {"recipe": options.recipe, **versions, "load": os.getloadavg()[0], **summary(folds), "folds": folds}
    print(json.dumps({key: value for key, value in result.items() if key != "folds"}, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
