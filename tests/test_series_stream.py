"""Forecasts one value at a time equal those of whole histories; anomaly scores are tail probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data.windows import WindowBatch
from everstep.errors import ConfigError, DataError
from everstep.heads.numbers import Gaussian, NegativeBinomial, Quantiles, StudentT
from everstep.heads.tails import log_tails
from everstep.measures.forecast_errors import LEVELS
from everstep.networks.forecaster import Forecaster
from everstep.networks.forecaster_section import ForecasterSection, WindowShape
from everstep.runs.recipe_files import load_task
from everstep.runs.run import Run
from everstep.runs.sample_paths import past_ranks
from everstep.runs.series_stream import SeriesState

SHAPE = ("model.hidden_size=8", "model.horizon=3", "model.window=8", "model.segment=4", "train.threads=1")
SMALL = (*SHAPE, "train.batch_size=32", "train.learning_rate=0.02")


def quietly(line: str) -> None:
    del line


def waves(days: int = 20, gap: bool = True) -> str:
    """Hours with a season of a day, two covariates and a few gaps."""
    random = np.random.default_rng(1)
    rows = ["unique_id,ds,y,heat,wind"]
    for number, name in enumerate("ab"):
        for hour in range(days * 24):
            level = 20 + 5 * (number + 1) * np.sin(2 * np.pi * hour / 24) + random.normal(0, 0.5)
            y = "" if gap and hour % 17 == 5 and hour + 1 < days * 24 else f"{level:.3f}"
            stamp = f"2024-01-{1 + hour // 24:02} {hour % 24:02}:00"
            rows.append(f"{name},{stamp},{y},{random.normal():.3f},{random.normal():.3f}")
    return "\n".join(rows) + "\n"


def recipe(folder: Path, text: str, data: str = "") -> Path:
    (folder / "series.csv").write_text(text)
    path = folder / "recipe.yaml"
    path.write_text(
        f"task: forecast\ndata:\n  train: {folder / 'series.csv'}\n  valid_part: 48\n  test_part: 48\n{data}"
        "train:\n  max_epochs: 1\n"
    )
    return path


def untrained(path: Path, settings: tuple[str, ...]) -> Run:
    task: Any = load_task(path, [*SHAPE, *settings])
    task.prepare()
    torch.manual_seed(3)
    model = task.model()
    torch.nn.init.normal_(model.write.weight, 0, 0.3)
    if model.residuals is not None:
        model.calibrate(task.batches("valid", model, "validate"))
    return Run(path.parent, task, model)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("model.head=gaussian", "data.scaling=log"),
        ("model.lags=[1, 2]", "model.lags_difference=6"),
        ("model.head=point", "model.highway=true", "model.decode=direct"),
        ("model.head=student-t", "model.decode=recursive", "model.level=mean", "model.embedding_size=2"),
    ],
)
def test_value_by_value_is_the_whole_history(settings: tuple[str, ...], tmp_path: Path) -> None:
    covariates = "  future: [heat]\n  past: [wind]\n"
    run = untrained(recipe(tmp_path, waves(), covariates), settings)
    lines = [line for line in waves(8).splitlines() if not line.startswith("b")]
    rows = [line.split(",") for line in lines[1:]]
    heat, wind = (np.array([row[place] for row in rows], float) for place in (3, 4))
    stream = run.stream()
    state = stream.start("a", rows[0][1])
    compared = 0
    for place, row in enumerate(rows[:-3]):
        value = float(row[2]) if row[2] else None
        said, state = stream(value, state, past=wind[place : place + 1], future=heat[place : place + 4, None])
        if value is None or place % 7:
            continue
        cut = [lines[0], *(",".join(row) for row in rows[: place + 1])]
        cut += [f"a,{later[1]},,{later[3]}," for later in rows[place + 1 : place + 4]]
        records = [answer.record for answer in run.predict(cut)][1:]
        assert [record["ds"] for record in records] == said.ds[0]
        np.testing.assert_allclose(said.mean[0], [record["mean"] for record in records], rtol=1e-6, atol=1e-6)
        whole = [[record[f"q{level:g}"] for level in LEVELS] for record in records]
        np.testing.assert_allclose(said.quantiles[0], whole, rtol=1e-6, atol=1e-6)
        compared += 1
    assert compared > 10


def test_scores_one_by_one_are_those_of_the_table(tmp_path: Path) -> None:
    run = untrained(recipe(tmp_path, waves()), ())
    lines = [",".join(line.split(",")[:3]) for line in waves(3).splitlines()]
    answers = list(run.predict(lines, anomalies=True))
    assert answers[0].text == "unique_id,ds,y,score"
    records = [answer.record for answer in answers[1:]]
    assert [record["unique_id"] for record in records] == ["a"] * 72 + ["b"] * 72
    assert records[0]["score"] is None
    assert records[5] == {**records[5], "y": None, "score": None}
    assert answers[6].text == "a,2024-01-01 05:00:00,,"
    stream = run.stream()
    state = stream.start(("a", "b"), "2024-01-01")
    for one, other in zip(records[:72], records[72:], strict=True):
        values = [np.nan if record["y"] is None else record["y"] for record in (one, other)]
        said, state = stream(values, state)
        want = [np.nan if record["score"] is None else record["score"] for record in (one, other)]
        np.testing.assert_allclose(said.surprise, want, rtol=1e-4, atol=1e-4)
    assert said.mean.shape == (2, 3)
    assert said.quantiles.shape == (2, 3, 11)


def test_a_state_is_kept_by_the_caller(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    run = untrained(recipe(tmp_path, waves()), ())
    stream = run.stream()
    begun = stream.start("a", "2024-01-01")
    save_file(begun._asdict(), tmp_path / "begun.safetensors")
    said, _ = stream(None, SeriesState(**load_file(tmp_path / "begun.safetensors")))
    assert np.isnan(said.mean).all()
    _, state = stream(20.0, begun)
    save_file(state._asdict(), tmp_path / "state.safetensors")
    again = SeriesState(**load_file(tmp_path / "state.safetensors"))
    first, second = stream(21.0, state)[0], run.stream()(21.0, again)[0]
    assert first.ds == second.ds == [["2024-01-01 02:00:00", "2024-01-01 03:00:00", "2024-01-01 04:00:00"]]
    np.testing.assert_array_equal(first.mean, second.mean)
    np.testing.assert_array_equal(stream(21.0, state)[0].mean, first.mean)  # a call leaves its state as it is


def test_names_may_be_the_numbers_of_a_table(tmp_path: Path) -> None:
    run = untrained(recipe(tmp_path, waves().replace("\na,", "\n7,").replace("\nb,", "\n8,")), ())
    stream = run.stream()
    for names, numbers in ((8, [1]), ("8", [1]), ([7, 8], [0, 1]), (np.array([8, 9]), [1, 2])):
        assert stream.start(names, "2024-01-01").series.tolist() == numbers


def test_bad_values_are_refused(tmp_path: Path) -> None:
    run = untrained(recipe(tmp_path, waves(), "  future: [heat]\n"), ())
    stream = run.stream()
    for ds, said in (
        (None, r"expected ds, the time stamp of the first value \(one hour"),
        ("2024-01-01 00:30", "on the grid of training"),
        ("soon", "expected ds as in the training data; got 'soon'"),
    ):
        with pytest.raises(DataError, match=said):
            stream.start("a", ds)
    for scaling in (3.0, (1.0, 0.0), (1.0, np.nan), "ab", (1.0, 2.0, 3.0)):
        with pytest.raises(DataError, match="scaling, "):
            stream.start("new", "2024-01-01", scaling=scaling)
    state, ahead = stream.start("a", "2024-01-01"), np.zeros((4, 1))
    for value, future, said in (
        ("x", ahead, "expected numbers as value; got 'x'"),
        ([1.0, 2.0], ahead, r"expected value of shape \(1,\); got \(2,\)"),
        (float("inf"), ahead, "expected finite numbers as value"),
        (1.0, None, r"expected future, of data\.future \(heat\) of shape \(1, 4, 1\)"),
        (1.0, ahead * np.nan, r"expected future \(data\.future\) of this step and the 3 after it; some are missing"),
    ):
        with pytest.raises(DataError, match=said):
            stream(value, state, future=future)
    with pytest.raises(ConfigError, match="stream takes no settings of texts"):
        run.stream(seed=1)


def test_an_outlier_has_the_highest_score_on_the_command_line(tmp_path: Path) -> None:
    run = es.train(
        recipe(tmp_path, waves(gap=False)), tmp_path / "run", quietly, overrides=[*SMALL, "train.max_epochs=2"]
    )
    lines = [",".join(line.split(",")[:3]) for line in waves(4, gap=False).splitlines()[:97]]
    name, stamp, _ = lines[60].split(",")
    lines[60] = f"{name},{stamp},60"
    done = CliRunner().invoke(app, ["predict", str(run.path), "--anomalies", "--json"], input="\n".join(lines))
    assert done.exit_code == 0, done.output
    records = [json.loads(line) for line in done.stdout.splitlines()]
    scores = [record["score"] or 0.0 for record in records]
    assert int(np.argmax(scores)) == 59
    assert scores[59] > 5


def test_a_point_without_validation_scores_nothing(tmp_path: Path) -> None:
    path = recipe(tmp_path, waves())
    task: Any = load_task(path, [*SHAPE, "model.head=point"])
    task.prepare()
    run = Run(tmp_path, task, task.model())
    with pytest.raises(DataError, match=r"model\.head=point needs the errors of a validation split"):
        list(run.predict(["unique_id,ds,y", "a,2024-01-01 00:00,1", "a,2024-01-01 01:00,2"], anomalies=True))


# ---------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize("head", ["gaussian", "point"])
def test_paths_have_the_quantiles_of_each_step(head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = untrained(recipe(tmp_path, waves()), (f"model.head={head}",))
    lines = [",".join(line.split(",")[:3]) for line in waves(6, gap=False).splitlines()]
    done = list(run.predict(lines, paths=9))
    assert done[0].text == "unique_id,ds," + ",".join(f"path{n}" for n in range(1, 10))
    records = [answer.record for answer in done[1:]]
    found = np.array([[record[f"path{n}"] for n in range(1, 10)] for record in records])
    want = np.array([record.record["q0.5"] for record in list(run.predict(lines))[1:]])
    np.testing.assert_allclose(np.sort(found, 1)[:, 4], want, rtol=1e-5)
    assert [record["ds"] for record in records] == [record.record["ds"] for record in list(run.predict(lines))[1:]]
    again = [answer.record for answer in run.predict(lines, paths=9)][1:]
    assert again == records
    with pytest.raises(ConfigError, match="either anomalies or paths"):
        run.predict(lines, paths=2, anomalies=True)
    short = ["unique_id,ds,y", "a,2024-01-01 00:00,1", "a,2024-01-01 01:00,2", "a,2024-01-01 02:00,2"]
    with pytest.raises(DataError, match="every series has fewer than 4 rows up to the last value: 'a'"):
        list(run.predict(short, paths=2))
    some = [
        answer.record for answer in run.predict([*lines, *(line.replace("a,", "c,") for line in short[1:])], paths=9)
    ]
    assert some[1:] == records
    assert "1 series have fewer than 4 rows up to the last value and are left out: 'c'" in capsys.readouterr().err


def test_ranks_follow_the_past() -> None:
    random = np.random.default_rng(0)
    walk = np.cumsum(random.normal(size=400))
    ranks = past_ranks(walk, 5, 1, 100, random)
    assert (np.sort(ranks, 0) == np.arange(100)[:, None]).all()
    assert np.corrcoef(ranks[:, 3], ranks[:, 4])[0, 1] > 0.7  # a walk goes on from where it is
    noise = past_ranks(random.normal(size=4000) + 50 * (np.arange(4000) % 7), 5, 7, 100, random)
    after = np.corrcoef(noise.T)[0, 1:]
    assert (np.abs(after - 0.5) < 0.25).all()  # differences from one value have correlation ½, seasons add none
    step = random.normal(size=11)[:, None]
    cycle = np.concatenate([0 * step, step, step, 2 * step], 1).ravel()[:41]  # the forecast begins a cycle
    phase = past_ranks(cycle, 2, 4, 10, random)
    assert (phase[:, 0] == phase[:, 1]).all()  # from the middle of a cycle, one step rises as the next falls
    few = past_ranks(np.arange(7.0), 3, 1, 5, random)
    assert (np.sort(few, 0) == np.arange(5)[:, None]).all()


# ---------------------------------------------------------------------------------------------------------------- tails


def test_tails_of_heads_are_those_of_scipy() -> None:
    from scipy import stats

    ys, target = torch.tensor([[[0.3, -0.2, 0.5]]]), torch.tensor([[9.0]])
    spread, degrees = float(np.exp(-0.2)) + 1e-4, 2 + float(np.log1p(np.exp(0.5)))
    normal = stats.norm(0.3, spread)
    want = [normal.logcdf(9.0), normal.logsf(9.0)]
    assert Gaussian().log_tails(ys[..., :2], target)[0, 0].tolist() == pytest.approx(want, rel=1e-5)
    heavy = stats.t(degrees, 0.3, spread)
    want = [heavy.logcdf(9.0), heavy.logsf(9.0)]
    assert StudentT().log_tails(ys, target)[0, 0].tolist() == pytest.approx(want, rel=1e-5)
    mean, alpha = float(np.exp(0.3)), float(np.log1p(np.exp(-0.2))) + 1e-4
    counts = stats.nbinom(1 / alpha, 1 / (1 + alpha * mean))
    want = [counts.logcdf(9), counts.logsf(8)]  # P(v ≤ 9) and P(v ≥ 9)
    assert NegativeBinomial().log_tails(ys[..., :2], target)[0, 0].tolist() == pytest.approx(want, rel=1e-4)


def test_tails_too_small_for_a_float_are_still_told_apart() -> None:
    from scipy import special, stats

    heavy = StudentT()
    degrees = 2 + 60.0
    z = torch.tensor([[1e4, 1e5, 1e8, -1e8]])
    ys = torch.tensor([0.0, 0.0, 60.0]).expand(1, 4, 3)
    found = heavy.log_tails(ys, z)[0]
    assert found.isfinite().all()
    place = np.log(1e8 / (1 + 1e-4))
    tail = (degrees - 1) / 2 * np.log(degrees) - np.log(special.beta(degrees / 2, 0.5)) - degrees * place
    assert float(found[2, 1]) == pytest.approx(tail - np.log(degrees) + 0.5 * np.log(degrees), abs=0.2)
    assert float(found[3, 0]) == pytest.approx(float(found[2, 1]))
    assert float(found[1, 1] - found[0, 1]) == pytest.approx(-degrees * np.log(10), rel=1e-3)
    counts = NegativeBinomial()
    ys = torch.tensor([np.log(1e4), -9.0]).expand(1, 3, 2)
    found = counts.log_tails(ys, torch.tensor([[0.0, 5.0, 9e5]]))[0]
    alpha = float(np.log1p(np.exp(-9.0))) + 1e-4
    assert float(found[0, 0]) == pytest.approx(-np.log1p(alpha * 1e4) / alpha, rel=1e-4)
    assert found.isfinite().all()
    assert float(found[1, 0]) > float(found[0, 0])
    many = stats.nbinom.logpmf(np.arange(900_000, 1_000_000), 1 / alpha, 1 / (1 + alpha * 1e4))
    assert float(found[2, 1]) == pytest.approx(special.logsumexp(many), rel=1e-4)


@pytest.mark.parametrize("head", ["gaussian", "student-t", "mixture", "quantiles"])
def test_bands_and_scores_do_not_depend_on_the_unit(head: Any) -> None:
    torch.manual_seed(0)
    shape = WindowShape(window=8, horizon=2, segment=4, season=4, past=0, future=0, series=1, gaps=False)
    model = Forecaster(ForecasterSection(hidden_size=4, head=head), shape).eval()
    values, none = torch.randn(3, 8), torch.zeros(3, 0)
    bands, scores = [], []
    for unit in (1.0, 1e-6, 1e9):
        batch = WindowBatch(
            values * unit, none.new_zeros(3, 8, 0), none.new_zeros(3, 10, 0), torch.zeros(3, 2),
            torch.zeros(3, dtype=torch.int64), 0,
        )  # fmt: skip
        _, quantiles, law = model.laws(batch)
        assert quantiles is not None
        bands.append(quantiles / unit)
        scores.append(model.surprise(law[:, 0], torch.full((3,), 2.0) * unit))
    for other in (1, 2):
        torch.testing.assert_close(bands[other], bands[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scores[other], scores[0], rtol=1e-4, atol=1e-4)


def test_tails_of_quantiles() -> None:
    levels, q = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([1.0, 2.0, 4.0])
    values = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    found = log_tails(q.expand(7, 3), levels, values).exp()
    left, right = 0.1 * 1.0 / 0.4, 0.1 * 2.0 / 0.4  # the lengths of the tails
    below = [0.1 * np.exp(-0.5 / left), 0.1, 0.3, 0.5, 0.7, 0.9, 1 - 0.1 * np.exp(-2 / right)]
    assert found[:, 0].tolist() == pytest.approx(below)
    assert found[:, 1].tolist() == pytest.approx([1 - share for share in below], rel=1e-5)
    same = log_tails(torch.tensor([1.0, 1.0, 3.0]), levels, torch.tensor(1.0)).exp()  # an atom of 0.1 … 0.5 at 1
    assert same.tolist() == pytest.approx([0.5, 0.9])
    far = log_tails(torch.tensor([2.0, 2.0, 2.0]), levels, torch.tensor(3.0))
    assert far.isfinite().all()
    crossing = Quantiles((0.1, 0.5, 0.9)).log_tails(torch.tensor([[[2.0, 1.0, 4.0]]]), torch.tensor([[1.5]]))
    assert crossing[0, 0].exp().tolist() == pytest.approx([0.3, 0.7])


def test_scores_are_exponential_under_the_right_law(tmp_path: Path) -> None:
    run = untrained(recipe(tmp_path, waves()), ("model.head=gaussian",))
    torch.manual_seed(0)
    law = torch.tensor([[2.0, 0.5, 7.0, 3.0]]).expand(20_000, 4)  # a mean, a log deviation, a shift and a scale
    scores = run.model.surprise(law, 7 + 3 * (2 + np.exp(0.5) * torch.randn(20_000)))
    assert float(scores.mean()) == pytest.approx(1, abs=0.03)
    assert float((scores > 3).double().mean()) == pytest.approx(np.exp(-3), abs=0.005)
