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
      everstep lab pictures --out pictures                                     vanishing gradients, open gates
      everstep lab remedies --lags 5,10,20 --minutes 5 --out runs/remedies     the lags that each remedy solves

    An experiment is a folder. It can be stopped at any time; the same command resumes it.
    """


@app.command("remedies")
def remedies(
    lags: str = typer.Option(..., metavar="N,N,…", help="Lags in steps, rising: 20,50,100,200,400."),
    out: Path = typer.Option(
        ..., "--out", "-o", metavar="FOLDER", help="Folder of the experiment; an existing one is resumed."
    ),
    task: str = typer.Option("adding", help="adding, order (temporal order of two symbols) or copy (copy memory)."),
    minutes: float | None = typer.Option(
        None, help="Total minutes, shared evenly by all trials; this or --steps is needed."
    ),
    steps: int | None = typer.Option(None, help="Most steps of a trial; without minutes, results are reproducible."),
    processes: int = typer.Option(1, help="Parallel trials, one core each."),
    seeds: int = typer.Option(1, help="Trials of each remedy at each lag and rate."),
    rates: str = typer.Option("0.0003,0.003", metavar="X,X,…", help="Learning rates (Adam); the best is used."),
    hidden: int = typer.Option(64, help="Units of every network."),
    batch: int = typer.Option(32, help="Sequences per step."),
    only: str | None = typer.Option(
        None, metavar="NAME;NAME", help="Some of the remedies; an unknown name lists them.", show_default="all"
    ),
) -> None:
    """Find the lags that each remedy for vanishing gradients solves.

    \b
      everstep lab remedies --lags 5,10,20 --minutes 5 --out runs/quick
      everstep lab remedies --lags 20,50,100,200,400 --minutes 480 --processes 2 --out runs/adding
      everstep lab remedies --task order --lags 20,50,100 --minutes 60 --seeds 3 --out runs/order
      everstep lab remedies --only "tanh; LSTM; LSTM, chrono" --lags 50 --steps 2000 --out runs/three

    Cells, initialisations and rules are trained side by side on a problem whose answer lies LAG steps back: simple
    networks with and without clipping, orthogonal and identity initialisation, leaky and clockwork units, shortcuts,
    oscillators, LSTMs and GRUs. All have equally many units, the same sequences and the same share of time. A trial
    ends early when it has solved its problem: adding at a squared error below 0.01 (ignoring the input gives 0.167),
    order and copy at less than 1 % errors.

    \b
      FOLDER/remedies.md       table of held-out loss ÷ loss of ignoring the input, ticked if solved
      FOLDER/remedies.jsonl    one line per trial, with its curve
      FOLDER/pictures/remedies.png

    A single trial may be luck; trust differences that hold over several --seeds. With limited minutes, an unsolved lag
    may only need more of them; its curve shows this.
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
    """Write table and picture of an experiment, and print the table."""
    from everstep.look.gallery import write_gallery
    from everstep.look.remedy_results import draw_remedies, remedy_table, remedy_words

    table, picture = remedy_table(grid), out / "pictures" / "remedies.png"
    title = f"{grid.task}: which remedy reaches which lag"
    caption = f"Held-out loss ÷ the loss of ignoring the input (1 is no better); ✓ is solved: {grid.goal}."
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
        raise ConfigError(f"{option}: expected {what} with commas between; got {text!r}") from None


app.command("pictures")(pictures)
