"""Next-token surprise over a text: each token on a colour that says how many bits it cost, −log₂ p."""

from __future__ import annotations

import html
import math
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

Pairs = Sequence[tuple[str, float]]  # (text of a token, bits)

# from light to dark at even steps of lightness: reads the same in grey and to the colour-blind
COLOURS = colormaps["YlOrRd"]
LINE_END = "↵"
CELL, TALL = 0.125, 2.1  # a character's width in inches, and how many times higher a row is
NARROWEST = 52


class Piece(NamedTuple):
    """A token, or its part in one line, laid out in the grid."""

    row: int
    column: int
    width: int
    text: str
    bits: float


def layout(pairs: Pairs, columns: int) -> list[Piece]:
    """The tokens in a grid of `columns`: a newline ends its row (and shows as ↵), a long line is wrapped."""
    pieces: list[Piece] = []
    row = column = 0
    for token, bits in pairs:
        for text, ends_line in _parts(token):
            width = sum(map(_width, text.rstrip()))
            if column and column + width > columns:
                row, column = row + 1, 0
            for part in (text[i : i + columns] for i in range(0, len(text), columns)):
                width = sum(map(_width, part))
                if column + width > columns + 1:
                    row, column = row + 1, 0
                pieces.append(Piece(row, column, width, part, bits))
                column += width
            if ends_line:
                row, column = row + 1, 0
    return pieces


def _parts(token: str) -> Iterator[tuple[str, bool]]:
    """A token's lines, each with whether a newline ends it; what cannot be printed shows as a dot."""
    lines = ("\n" if token == "<eos>" else token).replace("\t", "  ").split("\n")
    for index, line in enumerate(lines):
        shown = "".join(c if c.isprintable() else "·" for c in line)
        ends_line = index < len(lines) - 1
        if shown or ends_line:
            yield shown + LINE_END * ends_line, ends_line


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def surprise_text(pairs: Pairs, to: Path | Axes, columns: int = 84, token: str = "token") -> None:
    """Draw a passage with each token coloured by its surprise.

    Args:
        pairs: the tokens' texts in order, each with its surprise in bits.
        to: the PNG to write, or axes to draw on (of a figure with `layout="constrained"`, the last thing drawn on it).
        columns: characters in a row at most.
        token: what one token is, for the legend.
    """
    pieces = layout(pairs, columns)
    if isinstance(to, Axes):
        _draw(to, pieces, pairs, token)
        return
    rows, used = _size(pieces)
    figure = Figure(figsize=(used * CELL + 0.3, rows * CELL * TALL + 1.1), dpi=100, layout="constrained")
    _draw(figure.subplots(), pieces, pairs, token)
    save(figure, to)


def save(figure: Figure, path: Path) -> None:
    """Write a picture that holds a passage; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _any_script():
        figure.savefig(path)


@contextmanager
def _any_script() -> Iterator[None]:
    """Without warnings on characters that the font lacks: they show as boxes, and the HTML has them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _size(pieces: Sequence[Piece]) -> tuple[int, int]:
    """Rows and columns that the passage takes, wide enough for the legend."""
    return (
        max((piece.row for piece in pieces), default=0) + 1,
        max(NARROWEST, max((piece.column + piece.width for piece in pieces), default=0)),
    )


def _draw(axes: Axes, pieces: Sequence[Piece], pairs: Pairs, token: str) -> None:
    scale = _scale(pairs)
    rows, used = _size(pieces)
    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    axes.set_axis_off()
    axes.set(xlim=(0, used), ylim=(rows, 0))
    axes.set_aspect(TALL, adjustable="box", anchor="NW")
    mappable = ScalarMappable(scale, COLOURS)
    bar = figure.colorbar(mappable, ax=axes, location="bottom", aspect=50, shrink=0.95, pad=0.02, panchor=False)
    bar.set_label(f"surprise of each {token}, −log₂ p in bits  (mean here {mean_bits(pairs):.2f})", fontsize=13)
    bar.ax.tick_params(labelsize=12)
    with _any_script():
        figure.draw_without_rendering()  # lays the axes out: how wide a column is says how big the letters are
    points = axes.get_window_extent().width / used * 72 / figure.dpi / 0.602  # a character is 0.602 em wide
    for piece in pieces:
        colour = COLOURS(scale(min(piece.bits, scale.vmax or 1)))
        axes.add_patch(Rectangle((piece.column, piece.row), piece.width, 1, facecolor=colour, linewidth=0))
        column = piece.column
        for character in piece.text:
            axes.text(
                column + _width(character) / 2,
                piece.row + 0.54,
                character,
                family="DejaVu Sans Mono",
                fontsize=points,
                color=_ink(piece.bits, scale),
                alpha=0.45 if character == LINE_END else 1,
                ha="center",
                va="center_baseline",
                parse_math=False,
            )
            column += _width(character)


def _scale(pairs: Pairs) -> Normalize:
    """From 0 to what all but a twentieth of the tokens stay below, so that one odd token does not pale the rest."""
    bits = sorted(bits for _, bits in pairs if math.isfinite(bits))
    top = bits[int(0.95 * (len(bits) - 1))] if bits else 1.0
    return Normalize(0, max(1.0, math.ceil(top)))


def _ink(bits: float, scale: Normalize) -> str:
    red, green, blue, _ = COLOURS(scale(min(bits, scale.vmax or 1)))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def mean_bits(pairs: Pairs) -> float:
    """Mean surprise."""
    return sum(bits for _, bits in pairs) / len(pairs) if pairs else 0.0


def surprise_html(pairs: Pairs, to: Path, token: str = "token") -> None:
    """The same as a page of its own, with each token's bits and probability on hovering."""
    scale = _scale(pairs)
    spans = []
    for text, bits in pairs:
        colour = to_hex(COLOURS(scale(min(bits, scale.vmax or 1))))
        shown = "".join(part + "\n" * ends for part, ends in _parts(text))
        tip = f"{bits:.2f} bits, p = {2**-bits:.3g}"
        spans.append(
            f'<span style="background:{colour};color:{_ink(bits, scale)}" title="{tip}">{html.escape(shown)}</span>'
        )
    steps = [to_hex(COLOURS(i / 10)) for i in range(11)]
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Surprise</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; }}
pre {{ font: 15px/1.6 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
.bar {{ height: 1em; background: linear-gradient(to right, {", ".join(steps)}); }}
.ends {{ display: flex; justify-content: space-between; }}
</style>
<p>How surprised the model is by each {html.escape(token)}: −log₂ p in bits, given all before it; mean
{mean_bits(pairs):.2f}. Point at one to see its number.</p>
<div class="bar"></div><div class="ends"><span>0</span><span>{scale.vmax:g} bits and more</span></div>
<pre>{"".join(spans)}</pre>
</html>
"""
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(page, encoding="utf-8")
