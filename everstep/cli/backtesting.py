"""The verb `backtest`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from everstep.cli.common import load_run, log
from everstep.cli.printed_tables import table
from everstep.cli.run_verbs import DEVICE, RUN, TRUST
from everstep.storage.reading import json_text


def backtest(
    run: Path = RUN,
    windows: int = typer.Option(20, metavar="N", min=1, help="Origins of each series, the last ones of the split."),
    step: int | None = typer.Option(
        None, min=1, help="Steps between origins.", show_default="as many as fit, at most the horizon"
    ),
    split: str | None = typer.Option(None, help="The split.", show_default="test if the run has one, else valid"),
    data: list[str] | None = typer.Option(
        None, metavar="FILE", help="Later data of the same kind, in place of the test split."
    ),
    rivals: bool = typer.Option(False, "--rivals", help="Also the slow rivals: ETS and Theta."),
    out: Path | None = typer.Option(
        None, "--out", "-o", metavar="DIR", help="Folder of the picture.", show_default="RUN/pictures"
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object, for machines; draws nothing without --out."),
    device: str = DEVICE,
    trust_code: bool = TRUST,
) -> None:
    """Forecast from many origins in turn, and compare with simpler models.

    \b
      everstep backtest runs/load
      everstep backtest runs/load --windows 50 --step 24 --rivals
      everstep backtest runs/load --data later.csv --json

    The weights stay as they were trained. Each forecast reads the values before its origin; origins lie in held-out
    data, and so do their horizons.
    """
    if data and split:
        raise typer.BadParameter("--data FILE is a part of its own; expected no --split beside it.")
    loaded = load_run(run, trust_code, device)
    found = loaded.backtest(windows, step=step, split=split, data=data, quick=not rivals)
    if (count := len(found["origins"])) < windows:
        log(f"note: {count} of {windows} origins lie in the {found['split']} split, {found['step']} steps apart")
    for line in found["notes"]:
        log(f"note: {line}")
    if as_json:
        print(json_text(found, ensure_ascii=False))
    else:
        print(_tables(found))
    if not as_json or out is not None:
        from everstep.runs.pictures import pictures_of

        path = (out or pictures_of(run)) / "backtest.png"
        words = loaded.able("backtest").backtest_picture(found, path)
        log(f"{path}\n    {words}")


def _tables(found: dict[str, Any]) -> str:
    """One measure at each origin, and the means of all."""
    models = list(found["models"])
    measure = "mase" if found["models"][models[0]]["mase"] is not None else "mae"
    rows = {
        origin["ds"]: {"windows": origin["windows"], **{name: origin[name][measure] for name in models}}
        for origin in found["origins"]
    }
    return f"{table(f'{measure} from', rows)}\n{table('mean', found['models'])}"
