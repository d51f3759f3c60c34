"""A direction that a multilingual run was never trained in, beside copying the source and beside a third language.

    python benchmarks/zero_shot.py RUN [--direction de-fr] [--through en] [--data PREFIX …] [--json FILE]

The test texts (those of the run, or `--data`) are translated straight, from all tokens and from those of the target
language alone (`decode.own_tokens`), and in two steps: into the third language, and its translations from there (a
pivot, in both of whose directions the run was trained). Copying writes each source as it is. Differences have a 95 %
interval by paired bootstrap (Koehn 2004).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import everstep as es
from everstep.errors import ConfigError
from everstep.measures.bleu import translation_measures
from everstep.measures.paired_bootstrap import bleu_statistics, paired_bootstrap
from everstep.runs.directions import Direction, direction_of
from everstep.runs.recipe_files import changed
from everstep.runs.translations import best_texts, in_one_form


class Translator:
    """A run and its test texts."""

    def __init__(self, run: es.Run, data: list[str] | None):
        task: Any = run.task if data is None else changed(run.task, [f"data.test={json.dumps(data)}"])
        task.open(run.path)
        self.model, self.texts, self.sides, self.how = run.model, task.texts, task.sides, task.recipe.decode
        self.section = task.recipe.data

    def written(self, sources: list[str], direction: Direction, own: bool = False) -> list[str]:
        """The translations of texts, from all tokens or from those of the target language."""
        how = self.how.replace(own_tokens=own)
        return best_texts(self.model, sources, self.texts.toward(self.sides, direction), how)[0]


def main() -> None:
    """Translate, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--direction", type=direction_of, default=direction_of("de-fr"))
    parser.add_argument("--through", default="en")
    parser.add_argument("--data", nargs="+")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    translator = Translator(es.load(asked.run), asked.data)
    trained, straight = translator.section.directions, asked.direction
    steps = Direction(straight.source, asked.through), Direction(asked.through, straight.target)
    if straight in trained or not set(steps) <= set(trained):
        raise ConfigError(
            f"zero_shot: expected a direction that {asked.run} was not trained in, and steps through {asked.through} "
            f"that it was; got {straight}, and {', '.join(map(str, trained))}"
        )
    sources, references = translator.texts.texts("test", straight)
    ways = {"own tokens": translator.written(sources, straight, own=True), "copied": sources}
    ways["all tokens"] = translator.written(sources, straight)
    ways["pivot"] = translator.written(translator.written(sources, steps[0]), steps[1])
    form = translator.section.normal_form
    references, ways = in_one_form(references, form), {name: in_one_form(some, form) for name, some in ways.items()}
    given, lowercase = translator.section.tokenisation == "given", translator.section.lowercase
    counted = {name: bleu_statistics(texts, references, given, lowercase) for name, texts in ways.items()}
    rows = {}
    for name, texts in ways.items():
        measures = translation_measures(texts, references, given, lowercase)
        beside = paired_bootstrap(counted["own tokens"], counted[name])
        rows[name] = {**{key: measures[key] for key in ("bleu", "chrf", "brevity_penalty")}, **beside._asdict()}
        print(
            f"{straight} {name:10} {len(texts):,} texts  {measures['bleu']:6.2f} BLEU  {measures['chrf']:6.2f} chrF; "
            f"own tokens are {beside.difference:+.2f} BLEU [{beside.low:+.2f}, {beside.high:+.2f}]",
            flush=True,
        )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
