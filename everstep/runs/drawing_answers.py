"""What runs of drawings answer: scores, figures of baselines, SVG pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from everstep.data.move_batches import with_pens
from everstep.data.readers.drawings import drawing_of
from everstep.look.pen_pictures import svg_bytes
from everstep.networks.move_model import MoveModel, MoveSection, point_nats
from everstep.networks.number_scaling import NumberScaling
from everstep.networks.scoring import Score
from everstep.rivals.moves import move_rivals
from everstep.runs.drawing_data import Drawings, scaled_moves


def scored_drawings(model: MoveModel, scaling: NumberScaling, lines: Sequence[str], first_line: int) -> list[Score]:
    """log p of the drawing in each line, Σ_t log p(x_t | x_<t), its end included: a density of scaled moves.

    Raises:
        DataError: a line is no drawing, or a move is very far from those of training.
    """
    model.eval()
    found = []
    for number, line in enumerate(lines, first_line):
        moves = scaled_moves(drawing_of(line, f"line {number}"), scaling, f"line {number}")
        logps = (-point_nats(model, moves)).tolist()
        found.append(Score(sum(logps), len(moves), line, tuple(logps)))
    return found


def drawing_rivals(
    drawings: Drawings, scaling: NumberScaling, split: str, section: MoveSection
) -> list[dict[str, Any]]:
    """The measures of each baseline on a split, with as many Gaussians and the same least deviation as the network."""
    train, asked = ([with_pens(one) for one in drawings.scaled(name, scaling)] for name in ("train", split))
    points = sum(len(one) - 1 for one in asked) / len(asked)
    return [
        {"name": name, "loss": move + pen, "nats_per_drawing": (move + pen) * points, "move": move, "pen": pen}
        for name, move, pen in move_rivals(train, asked, section.components, section.least_deviation)
    ]


def rendered_drawing(text: str) -> bytes:
    """A generated drawing as an SVG picture; one that was interrupted lacks its last bracket.

    Raises:
        DataError: it is no drawing.
    """
    whole = text if text.rstrip().endswith("]]") or not text.strip("[] \n") else f"{text}]"
    return svg_bytes(drawing_of(whole, "the drawing"))
