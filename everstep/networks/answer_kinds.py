"""Answers other than one of K classes: ordered classes, and several labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everstep.data.readers.labelled import Labelled
from everstep.errors import DataError
from everstep.heads import Bernoulli, Cumulative
from everstep.measures import OrderedMeasures, class_measures, label_measures
from everstep.networks.answers import Answers, Array, Figures, OneOf


class Ordered(OneOf):
    """One of K ordered classes: a score, and thresholds between the classes (see `Cumulative`).

    Args:
        classes: the class names in order.
    """

    def __init__(self, classes: Sequence[str]):
        super().__init__(classes)

    def head(self, features: int) -> nn.Module:
        return Cumulative(features, len(self.names))

    def losses(self, head: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        nats = self.nats(Cumulative.log_probs(logits), targets)
        return nats, nats.detach()

    def log_probs(self, head: Any, logits: Tensor) -> Tensor:
        return Cumulative.log_probs(logits)

    def figures(self, noted: Array) -> Figures:
        targets, guesses = noted[:, :2].T.astype(np.int64)
        return OrderedMeasures(**vars(class_measures(targets, guesses, len(self.names), noted[:, 2], noted[:, 3])))


class Several(Answers):
    """Any number of K labels; a label is predicted if its probability is at least ½.

    Args:
        labels: the K names, sorted.
        separator: the separator of the labels of one text, in data and predictions.

    Example:
        >>> Several(("good", "short"), ",").said(np.array([0.9, 0.2]))[0]
        'good\\t0.7200'
    """

    lead_name = "the log-odds of the most probable label"

    def __init__(self, labels: Sequence[str], separator: str):
        self.names = self.learned = tuple(labels)
        self.separator = separator

    def head(self, features: int) -> nn.Module:
        return Bernoulli(features, len(self.names))

    def targets(self, found: Labelled, learn: bool = False) -> Array:
        places = {name: number for number, name in enumerate(self.names)}
        there = np.zeros((len(found), len(self.names)), np.int64)
        for row, given in enumerate(found.labels):
            for label in split_labels(given, self.separator):
                if label not in places:
                    known = ", ".join(map(repr, self.names[:5]))
                    raise DataError(
                        f"{found.place(row)}: the label {label!r} is not among the {len(places)} known ones: {known}"
                        f"{', …' if len(places) > 5 else ''}; correct it, or train with examples of it"
                    )
                there[row, places[label]] = 1
        return there

    def losses(self, head: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        nats = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none").sum(-1)
        return nats, nats.detach()

    def log_probs(self, head: Any, logits: Tensor) -> Tensor:
        return F.logsigmoid(logits.float())

    def nats(self, log_p: Tensor, targets: Tensor) -> Tensor:
        there = targets > 0
        return -torch.where(there, log_p, _log_not(log_p)).sum(-1)

    def lead(self, log_p: Tensor) -> Tensor:
        """The log-odds of the most probable label, (B,) nats."""
        most = log_p.max(-1).values
        return most - _log_not(most)

    def noted(self, log_p: Array, targets: Array) -> Array:
        nats = self.nats(torch.from_numpy(log_p), torch.from_numpy(targets)).numpy()
        return np.concatenate([nats[:, None], np.exp(log_p), targets], axis=1, dtype=np.float32)

    def figures(self, noted: Array) -> Figures:
        nats, p, targets = np.split(noted, [1, 1 + len(self.names)], axis=1)
        return label_measures(targets > 0, p >= 0.5, nats[:, 0], p.clip(0, 1))

    def said(self, p: Array) -> tuple[str, dict[str, Any]]:
        labels = [name for name, one in zip(self.names, p, strict=True) if one >= 0.5]
        whole = float(np.where(p >= 0.5, p, 1 - p).prod())  # probability of exactly these labels
        label = self.separator.join(labels)
        every = dict(zip(self.names, map(float, p), strict=True))
        return f"{label}\t{whole:.4f}", {
            "label": label,
            "labels": labels,
            "probability": whole,
            "probabilities": every,
        }


def split_labels(given: str, separator: str) -> list[str]:
    """The labels in a string, stripped of spaces; none for an empty string.

    Example:
        >>> split_labels("good, short,", ","), split_labels("", ",")
        (['good', 'short'], [])
    """
    return [label for part in given.split(separator) if (label := part.strip())]


def _log_not(log_p: Tensor) -> Tensor:
    """ln(1 − p), from ln p."""
    return torch.log(-torch.expm1(log_p.clamp(max=-1e-12 if log_p.dtype == torch.float64 else -1e-7)))
