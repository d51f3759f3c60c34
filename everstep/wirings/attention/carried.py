"""Additive attentions that also read what earlier queries read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from everstep.cell import check_size
from everstep.state import State
from everstep.wirings.attention.attending import Attention, AttentionMemory, masked_softmax
from everstep.wirings.attention.scored import small_vector


class Carried(NamedTuple):
    """A number for each place, carried from query to query.

    Attributes:
        places: (batch, S).
        begun: (batch,), 0 before the first query and after a reset, from where `places` counts as zeros; then 1.
    """

    places: Tensor
    begun: Tensor


class _Additive(Attention):
    """What both share: v · tanh(W q + b + U m_s + what is carried)."""

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        size: int | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ):
        super().__init__(query_size, memory_size)
        self.size = check_size(self, "size", query_size if size is None else size)
        self.query = nn.Linear(query_size, self.size, device=device, dtype=dtype)
        self.memory = nn.Linear(memory_size, self.size, bias=False, device=device, dtype=dtype)
        self.vector = small_vector(self.size, device, dtype)

    def initial_state(self, batch: int, like: Tensor) -> Carried:
        """Nothing read."""
        return Carried(like.new_zeros(batch, 0), like.new_zeros(batch))

    def read(self, query: Tensor, memory: AttentionMemory, keys: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
        """The context and the weights, with `carried` (batch, S, A) in the score."""
        scores = torch.tanh(keys + self.query(query)[:, None] + carried) @ self.vector
        weights = masked_softmax(scores, memory.mask)
        return torch.bmm(weights[:, None], memory.values)[:, 0], weights


class LocationAwareAttention(_Additive):
    """score_s = v · tanh(W q + b + U m_s + V f_s), f = F ∗ w⁻ (Chorowski 2015, "Attention-based models for speech
    recognition"); w = softmax(score), c = Σ_s w_s m_s.

    q (Q,) is the query, m_s (M,) a place of the memory, W (A, Q), b and v (A,), U (A, M), w⁻ (S,) the weights of the
    query before (zeros before the first), F (k, r) k filters of odd width r over the places, V (A, k).

    >>> attention = LocationAwareAttention(5, 6)
    >>> memory = attention.prepare(torch.zeros(2, 7, 6))
    >>> context, weights, state = attention.attend(torch.zeros(2, 5), memory, attention.start(memory))
    >>> state.places is weights
    True

    The state is a `Carried`, its places the weights. It has the size of the memory, so that steps run as PyTorch's
    loop, not compiled.

    Args:
        query_size: Q.
        memory_size: M.
        size: A; Q if None.
        filters: k.
        width: r.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size below 1, or an even width.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        size: int | None = None,
        *,
        filters: int = 10,
        width: int = 15,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(query_size, memory_size, size, device, dtype)
        if not isinstance(width, int) or width < 1 or width % 2 == 0:
            raise ValueError(f"LocationAwareAttention: width should be odd and at least 1, but is {width!r}")
        filters = check_size(self, "filters", filters)
        self.filters = nn.Conv1d(1, filters, width, padding=width // 2, bias=False, device=device, dtype=dtype)
        self.location = nn.Linear(filters, self.size, bias=False, device=device, dtype=dtype)

    def keys(self, memory: Tensor) -> State:
        """U m_s, (batch, S, A)."""
        return self.memory(memory)

    def attend(self, query: Tensor, memory: AttentionMemory, state: Carried) -> tuple[Tensor, Tensor, Carried]:
        """One query, beside the weights of the one before."""
        before = (state.places * state.begun[:, None])[:, None]
        # a convolution takes no sequence of 0 places
        found = self.filters(before) if before.shape[2] else before.expand(-1, self.filters.out_channels, 0)
        context, weights = self.read(query, memory, memory.keys, self.location(found.transpose(1, 2)))
        return context, weights, Carried(weights, torch.ones_like(state.begun))


class CoverageAttention(_Additive):
    """score_s = v · tanh(W q + b + U m_s + V C_s), where C_s = Σ w_s / Φ_s over all queries before (Tu 2016, "Modeling
    coverage for neural machine translation", its linguistic coverage); w = softmax(score), c = Σ_s w_s m_s.

    q (Q,) is the query, m_s (M,) a place of the memory, W (A, Q), b, v and V (A,), U (A, M), C_s the coverage of place
    s (0 before the first query), Φ_s = N σ(u · m_s) its fertility, u (M,); without N, Φ = 1.

    >>> attention = CoverageAttention(5, 6)
    >>> memory = attention.prepare(torch.zeros(2, 4, 6))
    >>> context, weights, state = attention.attend(torch.zeros(2, 5), memory, attention.start(memory))
    >>> state.places.tolist()[0]
    [0.25, 0.25, 0.25, 0.25]

    The state is a `Carried`, its places the coverage. It has the size of the memory, so that steps run as PyTorch's
    loop, not compiled.

    Args:
        query_size: Q.
        memory_size: M.
        size: A; Q if None.
        fertility: N, the most that a place may be read; none if None.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size below 1, or a fertility that is not above 0.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        size: int | None = None,
        *,
        fertility: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(query_size, memory_size, size, device, dtype)
        if fertility is not None and not fertility > 0:
            raise ValueError(f"CoverageAttention: fertility should be above 0, but is {fertility!r}")
        self.most = fertility
        self.coverage = small_vector(self.size, device, dtype)
        self.fertility = None if fertility is None else small_vector(memory_size, device, dtype)

    def keys(self, memory: Tensor) -> State:
        """U m_s, (batch, S, A), and Φ_s, (batch, S), if there is a fertility."""
        if self.fertility is None or self.most is None:
            return (self.memory(memory),)
        return self.memory(memory), self.most * torch.sigmoid(memory @ self.fertility)

    def attend(self, query: Tensor, memory: AttentionMemory, state: Carried) -> tuple[Tensor, Tensor, Carried]:
        """One query, beside the coverage so far."""
        keys, *fertility = memory.keys
        before = state.places * state.begun[:, None]
        context, weights = self.read(query, memory, keys, before[..., None] * self.coverage)
        read = weights / fertility[0] if fertility else weights
        return context, weights, Carried(before + read, torch.ones_like(state.begun))
