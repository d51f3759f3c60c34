"""What is minimised: a generator of losses, one for each piece of a batch that is backpropagated by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor, nn

from everstep.data.batches import Batch
from everstep.state import State


class Loss(NamedTuple):
    """The loss of one piece of a batch.

    Attributes:
        total: (B,) nats of each row, already summed over time, differentiable: what is backpropagated. It may hold
            smoothing and regularisers. Computed in float32 whatever the precision of the model's products.
        nats: (B,) plain negative log-likelihood of each row in nats, detached: what is reported.
        state: the state after the piece; `fit` detaches the last one and hands it to the next batch.
    """

    total: Tensor
    nats: Tensor
    state: State


Objective = Callable[[nn.Module, Batch, State | None], Iterator[Loss]]
"""`objective(model, batch, state)` yields one `Loss` for each piece; `fit` calls backward on it before asking for more.

`state` is None where the rows start afresh: at an epoch's start, and always where `batches.carries_state` is False.
"""
