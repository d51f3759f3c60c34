"""Why a classifier says what it says: what each token adds to the lead of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from everstep.data.batches import Batches
from everstep.data.labelled_batches import LabelledBatch
from everstep.networks.sequence_classifier import SequenceClassifier


@dataclass(frozen=True)
class Relevance:
    """What the tokens of a text have to do with its answer.

    Attributes:
        gradient: of each token e · ∂lead/∂e, "gradient × input": to first order, what the answer's lead over the next
            likeliest, in nats, owes to that the token's embedding e is not 0, and to its n-grams. Above 0 it speaks for
            the answer.
        attention: of each token the weight of its step in the read-out, which sum to 1; None: no such read-out.
    """

    gradient: list[float]
    attention: list[float] | None


def relevance(model: SequenceClassifier, batches: Batches[LabelledBatch]) -> list[Relevance]:
    """Of every sequence, in their order; that of one depends on no other."""
    found: dict[int, Relevance] = {}
    for index in range(len(batches)):
        batch = batches.batch(0, index)
        found.update(zip(batch.places.tolist(), _of_batch(model, batch), strict=True))
    return [found[place] for place in range(len(found))]


def _of_batch(model: SequenceClassifier, given: LabelledBatch) -> Iterator[Relevance]:
    model.eval()
    batch = given.to(model.embedding.weight.device)
    with torch.enable_grad():
        embedded = model.embedding(batch.tokens).detach().requires_grad_()
        inputs = [embedded]
        logits = model.head.logits(model.read(batch.tokens, embedded, batch.lengths))  # type: ignore[operator]
        if model.ratios is not None:
            inputs.append(model.ratios.parts(batch.tokens, batch.lengths).detach().requires_grad_())
            logits = logits + inputs[1].sum(1)
        slopes = torch.autograd.grad(model.answers.lead(model.log_probs(logits)).sum(), inputs)
    gradient = sum((slope * given).sum(-1).detach().cpu().double() for slope, given in zip(slopes, inputs, strict=True))
    weights = model.attention(batch.tokens, embedded.detach(), batch.lengths)
    attention = None if weights is None else weights.double().cpu()
    for row, length in enumerate(batch.lengths.tolist()):
        attended = None if attention is None else attention[row, :length].tolist()
        yield Relevance(gradient[row, :length].tolist(), attended)


def marked(pieces: Sequence[str], values: Sequence[float], share: float = 0.5) -> str:
    """A text with what decides in marks: [+for+] and [-against-] the answer.

    Args:
        pieces: the text in pieces; spaces around them stay outside of the marks.
        values: the relevance of each.
        share: of the strongest, from which on a piece is marked.

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
    """The sums over the tokens of each piece, from first to last."""
    return [sum(values[first : last + 1]) for first, last in spans]
