"""An HTML page of every gate and unit over a text: select by menu or keyboard, hover over a token for its value."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.colors import to_hex
from torch import Tensor

from everstep.look import coloured_text
from everstep.look.gates import Activity, check_text, liveliest, scale_of
from everstep.storage.reading import json_text

LONGEST = 4000
"""Most tokens on a page."""
VALUES = 1_500_000
"""Most values on a page, one byte each."""

_BODY = """<p>One unit over a text. Choose it here, or by the keys <b>←</b> <b>→</b> (unit) and <b>↑</b> <b>↓</b>
(layer and gate or state). Point at a token to see its value.</p>
<p><select id="part"></select> unit <select id="unit"></select> <output id="value"></output></p>
<div id="bar" style="height:1em"></div>
<div style="display:flex;justify-content:space-between"><span id="low"></span><span id="high"></span></div>
<p id="note"></p>
<pre id="text">TEXT</pre>
<script>
"use strict";
const data = DATA;
const get = name => document.getElementById(name), part = get("part"), unit = get("unit");
const spans = get("text").children;
for (const p of data) {
  p.bytes = Uint8Array.from(atob(p.values), c => c.charCodeAt(0));
  part.add(new Option(p.name));
}
const value = (p, step) => p.low + (p.high - p.low) * p.bytes[unit.selectedIndex * spans.length + step] / 255;
function choose() {
  const p = data[part.selectedIndex], before = Math.max(0, unit.selectedIndex);
  unit.replaceChildren(...p.units.map(number => new Option(number)));
  unit.selectedIndex = Math.min(before, p.units.length - 1);
  get("bar").style.background = "linear-gradient(to right, " + p.colours.join(", ") + ")";
  get("low").textContent = p.low; get("high").textContent = p.high; get("note").textContent = p.note;
  draw();
}
function draw() {
  const p = data[part.selectedIndex], top = p.colours.length - 1;
  for (let step = 0; step < spans.length; step++) {
    const share = (value(p, step) - p.low) / (p.high - p.low), colour = p.colours[Math.round(share * top)];
    spans[step].style.background = colour;
    const [r, g, b] = [1, 3, 5].map(at => parseInt(colour.slice(at, at + 2), 16));
    spans[step].style.color = 0.299 * r + 0.587 * g + 0.114 * b > 127 ? "black" : "white";
  }
}
function move(list, by, then) {
  list.selectedIndex = (list.selectedIndex + by + list.length) % list.length;
  then();
}
part.onchange = choose; unit.onchange = draw;
document.onkeydown = event => {
  const moves = {ArrowLeft: [unit, -1, draw], ArrowRight: [unit, 1, draw], ArrowUp: [part, -1, choose],
    ArrowDown: [part, 1, choose]};
  if (event.key in moves) { event.preventDefault(); move(...moves[event.key]); }
};
get("text").onmouseover = event => {
  const step = Array.prototype.indexOf.call(spans, event.target);
  get("value").textContent = step < 0 ? "" : "value " + value(data[part.selectedIndex], step).toFixed(2);
};
part.selectedIndex = 0;
choose();
</script>"""


def gates_html(tokens: Sequence[str], found: Sequence[Activity], to: Path) -> None:
    """Write a self-contained page that shows every gate and unit over a text.

    With more than 1.5 million values, each gate or state shows only the units that vary most, and the page says so.
    Values are rounded to 256 levels of the colour range.

    Args:
        tokens: the text of every step, at most 4,000.
        found: the activities of the layers over the text.
        to: the HTML file to write.

    Raises:
        ValueError: the text is too long, or its length differs from the number of steps.
    """
    if len(tokens) > LONGEST:
        raise ValueError(f"gates_html: expected at most {LONGEST} tokens, but got {len(tokens)}; give a shorter text")
    for activity in found:
        check_text("gates_html", tokens, activity)
    parts = [(activity, part, values) for activity in found for part, values in activity.parts.items()]
    most = max(1, VALUES // (len(tokens) * len(parts)))
    data = [_part(activity, part, values, most) for activity, part, values in parts]
    spans = "".join(f"<span>{coloured_text.shown(token)}</span>" for token in tokens)
    # "<" is escaped, because "</script>" in a name would end the script
    body = _BODY.replace("DATA", json_text(data, ensure_ascii=False).replace("<", "\\u003c"))
    coloured_text.write_page(to, "Gates and units over a text", body.replace("TEXT", spans))


def _part(activity: Activity, part: str, values: Tensor, most: int) -> dict[str, object]:
    gate = part in activity.gates and part not in activity.state
    scale, colours = scale_of(values, gate)
    low, high = scale.vmin or 0.0, scale.vmax or 1.0
    units = list(range(values.shape[1])) if values.shape[1] <= most else sorted(liveliest(values, most))
    shares = ((values[:, units].cpu().double() - low) / (high - low)).clamp(0, 1)
    levels = (shares * 255).round().to(torch.uint8).T.contiguous()
    notes = [] if len(units) == values.shape[1] else [f"The {len(units)} of {values.shape[1]} units that vary most."]
    if not gate:
        notes.append(f"Values beyond ±{high:g} have the last colour.")
    return {
        "name": f"{activity.name}, {'gate ' if gate else ''}{part}",
        "low": low,
        "high": high,
        "units": units,
        "note": " ".join(notes),
        "colours": [to_hex(colours(k / 32)) for k in range(33)],
        "values": base64.b64encode(bytes(levels.flatten().tolist())).decode(),
    }
