"""The output layer over a vocabulary that a recipe names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from everstep.heads import NCE, AdaptiveSoftmax, BlackOut, Categorical, ClassSoftmax, MixtureOfSoftmaxes, SampledSoftmax
from everstep.heads.head import VocabularyHead
from everstep.networks.layers import EmbeddedSection
from everstep.sections import Count, Probability

SoftmaxName = Literal["full", "adaptive", "sampled", "nce", "blackout", "classes", "mixture"]
SAMPLING: dict[str, type[SampledSoftmax] | type[NCE] | type[BlackOut]] = {
    "sampled": SampledSoftmax,
    "nce": NCE,
    "blackout": BlackOut,
}

_COUNTED = 1 << 22  # tokens counted at a time


class SoftmaxSection(EmbeddedSection):
    """An embedding, layers, and the softmax over the vocabulary."""

    softmax: SoftmaxName = "full"
    """full; for large vocabularies adaptive (Grave 2017), sampled (Jean 2015), nce (Mnih & Teh 2012), blackout (Ji
    2015), classes (Goodman 2001); mixture (Yang 2018). All are measured exactly, whatever they are trained by"""
    cutoffs: tuple[Count, ...] | None = None
    """adaptive: frequent words in the head, and in head and tails up to each; null: the cheapest for Zipf's law"""
    tail_divisor: float = Field(4.0, ge=1)
    """adaptive: divisor of the features from tail to tail; unused where tied"""
    samples: Count = 512
    """sampled, nce, blackout: words drawn for each update"""
    sample_power: Probability = 0.75
    """sampled, nce, blackout: words are drawn in proportion to their count to this power"""
    word_classes: Count | None = None
    """classes: number of classes, which are found by frequency; null: the root of the number of words"""
    mixtures: Count = 10
    """mixture: number of softmaxes"""
    sparse: bool = False
    """gradients of the embedding, and of a softmax that samples or has classes, hold only the words of the batch; adamw
    then updates only these. Pays from some ten thousand words on"""

    options: ClassVar[dict[str, tuple[str, ...]]] = {
        "cutoffs": ("adaptive",),
        "tail_divisor": ("adaptive",),
        "samples": tuple(SAMPLING),
        "sample_power": tuple(SAMPLING),
        "word_classes": ("classes",),
        "mixtures": ("mixture",),
    }

    def disagreements(self) -> Iterator[tuple[str, str]]:
        """Those of layers, options of another softmax, and cut-offs that do not rise."""
        yield from super().disagreements()
        for key, takers in self.options.items():
            if self.softmax not in takers and getattr(self, key) != type(self).model_fields[key].default:
                yield key, f"expected softmax {' or '.join(takers)} beside it; got {self.softmax}"
        if self.cutoffs is not None and list(self.cutoffs) != sorted({*self.cutoffs}):
            yield "cutoffs", f"expected rising numbers; got {list(self.cutoffs)}"

    def sparse_embedding(self, tied: bool) -> bool:
        """Whether the embedding's gradients are sparse: not where a tied softmax has one for each word."""
        return self.sparse and (not tied or self.softmax in (*SAMPLING, "classes"))


def make_softmax(
    section: SoftmaxSection, features: int, words: int, tied: Tensor | None, label_smoothing: float
) -> VocabularyHead:
    """The softmax that a section names.

    Args:
        section: the `model` section of a recipe.
        features: of the outputs that it reads.
        words: the vocabulary.
        tied: the embedding's weight to share, or None.
        label_smoothing: of `full`.

    Raises:
        ValueError: options that do not fit the vocabulary, such as a cut-off above it.
    """
    if section.softmax == "full":
        return Categorical(features, words, tied=tied, label_smoothing=label_smoothing)
    if section.softmax == "adaptive":
        return AdaptiveSoftmax(features, words, cutoffs=section.cutoffs, divisor=section.tail_divisor, tied=tied)
    if section.softmax == "classes":
        return ClassSoftmax(features, words, groups=section.word_classes, tied=tied, sparse=section.sparse)
    if section.softmax == "mixture":
        return MixtureOfSoftmaxes(features, words, mixtures=section.mixtures, tied=tied)
    options: dict[str, Any] = {"samples": section.samples, "power": section.sample_power, "sparse": section.sparse}
    return SAMPLING[section.softmax](features, words, tied=tied, **options)


def tell_counts(head: VocabularyHead, parts: Iterable[NDArray[Any]]) -> None:
    """Tell a head how often each word occurs among the tokens of the training data, which are given in parts (N,)."""
    if type(head).counted is VocabularyHead.counted:
        return
    found = np.zeros(head.classes, np.int64)
    for part in parts:
        for start in range(0, len(part), _COUNTED):
            found += np.bincount(part[start : start + _COUNTED], minlength=head.classes)
    head.counted(torch.from_numpy(found))


def smoothing_problem(section: SoftmaxSection, label_smoothing: float) -> Iterator[tuple[str, str]]:
    """Label smoothing beside a softmax that has none."""
    if label_smoothing and getattr(section, "max_entropy_order", None) is not None:
        yield "objective.label_smoothing", f"expected 0 beside model.max_entropy_order; got {label_smoothing:g}"
    elif label_smoothing and (section.softmax != "full" or getattr(section, "ends", "symbol") != "symbol"):
        where = "where model.ends is stop" if section.softmax == "full" else f"where model.softmax is {section.softmax}"
        yield "objective.label_smoothing", f"expected 0 {where}; got {label_smoothing:g}"
