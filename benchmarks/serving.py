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
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serving_clients import RIVAL, Client, Framed, free_port, many_at_once, rss, serving, started

import everstep as es
from everstep.networks.model_forms import token_forms
from everstep.ship.export import export
from everstep.ship.serving.frames import DELETE, READ, request

STEPS = 100


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


async def answers(port: int, texts: list[list[int]], connections: int = 10) -> tuple[list[bytes], list[float]]:
    """What sessions answer to texts, all at once over some connections, and the milliseconds of every request."""

    async def some(texts: list[list[int]]) -> tuple[list[bytes], list[float]]:
        async with many_at_once(port) as clients:
            found = await asyncio.gather(*(clients.session(number, text) for number, text in enumerate(texts)))
            return found, clients.waits

    parts = await asyncio.gather(*(some(texts[k::connections]) for k in range(connections)))
    found: list[bytes] = [b""] * len(texts)
    for k, (outputs, _) in enumerate(parts):
        found[k::connections] = outputs
    return found, [wait for _, waits in parts for wait in waits]


@torch.no_grad()
def streamed(run: Any, texts: list[list[int]]) -> Iterator[bytes]:
    """The outputs for each text of a stream that begins anew."""
    stream = es.Stream(token_forms(run.model).step.cell)  # type: ignore[union-attr]
    for text in texts:
        stream.reset()
        ys = (stream(run.model.embedding(torch.tensor([token])))[0] for token in text)
        yield b"".join(y.numpy().tobytes() for y in ys)


def many(run: Any, port: int, sessions: int, steps: int = 20) -> dict[str, Any]:
    """Sessions step at once over ten connections; each is compared with a stream of its own."""
    draw = random.Random(1)
    below = run.model.head.classes
    texts = [[draw.randrange(below) for _ in range(steps)] for _ in range(sessions)]
    start = time.perf_counter()
    found, waits = asyncio.run(answers(port, texts))
    seconds = time.perf_counter() - start
    return {
        "sessions": sessions,
        "bit_equal": sum(one == other for one, other in zip(found, streamed(run, texts), strict=True)),
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
