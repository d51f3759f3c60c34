"""Search for the best sequences, side by side for all sources of a batch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from everstep.decode.choice import diverse, likeliest
from everstep.decode.constraints import Constraint
from everstep.decode.decoder import Decoder
from everstep.decode.hypotheses import Finished, Hypothesis, Step
from everstep.decode.legality import Wishes
from everstep.decode.section import BeamSection
from everstep.decode.walk import Beginnings, Next, Walk


@torch.inference_mode()
def beam_search(
    decoder: Decoder,
    how: BeamSection | None = None,
    *,
    prefixes: Sequence[Sequence[int]] = (),
    constraints: Sequence[Constraint | None] = (),
    allowed: Sequence[int] | None = None,
    banned: Sequence[int] = (),
) -> list[list[Hypothesis]]:
    """The best finished sequences of each source, best first, all different.

    From each of the beginnings that it holds, the search tries every token, and of all that result it keeps the
    `beam_width` likeliest. Those that end leave the beam and are ranked by `Ranking`: log p over a power of the
    length, and what attention has missed. With `beam_width=1` this is greedy search; with a beam wider than there are
    beginnings it is exhaustive. A source is done as soon as none of its beginnings can get among its `n_best` any
    more, and its rows leave the batch; each source is searched as if it were alone. A sequence that reaches its
    greatest length ends there, with log p of the end.

    >>> p = torch.tensor([0.5, 0.3, 0.2])
    >>> model = Decoder(lambda tokens, state: (p.log().expand(len(tokens), 3), state), (), torch.tensor([0]), end=2)
    >>> (best,) = beam_search(model, BeamSection(n_best=2, length_penalty=1, max_length=3))
    >>> [(y.tokens, round(y.score, 3)) for y in best]
    [([], -1.609), ([0], -1.974)]

    Args:
        decoder: the model, with a row for each source; its step sees more and fewer rows.
        how: width, number of results, penalties and lengths. None: the defaults.
        prefixes: for each source the tokens that its sequences begin with, whatever is banned; () for none.
        constraints: for each source an automaton or None, such as `Phrases`; () for none.
        allowed: the only tokens that are written, besides the end; None: all.
        banned: tokens that are not written.

    Returns:
        For each source at most `n_best` hypotheses; fewer, perhaps none, if no more were found that are legal.

    Raises:
        ConfigError: settings or wishes that do not fit the decoder.
        RunError: the model says NaN.
    """
    how = how or BeamSection()
    walk = Walk(decoder, how, Wishes(prefixes, constraints, allowed, banned))
    rows, steps = walk.begin(), list[Step]()
    finished = Finished(walk.lanes, how.n_best, rows.log_p)
    while len(rows.lane):
        rows = _advance(walk, rows, steps, finished)
    lengths = decoder.source_lengths
    widths = None if lengths is None else lengths.repeat_interleave(how.groups).tolist()
    lanes = finished.read(steps, decoder.end, widths)
    return [_merged(lanes[first : first + how.groups], how.n_best) for first in range(0, walk.lanes, how.groups)]


def _advance(walk: Walk, rows: Beginnings, steps: list[Step], finished: Finished) -> Beginnings:
    """One more token; what ends goes to `finished`, what was chosen to `steps`."""
    t = len(steps)
    then = walk.step(rows, t)
    row, token = _choice(walk, then)
    total, lane = walk.totals(then, row, token), then.rows.lane[row]
    ends = walk.ends(lane, token, t)
    if ends.any():
        place = ends.nonzero()[:, 0]
        over = row[place]
        finished.add(lane[place], walk.score(then, over, total[place], t), t, place, walk.by_itself(then, over, t))
    lives = (~ends & _hopeful(walk, lane, total, ends, finished)).nonzero()[:, 0]
    steps.append(Step(row, token, total, lives, then.attention))
    return walk.onward(then.rows, row[lives], token[lives], total[lives])


def _hopeful(walk: Walk, lane: Tensor, total: Tensor, ends: Tensor, finished: Finished) -> Tensor:
    """(n,) bool: whether a beginning may still get among the best.

    A beginning that may not takes no place that another would use: those less likely may not either. But where
    beginnings change what others are worth, all of a source are kept as long as one of them may, so that the first
    result does not depend on how many are asked for.
    """
    may = walk.bound(lane, total) > finished.score[lane, -1]
    automata = walk.legality.automata
    if walk.how.groups == 1 and (automata is None or not automata.share_beam):
        return may
    source = walk.source(lane)
    return may.new_zeros(walk.lanes).index_fill(0, source[may & ~ends], True)[source]


def _choice(walk: Walk, then: Next) -> tuple[Tensor, Tensor]:
    """The rows and the tokens that the beam goes on with, by lane."""
    how, automata, numbers = walk.how, walk.legality.automata, then.rows.numbers
    shared = None
    if automata is not None and automata.share_beam and isinstance(numbers, Tensor):
        shared = automata, numbers
    width, log_p, lane = how.beam_width // how.groups, then.rows.log_p, then.rows.lane
    if how.groups == 1:
        return likeliest(then.legal, log_p, lane, walk.lanes, width, shared)
    return diverse(then.legal, log_p, lane, walk.lanes, width, how.groups, how.diversity, shared)


def _merged(groups: list[list[Hypothesis]], n_best: int) -> list[Hypothesis]:
    """The best of each group, then the second of each, …, each sequence once; by score."""
    found: dict[tuple[int, ...], Hypothesis] = {}
    for rank in itertools.zip_longest(*groups):
        for one in sorted(filter(None, rank), key=lambda one: -one.score):
            if len(found) < n_best:
                found.setdefault(tuple(one.tokens), one)
    return sorted(found.values(), key=lambda one: -one.score)
