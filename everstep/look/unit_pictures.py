"""Pictures of units: gates and states over a passage, saturation, and units that encode properties of a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everstep.look.gates import Activity
    from everstep.look.passage import Passage
    from everstep.look.units import Telling

EXCERPT, PASSAGE = 300, 600
"""Characters in a picture of several units, and in any other picture."""
SHOWN = 3
REMEMBERED = "inside quotes", "position in the line", "depth of brackets"


def draw_gates(given: Passage, out: Path) -> list[tuple[Path, str]]:
    """Draw the most variable units, the gates of one, a page of all gates, and saturation, each with a caption."""
    from everstep.look.gates import liveliest, saturation_picture, saturation_words, units_text
    from everstep.look.gates_page import gates_html
    from everstep.look.glyphs import note

    if not has_units(given):
        return []
    tokens, found = read(given)
    top, token = found[-1], given.shown
    memory = "c" if "c" in top.state else next(iter(top.state))
    units = [(memory, unit) for unit in liveliest(top.state[memory], SHOWN)]
    part = slice(0, _fitting(tokens, EXCERPT))
    boxes = note(tokens[part], "units.html")
    units_text(tokens[part], top.at(part), units, out / "units.png", columns=64)
    gates_html(tokens, found, out / "units.html")
    drawn = [
        (
            out / "units.png",
            f"The {len(units)} units of {memory} that vary most, {top.name}: blue is below zero, red above. A unit "
            f"that keeps one colour over many {token}s remembers something; see what begins and ends it.{boxes}",
        ),
        (out / "units.html", "Every gate and unit in a browser: choose by the arrow keys, point at the text."),
    ]
    last = units[0][1]
    size = top.state[memory].shape[1]
    gates = [(name, last) for name, values in top.gates.items() if name not in top.state and values.shape[1] == size]
    if gates:
        units_text(tokens[part], top.at(part), gates[:SHOWN], out / "gates.png", columns=64)
        named = ", ".join(name for name, _ in gates[:SHOWN])
        what = f"The gates {named} of unit {last}, {top.name}, the one that varies most: dark is open, light is closed."
        drawn.append((out / "gates.png", what + boxes))
    if any(activity.gates for activity in found):
        saturation_picture(found, out / "saturation.png")
        drawn.append((out / "saturation.png", saturation_words(found)))
    return drawn


def draw_units(given: Passage, out: Path) -> list[tuple[Path, str]]:
    """Draw a table of units that encode properties of the text, and the best of them over a passage."""
    from everstep.look.units import PROPERTIES, predictive_units, table, table_words

    if not has_units(given):
        return []
    tokens, found = read(given)
    whole, ends = _ends(tokens)
    rows: dict[str, Sequence[Telling] | str] = {}
    targets: dict[str, list[float]] = {}
    for name, measure in PROPERTIES.items():
        numbers = measure(whole)
        targets[name] = [numbers[end] for end in ends]
        try:
            rows[name] = predictive_units(found, targets[name], count=SHOWN)
        except ValueError as reason:
            rows[name] = str(reason).removeprefix("predictive_units: ").split(",")[0]
    (out / "properties.md").parent.mkdir(parents=True, exist_ok=True)
    (out / "properties.md").write_text(table(rows), encoding="utf-8", newline="\n")
    drawn = [(out / "properties.md", table_words(rows, len(tokens), given.shown))]
    known = {name: units[0] for name, units in rows.items() if not isinstance(units, str)}
    # any unit can encode the current letter; properties that depend on earlier letters need memory
    known = {name: best for name, best in known.items() if name in REMEMBERED} or known
    if known:
        name = max(known, key=lambda key: (known[key].much != "not", abs(known[key].correlation)))
        drawn += _draw_property(tokens, found, known[name], targets[name], name, out)
    return drawn


def _draw_property(
    tokens: list[str], found: list[Activity], best: Telling, target: list[float], name: str, out: Path
) -> list[tuple[Path, str]]:
    """Draw a unit and a property over a passage of the second half, which did not select the unit."""
    from everstep.look.glyphs import note
    from everstep.look.units import property_html, property_text, property_words

    half = len(tokens) // 2
    start = next((place + 1 for place in range(half, len(tokens) - 1) if tokens[place].endswith("\n")), half)
    part = slice(start, start + _fitting(tokens[start:], PASSAGE))
    shown = [activity.at(part) for activity in found]
    property_text(tokens[part], shown, best, target[part], name, out / "property.png")
    property_html(tokens[part], shown, best, target[part], name, out / "property.html")
    return [
        (out / "property.png", property_words(best, name) + note(tokens[part], "property.html")),
        (out / "property.html", "The same in a browser; point at it to see each value."),
    ]


def _fitting(tokens: Sequence[str], characters: int) -> int:
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
