"""The interface between data sets and training: batches by number."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.state import map_state


class Batch(Protocol):
    """The interface of a batch in `fit`.

    Attributes:
        count: number of targets that contribute to the loss.

    A batch may also have `rows`, its number of rows; `fit` then checks the shape of losses against it.
    """

    @property
    def count(self) -> int: ...

    def to(self, device: torch.device) -> Self:
        """The batch on `device`."""


class Movable:
    """A mixin for frozen dataclasses of tensors and nests of tensors: `to` moves all of them."""

    def to(self, device: torch.device) -> Self:
        """The batch on `device`."""

        def move(value: object) -> object:
            return value.to(device) if isinstance(value, Tensor) else value

        moved = {field.name: map_state(move, getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class TokenBatch(Movable):
    """A batch of token sequences, B rows of T steps.

    Attributes:
        inputs: (B, T) int64, the token read at each step.
        targets: (B, T) int64, the token to predict at each step.
        lengths: (B,) int64 or None (all T): steps at or beyond a row's length are padding.
        resets: (B, T) bool or None: the state is reset to the initial one before that step.
        context: number of first steps without a loss, through which the gradient flows (k2 > k1).
        advance: steps from the start of this batch to the start of the next (state-carrying batches only).
    """

    inputs: Tensor
    targets: Tensor
    lengths: Tensor | None
    resets: Tensor | None
    context: int
    advance: int

    @property
    def rows(self) -> int:
        """B."""
        return len(self.inputs)

    @property
    def count(self) -> int:
        """Number of targets that contribute to the loss.

        Targets may cover all steps, or only those after `context`.

        Raises:
            ValueError: `targets` covers neither, so that `lengths` and `context` do not apply.
        """
        if self.targets.dim() < 2:
            raise ValueError(f"Batch: targets should be (B, T), but are {tuple(self.targets.shape)}")
        rows, steps = self.targets.shape[:2]
        if self.lengths is None and not self.context:
            return rows * steps
        time = self.inputs.shape[1]
        if steps not in (time, time - self.context):
            raise ValueError(
                f"Batch: targets are {tuple(self.targets.shape)}, but inputs have {time} steps, which `lengths` "
                "and `context` count in; for targets of another number make a subclass with a `count` of its own"
            )
        if self.lengths is None:
            return rows * (time - self.context)
        return int((self.lengths - self.context).clamp_min(0).sum())


B = TypeVar("B", bound=Batch, covariant=True)


class Batches(Protocol[B]):
    """Random access to the batches of every epoch; `batch(epoch, index)` depends on its arguments alone.

    `carries_state`: whether row b of batch i + 1 continues row b of batch i. `batch_size`: rows in a batch, or another
    size that determines how an epoch is divided.
    """

    batch_size: int
    carries_state: bool

    def __len__(self) -> int: ...

    def batch(self, epoch: int, index: int) -> B: ...


class Share(NamedTuple):
    """The rows of every batch that one of several processes computes: `rank`, `rank + of`, `rank + 2 · of`, …

    >>> Share(1, 3).part(np.arange(7)).tolist()
    [1, 4]
    """

    rank: int = 0
    of: int = 1

    def part(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Those of `rows` that belong to this share."""
        return rows[self.rank :: self.of]


@runtime_checkable
class Divides(Protocol):
    """Batches that can give a share of the rows of each, as a training in several processes needs.

    The shares of all processes hold each row of `batch(epoch, index)` once, and each share depends on its arguments
    alone. Where state is carried, a share holds the same lanes in every batch.
    """

    def part(self, epoch: int, index: int, share: Share) -> Any:
        """The rows of batch `index` of `epoch` that belong to `share`, as a batch; None if there are none."""


class RowBatches(Batches[B]):
    """Batches without carried state that a subclass makes of numbered rows."""

    carries_state = False

    def batch(self, epoch: int, index: int) -> B:
        """Batch `index` of `epoch`. The order of an epoch is computed once.

        Raises:
            IndexError: there is no such batch.
        """
        return self.made_of(self.drawn(epoch, index))

    def part(self, epoch: int, index: int, share: Share) -> B | None:
        """The rows of a batch that belong to `share`, as a batch; None if there are none."""
        rows = share.part(self.drawn(epoch, index))
        return self.made_of(rows) if len(rows) else None

    @abstractmethod
    def drawn(self, epoch: int, index: int) -> NDArray[np.int64]:
        """The numbers of the rows of a batch, (B,)."""

    @abstractmethod
    def made_of(self, rows: NDArray[np.int64]) -> B:
        """The batch of these rows."""
