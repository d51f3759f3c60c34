"""Tracks of a recipe's `data` section: positions at each step, and their splits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.number_formats import NumberColumns, NumberFormat, found_numbers
from everstep.data.text.text_files import expand
from everstep.data.track_windows import TrackWindows
from everstep.errors import DataError, counted
from everstep.networks.mover import MoverSection
from everstep.networks.number_scaling import NumberScaling
from everstep.runs.held_out import WholeExamples
from everstep.sections import Count, Files, Probability, Section

SCORED = 1024
"""Windows in a batch of validation and scoring."""


class TrackSection(Section):
    """Tracks: files, columns, splits."""

    train: Files = "everstep:balls.train"
    """path, list or globs; ${EVERSTEP_DATA} is expanded"""
    valid: Files | None = None
    """null: valid_fraction of the tracks of train"""
    valid_fraction: Probability = 0.1
    """0: no validation"""
    test: Files | None = None
    """evaluated at the end of training"""
    format: NumberFormat = "auto"
    """auto: by name, else long; long: a table, a step a row; npz: an array x (tracks, steps, numbers), and lengths"""
    values: str | tuple[str, ...] | None = None
    """columns of the position; npz: the array; null: all columns without another role, or x"""
    id: str | None = None
    """long: column that names the track; null: unique_id, series_id, series or id"""
    step: str | None = None
    """long: column that orders the steps; null: step, t, time, …, if one exists, else the order of the rows"""
    step_size: Count | None = None
    """numbers of a position, where a track is cut anew; null: as in the file, and 1 of rows"""

    @property
    def validated(self) -> bool:
        """Whether there is a validation split."""
        return self.valid is not None or self.valid_fraction > 0

    @property
    def columns(self) -> NumberColumns:
        """What the files hold where."""
        values = (self.values,) if isinstance(self.values, str) else self.values
        return NumberColumns(values, None, self.id, self.step, self.step_size)

    @property
    def padded(self) -> bool:
        """Whether missing steps at the end of a line are none."""
        return self.format == "rows"


class Tracks(WholeExamples[NDArray[Any]]):
    """The tracks (T, D) of a recipe by split, in units of the data."""

    section: TrackSection
    unit = "track"

    def __init__(self, section: TrackSection, seed: int):
        super().__init__(section, seed)
        self.columns: tuple[str, ...] = ()

    def _given(self, split: str) -> list[NDArray[Any]]:
        found: list[NDArray[Any]] = []
        for path in expand(getattr(self.section, split)):
            read = found_numbers(path, self.section.columns, self.section.format)
            self.columns = self.columns or read.columns
            if read.columns != self.columns or not read.columns:
                known, came = ", ".join(self.columns), ", ".join(read.columns)
                raise DataError(f"{path}: expected positions of {known or 'numbers'}; got {came or 'frames'}")
            for one in read.sequences:
                check_whole_track(one.steps, f"{path}, {one.name}")
                found.append(one.steps.astype(np.float64))
            self.notes += read.notes
        return found

    def scaling(self) -> NumberScaling:
        """A shift for each number of a position and one scale for all, fitted to the training tracks.

        One scale keeps directions; a shift each lets columns lie apart, such as a latitude and a longitude.
        """
        tracks = self.of("train")
        shape = tracks[0].shape[1:]
        shift = NumberScaling.fitted(tracks, self.columns, shape, "each").shift
        return replace(
            NumberScaling.fitted([track - shift for track in tracks], self.columns, shape, "all"), shift=shift
        )

    def windows(
        self, split: str, scaling: NumberScaling, model: MoverSection, batch_size: int = SCORED, learn: bool = False
    ) -> TrackWindows:
        """The windows of a split at stride 1.

        Raises:
            DataError: positions are not those of training, or no track is long enough.
        """
        tracks = self.of(split)
        check_columns(self.columns, scaling, f"data.{split}")
        scaled = [scaling.scaled(track) for track in tracks]
        return TrackWindows(scaled, model.window, model.horizon, batch_size, seed=self._seed if learn else None)

    def told(self, scaling: NumberScaling, model: MoverSection) -> Iterator[str]:
        """Lines for the user: tracks and windows of each split, and tracks too short."""
        for split in self.splits():
            windows = self.windows(split, scaling, model)
            short = sum(len(track) < model.window + model.horizon for track in self.of(split))
            left = f"; {short:,} too short" if short else ""
            yield f"{split}: {counted(len(self.of(split)), 'track')}, {len(windows.starts):,} windows{left}"
        yield from (f"note: {note}" for note in self.notes)

    def digest(self, split: str) -> str:
        """The SHA-256 of all positions."""
        total = hashlib.sha256()
        for track in self.of(split):
            total.update(str(track.shape).encode() + np.ascontiguousarray(track).tobytes())
        return total.hexdigest()


def check_whole_track(track: NDArray[Any], where: str) -> None:
    """Check that no number is missing.

    Raises:
        DataError: one is.
    """
    flat = track.reshape(len(track), math.prod(track.shape[1:])).astype(np.float64)
    missing = np.flatnonzero(np.isnan(flat).any(1))
    if len(missing):
        raise DataError(f"{where}: expected a position at each step; step {missing[0] + 1} lacks a number "
                        f"({len(missing):,} such steps); cut the track there")  # fmt: skip


def check_columns(columns: tuple[str, ...], scaling: NumberScaling, where: str) -> None:
    """Check that positions have the numbers of training.

    Raises:
        DataError: they have others.
    """
    if columns != scaling.columns:
        raise DataError(f"{where}: expected {', '.join(scaling.columns)}, as in training; got {', '.join(columns)}")
