"""`everstep search`: random search for a cell, and its results."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import typer

from everstep.cli.common import log, me, prepare
from everstep.errors import RunError

BEST, WORST = 5, 3


def search(
    recipe: str = typer.Argument(..., metavar="RECIPE", help="A shipped name (search-ptb) or a YAML file."),
    overrides: list[str] | None = typer.Argument(None, metavar="KEY=VALUE", help="Changes of the recipe's keys."),
    out: Path = typer.Option(
        ..., "--out", "-o", metavar="RUN", help="Folder of the search; an existing one is resumed."
    ),
    cells: int = typer.Option(50, min=1, help="Random cells to try."),
    steps: int | None = typer.Option(None, min=1, help="Steps per cell.", show_default="the recipe's train.max_steps"),
    processes: int = typer.Option(1, min=1, help="Cells trained in parallel, each on train.threads cores (1)."),
) -> None:
    """Search for a cell among random ones, beside LSTM and GRU.

    \b
      everstep search search-ptb --cells 50 --out runs/search
      everstep search search-ptb --cells 200 --processes 2 --out runs/search        adds 150 cells
      everstep search text-words data.train=my.txt --steps 300 --out runs/mine
      everstep train runs/search/best.yaml train.max_steps=5000 --out runs/best     the best one, for longer

    A cell is a random tree of sums, products and activations (Zoph & Le 2017), compiled like any other. All cells use
    the same seed and the same text. A search can be stopped at any time; the same command resumes it.

    \b
      RUN/search.jsonl          one line per cell: seed, tree, held-out perplexity, seconds, parameters, state
      RUN/best.json, best.yaml  the best tree, and the recipe with it
      RUN/pictures/search.png   all cells beside the LSTM and the GRU

    A difference of a few per cent may be luck; train both cells for longer and with other seeds before trusting it.
    """
    prepare()
    from everstep.lab import cell_search as searching

    records = searching.search(
        recipe, out, log, overrides=overrides or [], cells=cells, steps=steps, processes=processes, begin=prepare
    )
    ranks = searching.ranked(records)
    print(table(ranks))
    from everstep.look.gallery import write_gallery
    from everstep.look.search_results import draw_search, search_words

    picture = out / "pictures" / "search.png"
    failed = {kind: [r["name"] for r in records if r["outcome"] == kind] for kind in ("diverged", "refused")}
    results = {record["name"]: float(record["perplexity"]) for record in ranks}
    if results:
        draw_search(results, searching.YARDSTICKS, picture, len(failed["diverged"]))
        words = search_words(results, searching.YARDSTICKS)
        write_gallery(picture.parent, f"Cells tried in {out.resolve().name}", [(picture, words)])
        print(f"\n{picture}\n    {words}")
    if failed["diverged"]:
        print(f"diverged: {', '.join(failed['diverged'])}")
    best = out / searching.BEST_RECIPE
    if best.is_file():
        longer = " ".join(map(shlex.quote, [str(best), "train.max_steps=5000", "--out", str(out / "best")]))
        print(f"\nThe best random cell, for longer:\n  {me()} train {longer}")
    if failed["refused"]:
        raise RunError(
            f"the compiled engine refused {', '.join(failed['refused'])}; why is in {out / searching.RECORDS}; "
            "the same command tries them again"
        )


def table(ranks: list[dict[str, Any]]) -> str:
    """A table of the best and the worst cells, with the known cells at their ranks."""
    lines = [f"{'place':>5}  {'cell':10}{'perplexity':>12}{'seconds':>9}{'parameters':>12}{'state':>7}"]
    last = 0
    for place, r in enumerate(ranks, 1):
        if BEST < place <= len(ranks) - WORST and r["tree"] is not None:
            continue
        if place > last + 1:
            lines.append(f"{'…':>5}")
        last = place
        numbers = f"{r['perplexity']:12,.1f}{r['seconds']:9.1f}{r['parameters']:12,}{r['state']:7,}"
        lines.append(f"{place:5}  {r['name']:10}{numbers}")
    return "\n".join(lines)
