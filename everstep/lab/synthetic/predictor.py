"""A predictor for generated problems, its objective, and its score on held-out sequences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.cell import Layer
from everstep.data.batches import TokenBatch
from everstep.lab.synthetic.problem import Problem, Sequences
from everstep.learn.objective import Loss
from everstep.state import State


class Predictor(nn.Module):
    """a_t = V y_t + c for the last K outputs y of a layer: numbers, or logits of classes or bits.

    >>> import everstep as es
    >>> from everstep.lab.synthetic import Adding
    >>> model = Predictor(es.GRU(2, 8), Adding(steps=20))
    >>> model(model.problem.batch(4)).shape
    torch.Size([4, 1, 1])

    Args:
        layer: any layer or cell.
        problem: the problem.

    Raises:
        ValueError: the input sizes of layer and problem differ.
    """

    def __init__(self, layer: Layer, problem: Problem):
        super().__init__()
        if layer.input_size != problem.input_size:
            raise ValueError(
                f"Predictor: {type(problem).__name__} has {problem.input_size} features, but "
                f"{type(layer).__name__} takes {layer.input_size}"
            )
        self.layer, self.problem = layer, problem
        self.answer = nn.Linear(layer.output_size, problem.outputs)

    def forward(self, batch: TokenBatch) -> Tensor:
        """The predictions (B, K, outputs) for a batch of K targets."""
        ys, _ = self.layer(batch.inputs, lengths=batch.lengths)
        return self.read(ys, batch)

    def read(self, ys: Tensor, batch: TokenBatch) -> Tensor:
        """The predictions from the layer's outputs (B, T, features)."""
        last = batch.targets.shape[1]
        if batch.lengths is None:
            ys = ys[:, ys.shape[1] - last :]
        else:
            places = (batch.lengths - last)[:, None] + torch.arange(last, device=ys.device)
            ys = ys.gather(1, places[..., None].expand(-1, -1, ys.shape[2]))
        answers: Tensor = self.answer(ys)
        return answers


def losses(model: Predictor, batch: TokenBatch, answers: Tensor) -> Tensor:
    """The loss of each target (B, K): nats, summed over bits, or the squared error averaged over the outputs."""
    if model.problem.kind == "class":
        return F.cross_entropy(answers.float().mT, batch.targets, reduction="none")
    if model.problem.kind == "bits":
        return F.binary_cross_entropy_with_logits(answers.float(), batch.targets, reduction="none").sum(-1)
    return (answers.float() - batch.targets).square().mean(-1)


def objective(model: nn.Module, batch: TokenBatch, state: State | None) -> Iterator[Loss]:
    """The objective of a `Predictor` for `fit`, by BPTT over the whole sequence; nats, or squared error for numbers."""
    assert isinstance(model, Predictor)
    total = losses(model, batch, model(batch)).sum(1)
    yield Loss(total, total.detach(), ())


class HeldOutScore(NamedTuple):
    """The score of a model on held-out sequences.

    Attributes:
        loss: mean over targets, in nats or as squared error.
        relative: loss ÷ baseline of the problem; 1 equals ignoring the input.
        error: share of wrong classes among the judged steps, or of wrong bits; for numbers, the loss.
    """

    loss: float
    relative: float
    error: float


def measure(model: Predictor, rows: int = 1000, *, seed: int = 0, chunk: int = 100) -> HeldOutScore:
    """The score on `rows` held-out sequences; `seed` selects the set of sequences.

    >>> import everstep as es
    >>> from everstep.lab.synthetic import CopyMemory
    >>> model = Predictor(es.GRU(10, 8), CopyMemory(lag=5))
    >>> 0.5 < measure(model, rows=20).error <= 1  # untrained
    True
    """
    training = model.training
    model.eval()
    found: list[tuple[float, float]] = []
    weights = []
    with torch.no_grad():
        for index, start in enumerate(range(0, rows, chunk)):
            count = min(chunk, rows - start)
            batch = model.problem.batch(count, seed=seed, index=index, held_out=True)
            found.append(_scored(model, batch))
            weights.append(count)
    model.train(training)
    loss, error = (sum(f[k] * w for f, w in zip(found, weights, strict=True)) / rows for k in range(2))
    return HeldOutScore(loss, loss / model.problem.baseline, error)


def _scored(model: Predictor, batch: Sequences) -> tuple[float, float]:
    answers = model(batch)
    loss = float(losses(model, batch, answers).mean())
    if model.problem.kind == "number":
        return loss, loss
    if model.problem.kind == "bits":
        return loss, float(((answers > 0) != (batch.targets > 0.5)).float().mean())
    judged = batch.targets.shape[1] if model.problem.judged is None else model.problem.judged
    wrong = answers.argmax(-1) != batch.targets
    return loss, float(wrong[:, -judged:].float().mean())
