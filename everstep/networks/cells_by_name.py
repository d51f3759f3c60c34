"""A cell as a recipe names it: an exported cell, one with options, a tree, or one of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

from everstep.errors import ConfigError

CellChoice: TypeAlias = str | dict[str, Any] | tuple[Any, ...]
"""`LSTM`; `{type: RHN, depth: 3}`; the tree of a `TreeCell`, as a list; `mycells.py:Mine`, also as `type`."""
Find: TypeAlias = Callable[[str, str], Any]
"""From a recipe's key and `FILE.py:NAME` to what it is."""


def no_code(key: str, name: str) -> Any:
    """The `Find` of who loads no files."""
    raise ConfigError(f"{key}: {name} is in a file of Python; it is looked for where a recipe is read")


def cell_names() -> list[str]:
    """Every exported cell."""
    import everstep
    from everstep import cells
    from everstep.cell import Cell

    exported = (name for name in everstep.__all__ if hasattr(cells, name))
    return [name for name in exported if isinstance(kind := getattr(cells, name), type) and issubclass(kind, Cell)]


def make_cell(choice: CellChoice, input_size: int, hidden_size: int, find: Find, device: str | None = None) -> Any:
    """The cell that `model.cell` names, of these sizes. A cell of one size alone gets a linear map before it.

    Raises:
        ConfigError: no such cell, or one that cannot be made so; names its options.
    """
    from everstep import cells
    from everstep.cell import Cell
    from everstep.wirings import FeedForward, Stack

    options = dict(choice) if isinstance(choice, Mapping) else {}
    name = "TreeCell" if isinstance(choice, tuple) else options.pop("type", None) if options else choice
    if not isinstance(name, str):
        raise ConfigError("model.cell: expected {type: NAME, option: value, …}; got no type")
    if isinstance(choice, tuple):
        options["tree"] = choice
    kind = find("model.cell", name) if ".py:" in name else _exported(cells, name)
    parameters = _parameters(kind)
    one_size = len([p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]) == 1
    sizes = (hidden_size,) if one_size else (input_size, hidden_size)
    if device is not None and any(p.name == "device" or p.kind is p.VAR_KEYWORD for p in parameters):
        options["device"] = device
    try:
        cell = kind(*sizes, **options)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(choice, tuple):
            raise ConfigError(f"model.cell: {error}") from None
        given = ", ".join(
            [*map(str, sizes), *(f"{key}={value!r}" for key, value in options.items() if key != "device")]
        )
        raise ConfigError(f"model.cell: {name}({given}) fails: {error}.{_known_options(parameters)}") from None
    if not isinstance(cell, Cell):
        raise ConfigError(
            f"model.cell: expected a Cell, which is called with (input_size, hidden_size); {name} gives "
            f"{type(cell).__name__}"
        )
    if one_size and input_size != hidden_size:
        return Stack(FeedForward(input_size, hidden_size, linear_output=True, device=device), cell)
    return cell


def _exported(cells: Any, name: str) -> Any:
    known = cell_names()
    if name in known:
        return getattr(cells, name)
    folded = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), folded, 1)
    hint = f"; did you mean {folded[near[0]]}?" if near else ""
    raise ConfigError(
        f"model.cell: expected one of {', '.join(known)}, {{type: NAME, option: value}}, or FILE.py:NAME; got "
        f"{name!r}{hint}"
    )


def _parameters(kind: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(kind).parameters.values())
    except (TypeError, ValueError):
        return []


def _known_options(parameters: Sequence[inspect.Parameter]) -> str:
    """The options beyond the sizes that the constructor has."""
    plumbing = ("input_size", "hidden_size", "size", "device", "dtype")
    own = [p.name for p in parameters if p.name not in plumbing and p.kind is not p.VAR_KEYWORD]
    return f" Its options: {', '.join(own)}" if own else " It has no options"
