"""Irregular time stamps: what is read of them, what the network is told, and forecasts that the time decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import everstep as es
from everstep.data.calendar import calendar
from everstep.data.panel import joined, usual_gap, with_rows_ahead
from everstep.data.readers.series import Read, read_series
from everstep.data.readers.time_stamps import DAY, SECOND, Frequency
from everstep.data.windows import WindowBatch, Windows, passed
from everstep.errors import DataError
from everstep.measures.forecast_errors import LEVELS
from everstep.networks.forecaster import Forecaster
from everstep.networks.forecaster_section import ForecasterSection, WindowShape
from everstep.networks.learned_series import LearnedSeries
from everstep.runs.recipe_files import load_task
from everstep.runs.run import Run

TIMES = "unique_id,ds,y\na,10,1\na,11,2\na,15,\na,16,4\nb,3,7\nb,30,8\na,20,\n"


def quietly(line: str) -> None:
    del line


def read(folder: Path, text: str, name: str = "series.csv") -> Read:
    path = folder / name
    path.write_text(text)
    return read_series([path], frequency="irregular")


def test_a_row_is_a_step_and_keeps_its_time(tmp_path: Path) -> None:
    panel = read(tmp_path, TIMES).panel
    assert panel.rows.tolist() == [5, 2]
    assert panel.known.tolist() == [4, 2]
    assert panel.frequency == Frequency("step", 1, irregular=True)
    assert (panel.frequency.name, panel.frequency.season) == ("irregular", 1)
    assert panel.times is not None
    assert panel.times.tolist() == [10, 11, 15, 16, 20, 3, 30]
    np.testing.assert_array_equal(panel.target, [1, 2, np.nan, 4, np.nan, 7, 8])
    assert panel.texts(1, np.arange(2)) == ["3", "30"]
    assert usual_gap(panel, np.array([3, 2])) == 4  # of 1, 4 and 27
    assert panel.digest() != read(tmp_path, TIMES.replace("b,30", "b,31")).panel.digest()


@pytest.mark.parametrize(
    ("stamps", "every", "texts"),
    [
        (["2024-01-01", "2024-01-04", "2024-02-01"], DAY, ["2024-01-04"]),
        (["2024-01-01", "2024-01-04 10:30", "2024-02-01"], 1, ["2024-01-04 10:30:00"]),
        (["2024-01-01T00:00+01:00", "2024-01-04T10:30+01:00", "2024-02-01T00:00Z"], 1, ["2024-01-04 09:30:00+00:00"]),
    ],
)
def test_stamps_are_printed_as_they_came(tmp_path: Path, stamps: list[str], every: int, texts: list[str]) -> None:
    panel = read(tmp_path, "ds,y\n" + "".join(f"{stamp},1\n" for stamp in stamps)).panel
    assert panel.frequency.every == every
    assert panel.texts(0, np.array([1])) == texts
    assert panel.frequency.agrees(Frequency("microsecond", 1, utc=panel.frequency.utc, irregular=True))
    assert not panel.frequency.agrees(Frequency("microsecond", every, utc=panel.frequency.utc))


def test_rows_ahead_are_added_where_none_are_given(tmp_path: Path) -> None:
    panel = read(tmp_path, TIMES).panel
    longer, added = with_rows_ahead(panel, 3, 4.4)
    assert added.tolist() == [True, True]
    assert longer.known.tolist() == [4, 2]
    assert longer.times is not None
    assert longer.times.tolist() == [10, 11, 15, 16, 20, 24, 28, 3, 30, 34, 38, 42]
    same, added = with_rows_ahead(panel, 0, 4.4)
    assert same is panel
    assert not added.any()
    dates = read(tmp_path, "ds,y\n2024-01-01,1\n2024-01-04,2\n").panel
    longer, _ = with_rows_ahead(dates, 2, 1.6 * DAY)
    assert longer.texts(0, np.arange(2, 4)) == ["2024-01-06", "2024-01-08"]


def test_later_rows_follow_by_time(tmp_path: Path) -> None:
    before = read(tmp_path, TIMES).panel
    after = read(tmp_path, "unique_id,ds,y\na,18,5\na,20,6\nc,1,1\nc,9,2\n", "later.csv").panel
    panel, borders = joined(before, after, "data.test")
    assert panel.ids == ("a", "b", "c")
    assert panel.times is not None
    assert panel.times.tolist() == [10, 11, 15, 16, 18, 20, 3, 30, 1, 9]
    assert borders.tolist() == [4, 2, 0]
    with pytest.raises(DataError, match=r"data.test: expected rows after .*'a' has 16 there already"):
        joined(before, read(tmp_path, "unique_id,ds,y\na,16,5\na,20,6\n", "later.csv").panel, "data.test")


def test_windows_tell_the_time_between_rows_and_from_the_present(tmp_path: Path) -> None:
    panel = read(tmp_path, "ds,y\n0,1\n2,2\n3,3\n7,4\n15,5\n").panel
    rows = np.array([3])
    windows = Windows(panel, rows, rows, panel.known, window=4, horizon=2, batch_size=1, usual_gap=2.0)
    batch = windows.batch(0, 0)
    since = np.array([0, 0, 2, 1, 4, 8])  # the window begins one step before the first row
    away = np.array([3, 3, 1, 0, 4, 12])
    np.testing.assert_allclose(batch.future[0], np.log1p(np.stack([since, away], 1) / 2), rtol=1e-6)
    timed = read(tmp_path, "ds,y\n2024-01-01 03:00,1\n2024-01-01 06:00,2\n2024-01-02 12:00,2\n").panel
    rows = np.array([2])
    windows = Windows(timed, rows, rows, timed.known, window=2, horizon=1, batch_size=1, calendar=True)
    assert timed.times is not None
    found = windows.batch(0, 0).future[0, :, 2:]
    np.testing.assert_array_equal(found, calendar(timed.frequency, timed.times))
    np.testing.assert_allclose(found[:, 0], [np.sqrt(0.5), 1, 0], atol=1e-6)  # the sine of the time of the day


def test_without_times_there_is_nothing_irregular(tmp_path: Path) -> None:
    for text in ("unique_id,y\na,1\na,2\n", "V1,V2,V3,V4\na,1,2,3\nb,1,2,3\n"):
        with pytest.raises(DataError, match=r"a column of time stamps \(data\.time\) beside data\.frequency=irregular"):
            read(tmp_path, text)


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ("2024-01-01 12:00+01:00", r"as in .*first\.csv \(times without an offset\); got times with an offset"),
        ("20", r"as in .*first\.csv \(times without an offset\); got whole numbers"),
    ],
)
def test_stamps_of_two_files_are_of_one_kind(tmp_path: Path, later: str, said: str) -> None:
    read(tmp_path, "ds,y\n2024-01-01 10:00,1\n2024-01-01 12:30,2\n", "first.csv")
    (tmp_path / "later.csv").write_text(f"ds,y\n{later},3\n")
    with pytest.raises(DataError, match=r"later\.csv: expected time stamps " + said):
        read_series([tmp_path / "first.csv", tmp_path / "later.csv"], frequency="irregular")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ds,y\n1,1\n2,2\n2,3\n", "more than one row at 2 .*daylight-saving"),
        ("ds,y\n2024-10-27 02:30,1\n2024-10-27 02:30,2\n", "more than one row at 2024-10-27 02:30:00 .*offset"),
        ("ds,y\n2024-01-01 00:00,1\n2024-01-01T01:00+01:00,2\n", "some time stamps .* have an offset"),
    ],
)
def test_repeated_times_stay_errors(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path, text)


def test_mixed_frequencies_name_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "series.csv"
    path.write_text("ds,y\n0,1\n2,2\n4,3\n7,4\n")
    with pytest.raises(DataError, match=r"mixed frequencies.*or one with data\.frequency=irregular"):
        read_series([path])
    path.write_text("ds,y\n2024-10-27 02:30,1\n2024-10-27 02:50,2\n2024-10-27 02:40,3\n")
    assert read_series([path], frequency="irregular").notes == [
        "rows out of order in 1 series, which were sorted by time; an hour that daylight-saving time repeats needs "
        "stamps with an offset from UTC"
    ]


# ----------------------------------------------------------------------------------------------------------- forecasts


def clocks(rows: int = 400) -> str:
    """Series that rise by 1 a time unit, seen at random times: the time alone tells the next value."""
    random = np.random.default_rng(0)
    lines = ["unique_id,ds,y"]
    for name in "ab":
        times = np.cumsum(random.choice([1, 2, 6], rows))
        stamps = np.datetime64("2024-01-01", "s") + times
        lines += [f"{name},{stamp},{time % 1000}" for stamp, time in zip(stamps, times, strict=True)]
    return "\n".join(lines) + "\n"


SETTINGS = [
    "data.frequency=irregular", "data.calendar=false", "data.scaling=none", "data.valid_part=40", "data.test_part=40",
    "model.horizon=2", "model.window=4", "model.segment=1", "model.hidden_size=16", "model.spread=none",
    "model.head=point", "model.error=mae", "train.max_epochs=8", "train.batch_size=32", "train.learning_rate=0.02",
    "train.threads=1", "train.validate_every=1000",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    folder = tmp_path_factory.mktemp("clocks")
    (folder / "clocks.csv").write_text(clocks())
    torch.manual_seed(0)
    return es.train("forecast-own", folder / "run", quietly, overrides=[f"data.train={folder}/clocks.csv", *SETTINGS])


def test_the_time_decides_the_forecast(run: es.Run) -> None:
    learned = LearnedSeries.load(run.path / "series.json")
    assert learned.usual_gap == 2 * SECOND
    assert learned.frequency.irregular
    scores = run.evaluate("test")
    rivals = {rival["name"]: rival["mae"] for rival in scores["rivals"]}
    assert scores["mae"] < 0.3 * min(rivals.values())
    history = ["unique_id,ds,y", *(f"new,2024-03-01T00:00:0{second},{100 + second}" for second in (0, 1, 3, 4))]

    def asked(*ahead: int) -> list[dict[str, Any]]:
        rows = [f"new,2024-03-01T00:00:{second:02}," for second in ahead]
        return [found.record for found in run.predict([*history, *rows]) if found.record]

    for ahead in ((5, 6), (6, 8), (10, 11), (5, 11)):
        found = asked(*ahead)
        assert [row["ds"] for row in found] == [f"2024-03-01 00:00:{second:02}" for second in ahead]
        assert [row["mean"] for row in found] == pytest.approx([100 + second for second in ahead], abs=1.6)


def test_missing_times_ahead_are_the_median_and_told(run: es.Run, capsys: pytest.CaptureFixture[str]) -> None:
    history = ["unique_id,ds,y", *(f"new,2024-03-01T00:00:0{second},{100 + second}" for second in (0, 1, 3, 4))]
    found = [row.record for row in run.predict(history) if row.record]
    assert [row["ds"] for row in found] == ["2024-03-01 00:00:06", "2024-03-01 00:00:08"]
    assert "1 of 1 series have fewer than 2 time stamps after their last value" in capsys.readouterr().err
    given = [*history, "new,2024-03-01T00:00:06,", "new,2024-03-01T00:00:08,"]
    assert [row.record for row in run.predict(given) if row.record] == found
    assert not capsys.readouterr().err
    paths = [row.record for row in run.predict(given, paths=3) if row.record]
    assert [row["ds"] for row in paths] == [row["ds"] for row in found]
    scored = [row.record for row in run.predict(given, anomalies=True) if row.record]
    assert [row["ds"] for row in scored] == [f"2024-03-01 00:00:0{second}" for second in (0, 1, 3, 4)]


def test_a_history_of_dates_alone_is_read_as_in_training(run: es.Run) -> None:
    found = [row.record for row in run.predict(["unique_id,ds,y", "new,2024-03-01,100"]) if row.record]
    assert [row["ds"] for row in found] == ["2024-03-01 00:00:02", "2024-03-01 00:00:04"]


def test_a_history_has_the_times_of_training(run: es.Run) -> None:
    with pytest.raises(DataError, match=r"on the grid of the training data \(one irregular\)"):
        list(run.predict(["unique_id,ds,y", "a,1,2", "a,2,3"]))


# -------------------------------------------------------------------------------------------------------------- streams


def untrained(folder: Path, settings: tuple[str, ...]) -> Run:
    (folder / "series.csv").write_text(clocks(80))
    data = [f"data.train={folder}/series.csv", "data.frequency=irregular", "data.valid_part=20", "data.test_part=20"]
    sizes = ["model.horizon=3", "model.window=6", "model.segment=1", "model.hidden_size=8"]
    task: Any = load_task("forecast-own", [*data, *sizes, *settings])
    task.prepare()
    torch.manual_seed(3)
    model = task.model()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    return Run(folder, task, model)


STREAMED = [
    (),
    ("model.cell=GRUD", "data.calendar=false"),
    ("model.cell=GRUD", "model.segment=3", "model.decode=encoder-decoder", "model.head=gaussian"),
    ("model.cell=GRUD", "model.segment=2", "model.decode=recursive", "model.level=mean"),
]


@pytest.mark.parametrize("settings", STREAMED)
def test_value_by_value_is_the_whole_irregular_history(settings: tuple[str, ...], tmp_path: Path) -> None:
    run = untrained(tmp_path, settings)
    rows = [line.split(",") for line in clocks(30).splitlines()[1:31]]
    rows[7][2] = rows[8][2] = rows[15][2] = ""
    table = list(run.predict(["unique_id,ds,y", *map(",".join, rows)], anomalies=True))
    scores = [row.record["score"] for row in table[1:]]
    stream = run.stream()
    state = stream.start("a")
    for place, (_, ds, y) in enumerate(rows[:27]):
        ahead = [row[1] for row in rows[place + 1 : place + 4]]
        told = ahead[: place % 4]
        said, state = stream(float(y) if y else None, state, ds=ds, ahead=told or None)
        if len(told) == 3:  # the table of scores knows all times
            score = np.nan if scores[place] is None else scores[place]
            np.testing.assert_allclose(said.surprise[0], score, rtol=1e-4, atol=1e-4)
        if not y:
            assert np.isnan(said.surprise[0])
            continue
        history = [f"a,{stamp},{value}" for _, stamp, value in rows[: place + 1]] + [f"a,{stamp}," for stamp in told]
        records = [answer.record for answer in run.predict(["unique_id,ds,y", *history]) if answer.record]
        assert said.ds[0] == [record["ds"] for record in records]
        np.testing.assert_allclose(said.mean[0], [record["mean"] for record in records], rtol=1e-6, atol=1e-6)
        bands = [[record[f"q{level:g}"] for level in LEVELS] for record in records]
        np.testing.assert_allclose(said.quantiles[0], bands, rtol=1e-6, atol=1e-6)


def test_times_of_a_stream_rise_and_are_as_in_training(tmp_path: Path) -> None:
    stream = untrained(tmp_path, ()).stream()
    with pytest.raises(DataError, match="expected ds beside each value, since the series is irregular"):
        stream.start("a", ds="2024-03-01")
    _, state = stream([1.0, 1.0], stream.start(["a", "new"]), ds=["2024-03-01T00:00:05", "2024-03-01"])
    found, _ = stream([2.0, 3.0], state, ds="2024-03-02", ahead=["2024-03-03", "2024-03-05"])
    assert found.ds[0] == found.ds[1] == [f"2024-03-0{day} 00:00:0{second}" for day, second in ((3, 0), (5, 0), (5, 2))]
    for ds, ahead, said in (
        (None, None, "expected ds, the time stamp of the value"),
        ("soon", None, "expected ds as in the training data; got 'soon'"),
        ("2024-03-01", None, "a ds after that of the value before"),
        ("2024-03-02", ["2024-03-01"], "up to 3 rising times ahead"),
        ("2024-03-02", [f"2024-03-0{day}" for day in (3, 4, 5, 6)], "up to 3 rising times ahead"),
        ("2024-03-02T00:00+01:00", None, "no offset from UTC, as in training"),
        (["2024-03-02"] * 3, None, "for all series or for each of 2"),
    ):
        with pytest.raises(DataError, match=said):
            stream([1.0, 2.0], state, ds=ds, ahead=ahead)


@pytest.mark.parametrize("decode", ["parallel", "encoder-decoder", "recursive"])
def test_values_and_states_decay_by_time(decode: Any) -> None:
    section = ForecasterSection(cell="GRUD", hidden_size=4, decode=decode)
    model = Forecaster(section, WindowShape(4, 2, 1, 1, 0, 2, 1, True, 0)).eval()
    times, values = np.array([[0, 1, 3, 6, 10, 15, 21]]), torch.tensor([[1.0, float("nan"), 3.0, 2.0]])
    future = torch.from_numpy(passed(times, 4, 1.0))
    read: list[torch.Tensor] = []
    model.body.register_forward_pre_hook(lambda body, given: read.append(given[0]))
    model(WindowBatch(values, torch.zeros(1, 4, 0), future, torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 2))
    since = [inputs.detach().chunk(3, 2)[2] for inputs in read]
    np.testing.assert_allclose(since[0][0, :, 0], [0, 2, 5, 4], rtol=1e-5)  # the value at 3 is missing
    np.testing.assert_allclose(since[0][0, :, 2], [0, 2, 3, 4], rtol=1e-5)
    ahead = {"parallel": [[5], [11]], "encoder-decoder": [[5, 6]], "recursive": [[5]]}[decode]
    np.testing.assert_allclose(torch.cat(since[1:])[..., 0], ahead, rtol=1e-5)


def test_backtests_and_pictures_name_times(run: es.Run, tmp_path: Path) -> None:
    found = run.backtest(3, quick=True)
    assert found["models"]["this run"]["mase"] < 0.3
    assert len(found["origins"]) == 3
    pictures = run.task.pictures(run.model, tmp_path, None)
    assert {path.name for path, _ in pictures} == {"forecasts.png", "errors-by-step.png", "residuals.png"}
