"""What every request meets first: who may ask, how much may come, and what is written down of it."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import to_json

from everstep.ship.serving.faults import Fault
from everstep.ship.serving.serving_limits import ServingLimits
from everstep.ship.serving.tally import Tally
from everstep.storage.reading import json_text

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = ("/health", "/ready")
"""Paths that need no token: they tell nothing but whether the server works."""
SAFE = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
]
"""Headers of every answer: a page loads nothing from elsewhere, and stands in no other page."""
READ = frozenset((b"host", b"origin", b"authorization"))
"""Headers that say whether a request may be made."""
LONGEST_NAME = 255
"""Most characters of the name of a host."""


class Guard:
    """Checks a request before the application sees it, bounds its body, and logs it without its content.

    - `Host` must be an address of this machine where no token is asked for, so that no name which a foreign site lets
      point here reaches the server. `Origin`, if there is one, must be the server's own.
    - The token is compared in constant time. The page's own files need none: they hold nothing of the runs.
    - The body must have come within `limits.body_seconds`, and be at most `limits.body` bytes.

    Args:
        app: the application.
        limits: what is allowed.
        token: what clients send as `Authorization: Bearer TOKEN`; None: nothing.
        anywhere: whether any `Host` is taken without a token (`--insecure`).
        public: paths besides `OPEN` that need no token.
        tally: counts requests.
        log: gets a line of JSON a request; never its content, nor an id.
    """

    def __init__(
        self,
        app: Application,
        limits: ServingLimits,
        token: str | None,
        anywhere: bool,
        public: frozenset[str],
        tally: Tally,
        log: Callable[[str], None],
    ):
        self._app, self._limits, self._token, self._anywhere = app, limits, token, anywhere
        self._public, self._tally, self._log = public | frozenset(OPEN), tally, log
        self.in_progress = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, WebSocket or life of the server."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500
        is_http = scope["type"] == "http"

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *SAFE]}
            elif message["type"] in ("websocket.accept", "websocket.http.response.start"):
                status = message.get("status", 101)
            await send(message)

        self.in_progress += 1
        try:
            try:
                self.check(scope["path"], scope["headers"])
                receive = await self._whole(scope, receive) if is_http else receive
            except Fault as fault:
                status = fault.status
                await _refuse(scope, receive, send, fault)
                return
            await self._app(scope, receive, answer)
        finally:
            self.in_progress -= 1
            found = scope.get("route")
            route = getattr(found, "path", None) or ("other" if scope["path"] not in self._public else scope["path"])
            self.seen(scope.get("method", "WEBSOCKET"), route, status, time.perf_counter() - start)

    def seen(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered, and write it down."""
        self._tally.request(route, status, seconds)
        entry = {"event": "request", "method": method, "route": route, "status": status, "ms": round(1e3 * seconds, 2)}
        self._log(to_json({"time": round(time.time(), 3), **entry}).decode())

    def check(self, path: str, given: Iterable[tuple[bytes, bytes]]) -> None:
        """Raise a `Fault` unless a request of this path may be made; `given` are its headers."""
        headers = {name: value.decode("latin-1") for name, value in given if name in READ}
        host = headers.get(b"host", "")
        if self._token is None and not self._anywhere and not _is_local(host):
            raise Fault(403, "Host: expected an address of this machine, such as 127.0.0.1 or localhost")
        origin = headers.get(b"origin")
        if origin is not None and _place(origin) != host:
            raise Fault(403, "Origin: requests of pages of other hosts are refused")
        if self._token is not None and path not in self._public:
            sent, expected = headers.get(b"authorization", ""), f"Bearer {self._token}"
            if not hmac.compare_digest(sent.encode("utf-8"), expected.encode("utf-8")):
                raise Fault(401, "this server needs its token: Authorization: Bearer TOKEN")
        if self.in_progress > self._limits.at_once and path not in OPEN:
            raise Fault(503, f"{self._limits.at_once:,} requests are in progress; try again", retry_after=1)

    async def _whole(self, scope: Message, receive: Receive) -> Receive:
        """Read the body, and give it again."""
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return receive
        most, parts, size = self._limits.body, list[bytes](), 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise Fault(499, "the client has left")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > most:
                        raise Fault(413, f"expected a body of at most {most:,} bytes")
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise Fault(408, f"the body should have come within {self._limits.body_seconds:g} seconds") from None
        whole: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again


def _is_local(host: str) -> bool:
    """Whether a `Host` header names this machine by a loopback address or localhost.

    >>> [_is_local(host) for host in ("localhost:80", "127.0.0.1", "[::1]:8", "evil.example", "")]
    [True, True, True, False, False]
    """
    return len(host) <= LONGEST_NAME + 6 and _names_us(host)  # a port has five digits


@lru_cache(64)
def _names_us(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _place(origin: str) -> str | None:
    """Host and port of an `Origin` header; None: it is no URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


async def _refuse(scope: Message, receive: Receive, send: Send, fault: Fault) -> None:
    """Answer with the sentence of a fault, and close the connection, whose rest nobody reads."""
    if scope["type"] == "websocket":
        await receive()  # the wish to connect
        await send({"type": "websocket.close", "code": 1008, "reason": fault.sentence[:120]})
        return
    headers = {"content-type": "application/json", "connection": "close", **fault.headers}
    if fault.status == 401:
        headers["www-authenticate"] = "Bearer"
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": fault.status, "headers": [*encoded, *SAFE]})
    await send({"type": "http.response.body", "body": json_text({"error": fault.sentence}).encode()})
