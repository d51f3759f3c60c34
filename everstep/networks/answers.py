"""What a classifier answers, from the head's numbers to words: one class of many."""

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
from everstep.measures import class_measures

Ints = NDArray[np.int64]
Array = NDArray[Any]


class Figures(Protocol):
    """What answers are worth."""

    @property
    def main(self) -> dict[str, float]:
        """Those that a validation shows, "loss" among them."""

    def report(self, names: Sequence[str]) -> dict[str, Any]:
        """All, as JSON takes them."""


class Answers(ABC):
    """The K things that can be said of a text, and how a head says them.

    Attributes:
        names: (K,) what is said.
        learned: the names that the head knows; `names` unless several of them are one thing to say.
    """

    names: tuple[str, ...]
    learned: tuple[str, ...]

    @abstractmethod
    def head(self, features: int) -> nn.Module:
        """A head over one vector of a text; has `logits`."""

    @abstractmethod
    def targets(self, found: Labelled, learn: bool = False) -> Array:
        """(N, …) what is right of each text, by the places in `names`, or in `learned` if it is to `learn` from.

        Raises:
            DataError: a label that is none of them; names the place.
        """

    @abstractmethod
    def losses(self, head: Any, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """From the head's numbers, (B, …): the loss to learn from and the one to show; (B,) nats each."""

    @abstractmethod
    def log_probs(self, head: Any, logits: Tensor) -> Tensor:
        """log p of each name, (B, K), in nats."""

    @abstractmethod
    def nats(self, log_p: Tensor, targets: Tensor) -> Tensor:
        """−log p of what is right, (B,)."""

    @abstractmethod
    def lead(self, log_p: Tensor) -> Tensor:
        """By how many nats what is said leads over what else could be, (B,)."""

    @abstractmethod
    def noted(self, log_p: Array, targets: Array) -> Array:
        """(B, C) what `figures` needs of each text: little, since it is kept of all of them."""

    @abstractmethod
    def figures(self, noted: Array) -> Figures:
        """The figures of (N, C) texts."""

    @abstractmethod
    def said(self, p: Array) -> tuple[str, dict[str, Any]]:
        """(K,) probabilities as a line to print, and as all that is known."""


class OneOf(Answers):
    """One class of K: softmax over what is learned; p of a name is that of its classes, among those that have a name.

    p(k) = Σ_{j in k} softmax(z)_j / Σ_{j in any name} softmax(z)_j

    Args:
        classes: what is learned, sorted.
        merged: the classes that each name stands for; others are learned from, and never said. None: each by itself.
        label_smoothing: ε of the loss to learn from, (1 − ε)(−ln p(target)) + ε mean_k(−ln p(k)).

    Raises:
        DataError: `merged` has a class that is none.

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
