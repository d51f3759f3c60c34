"""Small random decoders with states of every nest, and searches of them written out in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from everstep.decode import Decoder

H = 3
F64 = torch.float64


class Named(NamedTuple):
    h: Tensor
    rest: Any


PACKS: dict[str, tuple[Callable[..., Any], Callable[..., tuple[Tensor, Tensor, Tensor]]]] = {
    "tensor": (lambda h, keys, a: torch.cat([h, keys.flatten(1), a], 1), lambda s: cut(s)),
    "tuple": (lambda h, keys, a: (h, keys, a), lambda s: s),
    "named": (lambda h, keys, a: Named(h, (keys, a)), lambda s: (s.h, *s.rest)),
    "list": (lambda h, keys, a: [h, keys, a], lambda s: tuple(s)),
    "dict": (lambda h, keys, a: {"keys": keys, "h": h, "a": a}, lambda s: (s["h"], s["keys"], s["a"])),
    "nested": (lambda h, keys, a: ({"h": [h]}, (), Named(keys, a)), lambda s: (s[0]["h"][0], s[2].h, s[2].rest)),
}
"""How (h, keys, attention) is made a state of this kind, and read out of it."""


def cut(state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    places = (state.shape[1] - H) // (H + 1)
    h, keys, a = state.split([H, H * places, places], 1)
    return h, keys.view(len(state), places, H), a


def toy(
    seed: int,
    vocabulary: int,
    sources: int = 1,
    places: int = 3,
    kind: str = "tuple",
    end: int | None = 0,
    sure: float = 2,
    says: torch.dtype = F64,
) -> Decoder:
    """h_t = tanh(W h + E[token] + context), attention over keys; `sources` rows with sources of 1 … `places` places."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=F64)

    again, table, out = normal(H, H), normal(vocabulary, H), sure * normal(H, vocabulary)
    h, keys = normal(sources, H), normal(sources, places, H)
    lengths = torch.randint(1, places + 1, (sources,), generator=random)
    mask = torch.arange(places) >= lengths[:, None]
    keys = keys.masked_fill(mask[:, :, None], -torch.inf)  # padding: no number of it may count
    pack, unpack = PACKS[kind]

    def step(tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        h, keys, _ = unpack(state)
        weights = (keys.nan_to_num(neginf=0) * h[:, None]).sum(-1)
        weights = weights.masked_fill(keys[:, :, 0].isinf(), -torch.inf).softmax(-1)
        context = (weights[:, :, None] * keys.nan_to_num(neginf=0)).sum(1)
        h = ((h[:, :, None] * again).sum(1) + table[tokens] + context).tanh()
        return (h[:, :, None] * out).sum(1).log_softmax(-1).to(says), pack(h, keys, weights)

    state = pack(h, keys, torch.zeros(sources, places, dtype=F64))
    begin = torch.tensor([vocabulary - 1])
    return Decoder(step, state, begin, end, attention=lambda s: unpack(s)[2], source_lengths=lengths)


class Line(NamedTuple):
    """A sequence as the plain searches know it."""

    tokens: tuple[int, ...]
    log_p: float
    attention: list[Tensor]
    state: Any


def lp(length: int, alpha: float) -> float:
    return float(((5 + length) / 6) ** alpha)


def extensions(decoder: Decoder, line: Line) -> list[Line]:
    """A line with each token, by a step of it alone."""
    last = torch.tensor([line.tokens[-1]]) if line.tokens else decoder.prompt[-1:]
    log_p, state = decoder.step(last, line.state)
    assert decoder.attention is not None
    a = decoder.attention(state)[0]
    return [
        Line((*line.tokens, token), line.log_p + p, [*line.attention, a], state)
        for token, p in enumerate(log_p[0].tolist())
    ]


def plain_search(
    decoder: Decoder,
    width: float,
    n_best: int,
    alpha: float,
    beta: float,
    low: int,
    high: int,
    legal: Callable[[tuple[int, ...]], bool] = lambda tokens: True,
) -> list[tuple[tuple[int, ...], float]]:
    """Of one source: all extensions, the best `width`, to the greatest length, without ever stopping before.

    `legal` is asked of every beginning, with the end once it is written.
    """
    assert decoder.source_lengths is not None
    live, done = [Line((), 0.0, [], decoder.state)], []
    for t in range(high + 1):
        longer = [new for line in live for new in extensions(decoder, line) if legal(new.tokens)]
        if decoder.end is not None:
            longer = [new for new in longer if (new.tokens[-1] != decoder.end or t >= low)]
            longer = [new for new in longer if (new.tokens[-1] == decoder.end or t < high)]
        kept = sorted(longer, key=lambda new: -new.log_p)[: width if width < math.inf else None]
        over = [new for new in kept if (new.tokens[-1] == decoder.end if decoder.end is not None else t + 1 == high)]
        live = [new for new in kept if all(new is not other for other in over)]
        for line in over:
            sums = torch.stack(line.attention).sum(0)[: decoder.source_lengths[0]]
            missed = sums.clamp(1e-9, 1).log().sum().item()
            done.append((line.tokens, line.log_p / lp(len(line.tokens), alpha) + beta * missed))
        if not live:
            break
    cut_end = [(tokens[:-1] if decoder.end is not None else tokens, score) for tokens, score in done]
    return sorted(cut_end, key=lambda one: -one[1])[:n_best]


def alone(decoder: Decoder, source: int) -> Decoder:
    """One source of a batch."""
    from everstep.state import select

    row = torch.tensor([source])
    assert decoder.source_lengths is not None
    return decoder._replace(state=select(decoder.state, row), source_lengths=decoder.source_lengths[row])
