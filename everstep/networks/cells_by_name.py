"""Cells by their names in recipes: an exported cell, one with options, a tree, or one in a user's file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

import torch
from torch import nn

from everstep.errors import ConfigError, users_part

CellChoice: TypeAlias = str | dict[str, Any] | tuple[Any, ...]
"""`LSTM`; `{type: RHN, depth: 3}`; the tree of an `ExpressionCell`, as a list; `mycells.py:Mine`, also as `type`."""
Find: TypeAlias = Callable[[str, str], Any]
"""A function of a recipe's key and `FILE.py:NAME` that returns the object."""


SIZES = ("input_size", "hidden_size", "size")
FUNCTIONS = (
    "tanh", "sigmoid", "relu", "elu", "selu", "gelu", "silu", "softplus", "softsign", "hardtanh", "hardsigmoid", "sin",
)  # fmt: skip
"""Functions that options may name."""


def no_code(key: str, name: str) -> Any:
    """A `Find` that loads no files."""
    raise ConfigError(f"{key}: {name} is in a file of Python; it is looked for where a recipe is read")


def cell_names() -> list[str]:
    """The names of all exported cells."""
    import everstep
    from everstep import cells
    from everstep.cell import Cell

    exported = (name for name in everstep.__all__ if hasattr(cells, name))
    return [name for name in exported if isinstance(kind := getattr(cells, name), type) and issubclass(kind, Cell)]


def make_cell(choice: CellChoice, input_size: int, hidden_size: int, find: Find, device: str | None = None) -> Any:
    """The cell that `model.cell` names, with these sizes.

    A cell with a single size, or whose input has several parts that `input_size` is no multiple of, gets a linear map
    before it.

    Raises:
        ConfigError: there is no such cell, or it cannot be created; the message lists its options.
    """
    from everstep.cell import Cell
    from everstep.wirings import FeedForward, Stack

    name, kind, options = _named(choice, find)
    if isinstance(kind, nn.Module) or not callable(kind):
        raise ConfigError(
            f"model.cell: expected a class or a function that makes a Cell of (input_size, hidden_size); {name} is "
            f"a {type(kind).__name__}"
        )
    parameters = _parameters(kind)
    places = [p.kind for p in parameters if p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    one_size = len(places) == 1 and places[0] is not inspect.Parameter.VAR_POSITIONAL
    parts = len(getattr(kind, "parts", ())) or 1
    read = hidden_size if one_size else input_size if input_size % parts == 0 else parts * input_size
    sizes = (hidden_size,) if one_size else (read, hidden_size)
    cell = _made(name, kind, sizes, options, device)
    if not isinstance(cell, Cell):
        raise ConfigError(
            f"model.cell: expected a Cell, which is called with (input_size, hidden_size); {name} gives "
            f"{type(cell).__name__}"
        )
    if read != input_size:
        return Stack(FeedForward(input_size, read, linear_output=True, device=device), cell)
    return cell


def _named(choice: CellChoice, find: Find) -> tuple[str, Any, dict[str, Any]]:
    """The name that `model.cell` gives, the object of that name, and its options."""
    from everstep import cells

    options = dict(choice) if isinstance(choice, Mapping) else {}
    name = "ExpressionCell" if isinstance(choice, tuple) else options.pop("type", None) if options else choice
    if not isinstance(name, str):
        raise ConfigError("model.cell: expected {type: NAME, option: value, …}; got no type")
    if isinstance(choice, tuple):
        options["tree"] = choice
    return name, find("model.cell", name) if ".py:" in name else _exported(cells, name), options


def takes_masks(choice: CellChoice, find: Find) -> bool:
    """Whether the input of the cell is [x; mask; delta]: it has the class attribute `parts` of these names.

    >>> takes_masks("GRUD", no_code), takes_masks("GRU", no_code)
    (True, False)

    Raises:
        ConfigError: there is no such cell.
    """
    return tuple(getattr(_named(choice, find)[1], "parts", ())) == ("x", "mask", "delta")


def _made(name: str, kind: Any, sizes: Sequence[int], options: dict[str, Any], device: str | None) -> Any:
    """`kind(*sizes, **options)`, with errors in terms of the recipe."""
    known = _options(kind)
    named = [key for key in options if callable(known.get(key)) and known[key] is not inspect.Parameter.empty]
    functions = {key: _function(key, options[key]) for key in named}
    place = {"device": device} if device is not None and "device" in known else {}
    try:
        return kind(*sizes, **{**options, **functions, **place})
    except Exception as error:
        if lines := users_part(error):
            raise ConfigError(f"model.cell: {name} fails:\n{lines}") from None
        if not isinstance(error, TypeError | ValueError | AttributeError):
            raise
        if "tree" in options:
            raise ConfigError(f"model.cell: {error}") from None
        given = ", ".join([*map(str, sizes), *(f"{key}={value!r}" for key, value in options.items())])
        raise ConfigError(f"model.cell: {name}({given}) fails: {error}.{_known_options(known, options)}") from None


def _exported(cells: Any, name: str) -> Any:
    known = cell_names()
    if name in known:
        return getattr(cells, name)
    folded = {one.lower(): one for one in known}
    if name.endswith(".py"):
        raise ConfigError(f"model.cell: name the cell in the file: {name}:NAME; got {name!r}")
    if near := get_close_matches(name.lower(), folded, 1):
        raise ConfigError(f"model.cell: there is no cell {name!r}; did you mean {folded[near[0]]}?")
    raise ConfigError(
        f"model.cell: expected one of {', '.join(known)}, {{type: NAME, option: value}}, or FILE.py:NAME; got {name!r}"
    )


def _parameters(kind: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(kind).parameters.values())
    except (TypeError, ValueError):
        return []


def _options(kind: Any) -> dict[str, Any]:
    """The options of a constructor except its sizes, with their defaults.

    If it has `**kwargs`, the options of its equation or its declared parameters are included.
    """
    from everstep.equation import Gated

    parameters = _parameters(kind)
    found = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in SIZES}
    if all(p.kind is not p.VAR_KEYWORD for p in parameters):
        return found
    gated = [Gated] if isinstance(kind, type) and issubclass(kind, Gated) else []
    makers = [getattr(kind, "equation", None), getattr(kind, "declare", None), *gated]
    asked = [p for maker in makers for p in _parameters(maker) if p.kind is p.KEYWORD_ONLY]
    return {"device": None, **{p.name: p.default for p in asked}, **found}


def _function(key: str, value: Any) -> Any:
    """The function that an option names, as in `{type: GRU, activation: relu}`."""
    if value not in FUNCTIONS:
        raise ConfigError(f"model.cell: expected {key} to be one of {', '.join(FUNCTIONS)}; got {value!r}")
    return getattr(torch, value, None) or getattr(nn.functional, value)


def _known_options(known: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The end of a message about invalid options: the one that was probably meant, or all options."""
    own = [key for key in known if key not in ("device", "dtype")]
    for key in given:
        if key not in known and (near := get_close_matches(key, own, 1)):
            return f" Did you mean {near[0]}?"
    return f" Its options: {', '.join(own)}" if own else " It has no options"
