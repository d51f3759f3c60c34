"""Attentions that differ in their score of a query and a place of the memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import check_size
from everstep.state import State
from everstep.wirings.attention.attending import AttentionMemory, ScoredAttention

SUMS = 2**24
"""The most numbers of W q + U m_s at once, where no gradient is recorded."""


class AdditiveAttention(ScoredAttention):
    """score(q, m_s) = v · tanh(W q + b + U m_s) (Bahdanau 2015, "Neural machine translation by jointly learning to
    align and translate"); w = softmax(score), c = Σ_s w_s m_s.

    q (Q,) is the query, m_s (M,) a place of the memory, W (A, Q), b and v (A,), U (A, M). U m_s is computed once a
    sequence. The weights of places beyond a row's length are 0; over an empty memory weights and context are 0.

    >>> attention = AdditiveAttention(5, 6, 4)
    >>> memory = attention.prepare(torch.zeros(2, 7, 6), lengths=torch.tensor([7, 3]))
    >>> context, weights, _ = attention.attend(torch.zeros(2, 5), memory, ())
    >>> context.shape, weights.shape
    (torch.Size([2, 6]), torch.Size([2, 7]))

    Args:
        query_size: Q.
        memory_size: M.
        size: A; Q if None.
        device, dtype: of the parameters.

    Known limit: T queries at once need batch · T · S · A numbers where gradients are recorded.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        size: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(query_size, memory_size)
        size = check_size(self, "size", query_size if size is None else size)
        self.query = nn.Linear(query_size, size, device=device, dtype=dtype)
        self.memory = nn.Linear(memory_size, size, bias=False, device=device, dtype=dtype)
        self.vector = small_vector(size, device, dtype)

    def keys(self, memory: Tensor) -> Tensor:
        """U m_s, (batch, S, A)."""
        return self.memory(memory)  # type: ignore[no-any-return]

    def scores(self, queries: Tensor, memory: AttentionMemory) -> Tensor:
        """v · tanh(W q + b + U m_s)."""
        return _sums_scored(memory.keys, self.query(queries), self.vector)


class ConcatAttention(ScoredAttention):
    """score(q, m_s) = v · tanh(W [q; m_s]) ("concat" of Luong 2015, "Effective approaches to attention-based neural
    machine translation"); w = softmax(score), c = Σ_s w_s m_s.

    q (Q,) is the query, m_s (M,) a place of the memory, W (A, Q + M), v (A,): `AdditiveAttention` without a bias, and
    with one matrix. Its last M columns times m_s are computed once a sequence.

    >>> attention = ConcatAttention(5, 6)
    >>> context, weights, _ = attention.attend(torch.zeros(2, 5), attention.prepare(torch.zeros(2, 7, 6)), ())
    >>> weights[0].allclose(torch.full((7,), 1 / 7))
    True

    Args:
        query_size: Q.
        memory_size: M.
        size: A; Q if None.
        device, dtype: of the parameters.

    Known limit: T queries at once need batch · T · S · A numbers where gradients are recorded.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        size: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(query_size, memory_size)
        size = check_size(self, "size", query_size if size is None else size)
        self.both = nn.Linear(query_size + memory_size, size, bias=False, device=device, dtype=dtype)
        self.vector = small_vector(size, device, dtype)

    def keys(self, memory: Tensor) -> Tensor:
        """The part of W [q; m_s] that is of m_s, (batch, S, A)."""
        return F.linear(memory, self.both.weight[:, self.query_size :])

    def scores(self, queries: Tensor, memory: AttentionMemory) -> Tensor:
        """v · tanh(W [q; m_s])."""
        of_query = F.linear(queries, self.both.weight[:, : self.query_size])
        return _sums_scored(memory.keys, of_query, self.vector)


class DotAttention(ScoredAttention):
    """score(q, m_s) = q · m_s ("dot" of Luong 2015), or q · m_s / √M; w = softmax(score), c = Σ_s w_s m_s.

    q (M,) is the query, m_s (M,) a place of the memory. There are no parameters.

    >>> attention = DotAttention(5)
    >>> memory = attention.prepare(torch.eye(5)[None])
    >>> attention.attend(torch.tensor([[0.0, 50.0, 0.0, 0.0, 0.0]]), memory, ())[1].argmax().item()
    1

    Args:
        size: M, the features of a query and of a place.
        scaled: divide by √M (Vaswani 2017, "Attention is all you need").

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, size: int, *, scaled: bool = False):
        super().__init__(size, size)
        self.scaled = scaled

    def scores(self, queries: Tensor, memory: AttentionMemory) -> Tensor:
        """q · m_s."""
        scores = torch.bmm(queries.to(memory.values.dtype), memory.values.transpose(1, 2))
        return scores / math.sqrt(self.memory_size) if self.scaled else scores


class GeneralAttention(ScoredAttention):
    """score(q, m_s) = q · W m_s ("general" of Luong 2015; bilinear); w = softmax(score), c = Σ_s w_s m_s.

    q (Q,) is the query, m_s (M,) a place of the memory, W (Q, M). W m_s is computed once a sequence.

    >>> attention = GeneralAttention(5, 6)
    >>> context, weights, _ = attention.attend(torch.zeros(2, 5), attention.prepare(torch.zeros(2, 7, 6)), ())
    >>> weights.sum(-1).allclose(torch.ones(2))
    True

    Args:
        query_size: Q.
        memory_size: M.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(query_size, memory_size)
        self.memory = nn.Linear(memory_size, query_size, bias=False, device=device, dtype=dtype)

    def keys(self, memory: Tensor) -> State:
        """W m_s, (batch, S, Q)."""
        return self.memory(memory)

    def scores(self, queries: Tensor, memory: AttentionMemory) -> Tensor:
        """q · W m_s."""
        return torch.bmm(queries.to(memory.values.dtype), memory.keys.transpose(1, 2))


def small_vector(size: int, device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Parameter:
    """A vector (size,) that starts as a row of `nn.Linear` does."""
    bound = 1 / math.sqrt(size)
    return nn.Parameter(torch.empty(size, device=device, dtype=dtype).uniform_(-bound, bound))


def _sums_scored(keys: Any, queries: Tensor, vector: Tensor) -> Tensor:
    """v · tanh(q_t + k_s), (batch, T, S), of q (batch, T, A) and k (batch, S, A).

    A recorded gradient needs all sums; without one, a few queries at a time save memory.
    """
    parts = [queries]
    if queries.shape[1] > 1 and not torch.is_grad_enabled():
        parts = list(queries.split(max(1, SUMS // max(1, keys.numel())), 1))
    scores = [torch.tanh(keys[:, None] + part[:, :, None]) @ vector for part in parts]
    return torch.cat(scores, 1) if len(scores) > 1 else scores[0]
