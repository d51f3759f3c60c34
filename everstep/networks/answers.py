"""The answers of a classifier: targets, losses, probabilities and printed predictions; one of K classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from everstep.data.readers.labelled import Labelled
from everstep.errors import DataError
from everstep.heads import Categorical
from everstep.measures import Reliability, class_measures

Ints = NDArray[np.int64]
Array = NDArray[Any]


class Figures(Protocol):
    """Measures of answers."""

    @property
    def main(self) -> dict[str, float]:
        """The measures of a validation, including "loss"."""

    @property
    def reliability(self) -> Reliability | None:
        """What probabilities are worth, if they are known."""

    def report(self, names: Sequence[str]) -> dict[str, Any]:
        """All measures, as JSON values."""


class Answers(ABC):
    """The K possible answers for a text, and their head.

    Attributes:
        names: the K names to predict.
        learned: the names that the head learns; equal to `names` unless classes are merged.
        lead_name: what `lead` is, for captions.
    """

    names: tuple[str, ...]
    learned: tuple[str, ...]
    lead_name = "the predicted class's lead over the second class"

    @abstractmethod
    def head(self, features: int) -> nn.Module:
        """A head with `logits`, for vectors (B, features)."""

    @abstractmethod
    def targets(self, found: Labelled, learn: bool = False) -> Array:
        """The targets of texts (N, …), as indices into `names`, or into `learned` with `learn`.

        Raises:
            DataError: a label is unknown; the message names the text.
        """

    @abstractmethod
    def losses(self, head: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """From logits (B, …): the loss to minimise and the loss to report, (B,) nats each."""

    @abstractmethod
    def log_probs(self, head: Any, logits: Tensor) -> Tensor:
        """log p of each name, (B, K), in nats."""

    @abstractmethod
    def nats(self, log_p: Tensor, targets: Tensor) -> Tensor:
        """−log p of the targets, (B,)."""

    @abstractmethod
    def lead(self, log_p: Tensor) -> Tensor:
        """The lead of the predicted answer over the next most probable one, (B,) nats."""

    @abstractmethod
    def noted(self, log_p: Array, targets: Array) -> Array:
        """The values that `figures` needs of each text, (B, C), kept small since all texts are stored."""

    @abstractmethod
    def figures(self, noted: Array) -> Figures:
        """The measures of N texts, from `noted` (N, C)."""

    @abstractmethod
    def said(self, p: Array) -> tuple[str, dict[str, Any]]:
        """The prediction from probabilities (K,): the line to print, and the full record."""


class OneOf(Answers):
    """One of K classes: a softmax over the learned classes, whose probabilities are summed by name and renormalised.

    p(k) = Σ_{j in k} softmax(z)_j / Σ_{j in any name} softmax(z)_j

    Args:
        classes: the learned classes, sorted.
        merged: the classes of each name; other classes are learned, but never predicted. None: one name per class.
        label_smoothing: ε of the minimised loss, (1 − ε)(−ln p(target)) + ε mean_k(−ln p(k)).

    Raises:
        DataError: `merged` names an unknown class.

    Example:
        >>> OneOf(("bad", "fine", "good"), {"worse": ("bad",), "better": ("fine", "good")}).names
        ('worse', 'better')
    """

    def __init__(
        self,
        classes: Sequence[str],
        merged: Mapping[str, Sequence[str]] | None = None,
        label_smoothing: float = 0.0,
    ):
        self.learned, self._label_smoothing = tuple(classes), label_smoothing
        self.names = self.learned if merged is None else tuple(merged)
        unknown = [c for some in (merged or {}).values() for c in some if c not in self.learned]
        if unknown:
            known = ", ".join(map(repr, self.learned[:10]))
            raise DataError(f"data.merge: {unknown[0]!r} is none of the {len(self.learned)} classes of train: {known}")
        self._groups = None if merged is None else [[self.learned.index(c) for c in some] for some in merged.values()]

    def head(self, features: int) -> nn.Module:
        return Categorical(features, len(self.learned))

    def targets(self, found: Labelled, learn: bool = False) -> Array:
        return found.ids(self.learned if learn else self.names)

    def losses(self, head: Categorical, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits.float().log_softmax(-1)
        nats = self.nats(log_p, targets)
        return torch.lerp(nats, -log_p.mean(-1), self._label_smoothing), nats.detach()

    def log_probs(self, head: Categorical, logits: Tensor) -> Tensor:
        log_p = logits.float().log_softmax(-1)
        if self._groups is None:
            return log_p
        return torch.stack([log_p[..., group].logsumexp(-1) for group in self._groups], -1).log_softmax(-1)

    def nats(self, log_p: Tensor, targets: Tensor) -> Tensor:
        return -log_p.gather(-1, targets[:, None])[:, 0]

    def lead(self, log_p: Tensor) -> Tensor:
        first, second = log_p.topk(2, -1).values.unbind(-1)
        return first - second

    def noted(self, log_p: Array, targets: Array) -> Array:
        guesses, rows = log_p.argmax(1), np.arange(len(targets))
        return np.stack([targets, guesses, -log_p[rows, targets], np.exp(log_p[rows, guesses])], axis=1)

    def figures(self, noted: Array) -> Figures:
        targets, guesses = noted[:, :2].T.astype(np.int64)
        return class_measures(targets, guesses, len(self.names), noted[:, 2], noted[:, 3])

    def said(self, p: Array) -> tuple[str, dict[str, Any]]:
        best = int(p.argmax())
        record = {"label": self.names[best], "probability": float(p[best])}
        every = dict(zip(self.names, map(float, p), strict=True))
        return f"{self.names[best]}\t{p[best]:.4f}", {**record, "probabilities": every}
