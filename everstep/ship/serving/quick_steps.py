"""A step of a session that is answered at once, in the call that brought the request."""

from __future__ import annotations

import time
from collections.abc import Sequence

from everstep.ship.serving.guard import Guard
from everstep.ship.serving.requests import StepsBody
from everstep.ship.serving.service import Service
from everstep.ship.serving.session_routes import STEPS, fed_at_once


class QuickSteps:
    """Answers `POST /sessions/{session}/steps` of one value where nothing has to be waited for.

    The tasks and messages of ASGI take longer than a step. Whatever is refused here, or fails, has changed nothing, and
    is told by the usual way, which meets the same.

    Args:
        guard: says who may ask, and writes requests down.
        service: the sessions.
    """

    def __init__(self, guard: Guard, service: Service):
        self._guard, self._service = guard, service

    def answer(self, session: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes | None:
        """The content of an answer with status 200, in JSON; None: the usual way has to answer."""
        start = time.perf_counter()
        kinds = [value for name, value in headers if name == b"content-type"]
        if len(body) > self._service.limits.body or kinds != [b"application/json"]:
            return None
        try:
            self._guard.check(STEPS, headers)
            asked = StepsBody.model_validate_json(body)
            values = asked.tokens or asked.numbers
            if values is None or len(values) > 1:
                return None
            content = fed_at_once(self._service, session, asked)
        except Exception:
            return None
        if content is not None:
            self._guard.seen("POST", STEPS, 200, time.perf_counter() - start)
        return content
