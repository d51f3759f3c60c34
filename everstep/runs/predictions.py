"""What answers lines with lines: some at a time, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from numpy.typing import NDArray

from everstep.runs.task import Prediction

BLOCK = 1024
"""Lines answered at a time."""


def by_block(
    lines: Iterable[str], answer: Callable[[list[str]], Iterable[Prediction]], size: int = BLOCK
) -> Iterator[Prediction]:
    """One prediction a line, in order; `answer` is given up to `size` lines at a time, without their ends."""
    source = iter(lines)
    while block := [line.removesuffix("\n") for line in islice(source, size)]:
        yield from answer(block)


def class_predictions(
    lines: Sequence[str], probabilities: NDArray[Any], classes: Sequence[str]
) -> Iterator[Prediction]:
    """`label<TAB>probability` of each line; all probabilities in the record.

    Args:
        lines: N texts.
        probabilities: (N, K).
        classes: the K names.
    """
    for line, row in zip(lines, probabilities, strict=True):
        best = int(row.argmax())
        record = {"text": line, "label": classes[best], "probability": float(row[best])}
        every = dict(zip(classes, map(float, row), strict=True))
        yield Prediction(f"{classes[best]}\t{row[best]:.4f}", {**record, "probabilities": every})
