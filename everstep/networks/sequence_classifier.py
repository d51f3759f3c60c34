"""p(class | x_1 … x_n): an embedding, cells in one direction or both, a read-out and a softmax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

from everstep.heads import Categorical
from everstep.networks.cells_by_name import Find, no_code
from everstep.networks.layers import LayersSection, encoder_of, initialise, stack_of
from everstep.sections import Probability, Size
from everstep.wirings import EmbeddingDropout, ReadOut


class ClassifierSection(LayersSection):
    """The network: embedding, cells, one vector of their outputs, a softmax over classes."""

    embedding_size: Size = 128
    """features of each token"""
    embedding_dropout: Probability = 0.0
    """of whole tokens: all places of a token at once"""
    bidirectional: bool = True
    """each layer reads in both directions; hidden_size units each"""
    read_out: Literal["last", "mean", "max", "sum", "attention"] = "max"
    """how the outputs of all steps become one vector"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Beside those of layers, what both directions do not have."""
        yield from super().disagreements()
        if self.bidirectional and self.residual:
            yield "residual", "expected false beside bidirectional, whose layers give more features than they read"


class SequenceClassifier(nn.Module):
    """Embedding → cells → read-out → categorical head.

    Args:
        vocabulary: number of tokens V.
        classes: K.
        section: a recipe's `model`.
        find: finds cells of the user's own.
        label_smoothing: of the head.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        section: ClassifierSection,
        find: Find = no_code,
        label_smoothing: float = 0.0,
    ):
        super().__init__()
        self.embedding = EmbeddingDropout(vocabulary, section.embedding_size, section.embedding_dropout)
        nn.init.normal_(self.embedding.weight, std=0.1)
        layers = encoder_of if section.bidirectional else stack_of
        self.body = ReadOut(layers(section, section.embedding_size, find), section.read_out)
        self.dropout = nn.Dropout(section.dropout)
        self.head = Categorical(self.body.output_size, classes, label_smoothing=label_smoothing)
        initialise(section, self)

    def read(self, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Embedded tokens (batch, time, features) to what the head reads, (batch, 1, features)."""
        vector, _ = self.body(inputs, lengths=lengths)
        return self.dropout(vector)[:, None]  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Tokens (batch, time) to log p of each class, (batch, classes), in nats."""
        return self.head.predict(self.read(self.embedding(tokens), lengths))[:, 0]
