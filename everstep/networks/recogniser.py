"""p(labels | frames): a stack of cells in one direction or both, and a head for labels without times."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from everstep.data.spoken_batches import SpokenBatch
from everstep.heads.ctc import CTC, ctc_nats
from everstep.learn.objective import Loss
from everstep.networks.cells_by_name import Find, no_code
from everstep.networks.layers import LayersSection, encoder_of, initialise, layer_problems, stack_of
from everstep.sections import Size


class RecogniserSection(LayersSection):
    """The network: cells, a softmax over labels and the blank at each step."""

    hidden_size: Size | tuple[Size, ...] = 128
    """units of each layer, in each direction; a list: one size per layer"""
    bidirectional: bool = True
    """read in both directions, with hidden_size units each; false: labels are known while somebody speaks"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of the layers, and options that both directions do not support."""
        yield from super().disagreements()
        if self.bidirectional and self.residual:
            yield "residual", "expected false beside bidirectional, whose layers give more features than they read"

    def problems(self, find: Find) -> Iterator[str]:
        """A cell that cannot be created."""
        yield from layer_problems(self, 8, find)


class Recogniser(nn.Module):
    """Frames → cells → `CTC`.

    Args:
        features: of a step.
        labels: K.
        section: a recipe's `model`.
        find: finds cells in the user's files.
    """

    def __init__(self, features: int, labels: int, section: RecogniserSection, find: Find = no_code):
        super().__init__()
        self.features = features
        self.body = (encoder_of if section.bidirectional else stack_of)(section, features, find)
        self.dropout = nn.Dropout(section.dropout if section.bidirectional else 0.0)  # a stack has its own
        self.head = CTC(self.body.output_size, labels)
        initialise(section, self)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    def forward(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """log p (B, T, K + 1) of each label, and of the blank K, at each step of inputs (B, T, D), in nats."""
        ys, _ = self.body(inputs, lengths=lengths)
        return self.head.predict(self.dropout(ys))

    def nats(self, batch: SpokenBatch) -> Tensor:
        """−log p(labels) of each recording, (B,), in nats."""
        return ctc_nats(self(batch.inputs, batch.lengths), batch.labels, batch.lengths)


def recogniser_losses(model: Recogniser, batch: SpokenBatch) -> Iterator[Loss]:
    """One `Loss` per batch: −log p(labels) of each recording."""
    nats = model.nats(batch)
    yield Loss(nats, nats.detach())
