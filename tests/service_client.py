"""A client of `everstep serve` in the process of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

import everstep as es
from everstep.ship.serving.application import application
from everstep.ship.serving.hosted import Catalogue
from everstep.ship.serving.service import Service
from everstep.ship.serving.serving_limits import ServingLimits


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
