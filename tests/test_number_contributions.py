"""Which numbers decide the class of a sequence: by finite differences, on the command line, drawn."""

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
from everstep.look import number_relevance
from everstep.networks.answer_kinds import Several
from everstep.networks.answers import Answers, OneOf
from everstep.networks.classifying import to_score
from everstep.networks.number_classifier import NumberClassifier, NumberClassifierSection
from everstep.networks.number_contributions import deciding_numbers, number_contributions
from everstep.networks.number_pictures import relevant_numbers
from everstep.networks.number_scaling import NumberScaling


def quietly(line: str) -> None:
    del line


def model_of(shape: tuple[int, ...], gaps: bool, read_out: Any, answers: Answers | None = None) -> NumberClassifier:
    torch.manual_seed(0)
    columns = ("x", "y") if len(shape) == 1 else ()
    section = NumberClassifierSection(hidden_size=5, read_out=read_out, filters=(3,), frame_size=6)
    scaling = NumberScaling(columns, shape, (0.0,), (1.0,), gaps)
    return NumberClassifier(scaling, answers or OneOf("abc"), section).double().eval()


def lead(model: NumberClassifier, one: np.ndarray[Any, Any]) -> float:
    with torch.no_grad():
        log_p = model(torch.from_numpy(one)[None], torch.tensor([len(one)]))
    return float(model.answers.lead(log_p))


@pytest.mark.parametrize("read_out", ["last", "attention"])
@pytest.mark.parametrize(("shape", "gaps"), [((2,), False), ((2,), True), ((4, 3, 1), False)])
def test_contributions_are_the_slope_of_each_number(shape: tuple[int, ...], gaps: bool, read_out: Any) -> None:
    model, random = model_of(shape, gaps, read_out), np.random.default_rng(1)
    sequences = [random.normal(size=(length, *shape)).astype(np.float32).astype(np.float64) for length in (6, 4, 5)]
    if gaps:
        sequences[0][2, 0] = sequences[0][0, 1] = np.nan
    found = number_contributions(model, to_score(sequences))
    for one, told in zip(sequences, found, strict=True):
        assert told.gradient.shape == (len(one), 2 if len(shape) == 1 else 1)
        parts = [(step, c) for step in range(len(one)) for c in range(told.gradient.shape[1])]
        for step, column in parts:
            place = (step, column) if len(shape) == 1 else (step,)
            more, less = one.copy(), one.copy()
            more[place] *= 1 + 1e-2
            less[place] *= 1 - 1e-2
            slope = (lead(model, more) - lead(model, less)) / 2e-2
            assert told.gradient[step, column] == pytest.approx(slope, abs=3e-5)
        if read_out == "attention":
            assert told.attention is not None
            assert told.attention.sum() == pytest.approx(1)
        else:
            assert told.attention is None
        alone = number_contributions(model, to_score([one]))[0]
        np.testing.assert_allclose(alone.gradient, told.gradient, atol=1e-12)
    if gaps:
        assert found[0].gradient[2, 0] == 0
        assert found[0].gradient[1, 0] != 0


@pytest.mark.parametrize(
    ("shift", "answers", "said"),
    [
        (0.0, Several("abc", "+"), "compared with 0, adds to the log-odds of the most probable label."),
        (2.0, OneOf("abc"), "compared with the mean of training, adds to the predicted class's lead over the second"),
    ],
)
def test_the_caption_says_what_a_contribution_is(shift: float, answers: Answers, said: str, tmp_path: Path) -> None:
    model, scaling = (
        model_of((2,), False, "last", answers).float(),
        NumberScaling(("x", "y"), (2,), (shift,), (1.0,), False),
    )
    assert said in relevant_numbers(model, scaling, [("a", np.ones((3, 2)))], tmp_path / "relevance.png")


def test_deciding_numbers_are_the_largest_in_order() -> None:
    assert deciding_numbers(["x"], np.array([[0.2], [-1.0], [0.6]])) == "[-2-] [+3+]"
    assert deciding_numbers(["x", "y"], np.zeros((3, 2))) == ""
    assert deciding_numbers(["x", "y"], np.zeros((0, 2))) == ""
    assert deciding_numbers(["x"], np.ones((30, 1))).count("+") == 20


@pytest.mark.parametrize(("steps", "columns"), [(1, 2), (2, 1), (25, 2), (9, 8)])
def test_ticks_are_steps(steps: int, columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(number_relevance, "save", lambda figure, path: figures.append(figure))
    numbers = np.random.default_rng(0).normal(size=(steps, columns))
    one = number_relevance.RelevantSequence("a", tuple("abcdefgh"[:columns]), numbers, numbers)
    number_relevance.draw_number_relevance([one], tmp_path / "drawn.png")
    axes = figures[0].axes[0]
    first, last = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if first <= tick <= last]
    assert shown
    assert set(shown) <= set(range(1, steps + 1))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    """Sequences whose class is the sign of x at the third step."""
    folder, random = tmp_path_factory.mktemp("signs"), np.random.default_rng(0)
    rows = ["unique_id,step,x,y,label"]
    for number in range(200):
        values = random.normal(0, 0.3, (5, 2))
        values[2, 0] = random.choice([-2, 2])
        label = "up" if values[2, 0] > 0 else "down"
        rows += [f"s{number},{step},{x:.3f},{y:.3f},{label}" for step, (x, y) in enumerate(values)]
    (folder / "signs.csv").write_text("\n".join(rows) + "\n")
    (folder / "recipe.yaml").write_text(
        f"task: classification\ndata: {{train: {folder}/signs.csv, format: long, valid_fraction: 0.1}}\n"
        "model: {cell: GRU, hidden_size: 8, read_out: mean}\n"
        "train: {max_epochs: 6, batch_size: 16, learning_rate: 0.02, threads: 1}\n"
    )
    return es.train(folder / "recipe.yaml", folder / "run", quietly)


def test_the_deciding_number_is_named_and_drawn(run: es.Run, tmp_path: Path) -> None:
    lines = "0.1,0,-0.1,0.2,2,0.1,0,0,0.1,0.1\n0.1,0,-0.1,0.2,-2,0.1,0,0,0.1,0.1\n"
    done = CliRunner().invoke(app, ["predict", str(run.path), "--explain"], input=lines)
    assert done.exit_code == 0, done.output
    answers = [line.split("\t") for line in done.stdout.splitlines()]
    assert [(label, why) for label, _, why in answers] == [("up", "[+x@3+]"), ("down", "[+x@3+]")]
    done = CliRunner().invoke(app, ["predict", str(run.path), "--explain", "--json"], input=lines)
    why = json.loads(done.stdout.splitlines()[0])["explanation"]
    assert why["columns"] == ["x", "y"]
    assert np.array(why["gradient"]).shape == (5, 2)
    assert np.array(why["gradient"]).argmax() == 4
    plain = CliRunner().invoke(app, ["predict", str(run.path), "--json"], input=lines)
    assert "explanation" not in json.loads(plain.stdout.splitlines()[0])
    drawn = {path.name: words for path, words in run.task.pictures(run.model, tmp_path, lines)}
    assert "Gradient × input" in drawn["relevance.png"]
