"""Connections whose clients must say what they want, within a time and a size."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEAD = 1 << 16
"""Most bytes of the line and the headers of a request."""


def bounded_protocol(seconds: float) -> type[HttpToolsProtocol]:
    """The protocol of uvicorn, with bounds that it lacks: a connection is closed if the headers of a request have not
    come within `seconds`, or are larger than LARGEST_HEAD, about."""

    class Bounded(HttpToolsProtocol):
        """A connection."""

        _deadline: asyncio.TimerHandle | None = None
        _head = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
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
                self._deadline = self.loop.call_later(seconds, self._close)

        def _come(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _close(self) -> None:
            self.transport.close()

    return Bounded
