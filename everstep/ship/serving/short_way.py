"""The short way of the request that is made most, a step of a session."""

from __future__ import annotations

import re
from types import SimpleNamespace

from fastapi import Request
from pydantic import ValidationError

from everstep.ship.serving.faults import as_fault
from everstep.ship.serving.guard import Application, Message, Receive, Send
from everstep.ship.serving.requests import StepsBody
from everstep.ship.serving.service import Service, replied, sentence_of, while_there
from everstep.ship.serving.session_routes import STEPS, fed_steps

_STEPS = re.compile(STEPS.replace("{session}", "([^/]+)"))
_ROUTE = SimpleNamespace(path=STEPS)


class ShortWay:
    """Answers `POST /sessions/{session}/steps` itself, as the route of FastAPI does, which takes longer than a step.

    Args:
        app: answers all other requests.
        service: the sessions.
    """

    def __init__(self, app: Application, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        found = _STEPS.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = _ROUTE
        try:
            request = Request(scope, receive)
            body = StepsBody.model_validate_json(await request.body())
            steps = fed_steps(self._service, found[1], body)
            is_one = body.tokens is not None and len(body.tokens) == 1  # which is over before a client can leave
            answer = await (steps if is_one else while_there(request, steps))
        except ValidationError as error:
            first = error.errors()[0]
            answer = replied({"error": sentence_of(first)}, 400 if first["type"] == "json_invalid" else 422)
        except Exception as error:
            fault = as_fault(error, "a step")
            self._service.failed(fault)
            answer = replied({"error": fault.sentence}, fault.status, fault.headers)
        await answer(scope, receive, send)
