"""Tables of named rows with the same measures, and why a cell is empty."""

from __future__ import annotations

from typing import Any

MOST_ROWS = 50  # most rows of a printed table


def table(title: str, rows: dict[str, dict[str, Any]]) -> str:
    """A table of named rows with the same measures."""
    from everstep.runs.card import shown_number

    left_out = len(rows) - MOST_ROWS
    rows = dict(list(rows.items())[:MOST_ROWS])
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = [[title, *(name.replace("_", " ") for name in columns)]]
    table += [[name, *(shown_number(row.get(column)) for column in columns)] for name, row in rows.items()]
    first, *others = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = [
        "  ".join([f"{name:{first}}", *(f"{cell:>{max(width, 10)}}" for cell, width in zip(row, others, strict=True))])
        for name, *row in table
    ]
    more = [f"… and {left_out:,} more; --json gives all"] if left_out > 0 else []
    return "\n".join(["", *lines, *more])


def rival_table(rivals: list[dict[str, Any]]) -> str:
    """The table of a run's rivals, and why figures are missing."""
    rows = {str(rival["name"]): {key: value for key, value in rival.items() if key != "name"} for rival in rivals}
    return "\n".join([table("rivals", rows), *_why_missing(rows)])


def _why_missing(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Lines about the measures that a table shows as –, if there are any."""
    columns = dict.fromkeys(name for row in rows.values() for name in row)
    lacking = {column: [name for name, row in rows.items() if row.get(column) is None] for column in columns}
    undefined = [column.replace("_", " ") for column, names in lacking.items() if len(names) == len(rows)]
    needed = [column.replace("_", " ") for column, names in lacking.items() if 0 < len(names) < len(rows)]
    single = dict.fromkeys(name for names in lacking.values() if len(names) < len(rows) for name in names)
    found = [f"these data do not define {', '.join(undefined)}"] if undefined else []
    if single:
        found.append(f"{', '.join(single)}: answers without the probabilities or quantiles of {', '.join(needed)}")
    return [f"– {line}" for line in found]
