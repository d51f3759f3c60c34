"""Cells by name, for verbs with a CELL argument."""

from __future__ import annotations

import importlib
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from everstep.errors import ConfigError


def load_cell(who: str, name: str, sizes: str) -> Any:
    """The cell NAME of everstep, MODULE:NAME or FILE.py:NAME; a class or function is called with `sizes` ("64,128").

    Raises:
        ConfigError: there is no such object, or the call fails; `who` is the verb, for the message.
    """
    found = _in_file(who, name) if ".py:" in name or name.endswith(".py") else _in_module(who, name)
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
        call = f"{name.rpartition(':')[2]}({', '.join(map(str, numbers))})"
        raise ConfigError(
            f"{who}: {call} fails: {error}. Give other --sizes, or name a function that makes it: FILE.py:FUNCTION"
        ) from None


def _in_file(who: str, name: str) -> Any:
    """The object FILE.py:NAME; the file may import neighbouring files."""
    from everstep.runs.user_code import UserCode

    file, _, attribute = name.rpartition(":")
    if not attribute or not file:
        raise _expected(who, name)
    sys.path.insert(0, str(Path(file).parent.resolve()))
    return UserCode(alone=False).find(who, name)


def _in_module(who: str, name: str) -> Any:
    """The object NAME of everstep or MODULE:NAME."""
    module, _, attribute = (name if ":" in name else f"everstep:{name}").rpartition(":")
    if not module or not attribute:
        raise _expected(who, name)
    sys.path.insert(0, ".")
    try:
        home = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{who}: no module {error.name!r}; a file is named with its .py") from None
    if not hasattr(home, attribute):
        known = {one.lower(): one for one in dir(home)}
        near = [known[one] for one in get_close_matches(attribute.lower(), known, 1)]
        raise ConfigError(f"{who}: {module} has no {attribute!r}{f'; did you mean {near[0]}?' if near else ''}")
    return getattr(home, attribute)


def _expected(who: str, name: str) -> ConfigError:
    return ConfigError(f"{who}: expected LSTM, MODULE:CELL or FILE.py:CELL, such as mycells.py:Mine, but got {name!r}")
