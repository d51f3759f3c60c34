"""Word vectors from embeddings, characters and features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from everstep.cells import LSTM
from everstep.data.tagged_batches import TaggedBatch
from everstep.data.word_features import UNKNOWN
from everstep.networks.layers import EmbeddedSection
from everstep.sections import NonNegative, Probability, Size, Whole
from everstep.state import valid
from everstep.wirings import Bidirectional, EmbeddingDropout, ReadOut


class WordSection(EmbeddedSection):
    """The network that reads words."""

    embedding_size: Size = 100
    """features of each word"""
    embedding_dropout: Probability = 0.0
    """dropout of whole words, at all their positions at once"""
    unknown_rate: NonNegative = 0.25
    """α: in training a word that occurs n times is read as unknown with probability α / (α + n)"""
    vectors: str | None = None
    """a file of pretrained vectors with embedding_size features: word2vec's text or binary format, GloVe's or
    fastText's text"""
    vectors_learned: bool = True
    """false: the embedding is frozen"""
    characters: Literal["none", "recurrent", "convolution"] = "recurrent"
    """reader of characters: an LSTM in both directions, or filters over three characters with max pooling"""
    character_size: Size = 25
    """features of each character"""
    character_units: Size = 25
    """units in each direction; half the filters"""
    affixes: tuple[int, ...] = ()
    """lengths of suffixes that are features of a word, such as [2, 3]; negative: lengths of prefixes"""
    feature_size: Whole = 8
    """embedding size of each feature (capitalisation, affixes, data.feature_columns); 0: no features"""


class Characters(nn.Module):
    """One vector per word from its characters: (U, L) and lengths (U,) to (U, output_size).

    "recurrent": an LSTM's last outputs in both directions (Lample 2016, "Neural architectures for named entity
    recognition"). "convolution": filters over three characters, and the maximum of each (Ma & Hovy 2016, "End-to-end
    sequence labeling via bi-directional LSTM-CNNs-CRF").

    >>> read = Characters(30, 8, 5, "convolution")
    >>> read(torch.tensor([[1, 2], [3, 0]]), torch.tensor([2, 1])).shape
    torch.Size([2, 10])

    Args:
        characters: number of distinct characters.
        size: features of each character.
        units: units in each direction, or half the number of filters.
        how: "recurrent" or "convolution".
    """

    def __init__(self, characters: int, size: int, units: int, how: Literal["recurrent", "convolution"]):
        super().__init__()
        self.embedding = nn.Embedding(characters, size)
        nn.init.uniform_(self.embedding.weight, -((3 / size) ** 0.5), (3 / size) ** 0.5)
        self.output_size = 2 * units
        both = Bidirectional(LSTM(size, units), LSTM(size, units))
        self.reader = ReadOut(both, "last") if how == "recurrent" else None
        self.filters = None if how == "recurrent" else nn.Conv1d(size, 2 * units, 3, padding=1)

    def forward(self, spelled: Tensor, lengths: Tensor) -> Tensor:
        """Vectors (U, output_size) of characters (U, L)."""
        return self.read(self.embedding(spelled), lengths)

    def read(self, embedded: Tensor, lengths: Tensor) -> Tensor:
        """Vectors (U, output_size) of embedded characters (U, L, size)."""
        if self.reader is not None:
            vectors: Tensor = self.reader(embedded, lengths=lengths)[0]
            return vectors
        assert self.filters is not None
        inside = valid(lengths, embedded.shape[1])
        found = self.filters((embedded * inside[..., None]).mT)
        best: Tensor = found.masked_fill(~inside[:, None], -torch.inf).amax(2)
        return best


def some_unknown(words: Tensor, counts: Tensor, rate: float) -> Tensor:
    """Numbers of words, of which one that occurs n times is the unknown word with probability α / (α + n).

    Args:
        words: their numbers; the unknown word is 0.
        counts: n of each word.
        rate: α.
    """
    if rate == 0:
        return words
    share = rate / (rate + counts[words])
    return torch.where(torch.rand(words.shape, device=words.device) < share, UNKNOWN, words)


class WordReader(nn.Module):
    """Word vectors [E[word]; characters; features].

    Args:
        section: the `model` section of a recipe.
        words: number of words.
        characters: number of characters.
        features: number of values of each feature.
        counts: (words,), the count of each word in training; 0 for unknown words.
        vectors: (words, embedding_size), initial embedding; rows of NaN are initialised randomly.

    Attributes:
        output_size: features of a word vector.
    """

    counts: Tensor

    def __init__(
        self,
        section: WordSection,
        words: int,
        characters: int,
        features: Sequence[int],
        counts: Sequence[int],
        vectors: Tensor | None = None,
    ):
        super().__init__()
        self.unknown_rate = section.unknown_rate
        self.embedding = EmbeddingDropout(words, section.embedding_size, section.embedding_dropout)
        bound = (3 / section.embedding_size) ** 0.5
        nn.init.uniform_(self.embedding.weight, -bound, bound)
        if vectors is not None:
            begun = torch.where(vectors.isnan(), self.embedding.weight.detach().cpu(), vectors)
            self.embedding.weight.data.copy_(begun)
        self.embedding.weight.requires_grad_(section.vectors_learned)
        self.register_buffer("counts", torch.tensor(counts, dtype=torch.float32), persistent=False)
        sizes = (section.character_size, section.character_units)
        self.characters = None if section.characters == "none" else Characters(characters, *sizes, section.characters)
        kept = features if section.feature_size else ()
        self.features = nn.ModuleList(nn.Embedding(size, section.feature_size) for size in kept)
        self.output_size = (
            section.embedding_size
            + (0 if self.characters is None else self.characters.output_size)
            + section.feature_size * len(kept)
        )

    def forward(self, batch: TaggedBatch) -> Tensor:
        """The word vectors of a batch, (B, T, output_size)."""
        spelled = None if self.characters is None else self.characters(batch.spelled, batch.spelled_lengths)
        return self.joined(batch, spelled)

    def joined(self, batch: TaggedBatch, spelled: Tensor | None) -> Tensor:
        """As `forward`, with given character vectors of the forms (U, …)."""
        parts = [self.embedding(some_unknown(batch.words, self.counts, self.unknown_rate if self.training else 0))]
        if spelled is not None:
            parts.append(spelled[batch.forms])
        parts += [table(batch.features[..., place]) for place, table in enumerate(self.features)]
        return torch.cat(parts, -1)
