"""A model beside baselines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from everstep.look.style import COLOURS, canvas, save


def draw_rivals(values: Mapping[str, float], measure: str, path: Path, highest: bool = True) -> str:
    """Draw a measure of several models as bars, the first model in its own colour; returns the caption.

    Args:
        values: the measure of each model by name; the second model is chance level, also drawn as a line.
        measure: the name of the measure, for the axis.
        path: the PNG to write.
        highest: whether the highest is best, else the lowest. Values in [0, 1] of which the highest is best are shares.
    """
    share = highest and all(0 <= number <= 1 for number in values.values())

    def told(number: float) -> str:
        return f"{number:.1%}" if share else f"{number:.4g}"

    names, numbers = list(values), list(values.values())
    figure = canvas(1.8 + 0.55 * len(names), 11.0)
    axes = figure.subplots()
    colours = [COLOURS[1], *["#9aa5b1"] * (len(names) - 1)]
    bars = axes.barh(range(len(names)), numbers, color=colours, height=0.7)
    axes.axvline(numbers[1], color="black", linestyle=":", linewidth=1.5)
    behind = {"facecolor": "white", "linewidth": 0, "pad": 1}  # hides the line behind numbers
    axes.bar_label(bars, [told(number) for number in numbers], padding=5, fontsize=13, bbox=behind, zorder=3)
    axes.set_yticks(range(len(names)), names, fontsize=13)
    axes.invert_yaxis()
    axes.set_xlim(min(0, 1.15 * min(numbers)), 1.1 if share else max(0, 1.15 * max(numbers)))
    if share:
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"], fontsize=12)
    axes.set_xlabel(f"{measure} (dotted: {names[1]})", fontsize=14)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
    best = (max if highest else min)(names[1:], key=values.__getitem__)
    return f"The {measure}: {names[0]} {told(numbers[0])}; the best of the others, {best}, {told(values[best])}."
