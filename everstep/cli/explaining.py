"""`everstep explain MODULE:CELL`: how a cell would run, and what stands in the way of speed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import typer

from everstep.errors import ConfigError


def explain(
    cell: str = typer.Argument(
        ..., metavar="MODULE:CELL", help="A cell, a class of cells or a function that makes one."
    ),
    sizes: str = typer.Option("64,64", help="What a class or function is called with: input size, hidden size, …"),
    batch: int = typer.Option(32, min=1, help="Sequences at once."),
    time: int = typer.Option(100, min=1, help="Steps."),
) -> None:
    """Say which backend runs a cell, what was taken out of its loop, what a step costs, and what stood in the way.

    \b
      everstep explain everstep:LSTM --sizes 128,256 --batch 8
      everstep explain mycells.py:Mine
    """
    import torch

    from everstep.cell import Layer
    from everstep.scanning import explain

    made = _made(cell, sizes)
    if not isinstance(made, Layer):
        raise ConfigError(f"explain: {cell} should be a cell, but is {type(made).__name__}")
    print(explain(made, torch.zeros(batch, time, made.input_size, dtype=next(made.parameters(), torch.zeros(1)).dtype)))


def _made(name: str, sizes: str) -> Any:
    module, colon, attribute = name.rpartition(":")
    if not colon or not module or not attribute:
        raise ConfigError(f"explain: expected MODULE:CELL, such as everstep:LSTM or mycells.py:Mine, but {name!r} came")
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise ConfigError(f"explain: no file {module}")
        sys.path.insert(0, str(Path(module).parent.resolve()))
        module = Path(module).stem
    else:
        sys.path.insert(0, ".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(f"explain: no module {error.name!r}; a file is named with its .py") from None
    except AttributeError:
        raise ConfigError(f"explain: {module} has no {attribute!r}") from None
    import torch

    if isinstance(found, torch.nn.Module) or not callable(found):
        return found
    try:
        numbers = [int(part) for part in sizes.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"explain: --sizes should be whole numbers such as 64,128, but is {sizes!r}") from None
    try:
        return found(*numbers)
    except TypeError as error:
        raise ConfigError(f"explain: {attribute}({', '.join(map(str, numbers))}) fails: {error}; see --sizes") from None
