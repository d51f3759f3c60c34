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
    firsts = (tokens == separator).int().argmax(1)
    rest = lengths - firsts - 1
    longest = int(torch.maximum(firsts, rest).max())
    places = (firsts[:, None] + 1 + torch.arange(longest, device=tokens.device)).clamp(max=tokens.shape[1] - 1)
    seconds = embedded.gather(1, places[..., None].expand(-1, -1, embedded.shape[-1]))
    vectors, _ = body(torch.cat([embedded[:, :longest], seconds]), lengths=torch.cat([firsts, rest]))
    u, v = vectors.chunk(2)
    return torch.cat([u, v, (u - v).abs(), u * v], -1)
