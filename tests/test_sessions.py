"""The store of sessions against a model of what should be: none mixed, none leaked, the bytes back to the start."""

from __future__ import annotations

import random

import pytest

from everstep.ship.serving.faults import Fault
from everstep.ship.serving.sessions import ID_LENGTH, SessionStore, new_id, well_formed


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def store(most: int = 10, most_bytes: int = 1000, ttl: float = 60) -> tuple[SessionStore[str], Clock]:
    clock = Clock()
    return SessionStore(most, most_bytes, ttl, clock), clock


def test_ids_are_long_distinct_and_checked() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert {len(one) for one in ids} == {ID_LENGTH}
    assert all(map(well_formed, ids))
    one = new_id()
    changed = ("B" if one[3] != "B" else "C").join((one[:3], one[4:]))
    assert not any(map(well_formed, ("", "x", one[:-4], one + "AAAA", one.lower() + "=", "../../etc/passwd", "é" * 24)))
    assert not well_formed(changed) or one[:3] == changed[:3]  # one in 65,536 has the same checksum


def test_an_ended_session_is_gone_and_an_id_that_never_was_is_unknown() -> None:
    sessions, clock = store()
    deleted, expired = sessions.create("a", 1), sessions.create("b", 1)
    sessions.delete(deleted)
    clock.now = 61
    for session, status in ((deleted, 410), (expired, 410), ("nonsense", 404)):
        for ask in (sessions.read, sessions.begin, sessions.fork, sessions.delete, sessions.left):
            with pytest.raises(Fault) as fault:
                ask(session)
            assert fault.value.status == status
    assert len(sessions) == sessions.bytes == 0


def test_use_extends_the_life_of_a_session() -> None:
    sessions, clock = store()
    used, unused = sessions.create("a", 1), sessions.create("b", 1)
    clock.now = 50
    assert sessions.left(unused) == 10
    assert sessions.read(used) == "a"
    assert sessions.left(used) == 60
    clock.now = 100
    assert sessions.sweep() == 1
    assert list(sessions) == ["a"]


def test_a_session_in_use_neither_expires_nor_is_used_twice() -> None:
    sessions, clock = store()
    session = sessions.create("a", 1)
    assert sessions.begin(session) == "a"
    with pytest.raises(Fault, match="another request is stepping") as busy:
        sessions.begin(session)
    assert busy.value.status == 409
    clock.now = 1000
    assert sessions.sweep() == 0
    sessions.commit(session, "b", 5)
    assert (sessions.read(session), sessions.bytes) == ("b", 5)
    sessions.begin(session)
    sessions.abandon(session)
    assert sessions.read(session) == "b"


def test_a_session_that_is_deleted_while_in_use_stays_deleted() -> None:
    sessions, _ = store()
    session = sessions.create("a", 7)
    sessions.begin(session)
    sessions.delete(session)
    with pytest.raises(Fault, match="has ended"):
        sessions.commit(session, "b", 9)
    sessions.abandon(session)
    assert len(sessions) == sessions.bytes == 0


def test_number_and_bytes_are_bounded() -> None:
    sessions, clock = store(most=2, most_bytes=100)
    first = sessions.create("a", 60)
    clock.now = 20
    with pytest.raises(Fault, match=r"hold 60 bytes of 100, and 50 more are asked for") as full:
        sessions.create("b", 50)
    assert (full.value.status, full.value.headers) == (429, {"Retry-After": "40"})
    second = sessions.create("b", 40)
    with pytest.raises(Fault, match="there are 2 sessions"):
        sessions.create("c", 0)
    sessions.begin(second)
    with pytest.raises(Fault, match="1 more are asked for"):
        sessions.commit(second, "larger", 41)
    assert sessions.read(second) == "b"
    sessions.begin(second)  # the refused commit left it free
    sessions.delete(first)
    sessions.commit(second, "larger", 41)
    assert sessions.bytes == 41


@pytest.mark.parametrize("seed", range(5))
def test_many_random_events_agree_with_a_model(seed: int) -> None:
    """The model: a dict of id → (history, bytes, last use). A history names every feed, so that a mix-up shows."""
    events = ("create", "begin", "commit", "commit", "abandon", "read", "fork", "delete", "gone", "sweep")
    draw = random.Random(seed)
    sessions, clock = store(most=40, most_bytes=4000, ttl=50)
    model: dict[str, tuple[str, int, float]] = {}
    busy: dict[str, str] = {}
    gone: list[str] = []

    def renew() -> None:
        """A session in use whose time is over goes on."""
        for one in busy:
            if one in model and clock.now - model[one][2] >= 50:
                model[one] = (*model[one][:2], clock.now)

    for number in range(20_000):
        clock.now += draw.choice((0, 0, 0.125, 1, 5))  # sums of these are exact
        for session, (_, _, used) in list(model.items()):
            if clock.now - used >= 50:
                if session in busy:
                    continue
                del model[session]
                gone.append(session)
        event = draw.choice(events)
        session = draw.choice(list(model)) if model else None
        total = sum(size for _, size, _ in model.values())
        if event == "create":
            size = draw.randrange(200)
            renew()
            if len(model) < 40 and total + size <= 4000:
                made = sessions.create(f"{number}", size)
                assert made not in model
                model[made] = (f"{number}", size, clock.now)
            else:
                with pytest.raises(Fault) as full:
                    sessions.create(f"{number}", size)
                assert full.value.status == 429
        elif event == "gone" and gone:
            with pytest.raises(Fault) as ended:
                sessions.read(draw.choice(gone))
            assert ended.value.status == 410
        elif event == "sweep":
            sessions.sweep()
            renew()
            assert len(sessions) == len(model)
            assert sessions.bytes == sum(size for _, size, _ in model.values())
        elif session is None:
            continue
        elif event == "begin" and session not in busy:
            assert sessions.begin(session) == model[session][0]
            busy[session] = f"{model[session][0]}.{number}"
            model[session] = (*model[session][:2], clock.now)
        elif event in ("commit", "abandon") and busy:
            one = draw.choice(list(busy))
            history = busy.pop(one)
            if event == "abandon":
                sessions.abandon(one)
            elif one not in model:
                with pytest.raises(Fault, match="has ended"):
                    sessions.commit(one, history, 10)
            else:
                size = draw.randrange(200)
                if size <= model[one][1] or total + size - model[one][1] <= 4000:
                    sessions.commit(one, history, size)
                    model[one] = (history, size, clock.now)
                else:
                    with pytest.raises(Fault):
                        sessions.commit(one, history, size)
                    model[one] = (*model[one][:2], clock.now)
        elif event == "read":
            assert sessions.read(session) == model[session][0]
            model[session] = (*model[session][:2], clock.now)
        elif event == "fork" and len(model) < 40 and total + model[session][1] <= 4000:
            renew()
            made = sessions.fork(session)
            model[session] = (*model[session][:2], clock.now)
            model[made] = (model[session][0], model[session][1], clock.now)
        elif event == "delete":
            sessions.delete(session)
            del model[session]
            gone.append(session)
    for one in list(busy):
        sessions.abandon(one)
    clock.now += 51
    sessions.sweep()
    assert len(sessions) == sessions.bytes == 0
