"""What all routes of a server share."""

from __future__ import annotations

import asyncio
import secrets
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import PydanticSerializationError, to_json
from starlette.exceptions import HTTPException

from everstep.ship.serving.batcher import StepBatcher
from everstep.ship.serving.faults import Fault, Unexpected
from everstep.ship.serving.hosted import Catalogue
from everstep.ship.serving.serving_limits import ServingLimits
from everstep.ship.serving.state_seal import StateSeal
from everstep.ship.serving.step_engine import StepEngine
from everstep.ship.serving.stepping import StepSessions
from everstep.ship.serving.tally import Tally
from everstep.ship.serving.work_pool import WorkPool
from everstep.storage.reading import json_text, parse_json

Log = Callable[[str], None]
T = TypeVar("T")


class Service:
    """The runs, the sessions and the threads of a server.

    Args:
        open_runs: makes the catalogue, given what makes the batcher of a step.
        limits: what is allowed.
        log: gets lines of JSON.
        key: signs the states that clients keep; None: a random one, so that they end with the process.

    Attributes:
        catalogue, limits, sessions, seal, pool, tally: its parts.
        draining: whether the server ends, and takes no more requests.
        texts: texts that are being generated.
    """

    def __init__(
        self,
        open_runs: Callable[[Callable[[StepEngine], StepBatcher]], Catalogue],
        limits: ServingLimits,
        log: Log,
        key: bytes | None = None,
    ):
        self.limits, self._log = limits, log
        self.draining, self.texts = False, 0
        self.pool = WorkPool(limits.workers, limits.waiting)
        self.tally = Tally(
            {
                "sessions": ("sessions kept", lambda: len(self.sessions.store)),
                "session_bytes": ("bytes of the sessions", lambda: self.sessions.store.bytes),
                "feeds_waiting": ("feeds that wait for a turn", self._waiting),
                "work_waiting": ("requests that wait for a thread", lambda: self.pool.waiting),
                "texts_in_progress": ("texts that are generated", lambda: self.texts),
            }
        )
        self.catalogue = open_runs(lambda engine: StepBatcher(engine, limits.waiting, seen=self.tally.turn))
        self.sessions = StepSessions(self.catalogue, limits)
        self.seal = StateSeal(key or secrets.token_bytes(32), limits.body // 2)

    def _waiting(self) -> int:
        # of runs that were reloaded, those that still have sessions
        batchers = {content.hosted.batcher for content in self.sessions.store}
        batchers |= {hosted.batcher for hosted in self.catalogue.values()}
        return sum(batcher.waiting for batcher in batchers if batcher is not None)

    def event(self, name: str, **what: Any) -> None:
        """Write down what happened."""
        self._log(json_text({"time": round(time.time(), 3), "event": name, **what}))

    def failed(self, fault: Fault) -> None:
        """Write down a failure of the server: the kind of the error and where, but no values."""
        if isinstance(fault, Unexpected):
            frames = traceback.extract_tb(fault.cause.__traceback__)
            where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-8:]]
            self.event("failure", error=type(fault.cause).__name__, where=where)


class StrictRequest(Request):
    """A request whose JSON is read strictly."""

    async def json(self) -> Any:
        """The value of the body.

        Raises:
            HTTPException: 400, the body is not JSON in UTF-8, or nested too deeply.
        """
        try:
            return parse_json((await self.body()).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise HTTPException(400, f"the body should be UTF-8, but byte {error.start:,} is not") from None
        except ValueError as error:
            raise HTTPException(400, f"the body should be JSON: {error}") from None


class StrictRoute(APIRoute):
    """A route whose request is a `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of FastAPI, which is given the strict request."""
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def replied(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A value as an answer in JSON, as `as_json` writes it."""
    return Response(as_json(value), status, headers, "application/json")


def as_json(value: Any) -> bytes:
    """A value in JSON and UTF-8; numbers that JSON lacks become null.

    >>> as_json({"p": [0.5, float("nan")], "text": "é"}).decode()
    '{"p":[0.5,null],"text":"é"}'
    """
    try:
        return to_json(value, inf_nan_mode="null")  # ten times as fast as json for lists of numbers
    except PydanticSerializationError:  # such as halves of characters
        return json_text(value, ensure_ascii=False).encode("utf-8", "replace")


_LEAST = {"string_too_short": "a text", "too_short": "one or more"}
"""What is missing where something is empty, by the name of pydantic's error."""


def sentence_of(error: Mapping[str, Any]) -> str:
    """An error of pydantic as a sentence: where, and what was expected; never the value."""
    where = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path"))
    if not where and error["type"] == "model_attributes_type":  # a client's default is a form, such as that of curl -d
        return "the body: expected an object in JSON, sent with Content-Type: application/json, as curl --json does"
    if (what := _LEAST.get(error["type"])) is not None:
        return f"{where}: expected {what}; got none"
    return f"{where or 'the body'}: {error['msg'].removeprefix('Value error, ')}"


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves.

    Raises:
        Fault: 499, the client has left.
    """
    task, left = asyncio.create_task(work), asyncio.create_task(_left(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Fault(499, "the client has left")
        return task.result()
    finally:
        task.cancel()
        left.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
