"""The verb `compare`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from everstep.cli.common import load_run, log
from everstep.cli.run_verbs import DEVICE, TRUST
from everstep.errors import counted
from everstep.storage.reading import json_text

if TYPE_CHECKING:
    from everstep.runs.compared_runs import Scored
    from everstep.runs.run import Run

COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "run": lambda row: f"{row['name']}{' *' if row['adapted'] else ''}",
    "bits/{unit}": lambda row: f"{'≥ ' if row['lower_bound'] else ''}{row['bits_per_' + row['unit']]:.4f}",
    "behind the best": lambda row: f"{row['behind']:.4f} [{row['low']:.4f}, {row['high']:.4f}]",
    "perplexity": lambda row: f"{row['perplexity']:,.2f}",
    "nats/{token}": lambda row: f"{row['nats_per_token']:.4f}",
    "{token}s": lambda row: f"{row['tokens']:,}",
    "unknown": lambda row: "–" if row["unknown_share"] is None else f"{row['unknown_share']:.2%}",
    "parameters": lambda row: f"{row['parameters']:,}",
}
"""The columns of the table, named by the units, and their cells."""


def compare(
    runs: list[Path] = typer.Argument(metavar="RUN…", help="The folders of runs that score lines."),
    on: list[str] | None = typer.Option(
        None, "--on", metavar="FILE", help="The text.", show_default="the files of --split in the first recipe"
    ),
    split: Literal["train", "valid", "test"] | None = typer.Option(
        None, help="The split whose files are the text.", show_default="test"
    ),
    mix: bool = typer.Option(False, "--mix", help="Also the best linear mixture of the runs."),
    log_linear: bool = typer.Option(
        False, "--log-linear", help="Also the best renormalised product of the runs; needs a minute or more."
    ),
    cache: int | None = typer.Option(
        None, min=1, metavar="N", help="Also each run mixed with a unigram cache of the last N tokens."
    ),
    carry: bool = typer.Option(
        False, "--carry", help="Runs whose text is one stream carry their state over lines, as in `everstep eval`."
    ),
    weights_on: list[str] | None = typer.Option(
        None, "--weights-on", metavar="FILE", help="The text for weights of mixtures.", show_default="data.valid"
    ),
    markdown: bool = typer.Option(False, "--markdown", help="A table in Markdown."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object, for machines."),
    picture: Path | None = typer.Option(None, metavar="PNG", help="Also draw it."),
    encoding: str = typer.Option("utf-8", help="Encoding of --on and --weights-on."),
    device: str = DEVICE,
    trust_code: bool = TRUST,
) -> None:
    """Compare runs on one text: bits a character, perplexity, and how certain the differences are.

    \b
      everstep compare runs/counts runs/lstm --on letters.txt
      everstep compare runs/kn5 runs/lstm --mix --cache 500 --picture table.png

    Each line is scored by itself, as by `everstep score`, or with --carry after those before it; blank lines are
    left out. Bits a character (a step, where no text is scored) compare models of any vocabulary; perplexity is per
    token, and compares models of the same tokens. The intervals are of a paired bootstrap over lines: if one has 0
    in it, the run may be as good as the best. ≥: unknown words are not spelled. *: adapted to the text before each
    token. Weights of mixtures are learned by EM on the validation text.
    """
    from everstep.runs.compared_runs import lines_of, names_of, read_lines_of, table

    if (mix or log_linear) and len(runs) < 2:
        raise typer.BadParameter("a mixture needs two runs or more.", param_hint="--mix, --log-linear")
    if on and split:
        raise typer.BadParameter("--on FILE is a text of its own; expected no --split beside it.")
    if log_linear and carry:
        raise typer.BadParameter("a product of runs steps through each line by itself.", param_hint="--carry")
    names, loaded = names_of(runs), [load_run(path, trust_code, device) for path in runs]
    for run in loaded:
        run.able("score")
    lines, named = (read_lines_of(on, encoding), ", ".join(on)) if on else lines_of(loaded, split or "test")
    others: list[str] = []
    if mixed := bool(mix or cache or log_linear):
        others = read_lines_of(weights_on, encoding) if weights_on else lines_of(loaded, "valid", "--weights-on")[0]
    models = _scored(loaded, names, lines, named, carry)
    if mixed:
        valids = _scored(loaded, names, others, "the validation text", carry)
        models += _made(models, valids, mix, cache) + (_multiplied(loaded, models, valids) if log_linear else [])
    rows = table(models, lines)
    if as_json:
        print(json_text({"text": named, "lines": len(lines), "rows": rows}, ensure_ascii=False))
    else:
        log(f"{named}: {counted(len(lines), 'line')}, blank ones left out")
        print(_shown(rows, markdown))
    if picture is not None:  # last, so that a picture that cannot be written costs no table
        from everstep.look.compared_models import draw_compared

        log(f"{picture}: {draw_compared(rows, picture)}")


def _scored(runs: Sequence[Run], names: Sequence[str], text: Sequence[str], what: str, carry: bool) -> list[Scored]:
    """Each run on a text."""
    from everstep.runs.compared_runs import scored
    from everstep.runs.progress_bar import progress_bar

    found = []
    for run, name in zip(runs, names, strict=True):
        with progress_bar(f"{name} on {what}") as progress:
            found.append(scored(run, name, text, progress, carry))
    return found


def _multiplied(runs: Sequence[Run], tests: list[Scored], valids: list[Scored]) -> list[Scored]:
    """The renormalised product of the runs."""
    from everstep.runs.log_linear import log_linear
    from everstep.runs.progress_bar import progress_bar

    with progress_bar("log-linear") as progress:
        return [log_linear(runs, tests, valids, progress)]


def _made(tests: list[Scored], valids: list[Scored], mix: bool, cache: int | None) -> list[Scored]:
    """What is made of the runs: their mixture, each with a cache, and their mixture with a cache."""
    from everstep.runs.compared_runs import mixture

    found = [mixture(tests, valids)] if mix else []
    if cache is not None:
        found += [mixture([test], [valid], cache) for test, valid in zip(tests, valids, strict=True)]
        found += [mixture(tests, valids, cache)] if mix else []
    return found


def _shown(rows: list[dict[str, Any]], markdown: bool) -> str:
    """The table as text."""
    unit = rows[0]["unit"]
    names = [name.format(unit=unit, token="token" if unit == "char" else unit) for name in COLUMNS]
    cells = [names, *([cell(row) for cell in COLUMNS.values()] for row in rows)]
    if markdown:
        head, *body = (f"| {' | '.join(row)} |" for row in cells)
        return "\n".join([head, "|---|" + "---|" * (len(COLUMNS) - 1), *body])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{'<' if not at else '>'}{width}}" for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
