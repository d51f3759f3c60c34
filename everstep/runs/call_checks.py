"""Checks of what callers of a run give: lines, seeds, numbers of texts."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch

from everstep.decode.decoder import Decoder
from everstep.errors import ConfigError
from everstep.state import leaves

DRAWN_BYTES = 4 << 30
"""Most bytes for texts that are sampled in parallel."""


def seeded(seed: int | None, device: torch.device) -> torch.Generator:
    """A generator with the given seed, or with a random one."""
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
        return generator
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ConfigError(f"generate: seed should be a whole number from 0 to 2^63 - 1, but is {seed!r}")
    return generator.manual_seed(number)


@torch.inference_mode()
def check_room(decoder: Decoder, count: int) -> None:
    """Refuse more parallel sequences than fit into DRAWN_BYTES."""
    if count < 1:
        raise ConfigError(f"generate: count should be at least 1, but is {count}")
    log_p, _ = decoder.step(decoder.prompt[:1], decoder.state)
    row = sum(leaf.numel() * leaf.element_size() for _, leaf in leaves(decoder.state))
    row += 4 * 8 * log_p.shape[-1]  # a few arrays of float64 over the vocabulary
    if count * row > DRAWN_BYTES:
        raise ConfigError(
            f"generate: count should be at most {DRAWN_BYTES // row:,} for this model, since all texts are drawn side "
            f"by side ({row:,} bytes each), but is {count:,}; draw them in turns, each with another seed"
        )


def checked_lines(who: str, lines: Any) -> Any:
    """The lines, each checked to be a string.

    Raises:
        TypeError: `lines` is a single string, or an entry is not a string.
    """
    if isinstance(lines, str | bytes):
        example = [lines] if isinstance(lines, str) else ["To be, or not to be"]
        raise TypeError(f"{who}: expected a list of lines, such as {example!r}, but got one {type(lines).__name__}")
    if isinstance(lines, Iterator):
        return lines
    lines = list(lines)
    wrong = next((type(line).__name__ for line in lines if not isinstance(line, str)), None)
    if wrong is not None:
        raise TypeError(
            f"{who}: expected a list of lines, such as ['To be, or not to be'], but got one with {wrong} in it"
        )
    return lines
