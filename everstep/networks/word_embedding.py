"""Word vectors that are learned from a text: skip-gram and continuous bag of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from everstep.errors import ConfigError
from everstep.learn.settings import FitSettings
from everstep.networks import compiled_word_vectors
from everstep.networks.compiled_word_vectors import Met
from everstep.networks.letter_ngrams import letter_ngrams
from everstep.networks.word_tables import Ints, Parts, WordTables, drawn, huffman, kept
from everstep.networks.word_vector_steps import WordByWord
from everstep.sections import Count, NonNegative, Section, Size

Ngrams = tuple[Count, Count]


class WordEmbeddingSection(Section):
    """The vectors."""

    embedding_size: Size = 100
    """numbers of a vector"""
    ngrams: Ngrams | None = None
    """[shortest, longest]: a word's vector is the mean of its own and of those of its n-grams of letters (Bojanowski
    2017), such as [3, 6]; null: its own alone"""
    buckets: int = Field(2_000_000, ge=1, le=2**31)
    """number of hash values of n-grams; only those that the vocabulary has take memory"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """A range of n-grams that is empty."""
        if self.ngrams is not None and self.ngrams[0] > self.ngrams[1]:
            yield "ngrams", f"expected the shortest first, such as [3, 6]; got {list(self.ngrams)}"


class WordContextSection(Section):
    """The loss: how well a word tells the words around it, or they tell it (Mikolov 2013)."""

    predict: Literal["context", "word"] = "context"
    """context: each word around from the word (skip-gram); word: the word from the mean of those around (CBOW)"""
    window: Count = 5
    """most words to either side; for each word, 1 to that many are drawn"""
    negatives: int = Field(5, ge=0, le=1000)
    """words drawn at random beside each target; 0: hierarchical softmax over a Huffman tree"""
    negatives_exponent: float = Field(0.75, ge=-2, le=2)
    """words are drawn in proportion to count^exponent"""
    subsample: NonNegative = 0.001
    """t: a word of share f of the text is read with probability √(t/f) + t/f; 0: always"""


class WordVectorTraining(FitSettings):
    """Training, in which every pair of words is a step of gradient descent, whatever batch it is in."""

    batch_size: Count = 20_000
    """words of the text in a batch; the learning rate changes between batches"""
    optimizer: Literal["sgd"] = "sgd"
    """sgd, at each pair of words"""
    learning_rate: float = Field(0.025, gt=0)
    """η, before the schedule is applied"""
    schedule: Literal["constant", "cosine", "linear", "step", "plateau"] = "linear"
    """schedule of the learning rate; word2vec's is linear"""
    clip_norm: None = None
    """null: there is no gradient of a batch"""
    precision: Literal["float32"] = "float32"
    """float32"""
    device: Literal["cpu"] = "cpu"
    """cpu"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Beside those of every training, what would need a gradient of a batch."""
        yield from super().disagreements()
        for key in ("momentum", "weight_decay", "l2", "clip_value", "fixed_norm", "gradient_noise"):
            if got := getattr(self, key):
                off = "null" if key in ("clip_value", "fixed_norm") else "0"
                yield key, f"expected {off}, since weights move at every pair of words, not by batches; got {got:g}"
        if self.accumulate > 1:
            yield "accumulate", f"expected 1; for larger batches raise batch_size; got {self.accumulate}"


@dataclass(frozen=True, eq=False)
class WordBatch:
    """A piece of a text.

    Attributes:
        tokens: (N,) int32 word ids, with ends of sentences.
        count: how many are words that have a vector.
        seed: what is drawn at random follows from it.
    """

    tokens: Tensor
    count: int
    seed: int

    def to(self, device: torch.device) -> WordBatch:
        """The batch on `device`."""
        return WordBatch(self.tokens.to(device), self.count, self.seed)


class WordEmbedding(nn.Module):
    """Vectors h_w of V words, which predict the words nearby.

    h_w is row w of `vectors`, or with n-grams the mean of row w and of the rows of its n-grams. For each word and each
    target t near it, the loss in nats is −log σ(u_t·h) − Σ_k log σ(−u_k·h), k over `negatives` words drawn in
    proportion to count^exponent (one that equals t is left out), or with hierarchical softmax Σ_n −log σ(±u_n·h) over
    the inner nodes n on the way to t. CBOW has for h the mean of the vectors around, and, as in word2vec, moves each of
    them by the whole gradient of h. `vectors` begin uniform in ±1/size, as those of gensim 4 and fastText do (word2vec:
    ±0.5/size), `outputs` at zero.

    Source: Mikolov, Chen, Corrado and Dean, "Efficient Estimation of Word Representations in Vector Space", 2013;
    Mikolov, Sutskever, Chen, Corrado and Dean, "Distributed Representations of Words and Phrases and their
    Compositionality", 2013.

    Args:
        words: V words, one for each id.
        counts: (V,) how often each occurs in the text; words that never occur are neither read nor drawn.
        end: the id that ends a sentence.
        section, objective: of a recipe.

    Attributes:
        vectors: (V + B, size), rows of the words, then of the B n-grams that the vocabulary has.
        outputs: (V, size) u.

    Limits: threads write without locks, so that two runs on several threads differ; on one they have the same bits.
    """

    def __init__(
        self,
        words: Sequence[str],
        counts: Ints,
        end: int,
        section: WordEmbeddingSection,
        objective: WordContextSection,
    ):
        super().__init__()
        self.words, self.section, self.bag = tuple(words), section, objective.predict == "word"
        self.known = counts > 0
        self.buckets, parts = _parts(self.words, self.known, section)
        self.tables = WordTables(
            end,
            objective.window,
            objective.negatives,
            kept(counts, objective.subsample),
            *drawn(counts, objective.negatives_exponent),
            parts,
            None if objective.negatives else huffman(counts),
        )
        rows, size = len(words) + len(self.buckets), section.embedding_size
        self.vectors = nn.Parameter(torch.empty(rows, size))
        self.outputs = nn.Parameter(torch.zeros(len(words), size))
        nn.init.uniform_(self.vectors, -1 / size, 1 / size)

    def extra_repr(self) -> str:
        """Sizes."""
        ngrams = f", {len(self.buckets):,} n-grams" if self.section.ngrams else ""
        return f"{int(self.known.sum()):,} words{ngrams}, {self.section.embedding_size} numbers each"

    @torch.no_grad()
    def move(self, batch: WordBatch, rate: float) -> Tensor:
        """Read a batch and move the weights; the loss (1,) in nats, of all targets."""
        return torch.tensor([self.read(batch, rate).nats], dtype=torch.float64)

    def read(self, batch: WordBatch, rate: float) -> Met:
        """As `move`; a rate of 0 measures alone.

        Raises:
            ConfigError: the weights are not on the CPU.
        """
        vectors, outputs = self.vectors.detach(), self.outputs.detach()
        if not vectors.is_cpu:
            raise ConfigError(f"word vectors learn on the CPU; expected device cpu; got {vectors.device}")
        if compiled_word_vectors.available():
            return compiled_word_vectors.learn(vectors, outputs, self.tables, batch.tokens, self.bag, rate, batch.seed)
        steps = WordByWord(vectors.numpy(), outputs.numpy(), self.tables, self.bag, rate, batch.seed)
        return steps.learn(batch.tokens.numpy())

    def composed(self) -> NDArray[np.float32]:
        """h of every word, (V, size)."""
        rows: NDArray[np.float32] = self.vectors.detach().cpu().numpy()
        parts = self.tables.parts
        if parts is None:
            return rows
        sums = np.add.reduceat(rows[parts.rows], parts.starts[:-1], axis=0)
        counts = np.diff(parts.starts)[:, None]
        found: NDArray[np.float32] = (sums / counts).astype(np.float32)
        return found

    def of_letters(self, word: str) -> NDArray[np.float32] | None:
        """The mean of those n-grams of a word that the vocabulary has, (size,); None: there are none."""
        if self.section.ngrams is None:
            return None
        (buckets,) = letter_ngrams([word], *self.section.ngrams, self.section.buckets)
        places = np.searchsorted(self.buckets, buckets)
        there = places < len(self.buckets)
        places = places[there][self.buckets[places[there]] == buckets[there]]
        if not len(places):
            return None
        found: Any = self.vectors.detach().cpu().numpy()[len(self.words) + places].mean(0)
        return found  # type: ignore[no-any-return]


def _parts(words: Sequence[str], known: NDArray[np.bool_], section: WordEmbeddingSection) -> tuple[Ints, Parts | None]:
    """The buckets that the vocabulary has, rising, and the rows of each word's parts."""
    if section.ngrams is None:
        return np.empty(0, np.int64), None
    spelled = np.flatnonzero(known)
    found = letter_ngrams([words[word] for word in spelled.tolist()], *section.ngrams, section.buckets)
    buckets = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
    rows: list[Ints] = [np.array([word]) for word in range(len(words))]
    for word, own in zip(spelled.tolist(), found, strict=True):
        rows[word] = np.append(word, len(words) + np.searchsorted(buckets, own))
    starts = np.cumsum([0, *map(len, rows)])
    return buckets, Parts(starts.astype(np.int64), np.concatenate(rows).astype(np.int32))
