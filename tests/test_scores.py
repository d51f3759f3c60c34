"""Scores say what unknown words hide, and lines are read as training reads text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from caches import cache_in
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app
from everstep.errors import DataError
from everstep.runs.compared_runs import scored
from everstep.runs.run import Run

SIZES = [
    "model.hidden_size=8",
    "model.embedding_size=8",
    "train.max_minutes=null",
    "train.max_steps=2",
    "objective.k1=8",
]
WORDS = ["data.unit=words", "data.min_count=1"]
KNOWN = "the king is dead and the king lives\n" * 60
BOUNDS = ["bits_per_char", "bits_per_byte", "word_perplexity"]


def trained(folder: Path, name: str, train: str, valid: str, *more: str) -> Run:
    for split, text in (("train", train), ("valid", valid)):
        (folder / f"{name}.{split}").write_text(text, "utf-8")
    files = [f"data.train={folder}/{name}.train", f"data.valid={folder}/{name}.valid", "train.batch_size=4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERSTEP_CACHE", cache_in(folder))
        return es.train("shakespeare-minute", folder / name, lambda _: None, overrides=[*SIZES, *files, *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scores")


@pytest.fixture(scope="module")
def strange(folder: Path) -> Run:
    """Of 20 words and line ends of its held-out text 18 are unknown."""
    return trained(folder, "strange", KNOWN, "zounds " * 18 + "king\n", *WORDS)


@pytest.fixture(scope="module")
def chars(folder: Path) -> Run:
    return trained(folder, "chars", KNOWN, "the king is dead\n" * 4)


def call(*args: str, stdin: bytes = b"") -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(args), input=stdin)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_what_unknown_words_hide_is_told(strange: Run) -> None:
    scores = strange.evaluate("valid")
    assert (scores["tokens"], scores["unknown"], scores["unknown_share"]) == (20, 18, 0.9)
    assert scores["lower_bounds"] == BOUNDS
    whole = json.loads(call("eval", str(strange.path), "--split", "valid", "--json")[1])
    assert (whole["unknown_share"], whole["lower_bounds"]) == (0.9, BOUNDS)
    rows = call("eval", str(strange.path), "--split", "valid")[1].splitlines()
    marked = {row.split("≥")[0].strip() for row in rows if "≥" in row}
    assert marked == {"bits per char", "bits per byte", "word perplexity"}
    assert all("90.00% of the tokens are <unk>" in row for row in rows if "≥" in row)
    card = (strange.path / "README.md").read_text("utf-8")
    assert "90.00% of the tokens are <unk>" in card
    assert card.count("| ≥ ") == 3


def test_the_end_of_training_tells_it(strange: Run, folder: Path) -> None:
    said: list[str] = []
    again = [*SIZES, *WORDS, f"data.train={folder}/strange.train", f"data.valid={folder}/strange.valid"]
    es.train("shakespeare-minute", folder / "again", said.append, overrides=[*again, "train.batch_size=4"])
    assert said[-1].startswith("valid: ")
    assert "≥ " in said[-1]
    assert said[-1].endswith("(90.00% of the tokens are <unk>)")


def test_an_unk_that_the_text_says_hides_nothing(folder: Path) -> None:
    run = trained(folder, "ptb", KNOWN + "the <unk> is <unk>\n", "the <unk> lives\n<unk>\n", *WORDS)
    scores = run.evaluate("valid")
    assert scores["unknown"] == 2
    assert "lower_bounds" not in scores
    mixed = trained(folder, "mixed", KNOWN, "the <unk> lives\nzounds\n", *WORDS).evaluate("valid")
    assert (mixed["unknown"], mixed["lower_bounds"]) == (2, BOUNDS)


def test_where_nothing_is_unknown_nothing_is_marked(chars: Run, folder: Path) -> None:
    assert not {"unknown", "unknown_share", "lower_bounds"} & set(chars.evaluate("valid"))
    known = trained(folder, "known", KNOWN, "the king\n", *WORDS)
    assert known.evaluate("valid")["unknown_share"] == 0
    assert "lower_bounds" not in known.evaluate("valid")
    assert "≥" not in call("eval", str(known.path), "--split", "valid")[1] + (known.path / "README.md").read_text()


def test_scored_lines_count_their_unknown_words(strange: Run, chars: Run) -> None:
    assert [score.unknown for score in strange.score(["zounds king", "the king", "", "a b c"])] == [1, 0, 0, 3]
    assert chars.score(["the king"])[0].unknown is None
    code, out, told = call("score", str(strange.path), "--json", stdin=b"zounds king\nthe king\n")
    assert (code, [json.loads(row)["unknown"] for row in out.splitlines()]) == (0, [1, 0])
    assert "note: 1 of 6 tokens (16.67%) is <unk>; the probability is that of any unknown word" in told
    assert "note" not in call("score", str(strange.path), stdin=b"the king\n")[2]
    assert "unknown" not in json.loads(call("score", str(chars.path), "--json", stdin=b"the king\n")[1])


def test_lines_in_order_are_scored_as_the_text_is(strange: Run, chars: Run) -> None:
    for run, text in ((strange, ["zounds " * 18 + "king"]), (chars, ["the king is dead"] * 4)):
        ((carried, alone), told) = ([scored(run, "", text, carried=c) for c in (True, False)], run.evaluate("valid"))
        assert carried.tokens.tolist() == alone.tokens.tolist()
        assert carried.nats.sum() / told["tokens"] == pytest.approx(told["loss"], rel=1e-5)
        assert carried.nats[0] == pytest.approx(alone.nats[0], rel=1e-5)
        assert carried.nats[1:] != pytest.approx(alone.nats[1:], rel=1e-6) or len(text) == 1


@pytest.mark.parametrize("lines", ["the king", b"the king", ["the king", b"dead"], [None], "", ("the", 1)])
def test_what_is_no_list_of_lines_is_refused(chars: Run, lines: object) -> None:
    with pytest.raises(TypeError, match=r"score: expected a list of lines, such as \["):
        chars.score(lines)  # type: ignore[arg-type]


def test_any_sequence_of_lines_is_scored(chars: Run) -> None:
    wanted = [score.logp for score in chars.score(["the king", "dead"])]
    assert [score.logp for score in chars.score(("the king", "dead"))] == wanted
    assert chars.score([]) == []


def test_lines_are_scored_as_they_are_read_in_training(chars: Run, strange: Run) -> None:
    for run in (chars, strange):
        plain = call("score", str(run.path), stdin=b"the king\nis dead\n")
        for odd in (b"\xef\xbb\xbfthe king\ris dead\n", b"the king\r\nis dead\r\n", b"the king\ris dead"):
            assert call("score", str(run.path), stdin=odd) == plain
        (one, two) = run.score(["\ufeffthe king\r\n", "is dead\r"])
        assert [one.logp, two.logp] == [score.logp for score in run.score(["the king", "is dead"])]
    split = strange.score(["the\u2028king\x0cis\x85dead"])[0]
    assert (split.tokens, split.unknown) == (5, 0)  # white space between words, no line's end


def test_a_mark_within_the_lines_is_a_symbol_as_in_training(chars: Run) -> None:
    with pytest.raises(DataError, match=r"line 2, column 1: '\\ufeff'"):
        chars.score(["the king", "\ufeffdead"])


def test_lines_are_in_the_encoding_of_the_recipe(folder: Path) -> None:
    (folder / "latin.txt").write_bytes("café au lait\n".encode("latin-1") * 100)
    overrides = [*SIZES, f"data.train={folder}/latin.txt", "data.encoding=latin-1", "train.batch_size=2"]
    run = es.train("shakespeare-minute", folder / "latin", lambda _: None, overrides=overrides)
    code, out, told = call("score", str(run.path), stdin="café\n".encode("latin-1"))
    assert (code, out.split("\t")[2]) == (0, "café\n")
    assert "read as latin-1" in told
    again = call("score", str(run.path), "--encoding", "utf-8", stdin="café\n".encode())
    assert again == (0, out, "")
    code, _, told = call("score", str(run.path), "--encoding", "utf-8", stdin="café\n".encode("latin-1"))
    assert code == 2
    assert "line 1: expected UTF-8; byte 4 of it (0xe9) is not" in told
    assert "--encoding cp1252" in told


def test_the_bound_is_one(strange: Run) -> None:
    """p(<unk>) is at least that of any word that it stands for, so less than what is printed cannot be."""
    scores = strange.evaluate("valid")
    line = strange.score(["zounds " * 18 + "king"])[0]
    assert scores["nats_per_token"] * 20 == pytest.approx(-line.logp, rel=1e-4)
    assert scores["bits_per_char"] == pytest.approx(-line.logp / math.log(2) / len("zounds " * 18 + "king\n"), rel=1e-4)
