"""The processes of a training: this one alone, or several that divide the rows of every batch among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from everstep.data.batches import Batches, Divides, Share
from everstep.errors import ConfigError
from everstep.learn.moves_itself import MovesItself


class World:
    """A training in one process; a `ProcessGroup` is one in several. All processes call the same methods in turn.

    Attributes:
        rank: the number of this process; 0 leads: it alone writes files, validates and decides.
        size: the number of processes.
        checkpoint: the last checkpoint, named if a process is lost.
        resume_command: how to go on from it.
    """

    rank = 0
    size = 1

    def __init__(self) -> None:
        self.checkpoint: Path | None = None
        self.resume_command = ""

    @property
    def leads(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """The rows of every batch that this process computes."""
        return Share(self.rank, self.size)

    def summed(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, in float64."""
        return list(numbers)

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """The largest of each number over all processes."""
        return list(numbers)

    def told(self, value: Any) -> Any:
        """What the leader gives, a JSON value, in every process."""
        return value

    def gathered(self, content: bytes) -> list[bytes]:
        """The contents of all processes in the leader; an empty list in the others."""
        return [content]

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its sum over all processes; one that only others have is added."""

    def copy_from_leader(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the values that they have in the leader, in place."""

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block, a process that is lost ends the others; its end waits for all of them."""
        yield


def check_divisible(world: World, model: nn.Module, batches: Batches[Any]) -> None:
    """Refuse what several processes cannot divide.

    Raises:
        ConfigError: the model moves itself, or there are batches without shares, or too few lanes.
    """
    if world.size == 1:
        return
    alone = "; train it in one process, without torchrun"
    if isinstance(model, MovesItself):
        raise ConfigError(
            f"expected a model with a gradient, of which {world.size} processes add their shares; a "
            f"{type(model).__name__} changes its own weights{alone}"
        )
    if not isinstance(batches, Divides):
        raise ConfigError(
            f"expected batches that {world.size} processes divide: with a method part(epoch, index, share), see "
            f"everstep.data.batches.Divides; got {type(batches).__name__}{alone}"
        )
    if batches.carries_state and batches.batch_size < world.size:
        raise ConfigError(
            f"train.batch_size: expected at least {world.size}, a lane for each process; got {batches.batch_size}"
        )
