"""Routes that ask a run: predictions, scores and texts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from everstep.cancellation import cancelled_by, check_cancelled
from everstep.decode.section import SamplingSection
from everstep.runs.drawn_text import Writing
from everstep.runs.run import Run
from everstep.ship.serving.faults import Fault, as_fault
from everstep.ship.serving.hosted import HostedRun
from everstep.ship.serving.requests import GenerateBody, PredictBody, ScoreBody, UnitsBody
from everstep.ship.serving.service import Service, StrictRoute, replied, while_there
from everstep.ship.serving.shared_texts import PIECE_SECONDS, shared_pieces, shares_steps
from everstep.ship.serving.unit_values import unit_values
from everstep.ship.serving.work_pool import Stop, late
from everstep.storage.reading import json_text

BLOCK = 64
"""Lines that are scored between two looks at the clock."""
Pieces = AsyncGenerator[tuple[str, int], None]
"""Pieces of a text, and their numbers of tokens."""
Lines = TypeVar("Lines", PredictBody, ScoreBody)
Records = list[dict[str, Any]]


def asking_routes(service: Service) -> APIRouter:
    """`/predict`, `/score`, `/units` and `/generate`."""
    routes = APIRouter(route_class=StrictRoute, tags=["ask a run"])
    _add_lines(routes, service)
    _add_units(routes, service)
    _add_generate(routes, service)
    return routes


def _add_lines(routes: APIRouter, service: Service) -> None:
    limits, pool = service.limits, service.pool

    async def of_lines(request: Request, body: Lines, verb: str, work: Callable[[Run, Lines], Records]) -> Any:
        hosted = service.catalogue.named(body.run)
        run = hosted.able(verb)
        check_lines(body.lines, limits.line)
        if run.task.names_files:
            check_held(body.lines)

        def stoppable(stop: Stop) -> Records:
            with cancelled_by(stop.check):
                return work(run, body)

        return hosted.name, await while_there(request, pool.run(stoppable, limits.seconds, hosted.alone))

    @routes.post("/predict", summary="Predict for lines, as everstep predict does")
    async def predict(request: Request, body: PredictBody) -> Response:
        name, found = await of_lines(request, body, "predict", _predictions)
        return replied({"run": name, "predictions": found})

    @routes.post("/score", summary="log p of lines, in nats")
    async def score(request: Request, body: ScoreBody) -> Response:
        name, found = await of_lines(request, body, "score", _scores)
        return replied({"run": name, "scores": found})


def _add_units(routes: APIRouter, service: Service) -> None:
    @routes.post("/units", summary="The values of a unit or gate over a text")
    async def units(request: Request, body: UnitsBody) -> Response:
        hosted = service.catalogue.named(body.run)
        run = hosted.able("units")

        def work(stop: Stop) -> dict[str, Any]:
            try:
                return unit_values(run, body, hosted.named_steps)
            except Exception as error:
                raise as_fault(error, "units", run) from error

        found = await while_there(request, service.pool.run(work, service.limits.seconds, hosted.alone))
        return replied({"run": hosted.name, **found})


def _add_generate(routes: APIRouter, service: Service) -> None:
    limits = service.limits

    @routes.post("/generate", summary="Continue a text; with stream as server-sent events")
    async def generate(request: Request, body: GenerateBody) -> Response:
        hosted = service.catalogue.named(body.run)
        run = hosted.able("generate")
        if body.length is not None and body.length > limits.tokens:
            raise Fault(422, f"length: expected at most {limits.tokens:,} tokens; got {body.length:,}")
        pieces = _pieces(service, hosted, run, body)
        if body.stream:
            events = _events(pieces, service)
            first = await anext(events)  # so that an error has its status
            headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            return StreamingResponse(_again(first, events), 200, headers, "text/event-stream")
        start = time.perf_counter()
        text, tokens = await while_there(request, _gathered(pieces, limits.seconds))
        seconds = round(time.perf_counter() - start, 4)
        return replied({"run": hosted.name, "text": text, "tokens": tokens, "seconds": seconds})


def check_held(lines: Sequence[str]) -> None:
    """Raise a `Fault`, 422, if a line names a file: clients may not read those of the server."""
    for number, line in enumerate(lines):
        if not line.startswith("data:"):
            raise Fault(
                422, f"lines.{number}: a server opens no files; expected data:TYPE;base64,… ; got {line[:40]!r}"
            )


def check_lines(lines: Sequence[str], most: int) -> None:
    """Raise a `Fault`, 413, if a line has more than `most` characters: one line is read without a look at the clock."""
    for number, line in enumerate(lines):
        if len(line) > most:
            raise Fault(413, f"lines.{number}: expected at most {most:,} characters; got {len(line):,}")


def _predictions(run: Run, body: PredictBody) -> Records:
    asked = {"probabilities": body.probabilities, "n_best": body.n_best, "format": body.format}
    found = []
    try:
        for prediction in run.predict(body.lines, body.explain, **asked):  # type: ignore[arg-type]
            found.append({"text": prediction.text, "record": prediction.record})
            check_cancelled()
    except Exception as error:
        raise as_fault(error, "predict", run) from error
    return found


def _scores(run: Run, body: ScoreBody) -> Records:
    found = []
    try:
        for start in range(0, len(body.lines), BLOCK):
            for one in run.score(body.lines[start : start + BLOCK], start + 1):
                row: dict[str, Any] = {"logp": one.logp, "tokens": one.tokens, "unknown": one.unknown}
                found.append({**row, "token_logps": list(one.token_logps)} if body.tokens else row)
            check_cancelled()
    except Exception as error:
        raise as_fault(error, "score", run) from error
    return found


async def _pieces(service: Service, hosted: HostedRun, run: Run, body: GenerateBody) -> Pieces:
    """Pieces of the text and their numbers of tokens, each sampled when it is asked for."""
    limits = service.limits
    names = ("prompt", "length", "temperature", "top_k", "top_p", "unk")
    wanted = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
    if service.texts >= limits.texts:
        raise Fault(429, f"{service.texts} texts are being generated; try again later", retry_after=1)
    service.texts += 1
    try:
        try:
            how = run.decode.replace(**wanted)
        except Exception as error:
            raise as_fault(error, "generate", run) from error
        how = how.replace(length=min(how.length, limits.tokens))
        async with aclosing((_shared if shares_steps(hosted) else _threaded)(service, hosted, run, body, how)) as found:
            async for piece in found:
                service.tally.count("generated_pieces")
                yield piece
    finally:
        service.texts -= 1


async def _shared(service: Service, hosted: HostedRun, run: Run, body: GenerateBody, how: SamplingSection) -> Pieces:
    """Pieces whose steps are shared with other texts and sessions."""
    seconds = service.limits.seconds

    def begun(stop: Stop) -> Writing:
        try:
            return run.writing(how, seed=body.seed, stop=body.stop, until_end=body.until_end)
        except Exception as error:
            raise as_fault(error, "generate", run) from error

    writing = await service.pool.run(begun, seconds)
    async with aclosing(shared_pieces(hosted, writing, how.length, seconds)) as found:
        try:
            async for piece in found:
                yield piece
        except Exception as error:
            raise as_fault(error, "generate", run) from error


async def _threaded(service: Service, hosted: HostedRun, run: Run, body: GenerateBody, how: SamplingSection) -> Pieces:
    """Pieces that are each sampled in a thread."""
    limits, pool = service.limits, service.pool

    def begun(stop: Stop) -> Iterator[list[str]]:
        try:
            found: Iterator[list[str]] = run.stream(how, seed=body.seed, stop=body.stop, until_end=body.until_end)
            return found
        except Exception as error:
            raise as_fault(error, "generate", run) from error

    texts = await pool.run(begun, limits.seconds)
    is_prompt = True
    while True:
        piece = await pool.run(lambda stop: _sampled(run, texts, stop), limits.seconds)
        yield piece.text, piece.tokens - is_prompt  # the first is the prompt, which is no token of the text
        is_prompt = False
        if piece.is_last:
            return


class _Piece:
    def __init__(self, text: str, tokens: int, is_last: bool):
        self.text, self.tokens, self.is_last = text, tokens, is_last


def _sampled(run: Run, texts: Iterator[list[str]], stop: Stop) -> _Piece:
    until = time.perf_counter() + PIECE_SECONDS
    parts: list[str] = []
    try:
        for (text,) in texts:
            parts.append(text)
            stop.check()
            if time.perf_counter() > until:
                return _Piece("".join(parts), len(parts), False)
    except Exception as error:
        raise as_fault(error, "generate", run) from error
    # what comes last is the rest of the text after the last token
    return _Piece("".join(parts), max(0, len(parts) - 1), True)


async def _gathered(pieces: AsyncIterator[tuple[str, int]], seconds: float) -> tuple[str, int]:
    text, tokens = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for piece, count in pieces:
                text.append(piece)
                tokens += count
    except TimeoutError:
        raise late(seconds) from None
    return "".join(text), tokens


async def _events(pieces: AsyncIterator[tuple[str, int]], service: Service) -> AsyncGenerator[bytes, None]:
    """Server-sent events: `{"text"}` for each piece, then `done` or `error`."""
    start, tokens, is_first = time.perf_counter(), 0, True
    try:
        async for text, count in pieces:
            tokens += count
            yield _event({"text": text})
            is_first = False
    except Fault as fault:
        if is_first:
            raise
        service.failed(fault)
        yield _event({"error": fault.sentence}, "error")
        return
    yield _event({"tokens": tokens, "seconds": round(time.perf_counter() - start, 4)}, "done")


def _event(value: dict[str, Any], name: str | None = None) -> bytes:
    data = f"data: {json_text(value, ensure_ascii=False)}\n\n"
    return (data if name is None else f"event: {name}\n{data}").encode("utf-8", "replace")


async def _again(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for event in rest:
        yield event
