"""What the n-grams of a text say of its class, counted: naive Bayes beside a network, whose logits it is added to."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from everstep.data.batches import Batches
from everstep.data.labelled_batches import LabelledBatch

BUCKETS = 1 << 18
"""Places for counts, which n-grams find by a hash; two that meet in one are counted together."""
MOST_CLASSES = 64
_MULTIPLIER, _MIXER = 6364136223846793005, -49064778989728563  # of Knuth's generator, and of MurmurHash3


class NgramRatios(nn.Module):
    """z_k = s / √|F| · Σ_{f in F} (r_fk − mean_j r_fj) with r_fk = ln((c_fk + 1) / (Σ_f c_fk + V)).

    F are the distinct n-grams of a text, n = 1 … N; c_fk is how many texts of class k of the training data have f, V
    how many n-grams they have, and s is learned. N-grams that no other text has say nothing. In training a text's own
    count is taken from c first: else what occurs in one text alone would give away its class.

    Source: the ratios of Wang and Manning 2012, "Baselines and bigrams: simple, good sentiment and topic
    classification"; what is learned with them there is a linear model, here the network.

    Args:
        longest: N.
        classes: K, at most MOST_CLASSES.

    Attributes:
        counts: (BUCKETS, K), c; filled by `count`.
        scale: s, 1 at first.

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
        """Count the texts to learn from, in place of what was counted before."""
        self.counts.zero_()
        for index in range(len(batches)):
            batch = batches.batch(0, index).to(self.counts.device)
            for _, places, new in self._ngrams(batch.tokens, batch.lengths):
                labels = batch.labels[:, None].expand_as(places)[new]
                ones = self.counts.new_ones(len(labels))
                self.counts.index_put_((places[new], labels), ones, accumulate=True)

    def forward(self, tokens: Tensor, lengths: Tensor, own: Tensor | None = None) -> Tensor:
        """Tokens (batch, time) to z, (batch, K); `own` (batch,) are the classes with which these texts are counted."""
        return self.parts(tokens, lengths, own).sum(1)

    def parts(self, tokens: Tensor, lengths: Tensor, own: Tensor | None = None) -> Tensor:
        """What each token has in z, (batch, time, K): an n-gram's part is that of its n tokens, in equal shares."""
        totals = (self.counts.sum(0) + (self.counts.sum(1) > 0).sum()).clamp(min=1).log()
        total = tokens.new_zeros(len(tokens))
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
                found[:, shift : shift + said.shape[1]] += said
        return self.scale * found / total.clamp(min=1).sqrt()[:, None, None]

    def _ngrams(self, tokens: Tensor, lengths: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of each n: the places of the n-grams, (batch, time − n + 1), and which are there for the first time."""
        time = tokens.shape[1]
        hashed = torch.zeros_like(tokens)
        for n in range(1, min(self.longest, time) + 1):
            hashed = hashed[:, : time - n + 1] * _MULTIPLIER + tokens[:, n - 1 :] + 1
            mixed = (hashed ^ (hashed >> 33)) * _MIXER
            places = (mixed ^ (mixed >> 29)) & (BUCKETS - 1)
            there = torch.arange(time - n + 1, device=tokens.device) < (lengths - n + 1)[:, None]
            yield n, places, there & _first(places.masked_fill(~there, -1))


def _first(values: Tensor) -> Tensor:
    """Where a value stands in its row for the first time."""
    rising, order = values.sort(dim=1, stable=True)
    new = torch.ones_like(rising, dtype=torch.bool)
    new[:, 1:] = rising[:, 1:] != rising[:, :-1]
    return torch.zeros_like(new).scatter(1, order, new)
