"""Sequences of numbers that a run is asked about: a sequence a line, or a long table as in training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from numpy.typing import NDArray

from everstep.data.readers.number_formats import NumberColumns, is_text, without_end
from everstep.data.readers.number_lines import asked_sequence, fields_of
from everstep.data.readers.number_tables import found_in_table
from everstep.data.readers.tables import table_of
from everstep.errors import DataError
from everstep.networks.number_scaling import NumberScaling

WHERE = "the input"


def asked_form(scaling: NumberScaling) -> str:
    """What lines hold, see `asked_numbers`, in sentences for people."""
    of_a_step = " × ".join(map(str, scaling.shape))
    line = f"One sequence per line: its numbers in order ({of_a_step} a step), separated by commas or spaces."
    return f"{line} Or a table as in training, with {', '.join(scaling.columns)}." if scaling.columns else line


class AskedSequence(NamedTuple):
    """A sequence: its name, or the number of its line, and its steps (T, *shape) in units of the data."""

    name: str
    steps: NDArray[Any]


def asked_numbers(
    lines: Iterable[str], scaling: NumberScaling, columns: NumberColumns, padded: bool = False
) -> Iterator[AskedSequence]:
    """The sequences of lines, in order.

    A line is a sequence (see `asked_sequence`). If the first line names columns, all lines are one long table of the
    columns of training, whose sequences come in the order in which they begin.

    Args:
        lines: the input.
        scaling: columns and shape of training.
        columns: the names of the columns that name sequences and steps.
        padded: whether missing steps at the end of a line are none, as in training files with a sequence a row.

    Raises:
        DataError: a line cannot be read, or has other numbers a step than training.
    """
    source = iter(lines)
    first = next(source, None)
    if first is None:
        return
    if scaling.columns and names_columns(first):
        yield from _of_table(chain([first], source), scaling, columns)
        return
    for place, line in enumerate(chain([first], source), 1):
        steps = asked_sequence(line, scaling.shape, f"{WHERE}, line {place}")
        yield AskedSequence(str(place), without_end(steps) if padded else steps)


def _of_table(lines: Iterable[str], scaling: NumberScaling, columns: NumberColumns) -> Iterator[AskedSequence]:
    import polars as pl

    content = "\n".join(line.removesuffix("\n") for line in lines).encode()
    try:
        table = table_of(content)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{WHERE}: cannot be read as a table: {str(error).splitlines()[0]}") from None
    if not table.height:
        raise DataError(f"{WHERE}: expected rows below the names of columns; got none")
    for name, steps, _, _ in found_in_table(table, WHERE, scaling.columns, None, columns.id, columns.step)[0]:
        yield AskedSequence(name, steps)


def names_columns(line: str) -> bool:
    """Whether a line is the header of a table: it holds words, and is neither JSON nor of the UCR/UEA archive.

    >>> names_columns("unique_id,step,x"), names_columns("1,?,3"), names_columns("1,2:3,4"), names_columns("[[1, 2]]")
    (True, False, False, False)
    """
    if ":" in line or line.lstrip().startswith(("[", "{")):
        return False
    return any(map(is_text, fields_of(line)))
