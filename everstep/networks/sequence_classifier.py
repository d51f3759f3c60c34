"""p(answer | x_1 … x_n): an embedding, cells in one direction or both, a read-out and a head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from everstep.data.batches import Batches
from everstep.data.labelled_batches import LabelledBatch
from everstep.errors import ConfigError
from everstep.networks.answers import Answers
from everstep.networks.cells_by_name import Find, no_code
from everstep.networks.classifier import Classifier
from everstep.networks.documents import Hierarchy
from everstep.networks.layers import EmbeddedSection, ReadOutSection, initialise
from everstep.networks.ngram_ratios import MOST_CLASSES, NgramRatios
from everstep.networks.pairs import compared
from everstep.wirings import EmbeddingDropout, ReadOut


class ClassifierSection(ReadOutSection, EmbeddedSection):
    """The network: embedding, cells, one vector of their outputs, a head over classes."""

    ngrams: int = Field(0, ge=0, le=5)
    """n: add naive Bayes log-ratios of n-grams of up to n tokens to the logits; 0: none"""
    reader: Literal["flat", "hierarchical"] = "flat"
    """hierarchical: sentences are read to vectors, which further layers read (Yang 2016); for long texts"""


class SequenceClassifier(Classifier):
    """Embedding → cells → read-out → head → logits (+ n-gram log-ratios) → / T → log p.

    Args:
        vocabulary: number of tokens V.
        answers: the answers of the head.
        section: the `model` section of a recipe.
        find: finds cells in the user's files.
        calibrated: whether there is a temperature T, stored with the weights.
        paired: whether a row is a pair of texts with the token V between them.
        ends: ids of tokens that end a sentence, for a hierarchical reader.

    Attributes:
        ratios: the n-gram ratios, or None.
    """

    body: ReadOut | Hierarchy

    def __init__(
        self,
        vocabulary: int,
        answers: Answers,
        section: ClassifierSection,
        find: Find = no_code,
        calibrated: bool = False,
        paired: bool = False,
        ends: Sequence[int] = (),
    ):
        super().__init__(answers, calibrated)
        self.separator = vocabulary if paired else None
        self.embedding = EmbeddingDropout(vocabulary + paired, section.embedding_size, section.embedding_dropout)
        nn.init.normal_(self.embedding.weight, std=0.1)
        body = section.read_out_of(section.embedding_size, find)
        hierarchical = section.reader == "hierarchical"
        self.body = Hierarchy(body, section.read_out_of(body.output_size, find)) if hierarchical else body
        self.ends = tuple(ends)
        self.dropout = nn.Dropout(section.dropout)
        self.head = answers.head(self.body.output_size * (4 if paired else 1))
        if section.ngrams and len(answers.learned) > MOST_CLASSES:
            raise ConfigError(
                f"model.ngrams: expected 0 where there are more than {MOST_CLASSES} classes; there are "
                f"{len(answers.learned)}"
            )
        self.ratios = NgramRatios(section.ngrams, len(answers.learned)) if section.ngrams else None
        initialise(section, self)

    def count(self, batches: Batches[LabelledBatch]) -> None:
        """Count the n-grams of the training texts, if `ngrams` is set."""
        if self.ratios is not None:
            self.ratios.count(batches)

    def read(self, tokens: Tensor, embedded: Tensor, lengths: Tensor) -> Tensor:
        """The input of the head (batch, features), from tokens (batch, time) and their embedding."""
        if self.separator is not None and isinstance(self.body, ReadOut):
            vector = compared(self.body, tokens, embedded, lengths, self.separator)
        elif isinstance(self.body, Hierarchy):
            vector = self.body(embedded, lengths, self._ending(tokens))
        else:
            vector, _ = self.body(embedded, lengths=lengths)
        return self.dropout(vector)  # type: ignore[no-any-return]

    def attention(self, tokens: Tensor, embedded: Tensor, lengths: Tensor) -> Tensor | None:
        """The weight of each token in the read-out, (batch, time); None without attention."""
        if self.separator is not None:
            return None
        if isinstance(self.body, Hierarchy):
            return self.body.attention(embedded, lengths, self._ending(tokens))
        return self.body.attention(embedded, lengths)

    def _ending(self, tokens: Tensor) -> Tensor:
        return torch.isin(tokens, torch.tensor(self.ends, dtype=tokens.dtype, device=tokens.device))

    def pieces(self, inputs: Tensor, lengths: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Each piece of `size` tokens: its embedded tokens (batch, size, features), and its tokens (batch,)."""
        for start in range(0, inputs.shape[1], size):
            tokens = inputs[:, start : start + size]
            yield self.embedding(tokens), (lengths - start).clamp(0, tokens.shape[1])

    def logits(self, inputs: Tensor, lengths: Tensor, own: Tensor | None = None) -> Tensor:
        """The logits (batch, …) of tokens (batch, time), before the temperature.

        `own` (batch,) are the classes of training texts, whose own n-grams are subtracted from the counts.
        """
        found: Tensor = self.head.logits(self.read(inputs, self.embedding(inputs), lengths))  # type: ignore[operator]
        return found if self.ratios is None else found + self.ratios(inputs, lengths, own)
