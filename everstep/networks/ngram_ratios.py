"""Naive Bayes over the n-grams of a text, added to the logits of a network."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from everstep.data.batches import Batches
from everstep.data.labelled_batches import LabelledBatch

BUCKETS = 1 << 18
"""Number of hash buckets for counts; n-grams that collide are counted together."""
MOST_CLASSES = 64
_MULTIPLIER, _MIXER = 6364136223846793005, -49064778989728563  # from Knuth's generator, and from MurmurHash3


class NgramRatios(nn.Module):
    """z_k = s / √|F| · Σ_{f in F} (r_fk − mean_j r_fj) with r_fk = ln((c_fk + 1) / (Σ_f c_fk + V)).

    F is the set of distinct n-grams of a text, n = 1 … N; c_fk is the number of training texts of class k that contain
    f, V the number of n-grams in training, and s is learned. N-grams that no other text contains are ignored. In
    training, the text's own count is subtracted from c first; otherwise n-grams that occur in one text alone would
    reveal its class.

    Source: the ratios of Wang and Manning 2012, "Baselines and bigrams: simple, good sentiment and topic
    classification", who use them in a linear model instead of a network.

    Args:
        longest: N.
        classes: K, at most MOST_CLASSES.

    Attributes:
        counts: (BUCKETS, K), c; filled by `count`.
        scale: s, initially 1.

    Example:
        >>> ratios = NgramRatios(2, 2)
        >>> ratios(torch.tensor([[3, 5]]), torch.tensor([2])).tolist()
        [[0.0, 0.0]]
    """

    counts: Tensor

    def __init__(self, longest: int, classes: int):
        super().__init__()
        self.longest = longest
        self.register_buffer("counts", torch.zeros(BUCKETS, classes))
        self.scale = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def count(self, batches: Batches[LabelledBatch]) -> None:
        """Count the training texts, replacing earlier counts."""
        self.counts.zero_()
        for index in range(len(batches)):
            batch = batches.batch(0, index).to(self.counts.device)
            for _, places, new in self._ngrams(batch.inputs, batch.lengths):
                labels = batch.labels[:, None].expand_as(places)[new]
                ones = self.counts.new_ones(len(labels))
                self.counts.index_put_((places[new], labels), ones, accumulate=True)

    def forward(self, tokens: Tensor, lengths: Tensor, own: Tensor | None = None) -> Tensor:
        """z (batch, K) of tokens (batch, time); `own` (batch,) are the classes under which these texts are counted."""
        return self.parts(tokens, lengths, own).sum(1)

    def parts(self, tokens: Tensor, lengths: Tensor, own: Tensor | None = None) -> Tensor:
        """The part of each token in z, (batch, time, K); an n-gram's part is shared equally by its n tokens."""
        totals = (self.counts.sum(0) + (self.counts.sum(1) > 0).sum()).clamp(min=1).log()
        total = tokens.new_zeros(tokens.shape[0])
        found = self.counts.new_zeros(*tokens.shape, self.counts.shape[1])
        for n, places, new in self._ngrams(tokens, lengths):
            often = self.counts[places]
            if own is not None:
                often = often - nn.functional.one_hot(own, often.shape[-1])[:, None]
            often = often.clamp(min=0)
            said = (often + 1).log() - totals
            said = said - said.mean(-1, keepdim=True)
            said = said * (new & (often.sum(-1) > 0))[..., None] / n
            total = total + new.sum(1)
            for shift in range(n):
                found = found + nn.functional.pad(said, (0, 0, shift, 0))[:, : tokens.shape[1]]
        return self.scale * found / total.clamp(min=1).sqrt()[:, None, None]

    def _ngrams(self, tokens: Tensor, lengths: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each n, at each token: n, bucket of the n-gram that begins there, (batch, time), and whether it is the
        first such in the text."""
        time = tokens.shape[1]
        further = nn.functional.pad(tokens, (0, self.longest - 1))  # whatever the time, so that an export has no cases
        hashed = torch.zeros_like(tokens)
        for n in range(1, self.longest + 1):
            hashed = hashed * _MULTIPLIER + further[:, n - 1 : n - 1 + time] + 1
            mixed = (hashed ^ (hashed >> 33)) * _MIXER
            places = (mixed ^ (mixed >> 29)) & (BUCKETS - 1)
            there = torch.arange(time, device=tokens.device) < (lengths - n + 1)[:, None]
            yield n, places, there & _first(places.masked_fill(~there, -1))


def _first(values: Tensor) -> Tensor:
    """A mask of the first occurrence of each value in its row."""
    rising, order = values.sort(dim=1, stable=True)
    before = torch.cat([rising[:, :1] - 1, rising], 1)[:, : values.shape[1]]
    new = rising != before
    return torch.zeros_like(new).scatter(1, order, new)
