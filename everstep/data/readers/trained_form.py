"""Whether a table has the form of the tables of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from everstep.data.readers.series import Roles
from everstep.data.readers.tables import holds_numbers
from everstep.errors import DataError

if TYPE_CHECKING:
    import polars

SHOWN = 12
"""The most columns that a message names."""


def check_form(table: polars.DataFrame, roles: Roles, where: str) -> None:
    """Check that a table to predict from has the columns of training, whose roles cannot change any more.

    Raises:
        DataError: a column is missing, or text stands where a series would; the message gives the form of training.
    """
    expected = _columns(roles)
    wrong = next((f"has no column {name!r}" for name in expected if name not in table.columns), None)
    if wrong is None and roles.layout == "wide" and roles.targets is None:
        others = [name for name in table.columns if name not in expected]
        wrong = next((f"has text in column {name!r}" for name in others if not holds_numbers(table, name)), None)
    if wrong is not None:
        raise DataError(
            f"{where}: expected a table as in training: {form_of(roles)}; got one that {wrong}; its columns are "
            f"{_listed(table.columns)}. Rearrange or rename them so that they are as in training"
        )


def form_of(roles: Roles) -> str:
    """The form of a table with these roles, in words."""
    form = {
        "long": "one value per row",
        "wide": "one time per row and one column of numbers per series",
        "rows": "one series per row",
    }[roles.layout]
    names = _columns(roles)
    return f"{form}, with {'column' if len(names) == 1 else 'columns'} {_listed(names)}" if names else form


def _columns(roles: Roles) -> list[str]:
    """The columns that a table with these roles has to have."""
    values = () if roles.layout == "rows" else roles.targets or ()
    return [name for name in (roles.id, roles.time, *values, *roles.past, *roles.future, *roles.static) if name]


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")
