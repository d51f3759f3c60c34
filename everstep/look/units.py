"""Units that encode a property of a text: inside quotes, position in the line, depth of brackets, …"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.colors import Colormap, Normalize
from torch import Tensor

from everstep.look import coloured_text
from everstep.look.gates import DIVERGING, Activity, check_text
from everstep.look.style import canvas, save

FEWEST = 50
"""Fewest steps in each half of the text."""
WELL, PARTLY = 0.7, 0.3
"""Least correlations at which a unit encodes a property well, and partly."""


def _quotes(passage: str) -> list[float]:
    inside, found = False, []
    for character in passage:
        if character in "“”":
            inside = character == "“"
        elif character == '"':
            inside = not inside
        found.append(float(inside))
    return found


def _position(passage: str) -> list[float]:
    place, found = 0, []
    for character in passage:
        place = 0 if character == "\n" else place + 1
        found.append(float(place))
    return found


def _depth(passage: str) -> list[float]:
    depth, found = 0, []
    for character in passage:
        depth = max(0, depth + (character in "([{") - (character in ")]}"))
        found.append(float(depth))
    return found


def _each(holds: Callable[[str], bool]) -> Callable[[str], list[float]]:
    return lambda passage: [float(holds(character)) for character in passage]


def _line_ends_next(passage: str) -> list[float]:
    return [float(character == "\n") for character in passage[1:]] + [0.0]


PROPERTIES: dict[str, Callable[[str], list[float]]] = {
    "inside quotes": _quotes,
    "position in the line": _position,
    "depth of brackets": _depth,
    "letter": _each(str.isalpha),
    "space": _each(str.isspace),
    "upper case": _each(str.isupper),
    "inside a word": _each(lambda character: character.isalnum() or character in "'’-"),
    "line ends next": _line_ends_next,
}
"""Functions of a text to one number per character, as of after that character: whether inside “…” or "…"; characters
since the start of the line; open brackets; the kind of the character; whether a newline comes next."""


class Telling(NamedTuple):
    """How well one unit encodes a property.

    Attributes:
        layer: the name of its layer.
        part: leaf of the state, gate or candidate.
        unit: its index.
        correlation: Pearson's r of its value and the property on the second half of the text, which did not select it;
            for a binary property this is the point-biserial correlation.
        first: r on the first half, which selected it.
        auc: for a binary property, the probability on the second half that the unit is higher (lower, if r on the first
            half is negative) where the property holds than where it does not, ties counted half; else None.
    """

    layer: str
    part: str
    unit: int
    correlation: float
    first: float
    auc: float | None

    @property
    def much(self) -> str:
        """The degree: "well", "in part", or "not" (also if the sign differs from that on the first half)."""
        size = abs(self.correlation) if self.correlation * self.first > 0 else 0.0
        return "well" if size >= WELL else "in part" if size >= PARTLY else "not"


def predictive_units(
    found: Sequence[Activity],
    target: Sequence[float] | Callable[[int], float],
    *,
    parts: Sequence[str] | None = None,
    count: int | None = None,
) -> list[Telling]:
    """All units by how well they encode a property, selected on the first half of the text, measured on the second.

    Units are sorted by |r| on the first half of the steps. The measures come from the second half, so that the choice
    among hundreds of units does not bias them; they need not fall along the list.

    >>> from everstep import GRU
    >>> from everstep.look.gates import activities
    >>> found = activities(GRU(3, 5), torch.randn(1, 200, 3))
    >>> best = predictive_units(found, lambda index: index % 7)[0]

    Args:
        found: the activities of the layers at every step.
        target: the property at each step, or a function of the step's index.
        parts: the parts to consider, such as ("c",); by default the leaves of the state.
        count: number of units to return; all if None.

    Raises:
        ValueError: a half has fewer than 50 steps; the property has another length, is not finite, or constant in a
            half; no layer has a part.
    """
    wanted = _checked(len(next(iter(found[0].parts.values()))), target)
    half = len(wanted) // 2
    binary = bool(((wanted == 0) | (wanted == 1)).all())
    ranked: list[tuple[float, Telling, Tensor]] = []
    for activity in found:
        for part in _parts(activity, found, parts):
            values = activity.parts[part].cpu().double()
            chosen, held_out = _correlations(values[:half], wanted[:half]), _correlations(values[half:], wanted[half:])
            for unit, (first, second) in enumerate(zip(chosen.tolist(), held_out.tolist(), strict=True)):
                ranked.append((first, Telling(activity.name, part, unit, second, first, None), values[half:, unit]))
    ranked.sort(key=lambda item: -abs(item[0]))
    return [
        # ranks are costly, so the AUC is computed only for the units returned
        telling._replace(auc=_auc(values if first >= 0 else -values, wanted[half:]) if binary else None)
        for first, telling, values in ranked[:count]
    ]


def _checked(steps: int, target: Sequence[float] | Callable[[int], float]) -> Tensor:
    """The property at every step (steps,), validated."""
    numbers = [target(step) for step in range(steps)] if callable(target) else target
    wanted = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
    if len(wanted) != steps:
        raise ValueError(f"predictive_units: expected a number for each of the {steps} steps, but got {len(wanted)}")
    half = steps // 2
    if half < FEWEST:
        raise ValueError(f"predictive_units: expected {2 * FEWEST} steps or more, but got {steps}; give a longer text")
    if not bool(wanted.isfinite().all()):
        raise ValueError("predictive_units: the property should be finite at every step, but is not")
    for name, piece in (("first", wanted[:half]), ("second", wanted[half:])):
        if bool((piece == piece[0]).all()):
            raise ValueError(
                f"predictive_units: the property is {float(piece[0]):g} all over the {name} half of the text, so that "
                "nothing can tell it; give a text in which it changes"
            )
    return wanted


def _parts(activity: Activity, found: Sequence[Activity], parts: Sequence[str] | None) -> list[str]:
    if parts is None:
        return list(activity.state)
    known = dict.fromkeys(name for one in found for name in one.parts)
    if unknown := [part for part in parts if part not in known]:
        raise ValueError(f"predictive_units: no layer has a part {unknown[0]!r}; there are {', '.join(known)}")
    return [part for part in parts if part in activity.parts]


def _correlations(values: Tensor, wanted: Tensor) -> Tensor:
    """Pearson's r of each unit (steps, units) with the property (steps,); 0 for a constant unit."""
    values, wanted = values - values.mean(0), wanted - wanted.mean()
    spread = values.square().sum(0).sqrt()
    scale = values.abs().amax(0) if len(values) else spread
    still = spread <= 1e-12 * (1 + scale)
    return torch.where(still, 0, (values * wanted[:, None]).sum(0) / (spread * wanted.square().sum().sqrt() + still))


def _auc(values: Tensor, wanted: Tensor) -> float:
    """P(value where the property holds > value where not) + ½ P(equal), by ranks (Mann & Whitney 1947)."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    rank = (counts.cumsum(0).double() - (counts - 1).double() / 2)[place]
    positive = wanted == 1
    number, others = int(positive.sum()), int((~positive).sum())
    return float((rank[positive].sum() - number * (number + 1) / 2) / (number * others))


def table(rows: Mapping[str, Sequence[Telling] | str], count: int = 3) -> str:
    """The best units of each property as a Markdown table; for a refused property, the reason."""
    lines = [
        "| property | layer | unit | r, chosen by | r, held out | AUC, held out | tells it |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in rows.items():
        if isinstance(found, str):
            lines.append(f"| {name} | | | | left out: {found} | | |")
            continue
        for place, one in enumerate(found[:count]):
            auc = "" if one.auc is None else f"{one.auc:.3f}"
            shown = name if place == 0 else ""
            figures = f"{one.first:+.3f} | {one.correlation:+.3f} | {auc}"
            lines.append(f"| {shown} | {one.layer} | {one.part} {one.unit} | {figures} | {one.much} |")
    return "\n".join(lines) + "\n"


def table_words(rows: Mapping[str, Sequence[Telling] | str], steps: int, token: str = "token") -> str:
    """The caption of the table: the properties that some unit encodes, and how well."""
    told: dict[str, list[str]] = {"well": [], "in part": [], "not": []}
    left_out = [name for name, found in rows.items() if isinstance(found, str)]
    for name, found in rows.items():
        if not isinstance(found, str):
            told[found[0].much].append(f"{name} ({found[0].correlation:+.2f})")
    parts = [f"{much}: {', '.join(names)}" for much, names in told.items() if names and much != "not"]
    if told["not"]:
        parts.append(f"by no unit: {', '.join(told['not'])}")
    if left_out:
        parts.append(f"left out: {', '.join(left_out)}")
    if all(isinstance(found, str) for found in rows.values()):
        return f"No property could be measured on {steps:,} {token}s; the table gives the reasons."
    return (
        f"The unit that predicts each property best, chosen by its correlation r on the first half of {steps:,} "
        f"{token}s; r is shown for the second half. Predicted {'; '.join(parts)}."
    )


def property_words(best: Telling, name: str) -> str:
    """The caption of `property_text`, by sign and size of the correlation."""
    unit = f"unit {best.unit} of {best.part}, {best.layer}"
    figure = f"r = {best.correlation:+.2f} on text that was not used to choose it"
    if best.much == "not":
        turned = abs(best.correlation) >= PARTLY
        why = f"; r = {best.first:+.2f} on the half that chose it" if turned else ""
        return (
            f"No unit predicts the property “{name}”. The best, {unit}, has {figure}{why} (±1 is perfect, 0 is none). "
            "Left its values, right the property: they look unrelated."
        )
    if best.correlation > 0:
        how, alike = "rises and falls with it", "the colours are alike"
    else:
        how, alike = "falls where it rises", "the colours of the property are inverted, so that they are alike"
    where = "in most places" if best.much == "well" else "in some places"
    return (
        f"Left {unit}, right the property “{name}”, predicted {best.much}: the unit {how} ({figure}); {alike} {where}."
    )


def _range(values: Tensor, left_out: float = 0.05) -> Normalize:
    """A scale between two quantiles; a share `left_out` of the values lies beyond each."""
    low, high = values.cpu().double().quantile(torch.tensor([left_out, 1 - left_out], dtype=torch.float64)).tolist()
    return Normalize(low, high if high > low else low + 1)


def property_text(
    tokens: Sequence[str],
    found: Sequence[Activity],
    best: Telling,
    target: Sequence[float],
    name: str,
    to: Path,
    columns: int = 56,
) -> None:
    """Draw the text twice: coloured by a unit's value, and by a property, so that a match is visible.

    Colours run from low to high values; those of the property are reversed if r is negative.

    Args:
        tokens: the text of every step.
        found: the activities of the layers over the text.
        best: the unit, with its measures.
        target: the property at each step.
        name: the name of the property.
        to: the PNG to write.
        columns: most characters in a row.

    Raises:
        ValueError: the length of the text or property differs from the number of steps.
    """
    panels = _panels(tokens, found, best, target, name)
    laid = [coloured_text.layout(panel.pairs, columns) for panel in panels]
    width, height = coloured_text.inches(laid[0])
    figure = canvas(height + 0.4, 2 * width)
    both = figure.subplots(1, 2)
    for axes, pieces, panel in zip(both, laid, panels, strict=True):
        axes.set_title(panel.title, fontsize=14, loc="left")
        coloured_text.frame(axes, pieces)
        coloured_text.legend(axes, panel.scale, panel.colours, panel.label)
    for axes, pieces, panel in zip(both, laid, panels, strict=True):
        coloured_text.paint(axes, pieces, panel.scale, panel.colours)
    save(figure, to)


def property_html(
    tokens: Sequence[str], found: Sequence[Activity], best: Telling, target: Sequence[float], name: str, to: Path
) -> None:
    """Write a self-contained page like `property_text` that shows each token's value on hovering.

    Arguments and errors as for `property_text`.
    """
    columns = []
    for panel in _panels(tokens, found, best, target, name):
        spans = coloured_text.spans(panel.pairs, panel.scale, panel.colours, "{:.2f}")
        bar = coloured_text.bar(panel.colours, f"{panel.scale.vmin:.2g}", f"{panel.scale.vmax:.2g}")
        head = f"<p>{html.escape(panel.title)}: {html.escape(panel.label)}</p>"
        columns.append(f'<div style="flex:1">{head}{bar}<pre>{spans}</pre></div>')
    body = f'<p>{html.escape(property_words(best, name))}</p><div style="display:flex;gap:2em">{"".join(columns)}</div>'
    coloured_text.write_page(to, f"A unit and the property: {html.escape(name)}", body)


class _Panel(NamedTuple):
    title: str
    pairs: list[tuple[str, float]]
    scale: Normalize
    colours: Colormap
    label: str


def _panels(
    tokens: Sequence[str], found: Sequence[Activity], best: Telling, target: Sequence[float], name: str
) -> tuple[_Panel, _Panel]:
    """The panel of the unit, and that of the property, with reversed colours if r is negative."""
    activity = next(activity for activity in found if activity.name == best.layer)
    check_text("property_text", tokens, activity)
    if len(target) != len(tokens):
        raise ValueError(f"property_text: expected a number for each of {len(tokens)} tokens, but got {len(target)}")
    values, against = activity.unit(best.part, best.unit), best.correlation < 0
    unit = _Panel(
        f"{activity.name}, {best.part}, unit {best.unit}",
        list(zip(tokens, values.tolist(), strict=True)),
        _range(values),
        DIVERGING,
        f"value of the unit after each token  (r = {best.correlation:+.2f}, held out)",
    )
    wanted = _Panel(
        f"the property: {name}",
        list(zip(tokens, target, strict=True)),
        _range(torch.tensor(list(target)), 0),
        DIVERGING.reversed() if against else DIVERGING,
        f"{name}{'  (inverted, as r is negative)' * against}",
    )
    return unit, wanted
