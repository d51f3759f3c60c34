"""Sampling step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from everstep.errors import ConfigError
from everstep.native import processor
from everstep.state import State, leaves

StepFn = Callable[[Tensor, State], tuple[Tensor, State]]
"""Tokens (batch,) and the state to log p of the next token (batch, vocabulary), in nats, and the new state."""

_COLD = 1e-30
"""Below this temperature no two log-probabilities of different size keep a chance each, and some would overflow."""


def sample(
    step: StepFn,
    state: State,
    prompt: Sequence[int] | Tensor,
    length: int,
    *,
    count: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    never: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw x_t ~ p(x | x_<t), one token after another.

    Without the tokens `never`, the log-probabilities are divided by the temperature, cut to the `top_k` likeliest (Fan
    2018), then to the smallest set of likeliest whose mass reaches `top_p` (Holtzman 2020), and renormalised.

    Args:
        step: the model.
        state: the state before the prompt, with leaves (count, ...).
        prompt: at least one token; the model reads it first. Tokens are made on its device, if it is a tensor; else on
            that of the state, or where the state has no leaf, on that of the generator.
        length: tokens to draw.
        count: sequences drawn side by side.
        temperature: 1 is the model's own distribution, below 1 sharper; 0 always takes the likeliest.
        top_k, top_p: cuts; None for none.
        never: tokens that are not drawn, such as `<unk>`.
        generator: of the random numbers, on that device; torch's own if None.

    Returns:
        (count, length) int64, without the prompt. `draws` gives the same step by step.

    Raises:
        ConfigError: an impossible setting, or an empty prompt.
    """
    cuts: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "never": never}
    return torch.stack(list(draws(step, state, prompt, length, count=count, generator=generator, **cuts)), 1)


def draws(
    step: StepFn,
    state: State,
    prompt: Sequence[int] | Tensor,
    length: int,
    *,
    count: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    never: Sequence[int] = (),
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """As `sample`, token by token: `length` times (count,) int64, each as soon as it is drawn.

    Raises:
        ConfigError: an impossible setting, or an empty prompt; at once, before the first token is asked for.
    """
    device = _device(prompt, state, generator)
    tokens: list[int] = prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)
    _check(tokens, length, count, temperature, top_k, top_p)
    left_out = torch.tensor(list(never), dtype=torch.int64, device=device)

    def choose(log_p: Tensor) -> Tensor:
        allowed = log_p.index_fill(-1, left_out, -torch.inf) if never else log_p
        return _draw(allowed, temperature, top_k, top_p, generator)

    return _drawn(step, state, tokens, length, count, choose, device)


def _device(prompt: Sequence[int] | Tensor, state: State, generator: torch.Generator | None) -> torch.device:
    """Where tokens are made: where the model is, as far as what was given tells."""
    if isinstance(prompt, Tensor):
        return prompt.device
    found = (leaf.device for _, leaf in leaves(state))
    return next(found, torch.device("cpu") if generator is None else generator.device)


@torch.inference_mode()
def _drawn(
    step: StepFn,
    state: State,
    prompt: Sequence[int],
    length: int,
    count: int,
    choose: Callable[[Tensor], Tensor],
    device: torch.device,
) -> Iterator[Tensor]:
    for token in prompt[:-1]:
        _, state = step(torch.full((count,), token, device=device), state)
    tokens = torch.full((count,), prompt[-1], device=device)
    for _ in range(length):
        log_p, state = step(tokens, state)
        tokens = choose(log_p)
        yield tokens


def _draw(
    log_p: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    if temperature < _COLD:
        return log_p.argmax(-1)
    wide = log_p.double() if processor.has_float64(log_p.device) else log_p
    log_p = (wide / temperature).log_softmax(-1)
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
