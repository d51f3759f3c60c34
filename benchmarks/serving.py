"""`everstep serve` beside a plain FastAPI endpoint of onnxruntime: latency, throughput, isolation, memory.

    python benchmarks/serving.py [--rounds 20] [--sessions 500] [--soak 60] [--fuzz 20000] [--json FILE]

An LSTM of 256 units over characters, one row a step, over loopback. The rival keeps the states of its clients in a dict
and answers in JSON, as one would write it in an afternoon; both run by uvicorn, in processes of their own, one thread
each. Clients are in this process, and take turns between the two.

1. one client: the median of its steps, over WebSocket and in JSON, beside the rival's, in turns
2. steps per second of 32 sessions at once, over that of one
3. many sessions at once, 20 steps each: all answered, bit for bit as by `everstep.Stream`; the 99th percentile
4. the server is killed under load and started again: old ids give 410
5. soak: bytes that the server's memory grows by, for 10,000 requests
6. requests made of random JSON, bytes and paths: none gives a status of 500 or above, but 503
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from websockets.asyncio.client import connect as connect_many

import everstep as es
from everstep.networks.model_forms import token_forms
from everstep.ship.export import export
from everstep.ship.serving.frames import CREATE, DELETE, FEED, READ, answered, request

STEPS = 100
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

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


class Client:
    """JSON over one connection that stays. It does as little as it can, since the servers are what is measured."""

    def __init__(self, port: int):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def raw(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        content = body or b""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
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
        status, content = self.raw(method, path, None if body is None else json.dumps(body).encode())
        assert status < 300, content
        return json.loads(content) if content else None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def started(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, once it answers."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], env=environment, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
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


def serving(run: Path, port: int) -> list[str]:
    return ["-m", "everstep", "serve", str(run), "--port", str(port), "--ttl", "60"]


class Framed:
    """Sessions over one WebSocket, as plain as `Client`."""

    def __init__(self, port: int):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(
            b"GET /sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        self._rest = b""
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            self._rest += self._socket.recv(1 << 16)
        assert b" 101 " in self._rest[:20], self._rest
        self._rest = self._rest[end + 4 :]

    def _frame(self) -> bytes:
        """The next binary message; pings are answered."""
        while True:
            data = self._rest
            start, size = 2, data[1] & 127 if len(data) > 1 else 1 << 62
            if size in (126, 127):
                start += 2 if size == 126 else 8
                size = int.from_bytes(data[2:start], "big") if len(data) >= start else 1 << 62
            if len(data) < start + size:
                self._rest += self._socket.recv(1 << 16)
                continue
            self._rest = data[start + size :]
            if data[0] == 0x82:
                return data[start : start + size]
            if data[0] == 0x89:
                self._socket.sendall(b"\x8a\x80\0\0\0\0")

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
        return [payload.decode() for payload in self.ask([request(CREATE, number=k) for k in range(count)])]

    def step(self, sessions: list[str], token: int) -> list[bytes]:
        values = np.int32(token).tobytes()
        return self.ask([request(FEED, session, values, number=k) for k, session in enumerate(sessions)])

    def close(self) -> None:
        self._socket.close()


def milliseconds(act: Callable[[], object], times: int) -> list[float]:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        act()
        found.append(1000 * (time.perf_counter() - start))
    return found


def one_client(ours: int, theirs: int, rounds: int) -> dict[str, float]:
    client, rival, framed = Client(ours), Client(theirs), Framed(ours)
    session = client.ask("POST", "/sessions", {})["session"]
    mine = framed.create(1)
    other = rival.ask("POST", "/create")["session"]
    path = f"/sessions/{session}/steps"
    ways: dict[str, Callable[[], object]] = {
        "websocket": lambda: framed.step(mine, 5),
        "json": lambda: client.ask("POST", path, {"tokens": [5], "outputs": "last"}),
        "rival": lambda: rival.ask("POST", "/step", {"session": other, "token": 5}),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        for name, way in ways.items():
            found = milliseconds(way, STEPS)
            times[name] += found if number >= 2 else []
    framed.close()
    return {name: statistics.median(values) for name, values in times.items()}


def at_once(port: int, rounds: int) -> dict[str, float]:
    """Steps per second of one session and of 32 over one connection, in turns."""
    framed = Framed(port)
    sessions = framed.create(32)
    rates: dict[int, list[float]] = {1: [], 32: []}
    for number in range(rounds + 2):
        for count in rates:
            seconds = sum(milliseconds(lambda: framed.step(sessions[:count], 7), STEPS)) / 1000  # noqa: B023
            rates[count] += [count * STEPS / seconds] if number >= 2 else []
    framed.close()
    return {str(count): statistics.median(values) for count, values in rates.items()}


def many(run: Any, port: int, sessions: int, steps: int = 20) -> dict[str, Any]:
    """Sessions step at once over ten connections; each is compared with a stream of its own."""
    draw = random.Random(1)
    below = run.model.head.classes
    texts = [[draw.randrange(below) for _ in range(steps)] for _ in range(sessions)]
    waits: list[float] = []

    async def one(texts: list[list[int]]) -> list[bytes]:
        async with connect_many(f"ws://127.0.0.1:{port}/sessions", max_size=None, proxy=None) as wire:
            waiting: dict[int, asyncio.Future[bytes]] = {}

            async def read() -> None:
                async for frame in wire:
                    number, status, payload = answered(frame)  # type: ignore[arg-type]
                    assert status == 0, payload
                    waiting.pop(number).set_result(payload)

            reader = asyncio.create_task(read())

            async def ask(number: int, *given: Any) -> bytes:
                waiting[number] = asyncio.get_running_loop().create_future()
                start = time.perf_counter()
                await wire.send(request(*given, number=number))
                found = await waiting[number]
                waits.append(1000 * (time.perf_counter() - start))
                return found

            async def session(number: int, text: list[int]) -> bytes:
                name = (await ask(number, CREATE)).decode()
                outputs = [await ask(number, FEED, name, np.int32(token).tobytes()) for token in text]
                await ask(number, DELETE, name)
                return b"".join(outputs)

            try:
                return await asyncio.gather(*(session(number, text) for number, text in enumerate(texts)))
            finally:
                reader.cancel()

    async def every() -> list[bytes]:
        parts = await asyncio.gather(*(one(texts[k::10]) for k in range(10)))
        found: list[bytes] = [b""] * sessions
        for k, part in enumerate(parts):
            found[k::10] = part
        return found

    start = time.perf_counter()
    found = asyncio.run(every())
    seconds = time.perf_counter() - start
    cell = token_forms(run.model).step.cell  # type: ignore[union-attr]
    stream, equal = es.Stream(cell), 0
    with torch.no_grad():
        for text, outputs in zip(texts, found, strict=True):
            stream.reset()
            ys = [stream(run.model.embedding(torch.tensor([token])))[0].numpy().tobytes() for token in text]
            equal += b"".join(ys) == outputs
    return {
        "sessions": sessions,
        "bit_equal": equal,
        "p50_ms": statistics.median(waits),
        "p99_ms": statistics.quantiles(waits, n=100)[98],
        "steps_per_second": sessions * steps / seconds,
    }


def killed(run: Path) -> dict[str, int]:
    """Kill the server while a session steps, and ask the next one for that session."""
    port = free_port()
    with started(serving(run, port), port) as server:
        framed = Framed(port)
        (session,) = framed.create(1)
        framed.step([session], 3)
        server.send_signal(signal.SIGKILL)
        server.wait()
    with started(serving(run, port), port):
        status, _ = Client(port).raw("GET", f"/sessions/{session}")
    return {"status_after_restart": status}


def rss(process: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def soak(port: int, process: int, seconds: float) -> dict[str, float]:
    """Half load: create, step, read, delete, then as long a pause. The slope of memory after the first fifth."""
    framed, client = Framed(port), Client(port)
    points: list[tuple[int, int]] = []
    requests, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        sessions = framed.create(20)
        for token in range(10):
            framed.step(sessions, token)
        framed.ask([request(READ, session, number=k) for k, session in enumerate(sessions)])
        framed.ask([request(DELETE, session, number=k) for k, session in enumerate(sessions)])
        client.ask("POST", "/score", {"lines": ["To be, or not to be"] * 3})
        requests += 13 * 20 + 1
        points.append((requests, rss(process)))
        time.sleep(time.perf_counter() - start)
    framed.close()
    late = points[len(points) // 5 :]
    slope = np.polyfit([n for n, _ in late], [size for _, size in late], 1)[0]
    return {"requests": requests, "bytes_per_10k_requests": float(slope * 10_000), "rss_mib": late[-1][1] / 2**20}


def value(draw: random.Random, depth: int = 0) -> Any:
    """A random value of JSON."""
    kind = draw.randrange(9 if depth < 4 else 7)
    if kind == 7:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 8:
        return {value_text(draw): value(draw, depth + 1) for _ in range(draw.randrange(4))}
    numbers = (0, -1, 1, 2**31, 2**63, 10**30, 1e308, -0.5)
    return (None, True, draw.choice(numbers), value_text(draw), draw.randrange(100), [1, 2, 3], ["a", "b"])[kind]


def value_text(draw: random.Random) -> str:
    return "".join(
        chr(draw.choice((10, 32, 97, 98, 233, 0x6771, 0x1F600, 0xD800, 0))) for _ in range(draw.randrange(8))
    )


def fuzz(port: int, count: int) -> dict[str, Any]:
    """Random requests over the paths of the OpenAPI document."""
    draw = random.Random(1)
    client = Client(port)
    document = client.ask("GET", "/openapi.json")
    paths = [(method.upper(), path) for path, ways in document["paths"].items() for method in ways]
    schemas = document["components"]["schemas"].values()
    keys = sorted({key for schema in schemas for key in schema.get("properties", {})})
    session = client.ask("POST", "/sessions", {})["session"]
    statuses: dict[int, int] = {}
    slowest = 0.0
    for number in range(count):
        if number % 500 == 0:
            session = client.ask("POST", "/sessions", {})["session"]
        method, path = draw.choice(paths)
        path = path.replace("{session}", draw.choice((session, session, "x", "%00", "..%2f"))).replace("{name}", "run")
        body: Any = {key: value(draw) for key in draw.sample(keys, draw.randrange(4))}
        if draw.random() < 0.5:
            body |= draw.choice(({"tokens": [1, 2]}, {"text": "To"}, {"lines": ["a"]}, {"length": 3, "prompt": "a"}))
        content = json.dumps(body).encode()
        if draw.random() < 0.1:
            content = bytes(draw.choice(content + b"[{\xff") for _ in range(draw.randrange(40)))
        start = time.perf_counter()
        try:
            status, _ = client.raw(method, path, content if method == "POST" else None)
        except ConnectionError:  # closed after a refusal
            client = Client(port)
            continue
        slowest = max(slowest, time.perf_counter() - start)
        statuses[status] = statuses.get(status, 0) + 1
        if status == 500:
            print("500:", method, path, content)
    return {"requests": count, "statuses": dict(sorted(statuses.items())), "slowest_s": slowest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--soak", type=float, default=60, help="seconds")
    parser.add_argument("--fuzz", type=int, default=20_000, help="requests")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        short = ["train.max_steps=1", "train.max_minutes=null", "train.validate_every=null", "model.layers=1"]
        run = es.train(
            "shakespeare-minute",
            path,
            lambda _: None,
            overrides=[*short, "model.cell=LSTM", "model.hidden_size=256", "model.embedding_size=256"],
        )
        rival = export(run, Path(folder) / "onnx", form="step") / "step.onnx"
        code = Path(folder) / "plain_endpoint.py"
        code.write_text(RIVAL)
        ours, theirs = free_port(), free_port()
        found: dict[str, Any] = {}
        with started(serving(path, ours), ours) as server:
            with started([str(code), str(rival), str(theirs)], theirs):
                found["one_client_p50_ms"] = told = one_client(ours, theirs, given.rounds)
                for name in ("websocket", "json"):
                    print(f"{name:10} {told[name]:.3f} ms a step, {told[name] / told['rival']:.2f} × the rival's")
            found["steps_per_second"] = rates = at_once(ours, given.rounds)
            print(f"32 sessions at once: {rates['32']:,.0f} steps a second, {rates['32'] / rates['1']:.1f} × one")
            found["many"] = many(run, ours, given.sessions)
            print("many at once:", json.dumps(found["many"]))
            if given.soak:
                found["soak"] = soak(ours, server.pid, given.soak)
                print("soak:", json.dumps(found["soak"]))
            if given.fuzz:
                found["fuzz"] = fuzz(ours, given.fuzz)
                print("fuzz:", json.dumps(found["fuzz"]))
        found["killed"] = killed(path)
        print("killed:", json.dumps(found["killed"]))
        if given.json:
            given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
