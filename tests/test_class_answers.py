"""What a classifier's answers mean: calibration, names for several classes, and why."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.errors import DataError, RunError
from everstep.look import reliability as drawn
from everstep.look.reliability import draw_reliability
from everstep.measures import reliability
from everstep.networks.answers import OneOf
from everstep.networks.classifying import measured_classes, to_score
from everstep.networks.sequence_classifier import ClassifierSection, SequenceClassifier
from everstep.networks.temperature import calibrate, fitted_temperature
from everstep.networks.token_contributions import marked, relevance

WORDS = {"1": "awful", "2": "dull", "3": "plain", "4": "nice", "5": "great"}
ROWS = [(f"{word} film number{number % 7}", label) for number in range(16) for label, word in WORDS.items()]
MERGE = "  merge: {low: [1, 2], high: [4, 5]}\n"


def written(folder: Path, rows: list[tuple[str, str]], name: str) -> Path:
    path = folder / name
    path.write_text("".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *rows]))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    """Learned from five labels, says low or high, calibrated, with attention."""
    folder = tmp_path_factory.mktemp("merged")
    path = folder / "recipe.yaml"
    train, test = written(folder, ROWS, "train.tsv"), written(folder, ROWS[:10], "test.tsv")
    path.write_text(
        f"task: classification\ndata:\n  train: {train}\n  test: {test}\n{MERGE}"
        "model: {embedding_size: 8, hidden_size: 8, read_out: attention}\nobjective: {calibrated: true}\n"
        "train: {max_epochs: 6, threads: 1, batch_size: 8, learning_rate: 0.05}\n"
    )
    return es.train(path, folder / "run", lambda line: None)


# --------------------------------------------------------------------------------------------------------- calibration


def test_reliability_by_hand() -> None:
    found = reliability([0.1, 0.2, 0.3, 1.0, 1.0, 0.95], [False, True, False, True, True, False], bins=5)
    assert found.count.tolist() == [2, 1, 0, 0, 3]  # 0.2 belongs to the bin that ends there
    assert found.confidence.tolist() == pytest.approx([0.15, 0.3, 0, 0, 2.95 / 3])
    assert found.accuracy.tolist() == pytest.approx([0.5, 0, 0, 0, 2 / 3])
    assert found.ece == pytest.approx((2 * 0.35 + 0.3 + 0.95) / 6)
    assert reliability([0.0], [True]).count[0] == 1
    with pytest.raises(ValueError, match=r"expected 0 … 1, got 0\.5 … 1\.5"):
        reliability([0.5, 1.5], [True, True])
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(1,\)"):
        reliability([0.5, 0.5], [True])


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_a_temperature_undoes_what_scaled_the_logits(true: float) -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(20_000, 3))
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    labels = (random.random((len(p), 1)) > p.cumsum(1)).sum(1)

    def nats(temperature: float) -> float:
        logits = torch.from_numpy(scores * true / temperature)
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)))

    assert fitted_temperature(nats) == pytest.approx(true, rel=0.04)


def test_the_validation_fits_the_temperature_in_place() -> None:
    torch.manual_seed(0)
    model = SequenceClassifier(20, OneOf("abc"), ClassifierSection(embedding_size=8, hidden_size=8), calibrated=True)
    with torch.no_grad():
        model.head.weight.mul_(100)
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 20, length) for length in random.integers(1, 9, 300)]
    batches = to_score(sequences, random.integers(0, 3, 300))
    before = measured_classes(model, batches)
    calibrate(model, batches)
    after = measured_classes(model, batches)
    assert model.temperature is not None
    assert float(model.temperature) > 2  # labels are noise, so that sure answers cost
    assert after.main["loss"] < before.main["loss"] - 0.1
    assert after.main["accuracy"] == before.main["accuracy"]
    assert after.report("abc")["ece"] < before.report("abc")["ece"]
    tokens = torch.tensor([[1, 2, 3]])
    lengths = torch.tensor([3])
    logits = model.logits(tokens, lengths)
    torch.testing.assert_close(model(tokens, lengths), (logits / model.temperature).log_softmax(-1))
    plain = SequenceClassifier(20, OneOf("abc"), ClassifierSection(embedding_size=8, hidden_size=8))
    calibrate(plain, batches)
    assert "temperature" not in plain.state_dict()


def test_the_temperature_is_kept_with_the_weights_and_said(run: es.Run) -> None:
    kept = float(load_file(run.path / "model.safetensors")["temperature"])
    assert kept != 1
    loaded = es.load(run.path)
    assert float(loaded.model.temperature) == kept
    assert loaded.evaluate("test") == run.evaluate("test")
    assert run.evaluate("test")["temperature"] == pytest.approx(kept)
    assert "| temperature |" in (run.path / "README.md").read_text()
    (ids,) = run.task.texts.tokens(["nice film"], run.task.tokenizer)
    logits = run.model.logits(torch.from_numpy(ids)[None], torch.tensor([len(ids)])).detach()
    p = (logits[0].double() / kept).softmax(0)
    (found,) = run.predict(["nice film"])
    assert found.record["probabilities"]["high"] == pytest.approx(float((p[3] + p[4]) / (p.sum() - p[2])), abs=1e-5)


def test_the_picture_says_on_which_side_of_the_line_it_is(tmp_path: Path) -> None:
    told = draw_reliability(reliability([0.9] * 10, [True] * 5 + [False] * 5), tmp_path / "a.png", 2.0)
    assert "The mean confidence is 90.0%, the accuracy 50.0%: overconfident." in told
    assert told.endswith(
        "Expected calibration error 0.400. Probabilities use the temperature 2.00, fitted to the validation split."
    )
    assert (tmp_path / "a.png").stat().st_size > 1000
    told = draw_reliability(reliability([0.2] * 4, [True, True, False, False]), tmp_path / "b.png", several=True)
    assert "The mean probability of a label is 20.0%, and 50.0% of the labels are present: underconfident." in told


@pytest.mark.parametrize(("several", "counted"), [(False, "sequences"), (True, "labels")])
def test_the_picture_of_probabilities_names_what_is_counted(
    several: bool, counted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(drawn, "save", lambda figure, path: figures.append(figure))
    draw_reliability(reliability([0.9], [True]), tmp_path / "a.png", several=several, unit="sequence")
    assert figures[0].axes[1].get_ylabel() == counted


# ------------------------------------------------------------------------------------------- names for several classes


def test_names_are_said_and_all_classes_are_learned(run: es.Run) -> None:
    assert json.loads((run.path / "classes.json").read_text()) == list("12345")
    assert run.model.head.classes == 5
    scores = run.evaluate("test")
    assert scores["count"] == 8  # of 10 texts, 2 are "plain"
    assert scores["accuracy"] == 1
    assert list(scores["classes"]) == ["low", "high"]
    labels = [p.record["label"] for p in run.predict(["awful", "dull", "nice", "great"])]
    assert labels == ["low", "low", "high", "high"]
    assert next(rival["name"] for rival in run.rivals("test")) == "majority class"
    assert len(run.task.texts.learned("train")) == 70
    assert "valid: 10 texts, 8 of them scored" in list(run.task.texts.told(run.task.answers))[1]
    assert "said of them: low (1, 2); high (4, 5)" in run.task.summary()


def test_a_name_for_a_class_that_there_is_not() -> None:
    with pytest.raises(DataError, match=r"data\.merge: 'd' is none of the 3 classes of train: 'a', 'b', 'c'"):
        OneOf("abc", {"x": ("a", "d")})


# ----------------------------------------------------------------------------------------------------------------- why


@pytest.mark.parametrize("read_out", ["max", "attention"])
def test_gradient_times_input_is_what_a_small_change_of_an_embedding_does(read_out: Any) -> None:
    torch.manual_seed(1)
    model = SequenceClassifier(9, OneOf("abc"), ClassifierSection(embedding_size=4, hidden_size=5, read_out=read_out))
    model = model.double().eval()
    sequences = [np.array([1, 2, 3, 4]), np.array([5, 6]), np.array([], np.int64)]
    found = relevance(model, to_score(sequences))
    assert [len(one.gradient) for one in found] == [4, 2, 0]
    for sequence, one in zip(sequences[:2], found, strict=False):
        tokens, lengths = torch.from_numpy(sequence)[None], torch.tensor([len(sequence)])
        embedded = model.embedding(tokens).detach()

        def lead(scale: torch.Tensor, given: Any = (tokens, embedded, lengths)) -> float:
            tokens, embedded, lengths = given
            logits = model.head.logits(model.read(tokens, embedded * scale[None, :, None], lengths)).detach()
            first, second = logits.log_softmax(-1).topk(2).values[0]
            return float(first - second)

        for place, value in enumerate(one.gradient):
            step = torch.zeros(len(sequence), dtype=torch.float64)
            step[place] = 1e-5
            assert (lead(1 + step) - lead(1 - step)) / 2e-5 == pytest.approx(value, abs=1e-5)
        assert one.attention is None or sum(one.attention) == pytest.approx(1)
        assert (one.attention is None) == (read_out != "attention")


def test_predict_explains(run: es.Run) -> None:
    lines = ["Great, (plain) film", "", "awful unheard of"]
    found = list(run.predict(iter(line + "\n" for line in lines), explain=True))
    plain = list(run.predict(lines))
    assert [{**p.record, "explanation": 0} for p in found] == [{**p.record, "explanation": 0} for p in plain]
    why = [p.record["explanation"] for p in found]
    assert [one["pieces"] for one in why] == [["Great", ",", "(", "plain", ")", "film"], [], ["awful", "unheard", "of"]]
    assert sum(why[0]["attention"]) == pytest.approx(1)
    assert max(why[2]["gradient"]) == why[2]["gradient"][0] > 0
    assert found[2].text.startswith(f"{plain[2].text}\t[+awful+] ")
    done = CliRunner().invoke(app, ["predict", str(run.path), "--explain", "--json"], input=lines[2])
    assert json.loads(done.stdout)["explanation"]["gradient"] == pytest.approx(why[2]["gradient"], abs=1e-5)
    done = CliRunner().invoke(app, ["predict", str(run.path), "--explain"], input=lines[2])
    assert "[+awful+]" in done.stdout


def test_marks() -> None:
    assert marked(["a ", "b ", " "], [0.0, 0.0, 0.0]) == "a b"
    assert marked([], []) == ""
    assert marked(["un", "aware "], [-3.0, 2.0]) == "[-un-][+aware+]"
    assert marked(["a ", "b"], [math.inf, 1.0]) == "[+a+] b"


def test_attention_is_drawn_too(run: es.Run, tmp_path: Path) -> None:
    drawn = [path.name for path, _ in run.task.pictures(run.model, tmp_path, None)]
    assert drawn == ["confusion.png", "reliability.png", "words.png", "words-gradient.png", "words-attention.png"]


def test_what_it_does_not_understand_is_told(run: es.Run) -> None:
    with pytest.raises(RunError, match=r"\(classification\) cannot predict with n_best; it understands explain"):
        run.predict(["so"], n_best=2)
