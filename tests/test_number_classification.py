"""Classification of sequences of numbers and of clips: what is learned, said, drawn and refused."""

from __future__ import annotations

import io
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from job_laws import JobLaws
from torch import nn
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data.readers.number_formats import NumberColumns
from everstep.errors import ConfigError, DataError, RunError
from everstep.networks.answers import OneOf
from everstep.networks.classifying import class_losses, measured_classes, to_score
from everstep.networks.document_pieces import piece_losses
from everstep.networks.number_classifier import NumberClassifier, NumberClassifierSection, with_gaps
from everstep.networks.number_scaling import NumberScaling
from everstep.rivals import number_classes
from everstep.rivals.number_classes import NumberSet, number_rivals, warped
from everstep.runs.asked_numbers import asked_numbers
from everstep.runs.number_section import NumberSection, holds_numbers
from everstep.runs.recipe_files import load_task, to_yaml

NAN = float("nan")
SMALL = ("model.hidden_size=8", "train.batch_size=16", "train.threads=1", "train.learning_rate=0.02")


def quietly(line: str) -> None:
    del line


def waves(count: int = 60, seed: int = 0) -> str:
    """A long table: waves that rise first, or fall first, of another length and phase each; some numbers missing."""
    random = np.random.default_rng(seed)
    rows = ["unique_id,step,x,y,label"]
    for number in range(count):
        sign, length = 1 - 2 * (number % 2), random.integers(6, 14)
        for step in range(length):
            x = sign * np.sin(2 * np.pi * step / 8) + random.normal(0, 0.1)
            y = "" if random.uniform() < 0.1 else f"{random.normal():.3f}"
            rows.append(f"w{number},{step},{100 + 5 * x:.3f},{y},{'rise' if sign > 0 else 'fall'}")
    return "\n".join(rows) + "\n"


def recipe(folder: Path, data: str = "", text: str | None = None) -> Path:
    (folder / "waves.csv").write_text(waves() if text is None else text)
    path = folder / "recipe.yaml"
    given = f"  train: {folder}/waves.csv\n  format: long\n{data}"
    path.write_text(f"task: classification\ndata:\n{given}train:\n  max_epochs: 1\n")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    folder = tmp_path_factory.mktemp("waves")
    (folder / "test.csv").write_text(waves(40, 1))
    path = recipe(folder, f"  test: {folder}/test.csv\n")
    settings = [*SMALL, "train.max_epochs=10", "model.read_out=attention"]
    return es.train(path, folder / "run", quietly, overrides=settings)


# ------------------------------------------------------------------------------------------------------------ networks


def test_gaps_by_hand() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(3, 7, 2)).astype(np.float32)
    values[random.uniform(size=values.shape) < 0.5] = NAN
    lengths = [7, 4, 0]
    for row, length in enumerate(lengths):
        values[row, length:] = 0
    found = with_gaps(torch.from_numpy(values), torch.tensor(lengths), True).numpy()
    for row, column in itertools.product(range(3), range(2)):
        last, since = 0.0, 0
        for step in range(lengths[row]):
            value = values[row, step, column]
            there = not np.isnan(value)
            last, since = (value, 0) if there else (last, since + 1)
            wanted = [last, float(there), np.log1p(since)]
            assert found[row, step, [column, 2 + column, 4 + column]] == pytest.approx(wanted)
        assert not found[row, lengths[row] :].any()
    plain = with_gaps(torch.from_numpy(values), torch.tensor(lengths), False).numpy()
    np.testing.assert_array_equal(plain[0], found[0, :, :2])


def scaling_of(shape: tuple[int, ...], gaps: bool = False) -> NumberScaling:
    return NumberScaling(tuple(map(str, range(shape[0]))) if len(shape) == 1 else (), shape, (0.0,), (1.0,), gaps)


SHAPES: list[tuple[tuple[int, ...], bool]] = [((2,), False), ((2,), True), ((5, 4, 1), False), ((4, 6, 2), True)]


@pytest.mark.parametrize(("shape", "gaps"), SHAPES)
def test_a_sequence_is_learned_in_pieces(shape: tuple[int, ...], gaps: bool) -> None:
    torch.manual_seed(0)
    section = NumberClassifierSection(hidden_size=5, bidirectional=False, read_out="mean", filters=(3,), frame_size=6)
    model, random = NumberClassifier(scaling_of(shape, gaps), OneOf("abc"), section), np.random.default_rng(0)
    sequences = [random.normal(size=(length, *shape)) for length in (9, 4, 8, 1)]
    for one in sequences if gaps else ():
        one[random.uniform(size=one.shape) < 0.3] = NAN
    batch = to_score(sequences, np.array([0, 1, 2, 0])).batch(0, 0)
    losses = list(piece_losses(model, batch, None, 4))
    assert len(losses) == 3
    wanted = torch.zeros(4)
    for row, length in enumerate(batch.lengths.tolist()):
        for start in range(0, length, 4):
            stop = min(start + 4, length)
            log_p = model(batch.inputs[row : row + 1, :stop], torch.tensor([stop]))[0]
            wanted[row] -= log_p[batch.labels[row]] * (stop - start) / length
    torch.testing.assert_close(sum(loss.total for loss in losses), wanted)
    (whole,) = piece_losses(model, batch, None, 9)
    torch.testing.assert_close(whole.total, next(iter(class_losses(model, batch, None))).total)


@pytest.mark.parametrize(("shape", "gaps"), SHAPES)
@pytest.mark.parametrize("read_out", ["last", "max", "attention"])
def test_one_batch_is_learned_by_heart(shape: tuple[int, ...], gaps: bool, read_out: Any) -> None:
    torch.manual_seed(0)
    section = NumberClassifierSection(hidden_size=12, read_out=read_out, filters=(8,), frame_size=16)
    model = NumberClassifier(scaling_of(shape, gaps), OneOf("abc"), section)
    random = np.random.default_rng(0)
    sequences = [random.normal(size=(length, *shape)).astype(np.float32) for length in (2, 3, 5, 6, 6, 8)]
    if gaps:
        for one in sequences:
            one[random.uniform(size=one.shape) < 0.2] = NAN
    labels = np.array([0, 1, 2, 0, 1, 2])
    (batch,) = [to_score(sequences, labels).batch(0, 0)]
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(80):
        (loss,) = class_losses(model, batch, None)
        optimizer.zero_grad()
        loss.total.mean().backward()
        optimizer.step()
    measured = measured_classes(model, to_score(sequences, labels))
    assert (measured.accuracy, measured.nats) == (1, pytest.approx(0, abs=0.1))


@pytest.mark.parametrize(("shape", "gaps"), SHAPES)
def test_padded_equals_alone_and_nothing_is_legal(shape: tuple[int, ...], gaps: bool) -> None:
    section = NumberClassifierSection(hidden_size=6, filters=(4,), frame_size=5, cell="LSTM")
    model = NumberClassifier(scaling_of(shape, gaps), OneOf("ab"), section).eval()
    random = np.random.default_rng(1)
    sequences = [random.normal(size=(length, *shape)).astype(np.float32) for length in (3, 0, 7)]
    batch = to_score(sequences).batch(0, 0)
    with torch.no_grad():
        together = model(batch.inputs, batch.lengths)
        for row, place in enumerate(batch.places.tolist()):
            own = torch.from_numpy(sequences[place])[None]
            alone = model(own, torch.tensor([len(sequences[place])]))
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_scaling_by_hand_and_its_file(tmp_path: Path) -> None:
    one, two = np.array([[1.0, 7.0], [3.0, NAN]]), np.array([[5.0, 7.0]])
    found = NumberScaling.fitted([one, two], ("x", "y"), (2,), "each")
    assert found.shift == (3.0, 7.0)
    assert found.scale == pytest.approx((np.std([1, 3, 5]), 1.0))  # a constant is divided by 1
    every = NumberScaling.fitted([one, two], ("x", "y"), (2,), "all")
    assert (every.shift, every.scale) == (pytest.approx((4.6,)), pytest.approx((np.std([1, 3, 5, 7, 7]),)))
    assert found.scaled(two).tolist() == pytest.approx(np.array([[2 / np.std([1, 3, 5]), 0]]))
    assert found.restored(found.scaled(two)) == pytest.approx(two)
    (tmp_path / "numbers.json").write_bytes(found.to_bytes())
    assert NumberScaling.load(tmp_path / "numbers.json") == found
    near = NumberScaling.fitted([np.array([[52.5], [52.50001]])], ("x",), (1,), "each")  # metres, in degrees
    assert near.scale == pytest.approx((5e-6,), rel=1e-6)
    with pytest.raises(DataError, match=r"expected numbers like those of training; got 1e\+40"):
        near.scaled(np.array([[52.5], [1e40]]))
    (tmp_path / "numbers.json").write_text("{}")
    with pytest.raises(RunError, match="missing or damaged"):
        NumberScaling.load(tmp_path / "numbers.json")


# ------------------------------------------------------------------------------------------------------------ the job


def test_it_beats_the_majority_and_what_training_says_is_what_eval_says(run: es.Run) -> None:
    scores = run.evaluate("test")
    assert scores["accuracy"] > 0.9
    assert {"task": "classification", "count": 40, "split": "test"}.items() <= scores.items()
    written = json.loads((run.path / "scores.json").read_text())["test"]
    assert {**written, "rivals": 0} == {**scores, "rivals": 0}
    assert written["rivals"][0]["accuracy"] == 0.5
    again = es.load(run.path)
    assert again.evaluate("test") == scores
    assert again.task.scaling.gaps
    assert "step: 2 numbers a step (x, y), scaled: each, some missing" in (run.path / "README.md").read_text()


def test_every_way_to_ask_gives_the_same_answer(run: es.Run) -> None:
    table = waves(6, 5).splitlines()
    head, by_name = table[0], itertools.groupby(table[1:], lambda row: row.split(",")[0])
    rows = {name: [row.split(",")[2:4] for row in some] for name, some in by_name}
    values = [[[float(v) if v else None for v in step] for step in steps] for steps in rows.values()]
    of_table = list(run.predict(table))
    assert [one.record["sequence"] for one in of_table] == list(rows)
    assert {one.text.split("\t")[0] for one in of_table} == {"rise", "fall"}
    other = "\n".join(table[1:][::-1])
    assert sorted(p.text for p in run.predict([head, *other.splitlines()])) == sorted(p.text for p in of_table)
    asked = {
        "json": [json.dumps(one) for one in values],
        "flat": [",".join("?" if v is None else str(v) for step in one for v in step) for one in values],
        "colons": [
            ":".join(",".join("?" if s[k] is None else str(s[k]) for s in one) for k in (0, 1)) for one in values
        ],
    }
    for name, lines in asked.items():
        found = [one.record["probability"] for one in run.predict(lines)]
        assert found == pytest.approx([one.record["probability"] for one in of_table], abs=1e-5), name
    alone = [next(run.predict([line])).record["probability"] for line in asked["json"]]
    assert alone == pytest.approx([one.record["probability"] for one in of_table], abs=1e-5)
    assert len(list(run.predict([asked["json"][0], "", asked["json"][1]]))) == 3  # a line for the empty one
    done = CliRunner().invoke(app, ["predict", str(run.path)], input="\n".join(asked["flat"]))
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [p.text.split("\t")[0] for p in of_table]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["1,2,3"], "line 1: expected 2 numbers a step, as in training; got 3 numbers in all"),
        (["[[1, 2, 3]]"], "line 1: expected 2 numbers a step, as in training; got 3 numbers"),
        (["[[1, 2], [3]]"], "line 1: expected a list of numbers, or of steps"),
        (["1,2", "1:2:3"], "line 2: expected 2 dimensions, separated by colons; got 3"),
        (["1,2", "1,x"], "line 2: expected a number, or . where it is missing; got 'x'"),
        (["[1e999, 2]"], "line 1: expected"),
        (["[1" + "0" * 400 + ", 2]"], "line 1: expected a list of numbers"),
        (["unique_id,step,x", "a,1,2"], r"the input: expected the column 'y' \(data.values\)"),
        (["unique_id,step,x,y", "a,1,2,z"], "row 1 of its data: expected a number in column 'y'"),
        (["unique_id,step,x,y"], "expected rows below the names of columns"),
    ],
)
def test_input_that_is_refused(run: es.Run, lines: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        list(run.predict(lines))


def test_missing_steps_at_the_end_of_a_row_are_none_where_training_has_rows() -> None:
    line, scaling = "1,2,3,?,,", scaling_of((2,))
    read = {padded: [len(one.steps) for one in asked_numbers([line], scaling, NumberColumns(), padded)]
            for padded in (False, True)}  # fmt: skip
    assert read == {False: [3], True: [2]}
    assert NumberSection(format="rows").padded
    assert not NumberSection(format="long").padded


def test_other_data_is_scored_and_other_columns_and_classes_are_refused(run: es.Run, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text(waves(20, 3))
    assert run.evaluate(data=[str(tmp_path / "more.csv")])["count"] == 20
    (tmp_path / "other.csv").write_text(waves(20, 3).replace(",y,", ",z,"))
    with pytest.raises(DataError, match=r"expected 2 numbers a step \(x, y\), as in training; got .*\(x, z\)"):
        run.evaluate(data=[str(tmp_path / "other.csv")])
    (tmp_path / "label.csv").write_text(waves(20, 3).replace("rise", "stay"))
    with pytest.raises(DataError, match=r"label\.csv, line \d+: the class 'stay' is not among the 2 known"):
        run.evaluate(data=[str(tmp_path / "label.csv")])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_are_drawn(run: es.Run, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("1,2,3,4,5,?\n1,1,1,1\n")
    for extra in ([], ["--text", str(tmp_path / "own.txt")]):
        done = CliRunner().invoke(app, ["look", str(run.path), "--out", str(tmp_path / "drawn"), *extra])
        assert done.exit_code == 0, done.output
        drawn = {path.name for path in (tmp_path / "drawn").glob("*.png")}
        assert {"over-time.png", "confusion.png", "reliability.png", "curves.png", "units.png"} <= drawn
    words = (tmp_path / "drawn" / "README.md").read_text()
    assert "after so many steps" in words
    assert "weights that the read-out gives" in words


def test_the_kind_of_data_decides_and_a_recipe_survives_a_round_trip(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    task = load_task(path)
    assert type(task).__name__ == "NumberClassification"
    (tmp_path / "again.yaml").write_text(to_yaml(task.recipe))
    assert load_task(tmp_path / "again.yaml").recipe == task.recipe
    assert holds_numbers({"train": ("a.npz",)})
    assert not holds_numbers({"train": "a.csv", "text": "x"})
    assert holds_numbers({"train": "everstep:shapes.train"})
    assert not holds_numbers({"train": ("a.ts", "b.ts"), "format": "lines"})  # programs, a line a text
    (tmp_path / "bare.yaml").write_text("task: classification\ntrain:\n  max_epochs: 1\n")
    several = load_task(tmp_path / "bare.yaml", ["data.train=[a.npz, b.npz]", "data.label=y"])
    assert type(several).__name__ == "NumberClassification"
    assert load_task("classify-numbers-own", ["data.train=a.npz"]).recipe.data.format == "auto"
    with pytest.raises(ConfigError, match=r"model\.bidirectional: expected false beside objective\.bptt"):
        load_task(path, ["objective.bptt=5", "model.bidirectional=true"])
    with pytest.raises(ConfigError, match=r"data\.values_: unknown key"):
        load_task(path, ["data.values_=x"])


def test_a_file_of_the_archive_of_time_series_is_enough(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    lines = ["@timeStamps false", "@univariate true", "@equalLength false", "@classLabel true -1 1", "@data"]
    for number in range(40):
        sign = 1 - 2 * (number % 2)
        values = sign * np.sin(np.arange(random.integers(6, 12))) + random.normal(0, 0.1)
        lines.append(f"{','.join(f'{value:.3f}' for value in values)}:{sign}")
    (tmp_path / "Waves_TRAIN.ts").write_text("\n".join(lines) + "\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(f"task: classification\ndata:\n  train: {tmp_path}/Waves_TRAIN.ts\ntrain:\n  max_epochs: 12\n")
    found = es.train(path, tmp_path / "run", quietly, overrides=SMALL)
    assert found.task.classes == ("-1", "1")
    said = [one.text.split("\t")[0] for one in found.predict([line.rpartition(":")[0] for line in lines[5:9]])]
    assert said == ["1", "-1", "1", "-1"]
    assert es.load(tmp_path / "run").evaluate(data=[str(tmp_path / "Waves_TRAIN.ts")])["accuracy"] > 0.9


class TestLaws(JobLaws):
    job = "number-classification"
    settings = (*SMALL, "model.dropout=0.2")
    asked = (["[[1, 2], [0.5, null], [0, 2]]"], ["[[-1, 3]]"])
    numbered = "sequence"

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        return recipe(folder)


def test_what_is_suspicious_is_told(tmp_path: Path) -> None:
    text = waves(20).replace(",label", ",still,label").replace(",rise", ",1,rise").replace(",fall", ",1,fall")
    task = load_task(recipe(tmp_path, "", text))
    task.prepare()
    said: list[str] = []
    task.ready(said.append)
    assert "note: constant in training, and of no use: still" in said
    assert any(line.startswith("note:") and "missing numbers in train" in line for line in said)
    assert any(line.startswith("train: 18 sequences of 6 to 13 steps") for line in said)
    assert not any("of train too" in line for line in said)
    task = load_task(tmp_path / "recipe.yaml", [f"data.test={tmp_path}/waves.csv"])
    task.prepare()
    task.ready(said.append)
    assert any(line.startswith("note: 18 of the 20 sequences of test are sequences of train too") for line in said)


# -------------------------------------------------------------------------------------------------------------- clips


def clips(count: int, seed: int) -> bytes:
    """A bar that goes left or right over 5 frames of 4 × 6 pixels, from any place."""
    random = np.random.default_rng(seed)
    ways = np.array([-1, 1])[np.arange(count) % 2]
    at = (random.integers(0, 6, count)[:, None] + np.arange(5) * ways[:, None]) % 6
    x = np.zeros((count, 5, 4, 6), np.uint8)
    for clip, step in np.ndindex(count, 5):
        x[clip, step, :, at[clip, step]] = 255
    out = io.BytesIO()
    np.savez(out, x=x, y=np.where(ways < 0, "left", "right"))
    return out.getvalue()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_clips_are_learned_and_a_single_frame_cannot_tell(tmp_path: Path) -> None:
    (tmp_path / "train.npz").write_bytes(clips(120, 0))
    (tmp_path / "test.npz").write_bytes(clips(60, 1))
    path = tmp_path / "recipe.yaml"
    path.write_text(f"task: classification\ndata:\n  train: {tmp_path}/train.npz\n  test: {tmp_path}/test.npz\n")
    settings = [*SMALL, "model.filters=[8]", "model.frame_size=16", "train.max_epochs=15"]
    settings += ["train.learning_rate=0.005", "data.scaling=all"]
    found = es.train(path, tmp_path / "run", quietly, overrides=settings)
    assert found.evaluate("test")["accuracy"] >= 0.95
    rivals = {rival["name"]: rival["accuracy"] for rival in found.rivals("test")}
    assert rivals["linear, one step"] < 0.8
    single = es.train(path, tmp_path / "single", quietly, overrides=[*settings, "data.max_length=1"])
    assert single.evaluate("test")["accuracy"] < 0.75
    assert isinstance(found.model.front, es.TimeDistributed)
    drawn = dict(found.task.pictures(found.model, tmp_path / "drawn", None))
    assert tmp_path / "drawn" / "over-time.png" in drawn
    clip = np.load(io.BytesIO(clips(1, 3)))["x"][0]
    for same in (clip, clip[..., None], clip.reshape(5, -1), clip.ravel()):
        assert next(found.predict([json.dumps(same.tolist())])).text.startswith("left")
    with pytest.raises(DataError, match="expected 4 × 6 × 1 numbers a step, as in training; got 6 × 4"):
        next(found.predict([json.dumps(clip.swapaxes(1, 2).tolist())]))
    assert next(found.predict([""])).record["steps"] == 0


# ------------------------------------------------------------------------------------------------------------- rivals


def brute_force(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) == 1 or len(b) == 1:
        return float(((a[:, None] - b[None]) ** 2).sum())
    last = float(((a[-1] - b[-1]) ** 2).sum())
    return last + min(brute_force(a[:-1], b), brute_force(a, b[:-1]), brute_force(a[:-1], b[:-1]))


def test_warped_time_equals_all_alignments() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(3, 4, 2)), random.normal(size=(2, 5, 2))
    wanted = [[brute_force(one, other) for other in b] for one in a]
    np.testing.assert_allclose(warped(a, b), wanted, atol=1e-9)


def test_rivals_know_what_they_can_know() -> None:
    random = np.random.default_rng(0)

    def drawn(count: int) -> NumberSet:
        targets = np.arange(count) % 3
        every = [random.normal(size=(random.integers(3, 9), 2)) * 0.1 + [k, 0] for k in targets]
        return NumberSet([np.where(random.uniform(size=one.shape) < 0.1, NAN, one) for one in every], targets)

    found = {rival["name"]: rival for rival in number_rivals(drawn(90), drawn(30), 3)}
    names = ["majority class", "class means of summaries", "linear, resampled to 8", "linear, one step", "1-NN"]
    assert list(found) == [*names, "1-NN, warped"]
    assert found["majority class"]["accuracy"] == pytest.approx(1 / 3)
    assert min(found[name]["accuracy"] for name in list(found)[1:]) > 0.9
    assert found["majority class"]["loss"] == pytest.approx(np.log(3))
    assert found["1-NN"]["loss"] is None


def test_rivals_of_wide_frames_and_of_a_rare_class(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    targets = np.zeros(40, np.int64)
    targets[-2] = 1  # an even sample lacks it
    wide = NumberSet([random.normal(size=(20, 30, 30, 1)) + k for k in targets], targets)
    monkeypatch.setattr(number_classes, "FITTED", 100)
    monkeypatch.setattr(number_classes, "WARPED", 10)
    monkeypatch.setattr(number_classes, "ASKED", 10)
    found = [rival["name"] for rival in number_rivals(wide, wide, 2, quick=True)]
    assert "linear, resampled to 4, of 11 sequences" in found  # 4 × 900 numbers
    narrow = NumberSet([one[:3, 0, :2, 0] for one in wide.sequences], targets)
    assert number_rivals(narrow, narrow, 2)[-1]["name"] == "1-NN, warped, asked 10 of 40, of 11 sequences"


def test_batches_of_wide_frames_have_fewer_of_them() -> None:
    frames = [np.zeros((8, 64, 64, 1), np.float32)] * 100
    batch = to_score(frames).batch(0, 0)
    assert batch.inputs.numel() <= 128 * 16384
    assert to_score([frame[:, :8, :8] for frame in frames]).batch(0, 0).rows == 100


# ---------------------------------------------------------------------------------------------------------- data sets

DATA = Path(os.environ.get("EVERSTEP_DATA", "nowhere"))


@pytest.mark.skipif(not (DATA / "pendigits").is_dir(), reason="EVERSTEP_DATA has no pendigits")
def test_pendigits_are_parted_as_its_recipe_says() -> None:
    task: Any = load_task("pendigits")
    task.prepare()
    sizes = {split: len(task.examples.examples(split)) for split in task.splits()}
    assert sum(sizes.values()) == 7494
    assert sizes["test"] in (749, 750)
    assert task.scaling.shape == (2,)
    batch = task.batches("test", None, "score").batch(0, 0)
    assert batch.inputs.shape[1:] == (8, 2)
    assert isinstance(task.model(), nn.Module)


def test_bundled_recipes_are_ready() -> None:
    for name, steps in (("classify-numbers-minute", (2,)), ("classify-clips-minute", (12, 12, 1))):
        task: Any = load_task(name)
        task.prepare()
        said: list[str] = []
        task.ready(said.append)
        assert (task.scaling.shape, len(task.classes)) == (steps, {2: 6, 12: 12}[steps[0]])
