"""What every attention is: a memory prepared once a sequence, and queries that read it."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from everstep.arguments import check_lengths
from everstep.cell import check_size
from everstep.state import State, map_state, valid


class AttentionMemory(NamedTuple):
    """A memory as `Attention.prepare` gives it; a nest, every leaf (batch, S, ...) with S places.

    Attributes:
        values: (batch, S, memory_size), what is read; zeros beyond a row's length.
        keys: the nest of `Attention.keys`, computed once a sequence.
        mask: (batch, S), 1 within a row's length, 0 beyond; floating point, as the other leaves.
    """

    values: Tensor
    keys: State
    mask: Tensor


class Attention(nn.Module):
    """Weights over the places of a memory, and their mean of it: c = Σ_s w_s m_s.

    A subclass has `attend`, and `keys` and `initial_state` where it needs them. Like a cell, it stores nothing: what it
    knows of a memory is an `AttentionMemory`, and what it carries from query to query is a state.

    Args:
        query_size: features Q of a query.
        memory_size: features M of a place of the memory, and of a context.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, query_size: int, memory_size: int):
        super().__init__()
        self.query_size = check_size(self, "query_size", query_size)
        self.memory_size = check_size(self, "memory_size", memory_size)

    def keys(self, memory: Tensor) -> State:
        """What depends on the memory (batch, S, memory_size) alone: a nest of (batch, S, ...); by default `()`."""
        return ()

    def initial_state(self, batch: int, like: Tensor) -> State:
        """What is carried before the first query: a nest of (batch, ...), a size of 0 stands for S; by default `()`."""
        return ()

    @abstractmethod
    def attend(self, query: Tensor, memory: AttentionMemory, state: State) -> tuple[Tensor, Tensor, State]:
        """One query (batch, query_size): the context (batch, memory_size), weights (batch, S), and the new state."""

    def prepare(self, memory: Tensor, lengths: Tensor | None = None) -> AttentionMemory:
        """The memory with its keys and its mask.

        Args:
            memory: (batch, S, memory_size); S may be 0.
            lengths: (batch,) whole numbers in 0 … S: what lies beyond is never read, be it NaN; all of it if None.

        Raises:
            TypeError: `memory` is not floating point, or lengths are not whole numbers.
            ValueError: another shape, or a length out of range.
        """
        who = f"{type(self).__name__}.prepare"
        if not isinstance(memory, Tensor) or memory.dim() != 3 or memory.shape[2] != self.memory_size:
            came = f"shape {tuple(memory.shape)}" if isinstance(memory, Tensor) else type(memory).__name__
            raise ValueError(f"{who}: memory should be (batch, places, memory_size={self.memory_size}), but got {came}")
        if not memory.is_floating_point():
            raise TypeError(f"{who}: memory should be floating point, but is {memory.dtype}")
        # as in `scan`: what is carried along the sequence is not in low precision
        like = memory.float() if torch.is_autocast_enabled(memory.device.type) else memory
        if lengths is None:
            mask = like.new_ones(like.shape[:2])
        else:
            check_lengths(who, memory, lengths)
            there = valid(lengths, like.shape[1])
            like, mask = torch.where(there[..., None], like, 0), there.to(like.dtype)
        return AttentionMemory(like, map_state(lambda leaf: leaf.to(like.dtype), self.keys(like)), mask)

    def empty(self, batch: int, like: Tensor) -> AttentionMemory:
        """A memory of 0 places, of the dtype and device of `like`."""
        weight = next(self.parameters(), like)
        with torch.no_grad():
            found = self.prepare(weight.new_zeros(batch, 0, self.memory_size, device=like.device))
        return map_state(lambda leaf: leaf.to(like.dtype), found)  # type: ignore[no-any-return]

    def start(self, memory: AttentionMemory) -> State:
        """The initial state over this memory: a size of 0 in `initial_state` becomes S."""
        batch, places = memory.mask.shape

        def sized(leaf: Tensor) -> Tensor:
            if 0 not in leaf.shape[1:]:
                return leaf
            return leaf.new_zeros(batch, *(size or places for size in leaf.shape[1:]))

        return map_state(sized, self.initial_state(batch, memory.mask))

    def extra_repr(self) -> str:
        return f"{self.query_size}, {self.memory_size}"


class BatchedAttention(Attention):
    """An attention that carries no state: any number of queries at once. A subclass has `attend_all`."""

    @abstractmethod
    def attend_all(self, queries: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """T queries (batch, T, query_size): the contexts (batch, T, memory_size) and weights (batch, T, S)."""

    def attend(self, query: Tensor, memory: AttentionMemory, state: State) -> tuple[Tensor, Tensor, State]:
        """`attend_all` of one query."""
        contexts, weights = self.attend_all(query[:, None], memory)
        return contexts[:, 0], weights[:, 0], state


class ScoredAttention(BatchedAttention):
    """w = softmax of a score of the query and each place. A subclass has `scores`."""

    @abstractmethod
    def scores(self, queries: Tensor, memory: AttentionMemory) -> Tensor:
        """The scores (batch, T, S) of T queries (batch, T, query_size); those beyond a row's length are ignored."""

    def attend_all(self, queries: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """The softmax over the places that are there, and the mean of the memory under it."""
        weights = masked_softmax(self.scores(queries, memory), memory.mask[:, None])
        return torch.bmm(weights, memory.values), weights


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """The softmax over the last dimension where `mask` is not 0; 0 elsewhere, and all 0 where there is nothing.

    >>> masked_softmax(torch.zeros(2, 3), torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    """
    lowest = torch.finfo(mask.dtype).min / 2
    return scores.to(mask.dtype).masked_fill(mask == 0, lowest).softmax(-1) * mask
