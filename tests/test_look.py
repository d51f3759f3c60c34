"""Pictures: what they read, how a passage is laid out, and that they are drawn at a size one can read."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from untrained import untrained

from everstep.errors import DataError, RunError
from everstep.look.coloured_text import Piece, layout
from everstep.look.curves import draw_curves, learning_curves, read_curves, smooth
from everstep.look.surprise import surprise_html, surprise_text
from everstep.runs.pictures import own_text, passage
from everstep.runs.run import Run


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    records = [{"step": s, "seconds": 6.0 * s, "loss": 2 / s, "epoch": 0.1} for s in range(1, 41)]
    records += [
        {"step": s, "seconds": 6.0 * s, "valid": math.log(2) * v} for s, v in ((10, 3.0), (20, 1.25), (40, 1.5))
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def size(path: Path) -> tuple[int, int]:
    height, width = imread(path).shape[:2]
    return width, height


def test_curves_are_read_in_bits(metrics: Path) -> None:
    curves = read_curves(metrics)
    assert len(curves.training) == 40
    assert curves.training[0] == pytest.approx((1, 0.1, 2 / math.log(2)))
    assert [bits for _, _, bits in curves.validation] == pytest.approx([3.0, 1.25, 1.5])


def test_curves_skip_what_a_crash_cut_short(metrics: Path) -> None:
    with metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 41, "loss": 0.0')
    assert len(read_curves(metrics).training) == 40
    with metrics.open("a", encoding="utf-8") as file:
        file.write('\n{"step": 41, "loss": NaN}\n[1]\nnull\n{"step": 42, "loss": 1.0}\n')
    assert [step for step, _, _ in read_curves(metrics).training][-1] == 42


def test_no_metrics_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"metrics.jsonl holds no loss yet"):
        learning_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n', encoding="utf-8")
    with pytest.raises(RunError, match="holds no loss yet"):
        learning_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_curves_as_a_picture(metrics: Path, tmp_path: Path) -> None:
    learning_curves(metrics, tmp_path / "deep" / "curves.png", "word")
    assert size(tmp_path / "deep" / "curves.png") == (1200, 600)


def test_axes_are_labelled_and_the_best_is_marked(metrics: Path) -> None:
    axes = Figure().subplots()
    draw_curves(axes, read_curves(metrics), "word")
    assert axes.get_ylabel() == "bits per word (lower is better)"
    assert axes.get_xlabel() == "optimizer steps   (4.0 minutes)"
    (best,) = axes.texts
    assert (best.get_text(), best.get_horizontalalignment()) == ("best 1.25", "left")
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["training (smoothed)", "validation"]


def test_the_best_at_the_right_edge_is_written_to_its_left(metrics: Path) -> None:
    curves = read_curves(metrics)
    curves.validation[:] = [(40, 4.0, 1.0)]
    axes = Figure().subplots()
    draw_curves(axes, curves)
    assert axes.texts[0].get_horizontalalignment() == "right"


@pytest.mark.parametrize("kinds", [("loss",), ("valid",)])
def test_one_curve_alone_of_one_point(kinds: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1} | dict.fromkeys(kinds, 1.0)), encoding="utf-8")
    learning_curves(path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_smoothing_keeps_length_and_mean_of_a_line() -> None:
    line = [float(i) for i in range(200)]
    assert smooth(line)[20:-20] == pytest.approx(line[20:-20])
    assert len(smooth(line)) == 200
    assert smooth([1.0, 5.0]) == [1.0, 5.0]


def test_layout_respects_newlines_and_wraps() -> None:
    pairs = [("ab", 1.0), ("c", 2.0), ("\n", 3.0), ("de", 4.0), ("fgh", 5.0), ("i\nj", 6.0)]
    assert layout(pairs, 4) == [
        Piece(0, 0, 2, "ab", 1.0),
        Piece(0, 2, 1, "c", 2.0),
        Piece(0, 3, 1, "↵", 3.0),
        Piece(1, 0, 2, "de", 4.0),
        Piece(2, 0, 3, "fgh", 5.0),
        Piece(3, 0, 2, "i↵", 6.0),
        Piece(4, 0, 1, "j", 6.0),
    ]


@pytest.mark.parametrize(
    ("token", "shown", "width"),
    [("\t", "  ", 2), ("\x00", "·", 1), ("日本", "日本", 4), ("é", "é", 1), ("<eos>", "↵", 1), ("", None, 0)],
)
def test_layout_of_odd_tokens(token: str, shown: str | None, width: int) -> None:
    pieces = layout([(token, 1.0)], 10)
    assert [(piece.text, piece.width) for piece in pieces] == ([] if shown is None else [(shown, width)])


def test_a_token_longer_than_a_row_is_cut() -> None:
    pieces = layout([("x" * 25, 1.0)], 10)
    assert [(piece.row, piece.column, len(piece.text)) for piece in pieces] == [(0, 0, 10), (1, 0, 10), (2, 0, 5)]


PAIRS = [(character, 0.5 + index % 7) for index, character in enumerate("To be, or <not> to be:\n$x$ & 日本\n\tThat")]


def test_surprise_picture(tmp_path: Path) -> None:
    surprise_text(PAIRS, tmp_path / "pictures" / "s.png")
    width, height = size(tmp_path / "pictures" / "s.png")
    assert width >= 600
    assert height >= 150


def test_letters_fill_their_cells_and_stay_inside() -> None:
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots()
    surprise_text([(character, 1.0) for character in "m" * 40], axes, columns=40)
    figure.draw_without_rendering()
    column = axes.get_window_extent().width / 52
    letter = axes.texts[0].get_window_extent().width
    assert 0.7 * column < letter < 1.05 * column


def test_one_impossible_token_is_drawn_and_does_not_pale_the_rest(tmp_path: Path) -> None:
    surprise_text([("a", 1.0)] * 50 + [("b", math.inf)], tmp_path / "s.png")
    surprise_html([("a", 1.0)] * 50 + [("b", 900.0)], tmp_path / "s.html")
    assert "1 bits and more" in (tmp_path / "s.html").read_text(encoding="utf-8")


def test_surprise_page_holds_the_text_and_its_numbers(tmp_path: Path) -> None:
    surprise_html(PAIRS, tmp_path / "s.html", "character")
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    body = page.partition("<pre>")[2].partition("</pre>")[0]
    text = unescape(re.sub(r"<[^>]*>", "", body))
    assert text.replace("↵", "") == "To be, or <not> to be:\n$x$ & 日本\n  That"
    assert 'title="0.50 bits, p = 0.707"' in body


# ------------------------------------------------------------------------------------------------- the passage of a run


def run_of(folder: Path, *recipe: str) -> Run:
    return untrained(folder, recipe[0], *TINY, *recipe[1:])


TINY = ("model.hidden_size=4", "model.embedding_size=3")


def read(run: Run, text: str | None = None, characters: int = 50) -> str:
    found = passage(run, text, characters)
    assert found is not None
    return "".join(found.labels)


def test_the_passage_is_whole_lines_from_the_held_out_text(tmp_path: Path) -> None:
    run = run_of(tmp_path, "shakespeare-minute")
    valid = "".join(run.task.texts.read("valid"))  # type: ignore[attr-defined]
    text = read(run, characters=300)
    assert 200 < len(text) <= 300
    assert text.endswith("\n")
    assert valid.lstrip("\n").startswith(text)


def test_the_passage_is_the_head_of_valid_or_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("the king\n" * 100, encoding="utf-8")
    run = run_of(tmp_path, "text-words", f"data.valid={tmp_path / 'v.txt'}", "model.tied=false")
    assert read(run) == "the king \n" * 5
    (tmp_path / "own.txt").write_text("no king", encoding="utf-8")
    assert read(run, own_text(run, tmp_path / "own.txt")) == "no king "
    with pytest.raises(DataError):
        own_text(run, tmp_path / "missing.txt")
    with pytest.raises(DataError, match="look: the passage is empty"):
        read(run, "\n\n")
    assert read(run_of(tmp_path, "shakespeare", "data.valid_fraction=0")).startswith("First Citizen:")


def test_words_are_set_apart_and_a_lower_bar_of_the_text_stays(tmp_path: Path) -> None:
    words = run_of(tmp_path, "text-words", "model.tied=false").passage("the king ▁\n", 20)
    assert list(words.labels) == ["the ", "king ", "<unk> ", "\n"]
    pieces = run_of(tmp_path, "shakespeare-minute").passage("to be", 20)
    assert list(pieces.labels) == list("to be")
    assert len(words.pairs) == len(words.labels) == len(words.places)
