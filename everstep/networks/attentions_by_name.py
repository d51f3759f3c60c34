"""Attentions by the names that recipes give them."""

from __future__ import annotations

from typing import Literal, get_args

from everstep.wirings import (
    AdditiveAttention,
    ConcatAttention,
    CoverageAttention,
    DotAttention,
    GeneralAttention,
    LocalMonotonicAttention,
    LocalPredictiveAttention,
    LocationAwareAttention,
    MultiHeadAttention,
)
from everstep.wirings.attention import Attention

AttentionName = Literal[
    "additive", "concat", "coverage", "dot", "general", "local-m", "local-p", "location", "multi-head"
]
NAMES: tuple[str, ...] = get_args(AttentionName)


def make_attention(
    name: AttentionName, query_size: int, memory_size: int, size: int | None, heads: int, reach: int
) -> Attention:
    """The attention of that name.

    Args:
        name: of `NAMES`.
        query_size, memory_size: features of a query and of a place of the memory; equal for "dot".
        size: of the layer inside, where there is one; None: query_size.
        heads: of "multi-head".
        reach: places to each side that "local-m" and "local-p" (over a general score) read.

    Raises:
        ValueError: sizes that do not fit.
    """
    match name:
        case "additive":
            return AdditiveAttention(query_size, memory_size, size)
        case "concat":
            return ConcatAttention(query_size, memory_size, size)
        case "coverage":
            return CoverageAttention(query_size, memory_size, size)
        case "location":
            return LocationAwareAttention(query_size, memory_size, size)
        case "multi-head":
            return MultiHeadAttention(query_size, memory_size, size, heads=heads)
        case "dot":
            if query_size != memory_size:
                raise ValueError(f"dot expects queries as large as the memory, {memory_size}; got {query_size}")
            return DotAttention(query_size)
        case "general":
            return GeneralAttention(query_size, memory_size)
    local = LocalMonotonicAttention if name == "local-m" else LocalPredictiveAttention
    return local(GeneralAttention(query_size, memory_size), reach)
