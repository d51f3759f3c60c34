"""The common steps of searches: the model, legality, and scores of finished sequences."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from everstep.cancellation import check_cancelled
from everstep.decode.decoder import Decoder
from everstep.decode.legality import Legality, Wishes
from everstep.decode.ranking import Ranking
from everstep.decode.section import BeamSection
from everstep.errors import ConfigError, RunError
from everstep.native import processor
from everstep.state import State, leaves, select, unflatten, valid


class Beginnings(NamedTuple):
    """The unfinished hypotheses of a search, by lane. A nest, so that `select` reorders all of it."""

    state: State
    lane: Tensor
    """(R,) the lane: a group of the beam of a source"""
    token: Tensor
    """(R,) the last token"""
    log_p: Tensor
    """(R,) log p in nats"""
    covered: Tensor | tuple[()] = ()
    """(R, S) the total attention on each position of the source"""
    written: Tensor | tuple[()] = ()
    """(R, t) the tokens so far, if n-grams must not repeat"""
    numbers: Tensor | tuple[()] = ()
    """(R,) states of the automata"""


class Next(NamedTuple):
    """The result of a step for R rows."""

    rows: Beginnings
    """The rows with their new state."""
    log_p: Tensor
    """(R, vocabulary) log p of the next token"""
    legal: Tensor
    """(R, vocabulary) the same, −∞ for illegal tokens"""
    attention: Tensor | None
    """(R, S) the attention of the step"""


class Walk:
    """Creates hypotheses and extends them.

    Raises:
        ConfigError: settings or restrictions do not match the decoder.
    """

    def __init__(self, decoder: Decoder, how: BeamSection, wishes: Wishes):
        self.decoder, self.how = decoder, how
        sources = _sources(decoder)
        if how.coverage_penalty and decoder.attention is None:
            raise ConfigError("beam_search: coverage_penalty needs attention, which this decoder lacks")
        self.lanes = sources * how.groups
        self.legality = Legality(decoder, how, wishes, sources)
        self.ranking = Ranking(how.length_penalty, how.coverage_penalty)
        # for each leaf, whether no step has changed it: then it is equal in all rows of a lane
        self._still = [True for _ in leaves(decoder.state)]

    def begin(self) -> Beginnings:
        """One row per lane, which has read the prompt except its last token."""
        prompt, state = self.decoder.prompt, self.decoder.state
        *first, last = prompt.expand(self.lanes // self.how.groups, prompt.shape[-1]).unbind(1)
        for token in first:
            _, state = self.decoder.step(token, state)
        lane = torch.arange(self.lanes, device=prompt.device)
        source = self.source(lane)
        wide = torch.float64 if processor.has_float64(prompt.device) else torch.float32
        log_p = torch.zeros(self.lanes, dtype=wide, device=prompt.device)
        written = lane.new_zeros(self.lanes, 0) if self.how.no_repeat else ()
        return Beginnings(select(state, source), lane, last[source], log_p, written=written)

    def source(self, lane: Tensor) -> Tensor:
        return lane // self.how.groups

    def step(self, rows: Beginnings, t: int) -> Next:
        """The step of the rows that gives log p of token t."""
        check_cancelled()
        log_p, state = self.decoder.step(rows.token, rows.state)
        pairs = zip(leaves(state), leaves(rows.state), self._still, strict=True)
        self._still = [still and new is old for (_, new), (_, old), still in pairs]
        if t == 0:
            self.legality.learn(log_p.shape[1])
            if self.legality.automata is not None:
                rows = rows._replace(numbers=self.legality.automata.start)
        attention = None if self.decoder.attention is None else self.decoder.attention(state)
        if attention is not None:
            rows = rows._replace(covered=rows.covered + attention if isinstance(rows.covered, Tensor) else attention)
        legal = self.legality.legal(log_p, t, rows.lane, rows.numbers, rows.written)
        return Next(rows._replace(state=state), log_p, legal, attention)

    def totals(self, then: Next, row: Tensor, token: Tensor) -> Tensor:
        """log p of the extended hypotheses, (n,).

        Raises:
            RunError: a value is NaN.
        """
        total: Tensor = then.rows.log_p[row] + then.log_p[row, token]
        if total.isnan().any():
            raise RunError("beam_search: log p of a token is NaN: the model diverged or its weights are damaged")
        return total

    def ends(self, lane: Tensor, token: Tensor, t: int) -> Tensor:
        """(n,) bool: whether a sequence is finished with this token, its token t."""
        if self.decoder.end is None:
            return self.legality.longest[lane] == t + 1
        return token == self.decoder.end

    def by_itself(self, then: Next, row: Tensor, t: int) -> Tensor:
        """(n,) bool, for finished rows: whether more tokens were allowed, or the end was the most probable token."""
        if self.decoder.end is None:
            return torch.zeros_like(row, dtype=torch.bool)
        log_p = then.log_p[row]
        return (t < self.legality.longest[then.rows.lane[row]]) | (log_p[:, self.decoder.end] == log_p.amax(1))

    def score(self, then: Next, row: Tensor, total: Tensor, t: int) -> Tensor:
        """(n,) scores of sequences that are finished with token t."""
        if not self.how.coverage_penalty or not isinstance(then.rows.covered, Tensor):
            return self.ranking.score(total, t + 1)
        covered, lengths = then.rows.covered[row], self.decoder.source_lengths
        inside = torch.ones_like(covered, dtype=torch.bool)
        if lengths is not None:
            inside = valid(lengths[self.source(then.rows.lane[row])], covered.shape[1])
        return self.ranking.score(total, t + 1, self.ranking.missed(covered, inside))

    def bound(self, lane: Tensor, total: Tensor) -> Tensor:
        """(n,) upper bounds of the scores of all continuations."""
        return self.ranking.bound(total, self.legality.longest[lane] + (self.decoder.end is not None))

    def onward(self, rows: Beginnings, row: Tensor, token: Tensor, total: Tensor) -> Beginnings:
        """The rows `row`, extended by a token."""
        lane, state = rows.lane[row], leaves(rows.state)
        as_before = torch.equal(lane, rows.lane)
        kept = [
            leaf if still and as_before else select(leaf, row)
            for still, (_, leaf) in zip(self._still, state, strict=True)
        ]
        rows = select(rows._replace(state=()), row)._replace(
            state=unflatten(rows.state, kept), token=token, log_p=total
        )
        if isinstance(rows.written, Tensor):
            rows = rows._replace(written=torch.cat([rows.written, token[:, None]], 1))
        if self.legality.automata is not None and isinstance(rows.numbers, Tensor):
            rows = rows._replace(numbers=self.legality.automata.advance(rows.numbers, token))
        return rows


def _sources(decoder: Decoder) -> int:
    """The number of rows of the decoder.

    Raises:
        ConfigError: its parts are inconsistent.
    """
    prompt, lengths = decoder.prompt, decoder.source_lengths
    sizes = {name: len(leaf) for name, leaf in leaves(decoder.state)}
    if prompt.dim() == 2:
        sizes["prompt"] = len(prompt)
    if lengths is not None:
        sizes["source_lengths"] = len(lengths)
    if len(set(sizes.values())) > 1:
        raise ConfigError(f"beam_search: the parts of the decoder should have as many rows, but have {sizes}")
    if prompt.dim() not in (1, 2) or not prompt.shape[-1]:
        raise ConfigError(
            f"beam_search: the prompt should be (n,) or (sources, n) with n ≥ 1, but has shape {tuple(prompt.shape)}; "
            "the model needs at least one token to start from"
        )
    return next(iter(sizes.values()), 1)
