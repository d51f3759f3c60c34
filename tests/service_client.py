"""`everstep serve` in the process of a test with a client, and in a process of its own."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from apart import command, started
from starlette.testclient import TestClient

import everstep as es
from everstep.ship.serving.application import application
from everstep.ship.serving.hosted import Catalogue
from everstep.ship.serving.service import Service
from everstep.ship.serving.serving_limits import ServingLimits


def running(arguments: Sequence[str], log: Path) -> tuple[ForkServerProcess, str]:
    """`everstep serve ARGUMENTS --port 0` in another process, and its address, once it answers; its log is a file."""
    process = started(command, ["serve", *arguments, "--port", "0"], told=log)
    end = time.monotonic() + 60
    while (found := re.search(r"(http://[\d.:]+/) is ready", log.read_text("utf-8") if log.exists() else "")) is None:
        assert process.is_alive(), log.read_text("utf-8")
        assert time.monotonic() < end, "the server does not begin"
        time.sleep(0.02)
    return process, found[1]


class Served:
    """A client of a service in this process."""

    def __init__(self, service: Service, client: TestClient, log: list[str]):
        self.service, self.client, self.log = service, client, log

    def post(self, path: str, status: int = 200, **body: Any) -> Any:
        return self._answer(self.client.post(path, json=body), status)

    def get(self, path: str, status: int = 200) -> Any:
        return self._answer(self.client.get(path), status)

    def delete(self, path: str, status: int = 204) -> Any:
        return self._answer(self.client.delete(path), status)

    def _answer(self, answer: Any, status: int) -> Any:
        assert answer.status_code == status, answer.text
        if status >= 400:
            return answer.json()["error"]
        return answer.json() if answer.content else None


@contextmanager
def served(
    paths: list[Path], token: str | None = None, load: Any = es.load, key: bytes | None = None, **limits: Any
) -> Iterator[Served]:
    log: list[str] = []
    allowed = ServingLimits(**limits)
    service = Service(lambda batched: Catalogue(paths, load, batched), allowed, log.append, key)
    app = application(service, log.append, token)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with TestClient(app, base_url="http://localhost", headers=headers) as client:  # type: ignore[arg-type]
        yield Served(service, client, log)
