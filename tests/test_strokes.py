"""The job of pen drawings: its files, what it learns, makes, says, draws and refuses."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_laws import JobLaws
from service_client import served
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data.move_batches import MoveBatches, thinned, with_pens
from everstep.data.readers.drawings import drawing_of
from everstep.errors import ConfigError, DataError
from everstep.look.pen_pictures import paths_of, svg_bytes
from everstep.networks.move_decoder import made_drawings
from everstep.networks.move_model import MoveModel, MoveSection, move_losses
from everstep.rivals.moves import fitted_mixture, mixture_log_p, move_rivals
from everstep.runs.card import example
from everstep.runs.recipe_files import load_task
from everstep.ship.export import export

SMALL = ("model.hidden_size=12", "model.components=3", "train.threads=1")
V = [[0, 0, 0], [5, 20, 0], [5, -20, 1]]


def quietly(line: str) -> None:
    del line


def boxes(count: int = 12, seed: int = 0) -> str:
    """Boxes of two sizes, drawn side by side, and a stroke across of the box's width: lengths tell the later ones."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        wide, high = random.integers(10, 60, 2).tolist()
        lines.append(json.dumps([[0, 0, 0], [wide, 0, 0], [0, high, 0], [-wide, 0, 0], [0, -high, 1], [wide, high, 1]]))
    return "\n".join(lines) + "\n"


def recipe(folder: Path, text: str | None = None, data: str = "") -> Path:
    (folder / "drawings.jsonl").write_text(boxes() if text is None else text)
    path = folder / "recipe.yaml"
    path.write_text(f"task: strokes\ndata:\n  train: {folder}/drawings.jsonl\n{data}train:\n  max_epochs: 1\n")
    return path


def moves(text: str) -> Any:
    return drawing_of(text, "").astype(np.float32)


# ------------------------------------------------------------------------------------------------------------ the data


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b"[[0,0,0]]\nhello\n", "line 2: expected a drawing as JSON"),
        ("x.jsonl", b"3\n", r"line 1: expected a drawing, \[\[Δx, Δy, lifted\], …\].*got '3'"),
        ("x.jsonl", b'{"word": "cat"}\n', "line 1: expected a drawing"),
        ("x.jsonl", b"[[0,0]]\n", "line 1: expected"),
        ("x.jsonl", b"[[0,0,2]]\n", "lifted 0 or 1"),
        ("x.jsonl", b"[[0,0,true]]\n", "line 1"),
        ("x.jsonl", b'[["1",0,0]]\n', "line 1"),
        ("x.jsonl", b"[[1e999,0,0]]\n", "line 1"),
        ("x.jsonl", b"[[" + b"9" * 400 + b",0,0]]\n", "finite numbers alone"),
        ("x.jsonl", b"[[NaN,0,0]]\n", "NaN is not a JSON number"),
        ("x.jsonl", b"[" * 5000 + b"\n", "too deep"),
        ("x.jsonl", b"[[[1,2],[3]]]\n", "line 1"),
        ("x.jsonl", b"[]\n{\"drawing\": []}\n", "expected a drawing with a point; got none in 2 lines"),
        ("x.jsonl", b"", "the file is empty"),
        ("x.npz", b"no zip at all", "expected arrays of numpy.savez"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = recipe(tmp_path)
    (tmp_path / name).write_bytes(content)
    path.write_text(path.read_text().replace("drawings.jsonl", name))
    task: Any = load_task(path, SMALL)
    with pytest.raises(DataError, match=said):
        task.prepare()


def test_changes_keep_where_strokes_begin_and_end() -> None:
    long = np.array([[1, 2, 0]] * 20 + [[3, 1, 1]] + [[7, 7, 0], [2, 2, 0], [1, 0, 1], [5, 5, 1]], np.float32)
    fewer = thinned(long, 0.5, np.random.default_rng(1))
    assert 10 < len(fewer) < len(long) - 3
    for ends in ("first", "last"):
        assert [path[0 if ends == "first" else -1].tolist() for path in paths_of(fewer)] == [
            path[0 if ends == "first" else -1].tolist() for path in paths_of(long)
        ]
    batches = MoveBatches([long, long[:3]], 2, seed=1, stretched=0.2, dropped=0.3)
    one, again, other = (batches.batch(epoch, 0) for epoch in (0, 0, 1))
    assert torch.equal(one.moves, again.moves)
    assert one.moves.shape != other.moves.shape or not torch.equal(one.moves, other.moves)
    assert one.count == int(one.lengths.sum()) - one.rows
    factors = {}
    for row, length in zip(one.moves.double().numpy(), one.lengths.tolist(), strict=True):
        given = long if length > 4 else long[:3]
        factors[length] = (row[:, :2].sum(0) / given[:, :2].sum(0)).tolist()
    every = [factor for two in factors.values() for factor in two]
    assert all(0.8 <= factor <= 1.2 for factor in every)
    assert len({round(factor, 4) for factor in every}) == 4  # one for each direction of each drawing
    with pytest.raises(ConfigError, match="expected a seed"):
        MoveBatches([long], 1, dropped=0.1)
    plain = MoveBatches([long, long[:3]], 2).batch(0, 0)
    assert plain.moves[plain.lengths.argmax()].tolist() == with_pens(long).tolist()


def test_what_is_left_out_is_told_and_a_scale_is_kept(tmp_path: Path) -> None:
    said: list[str] = []
    text = boxes(20) + "[]\n" + json.dumps([[1, 1, 0]] * 30) + "\n"
    task: Any = load_task(recipe(tmp_path, text), [*SMALL, "data.longest=20"])
    task.prepare()
    task.ready(said.append)
    assert "note: train: 1 drawing without a point, left out" in said
    assert "note: train: 1 drawing of more than 20 points, left out (longest)" in said
    assert any(line.startswith("train: 18 drawings, 108 points") for line in said)
    every = np.concatenate([one[:, :2] for one in task.drawings.of("train")])
    assert task.scaling.scale[0] == pytest.approx(every.std())
    assert task.scaling.shift == (0.0,)
    far: Any = load_task(recipe(tmp_path, boxes(4000) + "[[0,0,0],[1e9,0,1]]\n"), [*SMALL, "data.valid_fraction=0"])
    far.prepare()
    far.ready(said.append)
    assert "1 training drawing with moves of up to" in said[-1]
    assert "the first is drawing 4,001" in said[-1]


# ---------------------------------------------------------------------------------------------------------- what it is


def test_steps_and_sequences_agree_and_padding_changes_nothing() -> None:
    model = MoveModel(MoveSection(hidden_size=6, components=2)).eval()
    drawings = [moves(line) for line in boxes(3).splitlines()[:2]] + [moves("[[0,0,1]]"), moves("[]")]
    batch = MoveBatches(drawings, 4).batch(0, 0)
    with torch.no_grad():
        together = model.nats(batch.moves, batch.lengths)
        for row, length in enumerate(batch.lengths.tolist()):
            alone = batch.moves[row : row + 1, :length]
            torch.testing.assert_close(model.nats(alone, torch.tensor([length]))[0], together[row, :length])
            assert not together[row, length:].any()
            state, read = model.initial_state(1), torch.tensor([[0.0, 0, 0, 1, 0]])
            for step in range(length):
                found, state = model.step(read, state)
                each = torch.cat(model.head.nats(found, alone[:, step]))
                torch.testing.assert_close(each, together[row, step])
                read = alone[:, step]
    assert sorted(batch.lengths.tolist()) == [1, 2, 7, 7]
    assert batch.count == 13


def test_it_overfits_one_batch() -> None:
    drawings = [moves(line) / np.array([30, 30, 1], np.float32) for line in boxes(3).splitlines()]
    model, batch = MoveModel(MoveSection(hidden_size=32, components=3)), MoveBatches(drawings, 3).batch(0, 0)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(200):
        (loss,) = move_losses(model, batch)
        optimizer.zero_grad()
        loss.total.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.reported.sum()) / batch.count)
    assert losses[0] > 1
    assert losses[-1] < -3


def test_a_huge_move_in_one_drawing_ends_no_training(tmp_path: Path) -> None:
    path = recipe(tmp_path, boxes(60) + "[[0,0,0],[100000,-100000,1]]\n[[0,0,1]]\n")
    settings = ["train.max_epochs=12", "train.learning_rate=0.02", "train.validate_every=1000", "data.valid_fraction=0"]
    run = es.train(path, tmp_path / "run", quietly, overrides=[*SMALL, *settings])
    assert np.isfinite(run.evaluate("train")["loss"])
    assert all(torch.isfinite(parameter).all() for parameter in run.model.parameters())


def test_a_mixture_that_is_fitted_is_found_again() -> None:
    random = np.random.default_rng(1)
    given = np.concatenate([random.normal((-3, 0), (0.2, 1), (4000, 2)), random.normal((3, 1), (1, 0.2), (2000, 2))])
    weights, means, spread = fitted_mixture(given, 2, 0.01)
    order = means[:, 0].argsort()
    assert np.exp(weights[order]) == pytest.approx([2 / 3, 1 / 3], abs=0.02)
    assert means[order] == pytest.approx(np.array([[-3, 0], [3, 1]]), abs=0.1)
    assert spread[order][0] == pytest.approx(np.diag([0.04, 1]), abs=0.06)
    edge = np.linspace(-9, 9, 361)
    grid = np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2)
    total = np.exp(mixture_log_p(grid, weights, means, spread)).sum() * (edge[1] - edge[0]) ** 2
    assert total == pytest.approx(1, abs=1e-3)


def test_rivals_know_what_they_say_they_know() -> None:
    random = np.random.default_rng(1)
    turns = [
        np.column_stack([np.cumprod(np.full(30, -1.0)), random.normal(0, 0.1, 30), np.zeros(30)]) for _ in range(40)
    ]
    rows = [with_pens(turn.astype(np.float32)) for turn in turns]
    (one, alone, _), (given, last, pen) = move_rivals(rows[:30], rows[30:], 1, 0.01)
    assert (one, given) == ("one mixture", "given the last move")
    assert last < alone - 1  # each move is the last one turned round
    assert 0 < pen < 0.3


# ------------------------------------------------------------------------------------------------------------- the job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    folder = tmp_path_factory.mktemp("boxes")
    (folder / "test.jsonl").write_text(boxes(20, 1))
    path = recipe(folder, boxes(300), f"  test: {folder}/test.jsonl\n")
    settings = ["model.hidden_size=48", "model.components=5", "train.max_epochs=40", "train.batch_size=16"]
    settings += ["train.learning_rate=0.01", "train.schedule=cosine", "train.validate_every=1000"]
    return es.train(path, folder / "run", quietly, overrides=[*SMALL, *settings])


def test_it_remembers_how_wide_a_box_began(run: es.Run) -> None:
    scores = run.evaluate("test")
    rivals = {rival["name"]: rival for rival in run.rivals("test")}
    assert rivals.keys() == {"one mixture", "given the last move"}
    assert scores["loss"] < min(rival["loss"] for rival in rivals.values()) - 0.5
    assert scores["loss"] == pytest.approx(scores["move"] + scores["pen"])
    assert scores["nats_per_drawing"] == pytest.approx(6 * scores["loss"], rel=1e-5)
    assert (scores["points"], scores["drawings"]) == (120, 20)
    scored = run.score(boxes(20, 1).splitlines())
    assert -sum(one.logp for one in scored) / sum(one.tokens for one in scored) == pytest.approx(scores["loss"], 1e-4)
    assert all(len(one.token_logps) == one.tokens == 6 for one in scored)
    made = json.loads(run.generate(prompt="[[0,0,0],[30,0,0],[0,20,0]]", length=3, temperature=0.0))
    assert made[:3] == [[0, 0, 0], [30, 0, 0], [0, 20, 0]]
    assert made[3][:2] == pytest.approx([-30, 0], abs=6)
    assert made[4] == [pytest.approx(0, abs=6), pytest.approx(-20, abs=6), 1]


def test_a_drawing_ends_where_its_end_is_drawn(run: es.Run) -> None:
    texts = run.generate(length=200, seed=1, count=5, temperature=0.5)
    made = [json.loads(text) for text in texts]
    assert all(len(one) < 40 for one in made)
    assert [len(one) for one in made].count(6) >= 3
    assert texts == run.generate(length=200, seed=1, count=5, temperature=0.5, until_end=True)
    assert len(json.loads(run.generate(length=2, seed=1))) == 2
    drawn = made_drawings(run.model, 5, 200, 0.5, seed=1)  # type: ignore[arg-type]
    scale = run.task.scaling.scale[0]  # type: ignore[attr-defined]
    for one, text in zip(drawn, texts, strict=True):
        assert drawing_of(text, "") == pytest.approx(one * [scale, scale, 1], rel=1e-4, abs=1e-4)
    assert run.score(texts)[0].logp > run.score(["[[0,0,0],[900,900,1]]"])[0].logp
    for name in ("top_k", "top_p"):
        with pytest.raises(ConfigError, match="this run draws numbers; leave them out"):
            run.generate(**{name: 1})


def test_what_it_is_asked_in_other_words(run: es.Run) -> None:
    with pytest.raises(DataError, match="line 2: expected a drawing as JSON"):
        run.score(["[]", "square"])
    with pytest.raises(
        DataError, match=r"line 1: expected moves like those of training, of about .*; got one of 1e\+30"
    ):
        run.score(["[[1e30,0,0]]"])
    with pytest.raises(DataError, match="the prompt: expected a drawing as JSON"):
        run.generate(prompt="The")
    empty, explicit = run.score(["", "[]"])
    assert empty.tokens == 0
    assert empty.logp == explicit.logp < 0  # that it ends at once


def test_what_is_generated_becomes_pictures(run: es.Run, tmp_path: Path) -> None:
    def asked(*options: str) -> Any:
        return CliRunner().invoke(app, ["generate", str(run.path), "--seed", "1", *options])

    done = asked("--out", str(tmp_path / "box.svg"), "--prompt", json.dumps(V))
    assert done.exit_code == 0, done.output
    picture = ET.fromstring((tmp_path / "box.svg").read_text())
    lines = [one.get("points", "") for one in picture.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(lines) == len(paths_of(drawing_of(done.stdout, "")))
    assert lines[0] == "0,0 5,20 10,0"
    assert b"<polyline" not in svg_bytes(np.zeros((0, 3)))
    dot = run.task.rendered("[[3,4,1],[5,5,1]", ".svg")  # type: ignore[attr-defined]  # cut by Ctrl-C
    assert b'points="3,4 3,4"' in dot
    assert "expected a name that ends in .txt, .svg" in asked("--out", str(tmp_path / "box.png")).output


def test_runs_are_compared(run: es.Run) -> None:
    done = CliRunner().invoke(app, ["compare", str(run.path), "--split", "test", "--json"])
    assert done.exit_code == 0, done.output
    (first,) = json.loads(done.stdout)["rows"]
    assert first["nats_per_token"] == pytest.approx(run.evaluate("test")["loss"], 1e-4)


def test_the_server_makes_drawings_and_steps_through_moves(run: es.Run) -> None:
    with served([run.path]) as client:
        (told,) = client.get("/runs")["runs"]
        assert {"generate", "score", "sessions"} <= {*told["abilities"]}
        assert told["typed"] is False
        assert "One drawing per line" in told["lines"]["score"]
        made = client.post("/generate", prompt="", length=50, seed=1, temperature=0.5)["text"]
        assert made == run.generate(length=50, seed=1, temperature=0.5)
        assert json.loads(made)
        session = client.post("/sessions", 201)["session"]
        found = client.post(f"/sessions/{session}/steps", numbers=[[0, 0, 0, 1, 0]], outputs="last")
    with torch.no_grad():
        want, _ = run.model.step(torch.tensor([[0.0, 0, 0, 1, 0]]), run.model.initial_state(1))  # type: ignore[operator]
    assert found["outputs"][-1] == pytest.approx(want[0].tolist(), abs=1e-5)


@pytest.mark.usefixtures("quick")
def test_an_export_scores_and_makes_the_same(run: es.Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    other = es.load(export(run, tmp_path / "onnx"))
    assert other.evaluate("test")["loss"] == pytest.approx(run.evaluate("test")["loss"], abs=1e-3)
    made, same = (np.array(json.loads(one.generate(length=30, seed=2))) for one in (run, other))
    assert made == pytest.approx(same, abs=0.05)
    line = json.dumps(V)
    assert other.score([line])[0].logp == pytest.approx(run.score([line])[0].logp, rel=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_are_drawn(run: es.Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["look", str(run.path), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert {"drawings.png", "next.png", "surprise.png"} <= {path.name for path in tmp_path.glob("*.png")}
    (tmp_path / "mine.jsonl").write_text("[[0,0,1]]\n")
    done = CliRunner().invoke(
        app, ["look", str(run.path), "--out", str(tmp_path), "--text", str(tmp_path / "mine.jsonl")]
    )
    assert done.exit_code == 0, done.output


class TestLaws(JobLaws):
    job = "strokes"
    settings = SMALL
    scored = (json.dumps(V), "[[0,0,1]]", "[[0,0,0],[30,0,0],[0,20,0],[-30,0,0],[0,-20,1]]")

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        return recipe(folder)


def test_the_example_makes_a_picture_as_the_recipe_draws() -> None:
    assert example(load_task("strokes-minute"), "generate", "RUN") == "everstep generate RUN --out made.svg"
