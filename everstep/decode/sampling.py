"""Sampling step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from everstep.errors import ConfigError
from everstep.state import State, leaves

StepFn = Callable[[Tensor, State], tuple[Tensor, State]]
"""Tokens (batch,) and the state to log p of the next token (batch, vocabulary), in nats, and the new state."""


def sample(
    step: StepFn,
    state: State,
    prompt: Sequence[int],
    length: int,
    *,
    count: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw x_t ~ p(x | x_<t), one token after another.

    The log-probabilities are divided by the temperature, cut to the `top_k` likeliest (Fan 2018), then to the smallest
    set of likeliest whose mass reaches `top_p` (Holtzman 2020), and renormalised.

    Args:
        step: the model.
        state: the state before the prompt, with leaves (count, ...); tokens are made on their device.
        prompt: at least one token; the model reads it first.
        length: tokens to draw.
        count: sequences drawn side by side.
        temperature: 1 is the model's own distribution, below 1 sharper; 0 always takes the likeliest.
        top_k, top_p: cuts; None for none.
        generator: of the random numbers, on that device; torch's own if None.

    Returns:
        (count, length) int64, without the prompt.

    Raises:
        ConfigError: an impossible setting, or an empty prompt.
    """
    _check(prompt, length, count, temperature, top_k, top_p)
    device = next((leaf.device for _, leaf in leaves(state)), torch.device("cpu"))
    with torch.inference_mode():
        for token in prompt[:-1]:
            _, state = step(torch.full((count,), token, device=device), state)
        tokens = torch.full((count,), prompt[-1], device=device)
        drawn = []
        for _ in range(length):
            log_p, state = step(tokens, state)
            tokens = _draw(log_p, temperature, top_k, top_p, generator)
            drawn.append(tokens)
    return torch.stack(drawn, 1)


def _draw(
    log_p: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    if temperature == 0:
        return log_p.argmax(-1)
    log_p = (log_p.double() / temperature).log_softmax(-1)
    if top_k is not None and top_k < log_p.shape[-1]:
        least = log_p.topk(top_k).values[:, -1:]
        log_p = log_p.masked_fill(log_p < least, -torch.inf).log_softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, places = log_p.sort(descending=True)
        mass = ordered.exp()
        ordered = ordered.masked_fill(mass.cumsum(-1) - mass >= top_p, -torch.inf)
        log_p = torch.full_like(log_p, -torch.inf).scatter(-1, places, ordered)
    return torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0]


def _check(
    prompt: Sequence[int], length: int, count: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    if not prompt:
        raise ConfigError("sample: the prompt is empty; the model needs at least one token to start from")
    for name, value in (("length", length), ("count", count), ("top_k", top_k)):
        if value is not None and value < 1:
            raise ConfigError(f"sample: {name} should be at least 1, but is {value}")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"sample: temperature should be 0 or more, but is {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"sample: top_p should lie in (0, 1], but is {top_p}")
