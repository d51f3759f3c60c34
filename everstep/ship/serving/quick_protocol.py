"""Connections that answer some requests at once, past the tasks and messages of ASGI."""

from __future__ import annotations

import re
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from everstep.ship.serving.guard import SAFE

Headers = list[tuple[bytes, bytes]]
STEPS_OF = re.compile(rb"/sessions/([\w-]{24})/steps")


class AtOnce(Protocol):
    """What answers a step of a session at once."""

    def answer(self, session: str, headers: Headers, body: bytes) -> bytes | None:
        """The content of an answer with status 200, in JSON; None: the usual way has to answer."""


class QuickProtocol(HttpToolsProtocol):
    """A connection of uvicorn that asks `answers` first about a step of a session whose body is here with its headers.

    Until then the request is held back; if it is not answered at once, uvicorn gets it whole.
    """

    answers: AtOnce | None = None
    _held: bytearray | None = None
    _session = ""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._held is not None:  # its body is still to come
            self._give_on()

    def on_headers_complete(self) -> None:
        found = STEPS_OF.fullmatch(self.url)
        if found is not None and self._may_answer():
            self._session, self._held = found[1].decode(), bytearray()
        else:
            self._begin()

    def on_body(self, body: bytes) -> None:
        if self._held is None:
            super().on_body(body)
        else:
            self._held += body

    def on_message_complete(self) -> None:
        if self._held is not None:
            assert self.answers is not None
            content = self.answers.answer(self._session, self.headers, bytes(self._held))
            if content is not None:
                self._held = None
                self._write(content)
                return
            self._give_on()
        super().on_message_complete()

    def _may_answer(self) -> bool:
        """Whether this is a plain request, and no other one of the connection is in progress."""
        parser = self.parser
        is_free = self.cycle is None or self.cycle.response_complete
        is_plain = parser.get_method() == b"POST" and parser.get_http_version() == "1.1" and parser.should_keep_alive()
        is_other = self.expect_100_continue or parser.should_upgrade() or self.flow.write_paused
        return self.answers is not None and is_free and is_plain and not is_other

    def _give_on(self) -> None:
        held, self._held = self._held, None
        if held is None or self.transport.is_closing():
            return
        self._begin()
        if held:
            super().on_body(bytes(held))

    def _begin(self) -> None:
        """Let uvicorn answer; the connection is not idle, though a request that came with this one is answered."""
        self._unset_keepalive_if_required()
        super().on_headers_complete()

    def _write(self, content: bytes) -> None:
        size = (b"content-length", str(len(content)).encode())
        headers = (*self.server_state.default_headers, size, (b"content-type", b"application/json"), *SAFE)
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self.transport.write(b"HTTP/1.1 200 OK\r\n%b\r\n%b" % (lines, content))
        self.on_response_complete()
