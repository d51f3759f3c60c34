"""Objectives: generators of losses, one for each piece of a batch that is backpropagated separately."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from everstep.data.batches import Batch
from everstep.state import State, leaves


class Loss(NamedTuple):
    """The loss of one piece of a batch.

    Attributes:
        total: (B,), the loss of each row summed over time, differentiable; backpropagated. It may include smoothing
            and regularisers. It must be float32, whatever the precision of the model's products.
        reported: (B,), the plain loss of each row, detached, in nats or in the job's unit; shown to the user.
        state: the state after the piece; `fit` detaches the last one and passes it to the next batch.

    `fit` divides the sum over rows by the number of targets, `Batch.count`, so `total` must be a sum, not a mean.
    """

    total: Tensor
    reported: Tensor
    state: State = ()


B = TypeVar("B", bound=Batch)
Objective: TypeAlias = Callable[[nn.Module, B, State | None], Iterator[Loss]]
"""`objective(model, batch, state)` yields one `Loss` per piece; `fit` calls backward on each before taking the next.

`state` is None at the start of an epoch, and always if `batches.carries_state` is False.
"""

_RIGHT = """The right form:
    nats = F.cross_entropy(logits.mT, batch.targets, reduction="none").sum(1)  # (B,), summed over time
    yield Loss(nats, nats.detach(), state)"""


def begun(objective: Objective[Any], model: nn.Module, batch: Batch, state: State | None) -> Iterator[Any]:
    """The iterator of losses of `batch`, not yet started.

    Raises:
        TypeError: the objective returns instead of yielding.
    """
    given: Any = objective(model, batch, state)
    if isinstance(given, Loss | Tensor) or not hasattr(given, "__iter__"):
        raise TypeError(_yields(f"returns {type(given).__name__}"))
    return iter(given)


def check_loss(loss: Any, batch: Batch, carries_state: bool) -> None:
    """Check that `loss` is a `Loss` for `batch`, by types and shapes. B is `batch.rows` if it exists.

    Raises:
        TypeError, ValueError: it is not; the message says what came and shows the right form.
    """
    if not isinstance(loss, Loss):
        raise TypeError(_yields(f"yields {type(loss).__name__}"))
    for name, values in (("total", loss.total), ("reported", loss.reported)):
        if not isinstance(values, Tensor):
            raise TypeError(f"Loss.{name} should be a tensor, but is {type(values).__name__}. {_RIGHT}")
        rows = getattr(batch, "rows", None)
        if values.dim() != 1 or (rows is not None and len(values) != rows) or values.shape != loss.total.shape:
            expected = "B" if rows is None else rows
            raise ValueError(
                f"Loss.{name} should be ({expected},), the sum over time of each of the batch's {expected} rows, but "
                f"has shape {tuple(values.shape)}; `fit` itself divides by the number of targets. {_RIGHT}"
            )
        if values.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"Loss.{name} should be float32 or float64, but is {values.dtype}. {_RIGHT}")
    if not loss.total.requires_grad:
        raise ValueError(
            "Loss.total has no gradient: it was detached, computed under torch.no_grad(), or of nothing that learns. "
            f"{_RIGHT}"
        )
    if carries_state:
        for _, leaf in leaves(loss.state):
            if not isinstance(leaf, Tensor):
                raise TypeError(
                    f"Loss.state should be a nest of tensors, since the batches carry state (() for none), but holds "
                    f"{type(leaf).__name__}. {_RIGHT}"
                )


def _yields(what: str) -> str:
    return f"the objective should yield a Loss(total, reported, state) for each piece of a batch, but {what}. {_RIGHT}"
