"""The server as its clients see it, in the process of the test."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from apart import ended
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_client import Served, running, served
from starlette.websockets import WebSocketDisconnect
from typer.testing import CliRunner

import everstep as es
from everstep.cli.app import app as cli
from everstep.decode import Sampler
from everstep.errors import ConfigError, RunError
from everstep.look import step
from everstep.look.gates import activities
from everstep.native import toolchain
from everstep.runs.run import Run
from everstep.ship.export import export
from everstep.ship.serving import frames
from everstep.ship.serving.application import application
from everstep.ship.serving.asking import _gathered, _pieces
from everstep.ship.serving.batcher import StepBatcher
from everstep.ship.serving.connections import TOGETHER, bounded_protocol, bounded_socket
from everstep.ship.serving.faults import Fault
from everstep.ship.serving.hosted import Catalogue
from everstep.ship.serving.requests import GenerateBody
from everstep.ship.serving.server import bound, token_of
from everstep.ship.serving.service import Service
from everstep.ship.serving.serving_limits import ServingLimits
from everstep.ship.serving.sessions import new_id
from everstep.ship.serving.step_engine import Inlet, RowSteps
from everstep.ship.serving.work_pool import WorkPool
from everstep.tracing.trace import trace

TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of text and a model of labels, hardly trained."""
    folder = tmp_path_factory.mktemp("serve")
    short = ["train.max_steps=1", "train.max_minutes=null", "model.hidden_size=8", "train.validate_every=null"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERSTEP_COMPILER", "none")
        patch.setattr(toolchain, "_noticed", {*toolchain._noticed, "compiler"})
        for name, recipe in (("play", "shakespeare-minute"), ("reviews", "classify-minute")):
            es.train(recipe, folder / name, lambda _: None, overrides=short)
    return {name: folder / name for name in ("play", "reviews")}


@pytest.fixture(scope="module")
def both(runs: dict[str, Path]) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERSTEP_COMPILER", "none")
        patch.setattr(toolchain, "_noticed", {*toolchain._noticed, "compiler"})
        with served(list(runs.values()), numbers=1000, tokens=200) as found:
            yield found


@pytest.fixture(scope="module")
def play(runs: dict[str, Path]) -> Run:
    return es.load(runs["play"])


def test_runs_say_what_they_can(both: Served) -> None:
    play, reviews = both.get("/runs")["runs"]
    assert (play["name"], play["abilities"]) == ("play", ["score", "generate", "units", "sessions"])
    assert play["lines"] == {"score": "One text per line."} != reviews["lines"] == {"predict": "One text per line."}
    assert play["step"]["reads"]["name"] == "tokens"
    assert play["step"]["output"] == "log_p"
    assert (reviews["name"], reviews["abilities"]) == ("reviews", ["predict", "units"])
    assert reviews["no_sessions"] == "it answers whole texts, and has no state between steps"


def test_answers_are_those_of_the_run(both: Served, play: Run, runs: dict[str, Path]) -> None:
    lines = ["To be, or not to be", "", "that is the question"]
    scores = both.post("/score", run="play", lines=lines, tokens=True)["scores"]
    for found, own in zip(scores, play.score(lines), strict=True):
        assert found == {
            "logp": own.logp, "tokens": own.tokens, "unknown": own.unknown, "token_logps": list(own.token_logps)
        }  # fmt: skip
    how = {"prompt": "To be", "length": 40, "temperature": 0.7, "seed": 3}
    assert both.post("/generate", run="play", **how)["text"] == play.generate(**how)  # type: ignore[arg-type]
    reviews = es.load(runs["reviews"])
    predictions = both.post("/predict", run="reviews", lines=["not bad at all", "dull"], explain=True)
    own_predictions = list(reviews.predict(["not bad at all", "dull"], explain=True))
    assert [one["text"] for one in predictions["predictions"]] == [one.text for one in own_predictions]
    assert [one["record"] for one in predictions["predictions"]] == [one.record for one in own_predictions]


def test_a_text_comes_as_events(both: Served, play: Run) -> None:
    how = {"prompt": "To be", "length": 30, "seed": 3}
    answer = both.client.post("/generate", json={"run": "play", "stream": True, **how})
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.text.strip().split("\n\n")
    texts = [json.loads(block.removeprefix("data: "))["text"] for block in blocks[:-1]]
    assert "".join(texts) == play.generate(**how)  # type: ignore[arg-type]
    name, data = blocks[-1].split("\n")
    assert name == "event: done"
    assert json.loads(data.removeprefix("data: "))["tokens"] == 30
    assert both.service.texts == 0


def test_a_text_is_counted_without_events_too(both: Served) -> None:
    assert both.post("/generate", run="play", prompt="", length=7, seed=1)["tokens"] == 7


def test_sessions_step_like_the_model(both: Served, play: Run) -> None:
    made = both.post("/sessions", 201, run="play")
    path = f"/sessions/{made['session']}"
    assert (made["run"], made["steps"]) == ("play", 0)
    tokens = [3, 1, 4, 1, 5, 9]
    first = both.post(f"{path}/steps", tokens=tokens[:4], outputs="all", surprise=True)
    fork = both.post(f"{path}/fork", 201)
    rest = both.post(f"{path}/steps", tokens=tokens[4:], outputs="last")
    model: Any = play.model
    with torch.no_grad():
        log_p = model.head.predict(model(torch.tensor([tokens]))[0])[0]
    torch.testing.assert_close(torch.tensor(first["outputs"]), log_p[:4])
    torch.testing.assert_close(torch.tensor(rest["outputs"]), log_p[5:])
    assert first["surprise"][0] is None
    assert first["surprise"][1:] == pytest.approx([-log_p[k, tokens[k + 1]].item() for k in range(3)], rel=1e-5)
    assert (rest["steps"], fork["steps"]) == (6, 4)
    same = both.post(f"/sessions/{fork['session']}/steps", tokens=tokens[4:], outputs="last")
    assert same["outputs"] == rest["outputs"]
    read = both.get(f"{path}?outputs=true&top=2")
    assert read["outputs"] == rest["outputs"]
    assert [one["id"] for one in read["top"]] == log_p[5].topk(2).indices.tolist()
    for one in (path, f"/sessions/{fork['session']}"):
        both.delete(one)
    assert "has ended" in both.get(path, 410)
    assert both.service.sessions.store.bytes == 0


def test_text_is_fed_as_its_symbols(both: Served, play: Run) -> None:
    made = both.post("/sessions", 201, run="play", begin=True)
    assert made["steps"] == 1
    found = both.post(f"/sessions/{made['session']}/steps", text="To be", surprise=True, top=3)
    score = play.score(["To be"])[0]
    assert found["surprise"] == pytest.approx([-nats for nats in score.token_logps[:5]], rel=1e-4)
    assert found["texts"] == list("To be")
    assert [len(one["text"]) for one in found["top"]] == [1, 1, 1]
    both.delete(f"/sessions/{made['session']}")


def test_units_are_those_of_the_passage(both: Served, play: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []
    monkeypatch.setattr(step, "trace", lambda *given: traced.append(given) or trace(*given))
    passage = play.passage("To be", 5)
    (activity,) = activities(passage.body, passage.inputs[None])
    found = both.post("/units", run="play", text="To be", unit=3)
    part = next(iter(activity.parts))
    assert (found["part"], found["labels"]) == (part, list(passage.labels))
    assert found["values"] == [float(activity.parts[part][place, 3]) for place in passage.places]
    assert found["layers"][0]["parts"] == dict.fromkeys(activity.parts, 8)
    for wrong, said in (({"layer": 1}, "expected 0 to 0"), ({"unit": 8}, "has units 0"), ({"part": "q"}, "no gate")):
        assert said in both.post("/units", 422, run="play", text="To be", **wrong)
    assert both.post("/units", run="play", text="To be\nor")["labels"] == list("To be\nor\n")
    assert len(traced) == 2  # the test's own, and one for all requests
    assert both.post("/units", run="reviews", text="not bad")["labels"]


def test_frames_do_what_requests_do(both: Served) -> None:
    tokens = np.array([3, 1, 4, 1, 5], "<i4")
    with both.client.websocket_connect("ws://localhost/sessions?run=play") as socket:

        def asked(*request: Any, **more: Any) -> tuple[int, bytes]:
            socket.send_bytes(frames.request(*request, number=7, **more))
            number, status, payload = frames.answered(socket.receive_bytes())
            assert number == 7
            return status, payload

        _, name = asked(frames.CREATE)
        session = name.decode()
        _, payload = asked(frames.FEED, session, tokens[:3].tobytes(), outputs=2)
        outputs = np.frombuffer(payload, "<f4").reshape(3, -1)
        _, fork = asked(frames.FORK, session)
        _, payload = asked(frames.FEED, session, tokens[3:].tobytes())
        last = np.frombuffer(payload, "<f4")
        read = both.get(f"/sessions/{session}?outputs=true")
        assert read["steps"] == 5
        np.testing.assert_array_equal(np.float32(read["outputs"][0]), last)
        assert asked(frames.READ, session) == (0, payload)
        assert asked(frames.READ, fork.decode()) == (0, outputs[2].tobytes())
        assert asked(frames.FEED, session, b"123")[0] == 422
        assert asked(frames.FEED, session, struct.pack("<i", -1))[0] == 422
        assert asked(frames.FEED, session, struct.pack("<i", 1 << 20))[0] == 422
        assert asked(frames.FEED, session, tokens.tobytes(), outputs=9)[0] == 422
        assert asked(9, session)[0] == 422
        assert asked(frames.READ, new_id())[0] == 410
        assert asked(frames.READ, "x")[0] == 404
        for one in (session, fork.decode()):
            assert asked(frames.DELETE, one) == (0, b"")
        socket.send_bytes(b"short")
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_bytes()
        assert closed.value.code == 1003


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        (
            "/predict",
            {"run": "play", "lines": ["x"]},
            409,
            "play cannot predict; it can score, generate, units, sessions",
        ),
        ("/score", {"run": "reviews", "lines": ["x"]}, 409, "reviews cannot score; it can predict, units"),
        ("/score", {"run": "nobody", "lines": ["x"]}, 404, "expected one of play, reviews"),
        ("/score", {"lines": ["x"]}, 422, "run: expected the name of a run: play, reviews"),
        ("/score", {"run": "play", "lines": []}, 422, "lines: expected one or more; got none"),
        ("/units", {"run": "play", "text": ""}, 422, "text: expected a text; got none"),
        ("/score", {"run": "play", "lines": ["a\nb"]}, 422, "lines.0: expected one line"),
        ("/score", {"run": "play", "lines": ["\ud800"]}, 422, "half of a character"),
        ("/score", {"run": "play", "lines": ["é東"]}, 422, "is not in the vocabulary"),
        ("/score", {"run": "play", "line": ["a"]}, 422, "line"),
        ("/generate", {"run": "play", "length": 201}, 422, "length: expected at most 200 tokens"),
        ("/generate", {"run": "play", "temperature": -1}, 422, "temperature"),
        ("/generate", {"run": "play", "prompt": "東"}, 422, "not in the vocabulary"),
        ("/generate", {"run": "play", "prompt": "東", "stream": True}, 422, "not in the vocabulary"),
        ("/generate", {"run": "play", "until_end": True}, 422, "needs a symbol that ends"),
        ("/predict", {"run": "reviews", "lines": ["x"], "n_best": 3}, 409, "cannot predict with n_best"),
        ("/sessions", {"run": "reviews"}, 409, "reviews has no sessions: it answers whole texts"),
        ("/sessions/x/steps", {"tokens": [1]}, 404, "this is no id of a session"),
    ],
)
def test_what_cannot_be_done_is_said(both: Served, path: str, body: dict[str, Any], status: int, said: str) -> None:
    content = json.dumps(body).encode()
    answer = both.client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]
    assert "/tmp" not in answer.text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"tokens": [1], "text": "a"}, "expected one of tokens, text and numbers; got tokens, text"),
        ({}, "expected one of tokens, text and numbers; got none"),
        ({"tokens": [1000]}, "expected symbols from 0 to"),
        ({"tokens": [-1]}, "tokens.0"),
        ({"tokens": [1.5]}, "tokens.0"),
        ({"tokens": [True]}, "tokens.0"),
        ({"numbers": [[1.0]]}, "reads symbols"),
        ({"tokens": [1] * 201}, "expected 1 to 200 steps"),
        ({"tokens": [1] * 100, "outputs": "all"}, "are more than 1,000"),
        ({"text": "東"}, "not in the vocabulary"),
    ],
)
def test_values_that_do_not_fit_leave_the_session_as_it_was(both: Served, body: dict[str, Any], said: str) -> None:
    session = both.post("/sessions", 201, run="play")["session"]
    assert said in both.post(f"/sessions/{session}/steps", 422, **body)
    assert both.get(f"/sessions/{session}")["steps"] == 0
    assert "of another run" in both.post(f"/sessions/{session}/steps", 409, tokens=[1], run="reviews")
    both.delete(f"/sessions/{session}")


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"[" * 10_000, 400, "too deep"),
        (b'{"lines": ' + b"[" * 900 + b"]" * 900 + b"}", 422, "lines"),
        (b'{"lines": ["\xff"]}', 400, "byte 12 is not"),
        (b"{", 400, "should be JSON"),
        (b'{"n_best": NaN}', 400, "NaN is not a JSON number"),
        (b"1" * 5000, 400, "should be JSON"),
        (b"", 422, "the body"),
        (b" " * ((1 << 20) + 1), 413, "at most 1,048,576 bytes"),
    ],
)
def test_bodies_that_are_no_requests_are_refused(both: Served, content: bytes, status: int, said: str) -> None:
    answer = both.client.post("/predict", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]


def test_a_body_that_is_sent_as_a_form_is_told_its_type(both: Served) -> None:
    for sent in ({"data": {"run": "play"}}, {"json": ["play"]}, {"content": b'{"run": "play"}'}):
        answer = both.client.post("/generate", **sent)
        assert answer.status_code == 422, answer.text
        assert "sent with Content-Type: application/json" in answer.json()["error"]


def test_a_likeliest_symbol_that_there_is_not_is_refused_before_the_steps(
    both: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = both.post("/sessions", 201, run="play")["session"]
    monkeypatch.setattr(both.service.catalogue["play"].engine, "output", "y")
    assert "top needs a step that gives log_p" in both.post(f"/sessions/{session}/steps", 422, tokens=[1], top=3)
    assert both.get(f"/sessions/{session}")["steps"] == 0
    both.delete(f"/sessions/{session}")


@pytest.mark.usefixtures("uncompiled")
def test_a_client_that_leaves_changes_no_session(runs: dict[str, Path]) -> None:
    service = Service(lambda batched: Catalogue([runs["play"]], es.load, batched), ServingLimits(), lambda line: None)
    app = application(service, lambda line: None)
    status: list[int] = []

    async def run() -> int:
        session, _ = await service.sessions.create("play", begin=False)
        messages = [{"type": "http.request", "body": json.dumps({"tokens": [1] * 300}).encode()}]

        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            status.append(message.get("status", 0))

        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "POST", "path": f"/sessions/{session}/steps", "headers": headers}
        await app(scope, receive, send)
        return service.sessions.read(session).steps

    assert asyncio.run(run()) == 0
    assert status[0] == 499


def test_texts_that_begin_at_the_same_time_are_bounded(runs: dict[str, Path], play: Run) -> None:
    limits = ServingLimits(texts=2)
    service = Service(lambda batched: Catalogue([runs["play"]], None, batched), limits, lambda line: None)
    hosted = service.catalogue["play"]

    async def run() -> list[Any]:
        body = GenerateBody(prompt="a", length=2)
        texts = (_gathered(_pieces(service, hosted, play, body), 60) for _ in range(3))
        return await asyncio.gather(*texts, return_exceptions=True)

    found = asyncio.run(run())
    assert [one.status for one in found if isinstance(one, Fault)] == [429]
    assert service.texts == 0


def test_texts_of_several_clients_share_the_steps_of_the_model(
    both: Served, play: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosted, rows = both.service.catalogue["play"], []
    engine, batcher = hosted.stepped()
    step = engine.step

    def counted(values: Any, states: Any) -> Any:
        rows.append(len(values))
        return step(values, states)

    monkeypatch.setattr(engine, "step", counted)
    monkeypatch.setattr(engine, "most", 8)  # its rows are made one after the other, and are those of a row alone
    hows = [
        {"prompt": "To be", "length": 40, "seed": 3},
        {"prompt": "or not", "length": 30, "temperature": 0.5, "top_k": 5, "seed": 4},
        {"prompt": "", "length": 50, "seed": 5, "stop": "e"},
        {"prompt": "a", "length": 20, "temperature": 0},
    ]

    async def run() -> list[Any]:
        texts = (_pieces(both.service, hosted, play, GenerateBody(**how)) for how in hows)  # type: ignore[arg-type]
        return await asyncio.gather(*(_gathered(text, 60) for text in texts))

    found = asyncio.run(run())
    assert [text for text, _ in found] == [play.generate(**how) for how in hows]  # type: ignore[arg-type]
    assert [tokens for _, tokens in found][:2] == [40, 30]
    assert found[2][1] <= 50
    assert max(rows) == 4
    assert batcher.waiting == both.service.texts == 0


def test_a_text_alone_leaves_the_server_time_for_others(
    both: Served, play: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosted, turns = both.service.catalogue["play"], 0
    monkeypatch.setattr(hosted.engine, "most", 8)
    monkeypatch.setattr("everstep.ship.serving.batcher.JUST_NOW", 0.0)  # as where a choice takes longer than that

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def run() -> None:
        asked = GenerateBody(prompt="", length=40, seed=1)  # type: ignore[call-arg]
        text = _pieces(both.service, hosted, play, asked)
        await anext(text)
        beside = asyncio.create_task(others())
        await asyncio.sleep(0)
        before = turns
        await _gathered(text, 60)
        beside.cancel()
        assert turns - before >= 40

    asyncio.run(run())


def test_a_choice_that_fails_ends_its_text_alone(both: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, log_p: Any) -> Any:
        raise ArithmeticError("no choice")

    monkeypatch.setattr(both.service.catalogue["play"].engine, "most", 8)
    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "__call__", fail)
        assert "generate failed; the server's log has the error" in both.post("/generate", 500, run="play", length=3)
    assert both.post("/generate", run="play", length=3)["tokens"] == 3


def test_a_shared_text_whose_client_leaves_makes_no_further_steps(
    both: Served, play: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosted = both.service.catalogue["play"]
    engine, _ = hosted.stepped()
    monkeypatch.setattr(engine, "most", 8)

    async def run() -> str:
        text = _pieces(both.service, hosted, play, GenerateBody(prompt="To be", length=200, seed=1))
        first, _ = await anext(text)
        assert both.service.texts == 1
        await text.aclose()
        monkeypatch.setattr(engine, "step", None)  # another step would fail
        await asyncio.sleep(0.01)
        return first

    assert asyncio.run(run()) == "To be"
    assert both.service.texts == 0


def test_an_answer_that_cannot_be_looked_up_fails_its_own_feed() -> None:
    engine = RowSteps(
        lambda given, state: ({"log_p": torch.zeros(1, 3)}, state), (), Inlet("x", 9, None), "log_p", 3, ""
    )
    batcher = StepBatcher(engine)

    async def run() -> list[Any]:
        wrong = batcher.feed([1, 5], (), judged=True)  # 5 is no place of an output of 3
        return await asyncio.wait_for(asyncio.gather(wrong, batcher.feed([1, 2], ()), return_exceptions=True), 10)

    wrong, right = asyncio.run(run())
    assert isinstance(wrong, Fault)
    assert right.outputs[0].tolist() == [0, 0, 0]


def test_a_step_gets_its_input_where_the_model_is() -> None:
    seen = []

    def step(given: Any, state: Any) -> Any:
        seen.append(given["x"].device.type)
        return {"y": given["x"]}, state

    engine = RowSteps(step, torch.zeros(1, 1), Inlet("x", 0, 2), "y", 2, "", torch.device("meta"))
    engine.step([torch.zeros(2)], [engine.initial()])
    assert seen == ["meta"]


def test_figures_and_health(both: Served) -> None:
    assert both.get("/health") == {"status": "ok"}
    assert both.get("/ready") == {"status": "ready"}
    text = both.client.get("/metrics").text
    assert 'everstep_requests_total{route="/health",status="200"}' in text
    assert "everstep_sessions 0" in text
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r'\w+(\{(\w+="[^"]*",?)+\})? [-+.\de]+', line) for line in samples), samples
    both.service.draining = True
    try:
        assert "is ending" in both.get("/ready", 503)
    finally:
        both.service.draining = False


def test_the_log_has_no_content(both: Served) -> None:
    session = both.post("/sessions", 201, run="play")["session"]
    both.post(f"/sessions/{session}/steps", text="To be")
    both.delete(f"/sessions/{session}")
    both.log.clear()
    both.post("/score", run="play", lines=["secret words"])
    both.get(f"/sessions/{session}", 410)
    entries = [json.loads(line) for line in both.log]
    assert [(one["route"], one["status"]) for one in entries] == [("/score", 200), ("/sessions/{session}", 410)]
    assert "secret" not in "".join(both.log)
    assert session not in "".join(both.log)


def test_steps_take_the_short_way_and_refuse_alike(both: Served) -> None:
    session = both.post("/sessions", 201, run="play")["session"]
    headers = {"Content-Type": "application/json"}
    both.log.clear()
    for content, status in ((b"[" * 10_000, 400), (b"{", 400), (b"\xff", 400), (b"[]", 422), (b'{"tokens": [1]}', 200)):
        answer = both.client.post(f"/sessions/{session}/steps", content=content, headers=headers)
        assert (answer.status_code, "error" in answer.json()) == (status, status >= 400), answer.text
    assert {json.loads(line)["route"] for line in both.log} == {"/sessions/{session}/steps"}
    both.delete(f"/sessions/{session}")


def test_a_page_is_served_without_anything_of_other_hosts(both: Served) -> None:
    page = both.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for name in re.findall(r'(?:src|href)="(/page/[^"]+)"', page.text):
        assert both.client.get(name).status_code == 200
    assert "has no such file" in both.get("/page/nothing.js", 404)
    assert both.client.get("/page/..%2fapplication.py").status_code == 404


def test_other_hosts_and_origins_are_refused(both: Served) -> None:
    for headers, said in (
        ({"Host": "evil.example"}, "Host"),
        ({"Origin": "http://evil.example"}, "Origin"),
        ({"Origin": "null"}, "Origin"),
        ({"Origin": "http://["}, "Origin"),
    ):
        answer = both.client.get("/runs", headers=headers)
        assert answer.status_code == 403
        assert answer.json()["error"].startswith(said)
    assert both.client.get("/runs", headers={"Origin": "http://localhost"}).status_code == 200
    asked = both.client.websocket_connect("ws://localhost/sessions?run=play", headers={"Origin": "http://evil.example"})
    with pytest.raises(WebSocketDisconnect), asked:
        pass


@pytest.mark.usefixtures("uncompiled")
def test_a_token_opens_all_but_health_and_the_page(runs: dict[str, Path]) -> None:
    with served([runs["reviews"]], TOKEN) as one:
        assert one.get("/runs")["runs"]
        for header in ("", "Bearer wrong", f"Bearer {TOKEN}x", f"bearer {TOKEN}", "Bearer é"):
            answer = one.client.get("/runs", headers={"Authorization": header.encode("latin-1")})  # type: ignore[dict-item]
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/health", "/ready", "/page/page.js"):
            assert one.client.get(path, headers={"Authorization": ""}).status_code == 200


@pytest.mark.usefixtures("uncompiled")
def test_sessions_are_bounded_and_expire(runs: dict[str, Path]) -> None:
    with served([runs["play"]], sessions=2, ttl=0.3) as one:
        first = one.post("/sessions", 201)["session"]
        one.post("/sessions", 201)
        assert "there are 2 sessions" in one.post("/sessions", 429)
        time.sleep(0.35)
        assert "has ended" in one.post(f"/sessions/{first}/steps", 410, tokens=[1])
        one.post("/sessions", 201)
        assert len(one.service.sessions.store) == 1


@pytest.mark.usefixtures("uncompiled")
def test_a_reload_keeps_the_sessions_of_the_old_run(runs: dict[str, Path], tmp_path: Path) -> None:
    with served([runs["play"]]) as one:
        session = one.post("/sessions", 201)["session"]
        before = one.post(f"/sessions/{session}/steps", tokens=[1, 2], outputs="last")["outputs"]
        old = one.service.catalogue["play"]
        one.service.catalogue.reload()
        new = one.service.catalogue["play"]
        assert new is not old
        with torch.no_grad():
            for parameter in new.run.model.parameters():  # type: ignore[union-attr]
                parameter.add_(1)
        fork = one.post(f"/sessions/{session}/fork", 201)["session"]
        other = one.post("/sessions", 201)["session"]
        again = one.post(f"/sessions/{other}/steps", tokens=[1, 2], outputs="last")["outputs"]
        assert again != before
        three = [one.post(f"/sessions/{name}/steps", tokens=[3], outputs="last")["outputs"] for name in (session, fork)]
        assert three[0] == three[1]
        assert one.get(f"/sessions/{session}?outputs=true")["outputs"] == three[0]

        def broken(path: Path) -> Any:
            raise RunError("damaged")

        one.service.catalogue._load = broken
        one.service.catalogue.reload()
        assert one.service.catalogue["play"] is new


@pytest.mark.usefixtures("uncompiled")
def test_an_exported_run_is_served(runs: dict[str, Path], play: Run, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("everstep.ship.checking.STEPS", 5)
        path = export(play, tmp_path / "onnx")
    with served([path]) as one:
        name = one.get("/runs")["runs"][0]["name"]
        assert name == f"{tmp_path.name}-onnx"
        session = one.post("/sessions", 201)["session"]
        found = one.post(f"/sessions/{session}/steps", tokens=[3, 1], outputs="last")["outputs"]
        model: Any = play.model
        with torch.no_grad():
            log_p = model.head.predict(model(torch.tensor([[3, 1]]))[0])[0, -1:]
        torch.testing.assert_close(torch.tensor(found), log_p)
        assert "from 0 to" in one.post(f"/sessions/{session}/steps", 422, tokens=[10_000])


def test_runs_that_are_only_watched_show_their_curves(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with served([runs["play"], tmp_path / "new"], load=None) as one:
        found = one.get("/runs/play/learning")
        assert found["curves"]["loss"][-1][0] == 1
        assert one.get("/runs/new/learning") == {"run": "new", "curves": {}, "last": []}
        assert "only watched" in one.post("/generate", 409, run="play")
        assert "has no sessions: it is only watched" in one.post("/sessions", 409, run="play")
        assert "there is no run" in one.get("/runs/other/learning", 404)


def test_two_runs_of_one_name_are_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "play").mkdir()
    with pytest.raises(ConfigError, match="are both called play"):
        Catalogue([runs["play"], tmp_path / "play"], None)


def test_a_slow_body_is_refused(both: Served) -> None:
    """The guard alone, with a client that sends a byte and then nothing."""
    both_guard: Any = both.client.app
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not sent:
            await asyncio.sleep(0.05)
            return {"type": "http.request", "body": b"{", "more_body": True}
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        limits = ServingLimits(body_seconds=0.2)
        kept, both_guard._limits = both_guard._limits, limits
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [(b"host", b"localhost")]}
        try:
            await both_guard(scope, receive, send)
        finally:
            both_guard._limits = kept

    asyncio.run(run())
    assert sent[0]["status"] == 408


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 40_000])
def test_headers_that_do_not_end_close_the_connection(sent: bytes) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    async def run() -> bytes:
        config = uvicorn.Config(app, log_config=None, lifespan="off", http=bounded_protocol(0.2, 0.2))
        server = uvicorn.Server(config)
        with bound("127.0.0.1", 0, None, False) as listening:
            task = asyncio.create_task(server.serve([listening]))
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            writer.write(sent)
            try:
                found = await asyncio.wait_for(reader.read(), 5)
            except ConnectionError:  # closed while we were writing
                found = b""
            writer.close()
            server.should_exit = True
            await task
            return found

    assert asyncio.run(run()) == b""


async def _uvicorn(app: Any, client: Any, seconds: float = 0.2) -> Any:
    """What `client` gives, which is called with a socket connected to a server of `app`; both must end in 20 s."""
    config = uvicorn.Config(
        app, log_config=None, lifespan="off", http=bounded_protocol(5, seconds), ws=bounded_socket(seconds)
    )
    server = uvicorn.Server(config)
    with bound("127.0.0.1", 0, None, False) as listening, socket.socket() as own:
        task = asyncio.create_task(server.serve([listening]))
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        own.settimeout(20)
        await asyncio.to_thread(own.connect, listening.getsockname())
        found = await asyncio.wait_for(client(own), 20)
        server.should_exit = True
        await asyncio.wait_for(task, 20)
    return found


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", HANDSHAKE])
def test_a_client_that_takes_nothing_is_left(head: bytes) -> None:
    async def run() -> bool:
        ended = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            try:
                if scope["type"] == "http":
                    await send({"type": "http.response.start", "status": 200, "headers": []})
                    for _ in range(40):
                        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
                else:
                    await send({"type": "websocket.accept"})
                    for _ in range(40):
                        await send({"type": "websocket.send", "bytes": bytes(1 << 20)})
            finally:
                ended.set()

        async def client(own: socket.socket) -> bool:
            await asyncio.to_thread(own.sendall, head)
            return await ended.wait()

        return bool(await _uvicorn(app, client))

    assert asyncio.run(run())


def test_no_work_begins_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory has run out, it would wait for one that never comes, and all others for it."""

    def refused(thread: threading.Thread) -> None:
        raise AssertionError

    async def run() -> list[int]:
        pool = WorkPool(3, 8)
        monkeypatch.setattr(threading.Thread, "start", refused)
        together = threading.Barrier(3)
        found = await asyncio.gather(*(pool.run(lambda _: together.wait(10), 20) for _ in range(3)))
        pool.close()
        return found

    assert sorted(asyncio.run(run())) == [0, 1, 2]


def test_messages_of_one_turn_are_one_write_and_keep_their_order() -> None:
    """Also those that are as long as what is written before the event loop goes on, and a close behind them."""
    sizes = [0, 1, 40, TOGETHER + 1, 3, TOGETHER, 7]
    writes: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await receive()
        transport = send.__self__.transport
        write = transport.write
        transport.write = lambda data: (writes.append(len(data)), write(data))
        for number, size in enumerate(sizes):
            await send({"type": "websocket.send", "bytes": bytes([number]) * size})
        await asyncio.sleep(0)
        await send({"type": "websocket.send", "bytes": b"last"})
        await send({"type": "websocket.close", "code": 1000})

    def read(own: socket.socket) -> bytes:
        own.sendall(HANDSHAKE)
        found = b""
        while part := own.recv(1 << 16):
            found += part
        return found

    async def client(own: socket.socket) -> bytes:
        return await asyncio.to_thread(read, own)

    found: bytes = asyncio.run(_uvicorn(app, client, 60))
    head = {size: bytes((0x82, size)) if size < 126 else b"\x82\x7e" + size.to_bytes(2, "big") for size in sizes}
    frames = [head[size] + bytes([number]) * size for number, size in enumerate(sizes)]
    assert found.partition(b"\r\n\r\n")[2].startswith(b"".join(frames) + b"\x82\x04last\x88\x02\x03\xe8")
    assert writes == [len(b"".join(frames[:4])), len(b"".join(frames[4:6])), len(frames[6]), 10]


def test_pings_whose_answers_nobody_takes_end_the_connection() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await receive()
        await receive()

    def flood(own: socket.socket) -> bool:
        own.sendall(HANDSHAKE)
        assert b"101 Switching" in own.recv(1000)
        pings = (b"\x89\xfd" + bytes(4) + bytes(125)) * 1000
        try:
            for _ in range(500):
                own.sendall(pings)
        except ConnectionError:
            return True
        return False

    async def client(own: socket.socket) -> bool:
        return await asyncio.to_thread(flood, own)

    assert asyncio.run(_uvicorn(app, client, 60))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_request_makes_the_server_fail(both: Served, data: st.DataObject) -> None:
    document = both.get("/openapi.json")
    path = data.draw(st.sampled_from([path for path, ways in document["paths"].items() if "post" in ways]))
    schemas = document["components"]["schemas"].values()
    keys = sorted({key for schema in schemas for key in schema.get("properties", {})})
    body = data.draw(st.dictionaries(st.sampled_from(keys), VALUES, max_size=3))
    good = {"run": "play", "tokens": [1]}, {"run": "play", "lines": ["a"]}, {"run": "play", "length": 2}, {}
    body |= data.draw(st.sampled_from(good))
    session = both.post("/sessions", 201, run="play")["session"]
    try:
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        answer = both.client.post(path.replace("{session}", session), content=content, headers=headers)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert answer.json()["error"]
    finally:
        both.delete(f"/sessions/{session}")
        both.service.sessions.store._kept.clear()
        both.service.sessions.store.bytes = 0


def test_tokens_and_addresses_are_checked_before_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERSTEP_TOKEN", raising=False)
    assert token_of(None) is None
    monkeypatch.setenv("EVERSTEP_TOKEN", TOKEN)
    assert token_of(None) == TOKEN
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}2\n")
    assert token_of(file) == f"{TOKEN}2"
    for bad in ("short", "with a space in it, long", "é" * 20):
        file.write_text(bad)
        with pytest.raises(ConfigError, match="at least 16 visible ASCII"):
            token_of(file)
    with pytest.raises(ConfigError, match="cannot read"):
        token_of(tmp_path / "none")
    with pytest.raises(ConfigError, match="other machines can ask this server"):
        bound("0.0.0.0", 0, None, False)
    with pytest.raises(ConfigError, match="is no address"):
        bound("no such host", 0, None, False)
    for token, insecure in ((TOKEN, False), (None, True)):
        bound("0.0.0.0", 0, token, insecure).close()
    with bound("127.0.0.1", 0, None, False) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use"):
            bound("127.0.0.1", port, None, False)
        done = CliRunner().invoke(cli, ["watch", str(tmp_path), "--port", str(port)])
        assert done.exit_code == 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.usefixtures("uncompiled")
def test_the_command_serves_and_drains(runs: dict[str, Path], tmp_path: Path) -> None:
    server, address = running([str(runs["play"])], tmp_path / "log")
    port = int(address.split(":")[2].strip("/"))
    try:
        with urllib.request.urlopen(f"{address}runs", timeout=10) as answer:
            assert json.load(answer)["runs"][0]["name"] == "play"
        os.kill(server.pid, signal.SIGHUP)  # type: ignore[arg-type]
        with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
            body = json.dumps({"prompt": "To be", "length": 500, "stream": True}).encode()
            head = ["POST /generate HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
            slow.sendall("\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body)
            assert b"200 OK" in slow.recv(1 << 12)
            server.terminate()
            rest = b""
            while part := slow.recv(1 << 16):
                rest += part
            assert b"event: done" in rest  # what was in progress is finished
        assert ended(server) == 0
    finally:
        server.kill()
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"{address}runs", timeout=2)
