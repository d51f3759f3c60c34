"""A job of one's own in one file: whether the ones seen so far are odd in number.

    everstep train examples/parity.py:Parity --out runs/parity
    everstep eval runs/parity --trust-code
    printf '1101\n0011\n' | everstep predict runs/parity --trust-code

A recurrent network has to keep one bit; one that sees a window of symbols alone is right half of the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import everstep as es


class Data(es.Section):
    length: int = 20
    """symbols of each sequence"""


class Recipe(es.Recipe):
    data: Data = Data()
    model: es.LayersSection = es.LayersSection(cell="LSTM", hidden_size=16)
    train: es.FitSettings = es.FitSettings(learning_rate=0.02, schedule="constant", max_epochs=10, select="accuracy")


@dataclass(frozen=True, eq=False)
class Bits(es.Movable):
    xs: Tensor  # (B, T, 1) zeros and ones
    odd: Tensor  # (B, T) whether the ones so far are odd

    @property
    def count(self) -> int:
        return self.odd.numel()


class Parity(es.Task[Recipe]):
    Recipe, unit, scores, shown = Recipe, "bit", frozenset({"accuracy"}), ("accuracy", "loss")

    def splits(self) -> tuple[str, ...]:
        return "train", "valid"

    def model(self) -> nn.Module:
        return nn.ModuleList(
            [body := es.stack_of(self.recipe.model, 1, self.code.find), nn.Linear(body.output_size, 1)]
        )

    def batches(self, split: str, model: Any, purpose: str) -> list[Bits]:
        random = torch.Generator().manual_seed(self.recipe.seed + (split == "valid"))
        bits = torch.randint(2, (40, self.recipe.train.batch_size, self.recipe.data.length), generator=random).float()
        return [Bits(xs[..., None], xs.cumsum(1) % 2) for xs in bits]

    def objective(self, model: Any, batch: Bits, state: Any) -> Iterator[es.Loss]:
        losses = nn.functional.binary_cross_entropy_with_logits(logits(model, batch.xs), batch.odd, reduction="none")
        yield es.Loss(losses.sum(1), losses.sum(1).detach())

    def metrics(self, model: Any, split: str, *progress: Any) -> dict[str, Any]:
        batches = self.batches(split, model, "score")
        right = [(logits(model, batch.xs) > 0) == (batch.odd > 0) for batch in batches]
        return {"loss": self.mean_loss(model, batches)[0], "accuracy": float(torch.stack(right).float().mean())}

    def validate(self, model: Any) -> dict[str, float]:
        return self.metrics(model, "valid")

    def predict(self, model: Any, lines: Iterable[str]) -> Iterator[es.Prediction]:
        for line in lines:
            bits = torch.tensor([[[float(symbol)] for symbol in line if symbol in "01"]])
            odd = bits.numel() > 0 and bool(logits(model, bits)[0, -1] > 0)
            yield es.Prediction("odd" if odd else "even", {"bits": line, "odd": odd})


def logits(model: Any, xs: Tensor) -> Tensor:
    body, head = model
    return head(body(xs)[0])[..., 0]
