"""Steps that are answered at once, past the tasks and messages of ASGI."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from session_events import NOT_A_NUMBER, Histories, after

from everstep.ship.serving.application import application
from everstep.ship.serving.batcher import StepBatcher
from everstep.ship.serving.connections import bounded_protocol
from everstep.ship.serving.guard import Guard
from everstep.ship.serving.hosted import Catalogue, HostedRun
from everstep.ship.serving.quick_steps import QuickSteps
from everstep.ship.serving.server import bound
from everstep.ship.serving.service import Service
from everstep.ship.serving.serving_limits import ServingLimits

HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json")]


def serving(log: list[str]) -> tuple[Service, Guard]:
    """A service of one run, whose outputs are the numbers of histories."""
    service = Service(lambda batched: Catalogue([], None, batched), ServingLimits(body=1000), log.append)
    engine = Histories()
    alone = asyncio.Semaphore(1)
    service.catalogue._runs["x"] = HostedRun("x", Path("x"), None, engine, StepBatcher(engine), alone)
    return service, application(service, log.append)


def body(**asked: Any) -> bytes:
    return json.dumps(asked).encode()


def test_a_step_at_once_is_the_step_of_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everstep.ship.serving.batcher.JUST_NOW", 0.0)
    log: list[str] = []

    async def run() -> None:
        service, guard = serving(log)
        quick = QuickSteps(guard, service)
        session, _ = await service.sessions.create(None, begin=False)
        found = quick.answer(session, HEADERS, body(tokens=[5], outputs="last"))
        assert found is not None
        told = json.loads(found)
        assert (told["session"], told["steps"], told["outputs"][0][0]) == (session, 1, after(0, [5]))
        entry = json.loads(log[-1])
        assert (entry["route"], entry["method"], entry["status"]) == ("/sessions/{session}/steps", "POST", 200)
        assert quick.answer(session, HEADERS, body(tokens=[6], outputs="all", surprise=True)) is not None
        assert service.sessions.read(session).steps == 2
        for headers, content in (
            ([(b"host", b"evil.example")], body(tokens=[5])),
            (HEADERS, b"{"),
            (HEADERS, body(tokens=[5, 6])),
            (HEADERS, body(text="a")),
            (HEADERS, body(tokens=[NOT_A_NUMBER])),
            (HEADERS, body(tokens=[5], top=3, run="y")),
            (HEADERS, body(tokens=[5]) + b" " * 1000),
            (HEADERS[:1], body(tokens=[5])),
            ([*HEADERS[:1], (b"content-type", b"text/plain")], body(tokens=[5])),
        ):
            assert quick.answer(session, headers, content) is None
        assert quick.answer("A" * 24, HEADERS, body(tokens=[5])) is None
        with monkeypatch.context() as failing:
            failing.setattr("everstep.ship.serving.session_routes.as_json", json.loads)
            assert quick.answer(session, HEADERS, body(tokens=[5])) is None
        assert service.sessions.read(session).steps == 2
        assert len(log) == 2
        other, _ = await service.sessions.create(None, begin=False)
        beside = asyncio.create_task(service.sessions.feed(other, lambda _: [1] * 9))
        await asyncio.sleep(0)
        assert quick.answer(session, HEADERS, body(tokens=[5])) is None  # it has its turn beside the other
        await beside
        assert service.sessions.read(session).last is not None

    asyncio.run(run())


class _Told:
    """Answers the session of A at once, and no other."""

    def answer(self, session: str, headers: Any, content: bytes) -> bytes | None:
        return b"quick " + content if session == "A" * 24 else None


def asked(session: str, content: str, more: str = "", method: str = "POST", version: str = "1.1") -> bytes:
    head = f"{method} /sessions/{session}/steps HTTP/{version}\r\nHost: x\r\n{more}Content-Length: {len(content)}\r\n"
    return f"{head}\r\n{content}".encode()


A, B = "A" * 24, "B" * 24


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([asked(A, "one")], ["quick one"]),
        ([asked(A, "")], ["quick "]),
        ([asked(A, "one") + asked(A, "two")], ["quick one", "quick two"]),
        ([asked(B, "one")], ["whole one"]),
        ([asked(A, "one")[:-2], b"ne"], ["whole one"]),
        ([asked(A, "one")[:40], asked(A, "one")[40:]], ["quick one"]),
        ([asked(B, "one") + asked(A, "two")], ["whole one", "whole two"]),
        ([asked(A, "one") + asked(B, "two")], ["quick one", "whole two"]),
        ([asked(A, "one", "Connection: close\r\n")], ["whole one"]),
        ([asked(A, "one", version="1.0")], ["whole one"]),
        ([asked(A, "one", method="PUT")], ["whole one"]),
        ([asked(A + "A", "one")], ["whole one"]),
        ([asked(A, "one", "Expect: 100-continue\r\n")], ["whole one"]),
    ],
)
def test_connections_answer_at_once_or_give_the_whole_request_on(parts: list[bytes], expected: list[str]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        content, more = b"", True
        while more:
            message = await receive()
            content, more = content + message["body"], message["more_body"]
        content = b"whole " + content
        await asyncio.sleep(0.01)
        size = str(len(content)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", size)]})
        await send({"type": "http.response.body", "body": content})

    async def run() -> bytes:
        idle = 0 if len(parts) == 1 else 5
        quick = bounded_protocol(5, 5, _Told())
        config = uvicorn.Config(app, log_config=None, lifespan="off", http=quick, timeout_keep_alive=idle)
        server = uvicorn.Server(config)
        with bound("127.0.0.1", 0, None, False) as listening:
            task = asyncio.create_task(server.serve([listening]))
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0.02)
            found = b""
            while found.count(b"HTTP/1.1 200") < len(expected) or not found.endswith(expected[-1].encode()):
                part = await asyncio.wait_for(reader.read(1 << 12), 5)
                assert part, found
                found += part
            writer.close()
            server.should_exit = True
            await task
            return found

    answers = asyncio.run(run()).decode().split("HTTP/1.1 200 OK\r\n")[1:]
    assert [answer.partition("\r\n\r\n")[2] for answer in answers] == expected
    for answer in answers:
        assert "date:" in answer
        assert ("nosniff" in answer) == ("quick" in answer)
