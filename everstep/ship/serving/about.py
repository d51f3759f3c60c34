"""Routes that tell of the server: its health, its runs, its figures and its page."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Response

from everstep.errors import EverstepError
from everstep.ship.serving.faults import Fault, as_fault
from everstep.ship.serving.learning import learning
from everstep.ship.serving.service import Service, replied

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PAGE = {
    entry.name: (entry.read_bytes(), f"{KINDS['.' + entry.name.rpartition('.')[2]]}; charset=utf-8")
    for entry in files("everstep.ship.serving").joinpath("page").iterdir()
    if "." + entry.name.rpartition(".")[2] in KINDS
}
"""The files of the page by name, and their kinds."""
PUBLIC = frozenset({"/", *(f"/page/{name}" for name in PAGE)})
"""The paths of the page, which hold nothing of the runs."""


def about_routes(service: Service) -> APIRouter:
    """`/health`, `/ready`, `/runs`, `/metrics` and the page."""
    routes = APIRouter(tags=["about the server"])

    @routes.get("/health", summary="Whether the server works")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @routes.get("/ready", summary="Whether the server takes requests; 503 while it ends")
    async def ready() -> dict[str, str]:
        if service.draining:
            raise Fault(503, "the server is ending", retry_after=service.limits.drain)
        return {"status": "ready"}

    @routes.get("/runs", summary="The runs, and what each can be asked")
    async def runs() -> dict[str, Any]:
        return {"runs": [hosted.described() for hosted in service.catalogue.values()]}

    @routes.get("/runs/{name}/learning", summary="The learning curves of a run, also while it trains")
    async def learned(name: str) -> Response:
        hosted = service.catalogue.named(name)
        try:
            found = await service.pool.run(lambda stop: learning(hosted.path), service.limits.seconds)
        except EverstepError as error:
            raise as_fault(error, "learning curves", hosted.run) from error
        return replied({"run": name, **found})

    @routes.get("/metrics", summary="Figures for Prometheus")
    async def metrics() -> Response:
        return Response(service.tally.text(), media_type="text/plain; version=0.0.4")

    @routes.get("/", include_in_schema=False)
    async def start() -> Response:
        return page("index.html")

    @routes.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        return page(name)

    def page(name: str) -> Response:
        if name not in PAGE:
            raise Fault(404, "the page has no such file")
        content, kind = PAGE[name]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    return routes
