"""Compositions by their names in recipes: an exported one, one with options, or one in a user's file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

from everstep import trees
from everstep.data.readers.tree_formats import AnyTree
from everstep.errors import ConfigError, DataError
from everstep.networks.cells_by_name import CellChoice, Find, cell_names, make_cell
from everstep.trees.composition import Composition

CompositionChoice: TypeAlias = str | dict[str, Any]
"""`NaryTreeLSTM`; `{type: NaryTreeLSTM, arity: 3}`; a cell, such as `GRU`, over summed children; `mine.py:Mine`."""


def composition_names() -> list[str]:
    """The names of all exported compositions."""
    found = (name for name in sorted(vars(trees)) if isinstance(getattr(trees, name), type))
    kinds = {name: getattr(trees, name) for name in found}
    return [name for name, kind in kinds.items() if issubclass(kind, Composition) and kind is not Composition]


def make_composition(choice: CompositionChoice, input_size: int, hidden_size: int, find: Find) -> Composition:
    """The composition that `model.cell` names, with these sizes.

    Raises:
        ConfigError: there is no such composition, or it cannot be created.
    """
    options = dict(choice) if isinstance(choice, Mapping) else {}
    name = options.pop("type", None) if options else choice
    if not isinstance(name, str):
        raise ConfigError("model.cell: expected {type: NAME, option: value, …}; got no type")
    known = [one for one in composition_names() if one != "ChildSum"]
    if name not in known and ".py:" not in name:
        return _of_cell(name, choice, known, input_size, hidden_size, find)
    kind = find("model.cell", name) if ".py:" in name else getattr(trees, name)
    sizes = (hidden_size,) if kind is trees.MVRNN else (input_size, hidden_size)
    try:
        made = kind(*sizes, **options)
    except (TypeError, ValueError) as error:
        own = [p for p in inspect.signature(kind).parameters if p not in ("input_size", "hidden_size", "how")]
        raise ConfigError(f"model.cell: {name} fails: {error}. Its options: {', '.join(own) or 'none'}") from None
    if not isinstance(made, Composition):
        raise ConfigError(f"model.cell: expected a Composition; {name} gives {type(made).__name__}")
    return made


def check_trees(cell: Composition, trees: Sequence[AnyTree], source: str, binary: bool = False) -> None:
    """Refuse trees that the composition does not support, and with `binary` all but binary trees of leaves with words.

    Raises:
        DataError: a node has too many or too few children, or an inner node has a word; the message names the line.
    """
    for tree in trees:
        counts = [len(below) for below in tree.children if below]
        fed = any(below and word is not None for below, word in zip(tree.children, tree.words, strict=True))
        if told := cell.refuses(min(counts, default=0), max(counts, default=0), fed):
            raise DataError(f"{source}, the tree of line {tree.line}: {type(cell).__name__} {told}")
        if binary and (fed or set(counts) - {2}):
            count = next((count for count in counts if count != 2), 0)
            came = "a word" if fed else "one child" if count == 1 else f"{count} children"
            raise DataError(
                f"{source}, the tree of line {tree.line}: model.parses expected two children and no word at each inner "
                f"node, but one has {came}; make the trees binary, or set model.parses=false"
            )


def _of_cell(
    name: str, choice: CellChoice, known: list[str], input_size: int, hidden_size: int, find: Find
) -> Composition:
    """A cell for sequences as a composition, applied to the sum of the children's states."""
    if name in cell_names():
        return trees.ChildSum(make_cell(choice, input_size, hidden_size, find))
    near = get_close_matches(name.lower(), folded := {one.lower(): one for one in [*known, *cell_names()]}, 1)
    hint = f"; did you mean {folded[near[0]]}?" if near else ""
    raise ConfigError(
        f"model.cell: expected one of {', '.join(known)}, an exported cell, {{type: NAME, option: value}}, or "
        f"FILE.py:NAME; got {name!r}{hint}"
    )
