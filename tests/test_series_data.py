"""Tables of series: what is read of them, which windows are cut, what is refused and what is told."""

from __future__ import annotations

import gzip
import weakref
from contextlib import nullcontext
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from everstep.data.calendar import calendar
from everstep.data.panel import joined
from everstep.data.readers import series
from everstep.data.readers.series import read_series
from everstep.data.readers.static_columns import static_values
from everstep.data.readers.tables import read_table
from everstep.data.readers.time_stamps import DAY, SECOND, Frequency, named_frequency, read_stamp
from everstep.data.windows import Windows
from everstep.errors import ConfigError, DataError
from everstep.networks.forecaster_section import ForecasterSection
from everstep.networks.learned_series import LearnedSeries, fitted_scale
from everstep.runs.series_data import SeriesData, SeriesSection

LONG = "unique_id,ds,y\n" + "".join(
    f"{name},2024-01-{day:02},{day + 10 * (name == 'b')}\n" for name in "ab" for day in range(1, 31)
)


def written(folder: Path, text: str, name: str = "series.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def read(folder: Path, text: str, name: str = "series.csv", **named: Any) -> Any:
    return read_series([written(folder, text, name)], **named)


# --------------------------------------------------------------------------------------------------------------- tables


def test_one_panel_of_every_layout_and_format(tmp_path: Path) -> None:
    import polars as pl

    long = read(tmp_path, LONG)
    wide = read(tmp_path, "ds,a,b\n" + "".join(f"2024-01-{day:02},{day},{day + 10}\n" for day in range(1, 31)))
    assert long.roles.layout == "long"
    assert wide.roles.layout == "wide"
    table = pl.read_csv(written(tmp_path, LONG), try_parse_dates=True)
    table.write_parquet(tmp_path / "s.parquet")
    table.write_ndjson(tmp_path / "s.jsonl")
    (tmp_path / "s.csv.gz").write_bytes(gzip.compress(LONG.encode()))
    semicolons = read(tmp_path, LONG.replace(",", ";"))
    others = [read_series([tmp_path / name]) for name in ("s.parquet", "s.jsonl", "s.csv.gz")]
    for found in (wide, semicolons, *others):
        assert found.panel.digest() == long.panel.digest()
        assert found.panel.frequency == Frequency("microsecond", DAY)
        assert not found.notes
    rows = read(tmp_path, "V1,V2,V3,V4\na,1,2,3\nb,4,5,\n")
    assert rows.roles.layout == "rows"
    assert rows.panel.known.tolist() == [3, 2]
    assert rows.panel.target.tolist() == [1, 2, 3, 4, 5]
    assert rows.panel.counted


def test_no_table_outlives_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [written(tmp_path, LONG.replace("2024", str(year)), f"{year}.csv") for year in (2022, 2023, 2024)]
    alive: list[Any] = []

    def watched(path: Path) -> Any:
        assert not [table for table in alive if table() is not None], "an earlier table is still in memory"
        table = read_table(path)
        alive.append(weakref.ref(table))
        return table

    monkeypatch.setattr(series, "read_table", watched)
    found = read_series(paths)
    assert len(alive) == 3
    assert not any(table() is not None for table in alive)
    assert found.panel.known.tolist() == [760, 760]


def test_an_error_names_its_file(tmp_path: Path) -> None:
    paths = [
        written(tmp_path, LONG, "good.csv"),
        written(tmp_path, LONG.replace("2024", "2025") + "a,x,1\n", "bad.csv"),
    ]
    with pytest.raises(DataError, match=r"bad\.csv, row \d+ of its data: expected a time"):
        read_series(paths)


def test_gaps_become_missing_values_and_order_is_told(tmp_path: Path) -> None:
    lines = LONG.splitlines()
    shuffled = [lines[0], *lines[11:31], *lines[1:11], *lines[31:]]
    found = read(tmp_path, "\n".join(shuffled))
    assert found.panel.digest() == read(tmp_path, LONG).panel.digest()
    assert found.notes == ["rows out of order in 1 series, which were sorted by time"]
    del lines[5:8]
    found = read(tmp_path, "\n".join(lines).replace("a,2024-01-01,1\n", "a,2024-01-01,NA\n"))
    assert np.flatnonzero(np.isnan(found.panel.target)).tolist() == [0, 4, 5, 6]
    assert found.notes == ["3 steps without a row, read as missing values"]


@pytest.mark.parametrize(
    ("stamps", "name", "after"),
    [
        (["2024-01-01 00:00", "2024-01-01 01:00", "2024-01-01 03:00"], "hour", "2024-01-01 04:00:00"),
        (["2024-01", "2024-02", "2024-04"], "month", "2024-05-01"),
        (["2024-01-31", "2024-02-29", "2024-03-31"], "month", "2024-04-30"),
        (["2023-12-29", "2024-01-01", "2024-01-02", "2024-01-03"], "business day", "2024-01-04"),
        (["2024-01-01", "2024-01-08", "2024-01-15"], "week", "2024-01-22"),
        (["2023-01-01", "2023-04-01", "2023-07-01"], "quarter", "2023-10-01"),
        (["1990", "1991", "1992"], "step", "1993"),
        (["20240101", "20240102", "20240103"], "day", "2024-01-04"),
        (
            ["2024-03-31T01:00+01:00", "2024-03-31T03:00+02:00", "2024-03-31T04:00+02:00"],
            "hour",
            "2024-03-31 03:00:00+00:00",
        ),
        (["2024-01-01 00:15", "2024-01-01 00:30", "2024-01-01 00:45"], "15 minutes", "2024-01-01 01:00:00"),
    ],
)  # fmt: skip
def test_the_grid_of_time(tmp_path: Path, stamps: list[str], name: str, after: str) -> None:
    found = read(tmp_path, "ds,y\n" + "".join(f"{stamp},{place}\n" for place, stamp in enumerate(stamps)))
    panel = found.panel
    assert panel.frequency.name == name
    assert panel.frequency.texts(panel.first + panel.rows) == [after]
    assert panel.frequency.on_grid(panel.frequency.stamps(np.arange(50))).all()
    assert calendar(panel.frequency, np.arange(5)).shape[0] == 5
    assert name == "step" or named_frequency(name)[:2] == panel.frequency[:2]


BAD = {
    "twice": (LONG + "a,2024-01-03,5\n", r"series 'a' has more than one row at 2024-01-03 .*daylight-saving"),
    "mixed": ("ds,y\n2024-01-01,1\n2024-01-02,2\n2024-01-03,3\n2024-01-03 12:30,4\n", "mixed frequencies: most rows"),
    "text": ("ds,a,wind\n2024-01-01,1,NW\n2024-01-02,2,SE\n", r"column 'wind' holds text, such as 'NW'.*data\.target"),
    "word": (LONG.replace("2024-01-05,5", "2024-01-05,five"), r"row 5 .*a number in column 'y'.*'five'"),
    "infinity": (LONG.replace("2024-01-05,5", "2024-01-05,inf"), r"row 5 .* finite numbers in column 'y'; got inf"),
    "time": (LONG.replace("a,2024-01-05", "a,5/1/24"), r"row 5 .*a time in column 'ds'.*'5/1/24'.*time_format"),
    "offsets": ("ds,y\n2024-01-01 00:00,1\n2024-01-01T01:00+01:00,2\n", "some time stamps .* have an offset"),
    "one": ("ds,y\n2024-01-01,1\n", r"does not tell the frequency; give more rows, or train with data\.frequency"),
    "empty": ("ds,y\n", "expected rows below the header; got none"),
    "ragged": ("ds,y\n2024-01-01,1\n2024-01-02,2,3\n", "cannot be read as a table"),
    "no name": (LONG.replace("a,2024-01-05", ",2024-01-05"), r"row 5 .*an entry in column 'unique_id'"),
    "no value": ("unique_id,ds,p,q\na,2024-01-01,1,2\n", r"expected one column of values \(data\.target\).*'p', 'q'"),
    "rows twice": ("V1,V2,V3,V4\na,1,2,3\na,4,5,6\n", "expected one row a series; 'a' has more"),
    "year 1": ("ds,y\n0001-01-01T00:00+05:00,1\n", r"row 1 .*a time in column 'ds'.*'0001-01-01T00:00\+05:00'"),
    "far in seconds": (
        "ds,y\n" + "".join(f"2024-01-01 00:00:0{second},1\n" for second in range(4)) + "2420-01-01 00:00:00,1\n",
        "on a grid of one second, 12,.* steps are left out between 5 rows",
    ),
    "far": ("ds,y\n1,1\n2,2\n3,3\n900000,4\n", "899,996 steps are left out between 4 rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_told_by_place(name: str, tmp_path: Path) -> None:
    text, said = BAD[name]
    with pytest.raises(DataError, match=said):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("stamps", "said"),
    [
        ([date(2024, 1, 1), None, date(2024, 1, 3)], r"row 2 of its data: expected an entry in column 'ds'"),
        ([time(1), time(2), time(3)], r"expected dates, or dates with times, in column 'ds'; got Time"),
        ([timedelta(1), timedelta(2), timedelta(3)], r"expected dates, .*got Duration"),
    ],
)
def test_bad_times_of_parquet_are_told_by_place(stamps: list[Any], said: str, tmp_path: Path) -> None:
    import polars as pl

    pl.DataFrame({"ds": stamps, "y": [1.0, 2.0, 3.0]}).write_parquet(tmp_path / "s.parquet")
    with pytest.raises(DataError, match=said):
        read_series([tmp_path / "s.parquet"])


def test_a_column_without_a_value_is_one_of_missing_numbers(tmp_path: Path) -> None:
    text = "".join(f'{{"ds": "2024-01-0{day}", "a": {day}, "b": null}}\n' for day in (1, 2, 3))
    assert read(tmp_path, text, "s.jsonl").panel.known.tolist() == [3, 0]


def test_a_series_without_a_row_has_no_value(tmp_path: Path) -> None:
    for text, rows in (
        ("a,1,2,3\nb,,,\nc,4,5,\n", [[1, 2, 3], [], [4, 5]]),
        ("a,,,\nb,1,2,3\n", [[], [1, 2, 3]]),
        ("a,1,2,3\nb,,,\n", [[1, 2, 3], []]),
    ):
        panel = read(tmp_path, "V1,V2,V3,V4\n" + text).panel
        assert [panel.values(place).tolist() for place in range(len(panel))] == rows
        assert panel.rows.tolist() == [max(len(row), 1) for row in rows]
    before = read(tmp_path, LONG + "c,2024-01-01,\nc,2024-01-02,\n").panel
    panel, begins = joined(
        before, read(tmp_path, "unique_id,ds,y\na,2024-02-01,1\na,2024-02-02,2\n").panel, "data.test"
    )
    assert panel.known.tolist() == [33, 30, 0]
    assert begins.tolist() == [31, 30, 0]


def test_named_columns_and_formats(tmp_path: Path) -> None:
    text = "when;what;load;heat\n31/12/2023;x;1;2\n01/01/2024;x;2;3\n02/01/2024;x;;4\n"
    found = read(tmp_path, text, time="when", id="what", targets=["load"], past=["heat"], time_format="%d/%m/%Y")
    assert found.panel.past[:, 0].tolist() == [2, 3, 4]
    assert found.panel.known.tolist() == [2]
    with pytest.raises(DataError, match=r"expected the column 'cold' \(data\.past\); its columns are 'when', 'what'"):
        read(tmp_path, text, past=["cold"])
    later = written(tmp_path, text.replace("heat", "warmth"), "later.csv")
    with pytest.raises(DataError, match=r"later\.csv: expected the column 'heat' \(as in training\)"):
        read_series([later], found.roles)
    with pytest.raises(ConfigError, match=r"frequency: expected such as hour, .*got 'fortnight'"):
        SeriesSection(frequency="fortnight")
    with pytest.raises(ConfigError, match="expected each column in one role; 'a' has more"):
        SeriesSection(target="a", past=("a",))
    assert read_stamp("2024-01-01 00:00:01")[0] - read_stamp("2024/01/01")[0] == SECOND


def test_series_go_on_in_another_file(tmp_path: Path) -> None:
    first = read(tmp_path, "V1,V2,V3,V4\na,1,2,3\nb,4,5,\n").panel
    second = read(tmp_path, "V1,V2,V3,V4\nb,6,7,8\nc,9,9,9\n").panel
    panel, begins = joined(first, second, "data.test")
    assert [panel.values(place).tolist() for place in range(3)] == [[1, 2, 3], [4, 5, 6, 7, 8], [9, 9, 9]]
    assert begins.tolist() == [3, 2, 0]
    long = read(tmp_path, LONG).panel
    later, begins = joined(long, read(tmp_path, "unique_id,ds,y\na,2024-02-01,1\na,2024-02-02,2\n").panel, "data.test")
    assert later.known.tolist() == [33, 30]
    assert begins.tolist() == [31, 30]
    with pytest.raises(
        DataError, match=r"data\.test: expected rows after those of data\.train; series 'a' has 2024-01-29"
    ):
        joined(long, read(tmp_path, "unique_id,ds,y\na,2024-01-29,1\na,2024-01-30,2\n").panel, "data.test")
    with pytest.raises(DataError, match=r"the time stamps of the training data \(day, .*\); got no time stamps"):
        joined(long, second, "data.test")


HOURS = "ds,y\n" + "".join(f"2024-01-01 {hour:02}:00,{hour}\n" for hour in range(20))
DAYS = "unique_id,ds,y\n"


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (LONG, DAYS + "a,2024-02-02,1\na,2024-02-05,2\na,2024-02-06,3\n", ""),  # a weekend is left out
        (LONG, DAYS + "a,2024-02-02,1\n", ""),  # one row does not determine a frequency
        (HOURS, "ds,y\n2024-01-02 00:30,1\n2024-01-02 01:30,2\n", "got hour, such as at 1970-01-01 00:30:00"),
        (HOURS, "ds,y\n2024-01-02 00:00+00:00,1\n2024-01-02 01:00+00:00,2\n", r"got hour, such as at .*\+00:00"),
        (HOURS, "ds,y\n2124-01-02 00:00,1\n", "data.test: on a grid of one hour, .* steps are left out"),
    ],
)
def test_a_further_file_is_on_the_grid_of_training(train: str, test: str, said: str, tmp_path: Path) -> None:
    path, later = written(tmp_path, train), written(tmp_path, test, "later.csv")
    data = data_of(path, {"horizon": 2, "window": 4, "segment": 1}, test=str(later))
    with pytest.raises(DataError, match=said) if said else nullcontext():
        assert data.panel.frequency == data.train.panel.frequency
        assert data.panel.known[0] > data.train.panel.known[0]


# -------------------------------------------------------------------------------------------------------------- windows


def data_of(path: Path, model: dict[str, Any], **section: Any) -> SeriesData:
    return SeriesData(SeriesSection(train=str(path), **section), ForecasterSection(**model), 1)


def test_a_test_split_is_taken_from_the_end_of_a_validation_file(tmp_path: Path) -> None:
    later = "2024-01-31", *(f"2024-02-0{day}" for day in range(1, 6))
    valid = written(tmp_path, DAYS + "".join(f"{name},{day},1\n" for name in "ab" for day in later), "valid.csv")
    path, model = written(tmp_path, LONG), {"horizon": 3, "window": 4, "segment": 1}
    for part, borders in (
        (None, {"train": (0, 30), "valid": (30, 36)}),
        (2, {"train": (0, 30), "valid": (30, 34), "test": (34, 36)}),
    ):
        data = data_of(path, model, valid=str(valid), test_part=part)
        assert {s: (data.part(s).begin[0], data.part(s).end[0]) for s in data.splits()} == borders
        assert len(list(data.told(data.learned()))) > len(borders)


@pytest.mark.parametrize(("value", "shown"), [("-1", "-1"), ("2.5", "2.5")])
def test_counts_are_whole_numbers(value: str, shown: str, tmp_path: Path) -> None:
    model = {"horizon": 3, "window": 4, "segment": 1, "head": "negative-binomial", "level": "none"}
    data = data_of(written(tmp_path, LONG.replace("05,5", f"05,{value}")), model, scaling="none")
    with pytest.raises(DataError, match=rf"expected counts 0, 1, 2, …; series 'a' has {shown} \(1 such values\)"):
        data.learned()
    data_of(written(tmp_path, LONG), model, scaling="none").learned()


@pytest.mark.parametrize("horizon", [24, 96, 720])
def test_the_windows_of_the_usual_protocol_of_etth1(tmp_path: Path, horizon: int) -> None:
    rows = "".join(f"{place},{place % 24},{place % 7}\n" for place in range(14_500))
    path = written(tmp_path, "ds,OT,HUFL\n" + rows)
    data = data_of(
        path, {"horizon": horizon, "window": 96, "segment": 24}, rows=14_400, valid_part=2880, test_part=2880,
        scaling="standard", calendar=False,
    )  # fmt: skip
    learned = data.learned()
    shift, scale = fitted_scale(np.arange(8640.0) % 24, "standard")
    assert learned.scales["OT"] == pytest.approx((shift, scale))
    counts = {split: data.windows(split, learned, 64).number for split in data.splits()}
    assert counts == {
        "train": 2 * (8640 - 96 - horizon + 1), "valid": 2 * (2880 - horizon + 1), "test": 2 * (2880 - horizon + 1)
    }  # fmt: skip
    first = data.windows("test", learned, 1).batch(0, 0)  # inputs reach back over the border
    want = (np.arange(11_520 - 96, 11_520) % 24 - shift) / scale
    np.testing.assert_allclose(first.values[0].numpy(), want, atol=1e-5)
    assert not first.target.isnan().any()


def test_windows_come_once_an_epoch_and_stay_within_their_part(tmp_path: Path) -> None:
    data = data_of(written(tmp_path, LONG), {"horizon": 3, "window": 4, "segment": 1}, valid_part=5, test_part=0.2)
    learned = data.learned()
    windows = data.windows("train", learned, 7, learn=True)
    assert windows.number == 2 * (19 - 4 - 3 + 1)
    for epoch in (0, 1):
        ends = sorted(
            (int(s), round(float(t) * learned.scales["ab"[int(s)]][1]))
            for index in range(len(windows))
            for s, t in zip(*(lambda b: (b.series, b.target[:, -1]))(windows.batch(epoch, index)), strict=True)
        )
        assert ends == sorted((s, day + 10 * s) for s in (0, 1) for day in range(7, 20))
    assert (windows.batch(0, 0).target != windows.batch(1, 0).target).any()
    assert {split: data.windows(split, learned, 7).number for split in ("valid", "test")} == {"valid": 6, "test": 8}
    again = LearnedSeries.load(written(tmp_path, learned.to_bytes().decode(), "series.json"))
    assert again == learned


def test_what_is_short_or_empty_or_constant_is_counted(tmp_path: Path) -> None:
    more = "c,2024-01-01,1\nd,2024-01-01,\nd,2024-01-02,\n" + "".join(f"e,2024-01-{day:02},4\n" for day in range(1, 31))
    data = data_of(written(tmp_path, LONG + more), {"horizon": 3, "window": 4, "segment": 1})
    told = list(data.told(data.learned()))
    assert "train: 54 windows; 2 series too short or empty: c, d" in told
    assert "note: 1 series constant in training, scaled by 1: e" in told
    short = data_of(written(tmp_path, LONG), {"horizon": 20, "window": 4, "segment": 1})
    with pytest.raises(DataError, match="no series is long enough"):
        list(short.told(short.learned()))
    negative = data_of(
        written(tmp_path, LONG.replace("05,5", "05,-1")), {"horizon": 3, "window": 4, "segment": 1}, scaling="log"
    )
    with pytest.raises(DataError, match=r"data\.scaling=log: expected values above 0; series 'a' has -1"):
        list(negative.told(negative.learned()))


def test_no_target_scales_a_series_without_training_values(tmp_path: Path) -> None:
    late = "c,2024-01-01,\n" + "".join(f"c,2024-01-{day},900\n" for day in range(25, 31))
    test = written(tmp_path, DAYS + "".join(f"{name},2024-02-0{day},700\n" for name in "bd" for day in (1, 2)), "t.csv")
    data = data_of(
        written(tmp_path, LONG + late), {"horizon": 2, "window": 4, "segment": 1}, valid_part=6, test=str(test)
    )
    learned = data.learned()
    a, b = (np.arange(1, 25) + more for more in (0, 10))
    usual = (a.mean() + b.mean()) / 2
    assert learned.scales_of(data.panel)[1].tolist() == pytest.approx([a.mean(), b.mean(), usual, usual])
    assert "note: 2 series without training values, scaled by the medians: c, d" in data.told(learned)
    given = read(tmp_path, DAYS + "b,2024-02-01,3\nnew,2024-02-01,3\n", frequency="day").panel
    history = learned.with_scales_of(given)
    assert history.numbers(("new", "b")).tolist() == [3, 1]
    assert history.scales["new"] == (0.0, 3.0)


def test_windows_without_a_value_are_left_out(tmp_path: Path) -> None:
    gaps = LONG
    for day in range(5, 14):
        gaps = gaps.replace(f"a,2024-01-{day:02},{day}\n", "")
    windows = data_of(written(tmp_path, gaps), {"horizon": 2, "window": 3, "segment": 1}, valid_part=0, test_part=0)
    found = windows.windows("train", windows.learned(), 100).batch(0, 0)
    own = found.series == 0
    assert not found.values.isnan().all(1).any()
    assert not found.target.isnan().all(1).any()
    assert int(own.sum()) == 16  # of 26: not those that read days 5 … 13 alone, nor those that foretell them alone
    assert found.count == int((~found.target.isnan()).sum())


def test_a_window_of_the_future_alone(tmp_path: Path) -> None:
    panel = read(tmp_path, LONG).panel
    windows = Windows(
        panel, panel.known, panel.known, panel.known, window=2, horizon=2, batch_size=9, every=True, calendar=True
    )
    batch = windows.batch(0, 0)
    assert batch.values.tolist() == [[29, 30], [39, 40]]
    assert batch.target.isnan().all()
    np.testing.assert_allclose(
        batch.future[0], calendar(panel.frequency, panel.first[0] + np.arange(28, 32)), atol=1e-6
    )
    with pytest.raises(IndexError):
        windows.batch(0, 1)


def test_static_covariates_are_one_number_a_series(tmp_path: Path) -> None:
    rows = ["unique_id,ds,y,size", *(f"{name},{step},{step},{'' if step == 1 else size}" for name, size in
            (("a", 3), ("b", 5)) for step in range(12))]  # fmt: skip
    path = written(tmp_path, "\n".join(rows))
    found = read_series([path], static=["size"])
    assert found.panel.static.tolist() == [[3.0], [5.0]]
    data = data_of(path, {"horizon": 2, "window": 4, "segment": 2}, static=("size",), calendar=False)
    learned = data.learned()
    assert learned.covariates == ((4.0, 1.0),)
    assert learned.shape.future == 1
    batch = data.windows("train", learned, 100).batch(0, 0)
    assert batch.future.shape[1:] == (6, 1)
    assert (batch.future[:, :, 0] == torch.where(batch.series == 0, -1.0, 1.0)[:, None]).all()
    later = written(tmp_path, "unique_id,ds,y,size\nb,12,1,5\nc,12,1,9\nc,13,1,9\n", "later.csv")
    panel, _ = joined(found.panel, read_series([later], found.roles).panel, "data.test")
    assert panel.static.tolist() == [[3.0], [5.0], [9.0]]
    with pytest.raises(DataError, match=r"one value of 'y' \(data\.static\) for each series; 'a' has from 0 to 11"):
        read_series([path], static=["y"], targets=["size"])
    wide = written(tmp_path, "ds,u,v\n1,2,3\n2,3,4\n", "wide.csv")
    with pytest.raises(DataError, match=r"expected a long table beside data\.static \(u\); it is wide"):
        read_series([wide], static=["u"])


def test_static_covariates_of_text_are_categories(tmp_path: Path) -> None:
    rows = ["unique_id,ds,y,town,size", *(f"{name},{step},{step},{town if step else ''},{size}" for name, town, size in
            (("a", "Oslo", 3), ("b", "Rome", 5), ("c", "Oslo", 4)) for step in range(12))]  # fmt: skip
    path = written(tmp_path, "\n".join(rows))
    data = data_of(path, {"horizon": 2, "window": 4, "segment": 2}, static=("town", "size"), calendar=False)
    assert data.panel.static.tolist() == [[1.0, 0.0, 3.0], [0.0, 1.0, 5.0], [1.0, 0.0, 4.0]]
    learned = LearnedSeries.load(saved(data.learned(), tmp_path))
    assert learned.roles.categories == (("town", ("Oslo", "Rome")),)
    assert learned.shape.future == 3
    assert "note: 'town' (data.static) is text, read as 2 categories: 'Oslo', 'Rome'" in list(data.told(learned))
    found = data.given(["unique_id,ds,y,town,size", "a,1,1,Rome,3", "d,1,2,Bonn,1", "e,1,2,,1"], learned)
    np.testing.assert_array_equal(found.panel.static, [[0, 1, 3], [np.nan, np.nan, 1], [np.nan, np.nan, 1]])
    assert found.notes == ["1 categories of 'town' (data.static) were not in training, and are read as missing: 'Bonn'"]
    with pytest.raises(DataError, match=r"one value of 'town' .*'a' has from 'Oslo' to 'Rome'"):
        read_series([written(tmp_path, "unique_id,ds,y,town\na,1,1,Oslo\na,2,1,Rome\n")], static=["town"])
    with pytest.raises(DataError, match=r"expected a number in column 'town'.*got 'x'"):
        read_series([written(tmp_path, "unique_id,ds,y,town\na,1,1,5\nb,2,1,x\n")], static=["town"])
    ours = (learned.roles.static, learned.roles.categories)
    assert static_values([["Rome", 2], ["Oslo", "3"]], *ours, 2).tolist() == [[0, 1, 2], [1, 0, 3]]
    for given, said in (
        (["Bonn", 2], "'town' as one of 'Oslo', 'Rome'; got 'Bonn'"),
        (["Rome", "x"], "number as 'size'"),
        (["Rome"], r"of shape \(1, 2\); got \(1,\)"),
        (["Rome", np.inf], "finite"),
    ):
        with pytest.raises(DataError, match=said):
            static_values(given, *ours, 1)


def saved(learned: LearnedSeries, folder: Path) -> Path:
    path = folder / "series.json"
    path.write_bytes(learned.to_bytes())
    return path
