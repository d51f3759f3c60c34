"""Continuous batching: the steps of many sessions that come at about the same time are one step of the model."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from everstep.errors import EverstepError, out_of_memory
from everstep.ship.serving.faults import Fault, Unexpected
from everstep.ship.serving.step_engine import Leaves, Outcome, StepEngine, Value
from everstep.ship.serving.work_pool import late

JUST_NOW = 1e-4
"""Seconds after a step in which a client that waits for its answer cannot have sent the next value."""


@dataclass(frozen=True)
class FedSteps:
    """The result of a feed.

    Attributes:
        state: the new state.
        outputs: the output of each step, or of the last one alone.
        surprise: −output[value] for each symbol, of the output before it; None: there was none.
    """

    state: Leaves
    outputs: list[Tensor]
    surprise: list[float | None]


@dataclass(eq=False)
class _Feed:
    """Values of one session that wait for their turns."""

    values: Sequence[Value]
    state: Leaves
    last: Tensor | None
    keep_all: bool
    answer: asyncio.Future[FedSteps]
    judged: bool
    seconds: float = math.inf
    until: float = math.inf
    place: int = 0
    outputs: list[Tensor] = field(default_factory=list)
    surprise: list[float | None] = field(default_factory=list)

    def is_over(self, now: float) -> bool:
        """Whether nobody waits for it any more: its caller has left, or its time is over, which it is told."""
        if now > self.until and not self.answer.done():
            self.answer.set_exception(late(self.seconds))
        return self.answer.done()

    def take(self, outcome: Outcome) -> bool:
        """Go on by one step; whether it was the last one."""
        value = self.values[self.place]
        if self.judged and isinstance(value, int):
            self.surprise.append(None if self.last is None else -float(self.last[value]))
        self.state, self.last = outcome.state, outcome.output
        if self.keep_all:
            self.outputs.append(outcome.output)
        self.place += 1
        if self.place < len(self.values):
            return False
        self.answer.set_result(FedSteps(self.state, self.outputs if self.keep_all else [outcome.output], self.surprise))
        return True


class StepBatcher:
    """Runs the feeds of sessions in turns: in a turn each of up to `engine.most` sessions makes one step.

    Sessions take turns in the order in which they came, so that a long feed delays another session by one step at most.
    A turn begins at once if as many sessions wait as in the last one; otherwise it waits for up to `linger` seconds.

    A feed changes nothing outside: its caller gets the new state or an error. If a step of several rows fails, each row
    is tried alone, and only those that fail get the error. A feed whose caller is cancelled makes no further steps.

    Args:
        engine: makes the steps, in the thread of the event loop.
        most_waiting: most feeds at a time; further ones are refused.
        linger: seconds that a turn waits for sessions which took part in the last one.
        seen: is told the rows and the seconds of each call of the engine.
    """

    def __init__(
        self,
        engine: StepEngine,
        most_waiting: int = 1024,
        linger: float = 1e-3,
        seen: Callable[[int, float], None] = lambda rows, seconds: None,
    ):
        self._engine, self._most_waiting, self._linger, self._seen = engine, most_waiting, linger, seen
        self._waiting: deque[_Feed] = deque()
        self._turns: asyncio.Task[None] | None = None
        self._together = 1
        self._ended = 0.0

    @property
    def waiting(self) -> int:
        """Feeds that wait for a turn."""
        return len(self._waiting)

    async def feed(
        self,
        values: Sequence[Value],
        state: Leaves,
        last: Tensor | None = None,
        *,
        keep_all: bool = False,
        judged: bool = False,
        seconds: float = math.inf,
    ) -> FedSteps:
        """Step a session through `values`.

        Args:
            values: at least one.
            state: its state.
            last: its last output.
            keep_all: whether to keep the outputs of all steps.
            judged: whether to look up each symbol in the output before it.
            seconds: most seconds of all steps.

        Raises:
            Fault: 429, too many feeds wait; 422, the model gives NaN, or refuses; 500, a step fails; 503, the time is
                over.
        """
        if len(self._waiting) >= self._most_waiting:
            raise Fault(429, f"{len(self._waiting):,} requests wait for a step; send fewer at once", retry_after=1)
        found = self.feed_at_once(values, state, last, judged=judged)
        if found is not None:
            return found
        answer: asyncio.Future[FedSteps] = asyncio.get_running_loop().create_future()
        until = time.perf_counter() + seconds
        self._waiting.append(_Feed(values, state, last, keep_all, answer, judged, seconds, until))
        if self._turns is None or self._turns.done():
            self._turns = asyncio.create_task(self._take_turns())
        return await answer

    def feed_at_once(
        self, values: Sequence[Value], state: Leaves, last: Tensor | None = None, *, judged: bool = False
    ) -> FedSteps | None:
        """One step of a session alone, without a task, which takes as long as a small step. Arguments as `feed`.

        Returns:
            The result; None, and nothing is done: there are more values than one, or sessions beside this one.

        Raises:
            Fault: as `feed`.
        """
        if len(values) != 1 or not self._is_alone():
            return None
        answer: asyncio.Future[FedSteps] = asyncio.get_running_loop().create_future()
        self._stepped([_Feed(values, state, last, True, answer, judged)])
        self._ended = time.perf_counter()
        return answer.result()

    def _is_alone(self) -> bool:
        """Whether no session takes part beside this one, as far as can be told: none waits, none has just stepped."""
        is_idle = self._turns is None or self._turns.done()
        return is_idle and self._together == 1 and time.perf_counter() - self._ended > JUST_NOW

    async def _take_turns(self) -> None:
        while self._waiting:
            await self._gathered()
            chosen = [self._waiting.popleft() for _ in range(min(self._engine.most, len(self._waiting)))]
            now = time.perf_counter()
            chosen = [feed for feed in chosen if not feed.is_over(now)]
            if chosen:
                self._together = len(chosen)
                self._waiting.extend(feed for feed in self._stepped(chosen))
            await asyncio.sleep(0)

    async def _gathered(self) -> None:
        """Wait until the sessions of the last turn are here again, but not for long."""
        wanted = min(self._together, self._engine.most)
        until = time.perf_counter() + self._linger
        while len(self._waiting) < wanted and time.perf_counter() < until:
            await asyncio.sleep(0)

    def _stepped(self, feeds: list[_Feed]) -> list[_Feed]:
        """One step of each feed; those that have more to do."""
        try:
            outcomes = self._called(feeds)
        except Exception as error:
            if len(feeds) == 1:
                feeds[0].answer.set_exception(_step_fault(error))
                return []
            return [more for feed in feeds for more in self._stepped([feed])]
        going = []
        maybe_nan = len(outcomes) == 1 or bool(torch.stack([outcome.output for outcome in outcomes]).isnan().any())
        for feed, outcome in zip(feeds, outcomes, strict=True):
            try:
                if maybe_nan and bool(outcome.output.isnan().any()):
                    raise Fault(422, "the model gives NaN for this input; the session is as it was")
                if not feed.take(outcome):
                    going.append(feed)
            except Exception as error:  # of this feed alone: the turns of the others go on
                feed.answer.set_exception(_step_fault(error))
        return going

    def _called(self, feeds: list[_Feed]) -> list[Outcome]:
        start = time.perf_counter()
        outcomes = self._engine.step([feed.values[feed.place] for feed in feeds], [feed.state for feed in feeds])
        self._seen(len(feeds), time.perf_counter() - start)
        return outcomes


def _step_fault(error: Exception) -> Fault:
    if isinstance(error, Fault):
        return error
    if isinstance(error, EverstepError):
        return Fault(422, str(error))
    if out_of_memory(error):
        return Fault(503, "the server is out of memory; the session is as it was", retry_after=5)
    return Unexpected("a step", error)
