"""Adapters for batches given as a list or a `DataLoader`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from everstep.data.batches import Batches
from everstep.errors import DataError


def as_batches(given: Batches[Any] | Iterable[Any], say: Callable[[str], None] = lambda line: None) -> Batches[Any]:
    """`given` as `Batches`: returned as it is, or wrapped if it is a sequence or an iterable with a length.

    Raises:
        TypeError: `given` has no length.
    """
    if hasattr(given, "batch") and hasattr(given, "carries_state"):
        return given  # type: ignore[return-value]
    if not hasattr(given, "__len__"):
        raise TypeError(f"fit: batches should have a length, but {type(given).__name__} has none; make a list of them")
    if isinstance(given, Sequence):
        return Listed(given)
    say(f"batches come from a {type(given).__name__}, whose order is its own: a resumed run will not be exact")
    return Iterated(given)


class Listed:
    """A sequence of batches, the same in every epoch."""

    carries_state = False

    def __init__(self, given: Any):
        self._given = given
        self.batch_size = int(getattr(given, "batch_size", None) or 1)

    def __len__(self) -> int:
        return len(self._given)

    def batch(self, epoch: int, index: int) -> Any:
        """Batch `index`."""
        del epoch
        return self._given[index]


class Iterated(Listed):
    """Batches from an iterable, which is restarted in each epoch."""

    def __init__(self, given: Any):
        super().__init__(given)
        self._place: tuple[int, int] | None = None
        self._rest: Iterator[Any] = iter(())

    def batch(self, epoch: int, index: int) -> Any:
        """Batch `index` of `epoch`. If it is not the next one, the batches before it are drawn and skipped."""
        if self._place != (epoch, index):
            self._rest = iter(self._given)
            for _ in range(index):
                next(self._rest, None)
        self._place = (epoch, index + 1)
        try:
            return next(self._rest)
        except StopIteration:
            raise DataError(f"the batches ended after {index}, though their length is {len(self)}") from None
