"""Pictures of units that encode properties of a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from everstep.look.gates import Activity
    from everstep.look.over_passages import Bar
    from everstep.look.passage import Passage
    from everstep.look.units import Telling

CHARACTERS, SHOWN_CHARACTERS = 6000, 600
"""Characters on which units are measured, and in the picture."""
SHOWN = 3
REMEMBERED = "inside quotes", "position in the line", "depth of brackets"


def draw(found: Passage, out: Path, model: nn.Module, bar: Bar) -> list[tuple[Path, str]]:
    """Draw a table of units that encode properties of the text, and the best of them over a passage."""
    from everstep.look.units import PROPERTIES, predictive_units, table, table_words

    if not has_units(found):
        return []
    tokens, seen = read(found)
    whole, ends = _ends(tokens)
    rows: dict[str, Sequence[Telling] | str] = {}
    targets: dict[str, list[float]] = {}
    for name, measure in PROPERTIES.items():
        numbers = measure(whole)
        targets[name] = [numbers[end] for end in ends]
        try:
            rows[name] = predictive_units(seen, targets[name], count=SHOWN)
        except ValueError as reason:
            rows[name] = str(reason).removeprefix("predictive_units: ").split(",")[0]
    (out / "properties.md").parent.mkdir(parents=True, exist_ok=True)
    (out / "properties.md").write_text(table(rows), encoding="utf-8", newline="\n")
    drawn = [(out / "properties.md", table_words(rows, len(tokens), found.shown))]
    known = {name: units[0] for name, units in rows.items() if not isinstance(units, str)}
    # any unit can encode the current letter; properties that depend on earlier letters need memory
    known = {name: best for name, best in known.items() if name in REMEMBERED} or known
    if known:
        name = max(known, key=lambda key: (known[key].much != "not", abs(known[key].correlation)))
        drawn += _draw_property(tokens, seen, known[name], targets[name], name, out)
    return drawn


def _draw_property(
    tokens: list[str], found: list[Activity], best: Telling, target: list[float], name: str, out: Path
) -> list[tuple[Path, str]]:
    """Draw a unit and a property over a passage of the second half, which did not select the unit."""
    from everstep.look.glyphs import note
    from everstep.look.units import property_html, property_text, property_words

    half = len(tokens) // 2
    start = next((place + 1 for place in range(half, len(tokens) - 1) if tokens[place].endswith("\n")), half)
    part = slice(start, start + fitting(tokens[start:], SHOWN_CHARACTERS))
    shown = [activity.at(part) for activity in found]
    property_text(tokens[part], shown, best, target[part], name, out / "property.png")
    property_html(tokens[part], shown, best, target[part], name, out / "property.html")
    return [
        (out / "property.png", property_words(best, name) + note(tokens[part], "property.html")),
        (out / "property.html", "The same in a browser; point at it to see each value."),
    ]


def fitting(tokens: Sequence[str], characters: int) -> int:
    """The number of tokens to show: whole lines if possible."""
    length, best = 0, 0
    for place, token in enumerate(tokens, 1):
        length += len(token)
        if length > characters:
            return best or place - 1 or 1
        if token.endswith("\n"):
            best = place
    return len(tokens)


def has_units(given: Passage) -> bool:
    """Whether the model of the passage has a state with more than one unit."""
    from everstep.look.trajectory import real

    return any(leaf.dim() > 1 for _, leaf in real(given.body.initial_state(1, given.inputs)))


def read(given: Passage) -> tuple[list[str], list[Activity]]:
    """The pieces of a passage, and the activity of every layer with units after each piece."""
    import torch

    from everstep.look.gates import activities

    rows = torch.tensor(given.places)
    found = activities(given.body, given.inputs[None])
    return list(given.labels), [activity.at(rows) for activity in found if activity.state]


def _ends(tokens: Sequence[str]) -> tuple[str, list[int]]:
    """The text, and the index of each token's last character, ignoring a space after a word."""
    whole, ends = "", []
    for token in tokens:
        plain = "\n" if token == "<eos>" else token
        whole += plain
        ends.append(max(len(whole) - 1 - (len(plain) > 1 and plain.endswith(" ")), 0))
    return whole, ends
