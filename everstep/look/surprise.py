"""Next-token surprise over a text: each token coloured by −log₂ p, in bits."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from everstep.look import coloured_text
from everstep.look.coloured_text import Pairs, Piece
from everstep.look.style import canvas, save

# even in lightness, so that it reads the same in grey and for the colour-blind
COLOURS = colormaps["YlOrRd"]


def surprise_text(pairs: Pairs, to: Path | Axes, columns: int = 84, token: str = "token") -> None:
    """Draw a passage with each token coloured by its surprise.

    Args:
        pairs: the tokens' texts in order, each with its surprise in bits.
        to: the PNG to write, or axes to draw on (in a figure with `layout="constrained"`, drawn last).
        columns: most characters in a row.
        token: the name of a token, for the legend.
    """
    pieces = coloured_text.layout(pairs, columns)
    if isinstance(to, Axes):
        _draw(to, pieces, pairs, token)
        return
    width, height = coloured_text.inches(pieces)
    figure = canvas(height, width)
    _draw(figure.subplots(), pieces, pairs, token)
    save(figure, to)


def _draw(axes: Axes, pieces: Sequence[Piece], pairs: Pairs, token: str) -> None:
    scale = _scale(pairs)
    coloured_text.frame(axes, pieces)
    label = f"surprise of each {token}, −log₂ p in bits  (mean here {mean_bits(pairs):.2f})"
    coloured_text.legend(axes, scale, COLOURS, label)
    coloured_text.paint(axes, pieces, scale, COLOURS)


def _scale(pairs: Pairs) -> Normalize:
    """The scale from 0 to the 95 % quantile, so that outliers do not make the other tokens pale."""
    bits = sorted(bits for _, bits in pairs if math.isfinite(bits))
    top = bits[int(0.95 * (len(bits) - 1))] if bits else 1.0
    return Normalize(0, max(1.0, math.ceil(top)))


def mean_bits(pairs: Pairs) -> float:
    """The mean surprise in bits."""
    return sum(bits for _, bits in pairs) / len(pairs) if pairs else 0.0


def surprise_words(pairs: Pairs, token: str = "token") -> str:
    """The caption: mean surprise, also at starts of words and within words, and the largest surprise."""
    words = f"Dark is where the model did not expect the next {token}: {mean_bits(pairs):.2f} bits in the mean"
    starts, inside = _by_place(pairs)
    if token != "word" and starts and inside:
        words += f", {mean_bits(starts):.2f} at the starts of words and {mean_bits(inside):.2f} within them"
    if pairs:
        shown, most = max(pairs, key=lambda pair: pair[1])
        words += f"; the most, {most:.1f}, at {_quoted(shown)}"
    return f"{words}."


def _by_place(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """The tokens that begin a word, and those within a word."""
    starts: list[tuple[str, float]] = []
    inside: list[tuple[str, float]] = []
    before = " "
    for shown, bits in pairs:
        letters = shown.lstrip()
        if letters[:1].isalnum():
            begins = not before.isalnum() or letters != shown
            (starts if begins else inside).append((shown, bits))
        before = shown[-1:] or before
    return starts, inside


def _quoted(shown: str) -> str:
    named = {"\n": "a line's end", "<eos>": "a line's end", " ": "a space"}
    return named.get(shown) or f"“{shown.strip()}”"


def surprise_html(pairs: Pairs, to: Path, token: str = "token") -> None:
    """Write a self-contained page of the passage that shows each token's bits and probability on hovering."""
    scale = _scale(pairs)
    spans = []
    for shown, bits in pairs:
        colour = coloured_text.colour_of(bits, scale, COLOURS)
        style = f"background:{colour};color:{coloured_text.ink(colour)}"
        tip = f"{bits:.2f} bits, p = {2**-bits:.3g}"
        spans.append(f'<span style="{style}" title="{tip}">{coloured_text.shown(shown)}</span>')
    body = f"""<p>How surprised the model is by each {html.escape(token)}: −log₂ p in bits, given all before it; mean
{mean_bits(pairs):.2f}. Point at one to see its number.</p>
{coloured_text.bar(COLOURS, "0", f"{scale.vmax:g} bits and more")}
<pre>{"".join(spans)}</pre>"""
    coloured_text.write_page(to, "Surprise", body)
