"""`everstep serve` beside a plain FastAPI endpoint of onnxruntime: latency and throughput.

    python benchmarks/serving.py [--rounds 20] [--sessions 500] [--json FILE]

An LSTM of 256 units over characters, one row a step, over loopback. The rival keeps the states of its clients in a dict
and answers in JSON, as one would write it in an afternoon; both run by uvicorn, in processes of their own, one thread
each. Clients are in this process, and take turns between the two.

1. one client: the median of its steps, over WebSocket and in JSON, beside the rival's, in turns; and the CPU time of
   the server for a step, which other work on the machine hardly changes
2. steps per second of 32 sessions at once, over that of one; and the same by CPU time
3. many sessions at once, 20 steps each: all answered, bit for bit as by `everstep.Stream`; the 99th percentile

Memory, isolation and faults have their own scripts: `soak_service.py`, `isolation.py`, `fuzz_service.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from serving_clients import RIVAL, Client, Framed, cpu_seconds, free_port, many_at_once, serving, started

import everstep as es
from everstep.networks.model_forms import token_forms
from everstep.ship.export import export

STEPS = 100


def milliseconds(act: Callable[[], object], times: int) -> list[float]:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        act()
        found.append(1000 * (time.perf_counter() - start))
    return found


def one_client(ours: int, theirs: int, rounds: int, processes: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Medians of the milliseconds of a step, and of CPU time of the server, by way."""
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
    computed = dict.fromkeys(ways, 0.0)
    for number in range(rounds + 2):
        for name, way in ways.items():
            before = cpu_seconds(processes[name == "rival"])
            found = milliseconds(way, STEPS)
            if number >= 2:
                times[name] += found
                computed[name] += 1000 * (cpu_seconds(processes[name == "rival"]) - before) / (rounds * STEPS)
    framed.close()
    return {"ms": {name: statistics.median(values) for name, values in times.items()}, "cpu_ms": computed}


def at_once(port: int, rounds: int, process: int) -> dict[str, dict[str, float]]:
    """Steps per second, and per second of CPU time, of one session and of 32 over one connection, in turns."""
    framed = Framed(port)
    sessions = framed.create(32)
    rates: dict[int, list[float]] = {1: [], 32: []}
    computed = {1: 0.0, 32: 0.0}
    for number in range(rounds + 2):
        for count in rates:
            before = cpu_seconds(process)
            seconds = sum(milliseconds(lambda: framed.step(sessions[:count], 7), STEPS)) / 1000  # noqa: B023
            if number >= 2:
                rates[count].append(count * STEPS / seconds)
                computed[count] += cpu_seconds(process) - before
    framed.close()
    return {
        "all": {str(count): statistics.median(values) for count, values in rates.items()},
        "cpu": {str(count): count * STEPS * rounds / seconds for count, seconds in computed.items()},
    }


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sessions", type=int, default=500)
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
        with started(serving([path], ours), ours) as server:
            with started([str(code), str(rival), str(theirs)], theirs) as other:
                found["one_client"] = told = one_client(ours, theirs, given.rounds, (server.pid, other.pid))
                for kind, name in product(told, ("websocket", "json")):
                    ms, theirs_ms = told[kind][name], told[kind]["rival"]
                    print(f"{name:10} {ms:.3f} {kind} a step, {ms / theirs_ms:.2f} × the rival's {theirs_ms:.3f}")
            found["steps_per_second"] = at_once(ours, given.rounds, server.pid)
            for kind, rates in found["steps_per_second"].items():
                print(f"32 sessions: {rates['32']:,.0f} steps a second ({kind}), {rates['32'] / rates['1']:.1f} × one")
            found["many"] = many(run, ours, given.sessions)
            print("many at once:", json.dumps(found["many"]))
        if given.json:
            given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
