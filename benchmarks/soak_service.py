"""Does `everstep serve` keep its memory for many minutes? Its bytes per 10,000 requests, at half load.

    python benchmarks/soak_service.py [--minutes 20] [--json FILE]

A language model, a classifier and a tagger are asked in rounds: sessions over WebSocket and JSON, states that the
client keeps, scores, predictions, texts with and without events, clients that leave before their answer, refusals, and
the page. After each round the client waits for as long as the round took. The slope is that of a line through the
server's resident memory over the number of requests, without the first fifth; it should be below 1 MiB for 10,000.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from serving_clients import Client, Framed, free_port, minute_runs, rss, serving, started

from everstep.ship.serving.frames import DELETE, FORK, READ, request

TAGGED = ["the", "red", "car", ""]


def frames_round(port: int) -> int:
    """Sessions over a WebSocket of their own: create, step, fork, read, delete."""
    framed = Framed(port, "play")
    sessions = framed.create(20)
    for token in range(10):
        framed.step(sessions, token)
    sessions += [made.decode() for made in framed.ask([request(FORK, sessions[k], number=k) for k in range(5)])]
    for what in (READ, DELETE):
        framed.ask([request(what, session, number=k) for k, session in enumerate(sessions)])
    framed.close()
    return 20 * 11 + 5 + 2 * 25


def json_round(client: Client, port: int) -> int:
    """The same in JSON, and every other way to ask."""
    session = client.ask("POST", "/sessions", {"run": "play", "begin": True})["session"]
    for k in range(10):
        asked = {"tokens": [k, k + 1], "outputs": "last", "top": 5, "surprise": True}
        client.ask("POST", f"/sessions/{session}/steps", asked)
    client.ask("DELETE", f"/sessions/{session}")
    state = None
    for _ in range(5):
        state = client.ask("POST", "/steps", {"run": "play", "state": state, "text": "To be"})["state"]
    client.ask("POST", "/score", {"run": "play", "lines": ["To be, or not to be"] * 3})
    client.ask("POST", "/generate", {"run": "play", "prompt": "To be", "length": 20})
    client.raw("POST", "/generate", json.dumps({"run": "play", "length": 20, "stream": True}).encode())
    client.ask("POST", "/predict", {"run": "reviews", "lines": ["not bad at all", "dull"], "explain": True})
    client.ask("POST", "/predict", {"run": "orders", "lines": TAGGED})
    client.ask("POST", "/units", {"run": "play", "text": "To be", "unit": 3})
    assert client.raw("POST", "/score", b'{"run": "play", "lines": ["\xff"]}')[0] == 400
    assert client.raw("GET", f"/sessions/{session}")[0] == 410
    for path in ("/", "/runs", "/metrics"):
        client.raw("GET", path)
    Client(port).leave("/generate", {"run": "play", "length": 400, "stream": True})
    return 30


def soak(port: int, process: int, seconds: float) -> dict[str, Any]:
    """Rounds for so many seconds."""
    client = Client(port)
    points: list[tuple[int, int]] = []
    requests, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        requests += frames_round(port) + json_round(client, port)
        points.append((requests, rss(process)))
        time.sleep(time.perf_counter() - start)
    sessions = next(
        line for line in client.raw("GET", "/metrics")[1].decode().splitlines() if line.startswith("everstep_sessions ")
    )
    late = points[len(points) // 5 :]
    slope = np.polyfit([n for n, _ in late], [size for _, size in late], 1)[0]
    return {
        "minutes": seconds / 60,
        "requests": requests,
        "kib_per_10k_requests": round(float(slope * 10_000) / 1024, 1),
        "rss_mib": [round(points[k * (len(points) - 1) // 10][1] / 2**20, 1) for k in range(11)],
        "sessions_left": int(sessions.split()[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs, port = minute_runs(Path(folder), ["play", "reviews", "orders"]), free_port()
        with started(serving(runs, port), port) as server:
            found = soak(port, server.pid, 60 * given.minutes)
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
