"""Dropout of whole words, the rows of an embedding."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from everstep.wirings.masks import dropout_mask


class EmbeddingDropout(nn.Embedding):
    """An embedding that drops whole rows, that is words (Gal & Ghahramani 2016; Merity 2018).

    x = E[token] · m[token] / (1 − p) with m ~ Bernoulli(1 − p) for every word of the vocabulary, drawn once per call in
    training: a dropped word is dropped at all its positions, in every row of the batch. In eval mode it equals
    `torch.nn.Embedding`; it has the same parameters and `state_dict`. A tied head reads the whole weight.

    >>> embedding = EmbeddingDropout(10, 3, 0.1)
    >>> embedding(torch.zeros(2, 7, dtype=torch.int64)).shape, list(embedding.state_dict())
    (torch.Size([2, 7, 3]), ['weight'])

    Args:
        num_embeddings, embedding_dim: words V and features of each.
        p: probability in [0, 1) that a word is dropped.
        **options: those of `torch.nn.Embedding`.

    Raises:
        ValueError: a probability outside of [0, 1).
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, p: float, **options: Any):
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p < 1:
            raise ValueError(f"EmbeddingDropout: p should be a probability in [0, 1), but is {p!r}")
        super().__init__(num_embeddings, embedding_dim, **options)
        self.p = float(p)

    def forward(self, input: Tensor) -> Tensor:
        """Tokens (…) to (…, features)."""
        xs = super().forward(input)
        if not self.training or self.p == 0:
            return xs
        mask = dropout_mask(xs, (self.num_embeddings,), self.p)
        return xs * mask[input][..., None]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"
