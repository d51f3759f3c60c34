"""Routes of sessions, in JSON and over a WebSocket."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response, WebSocket, WebSocketDisconnect

from everstep.ship.serving.batcher import FedSteps
from everstep.ship.serving.faults import Fault
from everstep.ship.serving.frames import FramedSessions
from everstep.ship.serving.hosted import HostedRun
from everstep.ship.serving.requests import SessionBody, StepsBody
from everstep.ship.serving.service import Service, StrictRoute, as_json, replied
from everstep.ship.serving.step_engine import Value
from everstep.ship.serving.stepping import Stepped, check_log_p, likeliest, text_of, values_of

STEPS = "/sessions/{session}/steps"
Top = Annotated[int | None, Query(ge=1, le=1000, description="the K likeliest next symbols")]


def session_routes(service: Service) -> APIRouter:
    """`/sessions`, and what is below it."""
    routes = APIRouter(route_class=StrictRoute, tags=["sessions"])
    sessions = service.sessions

    def told(session: str, content: Stepped) -> dict[str, Any]:
        return _told(service, session, content)

    @routes.post("/sessions", status_code=201, summary="Create a session: a state of a run, kept by the server")
    async def create(body: SessionBody) -> Response:
        session, content = await sessions.create(body.run, body.begin)
        return replied({**told(session, content), "bytes": content.size}, 201)

    @routes.post(STEPS, summary="Feed values, one a step; all of them or none")
    async def feed(session: str, body: StepsBody) -> Response:
        return await fed_steps(service, session, body)

    @routes.get("/sessions/{session}", summary="Read a session: its steps, and its last output")
    async def read(session: str, run: str | None = None, top: Top = None, outputs: bool = False) -> Response:
        content = sessions.read(session, run)
        answer = {**told(session, content), "bytes": content.size}
        if outputs and content.last is not None:
            answer["outputs"] = [content.last.tolist()]
        if top is not None:
            answer["top"] = likeliest(content, top)
        return replied(answer)

    @routes.post("/sessions/{session}/fork", status_code=201, summary="A new session with the same state")
    async def fork(session: str) -> Response:
        new = sessions.store.fork(session)
        return replied(told(new, sessions.read(new)), 201)

    @routes.delete("/sessions/{session}", status_code=204, summary="End a session")
    async def delete(session: str) -> Response:
        sessions.store.delete(session)
        return Response(status_code=204)

    @routes.websocket("/sessions")
    async def framed(socket: WebSocket, run: str | None = None) -> None:
        await _framed(service, socket, run)

    return routes


def _told(service: Service, session: str, content: Stepped) -> dict[str, Any]:
    """What every answer about a session holds."""
    expires = round(service.sessions.store.left(session), 1)
    return {"session": session, "run": content.hosted.name, "steps": content.steps, "expires_in": expires}


async def fed_steps(service: Service, session: str, body: StepsBody) -> Response:
    """Step a session as a request asks; the answer to it."""
    content, fed = await service.sessions.feed(
        session,
        lambda hosted: values_asked(hosted, body),
        run=body.run,
        keep_all=body.outputs == "all",
        judged=body.surprise,
    )
    return replied({**_told(service, session, content), **answer_of(content, fed, body)})


def fed_at_once(service: Service, session: str, body: StepsBody) -> bytes | None:
    """The content of the answer to a request of one step; None: other sessions step beside it, and it has to wait."""

    def answer(content: Stepped, fed: FedSteps) -> bytes:
        return as_json({**_told(service, session, content), **answer_of(content, fed, body)})

    return service.sessions.feed_at_once(
        session, lambda hosted: values_asked(hosted, body), answer, run=body.run, judged=body.surprise
    )


def values_asked(hosted: HostedRun, body: StepsBody) -> list[Value]:
    """The values of a request. What it asks for is checked before the steps, which an error must not leave behind."""
    if body.top is not None:
        check_log_p(hosted, "top")
    return values_of(hosted, body)


def answer_of(content: Stepped, fed: FedSteps, body: StepsBody) -> dict[str, Any]:
    """What a request asked for of the steps that it fed."""
    answer: dict[str, Any] = {}
    if body.outputs != "none":
        answer["outputs"] = [output.tolist() for output in fed.outputs]
    if body.surprise:
        answer["surprise"] = fed.surprise
        answer["texts"] = _texts(content, body)
    if body.top is not None:
        answer["top"] = likeliest(content, body.top)
    return answer


def _texts(content: Stepped, body: StepsBody) -> list[str] | None:
    """The text of each symbol of a request that gave text or tokens."""
    if "generate" not in content.hosted.abilities:
        return None
    return [text_of(content.hosted, [symbol]) for symbol in values_of(content.hosted, body) if isinstance(symbol, int)]


async def _framed(service: Service, socket: WebSocket, run: str | None) -> None:
    """One connection: its frames are answered until it ends."""
    await socket.accept()

    async def send(frame: bytes) -> None:
        with suppress(WebSocketDisconnect, RuntimeError):  # the client has left, which `receive` tells
            await socket.send_bytes(frame)

    framed = FramedSessions(service.sessions, run, send, service.failed)
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            await framed.take(message.get("bytes") or b"")
    except Fault as fault:
        await socket.close(1003, fault.sentence[:120])
    except WebSocketDisconnect:
        return
    finally:
        await framed.close()
