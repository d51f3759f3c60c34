"""Selection of the hypotheses that a beam keeps after each token."""

from __future__ import annotations

import torch
from torch import Tensor

from everstep.decode.constraints import Automata
from everstep.decode.hypotheses import slots
from everstep.decode.largest import largest


def likeliest(
    log_p: Tensor, so_far: Tensor, lane: Tensor, lanes: int, width: int, shared: tuple[Automata, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The `width` most probable continuations of each lane, best first, without those of probability 0.

    Args:
        log_p: (rows, vocabulary) of the next token.
        so_far: (rows,) log p of the rows.
        lane: (rows,) sorted.
        lanes: number of lanes.
        width: number to keep.
        shared: automata and the rows' states in them, if the beam is shared among beginnings of equal progress.

    Returns:
        The rows that they continue, and their tokens, in the order of lanes.
    """
    if width == 1 and shared is None:
        best, token = (found[:, 0] for found in largest(log_p, 1))
        row = (best != -torch.inf).nonzero()[:, 0]
        return row, token[row]
    values, tokens = largest(log_p, min(width, log_p.shape[1]))
    if shared is not None:
        values, tokens = _with_wanted(log_p, values, tokens, *shared)
    slot, counts = slots(lane, lanes)
    size = tokens.shape[1]
    table = so_far.new_full((lanes, int(counts.max()), size), -torch.inf)
    table[lane, slot] = so_far[:, None] + values
    table = table.flatten(1)
    kept = min(width, table.shape[1])
    if shared is None:
        totals, place = table.topk(kept)
    else:
        progress = torch.zeros_like(table, dtype=torch.int64).view(lanes, -1, size)
        automata, numbers = shared
        after = automata.advance(numbers.repeat_interleave(size), tokens.flatten())
        progress[lane, slot] = automata.progress(after).view(-1, size)
        place = _in_turn(table, progress.flatten(1), kept)
        totals = table.gather(1, place)
    there = totals != -torch.inf  # NaN is there
    row = (counts.cumsum(0) - counts)[:, None] + place // size
    row, column = row[there], (place % size)[there]
    return row, tokens[row, column]


def diverse(
    log_p: Tensor,
    so_far: Tensor,
    lane: Tensor,
    lanes: int,
    width: int,
    groups: int,
    strength: float,
    shared: tuple[Automata, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """As `likeliest`, for lanes that are the `groups` of a source in turn (Vijayakumar 2018, "Diverse beam search").

    Before a group chooses, `strength` is subtracted from log p of a token for each time an earlier group of the source
    has chosen it at this step. This affects the choice, not the score.
    """
    counts = log_p.new_zeros(lanes // groups, log_p.shape[1])
    chosen = []
    for group in range(groups):
        mine = (lane % groups == group).nonzero()[:, 0]
        if not len(mine):
            continue
        source = lane[mine] // groups
        less = log_p[mine] - strength * counts[source]
        given = None if shared is None else (shared[0], shared[1][mine])
        row, token = likeliest(less, so_far[mine], lane[mine], lanes, width, given)
        counts.index_put_((source[row], token), counts.new_ones(()), accumulate=True)
        chosen.append((mine[row], token))
    row, token = (torch.cat(of) for of in zip(*chosen, strict=True))
    order = lane[row].argsort(stable=True)
    return row[order], token[order]


def _with_wanted(
    log_p: Tensor, values: Tensor, tokens: Tensor, automata: Automata, numbers: Tensor
) -> tuple[Tensor, Tensor]:
    """The candidates of each row and the tokens that its automaton wants, without duplicates."""
    more = automata.wanted(numbers)
    tokens = torch.cat([tokens, more], 1)
    values = torch.cat([values, log_p.gather(1, more)], 1)
    again = (tokens[:, :, None] == tokens[:, None, :]).tril(-1).any(-1)
    return values.masked_fill(again, -torch.inf), tokens


def _in_turn(totals: Tensor, progress: Tensor, width: int) -> Tensor:
    """Indices (lanes, width): the best of each progress, then the second of each, …; most progress first."""
    order = totals.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, progress.gather(1, order).argsort(dim=1, stable=True))
    sorted_progress = progress.gather(1, order)
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    begins = sorted_progress.diff(dim=1, prepend=sorted_progress[:, :1] - 1) != 0
    rank = place - place.where(begins, 0).cummax(1).values
    key = rank * (sorted_progress.max() + 1) - sorted_progress
    key = key.masked_fill(totals.gather(1, order) == -torch.inf, torch.iinfo(key.dtype).max)
    return order.gather(1, key.topk(width, largest=False).indices)
