"""The verb `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from everstep.cli.common import load_run, log
from everstep.cli.run_verbs import RUN, TRUST


def export(
    run: Path = RUN,
    to: Literal["onnx"] = typer.Option("onnx", help="What to write."),
    form: Literal["step", "sequence", "both"] = typer.Option(
        "both", help="One step with its state in and out, whole sequences, or what there is of both."
    ),
    out: Path | None = typer.Option(None, "--out", "-o", metavar="DIR", help="Where.", show_default="RUN/onnx"),
    trust_code: bool = TRUST,
) -> None:
    """Write a run as files that run without everstep and PyTorch.

    \b
      everstep export runs/mine --to onnx
      everstep export runs/mine --form step --out phone
      everstep generate runs/mine/onnx --prompt "The"       # in onnxruntime: predict, score and eval too

    \b
      step.onnx        one step: the inputs and state.NAME, to the outputs and new_state.NAME; feed these back
      sequence.onnx    sequences of any length and number, with their lengths; the state goes in and out as well
      export.json      names, types and sizes of what goes in and out, and how the state begins
      recipe.yaml, tokenizer.json, …    what turns text into numbers and back

    LSTM, GRU and RNN become ONNX's own; any other cell, also one of your own, a loop over its step. Before anything is
    kept, onnxruntime runs it beside the run: outputs and states over 200 steps, within 1e-5.
    """
    loaded = load_run(run, trust_code)
    from everstep.ship.export import export as write

    print(write(loaded, out, to=to, form=form, say=log))
