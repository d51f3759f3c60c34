"""Rolling origins: which windows, which errors, the table and the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.errors import ConfigError, DataError, RunError
from everstep.look import drawn_backtest
from everstep.look.drawn_backtest import draw_backtest
from everstep.runs.recipe_files import load_task
from everstep.runs.run import Run

SETTINGS = ("model.hidden_size=6", "model.horizon=4", "model.window=8", "model.segment=4", "train.threads=1")


def table(lengths: tuple[int, ...] = (80, 80)) -> str:
    random = np.random.default_rng(2)
    rows = [
        f"{name},{step},{10 + step % 4 + random.normal(0, 0.3):.3f}"
        for name, length in zip("abc", lengths, strict=False)
        for step in range(length)
    ]
    return "\n".join(["unique_id,ds,y", *rows]) + "\n"


def recipe(folder: Path, lengths: tuple[int, ...] = (80, 80), held: int = 30) -> Path:
    (folder / "series.csv").write_text(table(lengths))
    path = folder / "recipe.yaml"
    path.write_text(
        f"task: forecast\ndata:\n  train: {folder / 'series.csv'}\n  season: 4\n  valid_part: 8\n  test_part: {held}\n"
        "train:\n  max_steps: 2\n"
    )
    return path


def untrained(path: Path) -> Run:
    task: Any = load_task(path, SETTINGS)
    task.prepare()
    torch.manual_seed(0)
    return Run(path.parent, task, task.model())


def test_the_last_origins_as_far_apart_as_fit(tmp_path: Path) -> None:
    run = untrained(recipe(tmp_path))
    found = run.backtest(5)
    assert (found["split"], found["step"]) == ("test", 4)  # room for 27 origins, the horizon is 4
    assert [origin["ds"] for origin in found["origins"]] == ["60", "64", "68", "72", "76"]
    assert all(origin["windows"] == 2 for origin in found["origins"])
    assert run.backtest(20)["step"] == 1
    assert len(run.backtest(20, step=10)["origins"]) == 3
    assert [origin["ds"] for origin in run.backtest(9, split="valid")["origins"]][-1] == "46"
    assert set(found["models"]) == {"this run", "naive", "seasonal naive", "drift", "ridge on lags"}


def test_its_errors_are_those_of_the_same_windows_by_hand(tmp_path: Path) -> None:
    run = untrained(recipe(tmp_path))
    origin = run.backtest(3, step=7)["origins"][1]
    assert origin["ds"] == "69"
    values = np.array([float(row.split(",")[2]) for row in table().splitlines()[1:]]).reshape(2, 80)
    ahead = values[:, 69:73]
    naive = np.abs(ahead - values[:, 68:69])
    seasonal = np.abs(ahead - values[:, 65:69])
    scales = np.abs(values[:, 4:50] - values[:, :46]).mean(1)  # rows before the test split
    assert origin["naive"]["mae"] == pytest.approx(naive.mean(), rel=1e-5)
    assert origin["seasonal naive"]["mase"] == pytest.approx((seasonal.mean(1) / scales).mean(), rel=1e-5)
    lines = table().splitlines()
    cut = [lines[0], *(row for row in lines[1:] if int(row.split(",")[1]) < 69)]
    records = [answer.record for answer in run.predict(cut)][1:]
    ours = np.array([record["q0.5"] for record in records]).reshape(2, 4)
    assert origin["this run"]["mae"] == pytest.approx(np.abs(ahead - ours).mean(), rel=1e-4)


def test_summaries_and_who_is_better(tmp_path: Path) -> None:
    found = untrained(recipe(tmp_path)).backtest(6)
    mase = np.array([origin["this run"]["mase"] for origin in found["origins"]])
    theirs = np.array([origin["seasonal naive"]["mase"] for origin in found["origins"]])
    ours = found["models"]["this run"]
    assert ours["mase"] == pytest.approx(mase.mean())
    assert ours["mase_sd"] == pytest.approx(mase.std())
    assert ours["p_equal"] is None
    assert found["models"]["seasonal naive"]["better_at"] == int((theirs < mase).sum()) > 0
    assert found["models"]["seasonal naive"]["p_equal"] < 0.05


def test_series_of_other_lengths_and_too_short_ones(tmp_path: Path) -> None:
    run = untrained(recipe(tmp_path, (80, 70, 45)))
    origins = run.backtest(2, step=4)["origins"]
    assert [origin["ds"] for origin in origins] == ["last origin − 4", "last origin − 0"]
    short = untrained(recipe(tmp_path, held=3))
    with pytest.raises(DataError, match=r"no series has a whole horizon of 4 steps in the test split; hold out more"):
        short.backtest()
    with pytest.raises(ConfigError, match="expected windows and step of at least 1; got 0 and None"):
        run.backtest(0)
    with pytest.raises(DataError, match="no later split"):
        run.backtest(split="later")


def test_the_verb_prints_tables_draws_and_notes_missing_origins(tmp_path: Path) -> None:
    run = es.train(recipe(tmp_path), tmp_path / "run", lambda line: None, overrides=SETTINGS)
    done = CliRunner().invoke(app, ["backtest", str(run.path), "--windows", "40"])
    assert done.exit_code == 0, done.output
    assert "mase from" in done.stdout
    assert "ridge on lags" in done.stdout
    assert "note: 27 of 40 origins lie in the test split, 1 steps apart" in done.stderr
    assert (run.path / "pictures" / "backtest.png").stat().st_size > 5000
    later = tmp_path / "later.csv"
    later.write_text("unique_id,ds,y\n" + "".join(f"a,{80 + step},{10 + step % 4}\n" for step in range(12)))
    done = CliRunner().invoke(app, ["backtest", str(run.path), "--data", str(later), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [origin["ds"] for origin in found["origins"]] == [str(80 + step) for step in range(9)]


@pytest.mark.parametrize(("lengths", "tested"), [((80,), False), ((80, 80), True)])
def test_one_origin_of_one_series_gives_no_test(lengths: tuple[int, ...], tested: bool, tmp_path: Path) -> None:
    run = es.train(recipe(tmp_path, lengths), tmp_path / "run", lambda line: None, overrides=SETTINGS)
    done = CliRunner().invoke(app, ["backtest", str(run.path), "--windows", "1"])
    assert next(line for line in done.stdout.splitlines()[::-1] if line.startswith("naive")).endswith("–") != tested
    assert ("no test of equal accuracy; ask for more origins" in done.stderr) != tested
    found = json.loads(CliRunner().invoke(app, ["backtest", str(run.path), "--windows", "1", "--json"]).stdout)
    assert (found["models"]["naive"]["p_equal"] is not None) == tested == (not found["notes"])
    assert run.backtest(2)["notes"] == []


@pytest.mark.usefixtures("little_data")
def test_other_jobs_have_none(tmp_path: Path) -> None:
    small = ["train.max_steps=1", "model.hidden_size=8"]
    run = es.train("shakespeare-minute", tmp_path / "run", lambda line: None, overrides=small)
    with pytest.raises(RunError, match="cannot backtest; it can eval"):
        run.backtest()


def test_the_caption_names_the_model_that_is_better_most_often(tmp_path: Path) -> None:
    ours, worse, mixed = np.array([1.0, 1.0, 1.0]), np.array([2.0, 2.0, 2.0]), np.array([0.5, 3.0, 0.5])

    def caption(**others: Any) -> str:
        return draw_backtest(["a", "b", "c"], {"this run": ours, **others}, "MASE", tmp_path / "x.png")

    assert caption(worse=worse, mixed=mixed).endswith(". Mixed is better at 2 of them.")
    for others in ({}, {"worse": worse}):
        assert caption(**others).endswith(". No other model is better at any of them.")


@pytest.mark.parametrize(
    ("times", "shown"),
    [
        (("00:00:00", "00:00:00"), ["2024-05-01", "2024-05-02"]),
        (("00:00:00+00:00", "00:00:00+00:00"), ["2024-05-01", "2024-05-02"]),
        (("00:00:00", "06:00:00"), ["2024-05-01 00:00:00", "2024-05-02 06:00:00"]),
    ],
)
def test_origins_at_midnight_are_drawn_as_days(
    times: tuple[str, str], shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(drawn_backtest, "save", lambda figure, path: figures.append(figure))
    names = [f"2024-05-0{day} {time}" for day, time in enumerate(times, 1)]
    draw_backtest(names, {"this run": np.array([1.0, 2.0])}, "MASE", tmp_path / "x.png")
    assert [tick.get_text() for tick in figures[0].axes[0].get_xticklabels()] == shown


def test_of_models_that_are_better_equally_often_the_caption_names_the_best(tmp_path: Path) -> None:
    errors = {"this run": np.array([3.0]), "good": np.array([2.0]), "best": np.array([1.0])}
    caption = draw_backtest(["a"], errors, "MASE", tmp_path / "x.png")
    told = "MASE of the forecasts from 1 origin: 3 on average; the best of the others, best, 1. "
    assert caption == f"{told}Best is better at 1 of them."
