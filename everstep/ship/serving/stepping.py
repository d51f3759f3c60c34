"""Sessions of hosted runs: their states, and the steps they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from everstep.decode.decoder import Decoder
from everstep.ship.serving.batcher import FedSteps
from everstep.ship.serving.faults import Fault, as_fault
from everstep.ship.serving.hosted import Catalogue, HostedRun
from everstep.ship.serving.requests import StepsBody
from everstep.ship.serving.serving_limits import ServingLimits
from everstep.ship.serving.sessions import SessionStore
from everstep.ship.serving.step_engine import Leaves, Value

OVERHEAD = 1024
"""Bytes that a session takes beside its numbers, about."""
LOG_P = "log_p"
"""The name of an output that holds log p of the next symbol, in nats."""


@dataclass(frozen=True)
class Stepped:
    """The content of a session. The run is the one it began with, also after a reload.

    Attributes:
        hosted: its run.
        state: its state.
        last: its last output; None before the first step.
        steps: the number of its steps.
    """

    hosted: HostedRun
    state: Leaves
    last: Tensor | None = None
    steps: int = 0

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return self.hosted.stepped()[0].size(self.state, self.last) + OVERHEAD


class StepSessions:
    """Creates, feeds, reads, forks and deletes sessions.

    Args:
        catalogue: the runs.
        limits: what is allowed.

    Attributes:
        store: the sessions by id.
    """

    def __init__(self, catalogue: Catalogue, limits: ServingLimits):
        self._catalogue, self._limits = catalogue, limits
        self.store: SessionStore[Stepped] = SessionStore(limits.sessions, limits.session_bytes, limits.ttl)

    async def create(self, run: str | None, begin: bool) -> tuple[str, Stepped]:
        """A new session: its id and its content.

        Raises:
            Fault: there is no such run, it has no step, or there are too many sessions.
        """
        hosted = self._catalogue.named(run)
        engine, _ = hosted.stepped()
        symbols = begin_symbols(hosted) if begin else []
        content = Stepped(hosted, engine.initial())
        session = self.store.create(content, content.size)
        if symbols:
            try:
                await self.feed(session, lambda _: list(symbols))
            except BaseException:
                self.store.delete(session)
                raise
        return session, self.store.read(session)

    async def feed(
        self,
        session: str,
        read: Callable[[HostedRun], list[Value]],
        *,
        run: str | None = None,
        keep_all: bool = False,
        judged: bool = False,
    ) -> tuple[Stepped, FedSteps]:
        """Step a session through values. Either all steps are made, or none.

        Args:
            session: its id.
            read: gives the values, for the session's run.
            run: if given, the name that the session's run must have.
            keep_all: whether to keep the outputs of all steps.
            judged: whether to look up each symbol in the output before it.

        Returns:
            The session after the steps, and their results.

        Raises:
            Fault: there is no such session, it is of another run, a value does not fit, or a step fails.
        """
        before = self.store.begin(session)
        try:
            self._check_run(before, run)
            after, fed = await self.fed(before, read, keep_all=keep_all, judged=judged)
            self.store.commit(session, after, after.size)
        finally:
            self.store.abandon(session)
        return after, fed

    def feed_at_once(
        self,
        session: str,
        read: Callable[[HostedRun], list[Value]],
        answer: Callable[[Stepped, FedSteps], bytes],
        *,
        run: str | None = None,
        judged: bool = False,
    ) -> bytes | None:
        """As `feed`, for one value, where no other session steps or waits; None: there are others, nothing is done.

        What `answer` makes of the step is returned. If it fails, the session is as it was.
        """
        before = self.store.begin(session)
        try:
            self._check_run(before, run)
            values = self._values(before.hosted, read, False, judged)
            fed = before.hosted.stepped()[1].feed_at_once(values, before.state, before.last, judged=judged)
            if fed is None:
                return None
            after = _after(before, fed, 1)
            told = answer(after, fed)
            self.store.commit(session, after, after.size)
        finally:
            self.store.abandon(session)
        return told

    async def fed(
        self,
        before: Stepped,
        read: Callable[[HostedRun], list[Value]],
        *,
        keep_all: bool = False,
        judged: bool = False,
    ) -> tuple[Stepped, FedSteps]:
        """A state after values, and the results of the steps; changes no session. Arguments and errors as `feed`."""
        values = self._values(before.hosted, read, keep_all, judged)
        _, batcher = before.hosted.stepped()
        fed = await batcher.feed(
            values, before.state, before.last, keep_all=keep_all, judged=judged, seconds=self._limits.seconds
        )
        return _after(before, fed, len(values)), fed

    def read(self, session: str, run: str | None = None) -> Stepped:
        """The content of a session. Raises as `feed`."""
        content = self.store.read(session)
        self._check_run(content, run)
        return content

    def _check_run(self, content: Stepped, run: str | None) -> None:
        if run is not None and run != content.hosted.name:
            raise Fault(409, f"this session is of another run than {self._catalogue.named(run).name}")

    def _values(
        self, hosted: HostedRun, read: Callable[[HostedRun], list[Value]], keep_all: bool, judged: bool
    ) -> list[Value]:
        """The values that `read` gives, if the session may be stepped through them."""
        values = read(hosted)
        engine, _ = hosted.stepped()
        reads, most = engine.reads, self._limits.tokens
        if not 1 <= len(values) <= most:
            raise Fault(422, f"expected 1 to {most:,} steps at once; got {len(values):,}")
        if reads.below:
            bad = next((value for value in values if isinstance(value, int) and value >= reads.below), None)
            if bad is not None:
                raise Fault(422, f"expected symbols from 0 to {reads.below - 1:,}; got {bad}")
        if judged:
            check_log_p(hosted, "surprise")
        if keep_all and len(values) * engine.gives > self._limits.numbers:
            raise Fault(
                422,
                f"{len(values):,} outputs of {engine.gives:,} numbers are more than {self._limits.numbers:,}; ask for "
                "outputs: last, or feed fewer at once",
            )
        return values


def _after(before: Stepped, fed: FedSteps, steps: int) -> Stepped:
    """A session after steps."""
    return Stepped(before.hosted, fed.state, fed.outputs[-1], before.steps + steps)


def begin_symbols(hosted: HostedRun) -> list[int]:
    """The symbols that begin a text; none where the vocabulary has none, or sessions are fed numbers."""
    engine, _ = hosted.stepped()
    if engine.reads.features is not None or "generate" not in hosted.abilities:
        return []
    run = hosted.able("generate")
    try:
        decoder: Decoder = run.able("generate").decoder(run.model, "")
    except Exception as error:
        raise as_fault(error, "begin", run) from error
    return list(map(int, decoder.prompt[: decoder.begins].tolist()))


def values_of(hosted: HostedRun, body: StepsBody) -> list[Value]:
    """The values of a request.

    Raises:
        Fault: they are not what the step of the run reads.
    """
    engine, _ = hosted.stepped()
    reads = engine.reads
    if body.numbers is not None:
        if reads.features is None:
            raise Fault(422, f"{hosted.name} reads symbols; expected tokens or text, not numbers")
        if any(len(row) != reads.features for row in body.numbers):
            raise Fault(422, f"expected {reads.features:,} numbers in each step")
        rows = torch.tensor(body.numbers)
        if not bool(rows.isfinite().all()):
            raise Fault(422, "expected numbers that float32 can hold")
        return list(rows)
    if reads.features is not None:
        raise Fault(422, f"{hosted.name} reads {reads.features:,} numbers a step; expected numbers")
    return list(body.tokens) if body.tokens is not None else list(symbols_of(hosted, body.text or ""))


def symbols_of(hosted: HostedRun, text: str) -> list[int]:
    """The symbols of a text.

    Raises:
        Fault: 409, the run does not generate text; 422, its vocabulary lacks a symbol.
    """
    run = hosted.able("generate")
    try:
        decoder: Decoder = run.able("generate").decoder(run.model, text)
    except Exception as error:
        raise as_fault(error, "read the text", run) from error
    return list(map(int, decoder.prompt[decoder.begins :].tolist()))


def check_log_p(hosted: HostedRun, what: str) -> None:
    """Raise a `Fault`, 422, unless the output of the run's step is log p of the next symbol, which `what` needs."""
    engine, _ = hosted.stepped()
    if engine.output != LOG_P:
        raise Fault(422, f"{what} needs a step that gives {LOG_P}; this one gives {engine.output}")


def likeliest(content: Stepped, count: int) -> list[dict[str, Any]]:
    """The likeliest next symbols of a session: id, p, and the text of each, if it has one.

    Raises:
        Fault: 422, its step gives no log p, or has not run.
    """
    check_log_p(content.hosted, "top")
    if content.last is None:
        raise Fault(422, "top: the session has made no step yet; feed it something, or create it with begin")
    found = content.last.topk(min(count, len(content.last)))
    texts: list[str | None] = [None] * len(found.indices)
    if "generate" in content.hosted.abilities and content.hosted.able("generate").task.typed:
        texts = [text_of(content.hosted, [symbol]) for symbol in found.indices.tolist()]
    chances = found.values.double().exp().tolist()
    return [
        {"id": symbol, "p": p, "text": text}
        for symbol, p, text in zip(found.indices.tolist(), chances, texts, strict=True)
    ]


def text_of(hosted: HostedRun, symbols: list[int]) -> str:
    """The text of symbols of a run that generates."""
    speller = hosted.able("generate").task.speller()  # type: ignore[attr-defined]
    return str(speller.spell(symbols) + speller.end())
