"""p(answer | x_1 … x_n): an embedding, cells in one direction or both, a read-out and a head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from everstep.errors import ConfigError
from everstep.networks.answers import Answers
from everstep.networks.cells_by_name import Find, no_code
from everstep.networks.layers import LayersSection, encoder_of, initialise, stack_of
from everstep.networks.ngram_ratios import MOST_CLASSES, NgramRatios
from everstep.sections import Probability, Size
from everstep.wirings import EmbeddingDropout, ReadOut


class ClassifierSection(LayersSection):
    """The network: embedding, cells, one vector of their outputs, a head over classes."""

    embedding_size: Size = 128
    """features of each token"""
    embedding_dropout: Probability = 0.0
    """of whole tokens: all places of a token at once"""
    bidirectional: bool = True
    """each layer reads in both directions; hidden_size units each"""
    ngrams: int = Field(0, ge=0, le=5)
    """n: beside the network, what n-grams of up to so many tokens say by their counts (naive Bayes); 0: none"""
    read_out: Literal["last", "mean", "max", "sum", "attention"] = "max"
    """how the outputs of all steps become one vector"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Beside those of layers, what both directions do not have."""
        yield from super().disagreements()
        if self.bidirectional and self.residual:
            yield "residual", "expected false beside bidirectional, whose layers give more features than they read"


class SequenceClassifier(nn.Module):
    """Embedding → cells → read-out → head → logits (+ what n-grams say) → / T → log p.

    Args:
        vocabulary: number of tokens V.
        answers: what the head says.
        section: a recipe's `model`.
        find: finds cells of the user's own.
        calibrated: whether it has a temperature T, which is kept with the weights.

    Attributes:
        ratios: what n-grams say; None: nothing.
        temperature: T, a tensor without dimensions, 1 at first; None: no such buffer.
    """

    temperature: Tensor | None

    def __init__(
        self,
        vocabulary: int,
        answers: Answers,
        section: ClassifierSection,
        find: Find = no_code,
        calibrated: bool = False,
    ):
        super().__init__()
        self.embedding = EmbeddingDropout(vocabulary, section.embedding_size, section.embedding_dropout)
        nn.init.normal_(self.embedding.weight, std=0.1)
        layers = encoder_of if section.bidirectional else stack_of
        self.body = ReadOut(layers(section, section.embedding_size, find), section.read_out)
        self.dropout = nn.Dropout(section.dropout)
        self.answers: Answers = answers
        self.head = answers.head(self.body.output_size)
        if section.ngrams and len(answers.learned) > MOST_CLASSES:
            raise ConfigError(
                f"model.ngrams: expected 0 where there are more than {MOST_CLASSES} classes; there are "
                f"{len(answers.learned)}"
            )
        self.ratios = NgramRatios(section.ngrams, len(answers.learned)) if section.ngrams else None
        self.register_buffer("temperature", torch.ones(()) if calibrated else None)
        initialise(section, self)

    def read(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embedded tokens (batch, time, features) to what the head reads, (batch, 1, features)."""
        vector, _ = self.body(inputs, lengths=lengths)
        return self.dropout(vector)[:, None]  # type: ignore[no-any-return]

    def logits(self, tokens: Tensor, lengths: Tensor, own: Tensor | None = None) -> Tensor:
        """Tokens (batch, time) to what the head gives of each text, (batch, …), before the temperature.

        `own` (batch,) are the classes of texts that are learned from, whose n-grams are counted with them.
        """
        found: Tensor = self.head.logits(self.read(self.embedding(tokens), lengths))[:, 0]  # type: ignore[operator]
        return found if self.ratios is None else found + self.ratios(tokens, lengths, own)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens (batch, time) to log p of each answer, (batch, answers), in nats."""
        return self.log_probs(self.logits(tokens, lengths))

    def log_probs(self, logits: Tensor) -> Tensor:
        """The head's numbers (batch, …) to log p of each answer, (batch, answers)."""
        return self.answers.log_probs(self.head, logits if self.temperature is None else logits / self.temperature)
