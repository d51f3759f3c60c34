"""A recipe's `data` section of labelled sequences of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everstep.data.readers.number_formats import NumberColumns, NumberFormat, format_of
from everstep.data.text.text_files import expand, filled_in
from everstep.errors import DataError
from everstep.networks.number_scaling import Scaled
from everstep.runs.labelled_splits import ExamplesSection
from everstep.sections import Count, Files


class NumberSection(ExamplesSection):
    """Labelled sequences of numbers: files, columns, classes, scaling."""

    train: Files = "everstep:gestures.train"
    """path, list or globs; ${EVERSTEP_DATA} is expanded"""
    format: NumberFormat = "auto"
    """auto: by name, else long; long: a table, a step a row; rows: a sequence a row; npz: arrays x, y and lengths, also
    of clips; ts: the UCR/UEA archive; idx: images, a row of pixels a step"""
    values: str | tuple[str, ...] | None = None
    """columns of the numbers; npz: the array; null: all columns without another role, or x"""
    label: str = "label"
    """column of the classes; npz: the array; without a header count from 0: -1 is the last column"""
    id: str | None = None
    """long: column that names the sequence; null: unique_id, series_id, series or id"""
    step: str | None = None
    """long: column that orders the steps; null: step, t, time, …, if one exists, else the order of the rows"""
    step_size: Count | None = None
    """numbers of a step, of which a sequence is cut anew; null: as in the file, and 1 of rows"""
    max_length: Count | None = None
    """most steps read of a sequence, from the first; null: all"""
    scaling: Scaled = "each"
    """by mean and standard deviation of train; each: every number of a step by itself; all: together, as for pixels"""

    @property
    def columns(self) -> NumberColumns:
        """What the files hold where."""
        values = (self.values,) if isinstance(self.values, str) else self.values
        return NumberColumns(values, self.label, self.id, self.step, self.step_size)

    @property
    def padded(self) -> bool:
        """Whether missing steps at the end of a line are none."""
        return self.format == "rows"


OWN = frozenset(NumberSection.model_fields) - frozenset(ExamplesSection.model_fields) - {"format", "max_length"}
FORMATS = frozenset({"long", "rows", "npz", "ts", "idx"})


def holds_numbers(data: Mapping[str, Any]) -> bool:
    """Whether the raw `data` section of a recipe is of sequences of numbers, not of texts.

    It is where it has a key of `NumberSection` alone, or one of its formats, or no format and a name in `train` that
    tells one.

    >>> holds_numbers({"train": "pens.ts"}), holds_numbers({"train": "a.csv"}), holds_numbers({"format": "rows"})
    (True, False, True)
    """
    kind = data.get("format", "auto")
    if OWN & set(data) or (isinstance(kind, str) and kind in FORMATS):
        return True
    if kind not in ("auto", None):
        return False
    named = data.get("train")
    names = [named] if isinstance(named, str) else named if isinstance(named, list | tuple) else []
    return any(_is_numeric(name) for name in names if isinstance(name, str))


def _is_numeric(name: str) -> bool:
    if not name.startswith("everstep:"):
        return format_of(Path(filled_in(name))) != "long"
    try:
        (path,) = expand(name)
    except DataError:  # reported when the data is read
        return False
    return format_of(path) != "long"
