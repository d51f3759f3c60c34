"""Data frames of pandas and polars as input and as answers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everstep.errors import ConfigError, DataError
from everstep.storage.files import replace_file
from everstep.storage.reading import json_text

if TYPE_CHECKING:
    import polars


def is_frame(value: Any) -> bool:
    """Whether a value is a data frame of pandas or polars; imports neither."""
    return type(value).__name__ == "DataFrame" and _library(value) in ("pandas", "polars")


def _library(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


class GivenFrames:
    """Frames in the place of files of a recipe's `data`: they are written into the run as Parquet.

    Args:
        data: a frame, or a file or a list of files, for each key of the section, such as "train".

    Attributes:
        frames: the frames, by key.
        others: what is no frame, by key.

    Raises:
        ConfigError: a value is neither a frame nor a path.
    """

    def __init__(self, data: Mapping[str, Any]):
        self.frames = {key: value for key, value in data.items() if is_frame(value)}
        self.others = {key: value for key, value in data.items() if key not in self.frames}
        for key, value in self.others.items():
            if not isinstance(value, str | Path | list | tuple):
                raise ConfigError(
                    f"data[{key!r}]: expected a DataFrame of pandas or polars, or files; got {type(value).__name__}"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the files in the run."""
        return tuple(f"{key}.parquet" for key in self.frames)

    def overrides(self, out: Path) -> list[str]:
        """The changes of the recipe that name the files."""
        paths: dict[str, str | list[str]] = {key: str((out / f"{key}.parquet").absolute()) for key in self.frames}
        for key, value in self.others.items():
            paths[key] = [str(one) for one in value] if isinstance(value, list | tuple) else str(value)
        return [f"data.{key}={json_text(path)}" for key, path in paths.items()]

    def write(self, out: Path) -> None:
        """Write the frames into the folder of the run."""
        for key, frame in self.frames.items():
            content = io.BytesIO()
            as_polars(frame, f"data[{key!r}]").write_parquet(content)
            replace_file(out / f"{key}.parquet", content.getvalue())


def as_polars(frame: Any, where: str) -> polars.DataFrame:
    """The frame as one of polars. An index of pandas that has a name, or holds times (`ds`), becomes a column.

    An index of the name of a column is left out.

    Raises:
        DataError: a column of pandas holds objects other than text, or two columns have one name.
    """
    import polars as pl

    if _library(frame) == "polars":
        return frame  # type: ignore[no-any-return]
    import pandas as pd

    if isinstance(frame.index, pd.DatetimeIndex | pd.PeriodIndex) and frame.index.name is None:
        frame = frame.rename_axis("ds")
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index([name for name in frame.index.names if name in frame.columns], drop=True)
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()
    names = list(map(str, frame.columns))
    if len(set(names)) < len(names):
        raise DataError(f"{where}: expected columns of different names; got {names}")
    columns = [_column(frame.iloc[:, place], f"{where}, column {name!r}") for place, name in enumerate(names)]
    return pl.DataFrame(dict(zip(names, columns, strict=True)))


def _column(series: Any, where: str) -> polars.Series:
    import pandas as pd
    import polars as pl

    kind = series.dtype
    if isinstance(kind, pd.DatetimeTZDtype):
        stamps = series.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]")
        return pl.Series(stamps).dt.replace_time_zone("UTC")
    if pd.api.types.is_datetime64_dtype(kind):
        return pl.Series(series.to_numpy("datetime64[us]"))
    if isinstance(kind, pd.PeriodDtype):
        return pl.Series(series.dt.to_timestamp().to_numpy("datetime64[us]"))
    if pd.api.types.is_bool_dtype(kind) or pd.api.types.is_integer_dtype(kind):
        if not series.isna().any():
            return pl.Series(series.to_numpy("bool" if pd.api.types.is_bool_dtype(kind) else "int64"))
        return pl.Series(series.to_numpy("float64", na_value=float("nan")))
    if pd.api.types.is_float_dtype(kind):
        return pl.Series(series.to_numpy("float64", na_value=float("nan")))
    values = [None if missing else value for value, missing in zip(series, series.isna(), strict=True)]
    wrong = next((value for value in values if value is not None and not isinstance(value, str)), None)
    if wrong is not None:
        raise DataError(f"{where}: expected numbers, times or text; got {wrong!r} ({type(wrong).__name__})")
    return pl.Series(values, dtype=pl.String)


def lines_of(frame: Any) -> Iterator[str]:
    """The frame as lines of CSV.

    Raises:
        DataError: a column holds lists or structures.
    """
    table = as_polars(frame, "the frame")
    if nested := next((name for name, kind in table.schema.items() if kind.is_nested()), None):
        raise DataError(f"the frame: expected numbers, times or text in column {nested!r}; got {table[nested].dtype}")
    yield from table.write_csv().removesuffix("\n").split("\n")  # other ends are in texts


def answered(records: list[dict[str, Any]], given: Any) -> Any:
    """Records as a frame of the same library as `given`; `ds` holds times if `given` has a column of times."""
    import polars as pl

    found = pl.DataFrame(records, infer_schema_length=None)
    timed = [kind for kind in as_polars(given, "the frame").dtypes if kind.is_temporal()]
    zone = next((kind.time_zone for kind in timed if isinstance(kind, pl.Datetime)), None)
    if timed and "ds" in found.columns:
        with suppress(ValueError):  # numbers of steps
            stamps = pl.Series("ds", [datetime.fromisoformat(text) for text in found["ds"]])
            found = found.with_columns(stamps.dt.convert_time_zone(zone) if zone else stamps)
    if _library(given) == "polars":
        return found
    import pandas as pd

    numeric = {name: found[name].dtype.is_numeric() for name in found.columns}
    return pd.DataFrame({name: found[name].to_numpy() if numeric[name] else found[name].to_list() for name in numeric})
