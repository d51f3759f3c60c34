"""Texts in any writing: from right to left, wide, with marks, and without a glyph on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from everstep.look import glyphs
from everstep.look.bidi import joined, seen
from everstep.look.coloured_text import Piece, clusters, layout
from everstep.look.surprise import surprise_html, surprise_text

A, B, C = "\u05d0", "\u05d1", "\u05d2"  # Hebrew
BEH, ALEF, DAL, KASRA = "\u0628", "\u0627", "\u062f", "\u0650"  # Arabic


def order(line: str) -> str:
    """The characters from left to right."""
    return "".join(character for _, character in seen(line))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("abc (x) 12.", "abc (x) 12."),
        (f"{A}{B}{C}", f"{C}{B}{A}"),
        (f"ab {A}{B} cd", f"ab {B}{A} cd"),
        (f"x = {A}{B}.", f"x = {B}{A}."),
        (f"{A}{B}.", f".{B}{A}"),
        (f"{A} 12 {B}", f"{B} 12 {A}"),
        (f"{A} 3,5 {B}", f"{B} 3,5 {A}"),
        (f"{A} abc 12 {B}", f"{B} abc 12 {A}"),
        (f"1 {A}", f"{A} 1"),
        (f"{A} ({B}) {C}", f"{C} ({B}) {A}"),
        (f"{A} ab (x).", f".ab (x) {A}"),
        (f"ab ({A} x) c", f"ab ({A} x) c"),
        (f"{A}) b", f"b ({A}"),
        ("", ""),
    ],
)
def test_a_line_is_set_in_the_order_in_which_it_is_seen(line: str, expected: str) -> None:
    assert order(line) == expected
    assert sorted(place for place, _ in seen(line)) == list(range(len(line)))


def test_arabic_letters_are_joined_to_those_that_join() -> None:
    initial, medial, final, alef_final = "\ufe91", "\ufe92", "\ufe90", "\ufe8e"
    assert joined(BEH * 3) == [initial, medial, final]
    assert joined(BEH + ALEF + BEH) == [initial, alef_final, BEH]  # alef joins nothing after it
    assert joined(f"{BEH} {BEH}") == [BEH, " ", BEH]
    assert joined([BEH + KASRA, BEH]) == [initial + KASRA, final]
    assert joined("ab") == ["a", "b"]


def test_numbers_stay_with_their_characters() -> None:
    found = layout([("a", 1.0), (A, 2.0), (B, 3.0), ("\n", 4.0), ("b", 5.0)], 10)
    assert [(piece.row, piece.column, piece.text, piece.value) for piece in found] == [
        (0, 0, "a", 1.0),
        (0, 1, B, 3.0),
        (0, 2, A, 2.0),
        (0, 3, "↵", 4.0),
        (1, 0, "b", 5.0),
    ]


def test_marks_stand_on_their_letters() -> None:
    assert clusters("e\u0301a") == ["e\u0301", "a"]
    assert clusters("\u0301a") == ["\u0301", "a"]
    assert clusters("\U0001f469\u200d") == ["\U0001f469\u200d"]
    assert layout([("e\u0301", 1.0)], 10) == [Piece(0, 0, 1, "e\u0301", 1.0)]
    assert [piece.width for piece in layout([("\u0939\u093f", 1.0)], 10)] == [2]  # a sign that takes room of its own


def texts(line: str) -> list[str]:
    axes = Figure(figsize=(12, 6), layout="constrained").subplots()
    surprise_text([(character, 1.0) for character in line], axes)
    return [text.get_text() for text in axes.texts]


def test_what_no_font_has_is_drawn_as_its_code_point(monkeypatch: pytest.MonkeyPatch) -> None:
    real = glyphs.font_of
    monkeypatch.setattr(glyphs, "font_of", lambda c: None if c in "\u4e2d\U0001f389" else real(c))
    assert texts("a\u4e2d\U0001f389") == ["a", "4E\n2D", "01F\n389"]
    words = glyphs.note("ab\u4e2d\u4e2d\U0001f389", "s.html")
    assert words == (
        " 2 characters are in no font of this machine and stand as code points in frames "
        "(\u4e2d is 4E2D, \U0001f389 is 1F389); s.html shows them."
    )
    assert glyphs.note(["\u4e2d"], "s.html").startswith(" 1 character is in no font of this machine and stands as ")
    assert glyphs.note(["every letter is here"], "s.html") == ""
    assert glyphs.missing(["\u4e2d\ufe0f \n\u200d"]) == ["\u4e2d"]


def test_a_font_that_has_a_character_is_found_and_one_of_boxes_is_not_taken() -> None:
    assert glyphs.font_of("a") == glyphs.usual()
    for character in (A, BEH, "€"):
        path = glyphs.font_of(character)
        assert path is not None
        assert glyphs.has(path, character)
    assert glyphs.font_of("\ue123") is None  # for private use: a font of last resort has it alone


def test_every_writing_is_drawn_without_a_warning(tmp_path: Path) -> None:
    text = f"na\u0308ive {A}{B} ({C})\n{BEH}{ALEF}{DAL}{KASRA}\n\u4e2d\u6587 \U0001f600\u200d \u0939\u093f\n\u0301"
    surprise_text([(character, 1.0) for character in text], tmp_path / "s.png")
    assert (tmp_path / "s.png").stat().st_size > 0
    assert texts(f"{A}{B}")[:2] == [B, A]


def test_a_page_lets_each_line_run_as_it_is_written(tmp_path: Path) -> None:
    surprise_html([(A, 1.0), ("\u200d", 1.0), (B, 1.0)], tmp_path / "s.html")
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert "unicode-bidi: plaintext" in page
    assert page.index(A) < page.index("\u200d") < page.index(B)  # the browser sets it
