"""The verbs of the `everstep` command."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from everstep import __version__
from everstep.cli import (
    average_verb,
    backtesting,
    benching,
    comparing,
    demo,
    doctor,
    explaining,
    exporting,
    graphing,
    lab,
    recipes,
    run_verbs,
    searching,
    serve_verb,
    train_verb,
    tune_verb,
)
from everstep.cli.ending import ended
from everstep.cli.wrong_choices import plainly_said
from everstep.errors import RunError
from everstep.processes import rank, world_size

TOP = """Recurrent sequence models: train, resume, score, sample, look and ship.

\b
  everstep demo                                           a trained model in a minute
  everstep train text-words data.train=my.txt --out runs/mine
  everstep generate runs/mine --prompt "The" --length 100
  everstep eval runs/mine
  everstep compare runs/mine runs/other --on letters.txt
  everstep export runs/mine --to onnx
  everstep serve runs/mine                               a page and an API
  everstep lab remedies --lags 5,10,20 --minutes 5 --out runs/lab

A RUN is a folder: its recipe, model, tokenizer, metrics, checkpoints and pictures. `everstep VERB --help` has an
example of each verb. Data goes through stdin and stdout, messages to stderr.
"""


class _Verbs(TyperGroup):
    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with ended():  # --help and --version print here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with ended(), plainly_said():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Verbs,
    help=TOP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"everstep {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    verb = context.invoked_subcommand
    if world_size() > 1 and verb not in (None, "train"):
        if rank():
            raise typer.Exit(2)
        raise RunError(
            f"{verb} runs in one process; got {world_size()} of torchrun, in which only train runs: start it as "
            f"everstep {verb} …"
        )


app.command("demo")(demo.demo)
app.add_typer(recipes.app, name="recipes")
app.command("train")(train_verb.train)
app.command("eval")(run_verbs.evaluate)
app.command("backtest")(backtesting.backtest)
app.command("predict")(run_verbs.predict)
app.command("score")(run_verbs.score)
app.command("generate")(run_verbs.generate)
app.command("compare")(comparing.compare)
app.command("look")(run_verbs.look)
app.command("average")(average_verb.average)
app.command("export")(exporting.export)
app.command("serve")(serve_verb.serve)
app.command("watch")(serve_verb.watch)
app.command("explain")(explaining.explain)
app.command("graph")(graphing.graph)
app.command("search")(searching.search)
app.command("tune")(tune_verb.tune)
app.add_typer(lab.app, name="lab")
app.command("bench", context_settings=benching.ANYTHING)(benching.bench)
app.command("doctor")(doctor.doctor)
