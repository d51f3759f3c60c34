"""`everstep bench`: the benchmarks of a source checkout, by name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import typer

from everstep.cli.common import log

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"  # of the source that everstep is imported from
ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def bench(
    context: typer.Context,
    name: str | None = typer.Argument(None, metavar="[NAME]", help="The benchmark; without it, all are listed."),
) -> None:
    """Measure the engine and models beside their rivals.

    \b
      everstep bench                                    list all benchmarks
      everstep bench engine --quick                     the compiled engine beside torch.nn, a few minutes
      everstep bench engine --help                      the options of a benchmark
      everstep bench lm --json lm.json                  words per second, also as JSON
      everstep bench lab/deep --out runs/deep           an experiment of the laboratory

    Arguments after NAME are passed to benchmarks/NAME.py. Do not use the machine otherwise meanwhile.
    """
    folder = FOLDER if FOLDER.is_dir() else Path.cwd() / "benchmarks"
    known = benchmarks(folder)
    if name in (None, "-h", "--help"):
        if name:
            print(context.get_help(), end="\n\n")
        for script, does in known.items():
            print(f"  {script:{max(map(len, known))}} {does}")
        return
    if name not in known:
        raise typer.BadParameter(f"{name!r} is no benchmark; there are {', '.join(known)}.")
    raise typer.Exit(subprocess.call([sys.executable, str(folder / f"{name}.py"), *context.args]))


def benchmarks(folder: Path) -> dict[str, str]:
    """Name (path in `folder` without .py) and first docstring line of every script that documents its usage."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if f"python benchmarks/{name}.py" in told:
            found[name] = told.splitlines()[0]
    if not found:
        log(f"The benchmarks come with the source of everstep, not with the package: there is no {FOLDER}.")
        log("Clone the repository and run `everstep bench` from there.")
        raise typer.Exit(2)
    return found
