"""The job of positions: what it learns, says, draws and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_laws import JobLaws
from PIL import Image
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data.track_windows import TrackWindows
from everstep.errors import ConfigError, DataError
from everstep.networks.mover import Mover, MoverSection, track_losses
from everstep.rivals.moving_rules import rules
from everstep.runs.recipe_files import load_task

SMALL = ("model.hidden_size=16", "model.window=4", "model.horizon=6", "train.batch_size=64", "train.threads=1")


def quietly(line: str) -> None:
    del line


def bounces(count: int = 24, seed: int = 0) -> str:
    """A long table of points that bounce between 0 and 10 at a speed of 2 a step in x, and rest in y."""
    random = np.random.default_rng(seed)
    rows = ["unique_id,step,x,y"]
    for number in range(count):
        at = random.uniform(0, 20) + 2.0 * np.arange(24) * random.choice([-1, 1])
        x, y = 10 - np.abs(at % 20 - 10), random.uniform(0, 10)
        rows += [f"p{number},{step},{value:.4f},{y:.4f}" for step, value in enumerate(x)]
    return "\n".join(rows) + "\n"


def recipe(folder: Path, text: str | None = None, data: str = "") -> Path:
    (folder / "tracks.csv").write_text(bounces() if text is None else text)
    path = folder / "recipe.yaml"
    path.write_text(f"task: motion\ndata:\n  train: {folder}/tracks.csv\n{data}train:\n  max_epochs: 1\n")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    folder = tmp_path_factory.mktemp("bounces")
    (folder / "test.csv").write_text(bounces(8, 1))
    path = recipe(folder, data=f"  test: {folder}/test.csv\n")
    settings = [*SMALL, "train.max_epochs=40", "train.learning_rate=0.02", "train.schedule=cosine"]
    return es.train(path, folder / "run", quietly, overrides=settings)


# ------------------------------------------------------------------------------------------------------------ networks


def test_free_running_is_single_steps_one_after_another() -> None:
    torch.manual_seed(0)
    model = Mover(2, MoverSection(hidden_size=5)).eval()
    torch.nn.init.normal_(model.body.cell.out.weight)  # it starts at zero
    seen = torch.randn(3, 4, 2)
    with torch.no_grad():
        told, ahead = model(seen, 5)
        so_far = seen
        for step in range(5):
            longer, _ = model(torch.cat([so_far, torch.zeros(3, 1, 2)], 1), 1)
            torch.testing.assert_close(longer[:, -1], ahead[:, step])
            so_far = torch.cat([so_far, longer[:, -1:]], 1)
        torch.testing.assert_close(told, longer[:, :4])
        ragged, lengths = torch.cat([seen, torch.full((3, 2, 2), 9.0)], 1), torch.tensor([4, 4, 4])
        torch.testing.assert_close(model(ragged, 5, lengths)[1], ahead)


def test_one_batch_is_learned_by_heart() -> None:
    model = Mover(2, MoverSection(hidden_size=64))
    random = np.random.default_rng(1)
    tracks = [np.cumsum(random.normal(size=(9, 2)) * 0.3, 0) for _ in range(4)]
    batch = TrackWindows(tracks, 4, 5, 8).batch(0, 0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=300)
    errors = []
    for _ in range(300):
        (loss,) = track_losses(model, batch)
        errors.append(float(loss.reported.sum()))
        optimizer.zero_grad()
        (loss.total.sum() / batch.count).backward()
        optimizer.step()
        falling.step()
    assert errors[-1] < 0.1 * errors[0]


def test_windows_are_each_once_an_epoch_and_short_tracks_have_none() -> None:
    tracks = [np.arange(7.0)[:, None], np.arange(3.0)[:, None], np.arange(4.0)[:, None] + 10]
    windows = TrackWindows(tracks, 2, 2, batch_size=3, seed=1)
    firsts = [windows.batch(0, index).seen[:, 0, 0].tolist() for index in range(len(windows))]
    assert sorted(first for some in firsts for first in some) == [0, 1, 2, 3, 10]
    assert firsts == [windows.batch(0, index).seen[:, 0, 0].tolist() for index in range(len(windows))]
    assert windows.batch(0, 0).count == 6
    with pytest.raises(IndexError):
        windows.batch(0, 2)
    with pytest.raises(DataError, match=r"expected 10 steps, 8 to read .* and 2 that follow .*the longest has 7"):
        TrackWindows(tracks, 8, 2, 4)


def test_rules_by_hand() -> None:
    seen = np.array([[[0.0, 5.0], [1.0, 5.0]], [[10.0, 0.0], [8.0, 0.0]]])
    found = rules(seen, 3)
    assert found["constant velocity"][1].tolist() == [[6, 0], [4, 0], [2, 0]]
    assert found["standing still"][0].tolist() == [[1, 5]] * 3
    near = rules(np.array([[[3.0], [1.0]], [[0.0], [10.0]]]), 2)["mirrored walls"]
    assert near[..., 0].tolist() == [[1, 3], [0, 10]]


def test_columns_that_lie_apart_have_a_shift_each_and_one_scale(tmp_path: Path) -> None:
    rows = [f"p{n},{t},{52 + 1e-4 * (t + n):.5f},{13 - 2e-4 * t:.5f}" for n in range(4) for t in range(24)]
    task: Any = load_task(recipe(tmp_path, "\n".join(["unique_id,step,x,y", *rows]) + "\n"), SMALL)
    task.prepare()
    scaled = np.concatenate([task.scaling.scaled(track) for track in task.tracks.of("train")])
    assert len(task.scaling.scale) == 1
    assert scaled.mean(0) == pytest.approx([0, 0], abs=1e-3)
    assert np.square(scaled).mean() == pytest.approx(1, abs=1e-3)


# ------------------------------------------------------------------------------------------------------------ the job


def test_it_beats_constant_velocity_and_says_so(run: es.Run) -> None:
    scores = run.evaluate("test")
    rivals = {rival["name"]: rival for rival in scores["rivals"]}
    assert set(rivals) == {"constant velocity", "standing still", "mirrored walls"}
    assert scores["windows"] == 8 * 15
    assert scores["to_constant_velocity"] < 0.5
    steady = rivals["constant velocity"]["last_distance"]
    assert scores["to_constant_velocity"] == pytest.approx(scores["last_distance"] / steady)
    assert scores["by_step"][-1] == scores["last_distance"]
    assert run.rivals("test") == scores["rivals"]
    better = [name for name, rival in rivals.items() if rival["last_distance"] < scores["last_distance"]]
    assert scores["better_by_last_distance"] == better
    assert es.load(run.path).evaluate("test") == scores


def test_predictions_are_of_each_track_alone(run: es.Run) -> None:
    lines = bounces(3, 7).splitlines()
    found = list(run.predict(lines))
    assert found[0].text == "unique_id,ahead,x,y"
    assert [row.text.split(",")[:2] for row in found[1:]] == [[f"p{n}", str(k)] for n in range(3) for k in range(1, 7)]
    alone = [row.record["x"] for row in run.predict([lines[0], *lines[25:49]]) if row.record]
    assert alone == pytest.approx([row.record["x"] for row in found[7:13]], abs=1e-4)
    late = [line for line in lines[25:49] if int(line.split(",")[1]) >= 20]  # the window of training, all that is read
    assert alone == [row.record["x"] for row in run.predict([lines[0], *late]) if row.record]
    steps = json.dumps([[float(v) for v in line.split(",")[2:]] for line in lines[25:49]])
    assert [row.record["x"] for row in run.predict([steps]) if row.record] == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["1,2,3,4", ""], "expected two positions or more of each track; '2' has 0"),
        (["1,2"], "expected two positions or more of each track; '1' has 1"),
        (["1,2,3,?,5,6"], "track '1': expected a position at each step; step 2 lacks a number"),
        (["unique_id,step,x", "a,1,2"], r"expected the column 'y'"),
        (["1,2,3"], "expected 2 numbers a step"),
    ],
)
def test_tracks_that_are_refused(run: es.Run, lines: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        list(run.predict(lines))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_are_drawn_and_one_moves(run: es.Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["look", str(run.path), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert {"errors-by-step.png", "paths.png", "curves.png"} <= {path.name for path in tmp_path.glob("*.png")}
    with Image.open(tmp_path / "moving.gif") as film:
        assert film.n_frames == 10  # type: ignore[attr-defined]


def test_data_that_is_refused(tmp_path: Path) -> None:
    def prepared(text: str, *settings: str) -> None:
        task: Any = load_task(recipe(tmp_path, text), [*SMALL, *settings])
        task.prepare()
        task.ready(quietly)

    with pytest.raises(DataError, match=r"p0: expected a position at each step; step 2 lacks a number"):
        prepared("unique_id,step,x,y\np0,1,1,1\np0,2,,1\np1,1,1,1\n")
    with pytest.raises(DataError, match="expected two tracks or more"):
        prepared(bounces(1))
    prepared(bounces(1), "data.valid_fraction=0")
    with pytest.raises(DataError, match="no track is long enough: expected 40 steps"):
        prepared(bounces(4), "model.horizon=36")
    with pytest.raises(ConfigError, match=r"model\.dropout: expected 0, since cells that run free"):
        load_task(recipe(tmp_path), ["model.dropout=0.1"])
    with pytest.raises(ConfigError, match=r"model\.window: expected 2 or more"):
        load_task(recipe(tmp_path), ["model.window=1"])
    (tmp_path / "valid.csv").write_text(bounces(4).replace(",y", ",z"))
    with pytest.raises(DataError, match=r"valid\.csv: expected positions of x, y; got x, z"):
        prepared(bounces(4), f"data.valid={tmp_path}/valid.csv")


class TestLaws(JobLaws):
    job = "motion"
    settings = SMALL
    asked = (["0,1,2,1,4,1,6,1,8,1"], ["9,3,8,4,7,5"])
    numbered = "unique_id"

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        return recipe(folder)
