"""Results of a search: the perplexities of all cells in order, beside known cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator, NullFormatter

from everstep.look.style import COLOURS, DASHES, canvas, save


def search_words(results: Mapping[str, float], yardsticks: Sequence[str]) -> str:
    """The caption: how many random cells beat each known one."""
    random = [value for name, value in results.items() if name not in yardsticks]
    known = [name for name in yardsticks if name in results]
    better = [
        f"{sum(value < results[name] for value in random)} of {len(random)} did better than {name}" for name in known
    ]
    told = f": {', '.join(better)}" if better else ""
    return f"A dot below a line is a cell that did better{told}. Differences of a few per cent may be chance."


def draw_search(results: Mapping[str, float], yardsticks: Sequence[str], path: Path, diverged: int = 0) -> None:
    """Draw perplexities in rising order, with a line for each known cell; the folder is created.

    Args:
        results: the perplexity of each cell by name, including the known cells.
        yardsticks: the names of at most two known cells.
        path: the PNG to write.
        diverged: number of cells without a result, for the legend.
    """
    values = sorted(value for name, value in results.items() if name not in yardsticks)
    figure = canvas()
    axes = figure.subplots()
    label = f"{len(values)} random cells" + (f", {diverged} more diverged" if diverged else "")
    axes.scatter(range(1, len(values) + 1), values, s=40, color=COLOURS[0], label=label)
    for name, colour, dash in zip(yardsticks[:2], COLOURS[1:], DASHES, strict=False):
        if name in results:
            better = sum(value < results[name] for value in values)
            label = f"{name} {results[name]:,.1f} ({better} better)"
            axes.axhline(results[name], color=colour, linestyle=dash, linewidth=2.2, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(8))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("cells, the best first", fontsize=14)
    axes.set_ylabel("validation perplexity (lower is better)", fontsize=14)
    axes.tick_params(labelsize=12)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=13, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    save(figure, path)
