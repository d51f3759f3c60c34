"""Do sessions stay apart? Random events by many clients at once against a model of what should be, and a kill.

    python benchmarks/isolation.py [--events 100000] [--json FILE]

1. Events in this process: create, step, fork, read, expire, end, cancel within a step, fail within a batch. A step's
   state is a number that stands for the whole history, so that a mixed, lost or doubled step shows at once. At the end
   no tensor is left, and the memory is what it was after the first of ten parts.
2. A server is killed with `kill -9` while 32 sessions step, and started again at the same port: each of the old ids
   gives 410, and new sessions begin at the beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from serving_clients import Client, Framed, free_port, minute_runs, rss, serving, started

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from session_events import SessionEvents, tensors


def isolated(number: int) -> dict[str, Any]:
    """Events in ten parts, what they leave, and the memory after each part."""
    before, counts, memory = tensors(), Counter[tuple[str, int]](), []
    for seed in range(10):
        events = SessionEvents(seed)
        asyncio.run(events.run(number // 10))
        counts += events.counts
        del events
        left = len(tensors()) - len(before)
        memory.append(round(rss(os.getpid()) / 2**20, 1))
    named = {f"{kind} {status}": count for (kind, status), count in sorted(counts.items())}
    return {"events": counts.total(), "tensors_left": left, "rss_mib": memory, **named}


def killed(run: Path) -> dict[str, Any]:
    """Kill a server under load, and ask the next one for its sessions."""
    port = free_port()
    with started(serving([run], port), port) as server:
        framed = Framed(port)
        sessions = framed.create(32)
        first = framed.step(sessions, 3)

        def load() -> None:
            with suppress(ConnectionError, TimeoutError):
                while True:
                    framed.step(sessions, 5)

        client = threading.Thread(target=load)
        client.start()
        client.join(1)
        assert client.is_alive()
        server.send_signal(signal.SIGKILL)
        server.wait()
        client.join()
    with started(serving([run], port), port):
        again, anew = Client(port), Framed(port)
        equal = sum(one == first[0] for one in anew.step(anew.create(32), 3))
        statuses = [again.raw("GET", f"/sessions/{session}")[0] for session in sessions]
    return {"statuses_of_old_ids": {status: statuses.count(status) for status in set(statuses)}, "begun_anew": equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {"isolation": isolated(given.events)}
    print(json.dumps(found["isolation"], indent=1), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found["killed"] = killed(minute_runs(Path(folder), ["play"])[0])
    print(json.dumps(found["killed"]))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
