"""The values of units and gates of a run over a text."""

from __future__ import annotations

from typing import Any

from everstep.look.gates import activities
from everstep.look.step import NamedSteps
from everstep.runs.run import Run
from everstep.ship.serving.faults import Fault
from everstep.ship.serving.requests import UnitsBody


def unit_values(run: Run, body: UnitsBody, kept: NamedSteps) -> dict[str, Any]:
    """What one unit holds after each piece of a text, and which units there are.

    Args:
        run: the run.
        body: what is asked for.
        kept: the traced steps of this run.

    Returns:
        `layers`: name and parts (gates, candidates and leaves of the state) of each, with their numbers of units;
        `layer`, `part` and `unit` as chosen; `labels`, the pieces, and `values`, one for each.

    Raises:
        Fault: 422, there is no such layer, part or unit.
        EverstepError: the text cannot be read.
    """
    # a passage of several lines ends with a line
    text = body.text if "\n" not in body.text or body.text.endswith("\n") else f"{body.text}\n"
    passage = run.passage(text, len(text))
    try:
        found = activities(passage.body, passage.inputs[None], kept=kept)
        if body.layer >= len(found):
            raise Fault(422, f"layer: expected 0 to {len(found) - 1}; got {body.layer}")
        activity = found[body.layer]
        part = body.part if body.part is not None else next(iter(activity.parts))
        values = activity.unit(part, body.unit)
    except ValueError as error:
        raise Fault(422, str(error)) from None
    return {
        "layers": [
            {"name": one.name, "parts": {name: values.shape[1] for name, values in one.parts.items()}} for one in found
        ],
        "layer": body.layer,
        "part": part,
        "unit": body.unit,
        "labels": list(passage.labels),
        "values": [float(values[place]) for place in passage.places],
    }
