"""The store of sessions: states of clients under ids that nobody can guess, for a limited time."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from everstep.errors import counted
from everstep.ship.serving.faults import Fault

T = TypeVar("T")
ID_LENGTH = 24
"""Characters of an id: 128 random bits and 16 bits of a checksum, in base64 for URLs."""


def new_id() -> str:
    """An id of 128 random bits with a checksum."""
    return _with_checksum(secrets.token_bytes(16))


def _with_checksum(random: bytes) -> str:
    return base64.urlsafe_b64encode(random + hashlib.sha256(random).digest()[:2]).decode()


def well_formed(session: str) -> bool:
    """Whether a server may have made this id: its checksum is right.

    >>> well_formed(new_id()), well_formed("A" * 24), well_formed("é")
    (True, False, False)
    """
    try:
        data = base64.b64decode(session.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return False
    return len(data) == 18 and _with_checksum(data[:16]) == session


@dataclass(slots=True)
class _Kept(Generic[T]):
    content: T
    size: int
    expires: float
    busy: bool = False


class SessionStore(Generic[T]):
    """Contents by id. A session expires `ttl` seconds after its last use, and is not seen by anyone without its id.

    The checksum of an id tells a session that has ended, or that a server which was killed had, (410) from an id that
    never was one (404), without a memory of ended sessions.

    One request at a time changes a session: `begin` takes it, then `commit` replaces its content, or `abandon` leaves
    it as it was. A session in use does not expire.

    >>> store = SessionStore(most=10, most_bytes=1000, ttl=60)
    >>> session = store.create("state 0", size=8)
    >>> store.begin(session)
    'state 0'
    >>> store.commit(session, "state 1", size=8)
    >>> store.read(session), len(store), store.bytes
    ('state 1', 1, 8)

    Args:
        most: most sessions.
        most_bytes: most bytes of all sessions.
        ttl: seconds from the last use to the end.
        clock: gives seconds.

    Known limits: not safe for several threads. Sessions are in memory, and end with the process.
    """

    def __init__(self, most: int, most_bytes: int, ttl: float, clock: Callable[[], float] = time.monotonic):
        self.most, self.most_bytes, self.ttl, self._clock = most, most_bytes, ttl, clock
        self.bytes = 0
        self._kept: OrderedDict[str, _Kept[T]] = OrderedDict()  # the one that expires first is the first

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[T]:
        return (kept.content for kept in self._kept.values())

    def create(self, content: T, size: int) -> str:
        """Keep a new session of `size` bytes; returns its id.

        Raises:
            Fault: 429, there are too many sessions, or they hold too many bytes.
        """
        self.sweep()
        if len(self._kept) >= self.most:
            raise self._full(f"there are {counted(len(self._kept), 'session')}, the most that this server keeps")
        self._check_room(size)
        session = new_id()
        self._kept[session] = _Kept(content, size, self._clock() + self.ttl)
        self.bytes += size
        return session

    def read(self, session: str) -> T:
        """The content.

        Raises:
            Fault: 404, there is no such session; 410, it has ended.
        """
        return self._found(session).content

    def left(self, session: str) -> float:
        """Seconds until the session ends, if nobody uses it. Raises as `read`."""
        return self._found(session, touch=False).expires - self._clock()

    def begin(self, session: str) -> T:
        """The content, for a request that changes it.

        Raises:
            Fault: as `read`; 409, another request is changing it.
        """
        kept = self._found(session)
        if kept.busy:
            raise Fault(409, "another request is stepping this session; wait for its answer", retry_after=1)
        kept.busy = True
        return kept.content

    def commit(self, session: str, content: T, size: int) -> None:
        """Replace the content of a session that was begun.

        Raises:
            Fault: 410, it was deleted meanwhile; 429, it has become too large, and stays as it was.
        """
        kept = self._found(session)
        kept.busy = False
        self._check_room(size - kept.size)
        self.bytes += size - kept.size
        kept.content, kept.size = content, size

    def abandon(self, session: str) -> None:
        """Leave a session that was begun as it was. One that was deleted meanwhile is no error."""
        kept = self._kept.get(session)
        if kept is not None:
            kept.busy = False

    def fork(self, session: str) -> str:
        """A new session with the same content. Raises as `read` and `create`."""
        kept = self._found(session)
        return self.create(kept.content, kept.size)

    def delete(self, session: str) -> None:
        """End a session. Raises as `read`."""
        self._found(session)
        self._drop(session)

    def sweep(self) -> int:
        """End the sessions whose time is over; returns their number."""
        now, ended = self._clock(), 0
        while self._kept:
            session, kept = next(iter(self._kept.items()))
            if kept.expires > now:
                break
            if kept.busy:
                self._touch(session, kept)
                continue
            self._drop(session)
            ended += 1
        return ended

    def _found(self, session: str, touch: bool = True) -> _Kept[T]:
        kept = self._kept.get(session)
        if kept is not None and not kept.busy and kept.expires <= self._clock():
            self._drop(session)
            kept = None
        if kept is None:
            if well_formed(session):
                raise Fault(410, "this session has ended: it was deleted, or not used for too long; create a new one")
            raise Fault(404, "this is no id of a session; POST /sessions creates one")
        if touch:
            self._touch(session, kept)
        return kept

    def _touch(self, session: str, kept: _Kept[T]) -> None:
        kept.expires = self._clock() + self.ttl
        self._kept.move_to_end(session)

    def _drop(self, session: str) -> None:
        self.bytes -= self._kept.pop(session).size

    def _check_room(self, more: int) -> None:
        if more > 0 and self.bytes + more > self.most_bytes:
            raise self._full(
                f"the sessions hold {self.bytes:,} bytes of {self.most_bytes:,}, and {more:,} more are asked for"
            )

    def _full(self, reason: str) -> Fault:
        first = next(iter(self._kept.values()), None)
        wait = self.ttl if first is None else max(0.0, first.expires - self._clock())
        return Fault(429, f"{reason}; delete one, or try again when one has expired", retry_after=wait)
