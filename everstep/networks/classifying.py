"""−log p(class) of whole sequences, to learn from and to predict with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from everstep.data.batches import Batches
from everstep.data.labelled_batches import Ints, LabelledBatch, LabelledBatches
from everstep.learn.objective import Loss
from everstep.networks.sequence_classifier import SequenceClassifier
from everstep.sections import Probability, Section

SCORED_TOKENS = 16384
"""Most padded tokens that are classified in one batch."""


class ClassSection(Section):
    """What is minimised: −log p of the class."""

    label_smoothing: Probability = 0.0
    """share of the target's mass that is spread over all classes"""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: in training class k counts n / (K n_k), so that rare classes weigh as much as frequent ones"""


def balanced_weights(labels: Ints, classes: int) -> Tensor:
    """n / (K n_k) of each of the K classes, with n_k of the n labels in class k; 0 where n_k is 0."""
    often = np.bincount(labels, minlength=classes)
    weights = np.divide(len(labels), classes * often, out=np.zeros(classes), where=often > 0)
    return torch.from_numpy(weights.astype(np.float32))


def class_losses(model: SequenceClassifier, batch: LabelledBatch, weights: Tensor | None) -> Iterator[Loss]:
    """One loss a batch: −log p(class), times the weight of the class."""
    ys = model.read(model.embedding(batch.tokens), batch.lengths)
    total, nats = model.head.smoothed(ys, batch.labels[:, None])
    if weights is not None:
        total = total * weights.to(total)[batch.labels]
    yield Loss(total, nats)


def to_score(sequences: list[Ints], labels: Ints) -> LabelledBatches:
    """Batches to be scored: near-equal lengths together, as many as memory holds well."""
    return LabelledBatches(sequences, labels, 256, shuffle=False, max_tokens=SCORED_TOKENS)


@torch.inference_mode()
def class_log_probs(
    model: SequenceClassifier,
    batches: Batches[LabelledBatch],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[Any]:
    """(N, K) log p of every class of every sequence, in the order of the sequences."""
    model.eval()
    device, rows, found = model.embedding.weight.device, [], []
    for index in range(len(batches)):
        batch = batches.batch(0, index)
        rows.append(batch.places)
        found.append(model(batch.tokens.to(device), batch.lengths.to(device)).cpu())
        progress(index + 1, len(batches))
    return torch.cat(found)[torch.cat(rows).argsort()].double().numpy()
