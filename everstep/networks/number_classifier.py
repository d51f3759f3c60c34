"""p(answer | numbers at each step): missing numbers, frames, cells, a read-out and a head."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.networks.answers import Answers
from everstep.networks.cells_by_name import Find, no_code
from everstep.networks.classifier import Classifier
from everstep.networks.layers import ReadOutSection, initialise, layer_problems
from everstep.networks.number_scaling import NumberScaling
from everstep.sections import Size
from everstep.state import valid
from everstep.wirings import TimeDistributed


class NumberClassifierSection(ReadOutSection):
    """The network: what is read of a step, cells, one vector of their outputs, a head over classes."""

    hidden_size: Size | tuple[Size, ...] = 64
    """units of each layer; a list: one size per layer"""
    filters: tuple[Size, ...] = (16, 32)
    """of frames: filters of each convolution of 3 × 3, with a maximum over 2 × 2 after it"""
    frame_size: Size = 64
    """of frames: features that the cells read of each"""

    def problems(self, find: Find) -> Iterator[str]:
        """A cell that cannot be created."""
        yield from layer_problems(self, 8, find)


def with_gaps(values: Tensor, lengths: Tensor, told: bool) -> Tensor:
    """Numbers (B, T, D) with NaN where they are missing, as a network can read them: (B, T, D) or (B, T, 3 D).

    A missing number becomes the last known one of its column, or 0 before the first. With `told`, beside the numbers:
    1 where they are known, else 0; and ln(1 + steps since the last known one), counted from the start before the first
    (the inputs of GRU-D, Che 2018, "Recurrent neural networks for multivariate time series with missing values").

    >>> nan = float("nan")
    >>> with_gaps(torch.tensor([[[nan], [2.0], [nan]]]), torch.tensor([3]), True)[0, :, :2].tolist()
    [[0.0, 0.0], [2.0, 1.0], [2.0, 0.0]]
    """
    there = ~values.isnan()
    steps = torch.arange(values.shape[1], device=values.device)[:, None]
    last = torch.where(there, steps, -1).cummax(1).values if values.shape[1] else there.long()
    known = torch.where(there, values, 0)
    filled = torch.where(last >= 0, known.gather(1, last.clamp_min(0)), 0)
    if not told:
        return filled
    since = torch.where(last >= 0, steps - last, steps + 1).to(values.dtype).log1p()
    found = torch.cat([filled, there.to(values.dtype), since], 2)
    return found * valid(lengths, values.shape[1])[..., None]


class FrameReader(nn.Module):
    """Features of a frame: convolutions of 3 × 3 with ReLU and a maximum over 2 × 2 each, then one linear layer.

    It reads rows (n, channels · height · width) and gives (n, features), so that `TimeDistributed` runs it.

    Args:
        height, width, channels: of a frame, whose numbers lie as (channels, height, width).
        filters: of each convolution.
        features: of the result.
    """

    def __init__(self, height: int, width: int, channels: int, filters: tuple[int, ...], features: int):
        super().__init__()
        self._shape = channels, height, width
        sizes = (channels, *filters)
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise(sizes))
        for _ in filters:
            height, width = max(1, height // 2), max(1, width // 2)
        self.out = nn.Linear(sizes[-1] * height * width, features)

    def forward(self, rows: Tensor) -> Tensor:
        """(n, channels · height · width) to (n, features)."""
        found = rows.unflatten(1, self._shape)
        for convolution in self.convolutions:
            found = convolution(found).relu()
            found = F.max_pool2d(found, [min(2, side) for side in found.shape[2:]])
        return self.out(found.flatten(1)).relu()  # type: ignore[no-any-return]


class NumberClassifier(Classifier):
    """Numbers or frames → missing ones filled → (a convolutional network a frame) → cells → read-out → head → log p.

    Args:
        scaling: shape of a step, and whether numbers are missing.
        answers: the answers of the head.
        section: the `model` section of a recipe.
        find: finds cells in the user's files.
        calibrated: whether there is a temperature.

    Attributes:
        shape: that of a step.
        front: the layer that reads frames; None where steps are plain numbers.
        body: the cells with their read-out.
    """

    def __init__(
        self,
        scaling: NumberScaling,
        answers: Answers,
        section: NumberClassifierSection,
        find: Find = no_code,
        calibrated: bool = False,
    ):
        super().__init__(answers, calibrated)
        self.shape, self._gaps = scaling.shape, scaling.gaps
        size = math.prod(scaling.shape) * (3 if scaling.gaps else 1)
        self.front: TimeDistributed | None = None
        if scaling.frames:
            height, width, channels = scaling.shape
            channels *= 3 if scaling.gaps else 1
            reader = FrameReader(height, width, channels, section.filters, section.frame_size)
            self.front = TimeDistributed(reader, size)
            size = section.frame_size
        self.body = section.read_out_of(size, find)
        self.dropout = nn.Dropout(section.dropout)
        self.head = answers.head(self.body.output_size)
        initialise(section, self)

    def steps(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """What the cells read, (batch, time, features), of numbers (batch, time, *shape)."""
        return self._seen(self._filled(inputs, lengths), lengths)

    def pieces(self, inputs: Tensor, lengths: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Each piece of `size` steps: what the cells read of it (batch, size, features), and its steps (batch,)."""
        filled = self._filled(inputs, lengths)  # also from what is known before a piece
        for start in range(0, inputs.shape[1], size):
            piece = filled[:, start : start + size]
            live = (lengths - start).clamp(0, piece.shape[1])
            yield self._seen(piece, live), live

    def _filled(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """The numbers without gaps, (batch, time, D) or (batch, time, 3 D), in a frame by channel."""
        frames = self.front is not None  # channels, height, width
        return with_gaps(inputs.movedim(-1, 2).flatten(2) if frames else inputs.flatten(2), lengths, self._gaps)

    def _seen(self, filled: Tensor, lengths: Tensor) -> Tensor:
        """What the cells read of steps without gaps: themselves, or the features of frames."""
        return filled if self.front is None else self.front(filled, lengths=lengths)[0]

    def read(self, steps: Tensor, lengths: Tensor) -> Tensor:
        """Logits (batch, …) of what the cells read."""
        vector, _ = self.body(steps, lengths=lengths)
        return self.head.logits(self.dropout(vector))  # type: ignore[no-any-return, operator]

    def logits(self, inputs: Tensor, lengths: Tensor, own: Tensor | None = None) -> Tensor:
        """The logits (batch, …) of numbers (batch, time, *shape), before the temperature; `own` is not read."""
        del own
        return self.read(self.steps(inputs, lengths), lengths)
