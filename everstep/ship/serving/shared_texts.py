"""Texts whose steps are those of the batcher: texts of several clients, and sessions, share steps of the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

from everstep.runs.drawn_text import Writing
from everstep.ship.serving.hosted import HostedRun
from everstep.ship.serving.step_engine import StepEngine, Value
from everstep.ship.serving.stepping import LOG_P

PIECE_SECONDS = 0.02
"""Seconds of sampling between two events of a text."""
MOST_SYMBOLS = 4096
"""Largest vocabulary of which tokens are chosen in the event loop; a choice among more takes longer than a step."""


def shares_steps(hosted: HostedRun) -> bool:
    """Whether texts of a run take their steps from its batcher: a call of its step makes several rows at once."""
    engine = hosted.engine
    return (
        isinstance(engine, StepEngine) and engine.most > 1 and engine.output == LOG_P and engine.gives <= MOST_SYMBOLS
    )


async def shared_pieces(
    hosted: HostedRun, writing: Writing, length: int, seconds: float
) -> AsyncGenerator[tuple[str, int], None]:
    """Pieces of a text, and their numbers of tokens. A token is chosen when its step is made, in the event loop.

    Args:
        hosted: a run that `shares_steps`.
        writing: what the text is written with; one text.
        length: most tokens.
        seconds: most seconds of a step.

    Raises:
        Fault: 503, a step takes too long; 422 or 500, it fails.
    """
    engine, batcher = hosted.stepped()
    decoder, sampler, (text,) = writing
    values: list[Value] = decoder.prompt.tolist()
    parts, tokens, until = [text.begin(decoder.prompt[decoder.begins :].tolist())], 0, time.perf_counter()
    state = engine.initial()
    for _ in range(length):
        if parts and time.perf_counter() >= until:
            yield "".join(parts), tokens
            parts, tokens, until = [], 0, time.perf_counter() + PIECE_SECONDS
        fed = await batcher.feed(values, state, seconds=seconds)
        state = fed.state
        (token,) = sampler(fed.outputs[-1][None]).tolist()
        parts.append(text.spell(token))
        values, tokens = [token], tokens + 1
        if text.done:
            break
        await asyncio.sleep(0)  # the step of a text alone is made without a wait, in which others would have their turn
    parts.append(text.finish())
    yield "".join(parts), tokens
