"""The verb `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from everstep.cli.common import load_run, log
from everstep.cli.run_verbs import RUN, TRUST


def export(
    run: Path = RUN,
    to: Literal["onnx", "torch", "c", "arpa", "word2vec", "word2vec-binary", "glove", "vec"] = typer.Option(
        "onnx", help="What to write."
    ),
    form: Literal["step", "sequence", "both"] = typer.Option(
        "both", help="One step with its state in and out, whole sequences, or what there is of both."
    ),
    out: Path | None = typer.Option(
        None, "--out", "-o", metavar="PATH", help="Where.", show_default="RUN/onnx, RUN/torch, RUN/c, RUN/model.arpa"
    ),
    precision: Literal["float32", "float16", "bfloat16", "int8"] = typer.Option(
        "float32", help="Of the weights in ONNX; the loss that shorter ones cost is that of eval --split valid."
    ),
    tolerance: float = typer.Option(0.01, help="By how much that loss may be larger than the run's."),
    trust_code: bool = TRUST,
) -> None:
    """Write a run as files that run without everstep and PyTorch.

    \b
      everstep export runs/mine --to onnx
      everstep export runs/mine --form step --out phone
      everstep export runs/mine --precision int8 --out small
      everstep export runs/mine --to c
      everstep export runs/mine --to torch
      everstep export runs/counts --to arpa --out counts.arpa
      everstep export runs/words --to word2vec-binary --out words.bin
      everstep generate runs/mine/onnx --prompt "The"       # in onnxruntime: predict, score and eval too

    \b
      step.onnx        one step: the inputs and state.NAME, to the outputs and new_state.NAME; feed these back
      sequence.onnx    sequences of any length and number, with their lengths; the state goes in and out as well
      model.h, model.cpp, model.bin    with --to c: one step for programs in C and C++, and its weights
      start.onnx       what comes before the first step, such as the encoder of a translator: the state of step.onnx
      step.pt2, sequence.pt2    with --to torch: the same as programs of torch.export, for PyTorch without everstep
      model.arpa       with --to arpa: the n-grams of a model of counts, for KenLM, SRILM and others
      model.word2vec, model.glove, model.vec …    with --to word2vec, word2vec-binary, glove or vec (fastText's text):
                       each word with its vector
      export.json      names, types and sizes of what goes in and out, and how the state begins
      recipe.yaml, tokenizer.json, …    what turns text into numbers and back

    LSTM, GRU and RNN become ONNX's own; any other cell, also one of your own, a loop over its step. Before anything is
    kept, onnxruntime, PyTorch or this machine's compiler runs it beside the run: outputs and states of 200 steps,
    within 1e-5.
    """
    loaded = load_run(run, trust_code)
    from everstep.ship.export import export as write

    print(write(loaded, out, to=to, form=form, precision=precision, tolerance=tolerance, say=log))
