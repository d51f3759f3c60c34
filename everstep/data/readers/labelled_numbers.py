"""Labelled sequences of numbers: sensors, pen strokes, clips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everstep.data.readers.labelled import Labelled, labelled_of
from everstep.data.readers.labelled_rows import Row, Skipped
from everstep.data.readers.number_formats import (
    FoundNumbers,
    FoundSequence,
    NumberColumns,
    NumberFormat,
    found_numbers,
)
from everstep.errors import DataError

NOTHING = "no number at any step"


@dataclass(frozen=True)
class LabelledNumbers:
    """Sequences of numbers with classes.

    Attributes:
        examples: the classes; the text of an example is the index of its sequence in `sequences`.
        sequences: (T, *shape) each, T ≥ 1, with NaN where a number is missing.
        names: the name of each sequence.
        columns: the names of the numbers of a step; empty for frames.
        shape: of a step: (D,), or (height, width, channels) of a frame.
    """

    examples: Labelled
    sequences: list[NDArray[Any]]
    names: list[str]
    columns: tuple[str, ...]
    shape: tuple[int, ...]


def read_numbers(
    paths: Sequence[Path],
    columns: NumberColumns | None = None,
    format: NumberFormat = "auto",
    *,
    label_separator: str | None = None,
    fewest_classes: int = 2,
    first: int = 0,
) -> LabelledNumbers:
    """Labelled sequences of numbers from files, plain or compressed.

    - `long`: a table with a header, a step a row: the columns `unique_id`, `step` if there is one, values, `label`.
    - `rows`: a sequence a row: its numbers in order, step by step, and its class in one column. With a header or
      without one, where columns are numbered.
    - `npz`: arrays `x` (N, T), (N, T, D) or clips (N, T, H, W[, C]), `y` (N,), and `lengths` (N,) if they differ.
      Without `lengths`, steps of NaN at the end are no steps.
    - `ts`: the UCR/UEA archive of time series (Bagnall 2018, "The UEA multivariate time series classification
      archive"): one or more dimensions, missing values `?`, unequal lengths; without time stamps.
    - `idx`: images, a row of pixels a step.

    Sequences without any number are skipped and counted.

    Args:
        paths: files of the same kind.
        columns: what the files hold where.
        format: `auto` decides by the name: .npz, .ts, -idx, else long.
        label_separator: see `read_labelled`.
        fewest_classes: least number of classes; 1 for data that is only evaluated.
        first: the index of the first sequence in `examples`.

    Raises:
        DataError: a file cannot be read or used, a number is text or infinite, steps differ in their numbers, a class
            is missing, there are fewer classes than `fewest_classes`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.ts")
        >>> _ = path.write_text("@classLabel true up down\\n@data\\n1,2,3:up\\n3,?:down\\n")
        >>> read = read_numbers([path])
        >>> read.examples.labels, [one.tolist() for one in read.sequences]
        (['up', 'down'], [[[1.0], [2.0], [3.0]], [[3.0], [nan]]])
    """
    columns = columns or NumberColumns()
    read: list[tuple[Path, FoundNumbers]] = [(path, found_numbers(path, columns, format)) for path in paths]
    kept: list[FoundSequence] = []
    labelled = labelled_of(_rows(read, kept, first), list(paths), label_separator, fewest_classes, "sequence")
    labelled.notes.extend(note for _, found in read for note in found.notes)
    shape = common_shape(read, kept)
    return LabelledNumbers(labelled, [one.steps for one in kept], [o.name for o in kept], read[0][1].columns, shape)


def _rows(read: Sequence[tuple[Path, FoundNumbers]], kept: list[FoundSequence], first: int) -> Iterator[Row | Skipped]:
    """A row for each sequence with a number, which is added to `kept`."""
    for path, found in read:
        for one in found.sequences:
            if (one.steps.dtype.kind == "f" and np.isnan(one.steps).all()) or not len(one.steps):
                yield Skipped(NOTHING)
                continue
            yield Row(str(first + len(kept)), one.label, path, one.line)
            kept.append(one)


def common_shape(read: Sequence[tuple[Path, FoundNumbers]], kept: Sequence[FoundSequence]) -> tuple[int, ...]:
    """The shape of the steps of all sequences.

    Raises:
        DataError: files have other columns, or sequences have steps of other shapes.
    """
    (path, of_first), *others = read
    for other, found in others:
        if found.columns != of_first.columns:
            known, came = ", ".join(of_first.columns), ", ".join(found.columns)
            raise DataError(f"{other}: expected the columns of {path}: {known}; got {came}")
    shapes = {one.steps.shape[1:]: one.name for one in reversed(kept)}
    if len(shapes) > 1:
        (shape, name), (other_shape, other_name), *_ = reversed(shapes.items())
        raise DataError(
            f"{path}: expected equally many numbers at each step; {name} has {math.prod(shape)}, {other_name} "
            f"{math.prod(other_shape)}"
        )
    return next(iter(shapes))
