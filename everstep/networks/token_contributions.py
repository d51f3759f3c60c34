"""Explanations of a classifier: the contribution of each token to the lead of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from everstep.cancellation import check_cancelled
from everstep.data.batches import Batches
from everstep.data.labelled_batches import LabelledBatch
from everstep.networks.sequence_classifier import SequenceClassifier


@dataclass(frozen=True)
class Relevance:
    """The relevance of the tokens of a text for its answer.

    Attributes:
        gradient: e · ∂lead/∂e for each token with embedding e ("gradient × input"), plus the share of its n-grams: to
            first order, the token's contribution to the lead of the answer over the next most probable one, in nats.
            Positive values support the answer.
        attention: the weight of each token in the read-out, with sum 1; None without attention.
    """

    gradient: list[float]
    attention: list[float] | None


def relevance(model: SequenceClassifier, batches: Batches[LabelledBatch]) -> list[Relevance]:
    """The relevance for every sequence, in order; each is independent of the others."""
    found: dict[int, Relevance] = {}
    for index in range(len(batches)):
        check_cancelled()
        batch = batches.batch(0, index)
        found.update(zip(batch.places.tolist(), _of_batch(model, batch), strict=True))
    return [found[place] for place in range(len(found))]


def _of_batch(model: SequenceClassifier, given: LabelledBatch) -> Iterator[Relevance]:
    model.eval()
    batch = given.to(model.embedding.weight.device)
    with torch.enable_grad():
        embedded = model.embedding(batch.inputs).detach().requires_grad_()
        inputs = [embedded]
        logits = model.head.logits(model.read(batch.inputs, embedded, batch.lengths))  # type: ignore[operator]
        if model.ratios is not None:
            inputs.append(model.ratios.parts(batch.inputs, batch.lengths).detach().requires_grad_())
            logits = logits + inputs[1].sum(1)
        slopes = torch.autograd.grad(model.answers.lead(model.log_probs(logits)).sum(), inputs)
    gradient = sum((slope * given).sum(-1).detach().cpu().double() for slope, given in zip(slopes, inputs, strict=True))
    weights = model.attention(batch.inputs, embedded.detach(), batch.lengths)
    attention = None if weights is None else weights.double().cpu()
    for row, length in enumerate(batch.lengths.tolist()):
        attended = None if attention is None else attention[row, :length].tolist()
        yield Relevance(gradient[row, :length].tolist(), attended)


def marked(pieces: Sequence[str], values: Sequence[float], share: float = 0.5) -> str:
    """A text with its relevant pieces marked: [+for+] and [-against-] the answer.

    Args:
        pieces: the pieces of the text; surrounding spaces stay outside the marks.
        values: the relevance of each piece.
        share: least share of the largest relevance for a mark.

    Example:
        >>> marked(["not ", "bad ", "at ", "all"], [2.0, -1.5, 0.1, 0.4])
        '[+not+] [-bad-] at all'
    """
    least = share * max(map(abs, values), default=0.0)
    told = []
    for piece, value in zip(pieces, values, strict=True):
        inside, sign = piece.strip(), "+" if value > 0 else "-"
        found = bool(inside) and value != 0 and abs(value) >= least
        told.append(piece.replace(inside, f"[{sign}{inside}{sign}]", 1) if found else piece)
    return "".join(told).rstrip()


def by_piece(values: Sequence[float], spans: Sequence[tuple[int, int]]) -> list[float]:
    """The sum of token values over each piece, given as (first, last) token."""
    return [sum(values[first : last + 1]) for first, last in spans]
