"""Two translation runs on the same test sets: BLEU of each, and whether the difference is more than chance.

    python benchmarks/compare_translations.py RUN RUN2 [--data PREFIX …] [--json FILE] [decode.beam_width=5 …]

Without --data, the four test sets of Multi30k, en to de. All sets together are one test (Koehn 2004): one set of 1,000
texts cannot tell 1 BLEU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import everstep as es
from everstep.measures.paired_bootstrap import PairedBootstrap, Statistics, bleu_statistics, paired_bootstrap
from everstep.runs.recipe_files import changed
from everstep.runs.translations import best_texts, in_one_form

TESTS = ("test_2016_flickr", "test_2017_flickr", "test_2017_mscoco", "test_2018_flickr")
PREFIX = "${EVERSTEP_DATA}/multi30k/tok/{}.lc.norm.tok"


def statistics(run: Any, data: str) -> Statistics:
    """What BLEU counts in each translation of a test set by a run."""
    task: Any = changed(run.task, [f"data.test={json.dumps(data)}"])
    task.open(run.path)
    texts, section = task.texts, task.recipe.data
    (direction, *_) = texts.directions("test")
    sources, references = texts.texts("test", direction)
    found, _ = best_texts(run.model, sources, texts.toward(task.sides, direction), task.recipe.decode)
    one, other = (in_one_form(some, section.normal_form) for some in (found, references))
    return bleu_statistics(one, other, section.tokenisation == "given", section.lowercase)


def row(name: str, found: PairedBootstrap) -> str:
    """A line of the table."""
    return (
        f"{name:24} {found.texts:6,} {found.one:7.2f} {found.other:7.2f} {found.difference:+7.2f}  "
        f"[{found.low:+.2f}, {found.high:+.2f}]  {found.wins:6.1%}  {found.p:.4f}"
    )


def main() -> None:
    """Translate, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("one", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("decode", nargs="*", help="settings of decode for both, such as decode.beam_width=10")
    parser.add_argument("--data", nargs="+", default=[PREFIX.replace("{}", name) for name in TESTS])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    runs = [es.load(path).decoding(asked.decode) for path in (asked.one, asked.other)]
    print(f"{'':24} {'texts':>6} {'one':>7} {'other':>7} {'':>7}  95 %            better  p")
    each: dict[str, list[Statistics]] = {}
    table: dict[str, PairedBootstrap] = {}
    for data in asked.data:
        each[data] = [statistics(run, data) for run in runs]
        table[Path(data).name] = paired_bootstrap(each[data][0], each[data][1], asked.samples)
        print(row(Path(data).name[:24], table[Path(data).name]), flush=True)
    one, other = (np.concatenate([both[side] for both in each.values()]) for side in (0, 1))
    table["all"] = paired_bootstrap(one, other, asked.samples)
    print(row("all", table["all"]))
    if asked.json:
        asked.json.write_text(json.dumps({name: found._asdict() for name, found in table.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
