"""Beam search for the best sequences, in parallel for all sources of a batch."""

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
    """The best finished sequences of each source, best first, without duplicates.

    Each step extends every hypothesis in the beam by every token, and keeps the `beam_width` most probable extensions.
    Finished ones leave the beam and are ranked by `Ranking`: log p divided by a power of the length, plus a coverage
    penalty. With `beam_width=1` this is greedy search; with a beam wider than the number of hypotheses, exhaustive.
    A source is done when none of its hypotheses can enter its `n_best`; its rows then leave the batch. Sources are
    independent. A sequence that reaches its maximal length ends there, with log p of the end token.

    >>> p = torch.tensor([0.5, 0.3, 0.2])
    >>> model = Decoder(lambda tokens, state: (p.log().expand(len(tokens), 3), state), (), torch.tensor([0]), end=2)
    >>> (best,) = beam_search(model, BeamSection(n_best=2, length_penalty=1, max_length=3))
    >>> [(y.tokens, round(y.score, 3)) for y in best]
    [([], -1.609), ([0], -1.974)]

    Args:
        decoder: the model, with a row for each source; its step is called with varying numbers of rows.
        how: width, number of results, penalties and lengths; None for the defaults.
        prefixes: for each source, forced first tokens, even if banned; () for none.
        constraints: for each source, an automaton such as `Phrases`, or None; () for none.
        allowed: the only allowed tokens, besides the end token; None for all.
        banned: forbidden tokens.

    Returns:
        For each source, at most `n_best` hypotheses; fewer, perhaps none, if fewer legal ones were found.

    Raises:
        ConfigError: settings or restrictions do not match the decoder.
        RunError: the model outputs NaN.
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
    """Extend the beam by one token; finished sequences are added to `finished`, the choice to `steps`."""
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
    """(n,) bool: whether a hypothesis may still become one of the best.

    Dropping a hypothesis frees no place that another could use, since less probable ones cannot become one of the best
    either. If hypotheses affect each other, all of a source are kept as long as one of them may, so that the first
    result does not depend on `n_best`.
    """
    may = walk.bound(lane, total) > finished.score[lane, -1]
    automata = walk.legality.automata
    if walk.how.groups == 1 and (automata is None or not automata.share_beam):
        return may
    source = walk.source(lane)
    return may.new_zeros(walk.lanes).index_fill(0, source[may & ~ends], True)[source]


def _choice(walk: Walk, then: Next) -> tuple[Tensor, Tensor]:
    """The rows and tokens with which the beam continues, by lane."""
    how, automata, numbers = walk.how, walk.legality.automata, then.rows.numbers
    shared = None
    if automata is not None and automata.share_beam and isinstance(numbers, Tensor):
        shared = automata, numbers
    width, log_p, lane = how.beam_width // how.groups, then.rows.log_p, then.rows.lane
    if how.groups == 1:
        return likeliest(then.legal, log_p, lane, walk.lanes, width, shared)
    return diverse(then.legal, log_p, lane, walk.lanes, width, how.groups, how.diversity, shared)


def _merged(groups: list[list[Hypothesis]], n_best: int) -> list[Hypothesis]:
    """The best of each group, then the second of each, …, without duplicates; sorted by score."""
    found: dict[tuple[int, ...], Hypothesis] = {}
    for rank in itertools.zip_longest(*groups):
        for one in sorted(filter(None, rank), key=lambda one: -one.score):
            if len(found) < n_best:
                found.setdefault(tuple(one.tokens), one)
    return sorted(found.values(), key=lambda one: -one.score)
