"""The job `forecast`: what it learns, says, draws and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_laws import JobLaws
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.cli.printed_tables import rival_table
from everstep.data.readers.series import roles_of
from everstep.data.readers.tables import table_of
from everstep.data.readers.trained_form import check_form
from everstep.errors import ConfigError, DataError
from everstep.look import drawn_forecasts
from everstep.networks.forecaster import Forecaster, window_losses
from everstep.networks.forecaster_section import ForecasterSection, WindowShape
from everstep.runs.recipe_files import load_task

SMALL = ("model.hidden_size=12", "train.batch_size=32", "train.threads=1", "train.learning_rate=0.02")
SHAPE = ("model.horizon=6", "model.window=12", "model.segment=6")


def quietly(line: str) -> None:
    del line


def waves(days: int = 40, names: str = "ab") -> str:
    """Hours with a season of 6, whose swing is another for each series; some noise."""
    random = np.random.default_rng(1)
    rows = ["unique_id,ds,y"]
    for number, name in enumerate(names):
        for hour in range(days * 6):
            level = 20 + 5 * (number + 1) * np.sin(2 * np.pi * hour / 6) + 0.02 * hour
            rows.append(f"{name},{hour},{level + random.normal(0, 0.5):.3f}")
    return "\n".join(rows) + "\n"


def recipe(folder: Path, text: str, data: str = "") -> Path:
    (folder / "series.csv").write_text(text)
    path = folder / "recipe.yaml"
    path.write_text(
        f"task: forecast\ndata:\n  train: {folder / 'series.csv'}\n  season: 6\n{data}train:\n  max_epochs: 1\n"
    )
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    folder = tmp_path_factory.mktemp("waves")
    path = recipe(folder, waves(), "  valid_part: 30\n  test_part: 30\n")
    return es.train(path, folder / "run", quietly, overrides=[*SMALL, *SHAPE, "train.max_epochs=7"])


def test_it_beats_simple_rules_and_says_what_it_was_held_against(run: es.Run) -> None:
    scores = run.evaluate("test")
    wanted = {"task", "split", "loss", "mase", "smape", "mse", "mae", "rmse", "wql", "crps", "coverage_80", "rivals"}
    assert wanted <= set(scores)
    assert scores["windows"] == 2 * 25
    rivals = {rival["name"]: rival for rival in scores["rivals"]}
    assert set(rivals) == {"naive", "seasonal naive", "drift", "ridge on lags"}
    assert scores["mase"] < 0.9
    assert scores["mase"] < rivals["seasonal naive"]["mase"] < rivals["naive"]["mase"]
    assert rivals["naive"]["p_equal"] < 0.05
    assert 0.5 < scores["coverage_80"] < 0.98
    assert scores["better_by_mase"] == [name for name, other in rivals.items() if other["mase"] < scores["mase"]]


def test_predictions_are_of_each_series_alone_in_the_same_units(run: es.Run) -> None:
    lines = waves().splitlines()
    found = [answer.text for answer in run.predict(lines)]
    assert found[0] == "unique_id,ds,mean,q0.1,q0.2,q0.3,q0.4,q0.5,q0.6,q0.7,q0.8,q0.9"
    rows = [row.split(",") for row in found[1:]]
    assert [(row[0], row[1]) for row in rows] == [(name, str(240 + step)) for name in "ab" for step in range(6)]
    numbers = np.array([row[2:] for row in rows], float)
    assert (np.diff(numbers[:, 1:]) >= 0).all()
    want = np.array([24.8 + 5 * (n + 1) * np.sin(2 * np.pi * hour / 6) for n in (0, 1) for hour in range(6)])
    assert np.abs(numbers[:, 5] - want).max() < 3
    alone = [answer.text for answer in run.predict([lines[0], *lines[241:]])]
    kept = np.array([row.split(",")[2:] for row in alone[1:]], float)
    assert kept == pytest.approx(numbers[6:], rel=1e-4)  # rounding of a batch of one and of two
    stranger = list(run.predict([lines[0], *(line.replace("b,", "new,") for line in lines[241:])]))
    assert stranger[1].record["unknown_series"]
    assert not next(iter(run.predict(lines))).record
    scaled = [float(answer.text.split(",")[2]) for answer in stranger[1:]]
    assert scaled == pytest.approx(numbers[6:, 0].tolist(), rel=0.02)


def test_a_series_without_a_value_is_left_out_and_told(run: es.Run, capsys: pytest.CaptureFixture[str]) -> None:
    lines = waves().splitlines()
    rows = [answer.text for answer in run.predict(lines)]
    assert not capsys.readouterr().err
    found = [answer.text for answer in run.predict([*lines, "c,5,", "d,6,", "d,7,"])]
    assert found == rows
    assert "note: 2 series have no value and are left out: 'c', 'd'\n" in capsys.readouterr().err


def test_json_lines_and_the_command_line(run: es.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everstep.runs.series_rivals.ets", lambda h, n, season: (h[-n:], np.ones(n)))
    runner = CliRunner()
    text = "\n".join(json.dumps({"unique_id": "a", "ds": hour, "y": 20.0 + hour % 6}) for hour in range(24))
    done = runner.invoke(app, ["predict", str(run.path), "--json"], input=text)
    assert done.exit_code == 0
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 6
    assert records[0]["ds"] == "24"
    assert records[0]["q0.05"] <= records[0]["q0.95"]
    done = runner.invoke(app, ["eval", str(run.path), "--json"])
    assert json.loads(done.stdout)["rivals"][0]["name"] == "naive"
    done = runner.invoke(app, ["eval", str(run.path), "--rivals"])
    assert done.exit_code == 0
    assert "– drift, ridge on lags, Theta: answers without the probabilities or quantiles of coverage" in done.stdout


def test_missing_figures_have_a_reason() -> None:
    rows = [{"name": "a", "loss": 1.0, "top_5": None}, {"name": "b", "loss": None}, {"name": "c", "top_5": None}]
    assert rival_table(rows).split("\n")[-2:] == [
        "– these data do not define top 5",
        "– b, c: answers without the probabilities or quantiles of loss",
    ]
    assert rival_table([{"name": "a", "loss": 1.0}]).split("\n")[-1].split() == ["a", "1.0000"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["unique_id,ds,value", "a,1,2"],
            "the history: expected .* as in training: one value per row, with columns 'unique_id', 'ds', 'y'; "
            "got one that has no column 'y'; its columns are 'unique_id', 'ds', 'value'. Rearrange or rename",
        ),
        (["ds,a,b", "1,2,3"], "one that has no column 'unique_id'; its columns are 'ds', 'a', 'b'"),
        (["unique_id,ds,y", "a,1,x"], r"the history, row 1 of its data: expected a number in column 'y'.*'x'"),
        (["unique_id,ds,y", "a,1,"], r"the history: every series has no value: 'a'; expected one with at least 1"),
        (["unique_id,ds,y"], "expected a header and rows below it"),
        ([], "the history: cannot be read as a table"),
        (
            ["unique_id,ds,y", "a,2024-01-01,1", "a,2024-01-02,1"],
            "expected whole numbers as time stamps, since data.frequency is 'step'; got times",
        ),
    ],
)
def test_bad_histories_are_refused(run: es.Run, lines: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        list(run.predict(lines))


@pytest.mark.parametrize(
    ("header", "form", "wrong"),
    [
        ("ds,a,b", "one time per row and one column of numbers per series, with column 'ds'", "text in column 'u'"),
        ("name,1,2,3", "one series per row, with column 'name'", "no column 'name'"),
    ],
)
def test_a_history_of_another_form_is_told_the_form_of_training(header: str, form: str, wrong: str) -> None:
    rows = {"ds,a,b": [f"{hour},1,{hour % 3}" for hour in range(60)], "name,1,2,3": ["x,1,2,3", "y,2,3,4"]}[header]
    table = table_of("\n".join([header, *rows]).encode())
    with pytest.raises(DataError, match=f"{form}; got one that has {wrong}"):
        check_form(table_of(b"u,ds,y\nnorth,1,2\n"), roles_of(table, "training"), "the history")
    check_form(table, roles_of(table, "training"), "the history")


def test_a_file_as_a_setting_is_told_how_to_be_given(run: es.Run, tmp_path: Path) -> None:
    (file := tmp_path / "h.csv").write_text("ds,y\n1,2\n")
    for verb, before in (("predict", "<"), ("eval", "--data"), ("look", "--text")):
        done = CliRunner().invoke(app, [verb, str(run.path), str(file)], env={"COLUMNS": "500"})
        assert done.exit_code == 2
        assert f"a file. Files are given as: {before} {file}" in done.output


# ------------------------------------------------------------------------------------------------------------- networks


def shape(**changes: Any) -> WindowShape:
    given = {"window": 12, "horizon": 5, "segment": 4, "season": 4, "past": 1, "future": 2, "series": 2, "gaps": True}
    return WindowShape(**{**given, **changes})


def of_the_last_season(values: torch.Tensor, horizon: int) -> torch.Tensor:
    return values[:, -4:].repeat(1, 2)[:, :horizon]


DECODES = ("direct", "parallel", "encoder-decoder", "recursive")


@pytest.mark.parametrize(
    ("decode", "head"),
    [
        ("direct", "point"),
        ("direct", "negative-binomial"),
        ("parallel", "student-t"),
        ("encoder-decoder", "gaussian"),
        ("direct", "mixture"),
        ("recursive", "quantiles"),
    ],
)
def test_every_network_learns_one_batch_by_heart(decode: Any, head: Any, tmp_path: Path) -> None:
    from everstep.data.windows import WindowBatch

    torch.manual_seed(0)
    level = "none" if head == "negative-binomial" else "last"
    section = ForecasterSection(hidden_size=16, decode=decode, head=head, level=level, embedding_size=2)
    model = Forecaster(section, shape())
    values = torch.rand(4, 12) * 10
    values[0, 3:5] = float("nan")
    target = torch.randint(9, (4, 5)).float()
    target[1, 2] = float("nan")
    series = torch.tensor([0, 1, 0, 2])
    batch = WindowBatch(values, torch.randn(4, 12, 1), torch.randn(4, 17, 2), target, series, 19)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    first = last = 0.0
    for step in range(40):
        (loss,) = window_losses(model, batch)
        assert loss.total.shape == (4,)
        optimizer.zero_grad()
        (loss.total.sum() / batch.count).backward()
        optimizer.step()
        last = float(loss.reported.sum())
        first = first if step else last
    model.eval()
    mean, _ = model.predicted(batch)
    there = ~target.isnan()
    assert last < first
    assert float((mean - target)[there].abs().mean()) < (2.5 if head == "negative-binomial" else 1.5)
    alone = WindowBatch(*(part[1:2] for part in (values, batch.past, batch.future, target, series)), 4)
    torch.testing.assert_close(model.predicted(alone)[0], mean[1:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decode", DECODES)
def test_without_a_projection_cells_read_the_numbers(decode: Any) -> None:
    from everstep.data.windows import WindowBatch

    model = Forecaster(ForecasterSection(hidden_size=8, decode=decode, projection=False), shape())
    assert model.body.input_size == 4 * (3 + 1 + 2)  # of a segment: value, mask, time; covariates
    read: list[torch.Tensor] = []
    model.body.register_forward_pre_hook(lambda body, given: read.append(given[0]))
    values, future = torch.rand(2, 12), torch.randn(2, 17, 2)
    batch = WindowBatch(values, torch.randn(2, 12, 1), future, torch.rand(2, 5), torch.tensor([0, 1]), 10)
    (loss,) = window_losses(model, batch)
    loss.total.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.testing.assert_close(read[0].view(2, 12, 6)[..., 4:], future[:, :12])


def test_a_shift_and_a_scaling_of_the_data_shift_and_scale_what_is_said() -> None:
    from everstep.data.windows import WindowBatch

    torch.manual_seed(0)
    model = Forecaster(ForecasterSection(hidden_size=8), shape(past=0, future=0, gaps=False)).eval()
    values = torch.randn(3, 12, dtype=torch.float64).float()
    empty = torch.zeros(3, 12, 0), torch.zeros(3, 17, 0), torch.full((3, 5), float("nan")), torch.zeros(3).long()
    mean, bands = model.predicted(WindowBatch(values, *empty, 0))
    moved, moved_bands = model.predicted(WindowBatch(values * 7 + 3, *empty, 0))
    torch.testing.assert_close(moved, mean * 7 + 3, rtol=1e-4, atol=1e-4)
    assert bands is not None
    torch.testing.assert_close(moved_bands, bands * 7 + 3, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decode", DECODES)
def test_targets_about_the_last_season_begin_as_the_seasonal_naive(decode: Any) -> None:
    from everstep.data.windows import WindowBatch

    torch.manual_seed(0)
    section = ForecasterSection(hidden_size=8, level="season", decode=decode, head="point")
    model = Forecaster(section, shape(past=0, future=0, gaps=False)).eval()
    torch.nn.init.zeros_(model.write.weight)
    torch.nn.init.zeros_(model.write.bias)
    values = torch.randn(3, 12)
    empty = torch.zeros(3, 12, 0), torch.zeros(3, 17, 0), torch.full((3, 5), float("nan")), torch.zeros(3).long()
    mean, _ = model.predicted(WindowBatch(values, *empty, 0))
    torch.testing.assert_close(mean, of_the_last_season(values, 5))


@pytest.mark.parametrize(
    ("head", "level", "highway"),
    [("point", "last", True), ("quantiles", "season", True), ("negative-binomial", "none", False)],
)
def test_recursive_decoding_reads_the_medians_that_are_said(
    head: Any, level: Any, highway: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everstep.data.windows import WindowBatch

    torch.manual_seed(0)
    section = ForecasterSection(hidden_size=8, decode="recursive", head=head, level=level, highway=highway)
    model = Forecaster(section, shape(past=0, future=0, gaps=False)).eval()
    for module in (model.write, model.highway):
        if module is not None:
            torch.nn.init.normal_(module.weight, 0.0, 0.3)
    read: list[torch.Tensor] = []
    segments = model._segments
    monkeypatch.setattr(model, "_segments", lambda values, *more: (read.append(values), segments(values, *more))[1])
    empty = torch.zeros(3, 12, 0), torch.zeros(3, 17, 0), torch.full((3, 5), float("nan")), torch.zeros(3).long()
    ys, known = model(WindowBatch(torch.randint(40, (3, 12)).float(), *empty, 0))
    said = model.head.predict(model.head.rescaled(ys, known.ahead, known.spread))
    torch.testing.assert_close(read[1] * known.spread + known.level, said[:, :4], rtol=1e-4, atol=1e-3)


def test_members_learn_each_alone_and_say_their_mean() -> None:
    from everstep.data.windows import WindowBatch

    torch.manual_seed(0)
    model = Forecaster(ForecasterSection(hidden_size=8, members=3), shape(past=0, future=0, gaps=False)).eval()
    members = [model, *model.others]
    empty = torch.zeros(3, 12, 0), torch.zeros(3, 17, 0)
    batch = WindowBatch(torch.randn(3, 12), *empty, torch.randn(3, 5), torch.zeros(3).long(), 15)
    ys, known = model(batch)
    each = torch.stack([member._alone(batch)[0] for member in members])
    assert each.std(0).min() > 0
    torch.testing.assert_close(ys, each.mean(0))
    torch.testing.assert_close(model.losses(batch), model.head.loss(ys, known.of_targets(batch.target)))
    losses = model.train().losses(batch)
    alone = torch.stack([model.head.loss(one, known.of_targets(batch.target)) for one in each])
    torch.testing.assert_close(losses, alone.mean(0))
    losses.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_member_may_be_another_network() -> None:
    from everstep.data.windows import WindowBatch
    from everstep.networks.forecaster_section import MemberSection

    changes = (MemberSection(decode="direct", weight="none"), MemberSection(cell="LSTM", hidden_size=5))
    model = Forecaster(ForecasterSection(hidden_size=8, weight="season", members=changes), shape(past=0, future=0))
    direct, lstm = model.others
    assert direct.write.out_features == 5 * direct.head.size
    assert lstm.write.in_features == 5
    batch = WindowBatch(
        torch.randn(3, 12), torch.zeros(3, 12, 0), torch.zeros(3, 17, 0), torch.randn(3, 5), torch.zeros(3).long(), 15
    )
    first = model._loss(batch, *model._alone(batch))
    plain = direct.head.loss(direct(batch)[0], direct(batch)[1].of_targets(batch.target))  # each has its own weight
    torch.testing.assert_close(model.losses(batch), torch.stack([first, plain, lstm.losses(batch)]).mean(0))


def test_unknown_series_have_the_mean_embedding() -> None:
    from everstep.data.windows import WindowBatch

    torch.manual_seed(0)
    model = Forecaster(ForecasterSection(hidden_size=8, embedding_size=3), shape(past=0, future=0, gaps=False))
    empty = torch.zeros(4, 12, 0), torch.zeros(4, 17, 0), torch.full((4, 5), float("nan"))
    own = model._own(WindowBatch(torch.zeros(4, 12), *empty, torch.tensor([0, 1, 2, 7]), 0))
    torch.testing.assert_close(own[2:], own[:2].mean(0).expand(2, 3))


def test_targets_with_gaps_still_fit_the_ridge_regression(tmp_path: Path) -> None:
    lines = [line if place % 2 else line.rpartition(",")[0] + "," for place, line in enumerate(waves(12).splitlines())]
    lines[0] = "unique_id,ds,y"
    settings = [*SMALL, *SHAPE, "model.head=point", "model.highway=true"]
    task: Any = load_task(recipe(tmp_path, "\n".join(lines)), settings)
    task.prepare()
    model = task.model()
    task.batches("train", model, "learn")
    assert model.highway.weight.abs().max() > 0.01
    errors = {rival["name"]: rival["mase"] for rival in task.rivals("test", quick=True)}
    assert errors["ridge on lags"] < errors["naive"]


def test_sizes_that_do_not_fit_are_refused_before_any_work(tmp_path: Path) -> None:
    path = recipe(tmp_path, waves())
    for settings, said in (
        (["model.window=10", "model.segment=4"], r"model\.window: expected a multiple of segment \(4\); got 10"),
        (["model.head=negative-binomial"], r"model\.level: expected none beside head: negative-binomial"),
        (["model.head=negative-binomial", "model.level=none"], r"data\.scaling: expected none beside model\.head: neg"),
        (["model.members=[{window: 4}]"], r"recipe\.yaml: model\.members\[0\]\.window: unknown key; known there: cell"),
        (["model.members=[{}, {hiden_size: 4}]"], r"members\[1\]\.hiden_size: unknown key; did you mean hidden_size\?"),
        (["model.members=[{decode: diract}]"], r"members\[0\]\.decode: expected one of .*; did you mean direct\?"),
        (["model.members=[{hidden_size: 0}]"], r"members\[0\]\.hidden_size: expected a whole number ≥ 1 .*; got 0"),
        (["model.members=[3]"], r"model\.members: expected .* a list \(each a mapping of cell, "),
        (["model.members=[{cell: Nothing}]"], r"model\.cell.*Nothing"),
        (["model.members=2", "model.head=mixture"], r"model\.members: expected 1 beside head: mixture"),
        (["model.lags_difference=4"], r"model\.lags_difference: expected 0 without lags; got 4"),
        (["model.lags=[1]", "model.head=negative-binomial"], r"model\.lags: expected \[\] beside head: negative-binom"),
        (["model.error=mae"], r"model\.error: expected mse where head is not point"),
        (["data.test_part=5", f"data.test={path}"], r"data\.test_part: expected null where test is given"),
        (["model.cell=Nothing"], r"model\.cell"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_task(path, settings)


# ----------------------------------------------------------------------------------------------------------- the rest


def test_covariates_known_ahead_are_used_and_needed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    heat, table = random.normal(size=260), ["ds,y,heat,wind"]
    for hour, value in enumerate(heat):
        y = "" if hour >= 250 else f"{50 + 10 * value:.3f}"
        table.append(f"2024-01-{1 + hour // 24:02} {hour % 24:02}:00,{y},{value:.3f},{random.normal():.3f}")
    path = recipe(tmp_path, "\n".join(table), "  target: y\n  future: [heat]\n  past: [wind]\n")
    settings = [
        *SMALL,
        "model.horizon=4",
        "model.window=8",
        "model.segment=4",
        "train.max_epochs=14",
        "data.test_part=20",
        "data.scaling=standard",
        "model.level=none",
        "model.spread=none",
    ]
    run = es.train(path, tmp_path / "run", quietly, overrides=settings)
    scores = run.evaluate("test")
    assert scores["mase"] < 0.4
    assert all(other["mase"] > 0.8 for other in scores["rivals"])
    found = [float(answer.text.split(",")[2]) for answer in list(run.predict(table))[1:]]
    assert found == pytest.approx((50 + 10 * heat[250:254]).tolist(), abs=4)
    with pytest.raises(
        DataError, match=r"series 'y' needs 'heat' \(data\.future\) of the 4 steps after its last value"
    ):
        list(run.predict(table[:252]))


def test_a_point_gets_its_bands_from_the_validation(tmp_path: Path) -> None:
    path = recipe(tmp_path, waves(), "  valid_part: 40\n  test_part: 40\n")
    settings = [*SMALL, *SHAPE, "model.head=point", "model.highway=true", "train.max_epochs=4"]
    run = es.train(path, tmp_path / "run", quietly, overrides=settings)
    scores = run.evaluate("test")
    assert 0.6 < scores["coverage_80"] < 0.95
    again = es.load(tmp_path / "run")
    assert again.evaluate("test") == scores
    assert torch.equal(again.model.residuals, run.model.residuals)
    gaussian = ["model.head=gaussian", "model.highway=false", "train.max_epochs=1"]
    normal = es.train(path, tmp_path / "normal", quietly, overrides=[*settings, *gaussian, "model.bands=errors"])
    found = normal.evaluate("test")
    assert 0.6 < found["coverage_80"] < 0.95
    assert normal.evaluate("valid")["coverage_80"] is None
    assert list(normal.stream()(1.0, normal.stream().start("a", ds=0))[0].quantiles.shape) == [1, 6, 11]
    with pytest.raises(ConfigError, match=r"model\.bands: expected head without a validation split"):
        load_task(path, ["model.bands=errors", "data.valid_part=0"])
    bare = es.train(path, tmp_path / "bare", quietly, overrides=[*settings, "data.valid_part=0", "train.max_epochs=1"])
    assert bare.evaluate("test")["coverage_80"] is None
    assert next(row for row in list(bare.predict(waves().splitlines()))[1:]).text.endswith(",,,,,,,,,")


class TestLaws(JobLaws):
    job = "forecast"
    settings = (*SMALL, *SHAPE, "model.members=[{decode: direct, cell: LSTM}]")
    asked = [[f'{{"unique_id": "{name}", "ds": {hour}, "y": {hour % 6}}}' for hour in range(24)] for name in "ac"]

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        return recipe(folder, waves(8))


def test_its_pictures(run: es.Run, tmp_path: Path) -> None:
    drawn = dict(run.task.pictures(run.model, tmp_path, None))
    assert {path.name for path in drawn} == {"forecasts.png", "errors-by-step.png", "residuals.png"}
    assert all(path.stat().st_size > 5000 and len(words) > 40 for path, words in drawn.items())


def test_ticks_of_pictures_are_whole_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(drawn_forecasts, "save", lambda figure, path: figures.append(figure))
    two, bands = np.zeros((2, 2)), np.zeros((2, 2, 1))
    window = drawn_forecasts.DrawnWindow("a", "1", np.arange(3.0), two[0], two[0], None)
    drawn_forecasts.draw_forecasts([window], (), tmp_path / "forecasts.png")
    drawn_forecasts.draw_residuals(two, two, bands, (0.5,), tmp_path / "residuals.png")
    drawn_forecasts.draw_by_step({"this run": two[0]}, "hour", tmp_path / "errors.png")
    for figure in figures:
        ticks = figure.axes[0].get_xticks()
        assert set(ticks) == set(ticks.round())


def test_a_highway_begins_as_ridge_regression(tmp_path: Path) -> None:
    settings = [*SMALL, *SHAPE, "model.head=point", "model.highway=true", "model.spread=none"]
    task: Any = load_task(recipe(tmp_path, waves(12)), settings)
    task.prepare()
    model = task.model()
    windows = task.batches("train", model, "learn")
    batch = windows.made_of(np.arange(windows.number))
    last = batch.values[:, -1:]
    x, y = (batch.values - last).double().numpy(), (batch.target - last).double().numpy()
    want = np.linalg.solve(x.T @ x + 1e-4 * np.trace(x.T @ x) / 12 * np.eye(12), x.T @ y)
    found, _ = model(batch)
    np.testing.assert_allclose(found[..., 0].detach().numpy(), x @ want, atol=1e-4)


def test_smoothing_follows_a_season_and_says_how_sure_it_is() -> None:
    pytest.importorskip("statsmodels")
    from everstep.rivals.smoothing import ets, theta

    random = np.random.default_rng(3)
    steps = np.arange(54)
    history = 50 + 10 * np.sin(2 * np.pi * steps / 6) + random.normal(0, 1, 54)
    want = history[:48].reshape(8, 6).mean(0)
    mean, deviation = ets(history[:48], 6, 6)
    assert mean == pytest.approx(want, abs=2)
    assert (deviation > 0.4).all()
    assert (deviation < 3).all()
    assert theta(history[:48], 6, 6) == pytest.approx(want, abs=3)
    assert ets(np.full(30, 2.0), 3, 6)[0].tolist() == [2, 2, 2]
    assert theta(np.arange(5.0), 2, 6).tolist() == [4, 4]
    for season, length in ((2, 11), (3, 11), (4, 13)):  # three seasons, but fewer values than statsmodels needs
        assert np.isfinite(ets(random.normal(size=length), 2, season)[0]).all()
