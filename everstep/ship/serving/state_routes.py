"""The route of states that clients keep."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from everstep.ship.serving.faults import Fault
from everstep.ship.serving.requests import KeptStepsBody
from everstep.ship.serving.service import Service, StrictRoute, replied, while_there
from everstep.ship.serving.session_routes import answer_of, values_asked
from everstep.ship.serving.stepping import Stepped, begin_symbols


def state_routes(service: Service) -> APIRouter:
    """`/steps`, a feed whose state comes and goes with the request."""
    routes = APIRouter(route_class=StrictRoute, tags=["sessions"])

    @routes.post("/steps", summary="Feed values to a state that the client keeps, signed; the answer has the new one")
    async def steps(request: Request, body: KeptStepsBody) -> Response:
        return await while_there(request, _fed(service, body))

    return routes


async def _fed(service: Service, body: KeptStepsBody) -> Response:
    hosted = service.catalogue.named(body.run)
    engine, _ = hosted.stepped()
    service.seal.check_room(hosted, body.surprise)
    if body.state is not None and body.begin:
        raise Fault(422, "begin: expected false beside a state, which has begun")
    if body.state is not None:
        content = service.seal.opened(body.state, hosted, service.catalogue)
    else:
        content = Stepped(hosted, engine.initial())
    if body.begin and (symbols := begin_symbols(hosted)):
        content, _ = await service.sessions.fed(content, lambda _: list(symbols))
    content, fed = await service.sessions.fed(
        content, lambda _: values_asked(hosted, body), keep_all=body.outputs == "all", judged=body.surprise
    )
    told = {"run": hosted.name, "steps": content.steps, "state": service.seal.sealed(content, body.surprise)}
    return replied({**told, **answer_of(content, fed, body)})
