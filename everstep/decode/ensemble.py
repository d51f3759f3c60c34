"""Ensembles of models for decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from everstep.decode.decoder import Decoder
from everstep.errors import ConfigError
from everstep.state import State


def ensemble(decoders: Sequence[Decoder]) -> Decoder:
    """p(x) = mean over models of p_i(x), for the same sources in the same order and the same vocabulary.

    The state is the tuple of the models' states. Attention is the mean, if all models have it.

    >>> sure, fair = (torch.tensor(p).log() for p in ([0.9, 0.1], [0.5, 0.5]))
    >>> models = [
    ...     Decoder(lambda tokens, state, p=p: (p.expand(len(tokens), 2), state), (), torch.tensor([0]), end=1)
    ...     for p in (sure, fair)
    ... ]
    >>> both = ensemble(models)
    >>> both.step(torch.tensor([0]), both.state)[0].exp()
    tensor([[0.7000, 0.3000]])

    Raises:
        ConfigError: there is no model, or prompts, end tokens or vocabularies differ.
    """
    if not decoders:
        raise ConfigError("ensemble: expected at least one decoder; got none")
    first = decoders[0]
    for n, other in enumerate(decoders):
        if other.end != first.end or not torch.equal(other.prompt, first.prompt):
            raise ConfigError(
                f"ensemble: the decoders should have the same end and prompt, but {n} has {other.end} and "
                f"{other.prompt.tolist()}, 0 has {first.end} and {first.prompt.tolist()}"
            )

    def step(tokens: Tensor, state: State) -> tuple[Tensor, State]:
        log_ps, states = zip(*(one.step(tokens, part) for one, part in zip(decoders, state, strict=True)), strict=True)
        sizes = [log_p.shape[1] for log_p in log_ps]
        if len(set(sizes)) > 1:
            raise ConfigError(f"ensemble: the models should have one vocabulary, but theirs have {sizes} tokens")
        return torch.stack(log_ps).logsumexp(0) - math.log(len(log_ps)), states

    def attention(state: State) -> Tensor:
        each = [one.attention(part) for one, part in zip(decoders, state, strict=True) if one.attention is not None]
        return torch.stack(each).mean(0)

    return first._replace(
        step=step,
        state=tuple(one.state for one in decoders),
        never=tuple(sorted({token for one in decoders for token in one.never})),
        attention=attention if all(one.attention is not None for one in decoders) else None,
    )
