"""A passage as a picture, each token coloured by a number; shared by all pictures of texts."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, to_hex
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.patches import Rectangle

from everstep.look import bidi, glyphs

Pairs = Sequence[tuple[str, float]]  # (text of a token, its number)

LINE_END = "↵"
CELL, TALL = 0.125, 2.1  # width of a character in inches, and height of a row relative to it
NARROWEST = 52
JOINERS = "\u200c\u200d"
"""Invisible characters that separate or join letters."""


class Piece(NamedTuple):
    """A token, or its part in one line, with its position in the grid."""

    row: int
    column: int
    width: int
    text: str
    value: float


def layout(pairs: Pairs, columns: int) -> list[Piece]:
    """Place the tokens in a grid of `columns`: a newline ends its row (shown as ↵), long lines are wrapped.

    Right-to-left text is placed in visual order, one piece per character.
    """
    pieces: list[Piece] = []
    row = column = 0
    for token, value in pairs:
        for text, ends_line in parts(token):
            width = _wide(text.rstrip())
            if column and column + width > columns:
                row, column = row + 1, 0
            for part in (text[i : i + columns] for i in range(0, len(text), columns)):
                width = _wide(part)
                if column + width > columns + 1:
                    row, column = row + 1, 0
                pieces.append(Piece(row, column, width, part, value))
                column += width
            if ends_line:
                row, column = row + 1, 0
    return [piece for _, line in groupby(pieces, lambda piece: piece.row) for piece in _as_seen(list(line))]


def _as_seen(line: list[Piece]) -> list[Piece]:
    """The pieces of a row in visual order."""
    cells = [(cluster, piece.value) for piece in line for cluster in clusters(piece.text)]
    order = bidi.seen([cluster for cluster, _ in cells])
    if [place for place, _ in order] == list(range(len(cells))):
        return line
    column, found = 0, []
    for place, text in order:
        found.append(Piece(line[0].row, column, _wide(text), text, cells[place][1]))
        column += found[-1].width
    return found


def parts(token: str) -> Iterator[tuple[str, bool]]:
    """The lines of a token, each with whether a newline ends it; unprintable characters become dots."""
    lines = ("\n" if token == "<eos>" else token).replace("\t", "  ").split("\n")
    for index, line in enumerate(lines):
        shown = "".join(c if c.isprintable() or c in JOINERS else "·" for c in line)
        ends_line = index < len(lines) - 1
        if shown or ends_line:
            yield shown + LINE_END * ends_line, ends_line


def clusters(text: str) -> list[str]:
    """Characters with their combining marks; an entry that begins with a mark has no base character."""
    found: list[str] = []
    for character in text:
        if found and _on_another(character):
            found[-1] += character
        else:
            found.append(character)
    return found


def _on_another(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Me") or character in JOINERS


def _wide(text: str) -> int:
    """The number of columns of a text."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text if not _on_another(c))


def size(pieces: Sequence[Piece]) -> tuple[int, int]:
    """Rows and columns of the passage, wide enough for the legend."""
    return (
        max((piece.row for piece in pieces), default=0) + 1,
        max(NARROWEST, max((piece.column + piece.width for piece in pieces), default=0)),
    )


def inches(pieces: Sequence[Piece]) -> tuple[float, float]:
    """Width and height in inches of a picture of the passage and its legend."""
    rows, used = size(pieces)
    return used * CELL + 0.3, rows * CELL * TALL + 1.1


def legend(axes: Axes, scale: Normalize, colours: Colormap, label: str) -> None:
    """Draw a colour bar under a passage."""
    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    mappable = ScalarMappable(scale, colours)
    bar = figure.colorbar(mappable, ax=axes, location="bottom", aspect=50, shrink=0.95, pad=0.02, panchor=False)
    bar.set_label(label, fontsize=13)
    bar.ax.tick_params(labelsize=12)


def frame(axes: Axes, pieces: Sequence[Piece]) -> None:
    """Set up axes as the grid of the pieces."""
    rows, used = size(pieces)
    axes.set_axis_off()
    axes.set(xlim=(0, used), ylim=(rows, 0))
    axes.set_aspect(TALL, adjustable="box", anchor="NW")


def paint(axes: Axes, pieces: Sequence[Piece], scale: Normalize, colours: Colormap) -> None:
    """Draw the letters on their colours. Call it last, since the width of the axes determines the size of letters."""
    _, used = size(pieces)
    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    if not isinstance(figure.get_layout_engine(), PlaceHolderLayoutEngine):
        figure.draw_without_rendering()  # computes the layout before letters are added, which make it slow
        figure.set_layout_engine("none")
    points = axes.get_window_extent().width / used * 72 / figure.dpi / 0.602  # a character is 0.602 em wide
    for piece in pieces:
        colour = colour_of(piece.value, scale, colours)
        axes.add_patch(Rectangle((piece.column, piece.row), piece.width, 1, facecolor=colour, linewidth=0))
        column = piece.column
        for cluster in clusters(piece.text):
            width = _wide(cluster)
            _write(axes, cluster, column + (width / 2 or -0.5), piece.row, points, ink(colour))
            column += width


def _write(axes: Axes, cluster: str, x: float, row: int, points: float, colour: str) -> None:
    """Draw a character with its marks in its cell; if no font has it, its code point in a frame."""
    if cluster.isspace() or cluster in JOINERS:
        return
    found = glyphs.font_of(cluster[0])
    how: dict[str, Any] = {"color": colour, "ha": "center", "va": "center_baseline", "parse_math": False}
    if found is None:
        half = _wide(cluster) / 2 - 0.08
        frame = Rectangle((x - half, row + 0.06), 2 * half, 0.88, facecolor="none", edgecolor=colour, linewidth=0.6)
        axes.add_patch(frame)
        size = points * (0.42 if half > 0.5 else 0.27)
        font = FontProperties(family=glyphs.USUAL[0], size=size)
        number = glyphs.code_point(cluster[0])
        axes.text(x, row + 0.5, number, fontproperties=font, linespacing=0.95, **{**how, "va": "center"})
        return
    narrow = 1 if found == glyphs.usual() or _wide(cluster) > 1 else 0.85
    font = FontProperties(fname=found, size=points * narrow)
    text = "".join(character for character in cluster if glyphs.has(found, character))
    axes.text(x, row + 0.54, text, fontproperties=font, alpha=0.45 if cluster == LINE_END else 1, **how)


def colour_of(value: float, scale: Normalize, colours: Colormap) -> str:
    """The colour of a number as #rrggbb, clipped to the ends of the scale."""
    assert scale.vmin is not None
    assert scale.vmax is not None
    return to_hex(colours(float(scale(min(max(value, scale.vmin), scale.vmax)))))


def ink(colour: str) -> str:
    """The text colour on a background: black on light colours, white on dark ones."""
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def shown(token: str) -> str:
    """A token as escaped HTML."""
    return html.escape("".join(part + "\n" * ends for part, ends in parts(token)))


def spans(pairs: Pairs, scale: Normalize, colours: Colormap, tip: str) -> str:
    """Tokens coloured by their numbers, as HTML; `tip` is the format of a number shown on hovering."""
    found = []
    for token, value in pairs:
        colour = colour_of(value, scale, colours)
        style = f"background:{colour};color:{ink(colour)}"
        found.append(f'<span style="{style}" title="{tip.format(value)}">{shown(token)}</span>')
    return "".join(found)


def bar(colours: Colormap, low: str, high: str) -> str:
    """A colour bar from `low` to `high`, as HTML."""
    steps = ", ".join(to_hex(colours(i / 10)) for i in range(11))
    return (
        f'<div style="height:1em;background:linear-gradient(to right, {steps})"></div>'
        f'<div style="display:flex;justify-content:space-between"><span>{low}</span><span>{high}</span></div>'
    )


def write_page(to: Path, title: str, body: str) -> None:
    """Write a self-contained HTML page; its folder is created."""
    to.parent.mkdir(parents=True, exist_ok=True)
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; }}
pre {{ font: 15px/1.6 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere;
unicode-bidi: plaintext; }}
</style>
{body}
</html>
"""
    to.write_text(page, encoding="utf-8", newline="\n")
