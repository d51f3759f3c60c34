"""Gates and units over a text: values at every step, coloured text, saturation of gates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.colors import Colormap, Normalize
from torch import Tensor

from everstep.cell import Cell, Layer, scan
from everstep.look import coloured_text
from everstep.look.step import NamedStep, NamedSteps, gate_values
from everstep.look.style import COLOURS, GREY, canvas, label, legend, save
from everstep.look.trajectory import innermost, ready, real
from everstep.state import State, leaves, map_state
from everstep.tracing.refusals import Untraceable
from everstep.wirings import Bidirectional

# both are even in lightness and suitable for the colour-blind
DIVERGING, RISING = colormaps["RdBu_r"], colormaps["YlGnBu"]
LEFT, RIGHT = 0.1, 0.9
MARKERS = "osD^vP"


@dataclass(frozen=True)
class Activity:
    """Gates, candidates and states of one layer at every step of a sequence.

    Attributes:
        name: the name of the layer, such as "layer 2 LSTM".
        gates: by name, values (steps, units) in [0, 1].
        candidates: by name, values of the other bounded activations, such as g of an LSTM in [−1, 1].
        state: by name of the leaf ("h" for a single one), its values after each step, flattened to (steps, units).
        problem: the reason why gates are unknown, if the step cannot be traced.
    """

    name: str
    gates: Mapping[str, Tensor]
    candidates: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    problem: str | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """State, gates and candidates by name; at equal names, the leaf of the state is returned."""
        return {**self.state, **{k: v for k, v in {**self.gates, **self.candidates}.items() if k not in self.state}}

    def unit(self, part: str, unit: int) -> Tensor:
        """The values (steps,) of one unit of a gate, a candidate or a leaf of the state.

        Raises:
            ValueError: there is no such part or unit; the message lists those that exist.
        """
        if part not in self.parts:
            raise ValueError(f"{self.name}: no gate or state {part!r}; there are {', '.join(self.parts)}{self._why()}")
        values = self.parts[part]
        if not 0 <= unit < values.shape[1]:
            raise ValueError(f"{self.name}: {part} has units 0 … {values.shape[1] - 1}, but {unit} was asked for")
        return values[:, unit]

    def at(self, steps: slice | Tensor) -> Activity:
        """The activity at some of the steps."""
        gates, candidates, state = (
            {name: value[steps] for name, value in kind.items()} for kind in (self.gates, self.candidates, self.state)
        )
        return Activity(self.name, gates, candidates, state, self.problem)

    def check_gates(self) -> None:
        """Raise a ValueError if there are no gates, or they are unknown."""
        if not self.gates:
            other = f" or at {', '.join(self.candidates)}" if self.candidates else ""
            why = (
                self._why() or ": no sum of its rows goes through a sigmoid or another activation with values in [0, 1]"
            )
            raise ValueError(
                f"{self.name} has no gates{why}. Look at its state ({', '.join(self.state)}){other}, or take a "
                "gated cell"
            )

    def _why(self) -> str:
        return f" that are known: {self.problem}" if self.problem else ""


def activities(layer: Layer, xs: Tensor, state: State = None, kept: NamedSteps | None = None) -> list[Activity]:
    """Gates, candidates and states of every layer with a state, at every step of one sequence, in eval mode.

    A gate is the first bounded activation of a sum of products with x_t or h_{t-1}; its value is the output of the
    activation. For its detection and name see `everstep.look.step.named_step`.

    >>> from everstep import LSTM, Residual, Stack
    >>> lower, upper = activities(Stack(LSTM(3, 5), Residual(LSTM(5, 5))), torch.zeros(1, 7, 3))
    >>> upper.name, sorted(upper.parts)
    ('layer 2 LSTM', ['c', 'f', 'g', 'h', 'i', 'o'])
    >>> upper.gates["f"].shape
    torch.Size([7, 5])

    Args:
        layer: a cell or wiring; the values of backward cells are given in the order of the text.
        xs: (1, steps, input_size).
        state: the state to start from; the initial state if None.
        kept: keeps traced steps from one call to the next; None: they are traced anew.

    Raises:
        TypeError: xs is not a floating-point tensor.
        ValueError: xs has another shape or more than one sequence, or no layer has a state.
    """
    model, xs = ready("activities", layer, xs, None, shortest=1)
    if len(xs) != 1:
        raise ValueError(f"activities: expected one sequence, (1, steps, input_size), but got {len(xs)}")
    steps = xs.shape[1]
    found = list(_remembering(model, xs, False, 1))
    if not found:
        raise ValueError(f"activities: {type(layer).__name__} has no state, so that no unit remembers anything")
    records = {id(cell): _recorded(cell) for cell, _, _ in found}
    with torch.no_grad():
        scan(model, xs, state, backend="reference")
    for cell, _, _ in found:
        vars(cell).pop("step", None)
    result, used = [], dict.fromkeys(records, 0)
    uses = {key: sum(id(cell) == key for cell, _, _ in found) for key in records}
    several = any(number > 1 for _, _, number in found)
    kept = NamedSteps() if kept is None else kept
    for at, (cell, back, number) in enumerate(found):
        record, place = records[id(cell)], used[id(cell)]
        used[id(cell)] += 1
        share = len(record) // uses[id(cell)]  # a cell used in several positions runs once for each
        mine = record[place * share : place * share + steps]
        called, turned = type(innermost(cell)).__name__, ", right to left" if back else ""
        name = f"layer {number} {called}{turned}" if several else called + turned
        result.append(_activity(name, cell, mine[::-1] if back else mine, partial(kept.at, at)))
    return result


Record = list[tuple[Tensor, State, State]]


def _remembering(layer: Layer, xs: Tensor, back: bool, number: int) -> Iterator[tuple[Cell, bool, int]]:
    """The cells with a state, lowest first, each with whether it runs backward, and the number of its layer.

    Both directions of a layer share its number.
    """
    below = number
    for place, inner in enumerate(layer.sublayers()):
        if inner is layer:
            assert isinstance(layer, Cell)
            if leaves(layer.initial_state(1, xs)):
                yield layer, back, number
            continue
        other = isinstance(layer, Bidirectional) and place == 1
        for cell, turned, found in _remembering(inner, xs, back != other, below if other else number):
            yield cell, turned, found
            number = max(number, found + 1)


def _recorded(cell: Cell) -> Record:
    """Make a cell (a private copy) record x, the old and the new state of every step."""
    record: Record = []
    step = cell.step

    def recording(x: Tensor, state: State) -> tuple[Tensor, State]:
        y, new = step(x, state)
        record.append((x, state, new))
        return y, new

    vars(cell)["step"] = recording
    return record


def _activity(name: str, cell: Cell, record: Record, traced: Callable[[Cell, Tensor], NamedStep]) -> Activity:
    xs = torch.cat([x for x, _, _ in record])
    before, after = (map_state(lambda *steps: torch.cat(steps), *(r[k] for r in record)) for k in (1, 2))
    state = {"h" if leaf == "state" else leaf: value.flatten(1) for leaf, value in real(after) if value.dim() > 1}
    try:
        step = traced(cell, xs)
    except Untraceable as problem:
        return Activity(name, {}, {}, state, str(problem))
    values = gate_values(step, cell, xs, [leaf for _, leaf in leaves(before)])
    inside = {gate.name for gate in step.gates if gate.low >= 0 and gate.high <= 1}
    gates = {key: value for key, value in values.items() if key in inside}
    return Activity(name, gates, {key: value for key, value in values.items() if key not in inside}, state)


def pick(found: Sequence[Activity], layer: int) -> Activity:
    """The layer with number `layer`, from 1; raises a ValueError that lists the layers."""
    if not 1 <= layer <= len(found):
        there = ", ".join(f"{k} ({activity.name})" for k, activity in enumerate(found, 1))
        raise ValueError(f"layer {layer} was asked for, but the layers with a state are {there}")
    return found[layer - 1]


def liveliest(values: Tensor, count: int) -> list[int]:
    """The indices of the `count` units of values (steps, units) that vary most, ties in order."""
    return torch.argsort(values.cpu().double().var(0, correction=0), descending=True, stable=True)[:count].tolist()


def scale_of(values: Tensor, gate: bool) -> tuple[Normalize, Colormap]:
    """The colour scale: 0 … 1 for a gate; else symmetric about 0, up to 1 or, if very different, the 95 % quantile."""
    if gate:
        return Normalize(0, 1), RISING
    top = float(values.cpu().double().abs().flatten().quantile(0.95)) if values.numel() else 1.0
    return Normalize(-_round(top), _round(top)), DIVERGING


def _round(top: float) -> float:
    """1 if suitable, else the next larger of …, 0.1, 0.2, 0.5, 1, 2, 5, 10, …"""
    if 0.3 <= top <= 1 or top == 0 or not math.isfinite(top):
        return 1.0
    power = math.floor(math.log10(top))
    return next(float(f"{k}e{power}") for k in (1, 2, 5, 10) if top <= k * 10.0**power * (1 + 1e-9))


def units_text(
    tokens: Sequence[str],
    activity: Activity,
    units: Sequence[tuple[str, int]],
    to: Path,
    columns: int = 84,
) -> None:
    """Draw the text once per unit, coloured by its value after each token (as in Karpathy, Johnson & Fei-Fei 2015).

    Args:
        tokens: the text of every step.
        activity: the activity of one layer over the text.
        units: pairs of part and unit, such as ("c", 17) or ("f", 3); either all are gates or none.
        to: the PNG to write.
        columns: most characters in a row.

    Raises:
        ValueError: a text of another length, no unit, unknown parts or units, or gates mixed with other parts.
    """
    values = [activity.unit(part, unit) for part, unit in units]
    check_text("units_text", tokens, activity)
    kinds = {part in activity.gates and part not in activity.state for part, _ in units}
    if len(kinds) != 1:
        raise ValueError("units_text: expected units that are all gates, or all none: they have different colours")
    scale, colours = scale_of(torch.stack(values), kinds.pop())
    laid = [coloured_text.layout(list(zip(tokens, value.tolist(), strict=True)), columns) for value in values]
    width, height = coloured_text.inches(laid[0])
    figure = canvas((height - 0.8) * len(units) + 0.9, width)
    panels = figure.subplots(len(units), 1, squeeze=False)[:, 0]
    for axes, pieces, (part, unit) in zip(panels, laid, units, strict=True):
        axes.set_title(f"{activity.name}, {part}, unit {unit}", fontsize=14, loc="left")
        coloured_text.frame(axes, pieces)
    what = "value of the gate (0 closed, 1 open)" if scale.vmin == 0 else "value of the unit after each token"
    beyond = "" if scale.vmin == 0 else f"  (beyond ±{scale.vmax:g}: the last colour)"
    coloured_text.legend(panels[-1], scale, colours, what + beyond)
    for axes, pieces in zip(panels, laid, strict=True):
        coloured_text.paint(axes, pieces, scale, colours)
    save(figure, to)


def check_text(who: str, tokens: Sequence[str], activity: Activity) -> None:
    """Raise a ValueError unless there is one token for each step."""
    steps = len(next(iter(activity.parts.values())))
    if len(tokens) != steps:
        raise ValueError(f"{who}: expected a token for each of the {steps} steps, but got {len(tokens)}")


def saturation(activity: Activity) -> dict[str, tuple[Tensor, Tensor]]:
    """For each gate, the shares of steps in which each unit is below 0.1 and above 0.9 (Karpathy 2015).

    A forget gate that is mostly above 0.9 (right-saturated) preserves the memory of its unit; one that is mostly below
    0.1 (left-saturated) erases it.

    >>> from everstep import GRU
    >>> left, right = saturation(activities(GRU(3, 5), torch.zeros(1, 7, 3))[0])["z"]

    Raises:
        ValueError: the cell has no gates.
    """
    activity.check_gates()
    return {
        name: ((gate < LEFT).cpu().double().mean(0), (gate > RIGHT).cpu().double().mean(0))
        for name, gate in activity.gates.items()
    }


def saturation_words(found: Sequence[Activity]) -> str:
    """The caption of `saturation_picture`: how many units of each gate are saturated most of the time."""
    shares = []
    for activity in found:
        for name, (left, right) in (saturation(activity) if activity.gates else {}).items():
            closed, opened = (float((share > 0.5).double().mean()) for share in (left, right))
            where = f"{activity.name}, {name}" if sum(bool(one.gates) for one in found) > 1 else name
            shares.append(f"{where} {opened:.0%} open, {closed:.0%} closed")
    return (
        "Each mark is a unit: its gate is mostly open (above 0.9) at the right, mostly closed (below 0.1) at the top, "
        "and neither near the origin. While a gate of the old state (f of an LSTM, z of a GRU) is open, the unit keeps "
        f"its state. Units open or closed in more than half of the steps: {'; '.join(shares)}."
    )


def saturation_picture(found: Sequence[Activity], to: Path) -> None:
    """Draw for every unit of every gate how often it is above 0.9 against how often it is below 0.1.

    One panel per gate, one colour and marker per layer. Layers without gates are omitted.

    Raises:
        ValueError: no layer has a gate.
    """
    gated = [activity for activity in found if activity.gates]
    if not gated:
        found[0].check_gates()
    shares = {activity.name: saturation(activity) for activity in gated}
    kinds = list(dict.fromkeys(gate for activity in gated for gate in activity.gates))
    across = min(4, len(kinds))
    down = -(-len(kinds) // across)
    figure = canvas(height=4.6 * down + 0.4)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, kind in zip(panels, kinds, strict=False):
        for place, activity in enumerate(gated):
            if kind in activity.gates:
                left, right = shares[activity.name][kind]
                look = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
                axes.scatter(right, left, s=34, alpha=0.6, linewidth=0, label=activity.name, **look)
        axes.plot([0, 1], [1, 0], color=GREY, linewidth=1)
        axes.set_title(f"gate {kind}", fontsize=15, loc="left")
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
        label(axes, "share of steps above 0.9", "share of steps below 0.1")
        axes.label_outer()
    for axes in panels[len(kinds) :]:
        axes.set_axis_off()
    if len(gated) > 1:
        legend(panels[0], loc="upper right")
    save(figure, to)
