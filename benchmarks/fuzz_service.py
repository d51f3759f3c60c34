"""Requests drawn by Hypothesis from the OpenAPI document of `everstep serve`: none may fail the server, or hang.

    python benchmarks/fuzz_service.py [--requests 100000] [--clients 4] [--log fuzz.json] [--runs FOLDER]

Six runs are served: a language model, a classifier, a tagger, a translator, a forecaster and music. Bodies are drawn
from the schema of each operation, partly with values that runs understand (their names, sessions, signed states, their
kinds of lines), partly with values of any other kind, keys that there are not, and damaged bytes. One in twenty is a
frame over the WebSocket. A failure is a status of 500 or above, but 503, an answer without its sentence, or none within
the time limit of the server and ten seconds. Requests come in blocks, of several clients at once; `--log` counts those
that are done, and a second call goes on after them. Leaves with 1 if any request failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from serving_clients import JOBS, Client, free_port, minute_runs, rss, serving, started
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from everstep.ship.serving.frames import answered, request

BLOCK = 500
LIMIT = 20
"""Seconds that the server allows for an answer."""
ABLE = {"/predict": ("reviews", "orders", "tatoeba", "rides"), "/score": ("play", "tatoeba", "rounds")}
"""Runs that can do what is asked; elsewhere those of `SPEAKING` can."""
SPEAKING = ("play", "play", "rounds")
LINES = (
    "not bad at all", "", "the red car", "To be, or not to be", "I am tired .", "a\tb", "東 é 😀", "x" * 3000,
    "two large pizzas O", "unique_id,ds,y", "a,2024-01-01 00:00:00,1.5", "a,2024-01-01 01:00:00,2", '{"text": "a"}',
    "king - man", "0.5,1,2", "60,64,67 60,65 - 67", "67 69 71", "\u2028", "\x00", "9" * 400,
)  # fmt: skip
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
TABLE = [LINES[9], *(f"{name},2024-01-{day:02} 00:00:00,{day * 1.5}" for name in "ab" for day in range(1, 25))]


class Fuzz:
    """Draws requests, sends them, and counts what comes back.

    Args:
        port: where the server listens.
    """

    def __init__(self, port: int):
        self._port = port
        self.told: dict[str, Any] = {}
        self._client = Client(port)
        self._socket: Any = None
        self._opened = ExitStack()
        self._document = self._client.ask("GET", "/openapi.json")
        self._ways = [
            (method.upper(), path, operation)
            for path, ways in self._document["paths"].items()
            for method, operation in ways.items()
        ]
        self._sessions = ["x", "A" * 24]
        self._states = ["", "AAAA"]
        text = st.sampled_from(LINES)
        self._hints: dict[str, st.SearchStrategy[Any]] = {
            "run": st.sampled_from([*JOBS, *JOBS, "nobody"]),
            "lines": st.lists(text, min_size=1, max_size=4) | st.just(TABLE) | st.just(TABLE[:4]),
            "text": text,
            "prompt": text,
            "tokens": st.lists(st.integers(0, 64), min_size=1, max_size=5),
            "numbers": st.lists(st.lists(st.floats(width=32), max_size=3), max_size=3),
            "length": st.integers(1, 20),
            "format": st.sampled_from(["jsonl", "tsv", "conll", "brackets", "lines", "é"]),
            "state": st.integers(0, 7).map(lambda back: _late(self._states, back)),
            "part": st.sampled_from(["c", "h", "i", "x"]),
            "unit": st.integers(0, 40),
            "layer": st.integers(0, 2),
        }

    def value(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        """Values of a schema of the document."""
        if "$ref" in schema:
            return self.value(self._document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
        if "enum" in schema or "const" in schema:
            return st.sampled_from(schema.get("enum") or [schema["const"]])
        if "anyOf" in schema:
            return st.one_of([self.value(one) for one in schema["anyOf"]])
        kind = schema.get("type")
        if kind == "integer":
            low, high = schema.get("minimum", -(1 << 70)), schema.get("maximum", 1 << 70)
            high = min(high, schema["exclusiveMaximum"] - 1) if "exclusiveMaximum" in schema else high
            return st.integers(int(low), int(high)) | st.integers(int(low), int(min(high, low + 5)))
        if kind == "number":
            return st.floats(schema.get("minimum"), schema.get("maximum"), allow_nan=False, allow_infinity=False)
        if kind == "array":
            return st.lists(self.value(schema["items"]), min_size=schema.get("minItems", 0), max_size=4)
        if kind == "object":
            return self.body(schema)
        simple = {"string": st.text(max_size=min(30, schema.get("maxLength", 30))), "boolean": st.booleans()}
        return simple.get(str(kind), st.none())

    @st.composite  # type: ignore[misc]
    @staticmethod
    def _object(draw: Any, fuzz: Fuzz, properties: dict[str, Any]) -> dict[str, Any]:
        is_wild = draw(st.integers(0, 9)) < 4
        found: dict[str, Any] = {}
        for name, schema in properties.items():
            if name not in ("run", "lines") and draw(st.integers(0, 9)) >= 4:
                continue
            kind = draw(st.integers(0, 9)) if is_wild else 9
            if kind == 0:
                found[name] = draw(JUNK)
            elif kind > 3 and name in fuzz._hints:
                found[name] = draw(fuzz._hints[name])
            else:
                found[name] = draw(fuzz.value(schema))
        if is_wild and draw(st.integers(0, 9)) == 0:
            found[draw(st.text(max_size=5))] = draw(JUNK)
        if not is_wild and "tokens" in properties and "numbers" in properties:  # exactly one of three is right
            kept = draw(st.sampled_from(["tokens", "tokens", "text", "numbers"]))
            found = {name: value for name, value in found.items() if name not in ("tokens", "text", "numbers")}
            found[kept] = draw(fuzz._hints[kept])
        return found

    def body(self, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
        """Bodies of an object of the document."""
        return Fuzz._object(self, schema.get("properties", {}))

    def run(self, block: int) -> dict[str, Any]:
        """What came of a block of requests."""
        self.told = {}

        @seed(block)
        @settings(
            max_examples=BLOCK, database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(data=st.data())
        def one(data: st.DataObject) -> None:
            if data.draw(st.integers(0, 19)) == 0:
                self._frame(data)
            else:
                self._request(data)

        one()
        return self.told

    def _request(self, data: st.DataObject) -> None:
        method, path, operation = data.draw(st.sampled_from(self._ways))
        path = path.replace("{name}", data.draw(st.sampled_from([*JOBS, "nobody", "..%2f..", "%00"])))
        if "{session}" in path:
            known = st.integers(0, 19).map(lambda back: _late(self._sessions, back))
            path = path.replace("{session}", data.draw(known | st.text(max_size=20).map(lambda text: quote(text, ""))))
        asked = [one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"]
        if asked and data.draw(st.booleans()):
            value = data.draw(st.sampled_from(["1", "true", "play", "0", "-1", "é", "9" * 30, ""]))
            path += f"?{data.draw(st.sampled_from(asked))}={quote(value)}"
        content, kind = b"", "application/json"
        if "requestBody" in operation:
            body = data.draw(self.value(operation["requestBody"]["content"][kind]["schema"]))
            able = ABLE.get(path, SPEAKING)
            if "run" in body and data.draw(st.integers(0, 9)) < 8:
                body["run"] = data.draw(st.sampled_from(able))
            content = json.dumps(body).encode()
            damage = data.draw(st.integers(0, 24))
            if damage == 0:
                at = data.draw(st.integers(0, 1 << 16)) % (len(content) + 1)  # states differ in length
                content = content[:at] + data.draw(st.binary(max_size=6)) + content[at + data.draw(st.integers(0, 3)) :]
            elif damage == 1:
                kind = data.draw(st.sampled_from(["text/plain", "application/x-www-form-urlencoded", ""]))
            elif damage == 2:
                method = data.draw(st.sampled_from(["GET", "PUT", "PATCH", "OPTIONS", "HEAD"]))
        if method == "HEAD":  # whose answers have no body
            method = "GET"
        self._sent(method, path, content, kind)

    def _sent(self, method: str, path: str, content: bytes, kind: str) -> None:
        start = time.perf_counter()
        try:
            status, answer = self._client.raw(method, path, content, kind)
        except TimeoutError:
            self._client = Client(self._port)
            self._failed("hangs", method, path, content)
            return
        except (ConnectionError, ValueError):  # closed after a refusal that it need not read
            self._client = Client(self._port)
            self.told["closed"] = self.told.get("closed", 0) + 1
            return
        self._count(f"{method} {path.split('?')[0].split('/')[1]}", status, time.perf_counter() - start)
        if status >= 500 and status != 503:
            self._failed(status, method, path, content)
        elif status >= 400 and b'"error"' not in answer:
            self._failed("no sentence", method, path, content)
        elif status < 300 and answer[:1] == b"{":
            told = json.loads(answer)
            self._sessions += [told["session"]] if "session" in told else []
            self._states += [told["state"]] if "state" in told else []

    def _frame(self, data: st.DataObject) -> None:
        values = data.draw(st.binary(max_size=24) | st.lists(st.integers(0, 70), max_size=4).map(
            lambda tokens: b"".join(token.to_bytes(4, "little") for token in tokens)))  # fmt: skip
        name = _late(self._sessions, data.draw(st.integers(0, 19)))[:24]
        frame = request(data.draw(st.integers(0, 6)), "", values, data.draw(st.integers(0, 3)), 7)
        frame = frame[:8] + name.encode("ascii", "replace").ljust(24, b"\0") + frame[32:]
        frame = frame[: data.draw(st.just(len(frame)) | st.integers(0, len(frame)))]
        start = time.perf_counter()
        try:
            if self._socket is None:
                address = f"ws://127.0.0.1:{self._port}/sessions?run=play"
                self._socket = self._opened.enter_context(connect(address, proxy=None))
            self._socket.send(frame)
            number, status, payload = answered(bytes(self._socket.recv(timeout=LIMIT + 10)))
        except ConnectionClosed:  # after a frame without a whole header
            self._socket = None
            self._count("frame", 1003, time.perf_counter() - start)
            return
        except TimeoutError:
            self._socket = None
            self._failed("hangs", "FRAME", "/sessions", frame)
            return
        self._count("frame", status, time.perf_counter() - start)
        if status >= 500 and status != 503:
            self._failed(status, "FRAME", "/sessions", frame)
        if number == 7 and status == 0 and frame[0] in (1, 4):
            self._sessions.append(payload.decode())

    def _count(self, way: str, status: int, seconds: float) -> None:
        told = self.told
        for name, key in (("statuses", str(status)), ("ways", way)):
            told.setdefault(name, {})[key] = told.get(name, {}).get(key, 0) + 1
        if seconds > told.get("slowest_s", 0):
            told["slowest_s"], told["slowest"] = round(seconds, 3), way

    def _failed(self, what: Any, method: str, path: str, content: bytes) -> None:
        failures = self.told.setdefault("failures", [])
        told = {"what": what, "method": method, "path": path, "body": content.decode("latin-1")[:2000]}
        print("FAILED", json.dumps(told)[:600], flush=True)
        if len(failures) < 100:
            failures.append(told)


def _late(found: Sequence[str], back: int) -> str:
    """One of the last; what Hypothesis draws does not depend on how many there are."""
    return found[-1 - back % len(found)]


_fuzz: list[Fuzz] = []
"""That of this process, which keeps its connections from block to block."""


def _run(port: int, block: int) -> dict[str, Any]:
    if not _fuzz:
        _fuzz.append(Fuzz(port))
    return _fuzz[0].run(block)


def _add(told: dict[str, Any], found: dict[str, Any]) -> None:
    """Add what came of a block to what came before."""
    for name in ("statuses", "ways"):
        told[name] = dict(Counter(told.get(name, {})) + Counter(found.get(name, {})))
    told["closed"] = told.get("closed", 0) + found.get("closed", 0)
    told["failures"] = (told.get("failures", []) + found.get("failures", []))[:100]
    if found.get("slowest_s", 0) > told.get("slowest_s", 0):
        told["slowest_s"], told["slowest"] = found["slowest_s"], found["slowest"]


def _run_blocks(port: int, blocks: Iterable[int], clients: int) -> Iterator[dict[str, Any]]:
    """What came of each block, in their order, by so many processes at once."""
    context = multiprocessing.get_context("fork")  # of a process of one thread, so that none imports all anew
    with ProcessPoolExecutor(clients, mp_context=context) as pool:
        yield from pool.map(partial(_run, port), blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--log", type=Path, help="counts, so that a second call goes on")
    parser.add_argument("--runs", type=Path, help="folder in which runs are kept")
    given = parser.parse_args()
    told: dict[str, Any] = {"requests": 0}
    if given.log and given.log.exists():
        told = json.loads(given.log.read_text())
    with tempfile.TemporaryDirectory() as folder:
        runs, port = minute_runs(given.runs or Path(folder)), free_port()
        options = ("--timeout", str(LIMIT), "--max-tokens", "300", "--max-sessions", "300", "--ttl", "20")
        with started([*serving(runs, port), *options], port) as server:
            blocks = range(told["requests"] // BLOCK, -(-given.requests // BLOCK))
            for found in _run_blocks(port, blocks, given.clients):
                _add(told, found)
                told["requests"] += BLOCK
                told["rss_mib"] = round(rss(server.pid) / 2**20)
                if given.log:
                    given.log.write_text(json.dumps(told, indent=1) + "\n")
                print(told["requests"], Counter(told["statuses"]).most_common(9), told["slowest_s"], flush=True)
            assert server.poll() is None, "the server has ended"
    print(json.dumps({name: value for name, value in told.items() if name != "failures"}))
    raise SystemExit(1 if told.get("failures") else 0)


if __name__ == "__main__":
    main()
