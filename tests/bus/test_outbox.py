"""What waits to be published goes out together, in order, and soon."""

import asyncio

import pytest

from agent.bus.outbox import Outbox


async def test_events_go_out_with_the_state_that_comes_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.bus.outbox.COMPANY_SECONDS", 3600)  # or a machine that stands still is taken for it
    outbox = Outbox(room=10)
    outbox.append("events/disk", b"1")
    taker = asyncio.create_task(outbox.batch(100))
    await asyncio.sleep(0)
    outbox.append("events/disk", b"2")
    await asyncio.sleep(0)
    assert not taker.done()
    outbox.retain("status", b"up")
    assert [one.payload for one in await taker] == [b"1", b"2", b"up"]


async def test_an_event_that_no_state_follows_goes_out_by_itself() -> None:
    outbox = Outbox(room=10)
    outbox.append("events/host", b"1")
    assert [one.payload for one in await outbox.batch(100)] == [b"1"]


async def test_last_words_wait_for_nothing() -> None:
    outbox = Outbox(room=10)
    outbox.append("events/host", b"1")
    outbox.hurry()
    taker = asyncio.create_task(outbox.batch(100))
    for _ in range(3):
        await asyncio.sleep(0)
    assert taker.done()
