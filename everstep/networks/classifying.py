"""Classification of whole sequences: batches, losses, measures, probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.cancellation import check_cancelled
from everstep.data.batches import Batches
from everstep.data.labelled_batches import Ints, LabelledBatch, LabelledBatches
from everstep.learn.objective import Loss
from everstep.networks.answers import Array, Figures
from everstep.networks.classifier import Classifier
from everstep.sections import Count, Probability, Section

MEANING = {
    "loss": "mean of -ln p(class)",
    "accuracy": "share that is right",
    "macro_f1": "mean F1 of the classes",
    "micro_f1": "F1 of single decisions, of any label",
    "mae": "mean distance, in places of the order",
    "quadratic_kappa": "1: all right, 0: as by chance",
    "ece": "expected calibration error, 15 bins",
    "temperature": "logits are divided by it, as the validation asked for",
}
"""A description of each measure."""
SCORED_TOKENS = 16384
"""Most padded tokens in a batch for evaluation."""
WIDE = 128
"""Numbers of a step, such as the pixels of a frame, that count as one token there."""
LEARNED_TOKENS = 65536
"""Most padded tokens in a batch for training; a longer text is a batch by itself."""


class ClassSection(Section):
    """The objective: −log p of the class."""

    label_smoothing: Probability = 0.0
    """share of the target's probability that is spread over all classes"""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: in training class k has weight n / (K n_k), so that rare classes count as much as frequent ones"""
    bptt: Count | None = None
    """for long sequences: tokens or steps per piece, at whose end gradients are cut and the class is predicted; null:
    whole sequences"""
    ordinal: bool = False
    """classes are ordered, as numbers or by data.classes: a score with thresholds in place of a softmax"""
    calibrated: bool = False
    """divide logits by a temperature that each validation fits, so that probabilities are calibrated"""

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Options that ordered classes do not support."""
        if self.ordinal and self.label_smoothing:
            yield "label_smoothing", f"expected 0 beside ordinal; got {self.label_smoothing:g}"

    def weights(self, labels: Ints, classes: int) -> Tensor | None:
        """The weight n / (K n_k) of each class (K,), 0 for a class without labels; None if all weights are 1."""
        if self.class_weights == "none":
            return None
        often = np.bincount(labels, minlength=classes)
        weights = np.divide(len(labels), classes * often, out=np.zeros(classes), where=often > 0)
        return torch.from_numpy(weights.astype(np.float32))


def class_losses(model: Classifier, batch: LabelledBatch, weights: Tensor | None) -> Iterator[Loss]:
    """One loss per batch: −log p(class), times the weight of the class."""
    own = batch.labels if model.training else None
    total, nats = model.answers.losses(model.head, model.logits(batch.inputs, batch.lengths, own), batch.labels)
    if weights is not None:
        total = total * weights.to(total)[batch.labels]
    yield Loss(total, nats)


def to_learn(sequences: Sequence[Array], labels: Array, batch_size: int, seed: int) -> LabelledBatches:
    """Batches for training, shuffled in each epoch; long texts come in fewer rows, to bound memory."""
    longest = max(map(len, sequences), default=0)
    most = LEARNED_TOKENS if longest * batch_size > LEARNED_TOKENS else None
    return LabelledBatches(sequences, labels, batch_size, seed=seed, max_tokens=most)


def to_score(sequences: Sequence[Array], labels: Array | None = None) -> LabelledBatches:
    """Batches for evaluation, of near-equal lengths and bounded size; unknown labels are 0."""
    labels = np.zeros(len(sequences), np.int64) if labels is None else labels
    wide = max(1, math.prod(sequences[0].shape[1:]) // WIDE)
    return LabelledBatches(sequences, labels, 256, shuffle=False, max_tokens=max(1, SCORED_TOKENS // wide))


def class_probabilities(model: Classifier, batches: Batches[LabelledBatch]) -> NDArray[Any]:
    """The probability of every answer for every sequence, (N, K), in the order of the sequences."""
    found = [_classed(model, batches.batch(0, index)) for index in range(len(batches))]
    places, log_p = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return np.exp(log_p[places.argsort()])  # type: ignore[no-any-return]


def measured_classes(
    model: Classifier,
    batches: Batches[LabelledBatch],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Figures:
    """All measures of labelled sequences; only the probabilities of one batch are in memory at a time."""
    noted: list[Array] = []
    places: list[Array] = []
    for index in range(len(batches)):
        batch = batches.batch(0, index)
        some, log_p = _classed(model, batch)
        places.append(some)
        noted.append(model.answers.noted(log_p, batch.labels.numpy()))
        progress(index + 1, len(batches))
    order = np.concatenate(places).argsort()  # so that sums do not depend on the batches
    return model.answers.figures(np.concatenate(noted)[order])


@torch.inference_mode()
def _classed(model: Classifier, batch: LabelledBatch) -> tuple[NDArray[Any], NDArray[Any]]:
    """The indices of the sequences of a batch, and log p of their answers in float64."""
    check_cancelled()
    model.eval()
    device = model.device
    log_p = model(batch.inputs.to(device), batch.lengths.to(device))
    return batch.places.numpy(), log_p.cpu().double().numpy()
