"""The job of speech: what it learns, writes, scores, draws and refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from job_laws import JobLaws
from service_client import served
from tones import RATE, SMALL, folder_of, line_of, quietly, recipe, sung, texts
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.data.readers.audio import wav_bytes
from everstep.errors import ConfigError, DataError

# ------------------------------------------------------------------------------------------------------------- the job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> es.Run:
    folder = tmp_path_factory.mktemp("tones")
    test = folder_of(folder, "test", texts(12, 7), 1000)
    path = recipe(folder, f"  test: {test}\n", texts(60))
    settings = ["train.max_epochs=30", "train.batch_size=8", "train.learning_rate=0.01", "train.validate_every=100"]
    settings += ["train.select=wer", "train.select_best=lowest"]
    return es.train(path, folder / "run", quietly, overrides=[*SMALL, *settings])


def test_it_writes_what_is_sung(run: es.Run) -> None:
    scores = run.evaluate("test")
    rivals = {rival["name"]: rival["wer"] for rival in run.rivals("test")}
    assert rivals.keys() == {"most frequent text", "nearest of 54 recordings, warped"}
    assert scores["wer"] < 0.25 < 0.6 < min(rivals.values())
    assert scores["cer"] < 0.1
    assert scores["labels"] == sum(map(len, texts(12, 7)))
    assert "no_loss" not in scores


def test_it_says_when_each_label_was_sung(run: es.Run) -> None:
    (found,) = run.predict([line_of("ab c", 3)])
    assert found.text == "ab c"
    record = found.record
    assert record["seconds"] == pytest.approx(len(sung("ab c", 3)) / RATE)
    assert [one["label"] for one in record["labels"]] == [*"ab c"]
    starts = [one["start"] for one in record["labels"]]
    assert starts == sorted(starts)
    assert all(one["start"] < one["end"] <= record["seconds"] + 0.05 for one in record["labels"])
    assert all(0 < one["p"] <= 1 for one in record["labels"])
    (scored,) = run.score([f"{line_of('ab c', 3)}\tab  c"])
    assert scored.logp == pytest.approx(record["log_p"], abs=1e-4)
    assert scored.tokens == 4
    assert scored.logp > run.score([f"{line_of('ab c', 3)}\tac c"])[0].logp


def test_empty_recordings_and_long_texts(run: es.Run, tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(wav_bytes(np.zeros(0), RATE))
    first, second = run.predict([str(tmp_path / "empty.wav"), line_of("b b")])
    assert (first.text, first.record["labels"], second.text) == ("", [], "b b")
    assert run.score([f"{line_of('a')}\t{'ab' * 50}"])[0].logp == -float("inf")


def test_what_it_is_asked_in_other_words(run: es.Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: .*none\.wav: cannot be read"):
        list(run.predict([line_of("a"), str(tmp_path / "none.wav")]))
    with pytest.raises(DataError, match="line 1: expected the path of a recording; it is blank"):
        list(run.predict([""]))
    with pytest.raises(DataError, match="line 1: expected a recording and its text with a tab"):
        run.score(["x.wav"])
    with pytest.raises(DataError, match="line 1: this run has no label for 'd', 'é'"):
        run.score(["x.wav\tdé"])
    with pytest.raises(ConfigError, match=r"expected at most decode\.beam_width=null, which gives one texts; got 2"):
        list(run.predict([line_of("a")], n_best=2))


def test_a_beam_gives_several_texts_with_their_probabilities(run: es.Run) -> None:
    beam = run.decoding(["decode.beam_width=12"])
    (found,) = beam.predict([line_of("ab c", 3)], n_best=3)
    ranked = [line.split("\t") for line in found.text.splitlines()]
    assert [rank for rank, _, _ in ranked] == ["1", "2", "3"]
    assert ranked[0][2] == "ab c"
    logs = [float(p) for _, p, _ in ranked]
    assert logs == sorted(logs, reverse=True)
    assert len({text for _, _, text in ranked}) == 3
    assert beam.evaluate("test")["cer"] <= run.evaluate("test")["cer"] + 0.02
    (long,) = run.decoding(["decode.beam_width=12", "decode.bonus=9"]).predict([line_of("ab c", 3)])
    assert len(long.text) > len("ab c")


@pytest.fixture(scope="module", params=["chars", "words"])
def language(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that knows three words."""
    folder = tmp_path_factory.mktemp("language")
    (folder / "text.txt").write_text("ab a\nc a\n" * 200)
    settings = ["data.sequence=lines", "model.hidden_size=16", "model.embedding_size=8", f"data.unit={request.param}"]
    settings += [f"data.train={folder}/text.txt", "train.max_steps=80", "train.learning_rate=0.02", "train.threads=1"]
    return es.train("language-model", folder / "run", quietly, overrides=settings).path


def test_a_language_model_decides_between_what_sounds_alike(run: es.Run, language: Path) -> None:
    weighted = [f"decode.language_model={language}", "decode.language_weight=20", "decode.beam_width=100"]
    (plain,) = run.predict([line_of("bb a", 3)])
    assert plain.text == "bb a"
    (found,) = run.decoding(weighted).predict([line_of("bb a", 3)])
    assert found.text == "ab a"
    (ignored,) = run.decoding([*weighted, "decode.language_weight=0"]).predict([line_of("bb a", 3)])
    assert ignored.text == "bb a"


def test_language_models_that_do_not_fit(run: es.Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"decode\.beam_width: expected a number of prefixes"):
        run.decoding([f"decode.language_model={tmp_path}"])
    (tmp_path / "text.txt").write_text("ab a\n" * 200)
    settings = [f"data.train={tmp_path}/text.txt", "train.max_steps=1", "model.hidden_size=8", "train.threads=1"]
    other = es.train("language-model", tmp_path / "other", quietly, overrides=settings)
    lacking = run.decoding([f"decode.language_model={other.path}", "decode.beam_width=3"])
    with pytest.raises(ConfigError, match=r"decode\.language_model=.*: it lacks 'c', which are labels"):
        list(lacking.predict([line_of("a")]))
    same = run.decoding([f"decode.language_model={run.path}", "decode.beam_width=3"])
    with pytest.raises(ConfigError, match="expected a run of a language model; it is one of speech"):
        list(same.predict([line_of("a")]))


@pytest.mark.parametrize("verb", ["predict", "score"])
def test_a_server_opens_no_files(run: es.Run, tmp_path: Path, verb: str) -> None:
    (tmp_path / "x.wav").write_bytes(wav_bytes(sung("a"), RATE))
    with served([run.path]) as client:
        refused = client.post(f"/{verb}", 422, lines=[line_of("a") + "\ta", f"{tmp_path}/x.wav\ta"])
    assert "lines.1: a server opens no files" in json.dumps(refused)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pictures_are_drawn(run: es.Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["look", str(run.path), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert {"spikes-1.png", "spikes-2.png", "spikes-3.png"} <= {path.name for path in tmp_path.glob("*.png")}


ASKED = (line_of("ab c", 1), line_of("c", 2), line_of("b a", 3))


class TestLaws(JobLaws):
    job = "speech"
    settings = (*SMALL, "decode.beam_width=4")
    asked: ClassVar[Sequence[Sequence[str]]] = tuple([line] for line in ASKED)
    scored = tuple(f"{line}\t{text}" for line, text in zip(ASKED, ("ab c", "c", "a"), strict=True))

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        return recipe(folder)


class TestLawsOfOneDirection(TestLaws):
    settings = (*TestLaws.settings, "model.bidirectional=false", "data.unit=words")
    scored = tuple(f"{line}\t{text}" for line, text in zip(ASKED, ("bac cb", "cb", "bac"), strict=True))
