"""`everstep lab`: experiments on what recurrent networks can remember."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from everstep.cli.common import prepare
from everstep.cli.lab_pictures import pictures
from everstep.errors import ConfigError

if TYPE_CHECKING:
    from everstep.look.remedy_results import Grid

N = TypeVar("N", int, float)

app = typer.Typer(no_args_is_help=True)


@app.callback()
def lab() -> None:
    """The laboratory: what recurrent networks can remember.

    \b
      everstep lab pictures --out pictures                                     gradients that vanish, gates that open
      everstep lab remedies --lags 5,10,20 --minutes 5 --out runs/remedies     which remedy bridges which lag

    An experiment is a folder. Stop it whenever you like; the same command goes on.
    """


@app.command("remedies")
def remedies(
    lags: str = typer.Option(..., metavar="N,N,…", help="Steps to be bridged, rising: 20,50,100,200,400."),
    out: Path = typer.Option(
        ..., "--out", "-o", metavar="FOLDER", help="Folder of the experiment; it goes on if there is one."
    ),
    task: str = typer.Option("adding", help="adding, order (temporal order of two symbols) or copy (copy memory)."),
    minutes: float | None = typer.Option(
        None, help="For all trials together, shared evenly; this or --steps is needed."
    ),
    steps: int | None = typer.Option(None, help="Of each trial at most; without minutes, results are reproducible."),
    processes: int = typer.Option(1, help="Trials at a time, one core each."),
    seeds: int = typer.Option(1, help="Trials of each remedy at each lag and rate."),
    rates: str = typer.Option("0.0003,0.003", metavar="X,X,…", help="Learning rates (Adam); the best counts."),
    hidden: int = typer.Option(64, help="Units of every network."),
    batch: int = typer.Option(32, help="Sequences a step."),
    only: str | None = typer.Option(
        None, metavar="NAME;NAME", help="Some of the remedies; an unknown name lists them.", show_default="all"
    ),
) -> None:
    """Which remedy for vanishing gradients reaches which lag?

    \b
      everstep lab remedies --lags 5,10,20 --minutes 5 --out runs/quick
      everstep lab remedies --lags 20,50,100,200,400 --minutes 480 --processes 2 --out runs/adding
      everstep lab remedies --task order --lags 20,50,100 --minutes 60 --seeds 3 --out runs/order
      everstep lab remedies --only "tanh; LSTM; LSTM, chrono" --lags 50 --steps 2000 --out runs/three

    Cells, starts and rules are trained side by side on one problem whose answer lies LAG steps back: simple networks
    with and without clipping, orthogonal and identity starts, leaky and clockwork units, shortcuts, oscillators, LSTMs
    and GRUs. All have as many units, see the same sequences and get the same share of the time. A trial ends early when
    it has solved its problem: adding at a squared error below 0.01 (0.167 is not looking), order and copy at less than
    1 % wrong.

    \b
      FOLDER/remedies.md       the table: held-out loss ÷ that of not looking, ticked where solved
      FOLDER/remedies.jsonl    a line for each trial, with its curve
      FOLDER/pictures/remedies.png

    One trial may be luck: believe a difference when it holds over several --seeds. Where minutes limit it, a lag that a
    remedy does not reach may need more of them: look at its curve.
    """
    if minutes is None and steps is None:
        raise typer.BadParameter("expected --minutes or --steps, which end a trial that does not solve its problem.")
    chosen = {} if only is None else {"remedies": tuple(name.strip() for name in only.split(";") if name.strip())}
    numbers = tuple(_number("--lags", text, int) for text in lags.split(","))
    learning = tuple(_number("--rates", text, float) for text in rates.split(","))
    prepare()
    from everstep.lab import remedy_trials as trials

    experiment = trials.Experiment(
        task=task,
        lags=numbers,
        rates=learning,
        seeds=seeds,
        hidden=hidden,
        batch=batch,
        minutes=minutes,
        steps=steps,
        processes=processes,
        **chosen,
    )
    records = trials.remedies(experiment, out, begin=prepare)
    _report(trials.grid(experiment, records), out)


def _report(grid: Grid, out: Path) -> None:
    """Table and picture of an experiment, in its folder and on the terminal."""
    from everstep.look.gallery import write_gallery
    from everstep.look.remedy_results import draw_remedies, remedy_table, remedy_words

    table, picture = remedy_table(grid), out / "pictures" / "remedies.png"
    title = f"{grid.task}: which remedy reaches which lag"
    caption = f"Held-out loss ÷ the loss of not looking (1 is no better); ✓ is solved: {grid.goal}."
    written = f"# {title}\n\n{caption}\n\n{table}\n"
    (out / "remedies.md").write_text(written, encoding="utf-8", newline="\n")
    draw_remedies(grid, picture)
    words = remedy_words(grid)
    write_gallery(picture.parent, title, [(picture, f"{words} {caption}")])
    print(table)
    print(f"\n{picture}\n    {words}")


def _number(option: str, text: str, kind: type[N]) -> N:
    try:
        return kind(text)
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{option}: expected {what} with commas between; came {text!r}") from None


app.command("pictures")(pictures)
