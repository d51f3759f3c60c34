"""Sessions over one WebSocket, in binary frames; numbers are little-endian.

A request is a header of 32 bytes, then its values; its answer is a header of 8 bytes, then what it gives.

| bytes | request | answer |
|---|---|---|
| 0 | what: 1 create, 2 feed, 3 read, 4 fork, 5 delete | the same |
| 1 | of a feed: 0 answers with nothing, 1 with the last output, 2 with all | 0: it worked; 1: the rest is a sentence |
| 2–3 | 0 | of an error: its HTTP status |
| 4–7 | a number of the client's choice | the same number |
| 8–31 | the id of the session; zeros for create | |
| then | of a feed: int32 symbols, or float32 numbers | create, fork: the id. feed, read: float32 outputs |

Requests are answered as they are done, so that those of several sessions share steps. Those of one session wait for one
another only if the client waits for the answer; otherwise the second gets the error 409.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable

import numpy as np
import torch
from torch import Tensor

from everstep.ship.serving.faults import Fault, as_fault
from everstep.ship.serving.hosted import HostedRun
from everstep.ship.serving.sessions import ID_LENGTH
from everstep.ship.serving.step_engine import Value
from everstep.ship.serving.stepping import StepSessions

REQUEST = struct.Struct(f"<BBHI{ID_LENGTH}s")
ANSWER = struct.Struct("<BBHI")
CREATE, FEED, READ, FORK, DELETE = range(1, 6)
AT_ONCE = 64
"""Most requests of one connection in progress; further ones are not read until one is answered."""


def request(what: int, session: str = "", values: bytes = b"", outputs: int = 1, number: int = 0) -> bytes:
    """A request as its frame, for clients and tests."""
    return REQUEST.pack(what, outputs, 0, number, session.encode()) + values


def answered(frame: bytes) -> tuple[int, int, bytes]:
    """Of an answer: its number, the status (0: it worked), and what follows."""
    _, failed, status, number = ANSWER.unpack_from(frame)
    return number, status if failed else 0, frame[ANSWER.size :]


class FramedSessions:
    """Answers the frames of one connection.

    Args:
        sessions: the sessions of the server.
        run: the name of the run that new sessions are of; None: the only one.
        send: sends a frame.
        failed: is told of failures of the server.
    """

    def __init__(
        self,
        sessions: StepSessions,
        run: str | None,
        send: Callable[[bytes], Awaitable[None]],
        failed: Callable[[Fault], None],
    ):
        self._sessions, self._run, self._send, self._failed = sessions, run, send, failed
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(AT_ONCE)

    async def take(self, frame: bytes) -> None:
        """Begin to answer a frame; waits while too many are in progress.

        Raises:
            Fault: 400, the frame has no whole header.
        """
        if len(frame) < REQUEST.size:
            raise Fault(400, f"expected binary frames of at least {REQUEST.size} bytes; got {len(frame)}")
        await self._room.acquire()
        task = asyncio.create_task(self._answer(frame))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel what is in progress, since the client has left."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, frame: bytes) -> None:
        what, outputs, _, number, name = REQUEST.unpack_from(frame)
        try:
            try:
                payload = await self._done(what, outputs, name.rstrip(b"\0").decode("latin-1"), frame[REQUEST.size :])
                head = ANSWER.pack(what, 0, 0, number)
            except Exception as error:
                fault = as_fault(error, "a step")
                self._failed(fault)
                head, payload = ANSWER.pack(what, 1, fault.status, number), fault.sentence.encode()
            await self._send(head + payload)
        finally:
            self._room.release()

    async def _done(self, what: int, outputs: int, session: str, values: bytes) -> bytes:
        sessions = self._sessions
        if what == CREATE:
            return (await sessions.create(self._run, begin=False))[0].encode()
        if what == FEED:
            if outputs not in (0, 1, 2):
                raise Fault(422, f"outputs: expected 0, 1 or 2; got {outputs}")
            _, fed = await sessions.feed(session, lambda hosted: _values(hosted, values), keep_all=outputs == 2)
            return b"".join(map(_bytes, fed.outputs)) if outputs else b""
        if what == READ:
            last = sessions.read(session).last
            return b"" if last is None else _bytes(last)
        if what == FORK:
            return sessions.store.fork(session).encode()
        if what == DELETE:
            sessions.store.delete(session)
            return b""
        raise Fault(422, f"expected 1 create, 2 feed, 3 read, 4 fork or 5 delete; got {what}")


def _bytes(output: Tensor) -> bytes:
    return output.numpy(force=True).astype("<f4", copy=False).tobytes()


def _values(hosted: HostedRun, data: bytes) -> list[Value]:
    engine, _ = hosted.stepped()
    features = engine.reads.features
    width = 4 * (features or 1)
    if not data or len(data) % width:
        raise Fault(422, f"expected values of {width} bytes a step; got {len(data)} bytes")
    if features is None:
        symbols: list[Value] = np.frombuffer(data, "<i4").tolist()
        if min(symbols) < 0:
            raise Fault(422, f"expected symbols ≥ 0; got {min(symbols)}")
        return symbols
    rows = torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32).reshape(-1, features))
    if not bool(rows.isfinite().all()):
        raise Fault(422, "expected finite numbers")
    return list(rows)
