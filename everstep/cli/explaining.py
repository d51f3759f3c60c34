"""`everstep explain MODULE:CELL`: the backend of a cell, and the obstacles to faster ones."""

from __future__ import annotations

import typer

from everstep.cli.loading import load_cell
from everstep.errors import ConfigError


def explain(
    cell: str = typer.Argument(
        ...,
        metavar="CELL",
        help="A cell of everstep (LSTM), MODULE:CELL or FILE.py:CELL; a cell, a class or a function.",
    ),
    sizes: str = typer.Option("64,64", help="Arguments of a class or function: input size, hidden size, …"),
    batch: int = typer.Option(32, min=1, help="Batch size."),
    time: int = typer.Option(100, min=1, help="Sequence length."),
) -> None:
    """Show which backend runs a cell, and why others do not.

    Also shows what is computed outside the loop, and the cost of a step.

    \b
      everstep explain LSTM --sizes 128,256 --batch 8
      everstep explain mycells.py:Mine
    """
    import torch

    from everstep.cell import Layer
    from everstep.explanation import explain

    made = load_cell("explain", cell, sizes)
    if not isinstance(made, Layer):
        raise ConfigError(f"explain: {cell} should be a cell, but is {type(made).__name__}")
    print(explain(made, torch.zeros(batch, time, made.input_size, dtype=next(made.parameters(), torch.zeros(1)).dtype)))
