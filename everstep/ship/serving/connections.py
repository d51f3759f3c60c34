"""Connections whose clients must say what they want, and take what they asked for, within a time and a size."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from everstep.ship.serving.quick_protocol import AtOnce, QuickProtocol

LARGEST_HEAD = 1 << 16
"""Most bytes of the line and the headers of a request."""
UNTAKEN_PONGS = 1 << 20
"""Most bytes that wait for a client which goes on to send pings."""
TOGETHER = 1 << 12
"""Bytes of messages that are written before the event loop goes on."""


class Taking:
    """Ends a connection whose client takes nothing of what waits for it during `seconds`.

    Args:
        loop: the event loop.
        transport: the connection.
        seconds: the time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, seconds: float):
        self._loop, self._transport, self._seconds = loop, transport, seconds
        self._timer: asyncio.TimerHandle | None = None

    def paused(self) -> None:
        """More waits than the client takes."""
        if self._timer is None:
            self._look_later()

    def resumed(self) -> None:
        """The client has taken it, or is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._timer = self._loop.call_later(self._seconds, self._look, self._transport.get_write_buffer_size())

    def _look(self, before: int) -> None:
        if self._transport.get_write_buffer_size() < before:
            self._look_later()
        else:
            self._transport.abort()  # close would wait for the client


class _Watched(asyncio.Protocol):
    """A protocol that tells `_taking` whether its client takes what waits for it."""

    _taking: Taking

    def connection_lost(self, exc: Exception | None) -> None:
        self._taking.resumed()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taking.resumed()


class _Finishing(QuickProtocol):
    """A connection whose request in progress is finished when the server ends.

    Uvicorn 0.44 and its neighbours would tell the application that the client has left.
    """

    def shutdown(self) -> None:
        super().shutdown()
        if getattr(self.cycle, "shutting_down", False):
            self.cycle.shutting_down = False  # type: ignore[attr-defined, unused-ignore]


def bounded_protocol(
    head_seconds: float, taking_seconds: float, quick: AtOnce | None = None
) -> type[HttpToolsProtocol]:
    """The protocol of uvicorn, with bounds that it lacks.

    A connection is closed if the headers of a request have not come within `head_seconds`, or are larger than
    LARGEST_HEAD, about; also if the client takes nothing of its answer during `taking_seconds`. `quick` is the
    `answers` of `QuickProtocol`.
    """

    class Bounded(_Watched, _Finishing):
        """A connection."""

        answers = quick
        _deadline: asyncio.TimerHandle | None = None
        _head = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._taking = Taking(self.loop, transport, taking_seconds)
            self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            self._come()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._deadline is not None:
                if self._head > LARGEST_HEAD:  # before these, which may be the beginning of a body
                    self.transport.close()
                    return
                self._head += len(data)
            super().data_received(data)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._expect()

        def on_headers_complete(self) -> None:
            self._come()
            super().on_headers_complete()

        def _expect(self) -> None:
            if self._deadline is None:
                self._head = 0
                self._deadline = self.loop.call_later(head_seconds, self._close)

        def _come(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _close(self) -> None:
            self.transport.close()

    return Bounded


def bounded_socket(taking_seconds: float) -> type[WebSocketsSansIOProtocol]:
    """The WebSockets of uvicorn, ended if the client takes nothing during `taking_seconds`, or no answer to pings."""

    class BoundedSocket(_Watched, WebSocketsSansIOProtocol):
        """A connection. What is sent within one turn of the event loop is written at once: one call of the system."""

        _unwritten = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._taking = Taking(self.loop, self.transport, taking_seconds)

        def handle_ping(self) -> None:
            super().handle_ping()
            if self.transport.get_write_buffer_size() > UNTAKEN_PONGS:
                self.transport.abort()

        async def send(self, message: Any) -> None:
            data = message.get("bytes") if message["type"] == "websocket.send" else None
            if data is None or not self.handshake_complete:
                await super().send(message)
                return
            await self.writable.wait()
            if self.close_sent or getattr(self, "disconnected", False):  # uvicorn 0.44 has no such attribute
                raise ClientDisconnected
            try:
                self.conn.send_binary(data)
            except InvalidState:
                raise ClientDisconnected from None
            if not self._unwritten:
                self.loop.call_soon(self._write)
            self._unwritten += len(data)
            if self._unwritten > TOGETHER:
                self._write()

        def _write(self) -> None:
            """Write what is left, in the order in which it was sent; whatever else uvicorn writes takes it along."""
            self._unwritten = 0
            output = b"".join(self.conn.data_to_send())
            if output:
                self.transport.write(output)

    return BoundedSocket
