"""Sampling token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from everstep.errors import ConfigError
from everstep.native import processor
from everstep.state import State, leaves

StepFn = Callable[[Tensor, State], tuple[Tensor, State]]
"""Maps tokens (batch,) and state to log p of the next token (batch, vocabulary), in nats, and the new state."""

Draw = Callable[[Tensor, float, torch.Generator | None], Tensor]
"""Draws a row of numbers (batch, features) of each output of a step (batch, size), at a temperature ≥ 0."""

_COLD = 1e-30
"""Temperature below which sampling is greedy, since scaled log-probabilities could overflow."""


@dataclass(frozen=True, eq=False)
class Sampler:
    """Samples a token for each row.

    Tokens in `never` are excluded. Log-probabilities are divided by the temperature, restricted to the `top_k` most
    probable tokens (Fan 2018), then to the smallest set of most probable tokens whose probability reaches `top_p`
    (Holtzman 2020), and renormalised.

    >>> Sampler(temperature=0)(torch.tensor([[0.2, 0.5, 0.3]]).log())
    tensor([1])

    Args:
        temperature: 1 for the model's distribution, below 1 sharper; 0 for greedy choice.
        top_k, top_p: restrictions; None for none.
        never: tokens that are not sampled, such as `<unk>`.
        generator: random generator on the device of the log-probabilities; torch's default if None.

    Raises:
        ConfigError: a setting is out of range.
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
        """Tokens (batch,), sampled from log p (batch, vocabulary) in nats."""
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


@dataclass(frozen=True, eq=False)
class NumberSampler:
    """Draws a row of numbers for each row of outputs.

    Args:
        draw: draws them.
        temperature: 1 for the model's distribution, below 1 sharper; 0: the likeliest.
        generator: random generator on the device of the outputs; torch's default if None.
    """

    draw: Draw
    temperature: float = 1.0
    generator: torch.Generator | None = None

    def __call__(self, outputs: Tensor) -> Tensor:
        """Rows (batch, features), drawn from outputs (batch, size)."""
        return self.draw(outputs, self.temperature, self.generator)


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
    """Sample x_t ~ p(x | x_<t) token by token.

    Args:
        step: the model.
        state: the state before the prompt, with leaves (count, ...).
        prompt: at least one token, which the model reads first. Tokens are created on its device, if it is a tensor;
            else on that of the state, or for a state without leaves, on that of the generator.
        length: number of tokens to sample.
        count: number of parallel sequences.
        temperature, top_k, top_p, never, generator: see `Sampler`.

    Returns:
        (count, length) int64, without the prompt. `draws` yields the same step by step.

    Raises:
        ConfigError: a setting is out of range, or the prompt is empty.
    """
    sampler = Sampler(temperature, top_k, top_p, never, generator)
    return torch.stack(list(draws(step, state, prompt, length, sampler, count)), 1)


def draws(
    step: StepFn,
    state: State,
    prompt: Sequence[int] | Tensor,
    length: int,
    sampler: Sampler | NumberSampler,
    count: int = 1,
) -> Iterator[Tensor]:
    """As `sample`, but yields (count,) int64 for each token; of a `NumberSampler` (count, features) for each step.

    Raises:
        ConfigError: the prompt is empty, or `length` is 0; raised at the call, not at the first iteration.
    """
    device = _device(prompt, state, sampler.generator)
    given = torch.as_tensor(prompt, device=device)
    given = given if given.is_floating_point() else given.long()
    if not len(given):
        raise ConfigError("sample: the prompt is empty; the model needs at least one token to start from")
    for name, value in (("length", length), ("count", count)):
        if value < 1:
            raise ConfigError(f"sample: {name} should be at least 1, but is {value}")
    return _drawn(step, state, given, length, count, sampler)


def _device(prompt: Sequence[int] | Tensor, state: State, generator: torch.Generator | None) -> torch.device:
    """The device of tokens: that of the model, as far as the arguments tell."""
    if isinstance(prompt, Tensor):
        return prompt.device
    found = (leaf.device for _, leaf in leaves(state))
    return next(found, torch.device("cpu") if generator is None else generator.device)


@torch.inference_mode()
def _drawn(
    step: StepFn, state: State, prompt: Tensor, length: int, count: int, sampler: Sampler | NumberSampler
) -> Iterator[Tensor]:
    first, *others = prompt[:, None].repeat_interleave(count, 1)
    for read in others:
        _, state = step(first, state)
        first = read
    for _ in range(length):
        outputs, state = step(first, state)
        first = sampler(outputs)
        yield first
