"""Pairs of texts in one row, read separately by the same network and compared."""

from __future__ import annotations

import torch
from torch import Tensor

from everstep.wirings import ReadOut


def compared(body: ReadOut, tokens: Tensor, embedded: Tensor, lengths: Tensor, separator: int) -> Tensor:
    """[u, v, |u − v|, u ∘ v] of the vectors u and v of two texts, (batch, 4 × features).

    Source: Conneau 2017, "Supervised learning of universal sentence representations".

    Args:
        body: maps a text to a vector.
        tokens: (batch, time), in each row the first text, `separator`, the second text.
        embedded: (batch, time, features), the embedded tokens.
        lengths: (batch,), lengths of both texts with the separator.
        separator: the id of the token between the texts.
    """
    firsts, rest, places = _cut(tokens, lengths, separator)
    seconds = embedded.gather(1, places[..., None].expand(-1, -1, embedded.shape[-1]))
    both = torch.cat([embedded[:, : places.shape[1]], seconds])
    vectors, _ = body(both, lengths=torch.cat([firsts, rest]))
    return joined(*vectors.chunk(2))


def joined(u: Tensor, v: Tensor) -> Tensor:
    """[u, v, |u − v|, u ∘ v], (batch, 4 × features)."""
    return torch.cat([u, v, (u - v).abs(), u * v], -1)


def laid_out(tokens: Tensor, lengths: Tensor, separator: int) -> dict[str, Tensor]:
    """Pairs as two tables of texts, for a runtime that cannot cut them.

    Args:
        tokens: (batch, time), in each row the first text, `separator`, the second text.
        lengths: (batch,), lengths of both texts with the separator.
        separator: the id of the token between the texts.

    Returns:
        `first` and `second` (batch, longest), with at least one column, and their lengths `first_lengths` and
        `second_lengths` (batch,).

    >>> found = laid_out(torch.tensor([[5, 9, 7, 8]]), torch.tensor([4]), 9)
    >>> found["first"].tolist(), found["second"].tolist(), found["second_lengths"].tolist()
    ([[5]], [[7, 8]], [2])
    """
    firsts, rest, places = _cut(tokens, lengths, separator)
    seconds, many = tokens.gather(1, places), [max(1, int(some.max())) for some in (firsts, rest)]
    first, second = (table[:, :size] for table, size in zip((tokens, seconds), many, strict=True))
    return {"first": first, "first_lengths": firsts, "second": second, "second_lengths": rest}


def _cut(tokens: Tensor, lengths: Tensor, separator: int) -> tuple[Tensor, Tensor, Tensor]:
    """The lengths of both texts of each pair, and the places of the second one's tokens."""
    firsts = (tokens == separator).int().argmax(1)
    rest = lengths - firsts - 1
    longest = max(1, int(torch.maximum(firsts, rest).max()))
    places = firsts[:, None] + 1 + torch.arange(longest, device=tokens.device)
    return firsts, rest, places.clamp(max=tokens.shape[1] - 1)
