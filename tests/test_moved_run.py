"""A run that was moved from its data: what works without, and what is said where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.errors import DataError
from everstep.runs import pictures

TINY = [
    "model.embedding_size=4", "model.hidden_size=6", "train.batch_size=4", "train.max_steps=2", "train.threads=null",
    "train.max_epochs=null", "train.max_minutes=null", "train.warmup_steps=0", "data.min_count=1",
]  # fmt: skip
TEXT = "What say you to that? I say nothing, and so it goes.\n" * 40
TABLE = "text\tlabel\n" + "so good\tyes\nso bad\tno\nvery good\tyes\nvery bad\tno\n" * 6


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("EVERSTEP_COMPILER", "none")
    monkeypatch.chdir(tmp_path)
    Path("play.txt").write_text(TEXT)
    Path("letter.txt").write_text(TEXT[:530])
    Path("words.tsv").write_text(TABLE)
    Path("more.tsv").write_text("".join(TABLE.splitlines(True)[:9]))


def moved(recipe: str, data: str, *more: str) -> es.Run:
    """A trained run whose data has gone elsewhere."""
    es.train(recipe, "run", lambda line: None, overrides=[f"data.train={data}", *TINY, *more])
    Path(data).rename(f"moved-{data}")
    return es.load("run")


def call(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [*arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.output


def test_a_text_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    run = moved("text-chars", "play.txt", "objective.k1=8")
    where = (
        r"no file matches.*The files of data\.train are not where they were.*write where they are now into run/config"
    )
    with pytest.raises(DataError, match=rf"{where}\.yaml; to score other files: eval --data FILE$"):
        run.evaluate()
    with pytest.raises(DataError, match=rf"{where}\.yaml; to look at a text of your own: look --text FILE$"):
        run.passage()
    assert run.evaluate(data=["letter.txt"])["tokens"] == 530
    assert len(run.generate(length=5)) == 5
    assert call("eval", "run", "--data", "letter.txt", "--json")[0] == 0
    monkeypatch.setattr(pictures, "drawers", lambda: [pictures.draw_learning, pictures.draw_own])
    code, told = call("look", "run")
    assert (code, "look --text FILE" in told) == (2, True)
    code, told = call("look", "run", "--text", "letter.txt")
    assert (code, "surprise.png" in told) == (0, True), told
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("play.txt", "moved-play.txt"))
    assert es.load("run").evaluate()["data"] == "as trained"


def test_labelled_texts_that_are_gone(capsys: pytest.CaptureFixture[str]) -> None:
    run = moved("classify-own", "words.tsv")
    Path("own.txt").write_text("so good\n")
    assert call("eval", "run", "--data", "more.tsv")[0] == 0
    code, told = call("eval", "run", "--data", "missing.tsv")
    assert code == 2
    assert told.startswith(f"everstep: --data: {Path('missing.tsv').absolute()}: no file matches")
    code, told = call("eval", "run", "--data", "more.tsv", "--rivals")
    assert code == 2
    assert "words.tsv" in told
    assert "The files of data.train are not where they were" in told
    assert "--data FILE gives but what they are scored on" in told
    capsys.readouterr()
    assert pictures.draw_own(run, Path("drawn"), "so good\n") == []
    told = capsys.readouterr().err
    assert told.startswith("note: ")
    assert told.endswith("; what is drawn of that data is left out\n")
    with pytest.raises(DataError, match=r"words\.tsv"):
        pictures.draw_own(run, Path("drawn"))
    Path("moved-words.tsv").rename("words.tsv")
    assert any("confusion" in str(path) for path, _ in pictures.draw_own(es.load("run"), Path("drawn"), "so good\n"))
