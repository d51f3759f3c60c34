"""Passages and pictures of music."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from everstep.data.chord_batches import Roll
from everstep.data.readers.chords import chords_of
from everstep.decode import Sampler
from everstep.look.passage import Passage
from everstep.look.piano_roll import draw_continued, draw_surprise, key_name
from everstep.networks.chord_decoder import continued
from everstep.networks.chord_model import ChordModel
from everstep.runs.music_data import Pieces

DRAWN = 64
"""Steps of a piece that are drawn, at most."""


def chosen_piece(pieces: Pieces, text: str | None) -> Roll:
    """The piece in the user's text, or else the first one of the last split."""
    if text is None:
        return pieces.of(pieces.splits()[-1])[0]
    return pieces.section.heard(chords_of(text, "the text"), "the text")


@torch.inference_mode()
def surprise(model: ChordModel, roll: Roll) -> list[float]:
    """−log₂ p of each chord given those before it."""
    chords = torch.from_numpy(roll)[None].float().to(model.device)
    found: list[float] = (model.nats(chords, torch.tensor([len(roll)]))[0] / math.log(2)).tolist()
    return found


def chord_passage(model: ChordModel, pieces: Pieces, text: str | None, characters: int) -> Passage:
    """A piece as the model reads it; a chord is counted as a character."""
    roll = chosen_piece(pieces, text)[:characters]
    lowest = pieces.section.lowest
    names = [" ".join(key_name(lowest + int(key)) for key in np.flatnonzero(keys)) or "-" for keys in roll]
    inputs = F.pad(torch.from_numpy(roll).float(), (0, 0, 1, 0))[:-1].to(model.device)
    return Passage(
        body=model.body,
        inputs=inputs,
        labels=[f"{name} | " for name in names],
        places=list(range(len(roll))),
        unit="chord",
        shown="chord",
        surprise=lambda: surprise(model, roll),
    )


def music_pictures(model: ChordModel, pieces: Pieces, text: str | None, out: Path) -> Iterator[tuple[Path, str]]:
    """Piano rolls: a piece with its surprise, and the piece as the model continues it."""
    roll, lowest = chosen_piece(pieces, text)[:DRAWN], pieces.section.lowest
    yield out / "piece.png", draw_surprise(roll, lowest, surprise(model, roll), out / "piece.png")
    seen = max(len(roll) // 3, 1)
    if len(roll) == seen:
        return
    sampler = Sampler(generator=torch.Generator(model.device).manual_seed(1))
    made = np.zeros_like(roll[seen:])
    for step, keys in enumerate(continued(model, roll[:seen], len(made), sampler)):
        made[step, keys] = True
    path = out / "continued.png"
    yield path, draw_continued(roll[:seen], roll[seen:], made, lowest, path)
