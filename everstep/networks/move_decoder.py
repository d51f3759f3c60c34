"""Drawings that a model of moves makes, move by move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from everstep.data.move_batches import Moves, with_pens
from everstep.data.readers.drawings import move_text
from everstep.decode import draws
from everstep.decode.decoder import Decoder, Numbers
from everstep.decode.sampling import NumberSampler
from everstep.networks.move_model import START, MoveModel
from everstep.state import map_state

END = (0.0, 0.0, 0.0, 0.0, 1.0)
"""The row that ends a drawing."""


def move_decoder(model: MoveModel, given: Moves) -> Decoder:
    """A decoder that continues the scaled drawing `given` (T, 3)."""
    rows = np.concatenate([np.array([START], np.float32), with_pens(given)[:-1]])
    prompt = torch.from_numpy(rows).to(model.device)
    return Decoder(model.step, model.initial_state(1), prompt, None, begins=1, numbers=Numbers(model.head.draw, END))


def made_drawings(model: MoveModel, count: int, most: int, temperature: float, seed: int) -> list[Moves]:
    """Drawings (T, 3) of at most `most` points that the model samples, scaled."""
    decoder = move_decoder(model, np.zeros((0, 3), np.float32))
    state = map_state(lambda leaf: leaf.expand(count, *leaf.shape[1:]), decoder.state)
    sampler = NumberSampler(model.head.draw, temperature, torch.Generator(model.device).manual_seed(seed))
    rows = torch.stack(list(draws(decoder.step, state, decoder.prompt, most, sampler, count)), 1).cpu().numpy()
    found = []
    for row in rows:
        ends = np.flatnonzero(row[:, 4])
        kept = row[: ends[0]] if len(ends) else row
        found.append(np.column_stack([kept[:, :2], kept[:, 3]]))
    return found


class MoveSpeller:
    """Moves to text, `[[Δx,Δy,lifted],…]` in units of the data.

    Args:
        scale: what moves were divided by.
    """

    def __init__(self, scale: float):
        self._scale, self._begun = scale, False

    def spell(self, ids: Sequence[Sequence[float]]) -> str:
        """The text of these moves."""
        text = ""
        for dx, dy, _, lifted, _ in ids:
            text += ("," if self._begun else "[") + move_text(dx * self._scale, dy * self._scale, int(lifted))
            self._begun = True
        return text

    def end(self) -> str:
        """The bracket that closes the drawing."""
        return "]" if self._begun else "[]"
