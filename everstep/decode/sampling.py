"""Sampling step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from everstep.errors import ConfigError
from everstep.native import processor
from everstep.state import State, leaves

StepFn = Callable[[Tensor, State], tuple[Tensor, State]]
"""Tokens (batch,) and the state to log p of the next token (batch, vocabulary), in nats, and the new state."""

_COLD = 1e-30
"""Below this temperature no two log-probabilities of different size keep a chance each, and some would overflow."""


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws a token of each row.

    Without the tokens `never`, the log-probabilities are divided by the temperature, cut to the `top_k` likeliest (Fan
    2018), then to the smallest set of likeliest whose mass reaches `top_p` (Holtzman 2020), and renormalised.

    >>> Sampler(temperature=0)(torch.tensor([[0.2, 0.5, 0.3]]).log())
    tensor([1])

    Args:
        temperature: 1 is the model's own distribution, below 1 sharper; 0 always takes the likeliest.
        top_k, top_p: cuts; None for none.
        never: tokens that are not drawn, such as `<unk>`.
        generator: of the random numbers, on the device of the log-probabilities; torch's own if None.

    Raises:
        ConfigError: an impossible setting.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    never: Sequence[int] = ()
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"sample: top_k should be at least 1, but is {self.top_k}")
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"sample: temperature should be 0 or more, but is {self.temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"sample: top_p should lie in (0, 1], but is {self.top_p}")

    def __call__(self, log_p: Tensor) -> Tensor:
        """From log p (batch, vocabulary), in nats, tokens (batch,)."""
        if self.never:
            log_p = log_p.index_fill(-1, torch.tensor(self.never, device=log_p.device), -torch.inf)
        if self.temperature < _COLD:
            return log_p.argmax(-1)
        wide = log_p.double() if processor.has_float64(log_p.device) else log_p
        log_p = (wide / self.temperature).log_softmax(-1)
        if self.top_k is not None and self.top_k < log_p.shape[-1]:
            least = log_p.topk(self.top_k).values[:, -1:]
            log_p = log_p.masked_fill(log_p < least, -torch.inf).log_softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            ordered, places = log_p.sort(descending=True)
            mass = ordered.exp()
            ordered = ordered.masked_fill(mass.cumsum(-1) - mass >= self.top_p, -torch.inf)
            log_p = torch.full_like(log_p, -torch.inf).scatter(-1, places, ordered)
        return torch.multinomial(log_p.exp(), 1, generator=self.generator)[:, 0]


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

    Args:
        step: the model.
        state: the state before the prompt, with leaves (count, ...).
        prompt: at least one token; the model reads it first. Tokens are made on its device, if it is a tensor; else on
            that of the state, or where the state has no leaf, on that of the generator.
        length: tokens to draw.
        count: sequences drawn side by side.
        temperature, top_k, top_p, never, generator: of the `Sampler`.

    Returns:
        (count, length) int64, without the prompt. `draws` gives the same step by step.

    Raises:
        ConfigError: an impossible setting, or an empty prompt.
    """
    sampler = Sampler(temperature, top_k, top_p, never, generator)
    return torch.stack(list(draws(step, state, prompt, length, sampler, count)), 1)


def draws(
    step: StepFn, state: State, prompt: Sequence[int] | Tensor, length: int, sampler: Sampler, count: int = 1
) -> Iterator[Tensor]:
    """As `sample`, token by token: `length` times (count,) int64, each as soon as it is drawn.

    Raises:
        ConfigError: an empty prompt, or nothing to draw; at once, before the first token is asked for.
    """
    device = _device(prompt, state, sampler.generator)
    tokens: list[int] = prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)
    if not tokens:
        raise ConfigError("sample: the prompt is empty; the model needs at least one token to start from")
    for name, value in (("length", length), ("count", count)):
        if value < 1:
            raise ConfigError(f"sample: {name} should be at least 1, but is {value}")
    return _drawn(step, state, tokens, length, count, sampler, device)


def _device(prompt: Sequence[int] | Tensor, state: State, generator: torch.Generator | None) -> torch.device:
    """Where tokens are made: where the model is, as far as what was given tells."""
    if isinstance(prompt, Tensor):
        return prompt.device
    found = (leaf.device for _, leaf in leaves(state))
    return next(found, torch.device("cpu") if generator is None else generator.device)


@torch.inference_mode()
def _drawn(
    step: StepFn, state: State, prompt: list[int], length: int, count: int, sampler: Sampler, device: torch.device
) -> Iterator[Tensor]:
    for token in prompt[:-1]:
        _, state = step(torch.full((count,), token, device=device), state)
    tokens = torch.full((count,), prompt[-1], device=device)
    for _ in range(length):
        log_p, state = step(tokens, state)
        tokens = sampler(log_p)
        yield tokens
