"""Many clients at once: no session is mixed with another, none is left behind."""

from __future__ import annotations

import asyncio

import pytest
from session_events import SessionEvents, tensors


@pytest.mark.parametrize("seed", range(2))
def test_random_events_of_many_clients_agree_with_a_model(seed: int) -> None:
    before = tensors()
    events = SessionEvents(seed, most=60)
    asyncio.run(events.run(3000))
    seen = set(events.counts)
    assert {("feed", 200), ("feed", 409), ("cancel", 499), ("cancel", 200), ("fail", 500), ("fail", 422)} <= seen
    assert {("feed", 410), ("create", 429), ("fork", 201), ("gone", 410), ("expired", 410)} <= seen
    del events
    assert len(tensors()) == len(before)
