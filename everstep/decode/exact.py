"""Exact search for the best sequences, with a certificate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from everstep.decode.beam import beam_search
from everstep.decode.constraints import Constraint
from everstep.decode.decoder import Decoder
from everstep.decode.hypotheses import Finished, Hypothesis, Step
from everstep.decode.legality import Wishes
from everstep.decode.section import BeamSection
from everstep.decode.walk import Next, Walk
from everstep.errors import ConfigError, RunError
from everstep.state import select

_SIDE_BY_SIDE = 32
"""Hypotheses stepped at a time."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """The result of `exact_search` for a source.

    Attributes:
        best: the best sequence found; None if none is legal, or none was found.
        proven: whether no sequence is better; False if the search used up its nodes.
        beam: the best sequence of beam search.
        nodes: number of hypotheses stepped.
    """

    best: Hypothesis | None
    proven: bool
    beam: Hypothesis | None
    nodes: int

    @property
    def search_error(self) -> bool:
        """Whether beam search missed a better sequence."""
        return self.best is not None and (self.beam is None or self.best.tokens != self.beam.tokens)


@torch.inference_mode()
def exact_search(
    decoder: Decoder,
    how: BeamSection | None = None,
    *,
    nodes: int = 100_000,
    prefixes: Sequence[Sequence[int]] = (),
    constraints: Sequence[Constraint | None] = (),
    allowed: Sequence[int] | None = None,
    banned: Sequence[int] = (),
) -> list[Certificate]:
    """The best sequence of each source, found by depth-first search (Stahlberg & Byrne 2019, "On NMT search errors").

    A hypothesis is extended as long as its bound, the best possible score of its continuations, exceeds the score of
    the best known sequence, initially that of `beam_search`. The bound is log p of the hypothesis divided by the
    largest divisor of `Ranking`. So the proof is quick if `length_penalty` is 0 and `max_length` small, and may
    otherwise use up `nodes`.

    >>> p = torch.tensor([[0.0, 0.6, 0.4], [0.4, 0.6, 0.0], [1.0, 0.0, 0.0]]).log()
    >>> model = Decoder(lambda tokens, state: (p[tokens], state), (), torch.tensor([0]), end=0)
    >>> (found,) = exact_search(model, BeamSection(beam_width=1, length_penalty=0, max_length=4))
    >>> found.best.tokens, found.beam.tokens, found.proven, found.search_error
    ([2], [1, 1, 1, 1], True, True)

    Args:
        decoder, how, prefixes, constraints, allowed, banned: see `beam_search`; `n_best` and `groups` are 1.
        nodes: most hypotheses to step, for each source.

    Raises:
        ConfigError, RunError: as `beam_search`.
    """
    how = how or BeamSection()
    if how.n_best > 1 or how.groups > 1 or nodes < 1:
        raise ConfigError(
            "exact_search: n_best and groups should be 1 and nodes at least 1, "
            f"but are {how.n_best}, {how.groups} and {nodes}"
        )
    beams = beam_search(decoder, how, prefixes=prefixes, constraints=constraints, allowed=allowed, banned=banned)
    found = []
    for source, beam in enumerate(beams):
        own = Wishes(prefixes[source : source + 1], constraints[source : source + 1], allowed, banned)
        found.append(_searched(Walk(_only(decoder, source), how, own), beam[0] if beam else None, nodes))
    return found


def _only(decoder: Decoder, source: int) -> Decoder:
    """One source of the batch."""
    row, lengths = torch.tensor([source], device=decoder.prompt.device), decoder.source_lengths
    return decoder._replace(
        state=select(decoder.state, row),
        prompt=decoder.prompt[row] if decoder.prompt.dim() == 2 else decoder.prompt,
        source_lengths=None if lengths is None else lengths[row],
    )


class _Node(NamedTuple):
    """Hypotheses of one length with their continuations, highest bound first."""

    then: Next
    row: Tensor
    token: Tensor
    total: Tensor
    bound: Tensor

    def hopeful(self, score: float) -> int:
        """The number of the next few that can still exceed `score`."""
        return int((self.bound[:_SIDE_BY_SIDE] > score).sum())


def _searched(walk: Walk, beam: Hypothesis | None, nodes: int) -> Certificate:
    """The depth-first search of one source: path[t] holds hypotheses of t tokens."""
    best: list[int] | None = None
    score = -math.inf if beam is None else beam.score
    rows = walk.begin()
    rows = rows._replace(written=rows.lane.new_zeros(1, 0))
    path: list[_Node] = []
    stepped = 0
    while True:
        then = walk.step(rows, len(path))
        stepped += len(rows.lane)
        tokens, found = _best_end(walk, then, len(path))
        if found > score:
            best, score = tokens, found
        path.append(_continued(walk, then, len(path), score))
        while path and not path[-1].hopeful(score):
            path.pop()
        if not path or stepped >= nodes:
            break
        node, n = path[-1], path[-1].hopeful(score)
        rows = walk.onward(node.then.rows, node.row[:n], node.token[:n], node.total[:n])
        path[-1] = _Node(node.then, node.row[n:], node.token[n:], node.total[n:], node.bound[n:])
    return Certificate(beam if best is None else _read(walk, best), not path, beam, stepped)


def _best_end(walk: Walk, then: Next, t: int) -> tuple[list[int], float]:
    """The best sequence that is finished with token t, and its score."""
    end, rows = walk.decoder.end, then.rows
    if end is None and int(walk.legality.longest) != t + 1:
        return [], -math.inf
    each = torch.arange(len(rows.lane), device=rows.lane.device)
    token = then.legal.argmax(1) if end is None else torch.full_like(each, end)
    total = rows.log_p + then.legal[each, token]
    score = walk.score(then, each, total, t).masked_fill(total == -torch.inf, -torch.inf)
    row = int(score.argmax())
    assert isinstance(rows.written, Tensor)
    return [*rows.written[row].tolist(), int(token[row])], float(score[row])


def _continued(walk: Walk, then: Next, t: int, score: float) -> _Node:
    """The extended hypotheses that may exceed `score`."""
    end, rows = walk.decoder.end, then.rows
    total = rows.log_p[:, None] + then.legal
    if total.isnan().any():
        raise RunError("exact_search: log p of a token is NaN: the model diverged or its weights are damaged")
    if end is not None:
        total[:, end] = -torch.inf
    elif int(walk.legality.longest) == t + 1:
        total[:] = -torch.inf
    bound = walk.bound(rows.lane[:, None], total)
    row, token = (bound > score).nonzero().unbind(1)
    order = bound[row, token].argsort(descending=True)
    row, token = row[order], token[order]
    return _Node(then, row, token, total[row, token], bound[row, token])


def _read(walk: Walk, tokens: list[int]) -> Hypothesis:
    """The sequence as a `Hypothesis`."""
    rows, steps = walk.begin(), list[Step]()
    finished = Finished(1, 1, rows.log_p)
    first = rows.lane  # (0,)
    for t, token in enumerate(tokens):
        then = walk.step(rows, t)
        chosen = first.new_tensor([token])
        total = walk.totals(then, first, chosen)
        steps.append(Step(first, chosen, total, first, then.attention))
        rows = walk.onward(then.rows, first, chosen, total)
    last = len(tokens) - 1
    finished.add(first, walk.score(then, first, total, last), last, first, walk.by_itself(then, first, last))
    lengths = walk.decoder.source_lengths
    return finished.read(steps, walk.decoder.end, None if lengths is None else lengths.tolist())[0][0]
