"""Two translation runs on the same test sets: BLEU of each, and whether the difference is more than chance.

    python benchmarks/compare_translations.py RUN RUN2 [--data PREFIX …] [--names NAME NAME2] [--json FILE]
        [--picture PNG] [decode.beam_width=5 …]

Without --data, the four test sets of Multi30k; runs of several languages translate their first direction. All sets
together are one test (Koehn 2004): one set of 1,000 texts cannot tell 1 BLEU. All texts are also compared in groups of
similar length, which the picture draws.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import everstep as es
from everstep.errors import DataError
from everstep.look.by_length import length_groups
from everstep.look.style import COLOURS, DASHES, canvas, label, legend, save
from everstep.measures.paired_bootstrap import PairedBootstrap, Statistics, bleu_statistics, paired_bootstrap
from everstep.runs.recipe_files import changed
from everstep.runs.translations import best_texts, in_one_form

TESTS = ("test_2016_flickr", "test_2017_flickr", "test_2017_mscoco", "test_2018_flickr")
PREFIX = "${EVERSTEP_DATA}/multi30k/tok/{}.lc.norm.tok"


def statistics(run: Any, data: str) -> tuple[Statistics, list[int], Any]:
    """What BLEU counts in each translation of a test set by a run, the words of each source, and what
    must be equal in both runs: the references, and how their words are counted."""
    task: Any = changed(run.task, [f"data.test={json.dumps(data)}"])
    task.open(run.path)
    texts, section = task.texts, task.recipe.data
    (direction, *_) = texts.directions("test")
    sources, references = texts.texts("test", direction)
    found, _ = best_texts(run.model, sources, texts.toward(task.sides, direction), task.recipe.decode)
    one, other = (in_one_form(some, section.normal_form) for some in (found, references))
    how = section.tokenisation == "given", section.lowercase
    return bleu_statistics(one, other, *how), [len(source.split()) for source in sources], (other, how)


def by_length(one: Statistics, other: Statistics, words: list[int], samples: int) -> dict[str, PairedBootstrap]:
    """The comparison of texts of similar length, by the range of their words."""
    found = {}
    for group in map(np.array, length_groups(words)):
        ends = sorted({words[group[0]], words[group[-1]]})
        found[f"{'–'.join(map(str, ends))} words"] = paired_bootstrap(one[group], other[group], samples)
    return found


def draw(groups: dict[str, PairedBootstrap], names: list[str], path: Path) -> None:
    """BLEU of both by length; the band around the second is the 95 % interval of the difference."""
    figure = canvas(height=5.0)
    axes = figure.subplots()
    found, places = list(groups.values()), np.arange(len(groups))
    axes.plot(places, [one.one for one in found], DASHES[0], color=COLOURS[0], marker="o", label=names[0])
    second = np.array([one.other for one in found])
    within = np.array([[one.one - one.high, one.one - one.low] for one in found]).T
    axes.plot(places, second, DASHES[1], color=COLOURS[1], marker="s", label=names[1])
    axes.fill_between(places, *within, color=COLOURS[1], alpha=0.2, linewidth=0)
    axes.set_xticks(places, [name.removesuffix(" words") for name in groups])
    axes.set_ylim(0, 1.1 * max(one.one for one in found))
    label(axes, "words of the source", "BLEU")
    legend(axes, loc="center left")
    save(figure, path)


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
    parser.add_argument("--names", nargs=2, default=["one", "other"])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args()
    runs = [es.load(path).decoding(asked.decode) for path in (asked.one, asked.other)]
    print(f"{'':24} {'texts':>6} {asked.names[0][:7]:>7} {asked.names[1][:7]:>7} {'':>7}  95 %            better  p")
    each: list[tuple[Statistics, Statistics]] = []
    table: dict[str, PairedBootstrap] = {}
    words: list[int] = []
    for data in asked.data:
        (first, lengths, wanted), (second, _, also) = (statistics(run, data) for run in runs)
        if wanted != also:
            raise DataError(
                f"compare_translations: {asked.one} and {asked.other} have other references in {data}, or count their "
                "words in another way"
            )
        each.append((first, second))
        words += lengths
        table[Path(data).name] = paired_bootstrap(first, second, asked.samples)
        print(row(Path(data).name[:24], table[Path(data).name]), flush=True)
    one, other = (np.concatenate([both[side] for both in each]) for side in (0, 1))
    groups = by_length(one, other, words, asked.samples)
    table |= {"all": paired_bootstrap(one, other, asked.samples), **groups}
    for name in ("all", *groups):
        print(row(name, table[name]))
    if asked.json:
        asked.json.write_text(json.dumps({name: found._asdict() for name, found in table.items()}, indent=1) + "\n")
    if asked.picture:
        draw(groups, asked.names, asked.picture)


if __name__ == "__main__":
    main()
