"""The n-gram job: a run like any other, without a step."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from job_laws import JobLaws
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.errors import ConfigError, DataError, RunError
from everstep.look.compared_models import draw_compared
from everstep.runs.compared_runs import mixture, scored, table
from everstep.runs.run import Run
from everstep.runs.weight_averages import average
from everstep.ship.export import export

LINES = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog sat", "the mat and the log"] * 12


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "mine.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def trained(text: Path, out: Path, *more: str) -> Run:
    given = [f"data.train={text}", f"data.test={text}", "model.order=3", *more]
    return es.train("kneser-ney", out, log=lambda line: None, overrides=given)


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(text, tmp_path_factory.mktemp("runs") / "counts")


@pytest.mark.usefixtures("own_cache")
def test_a_run_is_like_any_other(run: Run) -> None:
    found = run.evaluate("test")
    assert 1 < found["perplexity"] < 6
    assert found["tokens"] == sum(len(line.split()) + 1 for line in LINES)
    again = es.load(run.path)
    assert again.evaluate("test") == found
    total = sum(score.logp for score in again.score(LINES))
    assert np.isclose(-total / found["tokens"], found["nats_per_token"], rtol=1e-6)
    first = again.generate(length=12, seed=1)
    assert first == run.generate(length=12, seed=1)
    assert set(first.split()) <= set(" ".join(LINES).split())
    card = (run.path / "README.md").read_text()
    assert "without steps" in card
    assert "n-grams of orders 1 to 3" in card


class TestLaws(JobLaws):
    job = "ngram-language-model"
    settings = ("model.order=3", "model.fallback_discounts=[0.5,1,1.5]")
    asked = [[line] for line in (*LINES[:3], "")]

    @classmethod
    def recipe(cls, folder: Path) -> Path:
        (folder / "mine.txt").write_text("\n".join(LINES) + "\n")
        path = folder / "recipe.yaml"
        path.write_text(f"task: ngram-language-model\ndata: {{train: {folder}/mine.txt}}\n")
        return path


@pytest.mark.usefixtures("own_cache")
def test_resuming_and_starting_from_it(run: Run, text: Path, tmp_path: Path) -> None:
    (run.path / "model.safetensors").unlink()
    with pytest.raises(RunError, match="finish it: everstep train --resume"):
        es.load(run.path)
    es.resume(run.path, log=lambda line: None)
    assert es.load(run.path).evaluate("test") == run.evaluate("test")
    with pytest.raises(RunError, match="nothing to optimise"):
        es.train("kneser-ney", tmp_path / "from", start_from=run.path, overrides=[f"data.train={text}"])
    with pytest.raises(ConfigError, match=r"model.prune: expected at most 3 thresholds, one for each order; got 4"):
        trained(text, tmp_path / "pruned", "model.prune=[0,0,1,1]")
    with pytest.raises(ConfigError, match=r"train.learning_rate: expected no such key"):
        trained(text, tmp_path / "rate", "train.learning_rate=0.1")


@pytest.mark.usefixtures("own_cache")
def test_a_run_is_resumed_with_what_it_was_begun_with(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("\n".join(LINES) + "\n")
    run = trained(own, tmp_path / "run")
    recipe = run.path / "config.yaml"
    kept = recipe.read_text()
    recipe.write_text(kept.replace("order: 3", "order: 2"))
    with pytest.raises(RunError, match=r"model.order: was 3, now 2"):
        es.resume(run.path, log=lambda line: None)
    recipe.write_text(kept)
    own.write_text("\n".join(LINES) + "\nthe cat\n")
    with pytest.raises(RunError, match=r"its data has changed since it was begun \(valid, test\)"):
        es.resume(run.path, log=lambda line: None)
    assert es.load(run.path).evaluate("test")["data"] == "changed"


@pytest.mark.usefixtures("own_cache")
def test_an_arpa_file_is_named_in_place_of_a_text(run: Run, tmp_path: Path) -> None:
    path = export(run, tmp_path / "counts.arpa", to="arpa")
    given = [f"model.arpa={path}"]
    other = es.train("kneser-ney", tmp_path / "run", log=lambda line: None, overrides=given)
    card = (other.path / "README.md").read_text()
    assert f"ARPA file: {path}" in card
    assert "everstep:shakespeare" not in card
    with pytest.raises(DataError, match=r"has no train split; it has none"):
        other.evaluate()
    with pytest.raises(ConfigError, match=r"expected no data.lowercase"):
        es.train("kneser-ney", tmp_path / "low", log=lambda line: None, overrides=[*given, "data.lowercase=true"])


@pytest.mark.usefixtures("own_cache")
def test_an_export_that_fails_leaves_no_file(text: Path, tmp_path: Path) -> None:
    chars = trained(text, tmp_path / "chars", "data.unit=chars")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match="the symbol ' ' cannot be written"):
        export(chars, out / "chars.arpa", to="arpa")
    assert not list(out.iterdir())


@pytest.mark.usefixtures("own_cache")
def test_the_command_trains_and_says_what_comes_next(text: Path, tmp_path: Path) -> None:
    command = ["train", "kneser-ney", f"data.train={text}", "model.order=2", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"everstep generate {tmp_path / 'run'}" in done.stdout
    looked = CliRunner().invoke(app, ["look", str(tmp_path / "run")])
    assert looked.exit_code == 2
    assert "cannot look; it can eval, score, generate, export" in looked.output


@pytest.mark.usefixtures("own_cache")
def test_a_damaged_table_is_refused(text: Path, tmp_path: Path) -> None:
    run = trained(text, tmp_path / "run")
    path = run.path / "ngrams.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"ngrams.safetensors is not the one that the run was begun with"):
        es.load(run.path)


@pytest.mark.usefixtures("own_cache")
def test_small_texts_need_fallback_discounts(text: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model.fallback_discounts"):
        trained(text, tmp_path / "run", "model.fallback_discounts=null")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("more", [["data.unit=chars", "data.sequence=stream"], ["data.sequence=documents"]])
def test_characters_and_streams(text: Path, tmp_path: Path, more: list[str]) -> None:
    run = trained(text, tmp_path / "run", *more)
    found = run.evaluate("test")
    assert found["bits_per_char"] < 2.5
    carried = scored(run, "carried", LINES, carried=True)
    stream = "data.sequence=stream" in more
    assert np.isclose(carried.nats.sum() / found["tokens"], found["loss"], rtol=1e-6) == stream
    assert np.allclose(carried.nats, scored(run, "alone", LINES).nats, rtol=1e-6) != stream
    assert int(carried.tokens.sum()) == found["tokens"]
    with pytest.raises(RunError, match=r"data.sequence=lines"):
        export(run, to="arpa")


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_how_far_an_arpa_file_is_read(
    run: Run, tmp_path: Path, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = export(run, tmp_path / "a {strange} [name].arpa", to="arpa")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    es.train("kneser-ney", tmp_path / "run", log=lambda line: None, overrides=[f"model.arpa={path}"])
    size = sum(map(int, re.findall(r"ngram \d=(\d+)", path.read_text())))
    shown = capsys.readouterr().err
    assert (f"reading {path.name}" in shown and f" {size} n-grams" in shown) == terminal
    assert terminal or not shown


@pytest.mark.usefixtures("own_cache")
def test_an_arpa_file_goes_out_and_in(run: Run, text: Path, tmp_path: Path) -> None:
    path = export(run, tmp_path / "counts.arpa", to="arpa")
    for unfit in ({"form": "step"}, {"precision": "int8"}):
        with pytest.raises(ConfigError, match="--to arpa has neither"):
            export(run, tmp_path / "other.arpa", to="arpa", **unfit)  # type: ignore[arg-type]
    other = es.train(
        "kneser-ney", tmp_path / "run", log=lambda line: None, overrides=[f"model.arpa={path}", f"data.test={text}"]
    )
    ours, theirs = run.score(LINES[:4]), other.score(LINES[:4])
    np.testing.assert_allclose([one.logp for one in ours], [one.logp for one in theirs], rtol=1e-5)
    assert other.task.splits() == ("test",)
    assert np.isclose(other.evaluate()["perplexity"], run.evaluate("test")["perplexity"], rtol=1e-5)
    with pytest.raises(RunError, match="has no form for --to onnx"):
        export(run, tmp_path / "onnx")


@pytest.mark.usefixtures("own_cache")
def test_runs_are_compared(run: Run, text: Path, tmp_path: Path) -> None:
    other = trained(text, tmp_path / "unigrams", "model.order=1")
    chars = trained(text, tmp_path / "chars", "data.unit=chars")
    command = ["compare", *(str(one.path) for one in (other, run)), "--mix", "--cache", "20", "--weights-on", str(text)]
    picture = tmp_path / "table.png"
    done = CliRunner().invoke(app, [*command, "--json", "--picture", str(picture)])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [row["name"] for row in rows if "+" not in row["name"]] == ["counts", "unigrams"]
    assert len(rows) == 6
    assert sum(row["adapted"] for row in rows) == 3
    assert rows == sorted(rows, key=lambda row: row["bits_per_char"])
    assert rows[0]["behind"] == 0
    by_name = {row["name"]: row for row in rows}
    assert by_name["unigrams"]["low"] > 0
    assert picture.stat().st_size > 5000
    assert np.isclose(by_name["counts"]["perplexity"], run.evaluate("test")["perplexity"], rtol=1e-6)
    shown = CliRunner().invoke(app, ["compare", str(chars.path), str(run.path), "--markdown"])
    assert shown.stdout.startswith("| run | bits/char |")
    assert len(shown.stdout.splitlines()) == 4
    assert f"{text}: {len(LINES)} lines, blank ones left out\n" in shown.stderr
    mixed = CliRunner().invoke(app, ["compare", str(chars.path), str(run.path), "--mix", "--weights-on", str(text)])
    assert mixed.exit_code == 2
    assert "mix models of one vocabulary" in mixed.output
    alone = CliRunner().invoke(app, ["compare", str(run.path), "--mix"])
    assert alone.exit_code == 2
    assert "two runs or more" in alone.output
    twice = CliRunner().invoke(app, ["compare", str(run.path), "--on", str(text), "--split", "valid"])
    assert twice.exit_code == 2
    assert "expected no --split" in twice.output
    product = CliRunner().invoke(app, ["compare", str(run.path), str(other.path), "--log-linear", "--carry"])
    assert "steps through each line by itself" in product.output
    asked = CliRunner().invoke(app, ["compare", str(run.path), str(other.path), "--mix"])
    assert "names a file data.valid; give the text with --weights-on FILE" in asked.output


@pytest.mark.usefixtures("own_cache")
def test_compared_lines_have_their_ends_whatever_the_tokens(run: Run, text: Path, tmp_path: Path) -> None:
    chars = trained(text, tmp_path / "chars", "data.unit=chars", "data.sequence=stream")
    assert chars.task.tokenizer.eos_id is None  # a line end is a character like any other
    found = [scored(one, name, LINES) for one, name in ((run, "words"), (chars, "chars"))]
    assert found[0].tokens.tolist() == [len(line.split()) + 1 for line in LINES]
    assert found[1].tokens.tolist() == [len(line) + 1 for line in LINES]
    assert found[1].ids[len(LINES[0])] == chars.task.tokenizer.newline_id


@pytest.mark.usefixtures("own_cache")
def test_one_line_is_compared_and_drawn(run: Run, text: Path, tmp_path: Path) -> None:
    assert "unknown words" in draw_compared(table([scored(run, "a", ["the zebra"])], ["the zebra"]), tmp_path / "a.png")
    other = trained(text, tmp_path / "unigrams", "model.order=1")
    for line in ("the", "a b", "the cat sat", "dog and log"):
        rows = table([scored(run, "a", [line]), scored(other, "b", [line])], [line])
        assert [row["low"] for row in rows] == [row["high"] for row in rows]
        draw_compared(rows, tmp_path / "one.png")


def test_counts_have_no_checkpoints_to_average(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is fitted without steps, so that it has no checkpoints"):
        average(run.path, 2, tmp_path / "mean", log=print)


@pytest.mark.usefixtures("own_cache")
def test_mixtures_need_the_same_tokens_in_both_texts_and_allow_lines_without_any(run: Run) -> None:
    one, other = scored(run, "a", LINES[:3]), scored(run, "b", LINES[:3])
    with pytest.raises(RunError, match="b cuts the lines into other tokens than a"):
        mixture([one, other], [one, scored(run, "b", LINES[:2])])
    swapped = list(one.symbols)
    cat, mat = swapped.index("cat"), swapped.index("mat")
    swapped[cat], swapped[mat] = "mat", "cat"
    stranger = replace(one, name="c", symbols=swapped)  # as many tokens, of other words
    with pytest.raises(RunError, match=r"c cuts the lines into other tokens than a, .* \('mat' where that has 'cat'\)"):
        mixture([one, stranger], [one, stranger])
    empty = replace(one, name="c", ids=one.ids[:0])  # of a job that does not give them
    assert mixture([one, empty], [one, empty]).nats == pytest.approx(one.nats)
    order = np.arange(len(one.symbols))[::-1]  # the same words with other numbers are the same words
    again = replace(one, symbols=[one.symbols[number] for number in order], ids=len(order) - 1 - one.ids)
    assert mixture([one, again], [one, again]).nats == pytest.approx(one.nats)
    bare = replace(one, tokens=np.array([len(one.logps), 0, 0]))
    assert mixture([bare, bare], [one, one]).nats == pytest.approx([one.nats.sum(), 0, 0])
