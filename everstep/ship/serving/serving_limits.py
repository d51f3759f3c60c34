"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServingLimits:
    """Bounds that keep one client from taking what others need.

    Attributes:
        body: most bytes of a request.
        body_seconds: most seconds in which it must have come.
        line: most characters of a line to predict from, or to score.
        seconds: most seconds of an answer; of one piece of it, where it is streamed.
        at_once: most requests in progress.
        waiting: most feeds, and most other requests, that wait for their turn.
        workers: threads for predictions, scores and texts.
        texts: most texts that are generated at once.
        tokens: most symbols of a generated text, and most steps of a feed.
        numbers: most numbers in an answer.
        sessions, session_bytes: most sessions, and most bytes of their states.
        ttl: seconds from the last use of a session to its end.
        drain: seconds that requests in progress have when the server ends.
    """

    body: int = 1 << 20
    body_seconds: float = 10
    line: int = 64_000
    seconds: float = 60
    at_once: int = 1024
    waiting: int = 1024
    workers: int = 2
    texts: int = 8
    tokens: int = 4096
    numbers: int = 1 << 20
    sessions: int = 1000
    session_bytes: int = 1 << 29
    ttl: float = 600
    drain: float = 30
