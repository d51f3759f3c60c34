"""Runs, servers in processes of their own, and clients as plain as can be, for benchmarks of `everstep serve`.

Clients do as little as they can, since the servers are what is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

import everstep as es
from everstep.ship.serving.frames import CREATE, DELETE, FEED, answered, request

RIVAL = """
import sys, uuid
import numpy as np, onnxruntime, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
model = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
names = [one.name for one in model.get_inputs()][1:]
shapes = [[1, *one.shape[1:]] for one in model.get_inputs()][1:]
states, app = {}, FastAPI()

class Step(BaseModel):
    session: str
    token: int

@app.post("/create")
async def create():
    session = str(uuid.uuid4())
    states[session] = [np.zeros(shape, np.float32) for shape in shapes]
    return {"session": session}

@app.post("/step")
async def step(body: Step):
    given = dict(zip(names, states[body.session]), tokens=np.array([body.token]))
    log_p, *states[body.session] = model.run(None, given)
    return {"log_p": log_p[0].tolist()}

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning", timeout_keep_alive=60)
"""


JOBS = {
    "play": ("shakespeare-minute", "model.hidden_size=256"),
    "reviews": ("classify-minute", "model.hidden_size=32"),
    "orders": ("tag-own", "model.hidden_size=16"),
    "tatoeba": ("translate-minute", "model.hidden_size=32", "model.embedding_size=32", "decode.max_length=20"),
    "rides": ("forecast-minute", "model.hidden_size=16"),
    "rounds": ("music-minute", "model.hidden_size=32"),
}
"""A run of each kind of job: its name, its recipe, and overrides."""


class Client:
    """JSON over one connection that stays. It does as little as it can, since the servers are what is measured."""

    def __init__(self, port: int):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=90)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def raw(
        self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"
    ) -> tuple[int, bytes]:
        """The status and the body of an answer.

        Raises:
            ConnectionError: the server has closed the connection.
        """
        content = body or b""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        found = b""
        while (end := found.find(b"\r\n\r\n")) < 0:
            found += self._received()
        lines = found[:end].lower().split(b"\r\n")
        status, found = int(lines[0][9:12]), found[end + 4 :]
        sizes = [int(line[15:]) for line in lines if line.startswith(b"content-length:")]
        while len(found) < sizes[0] if sizes else not (status == 204 or found.endswith(b"0\r\n\r\n")):
            found += self._received()
        return status, found

    def _received(self) -> bytes:
        part = self._socket.recv(1 << 16)
        if not part:
            raise ConnectionError
        return part

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer that is no refusal."""
        status, content = self.raw(method, path, None if body is None else json.dumps(body).encode())
        assert status < 300, content
        return json.loads(content) if content else None

    def leave(self, path: str, body: Any) -> None:
        """Ask, and go away before the answer."""
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def started(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, once it answers."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            try:
                Client(port).raw("GET", "/openapi.json")
                break
            except OSError:
                assert process.poll() is None, f"{command} has ended"
                time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(40)


def serving(runs: Sequence[Path], port: int, *options: str) -> list[str]:
    """The command that serves runs."""
    return ["-m", "everstep", "serve", *map(str, runs), "--port", str(port), "--ttl", "60", *options]


def minute_runs(folder: Path, names: Sequence[str] = tuple(JOBS)) -> list[Path]:
    """A run of each job, hardly trained; those that are there stay."""
    found = []
    for name in names:
        recipe, *sizes = JOBS[name]
        found.append(folder / name)
        if not found[-1].is_dir():
            short = ["train.max_steps=2", "train.max_epochs=null", "train.max_minutes=null"]
            es.train(recipe, found[-1], lambda _: None, overrides=[*short, "train.validate_every=null", *sizes])
    return found


class Framed:
    """Sessions over one WebSocket, as plain as `Client`."""

    def __init__(self, port: int, run: str | None = None):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        path = "/sessions" if run is None else f"/sessions?run={run}"
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        self._rest = b""
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            self._rest += self._received()
        assert b" 101 " in self._rest[:20], self._rest
        self._rest = self._rest[end + 4 :]

    def _received(self) -> bytes:
        part = self._socket.recv(1 << 16)
        if not part:
            raise ConnectionError
        return part

    def _frame(self) -> bytes:
        """The next binary message; pings are answered."""
        while True:
            data = self._rest
            start, size = 2, data[1] & 127 if len(data) > 1 else 1 << 62
            if size in (126, 127):
                start += 2 if size == 126 else 8
                size = int.from_bytes(data[2:start], "big") if len(data) >= start else 1 << 62
            if len(data) < start + size:
                self._rest += self._received()
                continue
            self._rest = data[start + size :]
            if data[0] == 0x82:
                return data[start : start + size]
            if data[0] == 0x89:
                self._socket.sendall(bytes((0x8A, 0x80 | size)) + bytes(4) + data[start : start + size])

    def ask(self, frames: list[bytes]) -> list[bytes]:
        """Send all, then read the answers, by their number."""
        heads = (bytes((0x82, 0x80 | len(frame))) + bytes(4) for frame in frames)  # short, with a mask of zeros
        self._socket.sendall(b"".join(head + frame for head, frame in zip(heads, frames, strict=True)))
        found: dict[int, bytes] = {}
        for _ in frames:
            number, status, payload = answered(self._frame())
            assert status == 0, payload
            found[number] = payload
        return [found[number] for number in range(len(frames))]

    def create(self, count: int) -> list[str]:
        """New sessions."""
        return [payload.decode() for payload in self.ask([request(CREATE, number=k) for k in range(count)])]

    def step(self, sessions: list[str], token: int) -> list[bytes]:
        """The outputs of a step of each session."""
        values = np.int32(token).tobytes()
        return self.ask([request(FEED, session, values, number=k) for k, session in enumerate(sessions)])

    def close(self) -> None:
        """End the connection."""
        self._socket.close()


class ManyAtOnce:
    """Sessions that do not wait for each other over one WebSocket; `waits` has the milliseconds of every request."""

    def __init__(self, wire: ClientConnection):
        self.waits: list[float] = []
        self._wire = wire
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    async def _read(self) -> None:
        async for frame in self._wire:
            number, status, payload = answered(frame)  # type: ignore[arg-type]
            assert status == 0, payload
            self._waiting.pop(number).set_result(payload)

    async def _ask(self, number: int, *given: Any) -> bytes:
        self._waiting[number] = asyncio.get_running_loop().create_future()
        start = time.perf_counter()
        await self._wire.send(request(*given, number=number))
        found = await self._waiting[number]
        self.waits.append(1000 * (time.perf_counter() - start))
        return found

    async def session(self, number: int, tokens: list[int]) -> bytes:
        """What a session answers to tokens, one after the other; `number` tells it from others on this connection."""
        name = (await self._ask(number, CREATE)).decode()
        outputs = [await self._ask(number, FEED, name, np.int32(token).tobytes()) for token in tokens]
        await self._ask(number, DELETE, name)
        return b"".join(outputs)


@asynccontextmanager
async def many_at_once(port: int) -> AsyncIterator[ManyAtOnce]:
    """A connection that reads answers as they come."""
    async with connect(f"ws://127.0.0.1:{port}/sessions", max_size=None, proxy=None) as wire:
        found = ManyAtOnce(wire)
        reader = asyncio.create_task(found._read())
        try:
            yield found
        finally:
            reader.cancel()


def cpu_seconds(process: int) -> float:
    """Seconds that a process has computed; a busy machine lengthens waits, and these much less."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss(process: int) -> int:
    """Bytes of a process in memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return 1024 * int(found[1])
