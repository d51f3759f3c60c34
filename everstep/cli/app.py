"""The `everstep` command: its verbs, and how it ends (0 done, 2 wrong use, 3 diverged, 130/143 interrupted)."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from everstep import __version__
from everstep.cli import benching, demo, doctor, explaining, graphing, lab, recipes, searching, training, using
from everstep.errors import EverstepError

TOP = """Recurrent sequence models: train, resume, score, sample and look.

\b
  everstep demo                                           a trained model in a minute
  everstep train text-words data.train=my.txt --out runs/mine
  everstep generate runs/mine --prompt "The" --length 100
  everstep eval runs/mine
  everstep lab remedies --lags 5,10,20 --minutes 5 --out runs/lab

A RUN is a folder: its recipe, model, tokenizer, metrics, checkpoints and pictures. `everstep VERB --help` has an
example of each verb. Data goes through stdin and stdout, messages to stderr.
"""


class _Verbs(TyperGroup):
    """Turns what a user can cause into one message and an exit code; anything else is a bug and shows its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except EverstepError as error:
            print(f"everstep: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("everstep: interrupted.", file=sys.stderr)
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # the reader has seen enough (… | head); nothing may be written at exit either
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except OSError as error:  # disk full, read-only folder, no permission
            where = f"{error.filename}: " if error.filename else ""
            print(f"everstep: {where}{error.strerror or error}.", file=sys.stderr)
            raise typer.Exit(2) from None


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
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


app.command("demo")(demo.demo)
app.add_typer(recipes.app, name="recipes")
app.command("train")(training.train)
app.command("eval")(using.evaluate)
app.command("score")(using.score)
app.command("generate")(using.generate)
app.command("look")(using.look)
app.command("explain")(explaining.explain)
app.command("graph")(graphing.graph)
app.command("search")(searching.search)
app.add_typer(lab.app, name="lab")
app.command("bench", context_settings=benching.ANYTHING)(benching.bench)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Entry point of the `everstep` script."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    app(prog_name="everstep")
