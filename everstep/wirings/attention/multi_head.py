"""Several attentions at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from everstep.cell import check_size
from everstep.state import State
from everstep.wirings.attention.attending import AttentionMemory, BatchedAttention, masked_softmax


class MultiHeadAttention(BatchedAttention):
    """Heads that read different parts of the memory (Vaswani 2017, "Attention is all you need"; in a recurrent decoder,
    Chen 2018, "The best of both worlds").

    For head n: w_n = softmax(q_n · k_ns / √d), r_n = Σ_s w_ns v_ns, with q_n = W_n q, k_ns = K_n m_s, v_ns = V_n m_s,
    all (d,), d = size / heads; c = O [r_1; …; r_N]. q (Q,) is the query, m_s (M,) a place of the memory, W_n (d, Q),
    K_n and V_n (d, M), O (M, size). Keys and values are computed once a sequence. The weights given are the means over
    heads: they sum to 1 over the places that are there. There are no biases, so that an empty memory gives 0.

    >>> attention = MultiHeadAttention(5, 6, 8, heads=2)
    >>> context, weights, _ = attention.attend(torch.zeros(2, 5), attention.prepare(torch.zeros(2, 7, 6)), ())
    >>> context.shape, weights.shape
    (torch.Size([2, 6]), torch.Size([2, 7]))

    Args:
        query_size: Q.
        memory_size: M.
        size: features of all heads together; Q if None.
        heads: N, a divisor of size.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size below 1, or a size that the heads do not divide.
    """

    def __init__(
        self,
        query_size: int,
        memory_size: int,
        size: int | None = None,
        *,
        heads: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(query_size, memory_size)
        size = check_size(self, "size", query_size if size is None else size)
        self.heads = check_size(self, "heads", heads)
        if size % heads:
            raise ValueError(f"MultiHeadAttention: size {size} should be a multiple of heads {heads}")
        self.query = nn.Linear(query_size, size, bias=False, device=device, dtype=dtype)
        self.memory = nn.Linear(memory_size, 2 * size, bias=False, device=device, dtype=dtype)
        self.join = nn.Linear(size, memory_size, bias=False, device=device, dtype=dtype)

    def keys(self, memory: Tensor) -> State:
        """Keys and values, each (batch, S, size)."""
        return self.memory(memory).chunk(2, -1)

    def attend_all(self, queries: Tensor, memory: AttentionMemory) -> tuple[Tensor, Tensor]:
        """All heads, and the mean of their weights."""
        q, k, v = (leaf.unflatten(-1, (self.heads, -1)).transpose(1, 2) for leaf in (self.query(queries), *memory.keys))
        scores = q.to(k.dtype) @ k.transpose(2, 3) / math.sqrt(k.shape[-1])  # (batch, heads, T, S)
        weights = masked_softmax(scores, memory.mask[:, None, None])
        read = (weights @ v).transpose(1, 2).flatten(2)
        return self.join(read), weights.mean(1)

    def extra_repr(self) -> str:
        return f"{self.query_size}, {self.memory_size}, heads={self.heads}"
