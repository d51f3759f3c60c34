"""Sentences with words coloured by their tags."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.colors import ListedColormap, Normalize, to_hex
from matplotlib.patches import Patch

from everstep.look import coloured_text as text
from everstep.look.style import canvas, save

PALE = ListedColormap([(1.0, 1.0, 1.0), *colormaps["tab20"].colors[1::2], *colormaps["tab20"].colors[::2]])  # type: ignore[attr-defined]
"""White for words without a tag, then light colours, then dark ones."""


class Word(NamedTuple):
    """A word, its predicted tag, and its true tag if it is known and different; "" is none."""

    text: str
    tag: str
    truth: str | None = None


def tag_numbers(sentences: Sequence[Sequence[Word]]) -> dict[str, int]:
    """The colour index of each tag, most frequent first; "" has index 0."""
    tags = [word.tag for words in sentences for word in words if word.tag]
    order = sorted(set(tags), key=lambda tag: (-tags.count(tag), tag))
    return {"": 0, **{tag: 1 + place % (PALE.N - 1) for place, tag in enumerate(order)}}


def draw_tagged(sentences: Sequence[Sequence[Word]], to: Path, columns: int = 84) -> None:
    """Draw sentences with each word coloured by its predicted tag; a different true tag follows in brackets."""
    numbers = tag_numbers(sentences)
    laid: list[text.Piece] = []
    for words in sentences:
        row = laid[-1].row + 2 if laid else 0
        laid += [piece._replace(row=piece.row + row) for piece in text.layout(_spaced(words, numbers), columns)]
    width, height = text.inches(laid)
    lines = -(-len(numbers) // 6)
    figure = canvas(height + 0.3 * lines, width)
    axes = figure.subplots()
    text.frame(axes, laid)
    shown = [Patch(facecolor=_colour(number), label=tag) for tag, number in numbers.items() if tag]
    figure.legend(handles=shown, loc="outside lower left", ncols=6, fontsize=12, frameon=False)
    text.paint(axes, laid, Normalize(0, PALE.N - 1), PALE)
    save(figure, to)


def _spaced(words: Sequence[Word], numbers: Mapping[str, int]) -> list[tuple[str, float]]:
    """The words with spaces between them, which are coloured within a span alone."""
    found: list[tuple[str, float]] = []
    for word, following in zip(words, [*words[1:], None], strict=True):
        wrong = "" if word.truth is None else f"[{word.truth or 'none'}]"
        inside = following is not None and following.tag == word.tag
        found += [(f"{word.text}{wrong}", float(numbers[word.tag])), (" ", float(numbers[word.tag]) if inside else 0.0)]
    return found


def _colour(number: int) -> str:
    return to_hex(PALE(number))


def tagged_html(sentences: Sequence[Sequence[Word]], to: Path, title: str) -> None:
    """Write the sentences as an HTML page; errors are underlined, and hovering over a word shows its tag."""
    numbers = tag_numbers(sentences)
    key = " ".join(_marked(f"\u00a0{tag}\u00a0", number) for tag, number in numbers.items() if tag)
    lines = (" ".join(_spelled(word, numbers[word.tag]) for word in words) for words in sentences)
    body = [f"<h1>{html.escape(title)}</h1><p>{key}</p>", *(f"<pre>{line}</pre>" for line in lines)]
    text.write_page(to, html.escape(title), "\n".join(body))


def _spelled(word: Word, number: int) -> str:
    if word.truth is None:
        return _marked(word.text, number, word.tag or "no tag")
    told = f"{word.tag or 'no tag'}; it is {word.truth or 'none'}"
    return _marked(word.text, number, told, ";text-decoration:underline wavy #c00")


def _marked(shown: str, number: int, told: str = "", more: str = "") -> str:
    colour = _colour(number)
    style = f"background:{colour};color:{text.ink(colour)}{more}"
    return f'<span style="{style}" title="{html.escape(told)}">{text.shown(shown)}</span>'
