"""Learning word vectors in Python, word by word: the equations and random numbers of `native/word_vectors.cpp`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from everstep.networks.compiled_word_vectors import Met
from everstep.networks.word_tables import ALWAYS, Ints, WordTables

Floats = NDArray[np.float32]
_SENTENCE = 1000
_BITS = (1 << 64) - 1


def _random(seed: int) -> Iterator[int]:
    """64 random bits at a time: SplitMix64 (Steele 2014)."""
    state = seed & _BITS
    while True:
        state = (state + 0x9E3779B97F4A7C15) & _BITS
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _BITS
        yield z ^ (z >> 31)


def _scaled(bits: int, count: int) -> int:
    return ((bits >> 32) * count) >> 32


class WordByWord:
    """What the compiled loop does, for machines without a compiler, and to test it.

    Args:
        vectors, outputs: changed in place.
        tables: of the words.
        bag: continuous bag of words instead of skip-gram.
        rate: the learning rate.
        seed: what the random numbers follow from.
    """

    def __init__(self, vectors: Floats, outputs: Floats, tables: WordTables, bag: bool, rate: float, seed: int):
        self.vectors, self.outputs, self.tables, self.bag, self.rate = vectors, outputs, tables, bag, rate
        self.random = _random(seed)
        self.nats, self.targets = 0.0, 0

    def learn(self, tokens: Ints) -> Met:
        """Read words (N,)."""
        words: list[int] = []
        for word in tokens.tolist():
            if word == self.tables.end or len(words) == _SENTENCE:
                self._sentence(words)
                words = []
            if word == self.tables.end:
                continue
            keep = int(self.tables.keep[word])
            if keep == ALWAYS or next(self.random) >> 32 < keep:
                words.append(word)
        self._sentence(words)
        return Met(self.nats, self.targets)

    def _sentence(self, words: list[int]) -> None:
        for at, word in enumerate(words):
            reach = 1 + _scaled(next(self.random), self.tables.window)
            around = [*words[max(0, at - reach) : at], *words[at + 1 : at + reach + 1]]
            if not around:
                continue
            if self.bag:
                parts = np.concatenate([self._parts(other) for other in around])
                np.add.at(self.vectors, parts, self._meet(self.vectors[parts].mean(0), word))
            else:
                self._skip_gram(word, around)

    def _skip_gram(self, word: int, around: list[int]) -> None:
        parts = self._parts(word)
        before = self.vectors[parts].mean(0)
        h = before.copy()
        for other in around:
            h += self._meet(h, other)
        self.vectors[parts] += h - before

    def _parts(self, word: int) -> Ints:
        parts = self.tables.parts
        if parts is None:
            return np.array([word])
        return parts.rows[parts.starts[word] : parts.starts[word + 1]].astype(np.int64)

    def _meet(self, h: Floats, target: int) -> Floats:
        """Move the outputs of one target; by how much h should move."""
        chosen, sides = self._chosen(target)
        scores = self.outputs[chosen] @ h
        self.nats += float(np.logaddexp(0, -sides * scores).sum())
        self.targets += 1
        steps = (self.rate * sides / (1 + np.exp(sides * scores))).astype(np.float32)
        error = np.zeros_like(h)
        for row, step in zip(chosen.tolist(), steps, strict=True):
            error += step * self.outputs[row]
            self.outputs[row] += step * h
        return error

    def _chosen(self, target: int) -> tuple[Ints, Floats]:
        """Output rows, and 1 where σ should be 1, −1 where it should be 0."""
        tables = self.tables
        if tables.paths is not None:
            way = slice(*tables.paths.starts[target : target + 2])
            return tables.paths.nodes[way].astype(np.int64), 1 - 2 * tables.paths.codes[way].astype(np.float32)
        drawn = [self._drawn() for _ in range(tables.negatives)]
        chosen = [target, *(other for other in drawn if other != target)]
        return np.array(chosen), np.array([1.0, *[-1.0] * (len(chosen) - 1)], np.float32)

    def _drawn(self) -> int:
        bits = next(self.random)
        column = _scaled(bits, len(self.outputs))
        return column if bits & ALWAYS < int(self.tables.alias_below[column]) else int(self.tables.alias[column])
