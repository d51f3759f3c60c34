"""Measures of a validation are drawn in their own units: shares on one axis, each other measure on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from everstep.look import curves
from everstep.look.curves import learning_curves


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
