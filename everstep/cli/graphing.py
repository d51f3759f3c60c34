"""`everstep graph`: the folded or unfolded graph of a cell, a stack or a run, as SVG or PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from everstep.cli.common import log
from everstep.cli.loading import load_cell
from everstep.cli.run_verbs import TRUST
from everstep.errors import ConfigError

if TYPE_CHECKING:
    from everstep.runs.run import Run


def graph(
    cell: str = typer.Argument(
        ..., metavar="CELL", help="A cell of everstep (LSTM), MODULE:CELL, FILE.py:CELL, or the folder of a run."
    ),
    out: Path = typer.Option(..., "--out", "-o", metavar="FILE", help="The .svg or .png to draw."),
    unfolded: int | None = typer.Option(
        None, metavar="N", help="Unfold it over N steps (2 to 12).", show_default="folded"
    ),
    sizes: str = typer.Option("64,128", help="Arguments of a class or function: input size, hidden size, …"),
    trust_code: bool = TRUST,
) -> None:
    """Draw the graph of a cell or a run, with shapes on the arrows.

    \b
      everstep graph LSTM --out lstm.svg
      everstep graph mycells.py:Mine --sizes 32,64 --unfolded 4 --out mine.svg
      everstep graph runs/mine --out stack.png

    A folded cell shows the operations of its step; stacks and unfolded graphs show boxes.
    """
    if out.suffix not in (".svg", ".png"):
        raise typer.BadParameter(f"expected a file that ends in .svg or .png; got {out.name}.", param_hint="--out")
    if unfolded is not None and not 2 <= unfolded <= 12:
        raise typer.BadParameter(f"expected 2 to 12; got {unfolded}.", param_hint="--unfolded")
    from everstep.cell import Cell
    from everstep.cli.common import load_run
    from everstep.look.cell_graph import draw_graph
    from everstep.tracing.refusals import Untraceable

    named_folder = Path(cell).is_dir() or (len(Path(cell).parts) > 1 and ".py" not in cell)
    made = _cell_of(load_run(Path(cell), trust_code)) if named_folder else load_cell("graph", cell, sizes)
    if not isinstance(made, Cell):
        raise ConfigError(f"graph: {cell} should be a cell, but is {type(made).__name__}")
    try:
        draw_graph(made, out, unfolded=unfolded)
    except Untraceable as problem:
        raise ConfigError(
            f"graph: {cell} has no graph of operations: {problem}. Boxes need none: --unfolded 3"
        ) from None
    print(out)


def _cell_of(run: Run) -> Any:
    """The cells of a run; if bidirectional, and so without a step, the first cell with a state.

    Raises:
        ConfigError: the model has no cell.
    """
    from everstep.cell import Cell, Layer
    from everstep.state import leaves

    layers = [module for module in run.model.modules() if isinstance(module, Layer)]
    cells = [layer for layer in layers if isinstance(layer, Cell)]
    if not cells:
        raise ConfigError(f"graph: the model of {run.path} has no cell")
    if layers[0] is cells[0]:
        return cells[0]
    like = next(run.model.parameters())
    found = next((cell for cell in cells if leaves(cell.initial_state(1, like))), cells[0])
    log(f"note: {type(layers[0]).__name__} reads in both directions; this is {type(found).__name__} in it")
    return found
