"""Several models on one text, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from everstep.look.style import COLOURS, canvas, save


def draw_compared(rows: Sequence[Mapping[str, Any]], path: Path) -> str:
    """Draw bits a character, or step, of several models as bars, the best first; returns the caption.

    Args:
        rows: name, unit, bits_per_UNIT, lower_bound, perplexity, adapted, and behind with low and high: bits a unit
            above the best.
        path: the PNG to write.
    """
    figure = canvas(1.8 + 0.75 * len(rows), 12.0)
    axes = figure.subplots()
    unit = {"char": "character"}.get(rows[0]["unit"], rows[0]["unit"])
    values = [_value(row) for row in rows]
    colours = [COLOURS[1] if row["adapted"] else COLOURS[0] for row in rows]
    axes.barh(range(len(rows)), values, color=colours, height=0.62)
    base = values[0]
    ends = [(row["behind"] - row["low"], row["high"] - row["behind"]) for row in rows]
    spread = [[max(end, 0.0) for end in side] for side in zip(*ends, strict=True)]  # rounding may fall below 0
    axes.errorbar(values, range(len(rows)), xerr=spread, fmt="none", ecolor="black", capsize=4)
    for place, row in enumerate(rows):
        end = max(_value(row), base + row["high"])
        told = f"  {_bits(row)}   (perplexity {row['perplexity']:,.1f})"
        axes.text(end, place, told, va="center", fontsize=13)
    axes.set_yticks(range(len(rows)), [fill(row["name"], 34) for row in rows], fontsize=13)
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.4)
    axes.set_xlabel(f"bits a {unit}; lines: 95 % of the difference to the best", fontsize=14)
    axes.tick_params(axis="x", labelsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
    orange = "; orange: adapted to the text before each token" if any(row["adapted"] for row in rows) else ""
    bound = "; ≥: unknown words are not spelled" if any(row["lower_bound"] for row in rows) else ""
    return f"Bits a {unit}, lowest first: {rows[0]['name']} {_bits(rows[0])}{bound}{orange}."


def _value(row: Mapping[str, Any]) -> float:
    return float(row[f"bits_per_{row['unit']}"])


def _bits(row: Mapping[str, Any]) -> str:
    return f"{'≥ ' if row['lower_bound'] else ''}{_value(row):.3f}"
