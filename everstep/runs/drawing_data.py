"""Drawings of a recipe's `data` section, their splits, and their scale."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from everstep.data.move_batches import MoveBatches, Moves
from everstep.data.readers.drawings import Drawing, read_drawings
from everstep.data.text.text_files import expand
from everstep.errors import DataError, counted
from everstep.networks.number_scaling import NumberScaling
from everstep.runs.held_out import WholeExamples
from everstep.sections import Count, Files, Probability, Section

SCORED = 128
"""Drawings in a batch of validation and scoring."""
FARTHEST = 1e6
"""Longest move, in deviations of those of training."""
STRANGE = 100.0
"""A training move of more deviations is told."""


class DrawingSection(Section):
    """Drawings: files, splits, changes."""

    train: Files = "everstep:omniglot.train"
    """path, list or globs of JSON lines (a drawing a line), .ndjson of Quick, Draw!, .svg (one each), or .npz;
    ${EVERSTEP_DATA} is expanded"""
    valid: Files | None = None
    """null: valid_fraction of the drawings of train. Of an .npz, each split reads its own part"""
    valid_fraction: Probability = 0.1
    """0: no validation"""
    test: Files | None = None
    """evaluated at the end of training"""
    encoding: str = "utf-8"
    """encoding of text"""
    longest: Count | None = 500
    """most points of a drawing; longer ones are left out, of every split, and counted; null: none is"""
    stretched: Probability = 0.0
    """s: training multiplies Δx and Δy of a drawing by one factor each, in 1 ± s, anew in each epoch"""
    dropped: Probability = 0.0
    """probability with which training leaves out a point within a stroke, anew in each epoch"""

    @property
    def validated(self) -> bool:
        """Whether there is a validation split."""
        return self.valid is not None or self.valid_fraction > 0


class Drawings(WholeExamples[Drawing]):
    """The drawings (T, 3) of a recipe by split, in units of the data."""

    section: DrawingSection
    unit = "drawing"

    def _given(self, split: str) -> list[Drawing]:
        paths = expand(getattr(self.section, split))
        found = [one for path in paths for one in read_drawings(path, split, self.section.encoding)]
        most = self.section.longest
        kept = [one for one in found if len(one) > 0 and (most is None or len(one) <= most)]
        empty = sum(not len(one) for one in found)
        long = len(found) - len(kept) - empty
        if empty:
            self.notes.append(f"{split}: {counted(empty, 'drawing')} without a point, left out")
        if long:
            self.notes.append(f"{split}: {counted(long, 'drawing')} of more than {most:,} points, left out (longest)")
        if not kept:
            raise DataError(f"data.{split}: expected a drawing with a point; got none in {counted(len(found), 'line')}")
        return kept

    def scaling(self) -> NumberScaling:
        """One scale for both directions, the deviation of all training moves, and no shift."""
        moves = [drawing[:, :2] for drawing in self.of("train")]
        found = NumberScaling.fitted(moves, ("dx", "dy"), (2,), "all")
        return replace(found, shift=(0.0,))

    def scaled(self, split: str, scaling: NumberScaling) -> list[Moves]:
        """The drawings of a split as the network reads them.

        Raises:
            DataError: a move is very far from those of training.
        """
        return [scaled_moves(one, scaling, f"{split}, drawing {n}") for n, one in enumerate(self.of(split), 1)]

    def batches(self, split: str, scaling: NumberScaling, batch_size: int = SCORED, learn: bool = False) -> MoveBatches:
        """The drawings of a split: shuffled and changed to learn from, in order and as they are otherwise."""
        changes = {"stretched": self.section.stretched, "dropped": self.section.dropped} if learn else {}
        return MoveBatches(
            self.scaled(split, scaling), batch_size, seed=self._seed if learn else None, **changes
        )  # fmt: skip

    def told(self, scaling: NumberScaling) -> Iterator[str]:
        """Lines for the user: drawings and points of each split, and moves that are strange."""
        for split in self.splits():
            drawings = self.of(split)
            points = sum(map(len, drawings))
            yield f"{split}: {counted(len(drawings), 'drawing')}, {points:,} points"
        far = [float(np.abs(one[:, :2]).max()) / scaling.scale[0] for one in self.of("train")]
        if (longest := max(far)) > STRANGE:
            many = counted(sum(one > STRANGE for one in far), "training drawing")
            yield (f"note: {many} with moves of up to {longest:,.0f} deviations, beside which all others are small: "
                   f"if damaged, the first is drawing {1 + int(np.argmax(np.array(far) > STRANGE)):,}")  # fmt: skip
        yield from (f"note: {note}" for note in self.notes)

    def digest(self, split: str) -> str:
        """The SHA-256 of all drawings."""
        total = hashlib.sha256()
        for drawing in self.of(split):
            total.update(str(drawing.shape).encode() + np.ascontiguousarray(drawing).tobytes())
        return total.hexdigest()


def scaled_moves(drawing: Drawing, scaling: NumberScaling, where: str) -> Moves:
    """A drawing as the network reads it; `where` it stands, for errors.

    Raises:
        DataError: a move is very far from those of training.
    """
    moves = drawing[:, :2] / scaling.scale[0]
    if (farthest := float(np.abs(moves).max(initial=0))) > FARTHEST:
        raise DataError(f"{where}: expected moves like those of training, of about {scaling.scale[0]:.3g}; got one of "
                        f"{farthest * scaling.scale[0]:.3g}")  # fmt: skip
    return np.column_stack([moves, drawing[:, 2]]).astype(np.float32)
