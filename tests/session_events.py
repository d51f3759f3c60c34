"""Random events of sessions by many clients at once, against a model of what should be."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from everstep.ship.serving.batcher import FedSteps, StepBatcher
from everstep.ship.serving.faults import Fault
from everstep.ship.serving.hosted import Catalogue, HostedRun
from everstep.ship.serving.serving_limits import ServingLimits
from everstep.ship.serving.step_engine import Inlet, Leaves, Outcome, StepEngine, Value
from everstep.ship.serving.stepping import Stepped, StepSessions

SYMBOLS, POISON, NOT_A_NUMBER = 900, 900, 901
PRIME = (1 << 31) - 1
WIDTH = 500
"""Numbers of a state, so that one that is left behind shows in the memory."""


def after(history: int, symbols: Sequence[int]) -> int:
    """The number that stands for a history and symbols after it."""
    for symbol in symbols:
        history = (history * 31 + symbol + 1) % PRIME
    return history


class Histories(StepEngine):
    """A step whose state is the number of its history: a mixed or lost step shows. POISON fails the whole batch."""

    reads, output, gives, most, how = Inlet("x", NOT_A_NUMBER + 1, None), "log_p", WIDTH, 8, "histories"

    def initial(self) -> Leaves:
        return (torch.zeros(1, WIDTH, dtype=torch.float64),)

    def step(self, values: Sequence[Value], states: Sequence[Leaves]) -> list[Outcome]:
        if POISON in values:
            raise ArithmeticError("poison")
        found = []
        for value, (state,) in zip(values, states, strict=True):
            assert isinstance(value, int)
            new = torch.full_like(state, after(int(state[0, 0]), [value]))
            found.append(Outcome(new[0] + (torch.nan if value == NOT_A_NUMBER else 0), (new,)))
        return found


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Known:
    """What the model knows of a session: the number of its history, and its steps."""

    history: int = 0
    steps: int = 0


class SessionEvents:
    """Makes events and checks each outcome.

    Attributes:
        sessions: the sessions under test.
        model: what each session should be.
        counts: how often each event had each outcome.
    """

    def __init__(self, seed: int, most: int = 300):
        self._draw, self._clock = random.Random(seed), Clock()
        catalogue = Catalogue([], None)
        engine = Histories()
        self.batcher = StepBatcher(engine, 64)
        catalogue._runs["run"] = HostedRun("run", Path(), None, engine, self.batcher, asyncio.Semaphore(1))
        self._most = most
        self.sessions = StepSessions(catalogue, ServingLimits(sessions=most, tokens=50))
        self.sessions.store._clock = self._clock
        self.model: dict[str, Known] = {}
        self.gone: list[str] = []
        self.counts: Counter[tuple[str, int]] = Counter()
        self._busy: set[str] = set()

    async def run(self, events: int, clients: int = 24) -> None:
        """So many events, by clients at once; after each thousand some sessions expire. Ends all sessions."""
        while (done := sum(self.counts.values())) < events:
            share = min(1000, events - done) // clients + 1
            await asyncio.gather(*(self._client(share) for _ in range(clients)))
            self._expire()
        for name in list(self.model):
            self._delete(name)
        assert len(self.sessions.store) == self.sessions.store.bytes == self.batcher.waiting == 0

    async def _client(self, events: int) -> None:
        for _ in range(events):
            kind = self._draw.choice(
                ("create", "feed", "feed", "feed", "cancel", "fail", "fork", "read", "end", "gone")
            )
            name = self._draw.choice(list(self.model)) if self.model else None
            if kind == "create" or name is None:
                await self._create()
            elif kind in ("feed", "cancel", "fail"):
                await self._feed(name, kind)
            elif kind == "fork":
                self._fork(name)
            elif kind == "read":
                self._read(name)
            elif kind == "end":
                self._delete(name)
            elif self.gone:
                self._gone(self._draw.choice(self.gone), "gone")
            await asyncio.sleep(0)

    async def _create(self) -> None:
        if len(self.model) >= self._most:
            with pytest.raises(Fault) as full:
                await self.sessions.create(None, begin=False)
            self._note("create", full.value, 429)
            return
        name, content = await self.sessions.create(None, begin=False)
        assert name not in self.model
        assert (content.steps, content.last) == (0, None)
        self.model[name] = Known()
        self.counts["create", 201] += 1

    async def _feed(self, name: str, kind: str) -> None:
        """A feed, one that its client leaves, or one that fails after some steps. A failure changes nothing."""
        symbols = [self._draw.randrange(SYMBOLS) for _ in range(self._draw.randrange(1, 6))]
        if kind == "fail":
            symbols.append(self._draw.choice((POISON, NOT_A_NUMBER, NOT_A_NUMBER + 1)))
        task = asyncio.create_task(self._fed(name, symbols))
        if kind == "cancel":
            for _ in range(self._draw.randrange(8)):
                await asyncio.sleep(0)
            task.cancel()
        try:
            status = await task
        except asyncio.CancelledError:
            status = 499
        self.counts[kind, status] += 1

    async def _fed(self, name: str, symbols: list[int]) -> int:
        """Feed a session, check the outcome and note it; its status. No other event comes in between."""
        begun = False

        def read(hosted: HostedRun) -> list[Value]:
            nonlocal begun
            assert name not in self._busy
            self._busy.add(name)
            begun = True
            return list(symbols)

        try:
            before = self.model.get(name)
            content, fed = await self.sessions.feed(name, read, keep_all=True)
        except Fault as fault:
            self._check_failure(name, symbols[-1], begun, fault.status)
            return fault.status
        finally:
            if begun:
                self._busy.discard(name)
        assert before is not None
        assert symbols[-1] < SYMBOLS
        assert self.model[name] is before  # nobody else has stepped it
        self._check(content, fed, before, symbols)
        self.model[name] = Known(after(before.history, symbols), before.steps + len(symbols))
        return 200

    def _check_failure(self, name: str, last: int, begun: bool, status: int) -> None:
        if not begun:
            assert status == (409 if name in self.model else 410)
            assert status == 410 or name in self._busy
        elif last < SYMBOLS:
            assert status == 410  # ended meanwhile
            assert name not in self.model
        else:
            assert status == (500 if last == POISON else 422)

    def _check(self, content: Stepped, fed: FedSteps, before: Known, symbols: Sequence[int]) -> None:
        assert content.steps == before.steps + len(symbols)
        for place, output in enumerate(fed.outputs):
            self._equal(output, after(before.history, symbols[: place + 1]))

    def _equal(self, output: Tensor, history: int) -> None:
        assert bool((output == history).all())

    def _read(self, name: str) -> None:
        content, known = self.sessions.read(name), self.model[name]
        assert content.steps == known.steps
        if known.steps:
            assert content.last is not None
            self._equal(content.last, known.history)
        self._equal(content.state[0], known.history)
        self.counts["read", 200] += 1

    def _fork(self, name: str) -> None:
        if len(self.model) >= self._most:
            with pytest.raises(Fault) as full:
                self.sessions.store.fork(name)
            self._note("fork", full.value, 429)
            return
        made = self.sessions.store.fork(name)
        assert made not in self.model
        self.model[made] = self.model[name]
        self.counts["fork", 201] += 1
        self._read(made)

    def _delete(self, name: str) -> None:
        self.sessions.store.delete(name)
        del self.model[name]
        self.gone = [*self.gone[-99:], name]
        self.counts["end", 204] += 1

    def _gone(self, name: str, kind: str) -> None:
        with pytest.raises(Fault) as ended:
            self.sessions.read(name)
        self._note(kind, ended.value, 410)

    def _note(self, kind: str, fault: Fault, status: int) -> None:
        assert fault.status == status
        self.counts[kind, status] += 1

    def _expire(self) -> None:
        """All are read, half of the time to live passes, some are read, then the rest of it: the others are gone."""
        ttl = self.sessions.store.ttl
        for name in self.model:
            self._read(name)
        self._clock.now += ttl / 2
        used = self._draw.sample(sorted(self.model), len(self.model) * 2 // 3)
        for name in used:
            self._read(name)
        self._clock.now += ttl / 2
        for name in set(self.model) - set(used):
            del self.model[name]
            self.gone = [*self.gone[-99:], name]
            self._gone(name, "expired")
        self.sessions.store.sweep()
        assert len(self.sessions.store) == len(self.model)


def tensors() -> list[Tensor]:
    """All tensors that are alive; who keeps the list keeps them."""
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is Tensor]
