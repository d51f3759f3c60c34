"""Temperature scaling: a divisor of the logits that calibrates probabilities on held-out texts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from everstep.data.batches import Batches
from everstep.data.labelled_batches import LabelledBatch
from everstep.networks.classifier import Classifier
from everstep.networks.classifying import measured_classes

LOWEST, HIGHEST = 0.05, 20.0
FITTED = 1 << 20
"""Most logits to fit a temperature to, from an even sample of texts."""
_STEPS = 40  # each shrinks the interval of log T by 0.618, in total to 3e-8


def fitted_temperature(nats: Callable[[float], float]) -> float:
    """The T in LOWEST … HIGHEST that minimises the mean of −log p(target; logits / T), by golden-section search.

    The search is over log T. The mean is convex in 1/T, so that the minimum is unique (Guo et al. 2017, "On calibration
    of modern neural networks").

    Args:
        nats: the mean as a function of T.

    Example:
        >>> round(fitted_temperature(lambda t: (1 / t - 0.5) ** 2), 4)
        2.0
    """
    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(LOWEST), math.log(HIGHEST)
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = nats(math.exp(left)), nats(math.exp(right))
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = nats(math.exp(left))
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = nats(math.exp(right))
    return math.exp((low + high) / 2)


def reported(
    model: Classifier,
    batches: Batches[LabelledBatch],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """All measures of labelled texts as JSON values, with the temperature if there is one."""
    figures = measured_classes(model, batches, progress).report(model.answers.names)
    return figures if model.temperature is None else {**figures, "temperature": float(model.temperature)}


@torch.no_grad()
def calibrate(model: Classifier, batches: Batches[LabelledBatch]) -> None:
    """Fit the temperature of a model, if it has one, to held-out texts, in place."""
    if model.temperature is None:
        return
    model.eval()
    device = model.device
    logits: list[Tensor] = []
    targets: list[Tensor] = []
    every = 1
    for index in range(len(batches)):
        batch = batches.batch(0, index).to(device)
        found = model.logits(batch.inputs, batch.lengths)
        if not index:
            every = -(-len(batches) * found.numel() // FITTED)
        logits.append(found[::every])
        targets.append(batch.labels[::every])
    all_logits, all_targets = torch.cat(logits), torch.cat(targets)

    def nats(temperature: float) -> float:
        log_p = model.answers.log_probs(model.head, all_logits / temperature)
        return float(model.answers.nats(log_p, all_targets).mean())

    model.temperature.fill_(fitted_temperature(nats))
