"""Attentions to a window of the memory around one place (Luong 2015)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from everstep.cell import check_size
from everstep.state import State
from everstep.wirings.attention.attending import (
    Attention,
    AttentionMemory,
    BatchedAttention,
    ScoredAttention,
    masked_softmax,
)
from everstep.wirings.attention.scored import small_vector


class _Placed(NamedTuple):
    """The keys of a score, and the number of each place, 0 … S-1."""

    inner: State
    places: Tensor


class _Window(Attention):
    """What both share: the score of another attention within a window of D places to either side of a centre."""

    def __init__(self, score: ScoredAttention, reach: int):
        if not isinstance(score, ScoredAttention):
            raise TypeError(
                f"{type(self).__name__}: expected an attention with a score (Dot, General, Additive, Concat), but got "
                f"{type(score).__name__}"
            )
        super().__init__(score.query_size, score.memory_size)
        self.score, self.reach = score, check_size(self, "reach", reach)

    def keys(self, memory: Tensor) -> State:
        """Those of the score, and the numbers of the places."""
        batch, places = memory.shape[:2]
        numbers = torch.arange(places, device=memory.device, dtype=memory.dtype)
        return _Placed(self.score.keys(memory), numbers.expand(batch, places))

    def window(self, queries: Tensor, memory: AttentionMemory, centres: Tensor) -> tuple[Tensor, Tensor]:
        """The softmax (batch, T, S) within the windows around `centres` (batch, T), and distances (batch, T, S)."""
        away = memory.keys.places[:, None] - centres[..., None]
        inside = (away.abs() <= self.reach).to(memory.mask.dtype)
        scores = self.score.scores(queries, memory._replace(keys=memory.keys.inner))
        return masked_softmax(scores, memory.mask[:, None] * inside), away

    def extra_repr(self) -> str:
        return f"reach={self.reach}"


class LocalMonotonicAttention(_Window):
    """Attention to the places s with |s − p_t| ≤ D, where p_t = min(t, S − 1) ("local-m" of Luong 2015, "Effective
    approaches to attention-based neural machine translation"): w = softmax of the score there, c = Σ_s w_s m_s.

    t counts the queries from 0, S is the row's number of places, D the reach. The paper has p_t = t, whose window is
    empty for t ≥ S + D; here the last window stays. So weights sum to 1 over the places of the window that are there,
    and are 0 elsewhere.

    >>> attention = LocalMonotonicAttention(es.DotAttention(4), 1)
    >>> memory = attention.prepare(torch.zeros(1, 5, 4))
    >>> attention.attend(torch.zeros(1, 4), memory, attention.start(memory))[1].tolist()
    [[0.5, 0.5, 0.0, 0.0, 0.0]]

    The state is t, (batch,). A reset of `scan` puts it back to 0.

    Args:
        score: an attention with a score, which decides within the window.
        reach: D.

    Raises:
        TypeError: `score` has no score.
        ValueError: a reach below 1.
    """

    def initial_state(self, batch: int, like: Tensor) -> State:
        """t = 0, (batch,)."""
        return like.new_zeros(batch)

    def attend(self, query: Tensor, memory: AttentionMemory, state: State) -> tuple[Tensor, Tensor, State]:
        """The window around place t."""
        last = (memory.mask.sum(-1) - 1).clamp_min(0)
        weights, _ = self.window(query[:, None], memory, torch.minimum(state, last)[:, None])
        return torch.bmm(weights, memory.values)[:, 0], weights[:, 0], state + 1


class LocalPredictiveAttention(_Window, BatchedAttention):
    """Attention to the places s with |s − p| ≤ D around a predicted place ("local-p" of Luong 2015, "Effective
    approaches to attention-based neural machine translation").

    p = S · σ(v · tanh(W q)); w_s = softmax(score)_s · exp(−(s − p)² / (2 σ²)) with σ = D / 2; c = Σ_s w_s m_s.
    q (Q,) is the query, S the row's number of places, W (Q, Q), v (Q,), D the reach. The softmax is over the places of
    the window that are there. As in the paper the product is not normalised again: weights sum to at most 1.

    >>> attention = LocalPredictiveAttention(es.GeneralAttention(4, 6), 2)
    >>> context, weights, _ = attention.attend(torch.zeros(1, 4), attention.prepare(torch.zeros(1, 9, 6)), ())
    >>> weights.count_nonzero().item(), bool(weights.sum() <= 1)
    (4, True)

    Args:
        score: an attention with a score, which decides within the window.
        reach: D.
        device, dtype: of the parameters.

    Known limit: the window's edges have no derivative by p; the factor has.

    Raises:
        TypeError: `score` has no score.
        ValueError: a reach below 1.
    """

    def __init__(
        self,
        score: ScoredAttention,
        reach: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(score, reach)
        self.place = nn.Linear(self.query_size, self.query_size, bias=False, device=device, dtype=dtype)
        self.vector = small_vector(self.query_size, device, dtype)

    def attend_all(self, queries: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """The windows around the places predicted from the queries."""
        share = torch.sigmoid(torch.tanh(self.place(queries)) @ self.vector).to(memory.mask.dtype)
        weights, away = self.window(queries, memory, memory.mask.sum(-1)[:, None] * share)
        weights = weights * torch.exp(-2 * (away / self.reach).square())
        return torch.bmm(weights, memory.values), weights
