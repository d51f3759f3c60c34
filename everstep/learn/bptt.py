"""Objectives in little memory: the loss of a long batch, computed piece by piece in time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch import nn

from everstep.data.batches import TokenBatch
from everstep.learn.objective import Loss, Objective
from everstep.state import State
from everstep.wirings.checkpointed import refuse_shared_masks
from everstep.wirings.recompute import recomputed, steps_of_piece


def checkpointed(objective: Objective[TokenBatch], every: int | None = None) -> Objective[TokenBatch]:
    """An objective that stores only the state at the start of each piece for backward (Chen et al. 2016).

    Gives Σ_t loss_t and its full gradient through time, equal to those of `objective` on the whole batch. The batch is
    cut into pieces of `every` steps. Embedding, cells, head and loss of each piece run forward; the activations of all
    pieces but the last are discarded and recomputed in backward. Memory for T steps: the tokens, T/every states, and
    the activations of `every` steps; with the default it grows more slowly than √T.

    Args:
        objective: yields one `Loss` for a batch, summed over its steps.
        every: steps in a piece; about 50 ∛T if None.

    Known limits: those of `everstep.Checkpointed`. A batch that begins with context (k2 > k1) is also cut where the
    next batch begins, because the state is carried from there.

    Raises:
        ValueError: `every` is below 1. When run: the objective yields several losses (`likelihood(k2)` cuts the
            gradient itself), or a wiring in training mode draws one mask for a whole sequence.

    Example:
        >>> from everstep.networks.likelihood import likelihood
        >>> objective = checkpointed(likelihood(), every=100)
    """
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ValueError(f"checkpointed: every should be a whole number of at least 1, but is {every!r}")

    def in_pieces(model: nn.Module, batch: TokenBatch, state: State | None) -> Iterator[Loss]:
        refuse_shared_masks(model, "checkpointed")
        time = batch.inputs.shape[1]
        size = every or steps_of_piece(time)
        advance = batch.advance if 0 < batch.advance < time else time

        def until(begin: int, end: int, sums: State) -> State:
            cuts = [begin, *(cut for cut in range(0, time, size) if begin < cut < end), end]
            pieces = [narrow(batch, start, stop) for start, stop in pairwise(cuts)]
            return recomputed(run, model, [tuple(vars(piece).values()) for piece in pieces], sums)[1]

        sums = until(0, advance, (state, None, None))
        carried = sums[0]
        if advance < time:
            sums = until(advance, time, sums)
        _, total, nats = sums
        yield Loss(total, nats.detach(), carried)

    def run(model: nn.Module, inputs: Any, sums: State) -> tuple[Any, State]:
        state, total, nats = sums
        losses = list(objective(model, TokenBatch(*inputs), state))
        if len(losses) != 1:
            raise ValueError(
                f"checkpointed: the objective should yield one Loss for a batch, but yields {len(losses)}; one that "
                f"cuts the gradient itself (k2) needs no checkpoints"
            )
        more, more_nats, state = losses[0]
        return (), (state, more if total is None else total + more, more_nats if nats is None else nats + more_nats)

    return in_pieces


def narrow(batch: TokenBatch, start: int, stop: int) -> TokenBatch:
    """The steps `start` to `stop` (exclusive) of a batch, as a batch."""
    window = slice(start, stop)
    inputs = batch.inputs[:, window]
    steps = inputs.shape[1]
    return TokenBatch(
        inputs,
        batch.targets[:, window],
        None if batch.lengths is None else (batch.lengths - start).clamp(0, steps),
        None if batch.resets is None else batch.resets[:, window],
        min(max(0, batch.context - start), steps),
        steps,
    )
