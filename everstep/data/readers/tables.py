"""Read tables (CSV, TSV, JSON lines, Parquet) as columns of text and of numbers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everstep.data.text.text_files import open_text
from everstep.errors import DataError

if TYPE_CHECKING:
    import polars

MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "-", "?")
"""The texts that mark a missing number."""
_SEPARATORS = (",", "\t", ";")


def read_table(path: Path) -> polars.DataFrame:
    """Read a file as a table.

    The suffix gives the format: .parquet or .pq, .jsonl, .ndjson or .json, else delimited text with a header. The
    separator is the most frequent of comma, tab and semicolon in the first line. Columns of delimited text are strings.

    Raises:
        DataError: the file cannot be read or has no rows.
    """
    import polars as pl

    name = path.name.removesuffix(".gz").removesuffix(".xz").lower()
    try:
        if name.endswith((".parquet", ".pq")):
            found = pl.read_parquet(path)
        else:
            with open_text(path) as lines:
                content = lines.buffer.read()
            found = table_of(content, json=name.endswith((".jsonl", ".ndjson", ".json")))
    except (pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: cannot be read as a table: {_first_line(error)}") from None
    if not found.height:
        raise DataError(f"{path}: expected rows below the header; got none")
    return found


def table_of(content: bytes, json: bool = False) -> polars.DataFrame:
    """Parse delimited text with a header, or JSON lines.

    Raises:
        polars.exceptions.PolarsError: the content is not a table.
    """
    import polars as pl

    if json:
        return pl.read_ndjson(io.BytesIO(content), infer_schema_length=None)
    head = content[: content.find(b"\n") + 1 or None]
    separator = max(_SEPARATORS, key=lambda mark: head.count(mark.encode()))
    return pl.read_csv(io.BytesIO(content), separator=separator, infer_schema=False)


def numbers(table: polars.DataFrame, name: str, where: str) -> NDArray[np.float64]:
    """A column as float64 (N,), with NaN for missing entries.

    Raises:
        DataError: the column holds text, an infinity or another type; the message names the first such row.
    """
    import polars as pl

    column = table[name]
    if column.dtype == pl.String:
        text = column.str.strip_chars()
        text = text.set(text.is_in(MISSING), None)
        found = text.cast(pl.Float64, strict=False)
        if len(bad := (found.is_null() & text.is_not_null()).arg_true()):
            what = f"{text[bad[0]][:40]!r}"
            raise DataError(
                f"{where}, row {bad[0] + 1} of its data: expected a number in column {name!r}, or nothing where it is "
                f"missing; got {what}"
            )
    elif column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null):
        found = column.cast(pl.Float64)
    else:
        raise DataError(f"{where}: expected numbers in column {name!r}; got {column.dtype}")
    values: NDArray[np.float64] = found.fill_null(float("nan")).to_numpy()
    if len(infinite := np.flatnonzero(np.isinf(values))):
        raise DataError(
            f"{where}, row {infinite[0] + 1} of its data: expected finite numbers in column {name!r}; got "
            f"{values[infinite[0]]} ({len(infinite):,} such rows); leave it empty if it is missing"
        )
    return values


def holds_numbers(table: polars.DataFrame, name: str) -> bool:
    """Whether at least half of the entries of a column that are not missing are numbers."""
    import polars as pl

    column = table[name]
    if column.dtype != pl.String:
        return column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)
    text = column.str.strip_chars()
    filled = text.filter(text.is_not_null() & ~text.is_in(MISSING))
    return bool(filled.cast(pl.Float64, strict=False).is_not_null().sum() * 2 >= len(filled))


def coded(table: polars.DataFrame, name: str, where: str) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct stripped texts of a column, in the order of their first rows, and the number of each row's, (N,).

    Memory for texts is that of the distinct ones.

    Raises:
        DataError: an entry is empty; the message names the first such row.
    """
    import polars as pl

    column = table[name]
    once = column.unique(maintain_order=True)
    stripped = once.cast(pl.String).str.strip_chars()
    if (stripped.is_null() | (stripped == "")).any():
        whole = column.cast(pl.String).str.strip_chars()
        row = (whole.is_null() | (whole == "")).arg_true()[0]
        raise DataError(f"{where}, row {row + 1} of its data: expected an entry in column {name!r}; it is empty")
    texts = stripped.to_list()
    names = list(dict.fromkeys(texts))
    number = {text: place for place, text in enumerate(names)}
    own = column.replace_strict(once, pl.Series([number[text] for text in texts], dtype=pl.Int64))
    return names, own.to_numpy().astype(np.int64, copy=False)


def needed(table: polars.DataFrame, names: Sequence[str], where: str, key: str) -> None:
    """Check that a table has all required columns.

    Raises:
        DataError: a column is missing; the message names it, the recipe's key and the columns of the table.
    """
    lacking = [name for name in names if name not in table.columns]
    if lacking:
        shown = ", ".join(map(repr, table.columns[:12])) + (", …" if len(table.columns) > 12 else "")
        raise DataError(f"{where}: expected the column {lacking[0]!r} ({key}); its columns are {shown}")


def _first_line(error: Any) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
