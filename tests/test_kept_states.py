"""States that clients keep: equal to sessions, and of no use to those who change them. Servers that are killed."""

from __future__ import annotations

import base64
import json
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from apart import ended
from hypothesis import given, settings
from hypothesis import strategies as st
from service_client import Served, running, served

import everstep as es
from everstep.native import toolchain
from everstep.ship.serving.faults import Fault
from everstep.ship.serving.frames import CREATE, FEED, answered, request
from everstep.ship.serving.hosted import IDENTITY
from everstep.ship.serving.server import STATE_KEY, token_of
from everstep.ship.serving.state_seal import HEAD, SIGNATURE, StateSeal
from everstep.ship.serving.stepping import Stepped

KEY = "a-key-of-many-characters"


@pytest.fixture(scope="module", autouse=True)
def _uncompiled() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVERSTEP_COMPILER", "none")
        patch.setattr(toolchain, "_noticed", {*toolchain._noticed, "compiler"})
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of text, of other weights, hardly trained."""
    folder = tmp_path_factory.mktemp("kept")
    short = ["train.max_steps=1", "train.max_minutes=null", "model.hidden_size=8", "train.validate_every=null"]
    for seed, name in enumerate(("play", "other")):
        es.train("shakespeare-minute", folder / name, lambda _: None, overrides=[*short, f"seed={seed}"])
    return [folder / "play", folder / "other"]


@pytest.fixture(scope="module")
def one(runs: list[Path]) -> Iterator[Served]:
    with served(runs, key=KEY.encode(), tokens=200) as found:
        yield found


def test_a_kept_state_gives_the_bits_of_a_session(one: Served) -> None:
    session = one.post("/sessions", 201, run="play")["session"]
    state = None
    for tokens in ([3, 1, 4], [1], [5, 9, 2]):
        asked = {"tokens": tokens, "outputs": "all", "surprise": True, "top": 2}
        here = one.post(f"/sessions/{session}/steps", **asked)
        kept = one.post("/steps", run="play", state=state, **asked)
        assert {**here, **kept} == {**kept, **here}  # what both tell is equal
        assert kept["outputs"] == here["outputs"]
        assert (kept["surprise"][0] is None) == (state is None)  # the last output came along
        state = kept["state"]
    assert kept["steps"] == 7
    one.delete(f"/sessions/{session}")
    assert len(one.service.sessions.store) == 0  # the server kept nothing


def test_a_state_is_given_again_for_a_fork(one: Served) -> None:
    first = one.post("/steps", run="play", begin=True, text="To")
    assert first["steps"] == 3
    once, again = (one.post("/steps", run="play", state=first["state"], text=" be", outputs="last") for _ in range(2))
    assert once == again
    assert "begin: expected false" in one.post("/steps", 422, run="play", state=first["state"], begin=True, text="a")


def test_the_last_output_is_kept_only_for_the_surprise(one: Served) -> None:
    plain, judged = (one.post("/steps", run="play", tokens=[1], surprise=judged)["state"] for judged in (False, True))
    gives = one.service.catalogue["play"].stepped()[0].gives
    assert len(judged) - len(plain) == pytest.approx(4 * gives * 4 / 3, abs=4)
    assert one.post("/steps", run="play", state=plain, tokens=[1], surprise=True)["surprise"] == [None]


def test_states_of_others_are_refused(one: Served, runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    state = one.post("/steps", run="play", tokens=[1])["state"]
    assert "is of another run than other" in one.post("/steps", 409, run="other", state=state, tokens=[1])
    with served(runs) as stranger:  # has a random key
        said = stranger.post("/steps", 403, run="play", state=state, tokens=[1])
        assert "is not signed with the key of this server" in said
        assert stranger.service.sessions.store.bytes == 0
    with served(runs, key=KEY.encode()) as same:
        assert same.post("/steps", run="play", state=state, tokens=[1])["steps"] == 2
    with served(runs, key=KEY.encode()) as newer:
        monkeypatch.setattr(newer.service.catalogue["play"], "identity", bytes(IDENTITY))
        assert "another model than play is now" in newer.post("/steps", 410, run="play", state=state, tokens=[1])
    with served(runs, key=KEY.encode(), body=300) as small:
        said = small.post("/steps", 409, run="play", tokens=[1])
        assert "POST /sessions" in said


def test_a_signed_state_of_another_form_is_refused(one: Served) -> None:
    catalogue = one.service.catalogue
    play, seal = catalogue["play"], StateSeal(KEY.encode(), most=1 << 20)
    engine, _ = play.stepped()
    whole = Stepped(play, tuple(engine.initial()), torch.zeros(engine.gives), 1)
    assert seal.opened(seal.sealed(whole, True), play, catalogue).steps == 1
    longer = Stepped(play, whole.state, torch.zeros(engine.gives + 1), 1)
    with pytest.raises(Fault, match="play keeps its state in another form now"):
        seal.opened(seal.sealed(longer, True), play, catalogue)


def test_models_of_other_weights_have_other_identities(one: Served, runs: list[Path]) -> None:
    mine, other = (one.service.catalogue[name].identity for name in ("play", "other"))
    assert len(mine) == len(other) == IDENTITY
    assert mine != other
    one.service.catalogue.reload()
    assert one.service.catalogue["play"].identity == mine


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_changed_state_is_refused(one: Served, data: st.DataObject) -> None:
    state = one.post("/steps", run="play", tokens=[1], surprise=True)["state"]
    raw = bytearray(base64.urlsafe_b64decode(state + "=" * (-len(state) % 4)))
    place = data.draw(st.integers(0, SIGNATURE + HEAD.size) | st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.just(len(raw)) | st.integers(0, len(raw)))
    longer = data.draw(st.binary(max_size=3))
    text = base64.urlsafe_b64encode(bytes(raw[:cut]) + longer).decode().rstrip("=")
    text = data.draw(st.just(text) | st.text(max_size=60) | st.just(state + "=") | st.just(state[:-1] + "é"))
    answer = one.client.post("/steps", json={"run": "play", "state": text, "tokens": [1]})
    assert answer.status_code in (403, 422), answer.text
    assert answer.json()["error"].startswith("state: ")


def test_the_key_is_read_as_the_token_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_KEY, KEY)
    assert token_of(None, STATE_KEY) == KEY
    monkeypatch.setenv(STATE_KEY, "short")
    with pytest.raises(es.errors.ConfigError, match="EVERSTEP_STATE_KEY should hold a token of at least 16"):
        token_of(None, STATE_KEY)


def _load(port: int, sessions: list[str], states: list[str]) -> None:
    """Step a session over WebSocket and a kept state, until the server is gone."""
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    with suppress(ConnectionClosed, OSError), connect(f"ws://127.0.0.1:{port}/sessions", proxy=None) as socket:
        socket.send(request(CREATE))
        name = answered(bytes(socket.recv()))[2].decode()
        while True:
            socket.send(request(FEED, name, b"\1\0\0\0"))
            assert answered(bytes(socket.recv()))[1] == 0
            if name not in sessions:
                sessions.append(name)
                body = b'{"tokens": [3, 1, 4]}'
                asked = urllib.request.Request(
                    f"http://127.0.0.1:{port}/steps", body, {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(asked, timeout=10) as answer:
                    states.append(json.load(answer)["state"])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_after_a_kill_under_load_sessions_are_gone_and_kept_states_go_on(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STATE_KEY, KEY)
    sessions: list[str] = []
    states: list[str] = []
    server, address = running([str(runs[0])], tmp_path / "log")
    try:
        port = int(address.split(":")[2].strip("/"))
        clients = [threading.Thread(target=_load, args=(port, sessions, states)) for _ in range(3)]
        for client in clients:
            client.start()
        while len(states) < 3:
            assert any(client.is_alive() for client in clients)
            clients[0].join(0.02)
    finally:
        server.kill()
    assert ended(server) == -signal.SIGKILL
    for client in clients:
        client.join(20)
    assert len(set(sessions)) == 3
    with served(runs[:1], key=KEY.encode()) as again:
        for _ in range(3):
            again.post("/sessions", 201)
        for session in sessions:
            assert "has ended" in again.get(f"/sessions/{session}", 410)
            assert "has ended" in again.post(f"/sessions/{session}/steps", 410, tokens=[1])
        model: Any = es.load(runs[0]).model
        with torch.no_grad():
            log_p = model.head.predict(model(torch.tensor([[3, 1, 4, 1]]))[0])[0, -1:]
        for state in states:
            found = again.post("/steps", state=state, tokens=[1], outputs="last")
            torch.testing.assert_close(torch.tensor(found["outputs"]), log_p)
