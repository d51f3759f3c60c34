"""Measures of a validation are drawn in their own units: shares on one axis, each other measure on its own."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from everstep.look import by_length, curves, rivals
from everstep.look.curves import curve_words, learning_curves
from everstep.runs.pictures import draw_beside


def test_unlike_measures_have_an_axis_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[dict[str, Any]] = [{"step": step, "seconds": 1.0 * step, "loss": 2 / step} for step in range(1, 9)]
    for step, accuracy, f1, perplexity in ((4, 0.5, 0.4, 90.0), (8, 0.9, 0.7, 30.0)):
        measures = {"valid.accuracy": accuracy, "valid.macro_f1": f1, "valid.perplexity": perplexity}
        records.append({"step": step, "seconds": 1.0 * step, "valid": 1 / step, **measures})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "save", lambda figure, to: figures.append(figure))
    learning_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", "text")
    loss, shares, perplexity_axes = figures[0].axes
    assert loss.get_ylabel() == "bits per text (lower is better)"
    drawn = [
        {str(line.get_label()): list(line.get_ydata()) for line in axes.lines} for axes in (shares, perplexity_axes)
    ]
    assert drawn == [{"accuracy": [0.5, 0.9], "macro f1": [0.4, 0.7]}, {"perplexity": [90.0, 30.0]}]


@pytest.mark.parametrize(
    ("select", "kept", "marks", "words"),
    [
        (None, 4, ["best 1.44"], "Validation was best at step 4, 1.44, and has risen to 2.89"),
        ("loss", 4, ["best 1.44"], "Validation was best at step 4"),
        ("valid.macro_f1", 8, ["kept 2.89", "best 0.70"], "lowest at step 4, 1.44, and has risen to 2.89"),
        ("accuracy", 4, ["kept 1.44", "best 0.50"], "Kept are the weights of step 4, where accuracy is best, 0.50."),
    ],
)
def test_the_weights_that_are_kept_are_marked(
    select: str | None, kept: int, marks: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[dict[str, Any]] = []
    for step, loss, accuracy, f1 in ((4, 1.0, 0.5, 0.4), (8, 2.0, 0.4, 0.7)):
        measures = {"valid": loss, "valid.accuracy": accuracy, "valid.macro_f1": f1}
        records.append({"step": step, "seconds": 1.0 * step, **measures, "best": step <= kept})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "save", lambda figure, to: figures.append(figure))
    found = learning_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", "text", select=select)
    texts = [text for axes in figures[0].axes for text in axes.texts]
    assert [text.get_text() for text in texts] == marks
    assert {text.xy[0] for text in texts if isinstance(text, Annotation)} == {kept}
    said = curve_words(found, "text")
    assert words in said
    assert ("Kept are" in said) == (len(marks) > 1)


def test_many_measures_have_room_and_steps_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measures = {f"valid.{name}": value for name, value in zip("abcdef", (0.5, 2, 3, 4, 5, 6), strict=True)}
    records = [{"step": step, "seconds": 1.0, "valid": 1.0, **measures} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "save", lambda figure, to: figures.append(figure))
    learning_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    (figure,) = figures
    figure.draw_without_rendering()
    _, *below = figure.axes
    boxes = [box for axes in below if (box := axes.get_tightbbox())]
    assert len(boxes) == 6
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))
    for axes in figure.axes:
        assert all(float(place).is_integer() for place in axes.get_xticks())


def test_one_loss_neither_falls_nor_stays() -> None:
    assert curve_words(curves.Curves(training=[(1, 0.1, 2.5)], validation=[(1, 0.1, 2.0)])) == (
        "The training loss was measured once: 2.50 bits per token. Validation was measured once: 2.00."
    )


def test_bars_of_nothing_stand_on_the_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(by_length, "save", lambda figure, to: figures.append(figure))
    for value, top in ((0.0, 1.0), (40.0, 42.0)):
        draw = [by_length.Group(1, 2, 9, value), by_length.Group(3, 3, 7, 0.0)]
        by_length.draw_by_length(draw, "BLEU", "words", tmp_path / "x.png")
        assert figures[-1].axes[0].get_ylim() == pytest.approx((0, top))


def test_of_several_splits_the_test_split_is_drawn_beside_rivals(tmp_path: Path) -> None:
    scores = {split: {"mae": 2.0, "rivals": [{"name": "naive", "mae": 3.0}]} for split in ("test", "valid")}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    run: Any = SimpleNamespace(path=tmp_path, task=SimpleNamespace(shown=("mae",), scores=()))
    told = "The mae on test: this run 2; the best of the others, naive, 3."
    assert draw_beside(run, tmp_path) == [(tmp_path / "rivals.png", told)]


def test_of_errors_the_lowest_is_best(tmp_path: Path) -> None:
    told = rivals.draw_rivals({"run": 0.3, "naive": 2.5, "other": 0.7}, "error", tmp_path / "errors.png", highest=False)
    assert told == "The error: run 0.3; the best of the others, other, 0.7."
    assert (tmp_path / "errors.png").exists()


def test_what_may_exceed_1_or_be_negative_is_no_share(tmp_path: Path) -> None:
    words = rivals.draw_rivals({"run": 500.0, "random": 23.5, "linear": 40.7}, "return", tmp_path / "returns.png")
    assert words == "The return: run 500; the best of the others, linear, 40.7."
    words = rivals.draw_rivals({"run": 0.9, "random": -0.4, "linear": 0.3}, "return", tmp_path / "returns.png")
    assert words == "The return: run 0.9; the best of the others, linear, 0.3."
    risen = curves.Curves(training=[(1, 0.1, -9.0), (2, 0.2, -480.0)], validation=[(1, 0.1, -500.0), (2, 0.2, -500.0)])
    assert "Validation has levelled off at -500.00" in curve_words(risen)
    assert "fell from -9.00 to -480.00" in curve_words(risen)


def test_no_number_beside_a_bar_is_crossed_by_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(rivals, "save", lambda figure, to: figures.append(figure))
    words = rivals.draw_rivals({"run": 0.9, "majority": 0.5, "bag": 0.48}, "accuracy", tmp_path / "rivals.png")
    assert words == "The accuracy: run 90.0%; the best of the others, majority, 50.0%."
    (axes,) = figures[0].axes
    figures[0].draw_without_rendering()
    (line,) = axes.lines
    at = line.get_window_extent().x0
    crossed = [text for text in axes.texts if text.get_window_extent().x0 < at < text.get_window_extent().x1]
    assert [text.get_text() for text in crossed] == ["48.0%"]
    for text in crossed:
        patch = text.get_bbox_patch()
        assert patch is not None
        assert to_hex(patch.get_facecolor()) == "#ffffff"
        assert text.get_zorder() > line.get_zorder()
