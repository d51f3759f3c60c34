"""Cells by name, for the verbs that take one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from everstep.errors import ConfigError


def load_cell(who: str, name: str, sizes: str) -> Any:
    """What MODULE:NAME or FILE.py:NAME is; a class or function is called with `sizes`, such as "64,128".

    Raises:
        ConfigError: there is no such thing, or it cannot be called so; `who` is the verb that asks.
    """
    module, colon, attribute = name.rpartition(":")
    if not colon or not module or not attribute:
        raise ConfigError(f"{who}: expected MODULE:CELL, such as everstep:LSTM or mycells.py:Mine, but {name!r} came")
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise ConfigError(f"{who}: no file {module}")
        sys.path.insert(0, str(Path(module).parent.resolve()))
        module = Path(module).stem
    else:
        sys.path.insert(0, ".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{who}: no module {error.name!r}; a file is named with its .py") from None
    except AttributeError:
        raise ConfigError(f"{who}: {module} has no {attribute!r}") from None
    import torch

    if isinstance(found, torch.nn.Module) or not callable(found):
        return found
    try:
        numbers = [int(part) for part in sizes.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"{who}: --sizes should be whole numbers such as 64,128, but is {sizes!r}") from None
    try:
        return found(*numbers)
    except TypeError as error:
        raise ConfigError(f"{who}: {attribute}({', '.join(map(str, numbers))}) fails: {error}; see --sizes") from None
