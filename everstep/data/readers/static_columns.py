"""Static covariates of series: numbers, and categories, which become a column of 0 and 1 each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.tables import MISSING, numbers
from everstep.errors import DataError

if TYPE_CHECKING:
    import polars

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Categories: TypeAlias = "tuple[tuple[str, tuple[str, ...]], ...]"
"""The columns of text, each with its categories in training."""
SHOWN = 5
"""The most categories in a note."""


class StaticColumns:
    """The static columns of tables. Categories are learned from the tables, unless they are given.

    Args:
        names: the K static columns.
        categories: those of text; without categories they are learned.
    """

    def __init__(self, names: Sequence[str], categories: Categories):
        self._names = tuple(names)
        self._known = {name: {text: place for place, text in enumerate(texts)} for name, texts in categories}
        self._learns = {name for name, texts in categories if not texts}
        self._strange: dict[str, dict[str, None]] = {}

    @property
    def categories(self) -> Categories:
        """The columns of text with their categories, in the order of their first rows."""
        return tuple((name, tuple(known)) for name, known in self._known.items())

    def read(self, table: polars.DataFrame, where: str) -> Floats:
        """The static columns of a table, (R, K): numbers, and the number of each category; NaN where one is missing.

        Raises:
            DataError: a column of numbers holds text.
        """
        found = [self._codes(table, n) if n in self._known else numbers(table, n, where) for n in self._names]
        return np.stack(found, 1) if found else np.zeros((table.height, 0))

    def _codes(self, table: polars.DataFrame, name: str) -> Floats:
        import polars as pl

        column = table[name].cast(pl.String).str.strip_chars()
        once = column.unique(maintain_order=True)
        codes = [self.code(name, text) for text in once.to_list()]
        found: Floats = column.replace_strict(once, pl.Series(codes, dtype=pl.Float64)).to_numpy()
        return found

    def code(self, name: str, text: str | None) -> float:
        """The number of a category; NaN if it is missing, or if training did not have it."""
        known = self._known[name]
        if text is None or text in MISSING:
            return np.nan
        if name in self._learns:
            known.setdefault(text, len(known))
        elif text not in known:
            self._strange.setdefault(name, {})[text] = None
        return known.get(text, np.nan)

    def notes(self) -> list[str]:
        """Notes on categories: those that were learned, and those that training did not have."""
        found = []
        for name, known in self._known.items():
            if name in self._learns:
                found.append(f"{name!r} (data.static) is text, read as {len(known):,} categories: {_listed(known)}")
        for name, strange in self._strange.items():
            found.append(
                f"{len(strange):,} categories of {name!r} (data.static) were not in training, and are read as missing: "
                f"{_listed(strange)}"
            )
        return found

    def of_series(self, ids: Sequence[str], series: Ints, rows: Floats, where: str) -> Floats:
        """The static covariates of S series, from those of rows (R, K), where they may be missing in some.

        Returns:
            (S, K'): a column for each number and for each category, NaN where one is missing.

        Raises:
            DataError: a covariate changes within a series.
        """
        found = np.full((len(ids), len(self._names)), np.nan)
        for place, name in enumerate(self._names):
            there = ~np.isnan(rows[:, place])
            low, high = np.full(len(ids), np.inf), np.full(len(ids), -np.inf)
            np.minimum.at(low, series[there], rows[there, place])
            np.maximum.at(high, series[there], rows[there, place])
            if len(changing := np.flatnonzero(low < high)):
                one = changing[0]
                texts = dict(self.categories).get(name)
                shown = [f"{value:g}" if texts is None else repr(texts[int(value)]) for value in (low[one], high[one])]
                raise DataError(
                    f"{where}: expected one value of {name!r} (data.static) for each series; {ids[one]!r} has "
                    f"from {shown[0]} to {shown[1]}; name what changes in data.past or data.future"
                )
            found[low <= high, place] = low[low <= high]
        return self.spread(found)

    def spread(self, values: Floats) -> Floats:
        """Columns (S, K) as (S, K'): each category is a column of 0 and 1."""
        parts = []
        for place, name in enumerate(self._names):
            own = values[:, [place]]
            if name in self._known:
                own = np.where(np.isnan(own), np.nan, own == np.arange(len(self._known[name])))
            parts.append(own)
        return np.concatenate(parts, 1) if parts else values


def static_values(given: Any, names: Sequence[str], categories: Categories, rows: int) -> Floats:
    """Static covariates that a caller gives, (K,) or (S, K) of numbers and texts, as `StaticColumns.of_series`.

    Raises:
        DataError: another shape, a text for a number, or a category that training did not have.
    """
    columns = StaticColumns(names, categories)
    texts, held = dict(categories), np.array(() if given is None else given, object)
    if held.shape not in ((len(names),), (rows, len(names))):
        raise DataError(f"stream: expected static ({', '.join(names)}) of shape {(rows, len(names))}; got {held.shape}")
    found = np.empty((rows, len(names)))
    for row, own in enumerate(np.broadcast_to(held, found.shape)):
        for place, (name, value) in enumerate(zip(names, own, strict=True)):
            try:
                found[row, place] = columns.code(name, str(value)) if name in texts else float(value)
            except (TypeError, ValueError):
                raise DataError(f"stream: expected a number as {name!r} (data.static); got {value!r}") from None
            if name in texts and np.isnan(found[row, place]) and str(value) not in MISSING:
                raise DataError(f"stream: expected {name!r} as one of {_listed(texts[name])}; got {value!r}")
    if np.isinf(found).any():
        raise DataError("stream: expected finite numbers as static; got an infinity")
    return columns.spread(found)


def _listed(names: Sequence[str] | dict[str, Any]) -> str:
    return ", ".join(map(repr, list(names)[:SHOWN])) + (", …" if len(names) > SHOWN else "")
