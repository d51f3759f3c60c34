"""The application: all routes behind the guard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from everstep import __version__
from everstep.ship.serving.about import PUBLIC, about_routes
from everstep.ship.serving.asking import asking_routes
from everstep.ship.serving.faults import Fault, Unexpected
from everstep.ship.serving.guard import Guard
from everstep.ship.serving.service import Log, Service, replied, sentence_of
from everstep.ship.serving.session_routes import session_routes
from everstep.ship.serving.short_way import ShortWay
from everstep.ship.serving.state_routes import state_routes

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "not JSON in UTF-8"},
    403: {"description": "a state that is not signed with the key of this server"},
    404: {"description": "no such run or session"},
    409: {"description": "the run cannot do this, or the session is in use"},
    410: {"description": "the session has ended"},
    413: {"description": "too large"},
    422: {"description": "something else was expected; the sentence says what"},
    429: {"description": "too much at once; see Retry-After"},
    503: {"description": "it takes too long, or the server ends"},
}
"""Answers besides those that were asked for: `{"error": SENTENCE}`."""


def application(service: Service, log: Log, token: str | None = None, anywhere: bool = False) -> Guard:
    """The ASGI application of a service.

    Args:
        service: its runs and sessions.
        log: gets a line of JSON a request.
        token: what clients have to send; None: nothing.
        anywhere: whether names that are not of this machine are served without a token.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(_swept(service))
        yield
        sweeper.cancel()
        service.pool.close()

    app = FastAPI(
        title="everstep serve",
        version=__version__,
        description="Trained recurrent models: predictions, scores, texts, and sessions that keep a state.",
        lifespan=life,
        docs_url=None,  # its page would load scripts of another host
        redoc_url=None,
        responses=REFUSALS,
    )
    for routes in (session_routes(service), state_routes(service), asking_routes(service), about_routes(service)):
        app.include_router(routes)

    @app.exception_handler(Fault)
    async def refused(request: Request, fault: Fault) -> Response:
        service.failed(fault)
        return replied({"error": fault.sentence}, fault.status, fault.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return replied({"error": sentence_of(error.errors()[0])}, 422)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return replied({"error": str(error.detail)}, error.status_code, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        fault = Unexpected("this", error)
        service.failed(fault)
        return replied({"error": fault.sentence}, 500)

    return Guard(ShortWay(app, service), service.limits, token, anywhere, PUBLIC, service.tally, log)


async def _swept(service: Service) -> None:
    """End sessions whose time is over, again and again."""
    while True:
        await asyncio.sleep(min(5.0, service.limits.ttl / 4))
        service.sessions.store.sweep()
