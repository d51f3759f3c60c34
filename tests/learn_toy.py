"""A tiny language model with dropout and a carried state, on random tokens: what the tests of `everstep.learn` fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everstep.data.batches import TokenBatch
from everstep.learn import FitResult, FitSettings, Loss, fit

VOCABULARY, HIDDEN = 11, 8
PLAIN: dict[str, Any] = {"schedule": "constant", "clip_norm": None, "precision": "float32", "log_every_seconds": 10.0}
"""Settings of plain gradient steps."""


class Toy(nn.Module):
    """Embedding, two GRU layers with dropout between, and the embedding again as output weights (tied)."""

    def __init__(self, seed: int = 0, dropout: float = 0.3):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.gru = nn.GRU(HIDDEN, HIDDEN, 2, batch_first=True, dropout=dropout)
        self.out = nn.Linear(HIDDEN, VOCABULARY)
        self.out.weight = self.embedding.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.training:
            self.seen += inputs.numel()
        ys, state = self.gru(self.embedding(inputs), state)
        return self.out(ys), state


class Lanes:
    """Random tokens in parallel lanes; every epoch the same."""

    carries_state = True

    def __init__(self, rows: int = 4, steps: int = 5, number: int = 7, seed: int = 1, ragged: bool = False):
        self.batch_size, self._steps, self._number, self._ragged = rows, steps, number, ragged
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(VOCABULARY, (rows, steps * number + 1), generator=generator)

    def __len__(self) -> int:
        return self._number

    def batch(self, epoch: int, index: int) -> TokenBatch:
        at = index * self._steps
        part = self.tokens[:, at : at + self._steps + 1]
        lengths = None
        if self._ragged:
            lengths = (torch.arange(self.batch_size) + index) % (self._steps + 1)
        return TokenBatch(part[:, :-1], part[:, 1:], lengths, None, 0, self._steps)


def row_nats(logits: Tensor, targets: Tensor, lengths: Tensor | None) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nats = nn.functional.cross_entropy(logits.mT, targets, reduction="none")
    if lengths is not None:
        nats = nats * (torch.arange(targets.shape[1]) < lengths[:, None])
    return nats.sum(1)


def objective(model: nn.Module, batch: TokenBatch, state: Any) -> Iterator[Loss]:
    """The whole batch as one piece. The state is `{"gru": (h,)}`, batch first, to be a nest."""
    past = None if state is None else state["gru"][0].transpose(0, 1).contiguous()
    logits, new = model(batch.inputs, past)
    nats = row_nats(logits, batch.targets, batch.lengths)
    yield Loss(nats, nats.detach(), {"gru": (new.transpose(0, 1),)})


def pieces(model: nn.Module, batch: TokenBatch, state: Any) -> Iterator[Loss]:
    """The batch in pieces of two steps, each backpropagated by itself."""
    for at in range(0, batch.inputs.shape[1], 2):
        part = replace(batch, inputs=batch.inputs[:, at : at + 2], targets=batch.targets[:, at : at + 2])
        for loss in objective(model, part, state):
            yield loss
            state = {"gru": (loss.state["gru"][0].detach(),)}


@torch.no_grad()
def validation(model: nn.Module) -> float:
    """Mean nats on lanes of another seed; draws from the global generator, as sampling would."""
    assert not model.training
    torch.rand(3)
    batch = Lanes(seed=2, number=2).batch(0, 0)
    logits, _ = model(batch.inputs, None)
    return float(row_nats(logits, batch.targets, None).sum() / batch.count)


def run(out: Path, /, *, resume: bool = False, model: nn.Module | None = None, **options: Any) -> FitResult:
    """Fit a new `Toy`; options of `fit` go to `fit`, all others to `FitSettings`."""
    own = {"objective": objective, "batches": Lanes(), "validate": None, "rules": (), "identity": None}
    own |= {"log": lambda line: None, "resume_command": ""}
    given = {key: options.pop(key, value) for key, value in own.items()}
    seed = options.pop("seed", 0)
    settings = FitSettings(**({"max_steps": 12, "learning_rate": 0.01} | PLAIN | options))
    goal, batches = given.pop("objective"), given.pop("batches")
    return fit(model or Toy(), goal, batches, settings, out=out, resume=resume, seed=seed, **given)
