"""What decoding sees of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from everstep.decode.sampling import StepFn
from everstep.state import State


class Decoder(NamedTuple):
    """A model ready to be decoded from: all that sampling and search know of it.

    A batch of B sources is one decoder with B rows; a language model has one.

    Attributes:
        step: tokens (batch,) and the state to log p of the next token (batch, vocabulary) in nats, and the new state,
            the same nest. It writes nothing into the state it is given; leaves that it returns as they came are not
            copied.
        state: the state before the prompt, leaves (B, …). Memory, attention keys and coverage are leaves of it.
        prompt: (n,) or (B, n) int64 tokens, n ≥ 1, that the model reads first; the first of them is the symbol that
            begins.
        end: the token that ends a sequence; None: sequences have no end.
        begins: how many tokens of the prompt stand before what was given, such as a symbol that begins.
        unknown: how many tokens of what was given are unknown to the vocabulary.
        never: tokens that cannot be written, such as `<unk>`: they are not drawn unless asked for.
        attention: reads the attention of the last step out of the state: (batch, S) over the places of the sources, 0
            at padding. None: the model has no attention.
        source_lengths: (B,) int64 places of each source; None: nothing is known of the sources.
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
