"""Cells by name, for the verbs that take one."""

from __future__ import annotations

import importlib
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from everstep.errors import ConfigError


def load_cell(who: str, name: str, sizes: str) -> Any:
    """What NAME of everstep, MODULE:NAME or FILE.py:NAME is; a class or function is called with `sizes` ("64,128").

    Raises:
        ConfigError: there is no such thing, or it cannot be called so; `who` is the verb that asks.
    """
    module, colon, attribute = (name if ":" in name or name.endswith(".py") else f"everstep:{name}").rpartition(":")
    if not colon or not module or not attribute:
        raise ConfigError(
            f"{who}: expected LSTM, MODULE:CELL or FILE.py:CELL, such as mycells.py:Mine, but {name!r} came"
        )
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise ConfigError(f"{who}: no file {module}")
        sys.path.insert(0, str(Path(module).parent.resolve()))
        module = Path(module).stem
    else:
        sys.path.insert(0, ".")
    try:
        home = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{who}: no module {error.name!r}; a file is named with its .py") from None
    if not hasattr(home, attribute):
        known = {one.lower(): one for one in dir(home)}
        near = [known[one] for one in get_close_matches(attribute.lower(), known, 1)]
        raise ConfigError(f"{who}: {module} has no {attribute!r}{f'; did you mean {near[0]}?' if near else ''}")
    found = getattr(home, attribute)
    import torch

    if isinstance(found, torch.nn.Module) or not callable(found):
        return found
    try:
        numbers = [int(part) for part in sizes.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"{who}: --sizes should be whole numbers such as 64,128, but is {sizes!r}") from None
    try:
        return found(*numbers)
    except (TypeError, ValueError, AttributeError) as error:
        call = f"{attribute}({', '.join(map(str, numbers))})"
        raise ConfigError(
            f"{who}: {call} fails: {error}. Give other --sizes, or name a function that makes it: FILE.py:FUNCTION"
        ) from None
