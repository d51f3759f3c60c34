"""Measures of a validation are drawn in their own units: shares on one axis, each other measure on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from everstep.look import curves, rivals
from everstep.look.curves import curve_words, learning_curves


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


def test_of_errors_the_lowest_is_best(tmp_path: Path) -> None:
    told = rivals.draw_rivals({"run": 0.3, "naive": 2.5, "other": 0.7}, "error", tmp_path / "errors.png", share=False)
    assert told == "The error: run 0.3; the best of the others, other, 0.7."
    assert (tmp_path / "errors.png").exists()


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
