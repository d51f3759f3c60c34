"""The process of a server: its address, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from everstep.errors import ConfigError
from everstep.ship.serving.connections import bounded_protocol, bounded_socket
from everstep.ship.serving.guard import Guard
from everstep.ship.serving.hosted import Say
from everstep.ship.serving.quick_steps import QuickSteps
from everstep.ship.serving.service import Service
from everstep.storage.reading import read_small, reason

TOKEN = "EVERSTEP_TOKEN"
"""The variable of the environment that may hold the token."""
STATE_KEY = "EVERSTEP_STATE_KEY"
"""The variable that may hold the key of states that clients keep."""
SHORTEST_TOKEN = 16
GIVE_BACK_SECONDS = 60
"""Seconds from one return of unused memory to the next."""


def token_of(file: Path | None, variable: str = TOKEN) -> str | None:
    """The token or key in a file, or in a variable of the environment; None: there is none.

    Raises:
        ConfigError: the file cannot be read, or the token is too short to be one, or not of visible ASCII.
    """
    if file is None:
        token, where = os.environ.get(variable), variable
    else:
        try:
            token, where = read_small(file, 1 << 12).decode("ascii", "replace").strip(), str(file)
        except OSError as error:
            raise ConfigError(f"serve: cannot read {file}: {reason(error)}") from None
    if token is None:
        return None
    if len(token) < SHORTEST_TOKEN or not all("!" <= character <= "~" for character in token):
        raise ConfigError(
            f"serve: {where} should hold a token of at least {SHORTEST_TOKEN} visible ASCII characters, such as from: "
            "python -c 'import secrets; print(secrets.token_urlsafe(24))'"
        )
    return token


def bound(host: str, port: int, token: str | None, insecure: bool) -> socket.socket:
    """A socket that listens there.

    Raises:
        ConfigError: the address is not of this machine alone and there is no token, or it cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"serve: --host {host} is no address ({reason(error)}); expected such as 127.0.0.1") from None
    family, kind, protocol, _, address = found[0]
    if not ipaddress.ip_address(address[0]).is_loopback and token is None and not insecure:
        raise ConfigError(
            f"serve: at {host} other machines can ask this server: give a token (--token-file FILE, or {TOKEN}), or "
            "--insecure if everyone may"
        )
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(1024)
    except OSError as error:
        listening.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({reason(error)})"
        raise ConfigError(f"serve: port {port} of {host} {why}; give another --port, or 0 for any free one") from None
    return listening


class _Server(uvicorn.Server):
    """Ends by its own handlers of signals, so that an end which was asked for is no failure."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(service: Service, app: Guard, listening: socket.socket, say: Say) -> None:
    """Serve until SIGTERM or SIGINT; requests in progress have `limits.drain` seconds. SIGHUP loads the runs again."""
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    config: dict[str, Any] = {
        "log_config": None,
        "http": bounded_protocol(service.limits.body_seconds, service.limits.seconds, QuickSteps(app, service)),
        "access_log": False,
        "server_header": False,
        "ws": bounded_socket(service.limits.seconds),
        "ws_per_message_deflate": False,
        "ws_max_size": service.limits.body,
        "ws_max_queue": 8,
        "timeout_keep_alive": 30,
        "timeout_graceful_shutdown": int(service.limits.drain),
        "backlog": 1024,
    }
    server = _Server(uvicorn.Config(app, **config))

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def end() -> None:
            if service.draining:
                server.force_exit = True
            service.draining = server.should_exit = True
            service.event("ending")

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        reloads: set[asyncio.Task[None]] = set()

        def reload() -> None:
            task = asyncio.create_task(_reload(service))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        loop.add_signal_handler(signal.SIGHUP, reload)
        say(f"http://{shown}:{port}/ is ready; Ctrl-C ends it")
        returning = asyncio.create_task(_give_back_often())
        await server.serve([listening])
        returning.cancel()

    asyncio.run(run())


def give_back() -> None:
    """Give the system all pages of the heap that hold nothing; with a C library other than glibc, do nothing.

    Requests of many kinds leave holes between blocks that stay; neither `free` nor M_TRIM_THRESHOLD returns them.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


async def _give_back_often() -> None:
    while True:  # at once for the first time, so that the thread for it is there also when memory runs out
        await asyncio.to_thread(give_back)
        await asyncio.sleep(GIVE_BACK_SECONDS)


async def _reload(service: Service) -> None:
    """Load the runs again in a thread, while the old ones answer."""
    await asyncio.to_thread(service.catalogue.reload)
    service.tally.count("reloads")
    service.event("reloaded")
