"""The interface of a model in decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from everstep.decode.sampling import Draw, StepFn
from everstep.state import State


class Numbers(NamedTuple):
    """What makes sequences of numbers, where a step reads rows of numbers in place of tokens.

    Attributes:
        draw: draws what the step reads next; see `NumberSampler`.
        end: the row that ends a sequence.
    """

    draw: Draw
    end: Sequence[float]


class Decoder(NamedTuple):
    """A model prepared for decoding, as sampling and search see it.

    A batch of B sources is one decoder with B rows; a language model has one.

    Attributes:
        step: maps tokens (batch,) and state to log p of the next token (batch, vocabulary) in nats and the new state,
            the same nest. It must not change the given state in place; leaves that it returns unchanged are not
            copied.
        state: the state before the prompt, leaves (B, …). Memory, attention keys and coverage are leaves of it.
        prompt: (n,) or (B, n) int64 tokens, n ≥ 1, that the model reads first; the first of them is the symbol that
            begins.
        end: the token that ends a sequence; None: sequences have no end.
        begins: number of prompt tokens before the given text, such as a begin symbol.
        unknown: number of unknown tokens in the given text.
        never: tokens without a text, such as `<unk>`, which are not sampled by default.
        attention: reads the attention of the last step out of the state: (batch, S) over the places of the sources, 0
            at padding. None: the model has no attention.
        source_lengths: (B,) int64 places of each source; None: nothing is known of the sources.
        numbers: for steps that read numbers: what draws the next. `step` then gives whatever `draw` takes, and `prompt`
            is (n, features). None: steps read tokens, and give log p of the next.
        fresh: whether nobody else reads the memory of the log p that `step` returns, so that a search may overwrite it.
    """

    step: StepFn
    state: State
    prompt: Tensor
    end: int | None
    begins: int = 0
    unknown: int = 0
    never: tuple[int, ...] = ()
    attention: Callable[[State], Tensor] | None = None
    source_lengths: Tensor | None = None
    fresh: bool = False
    numbers: Numbers | None = None
