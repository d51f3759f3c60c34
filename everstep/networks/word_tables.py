"""What learning word vectors looks up of each word: how often it is kept and drawn, its parts, its way down a tree."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from everstep.heads.alias_method import alias_table

Ints = NDArray[np.int64]
Words = NDArray[np.int32]
Thresholds = NDArray[np.uint32]
ALWAYS = (1 << 32) - 1
"""The threshold below which any 32 random bits are taken to lie."""


class Parts(NamedTuple):
    """The rows whose mean is the vector of each word: those of word w are `rows[starts[w]:starts[w + 1]]`."""

    starts: Ints  # (V + 1,)
    rows: Words


class Paths(NamedTuple):
    """The way from the root of a binary tree to each word: word w has the places `starts[w]:starts[w + 1]`."""

    starts: Ints  # (V + 1,)
    nodes: Words  # which of the V − 1 inner nodes
    codes: NDArray[np.uint8]  # 0: to the left


@dataclass(frozen=True)
class WordTables:
    """Tables of V words.

    Attributes:
        end: the id that ends a sentence; −1: none.
        window: the most words to either side that a word meets.
        negatives: words drawn at random beside each target; 0: hierarchical softmax.
        keep: (V,) of 2^32, how often a word of the text is read; see `kept`.
        alias_below, alias: (V,) see `drawn`.
        parts: the rows of each word, or None where word w has row w alone.
        paths: of `huffman`, or None with negatives.
    """

    end: int
    window: int
    negatives: int
    keep: Thresholds
    alias_below: Thresholds
    alias: Words
    parts: Parts | None
    paths: Paths | None

    @property
    def most(self) -> int:
        """The most outputs that one target meets."""
        return self.negatives + 1 if self.paths is None else max(1, int(np.diff(self.paths.starts).max()))

    def arrays(self) -> dict[str, Any]:
        """The arrays by the names that compiled code knows."""
        parts, paths = self.parts, self.paths
        return {
            "part_starts": None if parts is None else parts.starts,
            "parts": None if parts is None else parts.rows,
            "keep": self.keep,
            "alias_below": self.alias_below,
            "alias": self.alias,
            "path_starts": None if paths is None else paths.starts,
            "path_nodes": None if paths is None else paths.nodes,
            "path_codes": None if paths is None else paths.codes,
        }


def kept(counts: Ints, threshold: float) -> Thresholds:
    """How often each word of the text is read, of 2^32: min(1, √(t/f) + t/f) with f its share of the text.

    Source: Mikolov et al., "Distributed Representations of Words and Phrases and their Compositionality", 2013, section
    2.3, in the form of its program, word2vec. A threshold t of 0 keeps every word. Words that never occur are not read.

    Example:
        >>> (kept(np.array([75, 25, 0]), 0.25) / 2**32).round(3).tolist()
        [0.911, 1.0, 0.0]
    """
    share = counts / max(1, counts.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.sqrt(threshold / share) + threshold / share if threshold else np.ones(len(counts))
    p = np.where(counts > 0, np.minimum(p, 1.0), 0.0)
    return (p * ALWAYS).astype(np.uint32)


def drawn(counts: Ints, exponent: float) -> tuple[Thresholds, Words]:
    """Tables to draw word w in proportion to count^exponent from 64 random bits; words that never occur are not drawn.

    The upper bits choose a column k; if the lower 32 lie below `below[k]`, k is drawn, else `alias[k]`.
    """
    weights = np.zeros(len(counts))
    weights[counts > 0] = counts[counts > 0].astype(float) ** exponent
    below, alias = alias_table(weights)
    return (np.asarray(below) * ALWAYS).astype(np.uint32), np.asarray(alias).astype(np.int32)


def huffman(counts: Ints) -> Paths:
    """The binary tree in which frequent words are near the root (Huffman 1952); words that never occur have no way.

    Example:
        >>> paths = huffman(np.array([5, 0, 2, 1]))
        >>> np.diff(paths.starts).tolist()
        [1, 0, 2, 2]
    """
    size = len(counts)
    there = np.flatnonzero(counts).tolist()
    heap = [(int(counts[word]), word) for word in there]
    heapq.heapify(heap)
    parent, code = dict[int, int](), dict[int, int]()
    for node in range(size, size + len(there) - 1):
        (least, left), (next_least, right) = heapq.heappop(heap), heapq.heappop(heap)
        parent[left], parent[right] = node, node
        code[left], code[right] = 0, 1
        heapq.heappush(heap, (least + next_least, node))
    starts, nodes, codes = [0], list[int](), list[int]()
    for word in range(size):
        way, at = list[tuple[int, int]](), word
        while at in parent:
            way.append((parent[at] - size, code[at]))
            at = parent[at]
        nodes += [node for node, _ in reversed(way)]
        codes += [side for _, side in reversed(way)]
        starts.append(len(nodes))
    return Paths(np.array(starts, np.int64), np.array(nodes, np.int32), np.array(codes, np.uint8))
