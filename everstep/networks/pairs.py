"""Two texts in one row: each is read by itself, by the same network, and the two vectors are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from everstep.wirings import ReadOut


def compared(body: ReadOut, tokens: Tensor, embedded: Tensor, lengths: Tensor, separator: int) -> Tensor:
    """[u, v, |u − v|, u ∘ v] of the vectors u and v of two texts (Conneau 2017, "Supervised learning of universal
    sentence representations"), (batch, 4 × features).

    Args:
        body: reads a text to a vector.
        tokens: (batch, time), in each row the first text, `separator`, the second text.
        embedded: (batch, time, features), the tokens as `body` reads them.
        lengths: (batch,), of both texts and the separator.
    """
    firsts = (tokens == separator).int().argmax(1)
    rest = lengths - firsts - 1
    longest = int(torch.maximum(firsts, rest).max())
    places = (firsts[:, None] + 1 + torch.arange(longest, device=tokens.device)).clamp(max=tokens.shape[1] - 1)
    seconds = embedded.gather(1, places[..., None].expand(-1, -1, embedded.shape[-1]))
    vectors, _ = body(torch.cat([embedded[:, :longest], seconds]), lengths=torch.cat([firsts, rest]))
    u, v = vectors.chunk(2)
    return torch.cat([u, v, (u - v).abs(), u * v], -1)
