"""Pieces of music of a recipe's `data` section, and their splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from everstep.data.chord_batches import ChordBatches, Roll
from everstep.data.readers.chords import HIGHEST, Chord, read_pieces
from everstep.data.readers.midi import is_midi
from everstep.data.text.text_files import expand
from everstep.errors import DataError, counted
from everstep.runs.held_out import WholeExamples
from everstep.sections import Count, Files, Probability, Section, Whole

SCORED = 64
"""Pieces in a batch of validation and scoring."""


class MusicSection(Section):
    """Pieces: files, keys, splits."""

    holds_splits: ClassVar[tuple[str, ...]] = (".json", ".json.gz", ".json.xz")

    train: Files = "everstep:rounds.train"
    """path, list or globs of .mid, .json or text (a piece a line, `60,64,67 60,65 -`); ${EVERSTEP_DATA} is expanded"""
    valid: Files | None = None
    """null: valid_fraction of the pieces of train. Of a .json file with parts, each split reads its own"""
    valid_fraction: Probability = 0.1
    """0: no validation"""
    test: Files | None = None
    """evaluated at the end of training"""
    encoding: str = "utf-8"
    """encoding of text and JSON"""
    steps_per_beat: Count = 1
    """MIDI: steps of a quarter note; a note lasts a step at least"""
    lowest: int = Field(21, ge=0, le=HIGHEST)
    """lowest key that the model knows; 21 is the lowest of a piano, 60 the middle C. Other keys are left out"""
    highest: int = Field(108, ge=0, le=HIGHEST)
    """highest key that the model knows"""
    transpose: Whole = 0
    """most semitones by which training moves a piece up or down, anew in each epoch"""
    longest: Count | None = 512
    """most steps of a training piece; a longer one is cut into pieces of that length; null: never"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """A range without keys."""
        if self.lowest > self.highest:
            yield "highest", f"expected lowest or more, {self.lowest}; got {self.highest}"

    @property
    def validated(self) -> bool:
        """Whether there is a validation split."""
        return self.valid is not None or self.valid_fraction > 0

    @property
    def keys(self) -> int:
        """The number of keys K."""
        return self.highest - self.lowest + 1

    def roll(self, piece: Sequence[Chord]) -> Roll:
        """A piece as (steps, K): whether a key sounds."""
        found = np.zeros((len(piece), HIGHEST + 1), bool)
        for step, keys in enumerate(piece):
            found[step, list(keys)] = True
        return found[:, self.lowest : self.highest + 1]

    def heard(self, piece: Sequence[Chord], where: str) -> Roll:
        """As `roll`, of a piece all of whose keys the model knows.

        Raises:
            DataError: it does not know one.
        """
        for step, keys in enumerate(piece, 1):
            if strange := [key for key in keys if not self.lowest <= key <= self.highest]:
                known = f"{self.lowest} to {self.highest}"
                raise DataError(f"{where}, step {step}: this run knows the keys {known}; got {strange[0]}")
        return self.roll(piece)


class Pieces(WholeExamples[Roll]):
    """The pieces (steps, K) of a recipe by split."""

    section: MusicSection
    unit = "piece"

    def _given(self, split: str) -> list[Roll]:
        section = self.section
        names = getattr(section, split)
        found, given = [], 0
        unread: list[DataError] = []
        paths = expand(names)
        for path in paths:
            try:
                read = read_pieces(path, split, section.steps_per_beat, section.encoding)
            except DataError as error:
                if not is_midi(path):
                    raise
                unread.append(error)
                continue
            if not read:
                self.notes.append(f"{path}: no note, left out")
            given += sum(len(keys) for piece in read for keys in piece)
            found += [section.roll(piece) for piece in read]
        if len(unread) == len(paths):
            raise unread[0]
        if unread:
            self.notes.append(f"{split}: {len(unread):,} of {counted(len(paths), 'file')} cannot be read, left out: "
                              f"{unread[0]}{', …' if len(unread) > 1 else ''}")  # fmt: skip
        kept = sum(int(roll.sum()) for roll in found)
        if not kept:
            raise DataError(f"data.{split}: expected notes from {section.lowest} to {section.highest}; got none in "
                            f"{counted(len(found), 'piece')}")  # fmt: skip
        if kept < given:
            keys = f"data.lowest {section.lowest} to data.highest {section.highest}"
            self.notes.append(f"{split}: {given - kept:,} of {given:,} sounding keys are not among {keys}, left out")
        return found

    def batches(self, split: str, batch_size: int = SCORED, learn: bool = False) -> ChordBatches:
        """The pieces of a split: shuffled, transposed and cut to learn from, in order and whole otherwise."""
        rolls, section = self.of(split), self.section
        if not learn:
            return ChordBatches(rolls, batch_size)
        size = section.longest or max(map(len, rolls))
        cut = [roll[start : start + size] for roll in rolls for start in range(0, len(roll), size)]
        return ChordBatches(cut, batch_size, seed=self._seed, transpose=section.transpose)

    def told(self) -> Iterator[str]:
        """Lines for the user: pieces, steps and sounding keys of each split."""
        for split in self.splits():
            rolls = self.of(split)
            steps = sum(map(len, rolls))
            sounding = sum(int(roll.sum()) for roll in rolls) / steps
            yield f"{split}: {counted(len(rolls), 'piece')}, {steps:,} steps of {sounding:.1f} keys on average"
        yield from (f"note: {note}" for note in self.notes)

    def digest(self, split: str) -> str:
        """The SHA-256 of all pieces."""
        total = hashlib.sha256()
        for roll in self.of(split):
            total.update(str(roll.shape).encode() + np.packbits(roll).tobytes())
        return total.hexdigest()
