"""Objectives in little memory: the loss of a long batch, one piece of time after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from everstep.data.batches import Batch
from everstep.learn.objective import Loss, Objective
from everstep.state import State
from everstep.wirings.checkpointed import refuse_shared_masks
from everstep.wirings.recompute import recomputed, steps_of_piece


def checkpointed(objective: Objective, every: int | None = None) -> Objective:
    """An objective whose backward keeps only the state at the start of each piece of the batch (Chen et al. 2016).

    Σ_t loss_t and its whole gradient through time, as of `objective` on the batch at once. The batch is cut into pieces
    of `every` steps; embedding, cells, head and loss of a piece run, are forgotten, and run again in backward. So what
    grows with the T steps of a batch is T/every states and all that `every` steps need, by default less than √T grows,
    besides the tokens.

    Args:
        objective: yields one `Loss` for a batch, which is the sum over its steps.
        every: steps of a piece; about 50 ∛T if None.

    Known limits: those of `everstep.Checkpointed`. A batch that begins with context (k2 > k1) is also cut where the
    next one begins, because the state is carried on from there.

    Raises:
        ValueError: `every` below 1; when run, an objective that yields several losses (`likelihood(k2)` cuts the
            gradient itself), or in training a wiring that draws one mask for a whole sequence.

    Example:
        >>> from everstep.tasks.language_model import likelihood
        >>> objective = checkpointed(likelihood(), every=100)
    """
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ValueError(f"checkpointed: every should be a whole number of at least 1, but is {every!r}")

    def in_pieces(model: nn.Module, batch: Batch, state: State | None) -> Iterator[Loss]:
        refuse_shared_masks(model, "checkpointed")
        time = batch.inputs.shape[1]
        ends = {*range(0, time, every or steps_of_piece(time)), time}
        advance = batch.advance if 0 < batch.advance < time else time
        bounds = sorted({*ends, advance})
        total: Tensor | None = None
        nats: Tensor | None = None
        carried = state
        for start, stop in pairwise(bounds):
            loss, more, state = _piece(objective, model, narrow(batch, start, stop), state)
            total = loss if total is None else total + loss
            nats = more if nats is None else nats + more
            if stop == advance:
                carried = state
        assert total is not None
        assert nats is not None
        yield Loss(total, nats.detach(), carried)

    return in_pieces


def _piece(objective: Objective, model: nn.Module, batch: Batch, state: State) -> tuple[Tensor, Tensor, State]:
    def run(model: nn.Module, inputs: Any, state: State) -> tuple[Any, State]:
        tokens, targets, lengths, resets = inputs
        piece = replace(batch, inputs=tokens, targets=targets, lengths=lengths, resets=resets)
        losses = list(objective(model, piece, state))
        if len(losses) != 1:
            raise ValueError(
                f"checkpointed: the objective should yield one Loss for a batch, but yields {len(losses)}; one that "
                f"cuts the gradient itself (k2) needs no checkpoints"
            )
        return (losses[0].total, losses[0].nats), losses[0].state

    inputs = (batch.inputs, batch.targets, batch.lengths, batch.resets)
    (total, nats), state = recomputed(run, model, inputs, state)
    return total, nats, state


def narrow(batch: Batch, start: int, stop: int) -> Batch:
    """The steps start … stop of a batch, as a batch."""
    window = slice(start, stop)
    inputs = batch.inputs[:, window]
    steps = inputs.shape[1]
    return Batch(
        inputs,
        batch.targets[:, window],
        None if batch.lengths is None else (batch.lengths - start).clamp(0, steps),
        None if batch.resets is None else batch.resets[:, window],
        min(max(0, batch.context - start), steps),
        steps,
    )
