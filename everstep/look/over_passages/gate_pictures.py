"""Pictures of gates: gates and states over a passage, and saturation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from everstep.look.over_passages import Bar
    from everstep.look.passage import Passage

CHARACTERS, EXCERPT = 600, 300
"""Characters in the page of all units, and in a picture of several."""
SHOWN = 3


def draw(found: Passage, out: Path, model: nn.Module, bar: Bar) -> list[tuple[Path, str]]:
    """Draw the most variable units, the gates of one, a page of all gates, and saturation, each with a caption."""
    from everstep.look.gates import liveliest, saturation_picture, saturation_words, units_text
    from everstep.look.gates_page import gates_html
    from everstep.look.glyphs import note
    from everstep.look.over_passages.unit_pictures import fitting, has_units, read

    if not has_units(found):
        return []
    tokens, seen = read(found)
    top, token = seen[-1], found.shown
    memory = "c" if "c" in top.state else next(iter(top.state))
    units = [(memory, unit) for unit in liveliest(top.state[memory], SHOWN)]
    part = slice(0, fitting(tokens, EXCERPT))
    boxes = note(tokens[part], "units.html")
    units_text(tokens[part], top.at(part), units, out / "units.png", columns=64)
    gates_html(tokens, seen, out / "units.html")
    drawn = [
        (
            out / "units.png",
            f"The {len(units)} units of {memory} that vary most, {top.name}: blue is below zero, red above. A unit "
            f"that keeps one colour over many {token}s remembers something: look at where it begins and ends.{boxes}",
        ),
        (out / "units.html", "Every gate and unit, for a browser: choose with the arrow keys, point at the text."),
    ]
    last = units[0][1]
    size = top.state[memory].shape[1]
    gates = [(name, last) for name, values in top.gates.items() if name not in top.state and values.shape[1] == size]
    if gates:
        units_text(tokens[part], top.at(part), gates[:SHOWN], out / "gates.png", columns=64)
        named = ", ".join(name for name, _ in gates[:SHOWN])
        what = f"The gates {named} of unit {last}, {top.name}, the one that varies most: dark is open, light is closed."
        drawn.append((out / "gates.png", what + boxes))
    if any(activity.gates for activity in seen):
        saturation_picture(seen, out / "saturation.png")
        drawn.append((out / "saturation.png", saturation_words(seen)))
    return drawn
