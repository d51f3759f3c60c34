"""Frames of pandas and polars: trained on, forecast from, and refused where a column is no table's."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import everstep as es
from everstep.errors import ConfigError, DataError
from everstep.runs.data_frames import answered, as_polars, is_frame, lines_of

SMALL = (
    "model.hidden_size=6", "model.horizon=4", "model.window=8", "model.segment=4", "train.threads=1",
    "train.max_epochs=1", "train.batch_size=64",
)  # fmt: skip


@pytest.fixture
def pd() -> Any:
    return pytest.importorskip("pandas")


@pytest.fixture
def pl() -> Any:
    return pytest.importorskip("polars")


def quietly(line: str) -> None:
    del line


def columns() -> dict[str, Any]:
    start = datetime(2024, 1, 1)
    hours = [start + timedelta(hours=step) for step in range(96)]
    values = [10.0 + step % 24 for step in range(96)]
    return {"unique_id": ["a"] * 96 + ["b"] * 96, "ds": hours * 2, "y": values + [2 * value for value in values]}


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_in_and_forecasts_back(library: str, tmp_path: Path, pd: Any, pl: Any) -> None:
    frame = {"pandas": pd, "polars": pl}[library].DataFrame(columns())
    assert is_frame(frame)
    run = es.train("forecast-own", tmp_path / "run", quietly, overrides=SMALL, data={"train": frame})
    found = run.predict_frame(frame)
    assert type(found) is type(frame)
    assert list(found.columns)[:3] == ["unique_id", "ds", "mean"]
    assert len(found) == 8
    assert found["ds"].to_list()[3:5] == [datetime(2024, 1, 5, 3), datetime(2024, 1, 5)]
    text = pl.DataFrame(columns()).write_csv().splitlines()
    said = [answer.record for answer in run.predict(text)][1:]
    assert found["mean"].to_list() == [record["mean"] for record in said]
    loaded = es.load(tmp_path / "run")  # the run holds its data
    assert loaded.evaluate() == run.evaluate()
    scores = run.predict_frame(frame, anomalies=True)
    assert list(scores.columns)[:4] == ["unique_id", "ds", "y", "score"]
    assert len(scores) == 192


def test_what_pandas_may_hold(pd: Any) -> None:
    index = pd.date_range("2024-01-01", periods=3, freq="h", tz="Europe/Berlin")
    frame = pd.DataFrame({"y": [1.0, np.nan, 3.0], 7: pd.array([1, None, 3], "Int64")}, index=index)
    found = as_polars(frame, "x")
    assert found.columns == ["ds", "y", "7"]
    assert str(found["ds"][0]) == "2023-12-31 23:00:00+00:00"
    assert found["y"].is_nan().to_list() == found["7"].is_nan().to_list() == [False, True, False]
    grouped = pd.DataFrame({"y": [1, 2]}, index=pd.MultiIndex.from_tuples([("a", 1), ("a", 2)], names=["id", "ds"]))
    assert as_polars(grouped, "x").rows() == [("a", 1, 1), ("a", 2, 2)]
    kinds = pd.DataFrame({
        "c": pd.Categorical(["u", None]), "p": pd.PeriodIndex(["2024-01", "2024-02"], freq="M"), "b": [True, False],
    })  # fmt: skip
    found = as_polars(kinds, "x")
    assert found["c"].to_list() == ["u", None]
    assert found["p"][1] == datetime(2024, 2, 1)
    times = pd.DataFrame({"ds": index, "y": [1.0, 2.0, 3.0]})
    for twice in (times.set_index("ds", drop=False), times.set_axis(index)):
        assert as_polars(twice, "x").columns == ["ds", "y"]
    months = as_polars(pd.DataFrame({"y": [1, 2]}, index=pd.period_range("2024-01", periods=2, freq="M")), "x")
    assert months["ds"].to_list() == [datetime(2024, 1, 1), datetime(2024, 2, 1)]
    with pytest.raises(DataError, match=r"x: expected columns of different names; got \['y', 'y'\]"):
        as_polars(pd.DataFrame([[1, 2]], columns=["y", "y"]), "x")
    with pytest.raises(DataError, match=r"x, column 'y': expected numbers, times or text; got \[1\] \(list\)"):
        as_polars(pd.DataFrame({"y": [[1], [2]]}), "x")


def test_texts_of_a_frame_stay_texts(pl: Any) -> None:
    frame = pl.DataFrame({"unique_id": ["a\u2028b"], "ds": [datetime(2024, 1, 1)]})
    assert len(list(lines_of(frame))) == 2
    found = answered([{"unique_id": "20240101", "ds": "2024-01-02 00:00:00"}], frame)
    assert found.row(0) == ("20240101", datetime(2024, 1, 2))  # a name that could be a date is none


def test_a_column_of_lists_is_refused(pl: Any) -> None:
    with pytest.raises(DataError, match=r"the frame: expected numbers, times or text in column 'y'; got List"):
        list(lines_of(pl.DataFrame({"y": [[1], [2]]})))


def test_what_is_no_frame_is_refused(tmp_path: Path, pl: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\['train'\]: expected a DataFrame of pandas or polars, or files"):
        es.train("forecast-own", tmp_path / "run", data={"train": {"y": [1.0]}})
    frame = pl.DataFrame(columns())
    with pytest.raises(ConfigError, match=r"data\.trian"):
        es.train("forecast-own", tmp_path / "run", quietly, data={"trian": frame})
    with pytest.raises(DataError, match="expected one column of values"):
        es.train("forecast-own", tmp_path / "run", quietly, overrides=SMALL, data={"train": frame.drop("y")})
    assert not (tmp_path / "run").exists()
    path = tmp_path / "series.csv"
    frame.write_csv(path)
    run = es.train("forecast-own", tmp_path / "run", quietly, overrides=SMALL, data={"train": path})
    with pytest.raises(TypeError, match="expected a DataFrame of pandas or polars, but got list"):
        run.predict_frame([1.0])
